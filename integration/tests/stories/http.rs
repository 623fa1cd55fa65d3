//! What is asked over HTTP, by those who ask it: load balancers, kubelets, Prometheus and operators.

use std::fs;

use integration::cluster::eventually;
use integration::manifest::{Endpoint, service, slice};
use integration::namespace::Namespace;
use integration::topology::Pod;
use integration::traffic::Protocol::Tcp;
use integration::{Cluster, Result};
use serde_json::Value;

use crate::{TCP_8080, WEB_SERVERS, at, web};

/// A configuration that has defaults only where nothing else works on the lab's node.
const CONFIGURATION: &str = "
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
bindAddress: 192.168.10.2
bindAddressHardFail: true
clientConnection: {acceptContentTypes: application/json, burst: 7, contentType: application/json, qps: 3}
clusterCIDR: 10.244.0.0/16,fd00:10:244::/56
configSyncPeriod: 1h
conntrack:
  maxPerCore: 100000
  min: 200000
  tcpBeLiberal: true
  tcpCloseWaitTimeout: 50m
  tcpEstablishedTimeout: 20h
  udpStreamTimeout: 3m
  udpTimeout: 40s
detectLocal: {bridgeInterface: br0, interfaceNamePrefix: veth}
detectLocalMode: BridgeInterface
enableProfiling: true
featureGates: {AllAlpha: false}
healthzBindAddress: 192.168.10.2:10266
hostnameOverride: node
iptables: {localhostNodePorts: false, masqueradeAll: true, masqueradeBit: 13, minSyncPeriod: 1s, syncPeriod: 7s}
ipvs:
  excludeCIDRs: [192.0.2.0/24]
  minSyncPeriod: 10ms
  scheduler: lc
  strictARP: true
  syncPeriod: 7s
  tcpFinTimeout: 60s
  tcpTimeout: 3h
  udpTimeout: 200s
logging:
  flushFrequency: 7s
  verbosity: 3
  vmodule: [{filePattern: run, verbosity: 4}]
metricsBindAddress: 127.0.0.1:10269
mode: ipvs
nftables: {masqueradeAll: true, masqueradeBit: 13, minSyncPeriod: 2s, syncPeriod: 7s}
nodePortAddresses: [192.168.10.0/24]
oomScoreAdj: -500
portRange: 1-2
showHiddenMetricsForVersion: \"1.35\"
winkernel: {enableDSR: true, forwardHealthCheckVip: true, networkName: a, rootHnsEndpointName: b, sourceVip: 192.0.2.1}
windowsRunAsService: true
";

/// Status and body of an answer; the status is 000 if there is none.
fn get(from: &Namespace, url: &str) -> Result<(String, String)> {
    let script = format!("curl -s -g -m 5 -w '\\n%{{http_code}}' '{url}' || true");
    let answer = from.shell(&script)?;
    let (body, status) = answer.trim_end().rsplit_once('\n').unwrap_or(("", &answer));
    Ok((status.to_owned(), body.to_owned()))
}

/// Waits until these are the statuses of these URLs.
fn expect(from: &Namespace, expected: &[(&str, &str)]) -> Result<()> {
    eventually(|| {
        for (url, status) in expected {
            let answer = get(from, url)?;
            if answer.0 != *status {
                return Ok(Err(format!("{url}: expected {status}, got {answer:?}")));
            }
        }
        Ok(Ok(()))
    })
}

