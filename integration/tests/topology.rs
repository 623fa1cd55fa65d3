//! The lab's cluster itself, with the kernel's IPVS set up by hand.

use std::net::{IpAddr, SocketAddr};

use integration::Result;
use integration::topology::{CLIENT, CLIENT_V6, Topology};
use integration::traffic::{Client, Failure, Protocol};

fn at(address: impl Into<IpAddr>, port: u16) -> SocketAddr {
    (address.into(), port).into()
}

#[test]
#[ignore = "needs root and ip_vs: cargo xtask test"]
fn everybody_reaches_pods_and_is_seen_as_himself() -> Result<()> {
    let topology = Topology::new()?;
    let ports = Protocol::ALL.map(|protocol| (protocol, 8080));
    let here = topology.node.pod("here", 11, &ports)?;
    let there = topology.peer.pod("there", 12, &ports)?;
    topology
        .node
        .namespace
        .sysctl("net.ipv4.ip_forward=1\nnet.ipv6.conf.all.forwarding=1")?;
    for protocol in Protocol::ALL {
        for (to, by) in [(&here, "here"), (&there, "there")] {
            for (from, sees) in [
                (Client::new(&topology.client), [CLIENT.into(), CLIENT_V6.into()]),
                (here.client(), here.addresses()),
                (there.client(), there.addresses()),
            ] {
                for (address, sees) in to.addresses().into_iter().zip(sees) {
                    let answers = from.ask(protocol, at(address, 8080), 1)?;
                    assert_eq!(
                        answers.to_string(),
                        format!("1 {by}, seen as {sees}"),
                        "{protocol} {address}"
                    );
                }
            }
        }
    }
    let refused = Client::new(&topology.client).ask(Protocol::Tcp, at(here.ipv4, 9), 1)?;
    assert_eq!(refused.failures, [Failure::Refused]);
    Ok(())
}

#[test]
#[ignore = "needs root and ip_vs: cargo xtask test"]
fn the_kernel_balances_and_a_dead_pod_is_silent() -> Result<()> {
    let topology = Topology::new()?;
    let one = topology.node.pod("one", 11, &[(Protocol::Tcp, 8080)])?;
    let two = topology.node.pod("two", 12, &[(Protocol::Tcp, 8080)])?;
    topology.node.namespace.sysctl("net.ipv4.ip_forward=1")?;
    topology.node.namespace.shell(
        "ip link add kube-ipvs0 type dummy && ip address add 10.96.0.10/32 dev kube-ipvs0 &&
        ipvsadm -A -t 10.96.0.10:80 -s rr &&
        ipvsadm -a -t 10.96.0.10:80 -r 10.244.0.11:8080 -m && ipvsadm -a -t 10.96.0.10:80 -r 10.244.0.12:8080 -m",
    )?;
    let vip: SocketAddr = "10.96.0.10:80".parse().unwrap();
    let answers = Client::new(&topology.client).ask(Protocol::Tcp, vip, 4)?;
    assert_eq!(answers.to_string(), format!("2 one, 2 two, seen as {CLIENT}"));
    let held = one.client().connect(Protocol::Tcp, vip)?.unwrap();
    assert_eq!(held.ask().unwrap().seen, one.addresses()[0]);

    let curl = topology
        .client
        .output("curl", &["--silent", "http://10.96.0.10"])?;
    assert!(
        curl.ends_with(&format!("one {CLIENT}\n")) || curl.ends_with(&format!("two {CLIENT}\n")),
        "{curl}"
    );

    drop(two);
    let answers = Client::new(&topology.client).ask(Protocol::Tcp, vip, 2)?;
    assert_eq!(
        (answers.by.get("one"), answers.failures.len()),
        (Some(&1), 1),
        "{answers}"
    );
    Ok(())
}
