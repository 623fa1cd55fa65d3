//! The kernel's IP Virtual Server over generic netlink.

mod command;
mod daemon;
mod destination;
mod error;
mod family;
mod handle;
mod name;
pub mod proc;
mod service;
mod state;
pub mod text;
pub mod wire;

pub use command::Command;
pub use daemon::{DaemonRole, SyncDaemon};
pub use destination::{Destination, DestinationEntry, Forwarding, TunnelFlags, TunnelType};
pub use error::Error;
pub use family::{Family, Protocol, UnknownProtocol};
pub use handle::Handle;
pub use name::{InvalidName, PersistenceEngine, Scheduler};
pub use service::{Netmask, Service, ServiceEntry, ServiceFlags, ServiceKey};
pub use state::{Info, Stats, Timeouts, Version, VirtualService};