fn balanced(endpoints: &[Endpoint<'_>]) -> [String; 2] {
    [
        service(
            "balanced",
            "type: LoadBalancer, clusterIP: 10.96.0.50, externalTrafficPolicy: Local, \
             healthCheckNodePort: 32050, ports: [{port: 80}]",
        ),
        slice("balanced-1", "balanced", "{port: 8080}", endpoints),
    ]
}

fn pods(cluster: &Cluster) -> Result<[Pod; 2]> {
    Ok([
        cluster.node().pod("web-1", 11, TCP_8080)?,
        cluster.peer().pod("web-2", 12, TCP_8080)?,
    ])
}

#[test]
#[ignore = "needs root and ip_vs: cargo xtask test"]
fn e9_a_load_balancer_learns_whether_this_node_has_endpoints() -> Result<()> {
    const CHECK: &str = "http://192.168.10.2:32050/";
    let mut cluster = Cluster::new()?;
    let pods = pods(&cluster)?;
    let [here, there] = pods.each_ref().map(Endpoint::from);
    cluster.apply("balanced", &balanced(&[here, there]))?;
    cluster.start(&[])?;
    expect(cluster.outside(), &[(CHECK, "200")])?;
    let (_, body) = get(cluster.outside(), CHECK)?;
    assert!(body.contains("\"localEndpoints\": 1,"), "{body}");
    cluster.apply("balanced", &balanced(&[there]))?;
    expect(cluster.outside(), &[(CHECK, "503")])?;
    cluster.delete("balanced")?;
    expect(cluster.outside(), &[(CHECK, "000")])
}

#[test]
#[ignore = "needs root and ip_vs: cargo xtask test"]
fn q35_health_checks_are_where_node_ports_are() -> Result<()> {
    let mut cluster = Cluster::new()?;
    let pods = pods(&cluster)?;
    cluster.apply("balanced", &balanced(&pods.each_ref().map(Endpoint::from)))?;
    cluster.start(&["--nodeport-addresses=192.168.10.0/24"])?;
    let node = &cluster.node().namespace;
    expect(
        node,
        &[
            ("http://192.168.10.2:32050/", "200"),
            ("http://192.168.20.2:32050/", "000"),
        ],
    )?;
    node.ip("address add 192.168.10.77/24 dev eth1")?;
    expect(node, &[("http://192.168.10.77:32050/", "200")])?;
    node.ip("address delete 192.168.10.77/24 dev eth1")?;
    node.ip("address add 192.168.20.77/24 dev eth2")?;
    expect(
        node,
        &[
            ("http://192.168.20.77:32050/", "000"),
            ("http://192.168.10.2:32050/", "200"),
        ],
    )
}

/// F8
#[test]
#[ignore = "needs root and ip_vs: cargo xtask test"]
fn f8_what_a_service_has_carried_is_counted_over_all_its_virtual_servers() -> Result<()> {
    let (mut cluster, _pods) = web()?;
    cluster.start(&["--ipvs-sync-period=1s", "--ipvs-service-metrics"])?;
    cluster.expect_servers(WEB_SERVERS)?;
    let node = &cluster.node().namespace;
    let expect_connections = |count: usize| {
        eventually(|| {
            let (_, text) = get(node, "http://127.0.0.1:10249/metrics")?;
            let labels = "{namespace=\"default\",port=\"\",protocol=\"TCP\",service=\"web\"}";
            let value = |name: &str| {
                let sample = format!("ipvs_proxier_service_{name}_total{labels} ");
                let value = text.lines().find_map(|line| line.strip_prefix(&sample));
                value.and_then(|value| value.parse::<usize>().ok())
            };
            let connections = value("connections");
            let carried = [
                "incoming_packets",
                "outgoing_packets",
                "incoming_bytes",
                "outgoing_bytes",
            ];
            let all = carried.iter().all(|name| value(name) > connections);
            Ok(if connections == Some(count) && all {
                Ok(())
            } else {
                Err(format!("expected {count} connections in\n{text}"))
            })
        })
    };
    let ask = |count| cluster.client().ask(Tcp, at("10.96.0.10:80"), count).map(drop);
    ask(4)?;
    expect_connections(4)?;
    // Made anew, the kernel's counters begin at zero.
    node.shell("ipvsadm -D -t 10.96.0.10:80")?;
    cluster.expect_servers(WEB_SERVERS)?;
    ask(2)?;
    expect_connections(6)
}

#[test]
#[ignore = "needs root and ip_vs: cargo xtask test"]
fn kubelets_and_prometheus_are_answered() -> Result<()> {
    let (mut cluster, _pods) = web()?;
    cluster.start(&["--ipvs-sync-period=2s"])?;
    expect(
        cluster.outside(),
        &[
            ("http://192.168.10.2:10256/healthz", "200"),
            ("http://[fd01::2]:10256/livez", "200"),
            // Not for everybody.
            ("http://192.168.10.2:10249/metrics", "000"),
        ],
    )?;
    // Somebody interferes.
    let node = &cluster.node().namespace;
    node.shell("ipvsadm -d -t 10.96.0.10:80 -r 10.244.0.11:8080")?;
    eventually(|| {
        let (_, text) = get(node, "http://127.0.0.1:10249/metrics")?;
        let wanted = [
            "kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"} ",
            "kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family=\"IPv6\"} ",
            "kubeproxy_sync_proxy_rules_service_changes_total 1\n",
            "kubeproxy_sync_proxy_rules_endpoint_changes_pending 0\n",
            "kubeproxy_proxy_healthz_total{code=\"200\"} ",
            "process_resident_memory_bytes ",
            "ipvs_proxier_kernel_operations_total{driver=\"netfilter\"} ",
            "ipvs_proxier_repairs_total 1\n",
        ];
        let missing: Vec<_> = wanted.iter().filter(|line| !text.contains(**line)).collect();
        Ok(if missing.is_empty() {
            Ok(())
        } else {
            Err(format!("{missing:?} in\n{text}"))
        })
    })
}

/// Q46
#[test]
#[ignore = "needs root and ip_vs: cargo xtask test"]
fn operators_see_the_configuration_in_effect_and_a_change_of_its_file_ends_the_program() -> Result<()> {
    let (mut cluster, _pods) = web()?;
    let [config, next, written] = ["config", "next", "written"].map(|name| cluster.scratch(name));
    fs::write(&config, CONFIGURATION).unwrap();
    let flag = format!("--config={}", config.display());
    let node = &cluster.node().namespace;
    let write = format!("--write-config-to={}", written.display());
    node.output("kube-proxy", &[&flag, &write])?;
    let mut expected: Value = serde_saphyr::from_str(&fs::read_to_string(&written).unwrap()).unwrap();
    for header in ["apiVersion", "kind"] {
        assert!(
            expected.as_object_mut().unwrap().remove(header).is_some(),
            "{expected}"
        );
    }
    cluster.start(&[&flag])?;
    let node = &cluster.node().namespace;
    expect(node, &[("http://192.168.10.2:10266/livez", "200")])?;
    let (_, shown) = get(node, "http://127.0.0.1:10269/configz")?;
    let shown: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(shown["kubeproxy.config.k8s.io"], expected);
    cluster.expect_servers(&WEB_SERVERS.replace("-s rr", "-s lc"))?;
    let kube_proxy = cluster.take_kube_proxy()?;
    let adjusted = fs::read_to_string(format!("/proc/{}/oom_score_adj", kube_proxy.id())).unwrap();
    assert_eq!(adjusted, "-500\n");
    // As editors and the kubelet replace files.
    fs::write(&next, CONFIGURATION.replace("-500", "-400")).unwrap();
    fs::rename(&next, &config).unwrap();
    let (status, log) = kube_proxy.wait()?;
    let sentence = "content of the proxy server's configuration file was updated";
    assert!(status.code() == Some(1) && log.contains(sentence), "{log}");
    cluster.expect_servers(&WEB_SERVERS.replace("-s rr", "-s lc"))
}
