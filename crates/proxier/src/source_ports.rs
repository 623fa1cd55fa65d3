//! From which ports masqueraded flows leave (C2).
//!
//! A masqueraded flow has one of the node's own addresses and a port that the kernel chooses, by itself any
//! unreserved one at random. Were that a node port, the answers would be addressed to its virtual server. A range
//! is all that the kernel can be given to choose from.

use std::{fmt, ops::RangeInclusive, str::FromStr};

/// The node ports of a cluster that does not say otherwise (kube-apiserver's `--service-node-port-range`).
const NODE_PORTS: RangeInclusive<u16> = 30000..=32767;

/// Every port that a process without privileges may have.
const UNRESERVED: RangeInclusive<u16> = 1024..=u16::MAX;

/// A range of ports that are no node port's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourcePorts {
    /// The lowest.
    pub first: u16,
    /// The highest.
    pub last: u16,
}

/// For the usual range of node ports. The ports from which the node's own processes connect, if nobody has changed
/// `net.ipv4.ip_local_port_range`, are in it.
impl Default for SourcePorts {
    fn default() -> Self {
        Self {
            first: *NODE_PORTS.end() + 1,
            last: *UNRESERVED.end(),
        }
    }
}

impl SourcePorts {
    /// The longest range without a node port, be it in use or among the usual ones.
    pub fn longest(is_node_port: impl Fn(&u16) -> bool) -> Self {
        let free: Vec<_> = UNRESERVED
            .filter(|port| !NODE_PORTS.contains(port) && !is_node_port(port))
            .collect();
        let longest = free.chunk_by(|a, b| b - a == 1).max_by_key(|range| range.len());
        match longest {
            Some([first, .., last]) => Self {
                first: *first,
                last: *last,
            },
            // There is no choice then.
            _ => Self {
                first: *UNRESERVED.start(),
                last: *UNRESERVED.end(),
            },
        }
    }

    /// Whether a masqueraded flow may leave from this port.
    pub fn contains(&self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }
}

/// As nft writes it: `32768-65535`.
impl fmt::Display for SourcePorts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

/// The text is not a range of ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a range of ports")]
pub struct ParseError;

impl FromStr for SourcePorts {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let (first, last) = text.split_once('-').ok_or(ParseError)?;
        match (first.parse(), last.parse()) {
            (Ok(first), Ok(last)) if first <= last => Ok(Self { first, last }),
            _ => Err(ParseError),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn longest(node_ports: &[u16]) -> String {
        SourcePorts::longest(|port| node_ports.contains(port)).to_string()
    }

    #[test]
    fn c2_the_longest_range_without_a_node_port_is_used() {
        assert_eq!(longest(&[]), SourcePorts::default().to_string());
        assert_eq!(longest(&[]), "32768-65535");
        assert_eq!(longest(&[80, 443, 30080, 32767]), "32768-65535");
        assert_eq!(longest(&[40000]), "1024-29999", "of 28976 ports, not of 25535");
        assert_eq!(longest(&[40000, 20000]), "40001-65535");
        assert_eq!(longest(&[65535]), "32768-65534");
        let all: Vec<_> = UNRESERVED.collect();
        assert_eq!(longest(&all), "1024-65535");
    }

    #[test]
    fn a_range_is_read_as_it_is_written() {
        let range = SourcePorts::default();
        assert_eq!(range.to_string().parse(), Ok(range));
        for wrong in ["", "-", "1", "2-1", "1-65536", "a-b"] {
            assert_eq!(wrong.parse::<SourcePorts>(), Err(ParseError), "{wrong}");
        }
    }
}
