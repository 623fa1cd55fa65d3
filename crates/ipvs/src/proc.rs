//! `/proc/net/ip_vs`: all services with the weights and connection counts of all their destinations, in one pass.
//!
//! It says less than netlink: nothing of a scheduler's flags, persistence engines, tunnel types, thresholds or
//! statistics, and of a service by fwmark not the family. But where netlink takes a dump for each service, this is
//! a handful of reads.
//!
//! # What it misses
//!
//! The kernel prints a service and its destinations in one piece, but between one `read` and the next, each of
//! about a page, services may come and go: then one may be missing, or there twice.
//!
//! And where more than one network namespace has services, the kernel loses its place between two `read`s: it goes on
//! as many services further as others have in between. Of a table larger than a page a large part is missing then,
//! at each attempt (up to at least Linux 6.12). What is in the file is right; what is not in it may be there all the
//! same. [`Handle::summary`](crate::Handle::summary) asks for what is missing.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::{DestinationEntry, Family, Forwarding, Protocol, Scheduler, ServiceKey};

/// The file for the network namespace of the calling thread. (`/proc/net` is that of the process's first thread.)
const PATH: &str = "/proc/thread-self/net/ip_vs";

/// A service of `/proc/net/ip_vs`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcService {
    /// What the kernel finds it by.
    pub key: ProcKey,
    /// How it chooses a destination.
    pub scheduler: Scheduler,
    /// Whether it schedules each datagram for itself. The kernel does not say so of an IPv6 address's service.
    pub one_packet: bool,
    /// Whether and how clients stay with their destination.
    pub persistence: Option<ProcPersistence>,
    /// Its destinations, the one added last first.
    pub destinations: Vec<ProcDestination>,
}

/// The key of a [`ProcService`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ProcKey {
    /// Address, protocol and port.
    Address(SocketAddr, Protocol),
    /// A mark, of either family.
    Fwmark(u32),
}

/// Persistence of a [`ProcService`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ProcPersistence {
    /// The timeout in jiffies: a second has as many as the kernel's `CONFIG_HZ`.
    pub timeout_jiffies: u32,
    /// The kernel's mask, as if it were IPv4's: the length of an IPv6 prefix is in the wrong byte order.
    pub netmask: u32,
}

/// A destination of a [`ProcService`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ProcDestination {
    /// Address and port.
    pub address: SocketAddr,
    /// How packets get there.
    pub forwarding: ProcForwarding,
    /// Its weight.
    pub weight: u32,
    /// Established connections.
    pub active_connections: u32,
    /// Connections in any other state, and those of UDP.
    pub inactive_connections: u32,
}

impl From<DestinationEntry> for ProcDestination {
    fn from(entry: DestinationEntry) -> Self {
        Self {
            address: entry.destination.socket_addr(),
            forwarding: match entry.destination.forwarding {
                Forwarding::Local => ProcForwarding::Local,
                Forwarding::Tunnel(_) => ProcForwarding::Tunnel,
                Forwarding::DirectRoute => ProcForwarding::DirectRoute,
                Forwarding::Masquerade | Forwarding::Bypass | Forwarding::Unassigned(_) => {
                    ProcForwarding::Masquerade
                }
            },
            weight: entry.destination.weight,
            active_connections: entry.active_connections,
            inactive_connections: entry.inactive_connections,
        }
    }
}

/// The forwarding method of a [`ProcDestination`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ProcForwarding {
    /// Masquerading, or a method that has no name, such as bypass.
    Masquerade,
    /// Delivered on this machine.
    Local,
    /// Encapsulated, in whatever way.
    Tunnel,
    /// Direct routing.
    DirectRoute,
}

impl ProcService {
    /// The key by which netlink knows the service. The family of a service by fwmark is that of its destinations,
    /// except that a tunnel may lead to the other family: `None` if there is no destination to tell by.
    pub fn service_key(&self) -> Option<ServiceKey> {
        match self.key {
            ProcKey::Address(address, protocol) => Some(ServiceKey::address(address, protocol)),
            ProcKey::Fwmark(mark) => self
                .destinations
                .iter()
                .find(|destination| destination.forwarding != ProcForwarding::Tunnel)
                .map(|destination| ServiceKey::Fwmark {
                    family: Family::of(destination.address.ip()),
                    mark,
                }),
        }
    }
}

/// Why there is no table.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read. It is missing as long as the module `ip_vs` is not loaded.
    #[error("cannot read {PATH}: {0}")]
    Read(#[from] io::Error),
    /// A line is not what the kernel prints.
    #[error("cannot make sense of line {line} of {PATH}: {text:?}")]
    Parse {
        /// The line, from 1.
        line: usize,
        /// What it says.
        text: String,
    },
}

