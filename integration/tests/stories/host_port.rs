//! Host ports of network plugins: rules that take a port on every local address, and so on every Service's.

use integration::manifest::{service, slice, slice_v6};
use integration::topology::{CLIENT, CLIENT_V6, NODE, NODE_V6};
use integration::traffic::Failure::Refused;
use integration::traffic::Protocol::Tcp;
use integration::{Cluster, Result};

use crate::{BRIDGE, TCP_8080, expect, expect_failure};

/// As a network plugin does it with nftables: host ports 80 and 81 of a pod.
const NFT: &str = "
    for hook in prerouting output; do
        nft add table ip plugin
        nft add chain ip plugin $hook \"{ type nat hook $hook priority -100; }\"
        nft add rule ip plugin $hook fib daddr type local tcp dport { 80, 81 } dnat to 10.244.0.30:8080
        nft add table ip6 plugin
        nft add chain ip6 plugin $hook \"{ type nat hook $hook priority -100; }\"
        nft add rule ip6 plugin $hook \\
            fib daddr type local tcp dport { 80, 81 } dnat to '[fd00:10:244::30]:8080'
    done";

/// The same with iptables, of either kind.
const IPTABLES: &str = "
    for chain in PREROUTING OUTPUT; do
        iptables-KIND -t nat -A $chain -m addrtype --dst-type LOCAL \\
            -p tcp -m multiport --dports 80,81 -j DNAT --to-destination 10.244.0.30:8080
        ip6tables-KIND -t nat -A $chain -m addrtype --dst-type LOCAL \\
            -p tcp -m multiport --dports 80,81 -j DNAT --to-destination '[fd00:10:244::30]:8080'
    done";

/// A host port takes the node's addresses and no Service's, whoever connects and however the rule is written.
fn host_ports_take_no_service_traffic(rules: &str) -> Result<()> {
    let mut cluster = Cluster::new()?;
    let web_1 = cluster.node().pod("web-1", 11, TCP_8080)?;
    let _plugged = cluster.node().pod("plugged", 30, TCP_8080)?;
    let visitor = cluster.node().pod("visitor", 20, &[])?;
    cluster.apply(
        "web",
        &[
            service(
                "web",
                "clusterIP: 10.96.0.10, clusterIPs: [10.96.0.10, \"fd00:10:96::10\"],
                 externalIPs: [198.51.100.7], ports: [{port: 80}]",
            ),
            slice("web-4", "web", "{port: 8080}", &[(&web_1).into()]),
            slice_v6("web-6", "web", "{port: 8080}", &[(&web_1).into()]),
        ],
    )?;
    cluster.start(&[])?;
    cluster.node().namespace.shell(&format!("set -e\n{rules}"))?;

    let node = cluster.node().client();
    let bridge_v6 = [0xfd00, 0x10, 0x244, 0, 0, 0, 0, 1];
    for client in [cluster.client(), node] {
        for to in ["10.96.0.10:80", "198.51.100.7:80"] {
            expect(client, Tcp, to, &["web-1"], BRIDGE)?;
        }
        expect(client, Tcp, "[fd00:10:96::10]:80", &["web-1"], bridge_v6)?;
        // C1: what a Service does not have, nobody has at its address.
        expect_failure(client, Tcp, "10.96.0.10:81", Refused)?;
    }
    expect(visitor.client(), Tcp, "10.96.0.10:80", &["web-1"], visitor.ipv4)?;
    expect(
        visitor.client(),
        Tcp,
        "[fd00:10:96::10]:80",
        &["web-1"],
        visitor.ipv6,
    )?;

    expect(cluster.client(), Tcp, &format!("{NODE}:80"), &["plugged"], CLIENT)?;
    expect(
        cluster.client(),
        Tcp,
        &format!("[{NODE_V6}]:80"),
        &["plugged"],
        CLIENT_V6,
    )?;
    expect(node, Tcp, &format!("{NODE}:81"), &["plugged"], NODE)?;
    for machine in [&visitor.namespace, cluster.outside(), &cluster.node().namespace] {
        machine.output("ping", &["-n", "-c", "1", "-W", "3", "10.96.0.10"])?;
    }
    Ok(())
}

#[test]
#[ignore = "needs root and ip_vs: cargo xtask test"]
fn c7_host_ports_of_nftables_take_no_service_traffic() -> Result<()> {
    host_ports_take_no_service_traffic(NFT)
}

#[test]
#[ignore = "needs root and ip_vs: cargo xtask test"]
fn c7_host_ports_of_iptables_take_no_service_traffic() -> Result<()> {
    host_ports_take_no_service_traffic(&IPTABLES.replace("KIND", "nft"))
}

#[test]
#[ignore = "needs root and ip_vs: cargo xtask test"]
fn c7_host_ports_of_legacy_iptables_take_no_service_traffic() -> Result<()> {
    host_ports_take_no_service_traffic(&IPTABLES.replace("KIND", "legacy"))
}
