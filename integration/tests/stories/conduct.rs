//! How it goes about it: the system calls that it makes, and those that it does not.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use integration::cluster::eventually;
use integration::kube_proxy::KubeProxy;
use integration::manifest::{Endpoint, service, slice};
use integration::{Cluster, Result};

use crate::{TCP_8080, WEB_SERVERS, web};

/// Starts kube-proxy under strace and waits for it. Gives the file to which calls of the given kinds are written, too.
fn traced(cluster: &mut Cluster, kinds: &str) -> Result<(KubeProxy, PathBuf)> {
    let trace = cluster.scratch("trace");
    let mut command = Command::new("strace");
    // As a child of the traced program, so that this test has the program itself to deal with.
    command.args(["-D", "-f", "-o"]).arg(&trace);
    command.args(["-e", &format!("trace={kinds}"), "kube-proxy"]);
    command.args(cluster.flags());
    let log = cluster.new_log();
    let mut kube_proxy = KubeProxy::start_command(&cluster.node().namespace, &mut command, &log)?;
    kube_proxy.wait_for("in sync")?;
    Ok((kube_proxy, trace))
}

#[test]
#[ignore = "needs root and ip_vs: cargo xtask test"]
fn i9_no_child_processes() -> Result<()> {
    let (mut cluster, [web_1, _web_2]) = web()?;
    let (kube_proxy, trace) = traced(&mut cluster, "execve,execveat,fork,vfork")?;
    cluster.apply("web", &crate::web_objects(&[Endpoint::from(&web_1)]))?;
    cluster.expect_servers("-A -t 10.96.0.10:80 -s rr\n-a -t 10.96.0.10:80 -r 10.244.0.11:8080 -m -w 1")?;
    cluster.delete("web")?;
    cluster.expect_servers("")?;
    kube_proxy.terminate()?;
    let calls = fs::read_to_string(&trace).unwrap();
    let made: Vec<_> = calls
        .lines()
        .filter(|line| line.contains("exec") || line.contains("fork("))
        .collect();
    assert!(
        made.len() == 1 && made[0].contains("execve(\"/usr/local/bin/kube-proxy\""),
        "{calls}"
    );
    Ok(())
}

#[test]
#[ignore = "needs root and ip_vs: cargo xtask test"]
fn b1_many_services_go_in_few_sends_and_a_change_costs_little() -> Result<()> {
    const SERVICES: usize = 200;
    let mut cluster = Cluster::new()?;
    let pods = [
        cluster.node().pod("web-1", 11, TCP_8080)?,
        cluster.node().pod("web-2", 12, TCP_8080)?,
    ];
    let endpoints = pods.each_ref().map(Endpoint::from);
    let mut objects = Vec::new();
    for number in 0..SERVICES {
        let name = format!("web-{number}");
        objects.push(service(
            &name,
            &format!("clusterIP: 10.96.1.{number}, ports: [{{port: 80}}]"),
        ));
        objects.push(slice(&name, &name, "{port: 8080}", &endpoints));
    }
    cluster.apply("many", &objects)?;
    let (kube_proxy, trace) = traced(&mut cluster, "sendto,sendmsg,sendmmsg")?;
    let servers = cluster.servers()?;
    assert_eq!(servers.lines().count(), 3 * SERVICES, "{servers}");
    assert_eq!(cluster.addresses()?.len(), SERVICES);
    let sends = || {
        fs::read_to_string(&trace)
            .unwrap()
            .lines()
            .filter(|line| line.contains("send"))
            .count()
    };
    let first = sends();
    assert!(first < 70, "{first} sends for {SERVICES} Services");

    let last = objects.len() - 1;
    objects[last] = slice("web-199", "web-199", "{port: 8080}", &endpoints[..1]);
    cluster.apply("many", &objects)?;
    eventually(|| {
        let gone = !cluster
            .servers()?
            .contains("-t 10.96.1.199:80 -r 10.244.0.12:8080");
        Ok(if gone {
            Ok(())
        } else {
            Err("the endpoint is still there".into())
        })
    })?;
    let change = sends() - first;
    assert!(
        (1..10).contains(&change),
        "{change} sends for the change of one endpoint"
    );
    kube_proxy.terminate()?;
    Ok(())
}

