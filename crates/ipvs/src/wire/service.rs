use netlink_packet_core::{
    DecodeError, DefaultNla, Emitable, NLA_F_NESTED, Nla, NlaBuffer, Parseable, parse_string, parse_u16,
    parse_u16_be, parse_u32,
};

use super::{StatsAttr, parse_address, parse_nested, put, put_string};

const IPVS_SVC_ATTR_AF: u16 = 1;
const IPVS_SVC_ATTR_PROTOCOL: u16 = 2;
const IPVS_SVC_ATTR_ADDR: u16 = 3;
const IPVS_SVC_ATTR_PORT: u16 = 4;
const IPVS_SVC_ATTR_FWMARK: u16 = 5;
const IPVS_SVC_ATTR_SCHED_NAME: u16 = 6;
const IPVS_SVC_ATTR_FLAGS: u16 = 7;
const IPVS_SVC_ATTR_TIMEOUT: u16 = 8;
const IPVS_SVC_ATTR_NETMASK: u16 = 9;
const IPVS_SVC_ATTR_STATS: u16 = 10;
const IPVS_SVC_ATTR_PE_NAME: u16 = 11;
const IPVS_SVC_ATTR_STATS64: u16 = 12;

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
    SchedName(String),
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
    Stats(Vec<StatsAttr>),
    /// The persistence engine's name.
    PeName(String),
    /// Counters of 64 bits.
    Stats64(Vec<StatsAttr>),
    /// An attribute that this version does not know.
    Other(DefaultNla),
}

impl Nla for ServiceAttr {
    fn value_len(&self) -> usize {
        match self {
            Self::Family(_) | Self::Protocol(_) | Self::Port(_) => 2,
            Self::Fwmark(_) | Self::Timeout(_) | Self::Netmask(_) => 4,
            Self::Flags { .. } => 8,
            Self::Address(_) => 16,
            Self::SchedName(name) | Self::PeName(name) => name.len() + 1,
            Self::Stats(stats) | Self::Stats64(stats) => stats.as_slice().buffer_len(),
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
            Self::SchedName(name) | Self::PeName(name) => put_string(buffer, name),
            Self::Flags { flags, mask } => {
                let (flags_bytes, mask_bytes) = buffer.split_at_mut(4);
                put(flags_bytes, &flags.to_ne_bytes());
                put(mask_bytes, &mask.to_ne_bytes());
            }
            Self::Netmask(mask) => put(buffer, mask),
            Self::Stats(stats) | Self::Stats64(stats) => stats.as_slice().emit(buffer),
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
            IPVS_SVC_ATTR_SCHED_NAME => Self::SchedName(parse_string(value)?),
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
            IPVS_SVC_ATTR_STATS => Self::Stats(parse_nested(value)?),
            IPVS_SVC_ATTR_PE_NAME => Self::PeName(parse_string(value)?),
            IPVS_SVC_ATTR_STATS64 => Self::Stats64(parse_nested(value)?),
            _ => Self::Other(DefaultNla::parse(buffer)?),
        })
    }
}
