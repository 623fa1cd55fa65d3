//! Commands and questions as messages. Commands come by the ten thousand, so nothing is allocated on the way into the
//! datagram.

use std::net::IpAddr;

use netlink_batch::Attributes;
use netlink_packet_core::Emitable;
use netlink_packet_generic::GenlFamily;

use super::destination::*;
use super::service::*;
use super::{
    DaemonAttr, IPVS_CMD_ATTR_DAEMON, IPVS_CMD_ATTR_DEST, IPVS_CMD_ATTR_SERVICE, IpvsAttr, IpvsCmd,
    IpvsMessage, VERSION,
};
use crate::{Command, Destination, Family, Forwarding, Service, ServiceKey, Timeouts};

impl Command {
    /// What the message asks for.
    const fn cmd(&self) -> IpvsCmd {
        match self {
            Self::NewService(_) => IpvsCmd::NewService,
            Self::SetService(_) => IpvsCmd::SetService,
            Self::DelService(_) => IpvsCmd::DelService,
            Self::NewDestination(..) => IpvsCmd::NewDestination,
            Self::SetDestination(..) => IpvsCmd::SetDestination,
            Self::DelDestination(..) => IpvsCmd::DelDestination,
            Self::NewDaemon(_) => IpvsCmd::NewDaemon,
            Self::DelDaemon(_) => IpvsCmd::DelDaemon,
            Self::SetTimeouts(_) => IpvsCmd::SetConfig,
            Self::Zero(_) => IpvsCmd::Zero,
            Self::Flush => IpvsCmd::Flush,
        }
    }

    #[inline(always)]
    fn write(&self, message: &mut Attributes<'_>) {
        match self {
            Self::NewService(service) | Self::SetService(service) => {
                message.nested(IPVS_CMD_ATTR_SERVICE, |nested| write_service(nested, service));
            }
            Self::DelService(key) | Self::Zero(Some(key)) => {
                message.nested(IPVS_CMD_ATTR_SERVICE, |nested| write_key(nested, key));
            }
            Self::NewDestination(key, destination) | Self::SetDestination(key, destination) => {
                message.nested(IPVS_CMD_ATTR_SERVICE, |nested| write_key(nested, key));
                message.nested(IPVS_CMD_ATTR_DEST, |nested| {
                    write_destination(nested, destination)
                });
            }
            Self::DelDestination(key, address) => {
                message.nested(IPVS_CMD_ATTR_SERVICE, |nested| write_key(nested, key));
                message.nested(IPVS_CMD_ATTR_DEST, |nested| {
                    write_destination_key(nested, address.ip(), address.port());
                });
            }
            Self::NewDaemon(daemon) => message.nested(IPVS_CMD_ATTR_DAEMON, |nested| {
                daemon.each_attribute(|attribute| nested.attribute(&attribute));
            }),
            Self::DelDaemon(role) => message.nested(IPVS_CMD_ATTR_DAEMON, |nested| {
                nested.attribute(&DaemonAttr::State(role.number()));
            }),
            Self::SetTimeouts(Timeouts { tcp, tcp_fin, udp }) => {
                message.attribute(&IpvsAttr::TimeoutTcp(*tcp));
                message.attribute(&IpvsAttr::TimeoutTcpFin(*tcp_fin));
                message.attribute(&IpvsAttr::TimeoutUdp(*udp));
            }
            Self::Zero(None) | Self::Flush => {}
        }
    }
}

#[inline(always)]
fn write_service(attributes: &mut Attributes<'_>, service: &Service) {
    write_key(attributes, &service.key);
    attributes.text(IPVS_SVC_ATTR_SCHED_NAME, service.scheduler.as_str());
    // A struct ip_vs_flags: flags and mask.
    attributes.composed(IPVS_SVC_ATTR_FLAGS, |flags| {
        flags.bytes(&service.flags.bits().to_ne_bytes());
        flags.bytes(&u32::MAX.to_ne_bytes());
    });
    attributes.value(IPVS_SVC_ATTR_TIMEOUT, &service.timeout.to_ne_bytes());
    attributes.value(
        IPVS_SVC_ATTR_NETMASK,
        &service.netmask.to_bytes(service.key.family()),
    );
    if let Some(engine) = &service.persistence_engine {
        attributes.text(IPVS_SVC_ATTR_PE_NAME, engine.as_str());
    }
}

