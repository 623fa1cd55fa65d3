//! Between the attributes and the types that say what they mean.

use std::borrow::Borrow;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_core::{DecodeError, NlasIterator, Parseable, ParseableParametrized};
use netlink_packet_generic::GenlHeader;

use super::{DaemonAttr, DestinationAttr, IPVS_CMD_ATTR_SERVICE, IpvsAttr, IpvsMessage, ServiceAttr};
use crate::{
    DaemonRole, Destination, DestinationEntry, Family, Forwarding, Info, Netmask, Protocol, Service,
    ServiceEntry, ServiceFlags, ServiceKey, SyncDaemon, Timeouts, TunnelFlags, TunnelType, Version,
};

impl IpvsMessage {
    /// The service that an answer to [`IpvsCmd::GetService`] tells of, unless it is of a protocol that IPVS does
    /// not schedule.
    pub(crate) fn service_entry(&self) -> Result<Option<ServiceEntry>, DecodeError> {
        let attributes = self.attributes.iter().find_map(|attribute| match attribute {
            IpvsAttr::Service(attributes) => Some(attributes.as_slice()),
            _ => None,
        });
        service_entry(
            attributes
                .ok_or("IPVS_CMD_ATTR_SERVICE is missing")?
                .iter()
                .map(Ok),
        )
    }

    /// The destination that an answer to [`IpvsCmd::GetDestination`] tells of. Old kernels leave it to the service
    /// of which family it is.
    pub(crate) fn destination_entry(&self, service: Family) -> Result<DestinationEntry, DecodeError> {
        let attributes = self.attributes.iter().find_map(|attribute| match attribute {
            IpvsAttr::Destination(attributes) => Some(attributes.as_slice()),
            _ => None,
        });
        destination_entry(attributes.ok_or("IPVS_CMD_ATTR_DEST is missing")?, service)
    }

    /// The daemon that an answer to [`IpvsCmd::GetDaemon`] tells of.
    pub(crate) fn sync_daemon(&self) -> Result<SyncDaemon, DecodeError> {
        let attributes = self.attributes.iter().find_map(|attribute| match attribute {
            IpvsAttr::Daemon(attributes) => Some(attributes.as_slice()),
            _ => None,
        });
        sync_daemon(attributes.ok_or("IPVS_CMD_ATTR_DAEMON is missing")?)
    }

    /// The answer to [`IpvsCmd::GetConfig`]. A protocol that the kernel was built without has no timeout: 0.
    pub(crate) fn timeouts(&self) -> Timeouts {
        let mut timeouts = Timeouts::default();
        for attribute in &self.attributes {
            match *attribute {
                IpvsAttr::TimeoutTcp(seconds) => timeouts.tcp = seconds,
                IpvsAttr::TimeoutTcpFin(seconds) => timeouts.tcp_fin = seconds,
                IpvsAttr::TimeoutUdp(seconds) => timeouts.udp = seconds,
                _ => {}
            }
        }
        timeouts
    }

    /// The answer to [`IpvsCmd::GetInfo`].
    pub(crate) fn info(&self) -> Result<Info, DecodeError> {
        let mut version = None;
        let mut size = None;
        for attribute in &self.attributes {
            match *attribute {
                IpvsAttr::InfoVersion(value) => version = Some(Version(value)),
                IpvsAttr::InfoConnTabSize(value) => size = Some(value),
                _ => {}
            }
        }
        Ok(Info {
            version: version.ok_or("IPVS_INFO_ATTR_VERSION is missing")?,
            connection_table_size: size.ok_or("IPVS_INFO_ATTR_CONN_TAB_SIZE is missing")?,
        })
    }
}

/// A service in a listing, which is read without a vector of its attributes: thousands are listed. `None` is one of a
/// protocol that IPVS does not schedule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedService(pub Option<ServiceEntry>);

