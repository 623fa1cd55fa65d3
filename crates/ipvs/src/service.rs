use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::{BitAnd, BitOr, BitOrAssign};

use crate::{Family, PersistenceEngine, Protocol, Scheduler, Stats};

/// The key by which the kernel finds a virtual service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ServiceKey {
    /// Packets to an address and port.
    Address {
        /// The virtual address (`IPVS_SVC_ATTR_ADDR`).
        address: IpAddr,
        /// The protocol (`IPVS_SVC_ATTR_PROTOCOL`).
        protocol: Protocol,
        /// The virtual port (`IPVS_SVC_ATTR_PORT`). 0 is every port of the address that has no service of its
        /// own, and is of use with persistence only.
        port: u16,
    },
    /// Packets that netfilter has marked.
    Fwmark {
        /// The family of the packets: one mark is two services.
        family: Family,
        /// The mark (`IPVS_SVC_ATTR_FWMARK`), not 0.
        mark: u32,
    },
}

impl ServiceKey {
    /// The service at an address and port.
    pub const fn address(address: SocketAddr, protocol: Protocol) -> Self {
        Self::Address {
            address: address.ip(),
            protocol,
            port: address.port(),
        }
    }

    /// The family of the packets that the service takes.
    pub const fn family(&self) -> Family {
        match self {
            Self::Address { address, .. } => Family::of(*address),
            Self::Fwmark { family, .. } => *family,
        }
    }

    /// The transport protocol, if the service has one of its own: one by firewall mark takes any.
    pub const fn protocol(&self) -> Option<Protocol> {
        match self {
            Self::Address { protocol, .. } => Some(*protocol),
            Self::Fwmark { .. } => None,
        }
    }
}

/// `TCP 10.0.0.1:80`, `UDP [fd00::1]:53`, `FWM 5`, `FWM 5 IPv6`.
impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Address {
                address,
                protocol,
                port,
            } => {
                let protocol = protocol.to_string().to_ascii_uppercase();
                write!(f, "{protocol} {}", SocketAddr::new(address, port))
            }
            Self::Fwmark { family, mark } => match family {
                Family::Inet => write!(f, "FWM {mark}"),
                Family::Inet6 => write!(f, "FWM {mark} IPv6"),
            },
        }
    }
}

/// How a virtual service behaves (`IPVS_SVC_ATTR_FLAGS`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceFlags(u32);

impl ServiceFlags {
    /// `IP_VS_SVC_F_PERSISTENT`: a client stays with its destination for [`Service::timeout`].
    pub const PERSISTENT: Self = Self(0x01);
    /// `IP_VS_SVC_F_HASHED`: the kernel's own mark on a service that it can find. It is ignored when set, and
    /// left out of the [`Service`] of a [`ServiceEntry`], so that what is read equals what was written.
    pub const HASHED: Self = Self(0x02);
    /// `IP_VS_SVC_F_ONEPACKET`: each datagram is scheduled for itself. UDP only.
    pub const ONE_PACKET: Self = Self(0x04);
    /// `IP_VS_SVC_F_SCHED1`: the scheduler's first flag.
    pub const SCHED_1: Self = Self(0x08);
    /// `IP_VS_SVC_F_SCHED2`: the scheduler's second flag.
    pub const SCHED_2: Self = Self(0x10);
    /// `IP_VS_SVC_F_SCHED3`: the scheduler's third flag.
    pub const SCHED_3: Self = Self(0x20);

    /// The `sh` scheduler looks for another destination when the chosen one has weight 0.
    pub const SH_FALLBACK: Self = Self::SCHED_1;
    /// The `sh` scheduler hashes the source port too.
    pub const SH_PORT: Self = Self::SCHED_2;
    /// The `mh` scheduler looks for another destination when the chosen one has weight 0.
    pub const MH_FALLBACK: Self = Self::SCHED_1;
    /// The `mh` scheduler hashes the source port too.
    pub const MH_PORT: Self = Self::SCHED_2;

