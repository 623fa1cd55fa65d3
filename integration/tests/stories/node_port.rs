//! Node ports: on which addresses, and what they leave alone.

use integration::manifest::{service, slice, slice_v6};
use integration::topology::{CLIENT, NODE};
use integration::traffic::Failure::Refused;
use integration::traffic::{Protocol::Tcp, Server};
use integration::{Cluster, Result};

use crate::{BRIDGE, TCP_8080, expect, expect_failure};

#[test]
#[ignore = "needs root and ip_vs: cargo xtask test"]
fn a_node_port_answers_on_every_node_address_and_not_on_loopback() -> Result<()> {
    let mut cluster = Cluster::new()?;
    let pod = cluster.node().pod("shop-1", 11, TCP_8080)?;
    cluster.apply(
        "shop",
        &[
            service(
                "shop",
                "type: NodePort, clusterIP: 10.96.0.10, clusterIPs: [10.96.0.10, \"fd00:10:96::10\"],
                 ports: [{port: 80, nodePort: 30080}]",
            ),
            slice("shop-4", "shop", "{port: 8080}", &[(&pod).into()]),
            slice_v6("shop-6", "shop", "{port: 8080}", &[(&pod).into()]),
        ],
    )?;
    cluster.start(&[])?;
    // D1, D7: service addresses are no node addresses, and D3: neither is loopback.
    cluster.expect_servers(
        "-A -t 10.96.0.10:80 -s rr
         -a -t 10.96.0.10:80 -r 10.244.0.11:8080 -m -w 1
         -A -t 10.244.0.1:30080 -s rr
         -a -t 10.244.0.1:30080 -r 10.244.0.11:8080 -m -w 1
         -A -t 192.168.10.2:30080 -s rr
         -a -t 192.168.10.2:30080 -r 10.244.0.11:8080 -m -w 1
         -A -t 192.168.20.2:30080 -s rr
         -a -t 192.168.20.2:30080 -r 10.244.0.11:8080 -m -w 1
         -A -t [fd00:10:96::10]:80 -s rr
         -a -t [fd00:10:96::10]:80 -r [fd00:10:244::11]:8080 -m -w 1
         -A -t [fd00:10:244::1]:30080 -s rr
         -a -t [fd00:10:244::1]:30080 -r [fd00:10:244::11]:8080 -m -w 1
         -A -t [fd01::2]:30080 -s rr
         -a -t [fd01::2]:30080 -r [fd00:10:244::11]:8080 -m -w 1",
    )?;
    cluster.expect_addresses(&["10.96.0.10/32", "fd00:10:96::10/128"])?;
    for address in ["192.168.10.2:30080", "192.168.20.2:30080"] {
        expect(cluster.client(), Tcp, address, &["shop-1"], BRIDGE)?;
        expect(cluster.node().client(), Tcp, address, &["shop-1"], BRIDGE)?;
    }
    expect(
        cluster.client(),
        Tcp,
        "[fd01::2]:30080",
        &["shop-1"],
        [0xfd00, 0x10, 0x244, 0, 0, 0, 0, 1],
    )?;
    expect_failure(cluster.node().client(), Tcp, "127.0.0.1:30080", Refused)
}

#[test]
#[ignore = "needs root and ip_vs: cargo xtask test"]
fn d2_node_ports_keep_to_the_chosen_addresses() -> Result<()> {
    let mut cluster = Cluster::new()?;
    let pod = cluster.node().pod("shop-1", 11, TCP_8080)?;
    cluster.apply(
        "shop",
        &[
            service(
                "shop",
                "type: NodePort, clusterIP: 10.96.0.10, ports: [{port: 80, nodePort: 30080}]",
            ),
            slice("shop-4", "shop", "{port: 8080}", &[(&pod).into()]),
        ],
    )?;
    cluster.start(&["--nodeport-addresses=192.168.20.0/24,fd01::/64"])?;
    cluster.expect_servers(
        "-A -t 10.96.0.10:80 -s rr
         -a -t 10.96.0.10:80 -r 10.244.0.11:8080 -m -w 1
         -A -t 192.168.20.2:30080 -s rr
         -a -t 192.168.20.2:30080 -r 10.244.0.11:8080 -m -w 1",
    )?;
    expect(cluster.client(), Tcp, "192.168.20.2:30080", &["shop-1"], BRIDGE)?;
    expect_failure(cluster.client(), Tcp, "192.168.10.2:30080", Refused)
}

#[test]
#[ignore = "needs root and ip_vs: cargo xtask test"]
fn c2_equal_numbers_of_node_ports_and_ports_do_not_mix() -> Result<()> {
    let mut cluster = Cluster::new()?;
    let shop = cluster.node().pod("shop-1", 11, TCP_8080)?;
    let other = cluster.node().pod("other-1", 12, TCP_8080)?;
    // A server of the node itself keeps its port, whatever Services have.
    let _sshd = Server::start(&cluster.node().namespace, "sshd", &[(Tcp, 80)])?;
    cluster.apply(
        "both",
        &[
            service(
                "shop",
                "type: NodePort, clusterIP: 10.96.0.10, ports: [{port: 80, nodePort: 31000}]",
            ),
            slice("shop-1", "shop", "{port: 8080}", &[(&shop).into()]),
            service("other", "clusterIP: 10.96.0.11, ports: [{port: 31000}]"),
            slice("other-1", "other", "{port: 8080}", &[(&other).into()]),
        ],
    )?;
    cluster.start(&[])?;
    let visitor = cluster.node().pod("visitor", 20, &[])?;
    expect(
        visitor.client(),
        Tcp,
        "10.96.0.11:31000",
        &["other-1"],
        visitor.ipv4,
    )?;
    expect(
        cluster.client(),
        Tcp,
        &format!("{NODE}:31000"),
        &["shop-1"],
        BRIDGE,
    )?;
    expect(cluster.client(), Tcp, &format!("{NODE}:80"), &["sshd"], CLIENT)
}
