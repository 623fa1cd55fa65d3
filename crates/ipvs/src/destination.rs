use std::fmt;
use std::net::{IpAddr, SocketAddr};

use crate::Stats;

/// How packets get to a destination (`IPVS_DEST_ATTR_FWD_METHOD`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Forwarding {
    /// Rewritten to the destination's address and port, and back (`IP_VS_CONN_F_MASQ`).
    Masquerade,
    /// Delivered on this machine (`IP_VS_CONN_F_LOCALNODE`).
    Local,
    /// Encapsulated (`IP_VS_CONN_F_TUNNEL`): the one method for a destination of the other address family.
    Tunnel(TunnelType),
    /// Sent to the destination's link-layer address as they are (`IP_VS_CONN_F_DROUTE`).
    DirectRoute,
    /// Routed to the packet's own destination, past the service (`IP_VS_CONN_F_BYPASS`).
    Bypass,
    /// A method, 5 to 7, that has no meaning yet.
    Unassigned(u8),
}

impl Forwarding {
    /// The kernel's number: `IP_VS_CONN_F_MASQ` and so on.
    pub const fn number(self) -> u32 {
        match self {
            Self::Masquerade => 0,
            Self::Local => 1,
            Self::Tunnel(_) => 2,
            Self::DirectRoute => 3,
            Self::Bypass => 4,
            Self::Unassigned(method) => method as u32,
        }
    }

    /// `tunnel` is what the method is if it is a tunnel.
    pub(crate) const fn from_number(number: u32, tunnel: TunnelType) -> Self {
        // IP_VS_CONN_F_FWD_MASK: kernels have had connection flags in the higher bits.
        match number & 7 {
            0 => Self::Masquerade,
            1 => Self::Local,
            2 => Self::Tunnel(tunnel),
            3 => Self::DirectRoute,
            4 => Self::Bypass,
            method => Self::Unassigned(method as u8),
        }
    }
}

/// How a tunnel encapsulates (`IPVS_DEST_ATTR_TUN_TYPE`, since Linux 5.3; before, a tunnel is IPIP).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TunnelType {
    /// An IP header in front.
    #[default]
    Ipip,
    /// Generic UDP Encapsulation.
    Gue {
        /// The destination's UDP port (`IPVS_DEST_ATTR_TUN_PORT`), not 0.
        port: u16,
        /// Checksums.
        flags: TunnelFlags,
    },
    /// Generic Routing Encapsulation.
    Gre {
        /// Checksums.
        flags: TunnelFlags,
    },
    /// A type that this crate does not know.
    Other {
        /// `IPVS_DEST_ATTR_TUN_TYPE`.
        number: u8,
        /// `IPVS_DEST_ATTR_TUN_PORT`.
        port: u16,
        /// `IPVS_DEST_ATTR_TUN_FLAGS`.
        flags: TunnelFlags,
    },
}

impl TunnelType {
    /// The three attributes: type, port, flags.
    pub(crate) const fn to_parts(self) -> (u8, u16, TunnelFlags) {
        match self {
            Self::Ipip => (0, 0, TunnelFlags::NONE),
            Self::Gue { port, flags } => (1, port, flags),
            Self::Gre { flags } => (2, 0, flags),
            Self::Other { number, port, flags } => (number, port, flags),
        }
    }

    pub(crate) const fn from_parts(number: u8, port: u16, flags: TunnelFlags) -> Self {
        match number {
            0 => Self::Ipip,
            1 => Self::Gue { port, flags },
            2 => Self::Gre { flags },
            number => Self::Other { number, port, flags },
        }
    }
}

/// The checksums of a tunnel (`IPVS_DEST_ATTR_TUN_FLAGS`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TunnelFlags(u16);

impl TunnelFlags {
    /// `IP_VS_TUNNEL_ENCAP_FLAG_NOCSUM`.
    pub const NONE: Self = Self(0);
    /// `IP_VS_TUNNEL_ENCAP_FLAG_CSUM`: the encapsulation has a checksum.
    pub const CHECKSUM: Self = Self(1);
    /// `IP_VS_TUNNEL_ENCAP_FLAG_REMCSUM`: remote checksum offload, GUE only.
    pub const REMOTE_CHECKSUM: Self = Self(2);

    /// The flags with these bits, known or not.
    pub const fn from_bits(bits: u16) -> Self {
        Self(bits)
    }

    /// The bits.
    pub const fn bits(self) -> u16 {
        self.0
    }

