//! The main job with a real API server: what it says, the kernel does, also after the server was away.

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use std::{fs, thread};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use integration::cluster::{Cluster, eventually};
use integration::kube_proxy::KubeProxy;
use integration::manifest::{Endpoint, service, slice};
use integration::topology::{CLUSTER_CIDRS, Pod};
use integration::traffic::Protocol;
use integration::traffic::Protocol::Tcp;
use integration::uplink::{KUBECONFIG, Uplink};
use integration::{Result, api};
use serde_json::{Value, json};

const TCP_8080: &[(Protocol, u16)] = &[(Tcp, 8080)];

/// Every cluster has it, and here it has no endpoints.
const OWN: &str = "-A -t 10.96.0.1:443 -s rr\n";

const NODE: &str = "
apiVersion: v1
kind: Node
metadata: {name: node}
status:
  addresses: [{type: InternalIP, address: 192.168.10.2}, {type: InternalIP, address: \"fd01::2\"}]
";

/// A cluster whose kube-proxy watches an API server.
struct Watched {
    // In the order in which they go.
    kube_proxy: Option<KubeProxy>,
    uplink: Uplink,
    cluster: Cluster,
}

impl Watched {
    fn new() -> Result<Self> {
        let cluster = Cluster::new()?;
        let uplink = Uplink::open(&cluster.node().namespace)?;
        uplink.client().apply(NODE)?;
        Ok(Self {
            kube_proxy: None,
            uplink,
            cluster,
        })
    }

    fn start(&mut self) -> Result<()> {
        self.start_with(KUBECONFIG, "in sync")
    }

    /// Starts kube-proxy with a kubeconfig, and waits until it has said this.
    fn start_with(&mut self, kubeconfig: &str, says: &str) -> Result<()> {
        self.start_command(
            Command::new("kube-proxy").args(["--kubeconfig", kubeconfig]),
            says,
        )
    }

    /// The same, with a command for which the lab has flags, too.
    fn start_command(&mut self, command: &mut Command, says: &str) -> Result<()> {
        command.args([
            "--hostname-override=node",
            "--cluster-cidr",
            CLUSTER_CIDRS,
            "-v=4",
        ]);
        let log = self.cluster.new_log();
        let kube_proxy = KubeProxy::start_command(&self.cluster.node().namespace, command, &log)?;
        self.kube_proxy.insert(kube_proxy).wait_for(says)
    }

    fn api(&self) -> &api::Client {
        self.uplink.client()
    }

    /// A TCP Service with a number at 10.96.0.NUMBER:80, and the pods behind it.
    fn apply(&self, number: u8, pods: &[&Pod]) -> Result<()> {
        self.api().apply(&tcp_service(number))?;
        self.api().apply(&tcp_slice(number, pods))
    }

    fn expect(&self, servers: &str) -> Result<()> {
        self.cluster.expect_servers(&format!("{OWN}{servers}"))
    }
}

fn tcp_service(number: u8) -> String {
    service(
        &format!("web-{number}"),
        &format!("clusterIP: 10.96.0.{number}, ports: [{{port: 80}}]"),
    )
}

fn tcp_slice(number: u8, pods: &[&Pod]) -> String {
    let endpoints: Vec<_> = pods.iter().map(|pod| Endpoint::from(*pod)).collect();
    let name = format!("web-{number}");
    slice(&name, &name, "{port: 8080}", &endpoints)
}

#[test]
#[ignore = "needs an API server: cargo xtask test"]
fn objects_before_the_start_and_changes_after_it() -> Result<()> {
    let mut watched = Watched::new()?;
    let pods = [
        watched.cluster.node().pod("web-1", 11, TCP_8080)?,
        watched.cluster.peer().pod("web-2", 12, TCP_8080)?,
    ];
    watched.apply(10, &[&pods[0]])?;
    watched.start()?;
    watched.expect(
        "-A -t 10.96.0.10:80 -s rr
         -a -t 10.96.0.10:80 -r 10.244.0.11:8080 -m -w 1",
    )?;
    // Created.
    watched.apply(20, &[&pods[0], &pods[1]])?;
    // Its endpoint is replaced.
    watched.apply(10, &[&pods[1]])?;
    watched.expect(
        "-A -t 10.96.0.10:80 -s rr
         -a -t 10.96.0.10:80 -r 10.244.1.12:8080 -m -w 1
         -A -t 10.96.0.20:80 -s rr
         -a -t 10.96.0.20:80 -r 10.244.0.11:8080 -m -w 1
         -a -t 10.96.0.20:80 -r 10.244.1.12:8080 -m -w 1",
    )?;
    watched
        .cluster
        .expect_addresses(&["10.96.0.1/32", "10.96.0.10/32", "10.96.0.20/32"])?;
    eventually(|| {
        let answers = watched
            .cluster
            .node()
            .client()
            .ask(Tcp, "10.96.0.20:80".parse().unwrap(), 4)?;
        let good = answers.names().as_deref() == Some(&["web-1", "web-2"]);
        Ok(if good { Ok(()) } else { Err(answers.to_string()) })
    })?;
    // Its type changes, to the one that is nothing but a name.
    let named = service("web-20", "type: ExternalName, externalName: example.com");
    watched.api().delete(&tcp_slice(20, &[]))?;
    watched.api().apply(&named)?;
    // Deleted.
    watched.api().delete(&tcp_service(10))?;
    watched.expect("")?;
    watched.cluster.expect_addresses(&["10.96.0.1/32"])
}

#[test]
#[ignore = "needs an API server: cargo xtask test"]
fn a_service_becomes_a_node_port_and_a_load_balancer_and_back() -> Result<()> {
    let mut watched = Watched::new()?;
    let pod = watched.cluster.node().pod("web-1", 11, TCP_8080)?;
    watched.apply(10, &[&pod])?;
    watched.start()?;
    let cluster_ip = "-A -t 10.96.0.10:80 -s rr
        -a -t 10.96.0.10:80 -r 10.244.0.11:8080 -m -w 1\n";
    watched.expect(cluster_ip)?;
    let of_type = |kind: &str, ports: &str| {
        service(
            "web-10",
            &format!("type: {kind}, clusterIP: 10.96.0.10, ports: [{{{ports}}}]"),
        )
    };
    // Loopback and kube-ipvs0 apart, every address of the node answers.
    let node_port: String = ["10.244.0.1", "192.168.10.2", "192.168.20.2"]
        .map(|node| format!("-A -t {node}:30080 -s rr\n-a -t {node}:30080 -r 10.244.0.11:8080 -m -w 1\n"))
        .concat();
    watched
        .api()
        .apply(&of_type("NodePort", "port: 80, nodePort: 30080"))?;
    watched.expect(&format!("{cluster_ip}{node_port}"))?;
    watched.api().apply(
        &(of_type("LoadBalancer", "port: 80, nodePort: 30080")
            + "status: {loadBalancer: {ingress: [{ip: 203.0.113.1}]}}\n"),
    )?;
    let balanced = "-A -t 203.0.113.1:80 -s rr
        -a -t 203.0.113.1:80 -r 10.244.0.11:8080 -m -w 1";
    watched.expect(&format!("{cluster_ip}{node_port}{balanced}"))?;
    watched
        .cluster
        .expect_addresses(&["10.96.0.1/32", "10.96.0.10/32", "203.0.113.1/32"])?;
    watched.api().apply(&of_type("ClusterIP", "port: 80"))?;
    watched.expect(cluster_ip)?;
    watched
        .cluster
        .expect_addresses(&["10.96.0.1/32", "10.96.0.10/32"])
}

#[test]
#[ignore = "needs an API server: cargo xtask test"]
fn an_api_server_that_was_away_costs_nothing() -> Result<()> {
    let mut watched = Watched::new()?;
    let pods = [
        watched.cluster.node().pod("web-1", 11, TCP_8080)?,
        watched.cluster.peer().pod("web-2", 12, TCP_8080)?,
    ];
    watched.apply(10, &[&pods[0]])?;
    watched.apply(20, &[&pods[0]])?;
    watched.start()?;
    let before = "-A -t 10.96.0.10:80 -s rr
         -a -t 10.96.0.10:80 -r 10.244.0.11:8080 -m -w 1
         -A -t 10.96.0.20:80 -s rr
         -a -t 10.96.0.20:80 -r 10.244.0.11:8080 -m -w 1";
    watched.expect(before)?;
    let connection = watched
        .cluster
        .node()
        .client()
        .connect(Tcp, "10.96.0.10:80".parse().unwrap())?
        .unwrap();
    connection.ask().unwrap();
    watched.uplink.kill_server()?;
    assert!(watched.apply(30, &[]).is_err(), "the API server is still there");
    // I6: without a source nothing is removed.
    watched.expect(before)?;
    watched.uplink.resume_server()?;
    watched.apply(10, &[&pods[0], &pods[1]])?;
    watched.api().delete(&tcp_service(20))?;
    watched.expect(
        "-A -t 10.96.0.10:80 -s rr
         -a -t 10.96.0.10:80 -r 10.244.0.11:8080 -m -w 1
         -a -t 10.96.0.10:80 -r 10.244.1.12:8080 -m -w 1",
    )?;
    assert_eq!(connection.ask().unwrap().name, "web-1");
    Ok(())
}

/// I6: a kube-proxy that starts while the API server is away knows nothing, and so removes nothing.
#[test]
#[ignore = "needs an API server: cargo xtask test"]
fn a_start_without_an_api_server_keeps_what_there_is() -> Result<()> {
    let mut watched = Watched::new()?;
    let pod = watched.cluster.node().pod("web-1", 11, TCP_8080)?;
    watched.apply(10, &[&pod])?;
    watched.start()?;
    let servers = "-A -t 10.96.0.10:80 -s rr
         -a -t 10.96.0.10:80 -r 10.244.0.11:8080 -m -w 1";
    watched.expect(servers)?;
    if let Some(kube_proxy) = watched.kube_proxy.take() {
        kube_proxy.kill()?;
    }
    watched.api().delete(&tcp_service(10))?;
    watched.uplink.kill_server()?;
    assert!(watched.start().is_err(), "kube-proxy is in sync with nobody");
    watched.expect(servers)?;
    watched.uplink.resume_server()?;
    watched.expect("")
}

#[test]
#[ignore = "needs an API server: cargo xtask test"]
fn objects_that_program_nothing() -> Result<()> {
    let mut watched = Watched::new()?;
    let pod = watched.cluster.node().pod("web-1", 11, TCP_8080)?;
    let api = watched.api();
    api.apply(&service("headless", "clusterIP: None, ports: [{port: 80}]"))?;
    api.apply(&slice("headless", "headless", "{port: 8080}", &[(&pod).into()]))?;
    api.apply(&service("named", "type: ExternalName, externalName: example.com"))?;
    api.apply(&slice("named", "named", "{port: 8080}", &[(&pod).into()]))?;
    let foreign = service("foreign", "clusterIP: 10.96.0.30, ports: [{port: 80}]");
    let labelled =
        "{name: foreign, namespace: default, labels: {service.kubernetes.io/service-proxy-name: other}}";
    api.apply(&foreign.replace("{name: foreign, namespace: default}", labelled))?;
    api.apply(&slice("foreign", "foreign", "{port: 8080}", &[(&pod).into()]))?;
    watched.start()?;
    watched.expect("")?;
    // The label goes, and the Service is ours; it comes, and the Service is not.
    let ours = "-A -t 10.96.0.30:80 -s rr
        -a -t 10.96.0.30:80 -r 10.244.0.11:8080 -m -w 1";
    watched.api().apply(&foreign)?;
    watched.expect(ours)?;
    watched
        .api()
        .apply(&foreign.replace("{name: foreign, namespace: default}", labelled))?;
    watched.expect("")
}

/// I8: the API server lets objects through that make no sense. Each costs itself only.
#[test]
#[ignore = "needs an API server: cargo xtask test"]
fn senseless_objects_cost_only_themselves() -> Result<()> {
    let mut watched = Watched::new()?;
    let pod = watched.cluster.node().pod("web-1", 11, TCP_8080)?;
    let api = watched.api();
    for (number, ports) in [
        (20, "{port: 0}"),
        (21, "{port: 70000}"),
        (22, "{name: a}"),
        (23, ""),
    ] {
        let name = format!("web-{number}");
        api.apply(&tcp_service(number))?;
        api.apply(&slice(&name, &name, ports, &[(&pod).into()]))?;
    }
    // No Service, no pod's address, and a family that nobody can connect to.
    api.apply(&slice("orphan", "nobody", "{port: 8080}", &[(&pod).into()]))?;
    api.apply(
        &slice("names", "web-23", "{port: 8080}", &[(&pod).into()])
            .replace("IPv4", "FQDN")
            .replace("10.244.0.11", "example.com"),
    )?;
    watched.apply(10, &[&pod])?;
    let servers = "-A -t 10.96.0.10:80 -s rr
         -a -t 10.96.0.10:80 -r 10.244.0.11:8080 -m -w 1
         -A -t 10.96.0.20:80 -s rr
         -A -t 10.96.0.21:80 -s rr
         -A -t 10.96.0.22:80 -s rr
         -A -t 10.96.0.23:80 -s rr";
    watched.start()?;
    watched.expect(servers)?;
    // Also while it runs.
    watched.api().apply(&tcp_service(24))?;
    watched
        .api()
        .apply(&slice("web-24", "web-24", "{port: 0}", &[(&pod).into()]))?;
    watched.apply(11, &[&pod])?;
    watched.expect(&format!(
        "{servers}
         -A -t 10.96.0.11:80 -s rr
         -a -t 10.96.0.11:80 -r 10.244.0.11:8080 -m -w 1
         -A -t 10.96.0.24:80 -s rr"
    ))
}

/// Status and body of an answer on the node.
fn get(watched: &Watched, url: &str) -> Result<(String, String)> {
    let script = format!("curl -s -m 5 -w '\\n%{{http_code}}' {url} || true");
    let answer = watched.cluster.node().namespace.shell(&script)?;
    let (body, status) = answer.trim_end().rsplit_once('\n').unwrap_or(("", &answer));
    Ok((status.to_owned(), body.to_owned()))
}

/// Waits for the statuses of `/healthz` and `/livez`.
fn expect_health(watched: &Watched, expected: [&str; 2]) -> Result<()> {
    eventually(|| {
        let healthz = get(watched, "http://127.0.0.1:10256/healthz")?;
        let livez = get(watched, "http://127.0.0.1:10256/livez")?;
        let good = [healthz.0.as_str(), livez.0.as_str()] == expected;
        Ok(if good {
            Ok(())
        } else {
            Err(format!("expected {expected:?}, got {healthz:?}, {livez:?}"))
        })
    })
}

#[test]
#[ignore = "needs an API server: cargo xtask test"]
fn e9_health_is_that_of_the_proxier_and_of_the_node() -> Result<()> {
    let mut watched = Watched::new()?;
    watched.apply(10, &[])?;
    watched.start()?;
    expect_health(&watched, ["200", "200"])?;
    let leaving = NODE.replace(
        "status:",
        "spec: {taints: [{key: ToBeDeletedByClusterAutoscaler, effect: NoSchedule}]}\nstatus:",
    );
    watched.api().apply(&leaving)?;
    expect_health(&watched, ["503", "200"])?;
    watched.api().apply(NODE)?;
    expect_health(&watched, ["200", "200"])?;
    let (_, metrics) = get(&watched, "http://127.0.0.1:10249/metrics")?;
    for line in [
        "rest_client_requests_total{code=\"200\",host=\"127.0.0.1:",
        "rest_client_request_duration_seconds_count{host=\"127.0.0.1:",
        "ipvs_proxier_watch_heard_timestamp_seconds{resource=\"endpointslices\"} 1",
        "kubeproxy_proxy_healthz_total{code=\"503\"} ",
    ] {
        assert!(metrics.contains(line), "{line} in\n{metrics}");
    }
    Ok(())
}

#[test]
#[ignore = "needs an API server: cargo xtask test"]
fn q21_q51_nobody_is_healthy_who_has_not_synced() -> Result<()> {
    let mut watched = Watched::new()?;
    watched.uplink.kill_server()?;
    assert!(watched.start().is_err(), "kube-proxy is in sync with nobody");
    expect_health(&watched, ["503", "503"])?;
    watched.uplink.resume_server()?;
    expect_health(&watched, ["200", "200"])
}

#[test]
#[ignore = "needs an API server: cargo xtask test"]
fn q25_events_tell_of_the_start_and_of_conflicts() -> Result<()> {
    let mut watched = Watched::new()?;
    watched.start()?;
    for (number, name) in [(10, "elder"), (11, "younger")] {
        let spec = format!("clusterIP: 10.96.0.{number}, externalIPs: [203.0.113.7], ports: [{{port: 80}}]");
        watched.api().apply(&service(name, &spec))?;
        // Which is older is a matter of whole seconds.
        thread::sleep(Duration::from_secs(1));
    }
    let mut seen = Vec::new();
    eventually(|| {
        seen = watched.api().events()?;
        let reasons: Vec<_> = seen.iter().filter_map(|event| event.reason.clone()).collect();
        let told = |reason: &str| reasons.iter().any(|other| other == reason);
        Ok(if told("Starting") && told("AddressConflict") {
            Ok(())
        } else {
            Err(format!("{reasons:?}"))
        })
    })?;
    let conflict = seen
        .iter()
        .find(|event| event.reason.as_deref() == Some("AddressConflict"))
        .unwrap();
    let regarding = conflict.regarding.clone().unwrap();
    assert_eq!(regarding.name.as_deref(), Some("younger"));
    // By this `kubectl describe` finds it.
    let services = watched.api().services()?;
    let younger = services
        .iter()
        .find(|service| service.metadata.name.as_deref() == Some("younger"))
        .unwrap();
    assert_eq!(regarding.uid, younger.metadata.uid);
    let note = conflict.note.clone().unwrap();
    assert!(
        note.contains("203.0.113.7") && note.contains("default/elder"),
        "{note}"
    );
    Ok(())
}

#[test]
#[ignore = "needs an API server: cargo xtask test"]
fn events_tell_why_there_is_no_start() -> Result<()> {
    let mut watched = Watched::new()?;
    // An address for documentation, which the node does not have.
    let nowhere = "192.0.2.1:10256";
    for (flags, reason, note) in [
        (
            [
                "--bind-address-hard-fail",
                "--healthz-bind-address=192.0.2.1:10256",
            ],
            "FailedToStartProxierHealthcheck",
            nowhere,
        ),
        (
            [
                "--bind-address-hard-fail",
                "--metrics-bind-address=192.0.2.1:10256",
            ],
            "FailedToStartMetricServer",
            nowhere,
        ),
        (
            ["--proxy-mode=ipvs", "--ipvs-scheduler=fastest"],
            "FailedToStart",
            "fastest",
        ),
    ] {
        let mut command = Command::new("kube-proxy");
        command.args(["--kubeconfig", KUBECONFIG]).args(flags);
        watched.start_command(&mut command, "command failed")?;
        let events = watched.api().events()?;
        let told = events.iter().any(|event| {
            let regarding = event
                .regarding
                .as_ref()
                .and_then(|regarding| regarding.name.as_deref());
            event.reason.as_deref() == Some(reason)
                && regarding == Some("node")
                && event.note.as_deref().is_some_and(|told| told.contains(note))
        });
        assert!(told, "{reason} is not among {events:#?}");
    }
    Ok(())
}

/// The Service is programmed as if the annotation were not there.
#[test]
#[ignore = "needs an API server: cargo xtask test"]
fn an_annotation_that_makes_no_sense_is_told_by_an_event() -> Result<()> {
    let mut watched = Watched::new()?;
    watched.start()?;
    let plain = tcp_service(10);
    let name = "{name: web-10,";
    assert!(plain.contains(name), "{plain}");
    let annotated = plain.replace(
        name,
        &format!("{name} annotations: {{ipvs-proxier/scheduler: fastest}},"),
    );
    watched.api().apply(&annotated)?;
    watched.expect("-A -t 10.96.0.10:80 -s rr")?;
    eventually(|| {
        let events = watched.api().events()?;
        let told = events.iter().filter(|event| {
            let regarding = event
                .regarding
                .as_ref()
                .and_then(|regarding| regarding.name.as_deref());
            event.reason.as_deref() == Some("InvalidAnnotation") && regarding == Some("web-10")
        });
        let notes: Vec<_> = told.filter_map(|event| event.note.as_deref()).collect();
        let good =
            matches!(notes[..], [note] if note.contains("[ipvs-proxier/scheduler]: \"fastest\" is not"));
        Ok(if good { Ok(()) } else { Err(format!("{notes:?}")) })
    })
}

/// No field that the API does not know, and no value that it refuses.
#[test]
#[ignore = "needs an API server: cargo xtask test"]
fn what_the_kustomize_base_deploys_is_accepted() -> Result<()> {
    let watched = Watched::new()?;
    for manifests in [
        include_str!("../../bins/kube-proxy/deploy/kustomize/rbac.yaml"),
        include_str!("../../bins/kube-proxy/deploy/kustomize/configmap.yaml"),
        include_str!("../../bins/kube-proxy/deploy/kustomize/daemonset.yaml"),
    ] {
        watched.api().apply(manifests)?;
    }
    Ok(())
}

#[test]
#[ignore = "needs an API server: cargo xtask test"]
fn all_kinds_of_credentials_that_a_kubeconfig_may_have_are_shown() -> Result<()> {
    let mut watched = Watched::new()?;
    let file = |name: &str, content: &[u8]| {
        let path = watched.cluster.scratch(name);
        fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let lab: Value = serde_json::from_str(&fs::read_to_string(KUBECONFIG).unwrap()).unwrap();
    let [by_token, by_certificate] = [0, 1].map(|user| &lab["users"][user]["user"]);
    let decoded = |data: &str| {
        BASE64_STANDARD
            .decode(by_certificate[data].as_str().unwrap())
            .unwrap()
    };
    let token = by_token["token"].as_str().unwrap();
    let credential = json!({
        "apiVersion": "client.authentication.k8s.io/v1",
        "kind": "ExecCredential",
        "status": {"token": token},
    });
    let plugin = format!("cat <<EOF\n{credential}\nEOF\n");
    let users = [
        (json!({"token": "wrong"}), "the API server answers 401"),
        (by_token.clone(), "in sync"),
        (json!({"tokenFile": file("token", token.as_bytes())}), "in sync"),
        (by_certificate.clone(), "in sync"),
        (
            json!({
                "client-certificate": file("client.crt", &decoded("client-certificate-data")),
                "client-key": file("client.key", &decoded("client-key-data")),
            }),
            "in sync",
        ),
        (
            json!({"exec": {
                "apiVersion": "client.authentication.k8s.io/v1",
                "command": "sh",
                "args": [file("plugin", plugin.as_bytes())],
                "interactiveMode": "Never",
            }}),
            "in sync",
        ),
    ];
    let kubeconfigs = users.map(|(user, says)| {
        let mut kubeconfig = lab.clone();
        kubeconfig["users"] = json!([{"name": "lab", "user": user}]);
        (kubeconfig.to_string(), says)
    });
    for (number, (kubeconfig, says)) in kubeconfigs.iter().enumerate() {
        let path = watched.cluster.scratch(&format!("kubeconfig-{number}"));
        fs::write(&path, kubeconfig).unwrap();
        watched.start_with(path.to_str().unwrap(), says)?;
    }
    Ok(())
}

/// As one that has run out, a certificate that the API server does not accept is read again.
#[test]
#[ignore = "needs an API server: cargo xtask test"]
fn a_certificate_that_is_replaced_is_used_without_a_restart() -> Result<()> {
    let mut watched = Watched::new()?;
    let mut kubeconfig: Value = serde_json::from_str(&fs::read_to_string(KUBECONFIG).unwrap()).unwrap();
    let files = ["client-certificate", "client-key"].map(|name| (name, watched.cluster.scratch(name)));
    let write = |user: &Value| {
        for (name, path) in &files {
            let data = user[format!("{name}-data")].as_str().unwrap();
            fs::write(path, BASE64_STANDARD.decode(data).unwrap()).unwrap();
        }
    };
    let [known, stranger] = [1, 2].map(|user| kubeconfig["users"][user]["user"].clone());
    write(&stranger);
    let user: HashMap<_, _> = files.iter().cloned().collect();
    kubeconfig["users"] = json!([{"name": "lab", "user": user}]);
    // Who vouches for the API server may be in a file, too.
    let cluster = &mut kubeconfig["clusters"][0]["cluster"];
    let authority = cluster["certificate-authority-data"].take();
    let file = watched.cluster.scratch("ca.crt");
    fs::write(
        &file,
        BASE64_STANDARD.decode(authority.as_str().unwrap()).unwrap(),
    )
    .unwrap();
    cluster["certificate-authority"] = file.to_str().into();
    let path = watched.cluster.scratch("kubeconfig");
    fs::write(&path, kubeconfig.to_string()).unwrap();
    watched.start_with(path.to_str().unwrap(), "the API server answers 401")?;
    write(&known);
    match &mut watched.kube_proxy {
        Some(kube_proxy) => kube_proxy.wait_for("in sync"),
        None => unreachable!("it was started"),
    }
}

/// In a Pod, as with a kubeconfig's tokenFile: the kubelet replaces the token long before it is good no more.
#[test]
#[ignore = "needs an API server: cargo xtask test"]
fn a_token_that_is_replaced_is_used_without_a_restart() -> Result<()> {
    const DIRECTORY: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
    let mut watched = Watched::new()?;
    watched
        .api()
        .apply("{apiVersion: v1, kind: ServiceAccount, metadata: {name: kube-proxy}}")?;
    let token_while = |secret: &str| {
        let object = format!("{{apiVersion: v1, kind: Secret, metadata: {{name: {secret}}}}}");
        watched.api().apply(&object)?;
        let token = watched.api().token("kube-proxy", secret)?;
        Ok::<_, integration::Error>((object, token))
    };
    let ((secret, first), (_, second)) = (token_while("first")?, token_while("second")?);

    let lab: Value = serde_json::from_str(&fs::read_to_string(KUBECONFIG).unwrap()).unwrap();
    let authority = lab["clusters"][0]["cluster"]["certificate-authority-data"].as_str();
    fs::create_dir_all(DIRECTORY).unwrap();
    let write = |name: &str, content: &[u8]| {
        let [new, path] = ["..new", name].map(|name| Path::new(DIRECTORY).join(name));
        fs::write(&new, content).unwrap();
        fs::rename(new, path).unwrap();
    };
    write("ca.crt", &BASE64_STANDARD.decode(authority.unwrap()).unwrap());
    write("namespace", b"default");
    write("token", format!("{first}\n").as_bytes());
    let port = watched.uplink.port()?.to_string();
    let mut command = Command::new("kube-proxy");
    command.env("KUBERNETES_SERVICE_HOST", "127.0.0.1");
    command.env("KUBERNETES_SERVICE_PORT", &port);
    watched.start_command(&mut command, "in sync")?;

    write("token", second.as_bytes());
    watched.api().delete(&secret)?;
    // Every watch has to begin anew.
    watched.uplink.kill_server()?;
    watched.uplink.resume_server()?;
    let status = |token: &str| {
        let request = format!("-k -H 'Authorization: Bearer {token}' https://127.0.0.1:{port}/version");
        get(&watched, &request).map(|(status, _)| status)
    };
    assert_eq!([status(&first)?, status(&second)?], ["401", "200"]);
    watched.apply(10, &[])?;
    watched.expect("-A -t 10.96.0.10:80 -s rr")
}

/// All nodes may start at once, and each connection costs the API server a TLS handshake.
#[test]
#[ignore = "needs an API server: cargo xtask test"]
fn all_requests_share_one_connection_from_the_start() -> Result<()> {
    let mut watched = Watched::new()?;
    watched.start()?;
    assert_eq!(watched.uplink.connections(), 1);
    Ok(())
}

/// F6: connections whose packets get lost look as if nothing happened.
#[test]
#[ignore = "needs an API server: cargo xtask test"]
fn f6_connections_that_hear_nothing_any_more_are_replaced() -> Result<()> {
    let mut watched = Watched::new()?;
    let pod = watched.cluster.node().pod("web-1", 11, TCP_8080)?;
    watched.apply(10, &[&pod])?;
    watched.start()?;
    let node = &watched.cluster.node().namespace;
    let port = watched.uplink.port()?;
    node.shell(&format!(
        "nft add table inet lost
         nft add set inet lost connections '{{ type inet_service; }}'
         nft add chain inet lost output '{{ type filter hook output priority -300; }}'
         nft add rule inet lost output tcp dport {port} tcp sport @connections counter drop
         nft add rule inet lost output tcp sport {port} tcp dport @connections counter drop
         ss -Htn state established dport = :{port} | while read -r _ _ local _; do
             nft add element inet lost connections \"{{ ${{local##*:}} }}\"
         done"
    ))?;
    expect_news_within_a_minute(&watched, &pod)?;
    let dropped = node.shell("nft list chain inet lost output")?;
    let is_lost = |rule: &str| rule.contains(" counter ") && !rule.contains(" packets 0 ");
    assert!(dropped.lines().any(is_lost), "{dropped}");
    Ok(())
}

/// F6: and so do connections to an API server, or to a load balancer before it, that takes all and says nothing.
#[test]
#[ignore = "needs an API server: cargo xtask test"]
fn f6_connections_that_are_only_acknowledged_are_replaced() -> Result<()> {
    let mut watched = Watched::new()?;
    let pod = watched.cluster.node().pod("web-1", 11, TCP_8080)?;
    watched.apply(10, &[&pod])?;
    watched.start()?;
    watched.uplink.silence();
    let took = expect_news_within_a_minute(&watched, &pod)?;
    assert!(
        took > Duration::from_secs(15),
        "nobody was silenced: it took {took:?}"
    );
    Ok(())
}

/// Makes the Service with number 20, and waits until kube-proxy has heard of it.
fn expect_news_within_a_minute(watched: &Watched, pod: &Pod) -> Result<Duration> {
    let begin = Instant::now();
    watched.apply(20, &[pod])?;
    loop {
        match watched.cluster.expect_server("-A -t 10.96.0.20:80 -s rr") {
            Ok(()) => break,
            Err(_) if begin.elapsed() < Duration::from_secs(60) => {}
            Err(error) => return Err(error),
        }
    }
    let took = begin.elapsed();
    assert!(took < Duration::from_secs(60), "it took {took:?}");
    Ok(took)
}
