//! Traffic: servers that say who they are and whom they see, and clients that ask them.
//!
//! A server answers whatever it is sent with one line, `NAME CLIENT`: its name, and the client's address as it sees
//! it. On TCP an HTTP request gets the line as an HTTP response, for `curl`. [`ask`] asks many servers at once.

mod burst;
mod client;
mod server;

pub use burst::{Heard, Question, ask};
pub use client::{Answers, Client, Connection, Failure, Reply};
pub use server::Server;

use rustix::net::{SocketType, ipproto};

/// A transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP, one association a socket.
    Sctp,
}

impl Protocol {
    /// All three.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Sctp];

    fn socket(self) -> (SocketType, rustix::net::Protocol) {
        match self {
            Self::Tcp => (SocketType::STREAM, ipproto::TCP),
            Self::Udp => (SocketType::DGRAM, ipproto::UDP),
            Self::Sctp => (SocketType::STREAM, ipproto::SCTP),
        }
    }
}

impl std::fmt::Display for Protocol {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        })
    }
}
