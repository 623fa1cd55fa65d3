//! Whose address pods see.

use integration::Cluster;
use integration::Result;
use integration::manifest::{service, slice, slice_v6};
use integration::topology::NODE;
use integration::traffic::Protocol::{Tcp, Udp};

use crate::{BRIDGE, TCP_8080, at, expect, web};

#[test]
#[ignore = "needs root and ip_vs: cargo xtask test"]
fn e2_pods_are_seen_as_themselves_and_others_are_masqueraded() -> Result<()> {
    let (mut cluster, _pods) = web()?;
    cluster.start(&[])?;
    let here = cluster.node().pod("here", 20, &[])?;
    let answers = here.client().ask(Tcp, at("10.96.0.10:80"), 4)?;
    assert_eq!(answers.to_string(), "2 web-1, 2 web-2, seen as 10.244.0.20");
    // The pod on this node sees the bridge's address, the one on the other node this node's.
    let both = format!("2 web-1, 2 web-2, seen as 10.244.0.1 and {NODE}");
    for outsider in [cluster.client(), cluster.node().client()] {
        let answers = outsider.ask(Tcp, at("10.96.0.10:80"), 4)?;
        assert_eq!(answers.to_string(), both);
    }
    Ok(())
}

#[test]
#[ignore = "needs root and ip_vs: cargo xtask test"]
fn masquerade_all_spares_nobody() -> Result<()> {
    let mut cluster = Cluster::new()?;
    let web_1 = cluster.node().pod("web-1", 11, TCP_8080)?;
    cluster.apply("web", &crate::web_objects(&[(&web_1).into()]))?;
    cluster.start(&["--masquerade-all"])?;
    let visitor = cluster.node().pod("visitor", 20, &[])?;
    expect(visitor.client(), Tcp, "10.96.0.10:80", &["web-1"], BRIDGE)
}

#[test]
#[ignore = "needs root and ip_vs: cargo xtask test"]
fn pods_may_be_told_by_their_bridge() -> Result<()> {
    let mut cluster = Cluster::new()?;
    let web_1 = cluster.node().pod("web-1", 11, TCP_8080)?;
    cluster.apply("web", &crate::web_objects(&[(&web_1).into()]))?;
    cluster.start(&[
        "--detect-local-mode=BridgeInterface",
        "--pod-bridge-interface=cni0",
    ])?;
    let visitor = cluster.node().pod("visitor", 20, &[])?;
    expect(visitor.client(), Tcp, "10.96.0.10:80", &["web-1"], visitor.ipv4)?;
    expect(cluster.client(), Tcp, "10.96.0.10:80", &["web-1"], BRIDGE)?;
    Ok(())
}

#[test]
#[ignore = "needs root and ip_vs: cargo xtask test"]
fn e3_a_pod_reaches_itself_through_its_service() -> Result<()> {
    let mut cluster = Cluster::new()?;
    let pod = cluster.node().pod("echo-1", 11, &[(Tcp, 8001), (Udp, 8002)])?;
    let ports = "{name: t, port: 8001}, {name: u, port: 8002, protocol: UDP}";
    cluster.apply(
        "echo",
        &[
            service(
                "echo",
                "clusterIP: 10.96.0.10, clusterIPs: [10.96.0.10, \"fd00:10:96::10\"],
                 ports: [{name: t, port: 1}, {name: u, port: 2, protocol: UDP}]",
            ),
            slice("echo-4", "echo", ports, &[(&pod).into()]),
            slice_v6("echo-6", "echo", ports, &[(&pod).into()]),
        ],
    )?;
    cluster.start(&[])?;
    let bridge_v6 = [0xfd00, 0x10, 0x244, 0, 0, 0, 0, 1];
    for (protocol, port) in [(Tcp, 1), (Udp, 2)] {
        expect(
            pod.client(),
            protocol,
            &format!("10.96.0.10:{port}"),
            &["echo-1"],
            BRIDGE,
        )?;
        expect(
            pod.client(),
            protocol,
            &format!("[fd00:10:96::10]:{port}"),
            &["echo-1"],
            bridge_v6,
        )?;
    }
    Ok(())
}
