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

use std::fs::File;
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::{DestinationSummary, Family, ForwardingKind, Protocol, Scheduler, ServiceKey};

/// The file for the network namespace of the calling thread. (`/proc/net` is that of the process's first thread.)
const PATH: &str = "/proc/thread-self/net/ip_vs";

/// How many lines say what follows.
const HEADING: usize = 3;

/// Room for what is read at once, in bytes. The kernel gives a page, or one service if that takes more.
const BUFFER: usize = 16 << 10;

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
    pub destinations: Vec<DestinationSummary>,
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

impl ProcService {
    /// The key by which netlink knows the service. The family of a service by fwmark is that of its destinations,
    /// except that a tunnel may lead to the other family: `None` if there is no destination to tell by.
    pub fn service_key(&self) -> Option<ServiceKey> {
        match self.key {
            ProcKey::Address(address, protocol) => Some(ServiceKey::address(address, protocol)),
            ProcKey::Fwmark(mark) => self
                .destinations
                .iter()
                .find(|destination| destination.forwarding != ForwardingKind::Tunnel)
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
    parse(File::open(PATH)?)
}

/// Reads what the file says, piece by piece. Services of a protocol other than those of [`Protocol`] are left out: no
/// packet reaches them.
///
/// # Errors
///
/// [`Error::Read`] if a piece cannot be read; [`Error::Parse`].
pub fn parse(mut text: impl Read) -> Result<Vec<ProcService>, Error> {
    let mut table = Table::default();
    let mut buffer = vec![0; BUFFER];
    // How much of a line is at the beginning of the buffer.
    let mut begun = 0;
    loop {
        let count = text.read(buffer.get_mut(begun..).unwrap_or_default())?;
        let piece = buffer.get(..begun + count).unwrap_or_default();
        let line_ends = piece.iter().rposition(|byte| *byte == b'\n');
        let (lines, rest) = piece.split_at(line_ends.map_or(0, |end| end + 1));
        table.take(lines)?;
        if count == 0 {
            // The kernel ends each line.
            table.take(rest)?;
            return Ok(table.into_services());
        }
        let rest = lines.len()..piece.len();
        begun = rest.len();
        buffer.copy_within(rest, 0);
    }
}

/// What has been read so far.
#[derive(Default)]
struct Table {
    lines: usize,
    services: Vec<ProcService>,
    /// Those of the last service: how many there are is known when the next one comes.
    destinations: Vec<DestinationSummary>,
    /// Whether the last service is left out, and its destinations with it.
    left_out: bool,
}

impl Table {
    /// Takes whole lines in.
    fn take(&mut self, lines: &[u8]) -> Result<(), Error> {
        let mut text = Text(lines);
        while !text.0.is_empty() {
            let line = text.0;
            self.lines += 1;
            self.take_line(&mut text).ok_or_else(|| Error::Parse {
                line: self.lines,
                text: String::from_utf8_lossy(line.split(|byte| *byte == b'\n').next().unwrap_or_default())
                    .into_owned(),
            })?;
        }
        Ok(())
    }

    fn take_line(&mut self, text: &mut Text<'_>) -> Option<()> {
        if self.lines <= HEADING {
            text.skip_line();
        } else if text.literal(b"  -> ").is_some() {
            let destination = text.destination()?;
            let follows_service = self.left_out || !self.services.is_empty();
            follows_service.then(|| self.destinations.push(destination))?;
        } else {
            let service = text.service()?;
            self.end_service();
            self.left_out = service.is_none();
            self.services.extend(service);
        }
        Some(())
    }

    fn end_service(&mut self) {
        let destinations = self.destinations.drain(..);
        if !self.left_out
            && let Some(service) = self.services.last_mut()
        {
            service.destinations = destinations.collect();
        }
    }

    fn into_services(mut self) -> Vec<ProcService> {
        self.end_service();
        self.services
    }
}

/// The values of hexadecimal digits by their bytes. Other bytes have more than 15.
#[allow(clippy::indexing_slicing, reason = "a panic would be one of the compiler")]
const VALUES: [u8; 256] = {
    let mut values = [u8::MAX; 256];
    let mut value = 0;
    while value < 16 {
        values[b"0123456789ABCDEF"[value] as usize] = value as u8;
        value += 1;
    }
    values
};

/// Text that is read from its beginning.
///
/// A table has a line for each destination of the node: each byte is looked at once, and none is copied.
struct Text<'a>(&'a [u8]);

impl<'a> Text<'a> {
    /// A service's line; `Some(None)` if it is to be left out.
    fn service(&mut self) -> Option<Option<ProcService>> {
        let protocol = self.word()?;
        let key = match protocol {
            "FWM" => Some(ProcKey::Fwmark(self.hexadecimal::<8>()?)),
            _ => {
                let address = self.socket_addr()?;
                let protocol = protocol.parse().ok();
                protocol.map(|protocol| ProcKey::Address(address, protocol))
            }
        };
        self.spaces();
        let scheduler = self.word()?.parse().ok()?;
        let one_packet = self.literal(b"ops").is_some();
        self.spaces();
        let persistence = match self.literal(b"persistent ") {
            None => None,
            Some(()) => Some(ProcPersistence {
                timeout_jiffies: self.number::<0>(b" ")?,
                netmask: self.hexadecimal::<8>()?,
            }),
        };
        self.literal(b"\n")?;
        Some(key.map(|key| ProcService {
            key,
            scheduler,
            one_packet,
            persistence,
            destinations: Vec::new(),
        }))
    }

