use std::net::{Ipv4Addr, Ipv6Addr};

use netlink_packet_core::{
    DecodeError, DefaultNla, Nla, NlaBuffer, Parseable, parse_ipv6, parse_string, parse_u8, parse_u16,
    parse_u32,
};

use super::{put, put_string};

const IPVS_DAEMON_ATTR_STATE: u16 = 1;
const IPVS_DAEMON_ATTR_MCAST_IFN: u16 = 2;
const IPVS_DAEMON_ATTR_SYNC_ID: u16 = 3;
const IPVS_DAEMON_ATTR_SYNC_MAXLEN: u16 = 4;
const IPVS_DAEMON_ATTR_MCAST_GROUP: u16 = 5;
const IPVS_DAEMON_ATTR_MCAST_GROUP6: u16 = 6;
const IPVS_DAEMON_ATTR_MCAST_PORT: u16 = 7;
const IPVS_DAEMON_ATTR_MCAST_TTL: u16 = 8;

/// What a sync daemon is made of (`IPVS_DAEMON_ATTR_*`). All but state, interface and id are known since Linux
/// 4.3.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum DaemonAttr {
    /// `IP_VS_STATE_MASTER` or `IP_VS_STATE_BACKUP`.
    State(u32),
    /// The interface's name.
    McastIfn(String),
    /// The id that sender and receiver share.
    SyncId(u32),
    /// The largest message, in bytes.
    SyncMaxlen(u16),
    /// The IPv4 group.
    McastGroup(Ipv4Addr),
    /// The IPv6 group.
    McastGroup6(Ipv6Addr),
    /// The UDP port; in host byte order on the wire.
    McastPort(u16),
    /// The hop limit.
    McastTtl(u8),
    /// An attribute that this version does not know.
    Other(DefaultNla),
}

impl Nla for DaemonAttr {
    fn value_len(&self) -> usize {
        match self {
            Self::McastTtl(_) => 1,
            Self::SyncMaxlen(_) | Self::McastPort(_) => 2,
            Self::State(_) | Self::SyncId(_) | Self::McastGroup(_) => 4,
            Self::McastGroup6(_) => 16,
            Self::McastIfn(name) => name.len() + 1,
            Self::Other(other) => other.value_len(),
        }
    }

    fn kind(&self) -> u16 {
        match self {
            Self::State(_) => IPVS_DAEMON_ATTR_STATE,
            Self::McastIfn(_) => IPVS_DAEMON_ATTR_MCAST_IFN,
            Self::SyncId(_) => IPVS_DAEMON_ATTR_SYNC_ID,
            Self::SyncMaxlen(_) => IPVS_DAEMON_ATTR_SYNC_MAXLEN,
            Self::McastGroup(_) => IPVS_DAEMON_ATTR_MCAST_GROUP,
            Self::McastGroup6(_) => IPVS_DAEMON_ATTR_MCAST_GROUP6,
            Self::McastPort(_) => IPVS_DAEMON_ATTR_MCAST_PORT,
            Self::McastTtl(_) => IPVS_DAEMON_ATTR_MCAST_TTL,
            Self::Other(other) => other.kind(),
        }
    }

    fn emit_value(&self, buffer: &mut [u8]) {
        match self {
            Self::State(value) | Self::SyncId(value) => put(buffer, &value.to_ne_bytes()),
            Self::McastIfn(name) => put_string(buffer, name),
            Self::SyncMaxlen(value) | Self::McastPort(value) => put(buffer, &value.to_ne_bytes()),
            Self::McastGroup(group) => put(buffer, &group.octets()),
            Self::McastGroup6(group) => put(buffer, &group.octets()),
            Self::McastTtl(value) => put(buffer, &[*value]),
            Self::Other(other) => other.emit_value(buffer),
        }
    }
}

impl<'a> Parseable<NlaBuffer<&'a [u8]>> for DaemonAttr {
    fn parse(buffer: &NlaBuffer<&'a [u8]>) -> Result<Self, DecodeError> {
        let value = buffer.value();
        Ok(match buffer.kind() {
            IPVS_DAEMON_ATTR_STATE => Self::State(parse_u32(value)?),
            IPVS_DAEMON_ATTR_MCAST_IFN => Self::McastIfn(parse_string(value)?),
            IPVS_DAEMON_ATTR_SYNC_ID => Self::SyncId(parse_u32(value)?),
            IPVS_DAEMON_ATTR_SYNC_MAXLEN => Self::SyncMaxlen(parse_u16(value)?),
            IPVS_DAEMON_ATTR_MCAST_GROUP => Self::McastGroup(parse_u32(value)?.to_ne_bytes().into()),
            IPVS_DAEMON_ATTR_MCAST_GROUP6 => Self::McastGroup6(parse_ipv6(value)?.into()),
            IPVS_DAEMON_ATTR_MCAST_PORT => Self::McastPort(parse_u16(value)?),
            IPVS_DAEMON_ATTR_MCAST_TTL => Self::McastTtl(parse_u8(value)?),
            _ => Self::Other(DefaultNla::parse(buffer)?),
        })
    }
}
