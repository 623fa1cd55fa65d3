use std::net::SocketAddr;

use crate::{DaemonRole, Destination, Service, ServiceKey, SyncDaemon, Timeouts};

/// A change of the kernel's IPVS state. Its `Display` is the `ipvsadm` command line that does the same, and
/// `FromStr` reads one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Command {
    /// Adds a service.
    NewService(Service),
    /// Changes all of a service but its key. Its destinations and connections stay.
    SetService(Service),
    /// Deletes a service and its destinations.
    DelService(ServiceKey),
    /// Adds a destination to a service.
    NewDestination(ServiceKey, Destination),
    /// Changes all of a destination but its address and port. Its connections stay.
    SetDestination(ServiceKey, Destination),
    /// Deletes a destination from a service. What happens to its connections is the sysctl
    /// `net.ipv4.vs.expire_nodest_conn`'s to say.
    DelDestination(ServiceKey, SocketAddr),
    /// Starts a sync daemon.
    NewDaemon(SyncDaemon),
    /// Stops a sync daemon.
    DelDaemon(DaemonRole),
    /// Sets those timeouts that are not 0.
    SetTimeouts(Timeouts),
    /// Zeroes the counters of one service and its destinations, or of all.
    Zero(Option<ServiceKey>),
    /// Deletes all services, whoever made them.
    Flush,
}
