//! The kernel's IP Virtual Server (IPVS, LVS) over generic netlink.
//!
//! IPVS is the layer 4 load balancer in Linux: a *virtual service* takes the connections to an address and port, or
//! those that carry a firewall mark, and spreads them over its *destinations*, the real servers. This crate speaks to
//! it as `ipvsadm` does, without `ipvsadm`, and all of it: services, destinations, sync daemons, timeouts and
//! counters, IPv4 and IPv6, TCP, UDP and SCTP, every scheduler, forwarding method and tunnel type.
//!
//! - [`Handle`] executes [`Command`]s, thousands in one batch with a result for each, and dumps what there is.
//! - [`Handle::summary`] reads the weights and connection counts of all destinations in a fraction of the time, by
//!   [`sockopt`] and [`proc`](mod@proc).
//! - [`text`] reads and writes the forms of `ipvsadm`.
//! - [`wire`] has the messages, for those who bring a netlink socket of their own.
//!
//! ```no_run
//! use ipvs::{Command, Destination, Handle, Protocol, Scheduler, Service, ServiceKey};
//!
//! # async fn balance() -> Result<(), Box<dyn std::error::Error>> {
//! let key = ServiceKey::address("10.0.0.1:80".parse()?, Protocol::Tcp);
//! let commands = [
//!     Command::NewService(Service::new(key, Scheduler::ROUND_ROBIN)),
//!     Command::NewDestination(key, Destination::new("10.1.0.1:8080".parse()?)),
//!     Command::NewDestination(key, Destination::new("10.1.0.2:8080".parse()?)),
//! ];
//! let mut ipvs = Handle::connect().await?;
//! for (index, error) in ipvs.batch(&commands).await {
//!     eprintln!("{}: {error}", commands[index]);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # What it takes
//!
//! A kernel with IPVS: the kernel itself loads the module `ip_vs` when a [`Handle`] is connected, and the modules of
//! schedulers and persistence engines when a service first asks for one. And the capability `CAP_NET_ADMIN` in the
//! initial user namespace. The network namespace is that of the thread that connects.
//!
//! # Errors
//!
//! The kernel has few errnos and means a different thing by each with each command; [`Error`] says which. Three of its
//! predicates matter to who reconciles: [`Error::is_not_found`], [`Error::is_already_exists`], and
//! [`Error::is_outcome_unknown`], after which only a look at the kernel's state tells whether the command was
//! executed.

mod command;
mod daemon;
mod destination;
mod error;
mod family;
mod handle;
mod name;
pub mod proc;
mod service;
pub mod sockopt;
mod state;
#[cfg(test)]
mod testing;
pub mod text;
pub mod wire;

pub use command::Command;
pub use daemon::{DaemonRole, SyncDaemon};
pub use destination::{
    Destination, DestinationEntry, DestinationSummary, Forwarding, ForwardingKind, TunnelFlags, TunnelType,
};
pub use error::Error;
pub use family::{Family, Protocol, UnknownProtocol};
pub use handle::Handle;
pub use name::{InvalidName, PersistenceEngine, Scheduler};
pub use service::{Netmask, Service, ServiceEntry, ServiceFlags, ServiceKey};
pub use state::{Info, Stats, Timeouts, Version, VirtualService};