/// Reads the table of the network namespace that the calling thread is in. Services [may be
/// missing](self#what-it-misses).
///
/// # Errors
///
/// [`Error::Read`] if there is no such file; [`Error::Parse`] if it is not what is expected.
pub fn read() -> Result<Vec<ProcService>, Error> {
    parse(&std::fs::read_to_string(PATH)?)
}

/// Reads what the file says. Services of a protocol other than those of [`Protocol`] are left out: no packet
/// reaches them.
///
/// # Errors
///
/// [`Error::Parse`].
pub fn parse(text: &str) -> Result<Vec<ProcService>, Error> {
    let mut services: Vec<ProcService> = Vec::new();
    // Destinations of a service that is left out go with it.
    let mut left_out = false;
    // Three lines say what follows.
    for (number, line) in std::iter::zip(1.., text.lines()).skip(3) {
        let understood = if let Some(destination) = line.strip_prefix("  -> ") {
            parse_destination(Words(destination.as_bytes())).and_then(|destination| {
                if !left_out {
                    services.last_mut()?.destinations.push(destination);
                }
                Some(())
            })
        } else {
            parse_service(Words(line.as_bytes())).map(|service| {
                left_out = service.is_none();
                services.extend(service);
            })
        };
        understood.ok_or_else(|| Error::Parse {
            line: number,
            text: line.to_owned(),
        })?;
    }
    Ok(services)
}

/// The words of a line that spaces separate.
///
/// A table has a line for each destination of the node: this and the numbers below take two thirds of the
/// instructions that `str`'s general methods take.
#[derive(Clone, Copy)]
struct Words<'a>(&'a [u8]);

impl<'a> Iterator for Words<'a> {
    type Item = &'a [u8];

    #[inline]
    fn next(&mut self) -> Option<&'a [u8]> {
        let start = self.0.iter().position(|byte| *byte != b' ')?;
        let (_, rest) = self.0.split_at_checked(start)?;
        let end = rest.iter().position(|byte| *byte == b' ').unwrap_or(rest.len());
        let (word, rest) = rest.split_at_checked(end)?;
        self.0 = rest;
        Some(word)
    }
}

/// `Some(None)` is a service to be left out.
fn parse_service(mut words: Words<'_>) -> Option<Option<ProcService>> {
    let key = match words.next()? {
        b"FWM" => ProcKey::Fwmark(hexadecimal(words.next()?)?),
        protocol => {
            let address = socket_addr(words.next()?)?;
            match std::str::from_utf8(protocol).ok()?.parse() {
                Ok(protocol) => ProcKey::Address(address, protocol),
                Err(_) => return Some(None),
            }
        }
    };
    let scheduler = std::str::from_utf8(words.next()?).ok()?.parse().ok()?;
    let one_packet = { words }.next() == Some(b"ops");
    if one_packet {
        words.next();
    }
    let persistence = match words.next() {
        None => None,
        Some(b"persistent") => Some(ProcPersistence {
            timeout_jiffies: signed(words.next()?)?,
            netmask: hexadecimal(words.next()?)?,
        }),
        Some(_) => return None,
    };
    words.next().is_none().then_some(Some(ProcService {
        key,
        scheduler,
        one_packet,
        persistence,
        destinations: Vec::new(),
    }))
}

#[inline]
fn parse_destination(mut words: Words<'_>) -> Option<ProcDestination> {
    let destination = ProcDestination {
        address: socket_addr(words.next()?)?,
        forwarding: match words.next()? {
            b"Masq" => ProcForwarding::Masquerade,
            b"Local" => ProcForwarding::Local,
            b"Tunnel" => ProcForwarding::Tunnel,
            b"Route" => ProcForwarding::DirectRoute,
            _ => return None,
        },
        weight: signed(words.next()?)?,
        active_connections: signed(words.next()?)?,
        inactive_connections: signed(words.next()?)?,
    };
    words.next().is_none().then_some(destination)
}

/// `0A000001:0050`, or `[fd00:0000:0000:0000:0000:0000:0000:0001]:0050`.
#[inline]
fn socket_addr(word: &[u8]) -> Option<SocketAddr> {
    let (address, port) = word.split_last_chunk::<5>()?;
    let port = u16::try_from(hexadecimal(port.strip_prefix(b":")?)?).ok()?;
    let address: IpAddr = match address {
        [b'[', address @ .., b']'] => {
            let address = std::str::from_utf8(address).ok()?;
            address.parse::<Ipv6Addr>().ok()?.into()
        }
        address => Ipv4Addr::from_bits(hexadecimal(address)?).into(),
    };
    Some(SocketAddr::new(address, port))
}