    /// The flags with these bits, known or not.
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    /// The bits.
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// Whether all of the other's flags are set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// These flags without the other's.
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether no flag is set.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl BitOr for ServiceFlags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitOrAssign for ServiceFlags {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

impl BitAnd for ServiceFlags {
    type Output = Self;

    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

/// Which clients a persistent service takes for one: those whose addresses are equal under the mask
/// (`IPVS_SVC_ATTR_NETMASK`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Netmask(Mask);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Mask {
    Prefix(u8),
    /// An IPv4 mask that is no prefix. A mask that is one is held as such, so that equal masks are equal.
    Scattered(u32),
}

impl Netmask {
    /// The mask of a prefix length: 0 to 32 for IPv4, 1 to 128 for IPv6.
    pub const fn prefix(length: u8) -> Self {
        Self(Mask::Prefix(length))
    }

    /// The mask under which each address is a client of its own.
    pub const fn host(family: Family) -> Self {
        match family {
            Family::Inet => Self::prefix(32),
            Family::Inet6 => Self::prefix(128),
        }
    }

    /// The prefix length, unless this is an IPv4 mask that has none.
    pub const fn prefix_length(self) -> Option<u8> {
        match self.0 {
            Mask::Prefix(length) => Some(length),
            Mask::Scattered(_) => None,
        }
    }

    /// The dotted form, for an IPv4 service.
    pub fn to_ipv4(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(match self.0 {
            Mask::Prefix(length) => u32::MAX.checked_shl(32 - u32::from(length.min(32))).unwrap_or(0),
            Mask::Scattered(mask) => mask,
        })
    }

    /// The attribute's four bytes: an IPv4 mask in network order, or the length of an IPv6 prefix in the host's.
    pub(crate) fn to_bytes(self, family: Family) -> [u8; 4] {
        match family {
            Family::Inet => self.to_ipv4().octets(),
            // 0 makes the kernel refuse a mask that IPv6 has no form for.
            Family::Inet6 => u32::from(self.prefix_length().unwrap_or(0)).to_ne_bytes(),
        }
    }

    pub(crate) fn from_bytes(bytes: [u8; 4], family: Family) -> Self {
        match family {
            Family::Inet => Ipv4Addr::from(bytes).into(),
            Family::Inet6 => Self::prefix(u8::try_from(u32::from_ne_bytes(bytes)).unwrap_or(u8::MAX)),
        }
    }
}

impl From<Ipv4Addr> for Netmask {
    fn from(mask: Ipv4Addr) -> Self {
        let mask = mask.to_bits();
        let length = mask.leading_ones();
        Self(if length + mask.trailing_zeros() >= 32 {
            Mask::Prefix(length as u8)
        } else {
            Mask::Scattered(mask)
        })
    }
}

/// A virtual service: what takes the packets to an address and port, or with a mark, and spreads them over its
/// destinations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Service {
    /// What the kernel finds it by. Fixed: another key is another service.
    pub key: ServiceKey,
    /// How it chooses a destination for a new connection.
    pub scheduler: Scheduler,
    /// Persistence, one-packet scheduling, the scheduler's flags.
    pub flags: ServiceFlags,
    /// For how many seconds after its last connection a client stays with its destination, if
    /// [`ServiceFlags::PERSISTENT`] is set (`IPVS_SVC_ATTR_TIMEOUT`).
    pub timeout: u32,
    /// Which clients persistence takes for one.
    pub netmask: Netmask,
    /// What beside the address persistence tells clients apart by.
    pub persistence_engine: Option<PersistenceEngine>,
}

impl Service {
    /// A service without persistence or flags.
    pub const fn new(key: ServiceKey, scheduler: Scheduler) -> Self {
        Self {
            key,
            scheduler,
            flags: ServiceFlags(0),
            timeout: 0,
            netmask: Netmask::host(key.family()),
            persistence_engine: None,
        }
    }
}

/// A virtual service as the kernel reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServiceEntry {
    /// The service, as it could be given to the kernel again.
    pub service: Service,
    /// What went through it.
    pub stats: Stats,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_reads_as_in_a_listing() {
        let at = |address: &str, protocol| ServiceKey::address(address.parse().unwrap(), protocol);
        assert_eq!(at("10.0.0.1:80", Protocol::Tcp).to_string(), "TCP 10.0.0.1:80");
        assert_eq!(at("[fd00::1]:53", Protocol::Udp).to_string(), "UDP [fd00::1]:53");
        let mark = |family| ServiceKey::Fwmark { family, mark: 5 }.to_string();
        assert_eq!([mark(Family::Inet), mark(Family::Inet6)], ["FWM 5", "FWM 5 IPv6"]);
    }

    #[test]
    fn flags_are_those_of_the_kernel() {
        let all = [
            ServiceFlags::PERSISTENT,
            ServiceFlags::HASHED,
            ServiceFlags::ONE_PACKET,
            ServiceFlags::SCHED_1,
            ServiceFlags::SCHED_2,
            ServiceFlags::SCHED_3,
        ];
        assert_eq!(all.map(ServiceFlags::bits), [1, 2, 4, 8, 16, 32]);
        let two = ServiceFlags::PERSISTENT | ServiceFlags::SCHED_1;
        assert!(two.contains(ServiceFlags::SCHED_1) && !two.contains(ServiceFlags::SCHED_2));
        assert_eq!(two.without(ServiceFlags::PERSISTENT), ServiceFlags::SCHED_1);
    }

    #[test]
    fn equal_masks_are_equal() {
        for length in 0..=32 {
            let mask = Netmask::prefix(length);
            assert_eq!(Netmask::from(mask.to_ipv4()), mask);
            assert_eq!(
                Netmask::from_bytes(mask.to_bytes(Family::Inet), Family::Inet),
                mask
            );
        }
        let odd = Ipv4Addr::new(255, 0, 255, 0);
        assert_eq!(Netmask::from(odd).prefix_length(), None);
        assert_eq!(Netmask::from(odd).to_ipv4(), odd);
    }

    #[test]
    fn netmask_bytes() {
        assert_eq!(Netmask::prefix(24).to_bytes(Family::Inet), [255, 255, 255, 0]);
        assert_eq!(Netmask::prefix(64).to_bytes(Family::Inet6), 64u32.to_ne_bytes());
    }
}
