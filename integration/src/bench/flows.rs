//! What packets cost on their way through what proxiers have programmed.
//!
//! ```text
//!  pod 10.244.0.2 ----------+
//!                           +---- node 192.168.10.2 ---- endpoints 10.128.0.0/10, 10.224.0.0/12
//!  outside 192.168.10.100 --+
//! ```

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use rustix::net::sockopt::{Timeout, set_socket_timeout};

use crate::bench::{FlowCosts, Flows, Load, NodeCosts, measure};
use crate::error::{Context, Error, Result};
use crate::namespace::Namespace;
use crate::proxiers::Proxier;
use crate::topology::{CLIENT, NODE};
use crate::uplink::Uplink;

/// How often a connection goes there and back in a round. Rounds are short, so that those of two nodes that are compared are
/// close: the speed of an emulated processor changes within seconds.
const ROUND_TRIPS: u32 = 125;

/// How many connections a round has to each address.
const CONNECTIONS: u32 = 10;

/// How long anything may take that goes over the network.
const LIMIT: Duration = Duration::from_secs(10);

/// The nodes that are measured again among more Services.
#[derive(Debug, Default)]
pub struct Nodes {
    fewest: Vec<Node>,
}

impl Nodes {
    /// Has proxiers program their nodes, stops them, and measures all nodes in turns, with those that were the first:
    /// ours is held against itself among the fewest Services, and mode ipvs would take very long to program more.
    ///
    /// # Errors
    /// A proxier has not programmed everything in its time, or a connection fails.
    pub fn run(&mut self, course: &Flows) -> Result<FlowCosts> {
        let programmed = |proxier: &Proxier| Node::programmed(*proxier, course.load, course.patience);
        let programmed: Vec<_> = course.proxiers.iter().map(programmed).collect::<Result<_>>()?;
        let nodes = || self.fewest.iter().chain(&programmed);
        let mut costs: Vec<_> = nodes().map(Node::no_costs).collect();
        for _ in 0..course.rounds {
            for (node, costs) in nodes().zip(&mut costs) {
                node.round(costs)?;
            }
        }
        if self.fewest.is_empty() {
            self.fewest = programmed;
        }
        Ok(FlowCosts {
            load: course.load,
            nodes: costs,
        })
    }
}

/// A node between clients and the endpoints of all Services.
#[derive(Debug)]
struct Node {
    proxier: Proxier,
    load: Load,
    // Before the namespaces, which sockets keep alive.
    listener: TcpListener,
    namespace: Namespace,
    pod: Namespace,
    outside: Namespace,
    _endpoints: Namespace,
}

impl Node {
    fn programmed(proxier: Proxier, load: Load, patience: u64) -> Result<Self> {
        let name = match proxier {
            Proxier::Ours => "ours",
            Proxier::UpstreamIpvs => "ipvs",
            Proxier::UpstreamNftables => "nftables",
            Proxier::KubeRouter => "router",
        };
        let node = Self::new(&format!("{name}-{}", load.services), proxier, load)?;
        let uplink = Uplink::connect(&node.namespace)?;
        uplink.load(load)?;
        // Killed with this value, so that it takes no time from the packets; what it has programmed stays.
        let started = measure::start(proxier, &[], load, patience, &node.namespace)?;
        started.first_sync.map(|_| node).ok_or_else(|| {
            Error::Unavailable(format!(
                "{proxier} has not programmed {} Services in {patience} s",
                load.services
            ))
        })
    }

