//! Between the attributes and the types that say what they mean.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_core::DecodeError;

use super::{DaemonAttr, DestinationAttr, IpvsAttr, IpvsCmd, IpvsMessage, ServiceAttr, StatsAttr};
use crate::{
    Command, DaemonRole, Destination, DestinationEntry, Family, Forwarding, Info, Netmask, Protocol, Service,
    ServiceEntry, ServiceFlags, ServiceKey, Stats, SyncDaemon, Timeouts, TunnelFlags, TunnelType, Version,
};

impl From<&Command> for IpvsMessage {
    fn from(command: &Command) -> Self {
        use IpvsAttr as Attr;
        let (cmd, attributes) = match command {
            Command::NewService(service) => (IpvsCmd::NewService, vec![Attr::Service(service.attributes())]),
            Command::SetService(service) => (IpvsCmd::SetService, vec![Attr::Service(service.attributes())]),
            Command::DelService(key) => (IpvsCmd::DelService, vec![Attr::Service(key.attributes())]),
            Command::NewDestination(key, destination) => (
                IpvsCmd::NewDestination,
                vec![
                    Attr::Service(key.attributes()),
                    Attr::Destination(destination.attributes()),
                ],
            ),
            Command::SetDestination(key, destination) => (
                IpvsCmd::SetDestination,
                vec![
                    Attr::Service(key.attributes()),
                    Attr::Destination(destination.attributes()),
                ],
            ),
            Command::DelDestination(key, address) => (
                IpvsCmd::DelDestination,
                vec![
                    Attr::Service(key.attributes()),
                    Attr::Destination(destination_key(address.ip(), address.port())),
                ],
            ),
            Command::NewDaemon(daemon) => (IpvsCmd::NewDaemon, vec![Attr::Daemon(daemon.attributes())]),
            Command::DelDaemon(role) => (
                IpvsCmd::DelDaemon,
                vec![Attr::Daemon(vec![DaemonAttr::State(role.number())])],
            ),
            Command::SetTimeouts(Timeouts { tcp, tcp_fin, udp }) => (
                IpvsCmd::SetConfig,
                vec![
                    Attr::TimeoutTcp(*tcp),
                    Attr::TimeoutTcpFin(*tcp_fin),
                    Attr::TimeoutUdp(*udp),
                ],
            ),
            Command::Zero(None) => (IpvsCmd::Zero, vec![]),
            Command::Zero(Some(key)) => (IpvsCmd::Zero, vec![Attr::Service(key.attributes())]),
            Command::Flush => (IpvsCmd::Flush, vec![]),
        };
        Self { cmd, attributes }
    }
}

impl IpvsMessage {
    /// A message that names one service.
    pub(crate) fn about(cmd: IpvsCmd, key: &ServiceKey) -> Self {
        Self {
            cmd,
            attributes: vec![IpvsAttr::Service(key.attributes())],
        }
    }