    /// What follows the arrow in a destination's line.
    fn destination(&mut self) -> Option<DestinationSummary> {
        let address = self.socket_addr()?;
        self.literal(b"      ")?;
        let (forwarding, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        let destination = DestinationSummary {
            address,
            forwarding: match forwarding {
                b"Masq    " => ForwardingKind::Masquerade,
                b"Local   " => ForwardingKind::Local,
                b"Tunnel  " => ForwardingKind::Tunnel,
                b"Route   " => ForwardingKind::DirectRoute,
                _ => return None,
            },
            weight: self.number::<6>(b" ")?,
            active_connections: self.number::<10>(b" ")?,
            inactive_connections: self.number::<10>(b"\n")?,
        };
        Some(destination)
    }

    /// `0A000001:0050`, or `[fd00:0000:0000:0000:0000:0000:0000:0001]:0050`.
    #[inline(always)]
    fn socket_addr(&mut self) -> Option<SocketAddr> {
        let address: IpAddr = match self.literal(b"[") {
            Some(()) => {
                let (address, rest) = self.0.split_first_chunk::<39>()?;
                self.0 = rest;
                self.literal(b"]")?;
                std::str::from_utf8(address)
                    .ok()?
                    .parse::<Ipv6Addr>()
                    .ok()?
                    .into()
            }
            None => Ipv4Addr::from_bits(self.hexadecimal::<8>()?).into(),
        };
        self.literal(b":")?;
        let port = self.hexadecimal::<4>()?;
        Some(SocketAddr::new(address, port as u16))
    }

    /// So many hexadecimal digits, at most eight, in upper case.
    #[inline(always)]
    fn hexadecimal<const DIGITS: usize>(&mut self) -> Option<u32> {
        let (digits, rest) = self.0.split_first_chunk::<DIGITS>()?;
        self.0 = rest;
        #[allow(clippy::indexing_slicing, reason = "a byte is an index")]
        let digits = digits.map(|digit| u32::from(VALUES[usize::from(digit)]));
        let all_are = digits.iter().fold(0, |all, digit| all | digit) < 16;
        all_are.then(|| digits.iter().fold(0, |number, digit| number << 4 | digit))
    }

    /// A decimal number in a column of this width, and the byte behind that. The kernel prints its unsigned numbers
    /// as signed ones.
    #[inline(always)]
    fn number<const WIDTH: usize>(&mut self, end: &[u8; 1]) -> Option<u32> {
        let column = self.0;
        let is_negative = self.literal(b"-").is_some();
        let mut number = self.digit()?;
        while let Some(digit) = self.digit() {
            number = number.checked_mul(10)?.checked_add(digit)?;
        }
        let number = i32::try_from(if is_negative { -number } else { number }).ok()?;
        let padding = [b' '; WIDTH];
        let padding = padding.get(column.len() - self.0.len()..);
        self.0 = self.0.strip_prefix(padding.unwrap_or_default())?;
        self.literal(end)?;
        Some(number as u32)
    }

    #[inline(always)]
    fn digit(&mut self) -> Option<i64> {
        let (digit @ b'0'..=b'9', rest) = self.0.split_first()? else {
            return None;
        };
        self.0 = rest;
        Some(i64::from(digit - b'0'))
    }

    /// A word, and the spaces behind it.
    fn word(&mut self) -> Option<&'a str> {
        let word = self.take_while(|byte| !byte.is_ascii_whitespace());
        self.spaces();
        std::str::from_utf8(word).ok()
    }

