//! The kernel's side: drivers that carry out operations and read the state back. They hold no policy.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt,
    future::Future,
    net::IpAddr,
};

use ipvs::{Destination, Family, ServiceKey};

use self::conntrack::Flow;
use crate::{
    accounting::Counters,
    config::LocalDetector,
    kernel::netfilter::foreign::ForeignDrop,
    source_ports::SourcePorts,
    step::{Operation, RealServer},
    takeover::Record,
};

pub mod conntrack;
#[cfg(test)]
pub(crate) mod fake;
pub(crate) mod ipset;
pub mod link;
pub mod linux;
pub mod netfilter;
pub(crate) mod nfnetlink;
pub mod sysctl;

/// What the kernel holds that concerns Services, in one reading.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// The address families that it has.
    pub families: Vec<Family>,
    /// The node's own addresses: without loopback, link-local ones, and those on kube-ipvs0.
    pub own_addresses: Vec<IpAddr>,
    /// Every virtual server with its real servers, whoever made them.
    pub servers: Vec<(ipvs::Service, Vec<Destination>)>,
    /// What each of them has carried since it was made, or its counters were zeroed.
    pub counters: Vec<(ServiceKey, Counters)>,
    /// The addresses on kube-ipvs0.
    pub addresses: Vec<IpAddr>,
    /// The elements of our nftables tables.
    pub elements: Vec<netfilter::Element>,
    /// What upstream's kube-proxy has on record, until that has been removed.
    pub records: Vec<Record>,
    /// From which ports masqueraded flows leave.
    pub source_ports: SourcePorts,
    /// What other programs' packet filters drop that Services need.
    pub foreign_drops: Vec<ForeignDrop>,
}

/// Something happened in the kernel that we did not do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The node's own addresses may be others now.
    NodeAddresses,
    /// An address came to kube-ipvs0 or left it.
    ServiceAddress {
        /// The address.
        address: IpAddr,
        /// Whether it is there now.
        present: bool,
    },
    /// State of ours may have been lost, or notifications of it: it has to be read again.
    Unknown,
}

/// Why an operation was not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What to make of it.
    pub kind: FailureKind,
    /// The reason, in a sentence.
    pub reason: String,
}

/// What a failed operation says about the kernel's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// The kernel refused it, and nothing has changed.
    Refused,
    /// The kernel does not hold what we thought, or may have done the operation: it has to be read again.
    Unknown,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

/// The kernel, as the reconciler needs it. [`linux::Linux`] is the real one.
pub trait Kernel {
    /// Mends what all Services share, and reads everything. A reading that is not whole is an error (I3).
    fn observe(&mut self) -> impl Future<Output = Result<Observed, Failure>>;

    /// Tells clients in the cluster from others in this way from now on, while all Services go on.
    fn detect_local(&mut self, detector: LocalDetector) -> impl Future<Output = Result<(), Failure>>;

    /// Carries out operations of one driver, in their order. Returns what failed, by its index.
    fn apply(&mut self, operations: &[&Operation]) -> impl Future<Output = BTreeMap<usize, Failure>>;

    /// Reads the node's own addresses.
    fn own_addresses(&mut self) -> impl Future<Output = Result<Vec<IpAddr>, Failure>>;

    /// The connections, active and inactive, of every real server of these virtual servers. One that is not there (any
    /// more) has none listed; of others they may be.
    fn connections(
        &mut self,
        servers: &HashSet<ServiceKey>,
    ) -> impl Future<Output = Result<HashMap<RealServer, u64>, Failure>>;

    /// All that exists is programmed: has it take the place of what another kube-proxy has left, which is removed.
    fn take_over(&mut self) -> impl Future<Output = Result<(), Failure>>;

    /// Reads the UDP flows of a family that are tracked. A reading that is not whole is an error (I3).
    fn udp_flows(&mut self, family: Family) -> impl Future<Output = Result<Vec<Flow>, Failure>>;

    /// Ends tracked flows. Returns what failed, by its index.
    fn end_flows(&mut self, flows: &[Flow]) -> impl Future<Output = BTreeMap<usize, Failure>>;

    /// Waits for something that we did not do. Dropping the future loses nothing.
    fn event(&mut self) -> impl Future<Output = Event>;
}
