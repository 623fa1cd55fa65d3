//! When the kernel has a change.

use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use ipvs::{Handle, Protocol, ServiceKey};
use netlink_batch::Notifications;
use netlink_packet_core::{DecodeError, NetlinkDeserializable, NetlinkHeader};
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;

use crate::bench::Load;
use crate::bench::measure::time_of_day;
use crate::bench::trace::Record;
use crate::clock::monotonic;
use crate::error::{Context, Error, Result};
use crate::namespace::Namespace;
use crate::proxiers::Proxier;

const NETLINK_NETFILTER: isize = 12;
const NFNLGRP_NFTABLES: u32 = 7;

/// The least time between two looks.
const LEAST_PAUSE: Duration = Duration::from_millis(20);

/// When it is first looked whether a change has come: late enough to leave the processor to a quick proxier.
const FIRST_LOOK: Duration = Duration::from_millis(100);

/// Sees when a node's kernel has a change of one proxier's.
pub(crate) struct Probe {
    runtime: Runtime,
    record: Record,
    source: Source,
}

enum Source {
    /// IPVS is asked whether it has the change, and the kernel's record since when.
    Ipvs(Handle),
    /// nftables tells of each transaction.
    Nftables(Notifications),
}

impl Probe {
    pub(crate) fn new(node: &Namespace, proxier: Proxier) -> Result<Self> {
        let runtime = runtime()?;
        let source = match proxier {
            Proxier::Ours | Proxier::UpstreamIpvs | Proxier::KubeRouter => {
                Source::Ipvs(connect(node, &runtime)?)
            }
            Proxier::UpstreamNftables => {
                let subscribe = async { Notifications::subscribe(NETLINK_NETFILTER, &[NFNLGRP_NFTABLES]) };
                let subscribed = || runtime.block_on(subscribe).map_err(|error| unavailable(&error));
                Source::Nftables(node.enter(subscribed)?)
            }
        };
        Ok(Self {
            runtime,
            record: Record::begin()?,
            source,
        })
    }

    /// Forgets what has happened so far.
    pub(crate) fn forget(&mut self) -> Result<()> {
        if let Source::Nftables(notifications) = &mut self.source {
            while notifications.try_next::<Ignored>().is_some() {}
        }
        self.record.forget()
    }

    /// When the proxier was woken up for the first time after its node had something for it, which is when it could be
    /// read; if it was awake anyway, when the node had it.
    pub(crate) fn heard(&self, arrived: Duration) -> Result<Duration> {
        Ok(self.record.first_waking(arrived)?.unwrap_or(arrived))
    }

    /// Waits until the Service with this number has this endpoint, or, where the kernel tells of changes itself,
    /// until it tells of one. When that was, as of [`monotonic`]; `None` if it does not come in time.
    pub(crate) fn wait(
        &mut self,
        service: usize,
        endpoint: IpAddr,
        limit: Duration,
    ) -> Result<Option<Duration>> {
        match &mut self.source {
            Source::Ipvs(handle) => {
                let start = Instant::now();
                let key = key(service);
                let endpoint = SocketAddr::new(endpoint, Load::TARGET_PORT);
                while start.elapsed() < limit {
                    thread::sleep(pause(start.elapsed()).max(FIRST_LOOK));
                    let servers = self.runtime.block_on(handle.destinations(&key));
                    let servers = servers.map_err(|error| unavailable(&error))?;
                    if servers
                        .iter()
                        .any(|server| server.destination.socket_addr() == endpoint)
                    {
                        return self.record.last_command();
                    }
                }
                Ok(None)
            }
            Source::Nftables(notifications) => {
                let told = self
                    .runtime
                    .block_on(async { timeout(limit, notifications.next::<Ignored>()).await });
                // Also a notification that did not fit is one.
                Ok(told.is_ok().then(monotonic))
            }
        }
    }
}

/// Sees when a node's IPVS has all real servers of a load, by the kernel's record, where a proxier does not say when it is
/// done.
pub(crate) struct Commands {
    runtime: Runtime,
    record: Record,
    handle: Handle,
    load: Load,
    /// How many Services are known to be complete. To ask for all of them each time would take the node's processor.
    complete: usize,
}

impl Commands {
    pub(crate) fn watch(node: &Namespace, load: Load) -> Result<Self> {
        let runtime = runtime()?;
        let handle = connect(node, &runtime)?;
        let record = Record::begin()?;
        record.forget()?;
        Ok(Self {
            handle,
            record,
            runtime,
            load,
            complete: 0,
        })
    }

    /// The time of day of the last command, if all is there.
    pub(crate) fn completed(&mut self) -> Result<Option<f64>> {
        while self.complete < self.load.services {
            let complete = is_complete(&mut self.handle, self.load, self.complete);
            if !self.runtime.block_on(complete)? {
                return Ok(None);
            }
            self.complete += 1;
        }
        let (now, monotonic) = (SystemTime::now(), monotonic());
        let last = self.record.last_command()?;
        Ok(last.map(|last| time_of_day(now - monotonic.saturating_sub(last))))
    }
}

/// How many Services of a load have all their real servers in a node's IPVS.
pub(crate) fn complete(node: &Namespace, load: Load) -> Result<usize> {
    let runtime = runtime()?;
    let mut handle = connect(node, &runtime)?;
    runtime.block_on(async {
        let mut complete = 0;
        for service in 0..load.services {
            complete += usize::from(is_complete(&mut handle, load, service).await?);
        }
        Ok(complete)
    })
}

/// Whether the Service with this number has all its real servers.
async fn is_complete(handle: &mut Handle, load: Load, service: usize) -> Result<bool> {
    let servers = handle.find_destinations(&key(service)).await;
    let servers = servers.map_err(|error| unavailable(&error))?;
    Ok(servers.is_some_and(|servers| servers.len() == load.endpoints))
}

/// What netlink sockets are used in.
pub(crate) fn runtime() -> Result<Runtime> {
    let runtime = Builder::new_current_thread().enable_all().build();
    runtime.context(|| "start a probe".into())
}

fn connect(node: &Namespace, runtime: &Runtime) -> Result<Handle> {
    node.enter(|| {
        runtime
            .block_on(Handle::connect())
            .map_err(|error| unavailable(&error))
    })
}

/// How long to wait before looking again: a twentieth of the time so far, so that looking takes little of the node's
/// processor.
pub(crate) fn pause(elapsed: Duration) -> Duration {
    (elapsed / 20).max(LEAST_PAUSE)
}

fn key(service: usize) -> ServiceKey {
    let address = SocketAddr::new(Load::cluster_ip(service).into(), Load::PORT);
    ServiceKey::address(address, Protocol::Tcp)
}

pub(crate) fn unavailable(error: &dyn std::error::Error) -> Error {
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