    #[inline(always)]
    fn spaces(&mut self) {
        self.take_while(|byte| *byte == b' ');
    }

    #[inline(always)]
    fn take_while(&mut self, accepts: impl Fn(&u8) -> bool) -> &'a [u8] {
        let end = self.0.iter().position(|byte| !accepts(byte));
        let (taken, rest) = self.0.split_at(end.unwrap_or(self.0.len()));
        self.0 = rest;
        taken
    }

    #[inline(always)]
    fn literal<const LENGTH: usize>(&mut self, expected: &[u8; LENGTH]) -> Option<()> {
        self.0 = self.0.strip_prefix(expected)?;
        Some(())
    }

    fn skip_line(&mut self) {
        let end = self.0.iter().position(|byte| *byte == b'\n');
        self.0 = end.and_then(|end| self.0.get(end + 1..)).unwrap_or_default();
    }
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
        let services = parse(TABLE.as_bytes()).unwrap();
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
            DestinationSummary {
                address: "[fd00::2]:8080".parse().unwrap(),
                forwarding: ForwardingKind::Masquerade,
                weight: 3,
                active_connections: 1,
                inactive_connections: 20,
            }
        );
        assert_eq!(mark.destinations, [], "those of what is left out are too");
    }

    #[test]
    fn the_family_of_a_mark_is_that_of_what_is_no_tunnel() {
        let keys: Vec<_> = parse(TABLE.as_bytes())
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
        let error = parse(text.as_bytes()).unwrap_err().to_string();
        let words = "cannot make sense of line 7 of /proc/thread-self/net/ip_vs: \"  -> [fd00";
        assert!(error.starts_with(words), "{error}");
    }

    #[test]
    fn what_the_kernel_would_not_print_is_an_error() {
        for (printed, other) in [
            ("  -> 0A010203:0050", "  -> 0a010203:0050"),
            ("  -> 0A010203:0050", "  -> A010203:0050"),
            ("Tunnel  3      0 ", "Tunnel  3     0 "),
            ("Tunnel  3      0 ", "Tunnel         0 "),
            ("Tunnel  3      0 ", "Tunnel  2147483648 0 "),
            (
                "SCTP  0A000001:0050 rr  ",
                "  -> 0A010203:0050      Tunnel  3      0          0         ",
            ),
            ("150000 80000000", "150000 8000000"),
            ("UDP  0A000001:0035 mh ops", "UDP  0A000001:0035 mh opt"),
        ] {
            let text = TABLE.replace(printed, other);
            assert_ne!(text, TABLE);
            assert!(
                matches!(parse(text.as_bytes()), Err(Error::Parse { .. })),
                "{other}"
            );
        }
        let cut = TABLE.trim_end();
        assert!(matches!(
            parse(cut.as_bytes()),
            Err(Error::Parse { line: 14, .. })
        ));
    }

    #[test]
    fn numbers_may_be_wider_than_their_columns_and_negative() {
        let text = TABLE.replace(
            "Tunnel  3      0          0         \n",
            "Tunnel  2147483647 -2147483648 -1        \n",
        );
        let destination = parse(text.as_bytes()).unwrap()[1].destinations[0];
        assert_eq!(destination.weight, i32::MAX as u32);
        assert_eq!(destination.active_connections, i32::MIN as u32);
        assert_eq!(destination.inactive_connections, u32::MAX);
    }

    /// Gives so many bytes at once.
    struct Pieces<'a>(&'a [u8], usize);

    impl Read for Pieces<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let length = buffer.len().min(self.1);
            self.0.read(&mut buffer[..length])
        }
    }

    #[test]
    fn the_pieces_do_not_matter() {
        let many = TABLE.to_owned()
            + &TABLE
                .lines()
                .skip(3)
                .map(|line| format!("{line}\n"))
                .collect::<String>()
                .repeat(100);
        let expected = parse(many.as_bytes()).unwrap();
        assert_eq!(expected.len(), 101 * 5);
        for length in [1, 7, 61, 4096, usize::MAX] {
            assert_eq!(parse(Pieces(many.as_bytes(), length)).unwrap(), expected);
        }
    }

    #[test]
    fn nothing_is_nothing() {
        assert_eq!(parse(&b""[..]).unwrap(), []);
    }

    proptest! {
        /// I8
        #[test]
        fn no_text_panics(text in "(?s).{0,200}|(TCP|UDP|FWM|  ->|[0-9A-F:\\[\\]]{1,12}| |\n|rr|ops|persistent|Masq){0,60}") {
            let _ = parse(text.as_bytes());
        }
    }
}
