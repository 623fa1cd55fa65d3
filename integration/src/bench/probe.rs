//! When the kernel has a change.

use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use ipvs::{Handle, Protocol, ServiceKey};
use netlink_batch::Notifications;
use netlink_packet_core::{DecodeError, NetlinkDeserializable, NetlinkHeader};
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;

use crate::bench::Load;
use crate::error::{Context, Error, Result};
use crate::namespace::Namespace;
use crate::proxiers::Proxier;

const NETLINK_NETFILTER: isize = 12;
const NFNLGRP_NFTABLES: u32 = 7;

/// The least time between two looks.
const FIRST_PAUSE: Duration = Duration::from_micros(500);

/// Looks at a node's kernel for one proxier's changes.
pub(crate) struct Probe {
    runtime: Runtime,
    source: Source,
}

enum Source {
    /// IPVS says nothing by itself and is asked.
    Ipvs(Handle),
    /// nftables tells of each transaction.
    Nftables(Notifications),
}

impl Probe {
    pub(crate) fn new(node: &Namespace, proxier: Proxier) -> Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = runtime.context(|| "start a probe".into())?;
        let source = node.enter(|| {
            let connected = runtime.block_on(async {
                Ok(match proxier {
                    Proxier::Ours | Proxier::UpstreamIpvs => Source::Ipvs(Handle::connect().await?),
                    Proxier::UpstreamNftables => Source::Nftables(
                        Notifications::subscribe(NETLINK_NETFILTER, &[NFNLGRP_NFTABLES])
                            .map_err(ipvs::Error::from)?,
                    ),
                })
            });
            connected.map_err(|error: ipvs::Error| unavailable(&error))
        })?;
        Ok(Self { runtime, source })
    }

    /// Forgets what has happened so far.
    pub(crate) fn forget(&mut self) {
        if let Source::Nftables(notifications) = &mut self.source {
            while notifications.try_next::<Ignored>().is_some() {}
        }
    }

    /// Waits until the Service with this number has this endpoint, or, where the kernel tells of changes itself,
    /// until it tells of one. `None` if it does not come in time.
    pub(crate) fn wait(
        &mut self,
        service: usize,
        endpoint: IpAddr,
        limit: Duration,
    ) -> Result<Option<Instant>> {
        let start = Instant::now();
        match &mut self.source {
            Source::Ipvs(handle) => {
                let key = key(service);
                let endpoint = SocketAddr::new(endpoint, Load::TARGET_PORT);
                while start.elapsed() < limit {
                    let servers = self.runtime.block_on(handle.destinations(&key));
                    let servers = servers.map_err(|error| unavailable(&error))?;
                    if servers
                        .iter()
                        .any(|server| server.destination.socket_addr() == endpoint)
                    {
                        return Ok(Some(Instant::now()));
                    }
                    thread::sleep(pause(start.elapsed()));
                }
                Ok(None)
            }
            Source::Nftables(notifications) => {
                let told = self
                    .runtime
                    .block_on(async { timeout(limit, notifications.next::<Ignored>()).await });
                // Also a notification that did not fit is one.
                Ok(told.is_ok().then(Instant::now))
            }
        }
    }

    /// How many of the first `services` Services have `endpoints` real servers each.
    pub(crate) fn complete(&mut self, load: Load) -> Result<usize> {
        let Source::Ipvs(handle) = &mut self.source else {
            return Ok(load.services);
        };
        let complete = self.runtime.block_on(async {
            let mut complete = 0;
            for service in 0..load.services {
                match handle.destinations(&key(service)).await {
                    Ok(servers) => complete += usize::from(servers.len() == load.endpoints),
                    Err(ipvs::Error::NoSuchService(_)) => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(complete)
        });
        complete.map_err(|error| unavailable(&error))
    }
}

/// How long to wait before looking again: a twentieth of the time so far, so that looking takes little of the node's
/// processor, and a measured time is right to five percent.
pub(crate) fn pause(elapsed: Duration) -> Duration {
    (elapsed / 20).max(FIRST_PAUSE)
}

fn key(service: usize) -> ServiceKey {
    let address = SocketAddr::new(Load::cluster_ip(service).into(), Load::PORT);
    ServiceKey::address(address, Protocol::Tcp)
}

fn unavailable(error: &dyn std::error::Error) -> Error {
    Error::Unavailable(format!("cannot look at the node's kernel: {error}"))
}

/// A notification of which only its coming counts.
struct Ignored;

impl NetlinkDeserializable for Ignored {
    type Error = DecodeError;

    fn deserialize(_: &NetlinkHeader, _: &[u8]) -> std::result::Result<Self, DecodeError> {
        Ok(Self)
    }
}
