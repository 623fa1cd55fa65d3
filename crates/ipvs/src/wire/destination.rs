use netlink_batch::Attributes;
use netlink_packet_core::{
    DecodeError, DefaultNla, NLA_F_NESTED, Nla, NlaBuffer, Parseable, parse_u8, parse_u16, parse_u16_be,
    parse_u32,
};

use super::{parse_address, put};
use crate::Stats;

pub(super) const IPVS_DEST_ATTR_ADDR: u16 = 1;
pub(super) const IPVS_DEST_ATTR_PORT: u16 = 2;
pub(super) const IPVS_DEST_ATTR_FWD_METHOD: u16 = 3;
pub(super) const IPVS_DEST_ATTR_WEIGHT: u16 = 4;
pub(super) const IPVS_DEST_ATTR_U_THRESH: u16 = 5;
pub(super) const IPVS_DEST_ATTR_L_THRESH: u16 = 6;
pub(super) const IPVS_DEST_ATTR_ACTIVE_CONNS: u16 = 7;
pub(super) const IPVS_DEST_ATTR_INACT_CONNS: u16 = 8;
pub(super) const IPVS_DEST_ATTR_PERSIST_CONNS: u16 = 9;
pub(super) const IPVS_DEST_ATTR_STATS: u16 = 10;
pub(super) const IPVS_DEST_ATTR_ADDR_FAMILY: u16 = 11;
pub(super) const IPVS_DEST_ATTR_STATS64: u16 = 12;
pub(super) const IPVS_DEST_ATTR_TUN_TYPE: u16 = 13;
pub(super) const IPVS_DEST_ATTR_TUN_PORT: u16 = 14;
pub(super) const IPVS_DEST_ATTR_TUN_FLAGS: u16 = 15;

/// What a destination is made of (`IPVS_DEST_ATTR_*`).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum DestinationAttr {
    /// The address: 16 bytes, of which IPv4 uses the first four.
    Address([u8; 16]),
    /// The port; in network byte order on the wire.
    Port(u16),
    /// How packets get there (`IP_VS_CONN_F_*`).
    FwdMethod(u32),
    /// The weight.
    Weight(u32),
    /// The upper threshold, in connections.
    UpperThreshold(u32),
    /// The lower threshold, in connections.
    LowerThreshold(u32),
    /// Established connections.
    ActiveConns(u32),
    /// Other connections.
    InactConns(u32),
    /// Persistence templates.
    PersistConns(u32),
    /// Counters, of which some have 32 bits.
    Stats(Stats),
    /// `AF_INET` or `AF_INET6` (since Linux 3.18; before, it is the service's).
    Family(u16),
    /// Counters of 64 bits.
    Stats64(Stats),
    /// `IP_VS_CONN_F_TUNNEL_TYPE_*`.
    TunType(u8),
    /// The tunnel's port; in network byte order on the wire.
    TunPort(u16),
    /// `IP_VS_TUNNEL_ENCAP_FLAG_*`.
    TunFlags(u16),
    /// An attribute that this version does not know.
    Other(DefaultNla),
}

impl Nla for DestinationAttr {
    fn value_len(&self) -> usize {
        match self {
            Self::TunType(_) => 1,
            Self::Port(_) | Self::Family(_) | Self::TunPort(_) | Self::TunFlags(_) => 2,
            Self::FwdMethod(_)
            | Self::Weight(_)
            | Self::UpperThreshold(_)
            | Self::LowerThreshold(_)
            | Self::ActiveConns(_)
            | Self::InactConns(_)
            | Self::PersistConns(_) => 4,
            Self::Address(_) => 16,
            Self::Stats(stats) | Self::Stats64(stats) => Attributes::length(|nested| stats.write(nested)),
            Self::Other(other) => other.value_len(),
        }
    }

