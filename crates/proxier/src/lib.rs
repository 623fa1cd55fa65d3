//! Kubernetes Services as IPVS virtual servers.
//!
//! Data flows one way, and each arrow is a type that can be printed and tested alone:
//!
//! ```text
//! Change (Service, EndpointSlice, Node)
//!   -> store    compact copies of what matters
//!   -> plan     pure: one Service, its endpoints and the node's facts -> the kernel objects it wants
//!   -> wanted   the plans of all Services merged: who claims what, and who wins
//!   -> diff     pure: wanted against applied -> an ordered list of operations
//!   -> kernel   drivers: ipvs, netfilter, link, sysctl; batches; a result for each operation
//!   -> applied  what the kernel is known to hold, updated by results only
//! ```
//!
//! Whoever reads [`plan`] learns what a Service means; whoever reads a driver in [`kernel`] learns what the kernel
//! wants. An agent that has its own source of Services sends [`model::Change`]s to a [`Reconciler`], which tells of
//! its work in [`report::Report`]s; one that only wants to know what would be programmed uses a [`Planner`].

pub mod accounting;
mod applied;
pub mod cleanup;
pub mod config;
pub mod diff;
mod drain;
mod endpoints;
pub mod explain;
mod flows;
pub mod kernel;
mod marks;
pub mod model;
pub mod plan;
pub mod planner;
#[cfg(test)]
mod properties;
pub mod reconciler;
pub mod report;
pub mod sorted;
pub mod source_ports;
pub mod step;
pub mod store;
pub mod takeover;
#[cfg(test)]
mod testing;
pub mod wanted;

pub use applied::Applied;
pub use config::Config;
pub use planner::Planner;
pub use reconciler::Reconciler;
