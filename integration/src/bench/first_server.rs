//! When the first virtual server is there: that of the API server's own Service, on which everything in a cluster
//! depends.

use std::net::Ipv4Addr;
use std::time::{Duration, SystemTime};

use netlink_batch::Notifications;
use netlink_packet_core::{DecodeError, NetlinkDeserializable, NetlinkHeader, NlasIterator};
use tokio::runtime::Runtime;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::apiserver::OWN_SERVICE;
use crate::bench::probe::{runtime, unavailable};
use crate::error::Result;
use crate::namespace::Namespace;

const NETLINK_ROUTE: isize = 0;
const RTNLGRP_IPV4_IFADDR: u32 = 5;

/// Listens for the address of `default/kubernetes` on a node. Ours assigns it when its virtual server has its real
/// servers: then it answers.
pub(super) struct FirstServer {
    runtime: Runtime,
    notifications: Option<Notifications>,
    at: Option<SystemTime>,
}

impl FirstServer {
    pub(super) fn listen(node: &Namespace) -> Result<Self> {
        let runtime = runtime()?;
        let notifications = node.enter(|| {
            let subscribed =
                runtime.block_on(async { Notifications::subscribe(NETLINK_ROUTE, &[RTNLGRP_IPV4_IFADDR]) });
            subscribed.map_err(|error| unavailable(&error))
        })?;
        Ok(Self {
            runtime,
            notifications: Some(notifications),
            at: None,
        })
    }

    /// Listens for so long.
    pub(super) fn wait(&mut self, time: Duration) -> Result<()> {
        let end = Instant::now() + time;
        self.runtime.block_on(async {
            while let Some(notifications) = &mut self.notifications {
                let Ok(told) = timeout_at(end, notifications.next::<Assigned>()).await else {
                    return Ok(());
                };
                let told = told.map_err(|error| unavailable(&error))?;
                if told.iter().any(|assigned| assigned.0 == Some(OWN_SERVICE)) {
                    self.at = Some(SystemTime::now());
                    // The other Services' addresses would only take time.
                    self.notifications = None;
                }
            }
            sleep_until(end).await;
            Ok(())
        })
    }

    /// When it came.
    pub(super) fn at(&self) -> Option<SystemTime> {
        self.at
    }
}

/// The IPv4 address that a link has now, if that is what a notification tells.
struct Assigned(Option<Ipv4Addr>);

impl NetlinkDeserializable for Assigned {
    type Error = DecodeError;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> std::result::Result<Self, DecodeError> {
        const RTM_NEWADDR: u16 = 20;
        const SIZE_OF_IFADDRMSG: usize = 8;
        const IFA_LOCAL: u16 = 2;
        if header.message_type != RTM_NEWADDR {
            return Ok(Self(None));
        }
        let attributes = payload.get(SIZE_OF_IFADDRMSG..).unwrap_or_default();
        for attribute in NlasIterator::new(attributes) {
            let attribute = attribute?;
            if let (IFA_LOCAL, Ok(address)) = (attribute.kind(), <[u8; 4]>::try_from(attribute.value())) {
                return Ok(Self(Some(address.into())));
            }
        }
        Ok(Self(None))
    }
}
