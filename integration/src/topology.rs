//! A small cluster out of network namespaces.
//!
//! ```text
//!  client 192.168.10.100        node 192.168.10.2, 192.168.20.2      peer 192.168.10.3
//!         fd01::100                  fd01::2                              fd01::3
//!      |                          |        |                           |        |
//!      +-------- lan -------------+      cni0 10.244.0.1 --------------+      cni0 10.244.1.1
//!                                          |    fd00:10:244::1                  |    fd00:10:244:1::1
//!                                        pods 10.244.0.N                      pods 10.244.1.N
//! ```
//!
//! The client knows no pod network: its default route is the node, so that every service address is reached
//! there. Pods have single addresses and reach each other through their host, as with most network plugins.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::error::Result;
use crate::namespace::Namespace;
use crate::traffic::{Client, Protocol, Server};

/// The node's first address.
pub const NODE: Ipv4Addr = Ipv4Addr::new(192, 168, 10, 2);
/// The node's second address.
pub const NODE_2: Ipv4Addr = Ipv4Addr::new(192, 168, 20, 2);
/// The node's IPv6 address.
pub const NODE_V6: Ipv6Addr = Ipv6Addr::new(0xfd01, 0, 0, 0, 0, 0, 0, 2);
/// The client's address.
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 168, 10, 100);
/// The client's IPv6 address.
pub const CLIENT_V6: Ipv6Addr = Ipv6Addr::new(0xfd01, 0, 0, 0, 0, 0, 0, 0x100);
/// The node's addresses on the link of its pods.
pub const BRIDGE: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 1);
/// The node's IPv6 address on the link of its pods.
pub const BRIDGE_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x10, 0x244, 0, 0, 0, 0, 1);
/// The pods' addresses on all nodes, as `--cluster-cidr` has them.
pub const CLUSTER_CIDRS: &str = "10.244.0.0/16,fd00:10:244::/56";

/// The machines. They go with this value.
#[derive(Debug)]
pub struct Topology {
    /// The node under test.
    pub node: Host,
    /// A second node, which runs pods and nothing else.
    pub peer: Host,
    /// A machine outside the cluster.
    pub client: Namespace,
    /// The network between them, a bridge.
    lan: Namespace,
}

/// A machine that runs pods.
#[derive(Debug)]
pub struct Host {
    /// Its own network.
    pub namespace: Namespace,
    /// The third byte of its pods' IPv4 addresses and the fourth group of their IPv6 ones.
    pod_network: u8,
}

/// A pod: a network of its own, and a server that answers with the pod's name.
#[derive(Debug)]
pub struct Pod {
    /// Its name, which is also its namespace's.
    pub name: String,
    /// Its IPv4 address.
    pub ipv4: Ipv4Addr,
    /// Its IPv6 address.
    pub ipv6: Ipv6Addr,
    /// The name of the node that it runs on.
    pub host: String,
    // Before the namespace, which its sockets keep alive.
    _server: Server,
    /// Its network.
    pub namespace: Namespace,
}

impl Topology {
    /// Builds it, without a pod.
    ///
    /// # Errors
    /// There is one already, or no privilege to build it.
    pub fn new() -> Result<Self> {
        let lan = Namespace::new("lan")?;
        lan.ip("link add lan type bridge\nlink set lan up")?;
        let node = Host::new("node", 0)?;
        let peer = Host::new("peer", 1)?;
        let client = Namespace::new("client")?;
        let topology = Self {
            node,
            peer,
            client,
            lan,
        };
        let Self {
            node, peer, client, ..
        } = &topology;
        topology.plug(
            &node.namespace,
            "eth1",
            &[&format!("{NODE}/24"), &format!("{NODE_V6}/64")],
        )?;
        topology.plug(&node.namespace, "eth2", &[&format!("{NODE_2}/24")])?;
        topology.plug(&peer.namespace, "eth1", &["192.168.10.3/24", "fd01::3/64"])?;
        topology.plug(
            client,
            "eth1",
            &[&format!("{CLIENT}/24"), &format!("{CLIENT_V6}/64")],
        )?;
        node.namespace
            .ip("route add 10.244.1.0/24 via 192.168.10.3\nroute add fd00:10:244:1::/64 via fd01::3")?;
        peer.namespace.ip(&format!(
            "route add default via {NODE}\nroute add default via {NODE_V6}"
        ))?;
        peer.namespace
            .sysctl("net.ipv4.ip_forward=1\nnet.ipv6.conf.all.forwarding=1")?;
        client.ip(&format!(
            "route add default via {NODE}\nroute add default via {NODE_V6}"
        ))?;
        Ok(topology)
    }