/// What identifies a service.
#[inline(always)]
fn write_key(attributes: &mut Attributes<'_>, key: &ServiceKey) {
    attributes.value(IPVS_SVC_ATTR_AF, &key.family().number().to_ne_bytes());
    match *key {
        ServiceKey::Address {
            address,
            protocol,
            port,
        } => {
            attributes.value(
                IPVS_SVC_ATTR_PROTOCOL,
                &u16::from(protocol.number()).to_ne_bytes(),
            );
            attributes.value(IPVS_SVC_ATTR_ADDR, &address_bytes(address));
            attributes.value(IPVS_SVC_ATTR_PORT, &port.to_be_bytes());
        }
        // To the kernel a mark of 0 means "by address", here 0.0.0.0:0. Without a mark it refuses the message.
        ServiceKey::Fwmark { mark: 0, .. } => {}
        ServiceKey::Fwmark { mark, .. } => attributes.value(IPVS_SVC_ATTR_FWMARK, &mark.to_ne_bytes()),
    }
}

#[inline(always)]
fn write_destination(attributes: &mut Attributes<'_>, destination: &Destination) {
    write_destination_key(attributes, destination.address, destination.port);
    attributes.value(
        IPVS_DEST_ATTR_FWD_METHOD,
        &destination.forwarding.number().to_ne_bytes(),
    );
    attributes.value(IPVS_DEST_ATTR_WEIGHT, &destination.weight.to_ne_bytes());
    if let Forwarding::Tunnel(tunnel) = destination.forwarding {
        let (number, port, flags) = tunnel.to_parts();
        attributes.value(IPVS_DEST_ATTR_TUN_TYPE, &[number]);
        attributes.value(IPVS_DEST_ATTR_TUN_PORT, &port.to_be_bytes());
        attributes.value(IPVS_DEST_ATTR_TUN_FLAGS, &flags.bits().to_ne_bytes());
    }
    attributes.value(
        IPVS_DEST_ATTR_U_THRESH,
        &destination.upper_threshold.to_ne_bytes(),
    );
    attributes.value(
        IPVS_DEST_ATTR_L_THRESH,
        &destination.lower_threshold.to_ne_bytes(),
    );
}

/// What identifies a destination of a service.
#[inline(always)]
fn write_destination_key(attributes: &mut Attributes<'_>, address: IpAddr, port: u16) {
    attributes.value(
        IPVS_DEST_ATTR_ADDR_FAMILY,
        &Family::of(address).number().to_ne_bytes(),
    );
    attributes.value(IPVS_DEST_ATTR_ADDR, &address_bytes(address));
    attributes.value(IPVS_DEST_ATTR_PORT, &port.to_be_bytes());
}

/// A `union nf_inet_addr`: an IPv4 address is in its first four bytes.
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

/// A command is sent as `GenlMessage::from_payload(&command)`.
impl GenlFamily for &Command {
    fn family_name() -> &'static str {
        IpvsMessage::family_name()
    }

    fn command(&self) -> u8 {
        self.cmd().into()
    }

    fn version(&self) -> u8 {
        VERSION
    }
}

impl Emitable for &Command {
    fn buffer_len(&self) -> usize {
        Attributes::length(|message| self.write(message))
    }

    fn emit(&self, buffer: &mut [u8]) {
        Attributes::write(buffer, |message| self.write(message));
    }
}

/// A question: about all that there is, or about one service.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Query {
    pub(crate) cmd: IpvsCmd,
    pub(crate) about: Option<ServiceKey>,
}

impl Query {
    fn write(&self, message: &mut Attributes<'_>) {
        if let Some(key) = &self.about {
            message.nested(IPVS_CMD_ATTR_SERVICE, |nested| write_key(nested, key));
        }
    }
}

impl GenlFamily for Query {
    fn family_name() -> &'static str {
        IpvsMessage::family_name()
    }

    fn command(&self) -> u8 {
        self.cmd.into()
    }

    fn version(&self) -> u8 {
        VERSION
    }
}

impl Emitable for Query {
    fn buffer_len(&self) -> usize {
        Attributes::length(|message| self.write(message))
    }

    fn emit(&self, buffer: &mut [u8]) {
        Attributes::write(buffer, |message| self.write(message));
    }
}
