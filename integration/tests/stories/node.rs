//! What the Node object says of our node, which may change at any time.

use integration::manifest::{service, slice};
use integration::topology::{NODE, NODE_2};
use integration::traffic::Protocol::Tcp;
use integration::{Cluster, Result};

use crate::{BRIDGE, TCP_8080, expect, hold, web, web_objects};

/// Our Node, in YAML's flow style.
fn node(spec: &str, status: &str) -> String {
    format!(
        "---\n\
         apiVersion: v1\n\
         kind: Node\n\
         metadata: {{name: node}}\n\
         spec: {{{spec}}}\n\
         status: {{{status}}}\n"
    )
}

#[test]
#[ignore = "needs root and ip_vs: cargo xtask test"]
fn pod_cidrs_that_change_are_taken_over_at_once() -> Result<()> {
    let (mut cluster, [web_1, _]) = web()?;
    let pod = cluster.node().pod("pod", 20, &[])?;
    cluster.apply("web", &web_objects(&[(&web_1).into()]))?;
    let has =
        |cluster: &Cluster, cidr: &str| cluster.apply("node", &[node(&format!("podCIDRs: [{cidr}]"), "")]);
    has(&cluster, "10.244.0.0/24")?;
    cluster.start(&["--detect-local-mode=NodeCIDR", "--ipvs-sync-period=10m"])?;
    let (held, _) = hold(pod.client(), Tcp, "10.96.0.10:80")?;
    let servers = cluster.servers()?;
    for (cidr, seen) in [
        ("10.244.0.0/24", pod.ipv4),
        // The pod is none of this node's any more, so it is masqueraded.
        ("10.244.9.0/24", BRIDGE.into()),
        ("10.244.0.0/24", pod.ipv4),
    ] {
        has(&cluster, cidr)?;
        expect(pod.client(), Tcp, "10.96.0.10:80", &["web-1"], seen)?;
    }
    assert_eq!(held.ask().map(|reply| reply.name), Ok("web-1".to_owned()));
    assert_eq!(cluster.servers()?, servers);
    let (status, _) = cluster.take_kube_proxy()?.terminate()?;
    assert!(status.success(), "it ran to the end: {status}");
    Ok(())
}

#[test]
#[ignore = "needs root and ip_vs: cargo xtask test"]
fn d1_q34_primary_node_ports_follow_the_node_object() -> Result<()> {
    let mut cluster = Cluster::new()?;
    let pod = cluster.node().pod("web-1", 11, TCP_8080)?;
    cluster.apply(
        "web",
        &[
            service(
                "web",
                "type: NodePort, clusterIP: 10.96.0.10, ports: [{port: 80, nodePort: 30080}]",
            ),
            slice("web-1", "web", "{port: 8080}", &[(&pod).into()]),
        ],
    )?;
    let is_at = |cluster: &Cluster, address| {
        let status = format!("addresses: [{{type: InternalIP, address: {address}}}]");
        cluster.apply("node", &[node("", &status)])
    };
    is_at(&cluster, NODE)?;
    cluster.start(&["--nodeport-addresses=primary", "--ipvs-sync-period=10m"])?;
    for (address, other) in [(NODE, NODE_2), (NODE_2, NODE)] {
        is_at(&cluster, address)?;
        cluster.expect_server(&format!("-a -t {address}:30080 -r 10.244.0.11:8080 -m -w 1"))?;
        cluster.expect_no_trace(&format!("{other}:30080"))?;
        expect(
            cluster.client(),
            Tcp,
            &format!("{address}:30080"),
            &["web-1"],
            BRIDGE,
        )?;
    }
    Ok(())
}
