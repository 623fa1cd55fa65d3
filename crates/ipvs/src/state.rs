use std::fmt;

use crate::{DestinationEntry, ServiceEntry};

/// What went through a service or a destination since it was made or its counters were zeroed, and its present
/// rates: averages that the kernel's estimator renews every two seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Connections scheduled (`IPVS_STATS_ATTR_CONNS`).
    pub connections: u64,
    /// Packets from clients (`IPVS_STATS_ATTR_INPKTS`).
    pub in_packets: u64,
    /// Packets to clients (`IPVS_STATS_ATTR_OUTPKTS`): only masqueraded ones pass here.
    pub out_packets: u64,
    /// Bytes from clients (`IPVS_STATS_ATTR_INBYTES`).
    pub in_bytes: u64,
    /// Bytes to clients (`IPVS_STATS_ATTR_OUTBYTES`).
    pub out_bytes: u64,
    /// Connections each second (`IPVS_STATS_ATTR_CPS`).
    pub connections_per_second: u64,
    /// Packets from clients each second (`IPVS_STATS_ATTR_INPPS`).
    pub in_packets_per_second: u64,
    /// Packets to clients each second (`IPVS_STATS_ATTR_OUTPPS`).
    pub out_packets_per_second: u64,
    /// Bytes from clients each second (`IPVS_STATS_ATTR_INBPS`).
    pub in_bytes_per_second: u64,
    /// Bytes to clients each second (`IPVS_STATS_ATTR_OUTBPS`).
    pub out_bytes_per_second: u64,
}

/// A virtual service with its destinations, both as the kernel reports them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VirtualService {
    /// The service.
    pub entry: ServiceEntry,
    /// Its destinations, the one added last first.
    pub destinations: Vec<DestinationEntry>,
}

/// What the kernel says of its IPVS (`IPVS_CMD_GET_INFO`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Info {
    /// The version (`IPVS_INFO_ATTR_VERSION`), 1.2.1 since 2004.
    pub version: Version,
    /// Rows of the connection hash table (`IPVS_INFO_ATTR_CONN_TAB_SIZE`).
    pub connection_table_size: u32,
}

/// IPVS's version: three numbers of a byte each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [_, major, minor, patch] = self.0.to_be_bytes();
        write!(f, "{major}.{minor}.{patch}")
    }
}

/// After how many seconds without a packet a connection is forgotten (`IPVS_CMD_SET_CONFIG`). When set, 0 leaves
/// a timeout as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Timeouts {
    /// An established TCP connection (`IPVS_CMD_ATTR_TIMEOUT_TCP`).
    pub tcp: u32,
    /// A TCP connection after a FIN (`IPVS_CMD_ATTR_TIMEOUT_TCP_FIN`).
    pub tcp_fin: u32,
    /// A UDP flow (`IPVS_CMD_ATTR_TIMEOUT_UDP`).
    pub udp: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_three_bytes() {
        assert_eq!(Version(0x01_02_01).to_string(), "1.2.1");
    }
}
