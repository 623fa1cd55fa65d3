//! Whose address pods see, and from which port.

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

/// The ports, as answers come back to them, of the node's own connections to 10.96.0.10.
fn source_ports(cluster: &Cluster) -> Result<Vec<u16>> {
    let listed = cluster
        .node()
        .namespace
        .output("conntrack", &["-L", "-p", "tcp", "--orig-dst", "10.96.0.10"])?;
    let port = |line: &str| line.rsplit_once(" dport=")?.1.split(' ').next()?.parse().ok();
    Ok(listed.lines().filter_map(port).collect())
}

#[test]
#[ignore = "needs root and ip_vs: cargo xtask test"]
fn c2_masqueraded_connections_leave_from_no_node_port() -> Result<()> {
    let mut cluster = Cluster::new()?;
    let pods = [
        cluster.node().pod("web-1", 11, TCP_8080)?,
        cluster.peer().pod("web-2", 12, TCP_8080)?,
    ];
    // All that the node's processes connect from is a node port, too.
    let node_ports: Vec<u16> = (30000..30064).collect();
    cluster
        .node()
        .namespace
        .sysctl("net.ipv4.ip_local_port_range=30000 30063")?;
    let web = |node_ports: &[u16]| {
        let (mut ports, mut targets) = (String::new(), String::new());
        for (number, node_port) in node_ports.iter().enumerate() {
            ports += &format!(
                "{{name: p{number}, port: {}, nodePort: {node_port}}},",
                number + 1
            );
            targets += &format!("{{name: p{number}, port: 8080}},");
        }
        [
            service(
                "web",
                &format!("type: NodePort, clusterIP: 10.96.0.10, ports: [{ports}]"),
            ),
            slice("web-1", "web", &targets, &pods.each_ref().map(Into::into)),
        ]
    };
    cluster.apply("web", &web(&node_ports))?;
    cluster.start(&[])?;
    let answers = cluster.node().client().ask(Tcp, at("10.96.0.10:1"), 40)?;
    assert_eq!(answers.failures, [], "{answers}");
    let used = source_ports(&cluster)?;
    assert!(
        !used.is_empty() && used.iter().all(|port| *port > 32767),
        "{used:?}"
    );

    // A node port where these are.
    cluster.node().namespace.output("conntrack", &["-F"])?;
    cluster.apply("web", &web(&[40000]))?;
    cluster.expect_server(&format!("-a -t {NODE}:40000 -r 10.244.0.11:8080 -m -w 1"))?;
    let answers = cluster.node().client().ask(Tcp, at("10.96.0.10:1"), 20)?;
    assert_eq!(answers.failures, [], "{answers}");
    let used = source_ports(&cluster)?;
    assert!(
        !used.is_empty() && used.iter().all(|port| *port < 30000),
        "{used:?}"
    );

    // I6: a restart leaves it so. Handles tell a table that was made anew.
    let table = |cluster: &Cluster| {
        let listed = ["--handle", "list", "chain", "ip", "kube-proxy", "masquerading"];
        cluster.node().namespace.output("nft", &listed)
    };
    let before = table(&cluster)?;
    assert!(
        before.contains("masquerade to :1024-29999 fully-random"),
        "{before}"
    );
    cluster.take_kube_proxy()?.kill()?;
    cluster.start(&[])?;
    assert_eq!(table(&cluster)?, before);
    Ok(())
}