    /// Whether all of the other's flags are set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// A real server of a virtual service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Destination {
    /// Its address (`IPVS_DEST_ATTR_ADDR`). Address and port are its key within the service.
    pub address: IpAddr,
    /// Its port (`IPVS_DEST_ATTR_PORT`). Only masquerading can change a packet's port.
    pub port: u16,
    /// How packets get there.
    pub forwarding: Forwarding,
    /// Its share (`IPVS_DEST_ATTR_WEIGHT`), at most [`i32::MAX`]. 0 keeps what is established and gets no new
    /// connection.
    pub weight: u32,
    /// No new connection from this many on, until there are fewer than the lower threshold
    /// (`IPVS_DEST_ATTR_U_THRESH`); 0 is no limit.
    pub upper_threshold: u32,
    /// At most the upper threshold (`IPVS_DEST_ATTR_L_THRESH`); 0 is three quarters of it.
    pub lower_threshold: u32,
}

impl Destination {
    /// A masqueraded destination of weight 1, without thresholds.
    pub const fn new(address: SocketAddr) -> Self {
        Self {
            address: address.ip(),
            port: address.port(),
            forwarding: Forwarding::Masquerade,
            weight: 1,
            upper_threshold: 0,
            lower_threshold: 0,
        }
    }

    /// Address and port: what the kernel finds it by within the service.
    pub const fn socket_addr(&self) -> SocketAddr {
        SocketAddr::new(self.address, self.port)
    }
}

/// `10.0.0.2:8080 weight 1`.
impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} weight {}", self.socket_addr(), self.weight)
    }
}

/// A destination as the kernel reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DestinationEntry {
    /// The destination, as it could be given to the kernel again.
    pub destination: Destination,
    /// Established connections (`IPVS_DEST_ATTR_ACTIVE_CONNS`).
    pub active_connections: u32,
    /// Connections in any other state, and those of UDP (`IPVS_DEST_ATTR_INACT_CONNS`).
    pub inactive_connections: u32,
    /// Persistence templates: clients that come back here (`IPVS_DEST_ATTR_PERSIST_CONNS`).
    pub persistent_connections: u32,
    /// What went to it and came back.
    pub stats: Stats,
}

/// What the kernel tells of a destination in fewer words than a [`DestinationEntry`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DestinationSummary {
    /// Address and port.
    pub address: SocketAddr,
    /// How packets get there.
    pub forwarding: ForwardingKind,
    /// Its weight.
    pub weight: u32,
    /// Established connections.
    pub active_connections: u32,
    /// Connections in any other state, and those of UDP.
    pub inactive_connections: u32,
}

impl From<DestinationEntry> for DestinationSummary {
    fn from(entry: DestinationEntry) -> Self {
        Self {
            address: entry.destination.socket_addr(),
            forwarding: entry.destination.forwarding.into(),
            weight: entry.destination.weight,
            active_connections: entry.active_connections,
            inactive_connections: entry.inactive_connections,
        }
    }
}

/// The forwarding method of a [`DestinationSummary`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ForwardingKind {
    /// Masquerading, or a method that has no name, such as bypass.
    Masquerade,
    /// Delivered on this machine.
    Local,
    /// Encapsulated, in whatever way.
    Tunnel,
    /// Direct routing.
    DirectRoute,
}

impl From<Forwarding> for ForwardingKind {
    fn from(forwarding: Forwarding) -> Self {
        match forwarding {
            Forwarding::Local => Self::Local,
            Forwarding::Tunnel(_) => Self::Tunnel,
            Forwarding::DirectRoute => Self::DirectRoute,
            Forwarding::Masquerade | Forwarding::Bypass | Forwarding::Unassigned(_) => Self::Masquerade,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_are_those_of_the_kernel() {
        let gre = TunnelType::Gre {
            flags: TunnelFlags::CHECKSUM,
        };
        let methods = [
            Forwarding::Masquerade,
            Forwarding::Local,
            Forwarding::Tunnel(gre),
            Forwarding::DirectRoute,
            Forwarding::Bypass,
            Forwarding::Unassigned(5),
        ];
        assert_eq!(methods.map(Forwarding::number), [0, 1, 2, 3, 4, 5]);
        for method in methods {
            assert_eq!(Forwarding::from_number(method.number() | 0x100, gre), method);
        }
    }

    #[test]
    fn a_tunnel_is_three_attributes() {
        let flags = TunnelFlags::REMOTE_CHECKSUM;
        for (tunnel, parts) in [
            (TunnelType::Ipip, (0, 0, TunnelFlags::NONE)),
            (TunnelType::Gue { port: 6080, flags }, (1, 6080, flags)),
            (TunnelType::Gre { flags }, (2, 0, flags)),
            (
                TunnelType::Other {
                    number: 9,
                    port: 1,
                    flags,
                },
                (9, 1, flags),
            ),
        ] {
            assert_eq!(tunnel.to_parts(), parts);
            assert_eq!(TunnelType::from_parts(parts.0, parts.1, parts.2), tunnel);
        }
    }
}