    fn kind(&self) -> u16 {
        match self {
            Self::Address(_) => IPVS_DEST_ATTR_ADDR,
            Self::Port(_) => IPVS_DEST_ATTR_PORT,
            Self::FwdMethod(_) => IPVS_DEST_ATTR_FWD_METHOD,
            Self::Weight(_) => IPVS_DEST_ATTR_WEIGHT,
            Self::UpperThreshold(_) => IPVS_DEST_ATTR_U_THRESH,
            Self::LowerThreshold(_) => IPVS_DEST_ATTR_L_THRESH,
            Self::ActiveConns(_) => IPVS_DEST_ATTR_ACTIVE_CONNS,
            Self::InactConns(_) => IPVS_DEST_ATTR_INACT_CONNS,
            Self::PersistConns(_) => IPVS_DEST_ATTR_PERSIST_CONNS,
            Self::Stats(_) => IPVS_DEST_ATTR_STATS | NLA_F_NESTED,
            Self::Family(_) => IPVS_DEST_ATTR_ADDR_FAMILY,
            Self::Stats64(_) => IPVS_DEST_ATTR_STATS64 | NLA_F_NESTED,
            Self::TunType(_) => IPVS_DEST_ATTR_TUN_TYPE,
            Self::TunPort(_) => IPVS_DEST_ATTR_TUN_PORT,
            Self::TunFlags(_) => IPVS_DEST_ATTR_TUN_FLAGS,
            Self::Other(other) => other.kind(),
        }
    }

    fn emit_value(&self, buffer: &mut [u8]) {
        match self {
            Self::Address(address) => put(buffer, address),
            Self::Port(port) | Self::TunPort(port) => put(buffer, &port.to_be_bytes()),
            Self::Family(value) | Self::TunFlags(value) => put(buffer, &value.to_ne_bytes()),
            Self::TunType(value) => put(buffer, &[*value]),
            Self::FwdMethod(value)
            | Self::Weight(value)
            | Self::UpperThreshold(value)
            | Self::LowerThreshold(value)
            | Self::ActiveConns(value)
            | Self::InactConns(value)
            | Self::PersistConns(value) => put(buffer, &value.to_ne_bytes()),
            Self::Stats(stats) | Self::Stats64(stats) => {
                Attributes::write(buffer, |nested| stats.write(nested))
            }
            Self::Other(other) => other.emit_value(buffer),
        }
    }
}

impl<'a> Parseable<NlaBuffer<&'a [u8]>> for DestinationAttr {
    fn parse(buffer: &NlaBuffer<&'a [u8]>) -> Result<Self, DecodeError> {
        let value = buffer.value();
        Ok(match buffer.kind() {
            IPVS_DEST_ATTR_ADDR => Self::Address(parse_address(value)?),
            IPVS_DEST_ATTR_PORT => Self::Port(parse_u16_be(value)?),
            IPVS_DEST_ATTR_FWD_METHOD => Self::FwdMethod(parse_u32(value)?),
            IPVS_DEST_ATTR_WEIGHT => Self::Weight(parse_u32(value)?),
            IPVS_DEST_ATTR_U_THRESH => Self::UpperThreshold(parse_u32(value)?),
            IPVS_DEST_ATTR_L_THRESH => Self::LowerThreshold(parse_u32(value)?),
            IPVS_DEST_ATTR_ACTIVE_CONNS => Self::ActiveConns(parse_u32(value)?),
            IPVS_DEST_ATTR_INACT_CONNS => Self::InactConns(parse_u32(value)?),
            IPVS_DEST_ATTR_PERSIST_CONNS => Self::PersistConns(parse_u32(value)?),
            IPVS_DEST_ATTR_STATS => Self::Stats(Stats::parse(value)?),
            IPVS_DEST_ATTR_ADDR_FAMILY => Self::Family(parse_u16(value)?),
            IPVS_DEST_ATTR_STATS64 => Self::Stats64(Stats::parse(value)?),
            IPVS_DEST_ATTR_TUN_TYPE => Self::TunType(parse_u8(value)?),
            IPVS_DEST_ATTR_TUN_PORT => Self::TunPort(parse_u16_be(value)?),
            IPVS_DEST_ATTR_TUN_FLAGS => Self::TunFlags(parse_u16(value)?),
            _ => Self::Other(DefaultNla::parse(buffer)?),
        })
    }
}
