//! What others change is mended, and what is theirs is left alone.

use std::time::{Duration, Instant};

use integration::manifest::{service, slice, slice_v6};
use integration::topology::{NODE, NODE_2};
use integration::traffic::Protocol::Tcp;
use integration::{Cluster, Result};

use crate::{eventually, expect, web};

/// A mending that waits for this is too late for every test.
const NO_VERIFICATION: &str = "--ipvs-sync-period=10m";

/// What somebody else has on the node.
const FOREIGN: &str = "
    ipvsadm -A -t 198.51.100.7:80 -s wlc
    ipvsadm -a -t 198.51.100.7:80 -r 198.51.100.70:80 -m -w 3
    nft add table ip foreign
    nft add chain ip foreign input '{ type filter hook input priority 10; }'
    nft add rule ip foreign input ip daddr 198.51.100.7 counter
    ip link add foreign0 type dummy
    ip address add 198.51.100.8/32 dev foreign0";

/// Everything that ours and theirs is made of. In which order the kernel lists it means nothing.
fn everything(cluster: &Cluster) -> Result<String> {
    let node = &cluster.node().namespace;
    let links = node.output("ip", &["-brief", "address", "show"])?;
    let all = [cluster.servers()?, links, cluster.ruleset()?].join("\n");
    let mut words: Vec<_> = all
        .split([' ', ',', '\n', '\t'])
        .filter(|word| !word.is_empty())
        .collect();
    words.sort_unstable();
    Ok(words.join(" "))
}

/// Has a shell do damage, and waits until all is as it was before.
fn mended(cluster: &Cluster, damage: &str) -> Result<Duration> {
    let before = everything(cluster)?;
    cluster.node().namespace.shell(&format!("set -e\n{damage}"))?;
    let start = Instant::now();
    eventually(|| {
        Ok(if everything(cluster)? == before {
            Ok(())
        } else {
            Err(format!(
                "not mended after {damage}:\n{}\n{}",
                cluster.servers()?,
                cluster.ruleset()?
            ))
        })
    })?;
    Ok(start.elapsed())
}

#[test]
#[ignore = "needs root and ip_vs: cargo xtask test"]
fn i7_d10_links_and_tables_are_mended_when_the_kernel_tells() -> Result<()> {
    let (mut cluster, _pods) = web()?;
    let pod = cluster.node().pod("pod", 20, &[])?;
    cluster.node().namespace.shell(&format!("set -e\n{FOREIGN}"))?;
    cluster.start(&[NO_VERIFICATION])?;
    for damage in [
        "ip address delete 10.96.0.10/32 dev kube-ipvs0",
        "ip address flush dev kube-ipvs0",
        "ip address add 10.96.0.99/32 dev kube-ipvs0",
        "ip link delete kube-ipvs0",
        "nft delete table ip kube-proxy",
        "nft delete table ip kube-proxy; nft delete table ip6 kube-proxy; ip link delete kube-ipvs0",
        "nft flush map ip kube-proxy services",
        "nft flush set ip kube-proxy service-addresses",
        "nft flush chain ip kube-proxy postrouting",
        "nft add rule ip kube-proxy input drop",
        "handle=$(nft -a list chain ip kube-proxy output | sed -n 's/.*# handle \\([0-9]*\\)$/\\1/p' | tail -n 1)
         nft delete rule ip kube-proxy output handle $handle",
    ] {
        let time = mended(&cluster, damage)?;
        // A second, and what an emulated machine needs to look.
        assert!(time < Duration::from_secs(6), "{damage}: mended after {time:?}");
    }
    expect(pod.client(), Tcp, "10.96.0.10:80", &["web-1", "web-2"], pod.ipv4)?;
    Ok(())
}

#[test]
#[ignore = "needs root and ip_vs: cargo xtask test"]
fn i7_d10_virtual_servers_are_mended_at_the_next_sync_period() -> Result<()> {
    let (mut cluster, _pods) = web()?;
    let pod = cluster.node().pod("pod", 20, &[])?;
    cluster.node().namespace.shell(&format!("set -e\n{FOREIGN}"))?;
    cluster.start(&["--ipvs-sync-period=2s"])?;
    for damage in [
        "ipvsadm -d -t 10.96.0.10:80 -r 10.244.0.11:8080",
        "ipvsadm -e -t 10.96.0.10:80 -r 10.244.0.11:8080 -m -w 7",
        "ipvsadm -a -t 10.96.0.10:80 -r 10.244.0.99:8080 -m -w 1",
        "ipvsadm -E -t 10.96.0.10:80 -s wlc -p 60",
        "ipvsadm -D -t 10.96.0.10:80",
        // The other's come back by the other's hand only.
        "ipvsadm -C
         ipvsadm -A -t 198.51.100.7:80 -s wlc
         ipvsadm -a -t 198.51.100.7:80 -r 198.51.100.70:80 -m -w 3",
    ] {
        mended(&cluster, damage)?;
    }
    expect(pod.client(), Tcp, "10.96.0.10:80", &["web-1", "web-2"], pod.ipv4)?;
    Ok(())
}

#[test]
#[ignore = "needs root and ip_vs: cargo xtask test"]
fn d1_node_ports_follow_the_nodes_addresses() -> Result<()> {
    let mut cluster = Cluster::new()?;
    let pod = cluster.node().pod("web-1", 11, &[(Tcp, 8080)])?;
    cluster.apply(
        "web",
        &[
            service(
                "web",
                "type: NodePort, clusterIP: 10.96.0.10, clusterIPs: [10.96.0.10, \"fd00:10:96::10\"],
                 ports: [{port: 80, nodePort: 30080}]",
            ),
            slice("web-4", "web", "{port: 8080}", &[(&pod).into()]),
            slice_v6("web-6", "web", "{port: 8080}", &[(&pod).into()]),
        ],
    )?;
    cluster.start(&[NO_VERIFICATION])?;
    let before = cluster.servers()?;
    for address in [NODE, NODE_2] {
        cluster.expect_server(&format!("-a -t {address}:30080 -r 10.244.0.11:8080 -m -w 1"))?;
    }
    let node = &cluster.node().namespace;
    node.ip("address add 192.168.10.7/24 dev eth1\naddress add fd01::7/64 dev eth1 nodad")?;
    for (to, seen) in [
        ("192.168.10.7:30080", "10.244.0.1"),
        ("[fd01::7]:30080", "fd00:10:244::1"),
    ] {
        expect(
            cluster.client(),
            Tcp,
            to,
            &["web-1"],
            seen.parse::<std::net::IpAddr>().unwrap(),
        )?;
    }
    node.ip("address delete 192.168.10.7/24 dev eth1\naddress delete fd01::7/64 dev eth1")?;
    cluster.expect_servers(&before)?;
    cluster.expect_no_trace("192.168.10.7")?;
    cluster.expect_no_trace("fd01::7")
}
