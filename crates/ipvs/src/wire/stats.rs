use netlink_packet_core::{DecodeError, DefaultNla, Nla, NlaBuffer, Parseable, parse_u32, parse_u64};

use super::put;

const IPVS_STATS_ATTR_CONNS: u16 = 1;
const IPVS_STATS_ATTR_INPKTS: u16 = 2;
const IPVS_STATS_ATTR_OUTPKTS: u16 = 3;
const IPVS_STATS_ATTR_INBYTES: u16 = 4;
const IPVS_STATS_ATTR_OUTBYTES: u16 = 5;
const IPVS_STATS_ATTR_CPS: u16 = 6;
const IPVS_STATS_ATTR_INPPS: u16 = 7;
const IPVS_STATS_ATTR_OUTPPS: u16 = 8;
const IPVS_STATS_ATTR_INBPS: u16 = 9;
const IPVS_STATS_ATTR_OUTBPS: u16 = 10;

/// One counter or rate (`IPVS_STATS_ATTR_*`). In `IPVS_SVC_ATTR_STATS` and `IPVS_DEST_ATTR_STATS` all but the
/// byte counters have 32 bits, and wrap; in the `STATS64` attributes (since Linux 4.1) all have 64.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum StatsAttr {
    /// Connections scheduled.
    Conns(u64),
    /// Packets from clients.
    InPkts(u64),
    /// Packets to clients.
    OutPkts(u64),
    /// Bytes from clients.
    InBytes(u64),
    /// Bytes to clients.
    OutBytes(u64),
    /// Connections each second.
    Cps(u64),
    /// Packets from clients each second.
    InPps(u64),
    /// Packets to clients each second.
    OutPps(u64),
    /// Bytes from clients each second.
    InBps(u64),
    /// Bytes to clients each second.
    OutBps(u64),
    /// An attribute that this version does not know, or padding.
    Other(DefaultNla),
}

/// Emits 64 bits for each: the reading side of this is userspace, which has to take both sizes.
impl Nla for StatsAttr {
    fn value_len(&self) -> usize {
        match self {
            Self::Other(other) => other.value_len(),
            _ => 8,
        }
    }

    fn kind(&self) -> u16 {
        match self {
            Self::Conns(_) => IPVS_STATS_ATTR_CONNS,
            Self::InPkts(_) => IPVS_STATS_ATTR_INPKTS,
            Self::OutPkts(_) => IPVS_STATS_ATTR_OUTPKTS,
            Self::InBytes(_) => IPVS_STATS_ATTR_INBYTES,
            Self::OutBytes(_) => IPVS_STATS_ATTR_OUTBYTES,
            Self::Cps(_) => IPVS_STATS_ATTR_CPS,
            Self::InPps(_) => IPVS_STATS_ATTR_INPPS,
            Self::OutPps(_) => IPVS_STATS_ATTR_OUTPPS,
            Self::InBps(_) => IPVS_STATS_ATTR_INBPS,
            Self::OutBps(_) => IPVS_STATS_ATTR_OUTBPS,
            Self::Other(other) => other.kind(),
        }
    }

    fn emit_value(&self, buffer: &mut [u8]) {
        match self {
            Self::Conns(value)
            | Self::InPkts(value)
            | Self::OutPkts(value)
            | Self::InBytes(value)
            | Self::OutBytes(value)
            | Self::Cps(value)
            | Self::InPps(value)
            | Self::OutPps(value)
            | Self::InBps(value)
            | Self::OutBps(value) => put(buffer, &value.to_ne_bytes()),
            Self::Other(other) => other.emit_value(buffer),
        }
    }
}

impl<'a> Parseable<NlaBuffer<&'a [u8]>> for StatsAttr {
    fn parse(buffer: &NlaBuffer<&'a [u8]>) -> Result<Self, DecodeError> {
        let value = buffer.value();
        let kind = buffer.kind();
        if !(IPVS_STATS_ATTR_CONNS..=IPVS_STATS_ATTR_OUTBPS).contains(&kind) {
            return DefaultNla::parse(buffer).map(Self::Other);
        }
        let number = match value.len() {
            4 => u64::from(parse_u32(value)?),
            _ => parse_u64(value)?,
        };
        Ok(match kind {
            IPVS_STATS_ATTR_CONNS => Self::Conns(number),
            IPVS_STATS_ATTR_INPKTS => Self::InPkts(number),
            IPVS_STATS_ATTR_OUTPKTS => Self::OutPkts(number),
            IPVS_STATS_ATTR_INBYTES => Self::InBytes(number),
            IPVS_STATS_ATTR_OUTBYTES => Self::OutBytes(number),
            IPVS_STATS_ATTR_CPS => Self::Cps(number),
            IPVS_STATS_ATTR_INPPS => Self::InPps(number),
            IPVS_STATS_ATTR_OUTPPS => Self::OutPps(number),
            IPVS_STATS_ATTR_INBPS => Self::InBps(number),
            _ => Self::OutBps(number),
        })
    }
}
