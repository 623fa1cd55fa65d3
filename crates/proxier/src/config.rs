//! What an operator decides, as opposed to what the cluster's objects say.

use std::{sync::Arc, time::Duration};

use ipnet::IpNet;
use ipvs::Scheduler;

/// The proxier's settings. Each names the kube-proxy flag behind it.
#[derive(Clone, Debug)]
pub struct Config {
    /// The name by which endpoints call our node (`--hostname-override`, else the host's name).
    pub node_name: Arc<str>,
    /// The scheduler of every virtual server (`--ipvs-scheduler`).
    pub scheduler: Scheduler,
    /// Virtual servers on these addresses are never edited nor removed unless a Service wants them
    /// (`--ipvs-exclude-cidrs`).
    pub exclude_cidrs: Vec<IpNet>,
    /// External and load-balancer addresses outside of these are not programmed; all are if there is none
    /// (`--ipvs-external-cidrs`, C4).
    ///
    /// An address on kube-ipvs0 is this node's own: a Service that has another node's address for an external one
    /// cuts that node off from this one. Our node's addresses and those of API servers are known and safe; to know
    /// those of all nodes, every node would have to watch every Node. This list is the way to protect them.
    pub external_cidrs: Vec<IpNet>,
    /// Which of the node's addresses answer on node ports (`--nodeport-addresses`).
    pub node_port_addresses: NodePortAddresses,
    /// How in-cluster clients of a ClusterIP are told from others, who are masqueraded
    /// (`--detect-local-mode`, `--cluster-cidr`, ...).
    pub local_detector: LocalDetector,
    /// Masquerade the clients of every ClusterIP (`--masquerade-all`).
    pub masquerade_all: bool,
    /// Let the kernel choose masqueraded flows' source ports at random, so that flows compete for them less
    /// (`--ipvs-masquerade-fully-random`).
    pub masquerade_fully_random: bool,
    /// The bit of the packet mark that asks for masquerading, 0 to 31 (`--iptables-masquerade-bit`).
    pub masquerade_bit: u8,
    /// Where ARP is answered for addresses of the receiving interface only (`--ipvs-strict-arp`,
    /// `--ipvs-strict-arp-interfaces`).
    pub strict_arp: StrictArp,
    /// IPVS connection timeouts; zero leaves the kernel's (`--ipvs-tcp-timeout` and its siblings).
    pub timeouts: Timeouts,
    /// The kernel's connection tracking (`--conntrack-max-per-core` and its siblings).
    pub conntrack: Conntrack,
    /// How often IPVS, which sends no notifications, is read back and mended (`--ipvs-sync-period`). Where there are more
    /// than a thousand virtual servers and all is found well, it is done more rarely, if need be: so that it takes a thousandth
    /// of one processor, but at least every fifteen minutes.
    pub sync_period: Duration,
    /// The least time between two batches (`--ipvs-min-sync-period`). Changes that arrive meanwhile share
    /// the next batch.
    pub min_sync_period: Duration,
    /// How long a TCP real server may keep its last connections after it stopped to be wanted
    /// (`--ipvs-drain-timeout`).
    pub drain_timeout: Duration,
    /// Tell what the ports of Services have carried, at every verification (`--ipvs-service-metrics`, F8).
    pub service_metrics: bool,
}

impl Config {
    /// The defaults of kube-proxy's flags in mode ipvs, for the node `node_name`.
    pub fn new(node_name: impl Into<Arc<str>>) -> Self {
        Self {
            node_name: node_name.into(),
            scheduler: Scheduler::ROUND_ROBIN,
            exclude_cidrs: Vec::new(),
            external_cidrs: Vec::new(),
            node_port_addresses: NodePortAddresses::All,
            local_detector: LocalDetector::None,
            masquerade_all: false,
            masquerade_fully_random: true,
            masquerade_bit: 14,
            strict_arp: StrictArp::Nowhere,
            timeouts: Timeouts::default(),
            conntrack: Conntrack::default(),
            sync_period: Duration::from_secs(30),
            min_sync_period: Duration::ZERO,
            drain_timeout: Duration::from_secs(15 * 60),
            service_metrics: false,
        }
    }
}

/// On which interfaces ARP is not answered for Service addresses, which are on kube-ipvs0 (D4). IPv6's neighbour
/// discovery never answers for another interface's addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StrictArp {
    /// On none: Linux answers for every address that the node has.
    Nowhere,
    /// On all, those of pods included.
    Everywhere,
    /// On those of these names that are there at the start.
    On(Vec<Arc<str>>),
}

/// Which of the node's addresses answer on node ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// All but loopback and IPv6 link-local ones, and those on kube-ipvs0.
    All,
    /// Of these, the ones inside the CIDRs. A family without a CIDR has no node ports (Q15).
    Cidrs(Vec<IpNet>),
    /// The Node object's addresses only (`--nodeport-addresses primary`).
    Primary,
}

/// How the clients that reach a ClusterIP with their own address are recognised; all others are masqueraded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LocalDetector {
    /// Not at all: only clients on the node itself are masqueraded.
    None,
    /// By source address: the cluster's pod CIDRs.
    Cidrs(Vec<IpNet>),
    /// By source address: the node's pod CIDRs. These, until the Node object has others
    /// ([`Node::pod_cidrs`](crate::model::Node::pod_cidrs)).
    NodeCidrs(Vec<IpNet>),
    /// By the interface that they come in by: the bridge of the pods.
    BridgeInterface(Arc<str>),
    /// By the beginning of that interface's name.
    InterfaceNamePrefix(Arc<str>),
}

/// Timeouts of IPVS connections, in whole seconds; zero leaves the kernel's value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeouts {
    /// An established TCP connection without traffic (kernel default: 900 s).
    pub tcp: Duration,
    /// A TCP connection after a FIN (kernel default: 120 s).
    pub tcp_fin: Duration,
    /// A UDP flow without traffic (kernel default: 300 s).
    pub udp: Duration,
}

/// Settings of the kernel's connection tracking. What is `None` stays as the kernel has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Conntrack {
    /// Entries for each processor. Without it `min` means nothing.
    pub max_per_core: Option<u32>,
    /// Least number of entries.
    pub min: u32,
    /// How long an established TCP connection without traffic is tracked.
    pub tcp_established: Option<Duration>,
    /// How long one that the client has ended and the server has not.
    pub tcp_close_wait: Option<Duration>,
    /// Keep TCP packets out of the window.
    pub be_liberal: bool,
    /// How long a UDP flow with packets one way is tracked.
    pub udp: Option<Duration>,
    /// How long one with packets both ways.
    pub udp_stream: Option<Duration>,
}