    /// The service that an answer to [`IpvsCmd::GetService`] tells of, unless it is of a protocol that IPVS does
    /// not schedule.
    pub(crate) fn service_entry(&self) -> Result<Option<ServiceEntry>, DecodeError> {
        let attributes = self.attributes.iter().find_map(|attribute| match attribute {
            IpvsAttr::Service(attributes) => Some(attributes.as_slice()),
            _ => None,
        });
        service_entry(attributes.ok_or("IPVS_CMD_ATTR_SERVICE is missing")?)
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

impl ServiceKey {
    fn attributes(&self) -> Vec<ServiceAttr> {
        let mut attributes = Vec::with_capacity(9);
        attributes.push(ServiceAttr::Family(self.family().number()));
        match *self {
            Self::Address {
                address,
                protocol,
                port,
            } => attributes.extend([
                ServiceAttr::Protocol(protocol.number().into()),
                ServiceAttr::Address(address_bytes(address)),
                ServiceAttr::Port(port),
            ]),
            // To the kernel a mark of 0 means "by address", here 0.0.0.0:0. Without a mark it refuses the message.
            Self::Fwmark { mark: 0, .. } => {}
            Self::Fwmark { mark, .. } => attributes.push(ServiceAttr::Fwmark(mark)),
        }
        attributes
    }
}

impl Service {
    fn attributes(&self) -> Vec<ServiceAttr> {
        let mut attributes = self.key.attributes();
        attributes.extend([
            ServiceAttr::SchedName(self.scheduler.to_string()),
            ServiceAttr::Flags {
                flags: self.flags.bits(),
                mask: u32::MAX,
            },
            ServiceAttr::Timeout(self.timeout),
            ServiceAttr::Netmask(self.netmask.to_bytes(self.key.family())),
        ]);
        attributes.extend(
            self.persistence_engine
                .map(|engine| ServiceAttr::PeName(engine.to_string())),
        );
        attributes
    }
}

fn destination_key(address: IpAddr, port: u16) -> Vec<DestinationAttr> {
    let mut attributes = Vec::with_capacity(10);
    attributes.extend([
        DestinationAttr::Family(Family::of(address).number()),
        DestinationAttr::Address(address_bytes(address)),
        DestinationAttr::Port(port),
    ]);
    attributes
}

impl Destination {
    fn attributes(&self) -> Vec<DestinationAttr> {
        let mut attributes = destination_key(self.address, self.port);
        attributes.extend([
            DestinationAttr::FwdMethod(self.forwarding.number()),
            DestinationAttr::Weight(self.weight),
        ]);
        if let Forwarding::Tunnel(tunnel) = self.forwarding {
            let (number, port, flags) = tunnel.to_parts();
            attributes.extend([
                DestinationAttr::TunType(number),
                DestinationAttr::TunPort(port),
                DestinationAttr::TunFlags(flags.bits()),
            ]);
        }
        attributes.extend([
            DestinationAttr::UpperThreshold(self.upper_threshold),
            DestinationAttr::LowerThreshold(self.lower_threshold),
        ]);
        attributes
    }
}

impl SyncDaemon {
    fn attributes(&self) -> Vec<DaemonAttr> {
        let mut attributes = vec![
            DaemonAttr::State(self.role.number()),
            // The kernel refuses more than 15 bytes: enough is sent to be refused.
            DaemonAttr::McastIfn(self.interface.chars().take(16).collect()),
            DaemonAttr::SyncId(self.sync_id),
        ];
        attributes.extend(self.max_length.map(DaemonAttr::SyncMaxlen));
        attributes.extend(self.group.map(|group| match group {
            IpAddr::V4(group) => DaemonAttr::McastGroup(group),
            IpAddr::V6(group) => DaemonAttr::McastGroup6(group),
        }));
        attributes.extend(self.port.map(DaemonAttr::McastPort));
        attributes.extend(self.ttl.map(DaemonAttr::McastTtl));
        attributes
    }
}

fn service_entry(attributes: &[ServiceAttr]) -> Result<Option<ServiceEntry>, DecodeError> {
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
        match attribute {
            ServiceAttr::Family(number) => family = Some(known_family(*number)?),
            ServiceAttr::Protocol(number) => protocol = Some(*number),
            ServiceAttr::Address(bytes) => address = *bytes,
            ServiceAttr::Port(number) => port = *number,
            ServiceAttr::Fwmark(mark) => fwmark = Some(*mark),
            ServiceAttr::SchedName(name) => {
                scheduler = Some(name.parse().map_err(|error| format!("{error}"))?);
            }
            ServiceAttr::Flags { flags: bits, .. } => {
                flags = ServiceFlags::from_bits(*bits).without(ServiceFlags::HASHED);
            }
            ServiceAttr::Timeout(seconds) => timeout = *seconds,
            ServiceAttr::Netmask(bytes) => netmask = *bytes,
            ServiceAttr::PeName(name) => {
                persistence_engine = Some(name.parse().map_err(|error| format!("{error}"))?);
            }
            ServiceAttr::Stats(attributes) => stats = Some(attributes),
            ServiceAttr::Stats64(attributes) => stats64 = Some(attributes),
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
        stats: to_stats(stats64.or(stats)),
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
            DestinationAttr::Stats(attributes) => stats = Some(attributes),
            DestinationAttr::Family(number) => family = known_family(*number)?,
            DestinationAttr::Stats64(attributes) => stats64 = Some(attributes),
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
        stats: to_stats(stats64.or(stats)),
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

fn to_stats(attributes: Option<&Vec<StatsAttr>>) -> Stats {
    let mut stats = Stats::default();
    for attribute in attributes.into_iter().flatten() {
        match *attribute {
            StatsAttr::Conns(number) => stats.connections = number,
            StatsAttr::InPkts(number) => stats.in_packets = number,
            StatsAttr::OutPkts(number) => stats.out_packets = number,
            StatsAttr::InBytes(number) => stats.in_bytes = number,
            StatsAttr::OutBytes(number) => stats.out_bytes = number,
            StatsAttr::Cps(number) => stats.connections_per_second = number,
            StatsAttr::InPps(number) => stats.in_packets_per_second = number,
            StatsAttr::OutPps(number) => stats.out_packets_per_second = number,
            StatsAttr::InBps(number) => stats.in_bytes_per_second = number,
            StatsAttr::OutBps(number) => stats.out_bytes_per_second = number,
            StatsAttr::Other(_) => {}
        }
    }
    stats
}

fn known_family(number: u16) -> Result<Family, DecodeError> {
    Family::from_number(number).ok_or_else(|| format!("address family {number} is unknown").into())
}

fn address_bytes(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => {
            let mut bytes = [0; 16];
            let (ipv4, _) = bytes.split_at_mut(4);
            ipv4.copy_from_slice(&address.octets());
            bytes
        }
        IpAddr::V6(address) => address.octets(),
    }
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