    fn new(name: &str, proxier: Proxier, load: Load) -> Result<Self> {
        let namespace = Namespace::new(name)?;
        let machine = |kind: &str, address: &str, link: &str, gateway: Ipv4Addr| {
            let machine = Namespace::new(&format!("{name}-{kind}"))?;
            namespace.ip(&format!(
                "link add {link} type veth peer name eth0 netns {}\n\
                 link set {link} up\n\
                 address add {gateway}/24 dev {link}",
                machine.name()
            ))?;
            machine.ip(&format!(
                "link set eth0 up\n\
                 address add {address}/24 dev eth0\n\
                 route add default via {gateway}"
            ))?;
            Ok::<_, Error>(machine)
        };
        let outside = machine("outside", &CLIENT.to_string(), "eth1", NODE)?;
        let pod = machine("pod", "10.244.0.2", "pod", Ipv4Addr::new(10, 244, 0, 1))?;
        let endpoints = machine("pods", "10.127.0.2", "pods", Ipv4Addr::new(10, 127, 0, 1))?;
        // One machine has the addresses of all endpoints, and of those that replace them.
        endpoints.ip("route add local 10.128.0.0/10 dev lo\nroute add local 10.224.0.0/12 dev lo")?;
        namespace.ip(&format!(
            "route add default via {CLIENT}\n\
             route add 10.128.0.0/10 via 10.127.0.2\n\
             route add 10.224.0.0/12 via 10.127.0.2"
        ))?;
        namespace.sysctl("net.ipv4.ip_forward=1")?;
        let listener = endpoints.enter(|| {
            let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, Load::TARGET_PORT));
            let listener = listener.context(|| "listen for all endpoints".into())?;
            // Its connections inherit this.
            set_socket_timeout(&listener, Timeout::Recv, Some(LIMIT))
                .context(|| "limit the time to wait".into())?;
            Ok(listener)
        })?;
        Ok(Self {
            proxier,
            load,
            listener,
            namespace,
            pod,
            outside,
            _endpoints: endpoints,
        })
    }

    fn no_costs(&self) -> NodeCosts {
        NodeCosts {
            proxier: self.proxier,
            load: self.load,
            round_trips: Vec::new(),
            cluster_ip: Vec::new(),
            node_port: Vec::new(),
        }
    }

    fn round(&self, costs: &mut NodeCosts) -> Result<()> {
        let connection = || self.connect((Load::cluster_ip(0), Load::PORT).into());
        let (round_trip, to_cluster_ip) = self.pod.enter(|| {
            let mut ends = connection()?;
            let round_trip = mean(ROUND_TRIPS, || there_and_back(&mut ends))?;
            let connection = mean(CONNECTIONS, || there_and_back(&mut connection()?))?;
            Ok((round_trip, connection))
        })?;
        let connection = || self.connect((NODE, Load::NODE_PORT).into());
        let to_node_port = self.outside.enter(|| {
            // The first finds out neighbours' addresses, as it does above.
            drop(connection()?);
            mean(CONNECTIONS, || there_and_back(&mut connection()?))
        })?;
        costs.round_trips.push(round_trip);
        costs.cluster_ip.push(to_cluster_ip);
        costs.node_port.push(to_node_port);
        Ok(())
    }

    /// Both ends of a new connection. One thread has both: what is sent at one end has arrived at the other when the
    /// call returns, and no time goes into waking up another thread.
    fn connect(&self, to: SocketAddr) -> Result<[TcpStream; 2]> {
        let connected = || {
            let client = TcpStream::connect_timeout(&to, LIMIT)?;
            client.set_read_timeout(Some(LIMIT))?;
            let (server, _) = self.listener.accept()?;
            Ok::<_, std::io::Error>([client, server])
        };
        connected().context(|| {
            let node = self.namespace.name();
            format!("connect to {to} through node {node}")
        })
    }
}

/// Sends a byte to the server, and one back.
fn there_and_back([client, server]: &mut [TcpStream; 2]) -> Result<()> {
    let mut exchange = || {
        let mut byte = [0];
        client.write_all(&byte)?;
        server.read_exact(&mut byte)?;
        server.write_all(&byte)?;
        client.read_exact(&mut byte)
    };
    exchange().context(|| "exchange a byte".into())
}

/// How long `work` takes, in seconds.
fn mean(times: u32, mut work: impl FnMut() -> Result<()>) -> Result<f64> {
    let start = Instant::now();
    for _ in 0..times {
        work()?;
    }
    Ok((start.elapsed() / times).as_secs_f64())
}
