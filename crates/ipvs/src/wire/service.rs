use netlink_batch::Attributes;
use netlink_packet_core::{
    DecodeError, DefaultNla, NLA_F_NESTED, Nla, NlaBuffer, Parseable, parse_u16, parse_u16_be, parse_u32,
};

use super::{parse_address, parse_name, put, put_string};
use crate::{PersistenceEngine, Scheduler, Stats};

pub(super) const IPVS_SVC_ATTR_AF: u16 = 1;
pub(super) const IPVS_SVC_ATTR_PROTOCOL: u16 = 2;
pub(super) const IPVS_SVC_ATTR_ADDR: u16 = 3;
pub(super) const IPVS_SVC_ATTR_PORT: u16 = 4;
pub(super) const IPVS_SVC_ATTR_FWMARK: u16 = 5;
pub(super) const IPVS_SVC_ATTR_SCHED_NAME: u16 = 6;
pub(super) const IPVS_SVC_ATTR_FLAGS: u16 = 7;
pub(super) const IPVS_SVC_ATTR_TIMEOUT: u16 = 8;
pub(super) const IPVS_SVC_ATTR_NETMASK: u16 = 9;
pub(super) const IPVS_SVC_ATTR_STATS: u16 = 10;
pub(super) const IPVS_SVC_ATTR_PE_NAME: u16 = 11;
pub(super) const IPVS_SVC_ATTR_STATS64: u16 = 12;

/// What a service is made of (`IPVS_SVC_ATTR_*`).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ServiceAttr {
    /// `AF_INET` or `AF_INET6`.
    Family(u16),
    /// `IPPROTO_*`.
    Protocol(u16),
    /// The virtual address: 16 bytes, of which IPv4 uses the first four.
    Address([u8; 16]),
    /// The virtual port; in network byte order on the wire.
    Port(u16),
    /// The mark of the packets; in host byte order on the wire.
    Fwmark(u32),
    /// The scheduler's name.
    SchedName(Scheduler),
    /// A `struct ip_vs_flags`: of the bits in `mask`, those in `flags` are set and the others cleared.
    Flags {
        /// The bits.
        flags: u32,
        /// Which bits are meant.
        mask: u32,
    },
    /// The persistence timeout in seconds.
    Timeout(u32),
    /// The mask of persistence: an IPv4 mask in network byte order, an IPv6 prefix length in the host's.
    Netmask([u8; 4]),
    /// Counters, of which some have 32 bits.
    Stats(Stats),
    /// The persistence engine's name.
    PeName(PersistenceEngine),
    /// Counters of 64 bits.
    Stats64(Stats),
    /// An attribute that this version does not know, or a name that is none.
    Other(DefaultNla),
}

impl Nla for ServiceAttr {
    fn value_len(&self) -> usize {
        match self {
            Self::Family(_) | Self::Protocol(_) | Self::Port(_) => 2,
            Self::Fwmark(_) | Self::Timeout(_) | Self::Netmask(_) => 4,
            Self::Flags { .. } => 8,
            Self::Address(_) => 16,
            Self::SchedName(name) => name.as_str().len() + 1,
            Self::PeName(name) => name.as_str().len() + 1,
            Self::Stats(stats) | Self::Stats64(stats) => Attributes::length(|nested| stats.write(nested)),
            Self::Other(other) => other.value_len(),
        }
    }

    fn kind(&self) -> u16 {
        match self {
            Self::Family(_) => IPVS_SVC_ATTR_AF,
            Self::Protocol(_) => IPVS_SVC_ATTR_PROTOCOL,
            Self::Address(_) => IPVS_SVC_ATTR_ADDR,
            Self::Port(_) => IPVS_SVC_ATTR_PORT,
            Self::Fwmark(_) => IPVS_SVC_ATTR_FWMARK,
            Self::SchedName(_) => IPVS_SVC_ATTR_SCHED_NAME,
            Self::Flags { .. } => IPVS_SVC_ATTR_FLAGS,
            Self::Timeout(_) => IPVS_SVC_ATTR_TIMEOUT,
            Self::Netmask(_) => IPVS_SVC_ATTR_NETMASK,
            Self::Stats(_) => IPVS_SVC_ATTR_STATS | NLA_F_NESTED,
            Self::PeName(_) => IPVS_SVC_ATTR_PE_NAME,
            Self::Stats64(_) => IPVS_SVC_ATTR_STATS64 | NLA_F_NESTED,
            Self::Other(other) => other.kind(),
        }
    }

    fn emit_value(&self, buffer: &mut [u8]) {
        match self {
            Self::Family(value) | Self::Protocol(value) => put(buffer, &value.to_ne_bytes()),
            Self::Address(address) => put(buffer, address),
            Self::Port(port) => put(buffer, &port.to_be_bytes()),
            Self::Fwmark(value) | Self::Timeout(value) => put(buffer, &value.to_ne_bytes()),
            Self::SchedName(name) => put_string(buffer, name.as_str()),
            Self::PeName(name) => put_string(buffer, name.as_str()),
            Self::Flags { flags, mask } => {
                let (flags_bytes, mask_bytes) = buffer.split_at_mut(4);
                put(flags_bytes, &flags.to_ne_bytes());
                put(mask_bytes, &mask.to_ne_bytes());
            }
            Self::Netmask(mask) => put(buffer, mask),
            Self::Stats(stats) | Self::Stats64(stats) => {
                Attributes::write(buffer, |nested| stats.write(nested))
            }
            Self::Other(other) => other.emit_value(buffer),
        }
    }
}

impl<'a> Parseable<NlaBuffer<&'a [u8]>> for ServiceAttr {
    fn parse(buffer: &NlaBuffer<&'a [u8]>) -> Result<Self, DecodeError> {
        let value = buffer.value();
        Ok(match buffer.kind() {
            IPVS_SVC_ATTR_AF => Self::Family(parse_u16(value)?),
            IPVS_SVC_ATTR_PROTOCOL => Self::Protocol(parse_u16(value)?),
            IPVS_SVC_ATTR_ADDR => Self::Address(parse_address(value)?),
            IPVS_SVC_ATTR_PORT => Self::Port(parse_u16_be(value)?),
            IPVS_SVC_ATTR_FWMARK => Self::Fwmark(parse_u32(value)?),
            IPVS_SVC_ATTR_SCHED_NAME => match parse_name(value) {
                Some(name) => Self::SchedName(name),
                None => Self::Other(DefaultNla::parse(buffer)?),
            },
            IPVS_SVC_ATTR_FLAGS => {
                let (flags, mask) = value
                    .split_at_checked(4)
                    .ok_or_else(|| DecodeError::invalid_number(8, value.len()))?;
                Self::Flags {
                    flags: parse_u32(flags)?,
                    mask: parse_u32(mask)?,
                }
            }
            IPVS_SVC_ATTR_TIMEOUT => Self::Timeout(parse_u32(value)?),
            IPVS_SVC_ATTR_NETMASK => Self::Netmask(parse_u32(value)?.to_ne_bytes()),
            IPVS_SVC_ATTR_STATS => Self::Stats(Stats::parse(value)?),
            IPVS_SVC_ATTR_PE_NAME => match parse_name(value) {
                Some(name) => Self::PeName(name),
                None => Self::Other(DefaultNla::parse(buffer)?),
            },
            IPVS_SVC_ATTR_STATS64 => Self::Stats64(Stats::parse(value)?),
            _ => Self::Other(DefaultNla::parse(buffer)?),
        })
    }
}