impl ParseableParametrized<[u8], GenlHeader> for ListedService {
    fn parse_with_param(buffer: &[u8], _: GenlHeader) -> Result<Self, DecodeError> {
        for attribute in NlasIterator::new(buffer) {
            let attribute = attribute?;
            if attribute.kind() == IPVS_CMD_ATTR_SERVICE {
                let attributes = NlasIterator::new(attribute.value());
                let attributes = attributes.map(|attribute| ServiceAttr::parse(&attribute?));
                return service_entry(attributes).map(Self);
            }
        }
        Err("IPVS_CMD_ATTR_SERVICE is missing".into())
    }
}

impl SyncDaemon {
    /// Hands over each attribute.
    pub(super) fn each_attribute(&self, mut add: impl FnMut(DaemonAttr)) {
        add(DaemonAttr::State(self.role.number()));
        // The kernel refuses more than 15 bytes: enough is sent to be refused.
        add(DaemonAttr::McastIfn(self.interface.chars().take(16).collect()));
        add(DaemonAttr::SyncId(self.sync_id));
        let group = self.group.map(|group| match group {
            IpAddr::V4(group) => DaemonAttr::McastGroup(group),
            IpAddr::V6(group) => DaemonAttr::McastGroup6(group),
        });
        let optional = [
            self.max_length.map(DaemonAttr::SyncMaxlen),
            group,
            self.port.map(DaemonAttr::McastPort),
            self.ttl.map(DaemonAttr::McastTtl),
        ];
        optional.into_iter().flatten().for_each(add);
    }
}

fn service_entry<A: Borrow<ServiceAttr>>(
    attributes: impl Iterator<Item = Result<A, DecodeError>>,
) -> Result<Option<ServiceEntry>, DecodeError> {
    let mut family = None;
    let mut protocol = None;
    let mut address = [0; 16];
    let mut port = 0;
    let mut fwmark = None;
    let mut scheduler = None;
    let mut flags = ServiceFlags::default();
    let mut timeout = 0;
    let mut netmask = [0; 4];
    let mut persistence_engine = None;
    let mut stats = None;
    let mut stats64 = None;
    for attribute in attributes {
        match attribute?.borrow() {
            ServiceAttr::Family(number) => family = Some(known_family(*number)?),
            ServiceAttr::Protocol(number) => protocol = Some(*number),
            ServiceAttr::Address(bytes) => address = *bytes,
            ServiceAttr::Port(number) => port = *number,
            ServiceAttr::Fwmark(mark) => fwmark = Some(*mark),
            ServiceAttr::SchedName(name) => scheduler = Some(*name),
            ServiceAttr::Flags { flags: bits, .. } => {
                flags = ServiceFlags::from_bits(*bits).without(ServiceFlags::HASHED);
            }
            ServiceAttr::Timeout(seconds) => timeout = *seconds,
            ServiceAttr::Netmask(bytes) => netmask = *bytes,
            ServiceAttr::PeName(name) => persistence_engine = Some(*name),
            ServiceAttr::Stats(counters) => stats = Some(*counters),
            ServiceAttr::Stats64(counters) => stats64 = Some(*counters),
            ServiceAttr::Other(_) => {}
        }
    }
    let family = family.ok_or("IPVS_SVC_ATTR_AF is missing")?;
    let key = match fwmark {
        Some(mark) => ServiceKey::Fwmark { family, mark },
        None => {
            let number = protocol.ok_or("IPVS_SVC_ATTR_PROTOCOL is missing")?;
            let Some(protocol) = Protocol::from_number(number) else {
                return Ok(None);
            };
            ServiceKey::Address {
                address: ip_addr(address, family),
                protocol,
                port,
            }
        }
    };
    Ok(Some(ServiceEntry {
        service: Service {
            key,
            scheduler: scheduler.ok_or("IPVS_SVC_ATTR_SCHED_NAME is missing")?,
            flags,
            timeout,
            netmask: Netmask::from_bytes(netmask, family),
            persistence_engine,
        },
        stats: stats64.or(stats).unwrap_or_default(),
    }))
}