/// One to eight digits.
#[inline]
fn hexadecimal(word: &[u8]) -> Option<u32> {
    if word.is_empty() || word.len() > 8 {
        return None;
    }
    word.iter().try_fold(0, |number, byte| {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'A'..=b'F' => byte - b'A' + 10,
            b'a'..=b'f' => byte - b'a' + 10,
            _ => return None,
        };
        Some(number << 4 | u32::from(digit))
    })
}

/// The kernel prints its unsigned numbers as signed ones.
#[inline]
fn signed(word: &[u8]) -> Option<u32> {
    // As a rule it is one digit.
    if let [digit @ b'0'..=b'9'] = word {
        return Some(u32::from(digit - b'0'));
    }
    let number = std::str::from_utf8(word).ok()?.parse::<i32>().ok()?;
    Some(number as u32)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// From Linux 6.12.
    const TABLE: &str = "\
IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port Forward Weight ActiveConn InActConn
SCTP  0A000001:0050 rr  \n\
TCP  [fd00:0000:0000:0000:0000:0000:0000:0001]:0050 rr persistent 150000 80000000
  -> 0A010203:0050      Tunnel  3      0          0         \n\u{20} -> [fd00:0000:0000:0000:0000:0000:0000:0002]:1F90      Masq    3      1          20        \n\
UDP  0A000001:0035 mh ops  \n\
IP_47  0A000001:0050 rr  \n  \
  -> 0A010005:0050      Route   1      0          0         \n\
FWM  FFFFFFFF rr \n\
FWM  00000005 rr persistent 7500 FFFFFF00
  -> 0A030001:0000      Tunnel  1      0          0         \n  \
  -> 7F000001:0000      Local   0      0          0         \n";

    #[test]
    fn a_table() {
        let services = parse(TABLE).unwrap();
        let at = |address: &str, protocol| ProcKey::Address(address.parse().unwrap(), protocol);
        let keys: Vec<ProcKey> = services.iter().map(|service| service.key).collect();
        assert_eq!(
            keys,
            [
                at("10.0.0.1:80", Protocol::Sctp),
                at("[fd00::1]:80", Protocol::Tcp),
                at("10.0.0.1:53", Protocol::Udp),
                ProcKey::Fwmark(u32::MAX),
                ProcKey::Fwmark(5),
            ]
        );
        let [sctp, ipv6, udp, mark, marked] = services.as_slice() else {
            panic!("{services:?}");
        };
        assert_eq!(sctp.scheduler, Scheduler::ROUND_ROBIN);
        assert!(udp.one_packet && !sctp.one_packet);
        assert_eq!(sctp.persistence, None);
        assert_eq!(
            marked.persistence,
            Some(ProcPersistence {
                timeout_jiffies: 7500,
                netmask: 0xffff_ff00
            })
        );
        assert_eq!(
            ipv6.destinations[1],
            ProcDestination {
                address: "[fd00::2]:8080".parse().unwrap(),
                forwarding: ProcForwarding::Masquerade,
                weight: 3,
                active_connections: 1,
                inactive_connections: 20,
            }
        );
        assert_eq!(mark.destinations, [], "those of what is left out are too");
    }

    #[test]
    fn the_family_of_a_mark_is_that_of_what_is_no_tunnel() {
        let keys: Vec<_> = parse(TABLE)
            .unwrap()
            .iter()
            .map(ProcService::service_key)
            .collect();
        let mark = |mark| ServiceKey::Fwmark {
            family: Family::Inet,
            mark,
        };
        assert_eq!(keys[3..], [None, Some(mark(5))]);
    }

    #[test]
    fn an_error_says_where() {
        let text = TABLE.replace("Masq", "Mask");
        let error = parse(&text).unwrap_err().to_string();
        let words = "cannot make sense of line 7 of /proc/thread-self/net/ip_vs: \"  -> [fd00";
        assert!(error.starts_with(words), "{error}");
    }

    #[test]
    fn nothing_is_nothing() {
        assert_eq!(parse("").unwrap(), []);
    }

    proptest! {
        /// I8
        #[test]
        fn no_text_panics(text in "(?s).{0,200}|(TCP|UDP|FWM|  ->|[0-9A-F:\\[\\]]{1,12}| |\n|rr|ops|persistent|Masq){0,60}") {
            let _ = parse(&text);
        }
    }
}