#[test]
#[ignore = "needs root and ip_vs: cargo xtask test"]
fn an_operators_questions_are_answered_and_touch_nothing() -> Result<()> {
    let (mut cluster, _pods) = web()?;
    // A node's namespace cannot set what belongs to the machine.
    let flags = [
        "--conntrack-max-per-core=0",
        "--conntrack-tcp-timeout-close-wait=50m",
        "--ipvs-tcp-timeout=2h",
    ];
    let verify = |cluster: &mut Cluster| cluster.begin(&[&["verify"], &flags[..]].concat())?.wait();
    let (status, said) = cluster.begin(&["plan"])?.wait()?;
    assert!(status.success(), "{said}");
    for line in WEB_SERVERS.lines().map(str::trim) {
        assert!(said.contains(line), "{line} is not in\n{said}");
    }
    let (status, said) = verify(&mut cluster)?;
    assert_eq!(status.code(), Some(1), "{said}");
    for missing in [
        "the nftables table for IPv4 is missing",
        "the link kube-ipvs0 is missing",
        "sysctl net.ipv4.ip_forward is not 1",
        "sysctl net.netfilter.nf_conntrack_tcp_timeout_close_wait is not 3000",
        "the timeouts of IPVS are not 7200 s for TCP, 120 s after a FIN, 300 s for UDP",
        "to be mended: ipvsadm -a -t 10.96.0.10:80 -r 10.244.1.12:8080 -m -w 1",
        "to be mended: ip address add 10.96.0.10/32 dev kube-ipvs0",
    ] {
        assert!(said.contains(missing), "{missing} is not in\n{said}");
    }
    assert_eq!(cluster.servers()?, "");
    assert_eq!(cluster.ruleset()?, "");
    let links = cluster.node().namespace.output("ip", &["-brief", "link"])?;
    assert!(!links.contains("kube-ipvs0"), "{links}");
    let forwarding = cluster
        .node()
        .namespace
        .output("cat", &["/proc/sys/net/ipv4/ip_forward"])?;
    assert_eq!(forwarding, "0\n");

    cluster.start(&flags)?;
    let (status, said) = verify(&mut cluster)?;
    assert!(status.success(), "{said}");
    cluster
        .node()
        .namespace
        .shell("ipvsadm -e -t 10.96.0.10:80 -r 10.244.0.11:8080 -m -w 7")?;
    let (status, said) = verify(&mut cluster)?;
    assert_eq!(status.code(), Some(1), "{said}");
    let mended = "to be mended: ipvsadm -e -t 10.96.0.10:80 -r 10.244.0.11:8080 -m -w 1";
    assert!(said.contains(mended), "{said}");
    let (status, said) = cluster.begin(&["explain", "default/web"])?.wait()?;
    assert!(status.success(), "{said}");
    assert!(said.contains("10.244.1.12:8080 serves"), "{said}");

    // What the proxier warns of is told, and is no difference.
    cluster
        .node()
        .namespace
        .shell("ipvsadm -e -t 10.96.0.10:80 -r 10.244.0.11:8080 -m -w 1")?;
    let filter = "add table inet firewall; \
                  add chain inet firewall input { type filter hook input priority 10; policy drop; }; \
                  add rule inet firewall input accept";
    cluster.node().namespace.output("nft", &[filter])?;
    let (status, said) = verify(&mut cluster)?;
    assert!(status.success(), "{said}");
    let remedy = "chain inet firewall input drops what its rules do not accept; what Services need there is \
                  `nft insert rule inet firewall input ip daddr SERVICE-CIDR accept`";
    assert!(said.contains(remedy), "{said}");
    Ok(())
}

#[test]
#[ignore = "needs root and ip_vs: cargo xtask test"]
fn a1_sysctls_are_as_ipvs_needs_them() -> Result<()> {
    let (mut cluster, _pods) = web()?;
    let reuse = "net.ipv4.vs.conn_reuse_mode";
    // The sysctl is there once ip_vs is, which this loads.
    assert_eq!(cluster.servers()?, "");
    let found = cluster.node().namespace.output("sysctl", &["-n", reuse])?;
    cluster.start(&["--ipvs-strict-arp"])?;
    for (name, value) in [
        ("net.ipv4.vs.conntrack", "1"),
        ("net.ipv4.vs.expire_nodest_conn", "1"),
        ("net.ipv4.vs.expire_quiescent_template", "1"),
        ("net.ipv4.ip_forward", "1"),
        ("net.ipv6.conf.all.forwarding", "1"),
        ("net.ipv4.conf.all.arp_ignore", "1"),
        ("net.ipv4.conf.all.arp_announce", "2"),
        // Kernels from 5.9 on are better off with their own.
        (reuse, found.trim()),
    ] {
        let set = cluster.node().namespace.output("sysctl", &["-n", name])?;
        assert_eq!(set.trim(), value, "{name}");
    }
    Ok(())
}