    /// Gives a machine a link to the network.
    fn plug(&self, machine: &Namespace, link: &str, addresses: &[&str]) -> Result<()> {
        let (name, lan) = (machine.name(), self.lan.name());
        let mut commands = format!(
            "link add {link} type veth peer name {name}-{link} netns {lan}\n\
             link set {link} up\n"
        );
        for address in addresses {
            commands += &format!("address add {address} dev {link} {}\n", nodad(address));
        }
        machine.ip(&commands)?;
        self.lan.ip(&format!(
            "link set {name}-{link} master lan\nlink set {name}-{link} up"
        ))
    }
}

impl Host {
    fn new(name: &str, pod_network: u8) -> Result<Self> {
        let namespace = Namespace::new(name)?;
        // Loose reverse path checks, as distributions have it. Pods reach each other through their host on one
        // link, and are not to be told of a shorter way, which would bypass IPVS on the way back.
        namespace.sysctl(
            "net.ipv4.conf.all.rp_filter=2
             net.ipv4.conf.all.send_redirects=0
             net.ipv4.conf.default.send_redirects=0",
        )?;
        // A bridge whose address nobody has set takes that of one of its ports, and another when that goes.
        namespace.ip(&format!(
            "link add cni0 address 02:00:0a:f4:{pod_network:02x}:01 type bridge\n\
             link set cni0 up\n\
             address add 10.244.{pod_network}.1/24 dev cni0\n\
             address add fd00:10:244:{pod_network}::1/64 dev cni0 nodad"
        ))?;
        Ok(Self {
            namespace,
            pod_network,
        })
    }

    /// A new pod with the addresses that end in `number`. It listens on these ports.
    ///
    /// # Errors
    /// There is one of this name, or a port cannot be served.
    pub fn pod(&self, name: &str, number: u8, ports: &[(Protocol, u16)]) -> Result<Pod> {
        let network = self.pod_network;
        let ipv4 = Ipv4Addr::new(10, 244, network, number);
        // Written alike in both families: 10.244.0.11 and fd00:10:244::11.
        let ending = u16::from_str_radix(&number.to_string(), 16).unwrap_or_default();
        let ipv6 = Ipv6Addr::new(0xfd00, 0x10, 0x244, network.into(), 0, 0, 0, ending);
        let namespace = Namespace::new(name)?;
        // Where br_netfilter is loaded, and upstream's kube-proxy sees to that, a bridge does not route what a pod
        // sends to itself but bridges it: back through the port where it came from.
        self.namespace.ip(&format!(
            "link add {name} type veth peer name eth0 netns {name}\n\
             link set {name} master cni0\n\
             link set {name} type bridge_slave hairpin on\n\
             link set {name} up"
        ))?;
        let (gateway, gateway_v6) = (format!("10.244.{network}.1"), format!("fd00:10:244:{network}::1"));
        namespace.ip(&format!(
            "link set eth0 up\n\
             address add {ipv4}/32 dev eth0\n\
             address add {ipv6}/128 dev eth0 nodad\n\
             route add {gateway} dev eth0\n\
             route add default via {gateway}\n\
             route add {gateway_v6} dev eth0\n\
             route add default via {gateway_v6}"
        ))?;
        // Unlike IPv4, IPv6 has no switch for this on the router's side.
        namespace.sysctl("net.ipv6.conf.eth0.accept_redirects=0")?;
        let server = Server::start(&namespace, name, ports)?;
        Ok(Pod {
            name: name.to_owned(),
            ipv4,
            ipv6,
            host: self.namespace.name().to_owned(),
            _server: server,
            namespace,
        })
    }

    /// A client on the host itself.
    #[must_use]
    pub fn client(&self) -> Client<'_> {
        Client::new(&self.namespace)
    }
}

impl Pod {
    /// The pod's addresses.
    #[must_use]
    pub fn addresses(&self) -> [IpAddr; 2] {
        [self.ipv4.into(), self.ipv6.into()]
    }

    /// A client in the pod.
    #[must_use]
    pub fn client(&self) -> Client<'_> {
        Client::new(&self.namespace)
    }
}

fn nodad(address: &str) -> &'static str {
    if address.contains(':') { "nodad" } else { "" }
}
