//! What the network around a Service's packets may be like.

use std::process::Command;

use integration::manifest::{service, slice, slice_v6};
use integration::namespace::Namespace;
use integration::traffic::Protocol::Tcp;
use integration::{Cluster, Result};

use crate::{TCP_8080, eventually, expect};

/// E14: a pod's packets to another pod on its node may be bridged, and answers then come past IPVS only by way of
/// br_netfilter.
#[test]
#[ignore = "needs root and ip_vs: cargo xtask test"]
fn e14_pods_of_one_bridge_reach_each_other_through_services() -> Result<()> {
    let mut cluster = Cluster::new()?;
    let web_1 = cluster.node().pod("web-1", 11, TCP_8080)?;
    let visitor = cluster.node().pod("visitor", 20, &[])?;
    cluster.apply(
        "web",
        &[
            service(
                "web",
                "clusterIP: 10.96.0.10, clusterIPs: [10.96.0.10, \"fd00:10:96::10\"], ports: [{port: 80}]",
            ),
            slice("web-4", "web", "{port: 8080}", &[(&web_1).into()]),
            slice_v6("web-6", "web", "{port: 8080}", &[(&web_1).into()]),
        ],
    )?;
    cluster.start(&[])?;
    let reached = || {
        expect(visitor.client(), Tcp, "10.96.0.10:80", &["web-1"], visitor.ipv4)?;
        expect(
            visitor.client(),
            Tcp,
            "[fd00:10:96::10]:80",
            &["web-1"],
            visitor.ipv6,
        )?;
        // E3
        expect(web_1.client(), Tcp, "10.96.0.10:80", &["web-1"], crate::BRIDGE)
    };
    let node = &cluster.node().namespace;
    let call_iptables = |on: u8| {
        node.sysctl(&format!(
            "net.bridge.bridge-nf-call-iptables={on}\nnet.bridge.bridge-nf-call-ip6tables={on}"
        ))
    };
    // Pods that know of the bridge's address only, by way of the node.
    reached()?;
    node.shell("modprobe br_netfilter")?;
    for on in [0, 1] {
        call_iptables(on)?;
        reached()?;
    }
    // Pods with the whole subnet on their link, which answer each other past the node.
    for pod in [&visitor, &web_1] {
        pod.namespace
            .ip("route add 10.244.0.0/24 dev eth0\nroute add fd00:10:244::/64 dev eth0")?;
    }
    reached()?;
    node.shell("modprobe --remove br_netfilter").map(drop)
}

/// E12: on the way to a client there is a link that takes smaller packets, and its router says so to the address that
/// they come from: the Service's.
#[test]
#[ignore = "needs root and ip_vs: cargo xtask test"]
fn e12_routers_may_tell_a_service_address_that_packets_are_too_big() -> Result<()> {
    const SIZE: &str = "300000";
    let mut cluster = Cluster::new()?;
    let web_1 = cluster.node().pod("web-1", 11, &[])?;
    cluster.apply(
        "web",
        &[
            service("web", "clusterIP: 10.96.0.10, ports: [{port: 80}]"),
            slice("web-1", "web", "{port: 9000}", &[(&web_1).into()]),
        ],
    )?;
    cluster.start(&[])?;
    let far = Namespace::new("far")?;
    let router = cluster.outside();
    router.ip("link add far0 mtu 1200 type veth peer name eth0 netns far
         link set far0 up
         address add 198.18.0.1/24 dev far0")?;
    router.sysctl("net.ipv4.ip_forward=1")?;
    far.ip("link set eth0 mtu 1500 up
         address add 198.18.0.2/24 dev eth0
         route add default via 198.18.0.1")?;
    cluster
        .node()
        .namespace
        .ip("route add 198.18.0.0/24 via 192.168.10.100")?;

    let send = format!("head -c {SIZE} /dev/zero | timeout 60 nc -N -l 9000");
    let mut sender = web_1.namespace.spawn(Command::new("sh").args(["-c", &send]))?;
    eventually(|| {
        let listening = web_1.namespace.output("ss", &["-Hltn", "sport = :9000"])?;
        Ok(if listening.is_empty() {
            Err("nobody listens".to_owned())
        } else {
            Ok(())
        })
    })?;
    let received = far.shell("timeout 30 nc -d 10.96.0.10 80 | wc -c")?;
    assert_eq!(received.trim(), SIZE);
    let told = router.shell("nstat -asz IcmpOutDestUnreachs | tail -n 1")?;
    assert!(
        told.split_whitespace().nth(1).is_some_and(|count| count != "0"),
        "the router had nothing to tell: {told}"
    );
    let _ = sender.wait();
    Ok(())
}
