//! ClusterIPs: every protocol, both families, several ports.

use integration::manifest::{service, slice, slice_v6};
use integration::traffic::Protocol::{Sctp, Tcp, Udp};
use integration::{Cluster, Result};

use crate::{BRIDGE, WEB_SERVERS, at, expect, web};

#[test]
#[ignore = "needs root and ip_vs: cargo xtask test"]
fn a_cluster_ip_is_spread_over_the_ready_pods() -> Result<()> {
    let (mut cluster, _pods) = web()?;
    cluster.start(&[])?;
    cluster.expect_servers(WEB_SERVERS)?;
    cluster.expect_addresses(&["10.96.0.10/32"])?;
    let visitor = cluster.node().pod("visitor", 20, &[])?;
    let answers = visitor.client().ask(Tcp, at("10.96.0.10:80"), 6)?;
    assert_eq!(answers.to_string(), "3 web-1, 3 web-2, seen as 10.244.0.20");
    Ok(())
}

#[test]
#[ignore = "needs root and ip_vs: cargo xtask test"]
fn every_protocol_and_both_families() -> Result<()> {
    let mut cluster = Cluster::new()?;
    let pod = cluster
        .node()
        .pod("echo-1", 11, &[(Tcp, 8001), (Udp, 8002), (Sctp, 8003)])?;
    let visitor = cluster.node().pod("visitor", 20, &[])?;
    let ports =
        "{name: t, port: 8001}, {name: u, port: 8002, protocol: UDP}, {name: s, port: 8003, protocol: SCTP}";
    cluster.apply(
        "echo",
        &[
            service(
                "echo",
                "clusterIP: 10.96.0.10, clusterIPs: [10.96.0.10, \"fd00:10:96::10\"], ports: [
                   {name: t, port: 1}, {name: u, port: 2, protocol: UDP}, {name: s, port: 3, protocol: SCTP}]",
            ),
            slice("echo-4", "echo", ports, &[(&pod).into()]),
            slice_v6("echo-6", "echo", ports, &[(&pod).into()]),
        ],
    )?;
    cluster.start(&[])?;
    cluster.expect_servers(
        "-A -t 10.96.0.10:1 -s rr
         -a -t 10.96.0.10:1 -r 10.244.0.11:8001 -m -w 1
         -A -u 10.96.0.10:2 -s rr
         -a -u 10.96.0.10:2 -r 10.244.0.11:8002 -m -w 1
         -A --sctp-service 10.96.0.10:3 -s rr
         -a --sctp-service 10.96.0.10:3 -r 10.244.0.11:8003 -m -w 1
         -A -t [fd00:10:96::10]:1 -s rr
         -a -t [fd00:10:96::10]:1 -r [fd00:10:244::11]:8001 -m -w 1
         -A -u [fd00:10:96::10]:2 -s rr
         -a -u [fd00:10:96::10]:2 -r [fd00:10:244::11]:8002 -m -w 1
         -A --sctp-service [fd00:10:96::10]:3 -s rr
         -a --sctp-service [fd00:10:96::10]:3 -r [fd00:10:244::11]:8003 -m -w 1",
    )?;
    cluster.expect_addresses(&["10.96.0.10/32", "fd00:10:96::10/128"])?;
    for (protocol, port) in [(Tcp, 1), (Udp, 2), (Sctp, 3)] {
        let (v4, v6) = (format!("10.96.0.10:{port}"), format!("[fd00:10:96::10]:{port}"));
        expect(visitor.client(), protocol, &v4, &["echo-1"], visitor.ipv4)?;
        expect(visitor.client(), protocol, &v6, &["echo-1"], visitor.ipv6)?;
        // E4: the node itself, whose source would be the service address, is masqueraded.
        expect(cluster.node().client(), protocol, &v4, &["echo-1"], BRIDGE)?;
        expect(
            cluster.node().client(),
            protocol,
            &v6,
            &["echo-1"],
            [0xfd00, 0x10, 0x244, 0, 0, 0, 0, 1],
        )?;
    }
    Ok(())
}

#[test]
#[ignore = "needs root and ip_vs: cargo xtask test"]
fn e5_without_ipv6_the_other_family_is_served() -> Result<()> {
    let mut cluster = Cluster::new()?;
    let pod = cluster.node().pod("echo-1", 11, &[(Tcp, 8080)])?;
    cluster
        .node()
        .namespace
        .sysctl("net.ipv6.conf.all.disable_ipv6=1")?;
    cluster.apply(
        "echo",
        &[
            service(
                "echo",
                "clusterIP: 10.96.0.10, clusterIPs: [10.96.0.10, \"fd00:10:96::10\"], ports: [{port: 80}]",
            ),
            slice("echo-4", "echo", "{port: 8080}", &[(&pod).into()]),
            slice_v6("echo-6", "echo", "{port: 8080}", &[(&pod).into()]),
        ],
    )?;
    cluster.start(&[])?;
    cluster.expect_servers("-A -t 10.96.0.10:80 -s rr\n-a -t 10.96.0.10:80 -r 10.244.0.11:8080 -m -w 1")?;
    cluster.expect_addresses(&["10.96.0.10/32"])?;
    expect(cluster.client(), Tcp, "10.96.0.10:80", &["echo-1"], BRIDGE)?;
    let log = cluster.kube_proxy()?.log()?;
    assert_eq!(log.matches("no IPv6").count(), 1, "{log}");
    Ok(())
}