fn destination_entry(
    attributes: &[DestinationAttr],
    service: Family,
) -> Result<DestinationEntry, DecodeError> {
    let mut family = service;
    let mut address = None;
    let mut port = None;
    let mut method = None;
    let mut tunnel = (0, 0, TunnelFlags::NONE);
    let mut weight = 0;
    let mut upper_threshold = 0;
    let mut lower_threshold = 0;
    let mut active_connections = 0;
    let mut inactive_connections = 0;
    let mut persistent_connections = 0;
    let mut stats = None;
    let mut stats64 = None;
    for attribute in attributes {
        match attribute {
            DestinationAttr::Address(bytes) => address = Some(*bytes),
            DestinationAttr::Port(number) => port = Some(*number),
            DestinationAttr::FwdMethod(number) => method = Some(*number),
            DestinationAttr::Weight(number) => weight = *number,
            DestinationAttr::UpperThreshold(number) => upper_threshold = *number,
            DestinationAttr::LowerThreshold(number) => lower_threshold = *number,
            DestinationAttr::ActiveConns(number) => active_connections = *number,
            DestinationAttr::InactConns(number) => inactive_connections = *number,
            DestinationAttr::PersistConns(number) => persistent_connections = *number,
            DestinationAttr::Stats(counters) => stats = Some(*counters),
            DestinationAttr::Family(number) => family = known_family(*number)?,
            DestinationAttr::Stats64(counters) => stats64 = Some(*counters),
            DestinationAttr::TunType(number) => tunnel.0 = *number,
            DestinationAttr::TunPort(number) => tunnel.1 = *number,
            DestinationAttr::TunFlags(bits) => tunnel.2 = TunnelFlags::from_bits(*bits),
            DestinationAttr::Other(_) => {}
        }
    }
    let tunnel = TunnelType::from_parts(tunnel.0, tunnel.1, tunnel.2);
    Ok(DestinationEntry {
        destination: Destination {
            address: ip_addr(address.ok_or("IPVS_DEST_ATTR_ADDR is missing")?, family),
            port: port.ok_or("IPVS_DEST_ATTR_PORT is missing")?,
            forwarding: Forwarding::from_number(
                method.ok_or("IPVS_DEST_ATTR_FWD_METHOD is missing")?,
                tunnel,
            ),
            weight,
            upper_threshold,
            lower_threshold,
        },
        active_connections,
        inactive_connections,
        persistent_connections,
        stats: stats64.or(stats).unwrap_or_default(),
    })
}

fn sync_daemon(attributes: &[DaemonAttr]) -> Result<SyncDaemon, DecodeError> {
    let mut role = None;
    let mut interface = None;
    let mut sync_id = 0;
    let mut max_length = None;
    let mut group = None;
    let mut port = None;
    let mut ttl = None;
    for attribute in attributes {
        match attribute {
            DaemonAttr::State(number) => role = DaemonRole::from_number(*number),
            DaemonAttr::McastIfn(name) => interface = Some(name.clone()),
            DaemonAttr::SyncId(number) => sync_id = *number,
            DaemonAttr::SyncMaxlen(bytes) => max_length = Some(*bytes),
            DaemonAttr::McastGroup(address) => group = Some((*address).into()),
            DaemonAttr::McastGroup6(address) => group = Some((*address).into()),
            DaemonAttr::McastPort(number) => port = Some(*number),
            DaemonAttr::McastTtl(hops) => ttl = Some(*hops),
            DaemonAttr::Other(_) => {}
        }
    }
    Ok(SyncDaemon {
        role: role.ok_or("IPVS_DAEMON_ATTR_STATE is neither master nor backup")?,
        interface: interface.ok_or("IPVS_DAEMON_ATTR_MCAST_IFN is missing")?,
        sync_id,
        max_length,
        group,
        port,
        ttl,
    })
}

fn known_family(number: u16) -> Result<Family, DecodeError> {
    Family::from_number(number).ok_or_else(|| format!("address family {number} is unknown").into())
}

fn ip_addr(bytes: [u8; 16], family: Family) -> IpAddr {
    match family {
        Family::Inet => {
            let [a, b, c, d, ..] = bytes;
            Ipv4Addr::new(a, b, c, d).into()
        }
        Family::Inet6 => Ipv6Addr::from(bytes).into(),
    }
}
