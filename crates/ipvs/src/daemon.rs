use std::fmt;
use std::net::IpAddr;

/// Which side of connection synchronisation a daemon is (`IPVS_DAEMON_ATTR_STATE`). A kernel runs one of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DaemonRole {
    /// Tells others of its connections (`IP_VS_STATE_MASTER`).
    Master,
    /// Takes over what a master tells (`IP_VS_STATE_BACKUP`).
    Backup,
}

impl DaemonRole {
    pub(crate) const fn number(self) -> u32 {
        match self {
            Self::Master => 1,
            Self::Backup => 2,
        }
    }

    pub(crate) const fn from_number(number: u32) -> Option<Self> {
        match number {
            1 => Some(Self::Master),
            2 => Some(Self::Backup),
            _ => None,
        }
    }
}

impl fmt::Display for DaemonRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Master => "master",
            Self::Backup => "backup",
        })
    }
}

/// A kernel thread that keeps the connections of several directors alike, over multicast. The kernel chooses
/// what is `None`, and reports what it chose.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SyncDaemon {
    /// Sender or receiver.
    pub role: DaemonRole,
    /// The interface that carries the multicast (`IPVS_DAEMON_ATTR_MCAST_IFN`), a name of at most 15 bytes.
    pub interface: String,
    /// Sender and receiver need the same (`IPVS_DAEMON_ATTR_SYNC_ID`), 0 to 255; a receiver with 0 takes all.
    pub sync_id: u32,
    /// The largest message in bytes, without IP and UDP headers (`IPVS_DAEMON_ATTR_SYNC_MAXLEN`).
    pub max_length: Option<u16>,
    /// The multicast group (`IPVS_DAEMON_ATTR_MCAST_GROUP`, `IPVS_DAEMON_ATTR_MCAST_GROUP6`).
    pub group: Option<IpAddr>,
    /// The UDP port (`IPVS_DAEMON_ATTR_MCAST_PORT`).
    pub port: Option<u16>,
    /// How far the multicast goes (`IPVS_DAEMON_ATTR_MCAST_TTL`).
    pub ttl: Option<u8>,
}

impl SyncDaemon {
    /// A daemon for which the kernel chooses everything that it can.
    pub fn new(role: DaemonRole, interface: impl Into<String>, sync_id: u32) -> Self {
        Self {
            role,
            interface: interface.into(),
            sync_id,
            max_length: None,
            group: None,
            port: None,
            ttl: None,
        }
    }
}
