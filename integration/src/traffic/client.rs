//! A client that asks servers who they are, and whom they see.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, bind, connect, recv, send, socket_with, sockopt,
};

use crate::error::{Context, Result};
use crate::namespace::Namespace;
use crate::traffic::Protocol;

/// How long a client waits for a connection or an answer. Emulated guests are slow.
const PATIENCE: Duration = Duration::from_secs(3);

/// What a client says; a server answers anything.
pub(super) const QUESTION: &[u8] = b"who is there?\n";

/// Asks servers from a namespace.
#[derive(Debug, Clone, Copy)]
pub struct Client<'a> {
    namespace: &'a Namespace,
    source: Option<SocketAddr>,
}

/// What a server said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// The server's name.
    pub name: String,
    /// The client's address, as the server saw it.
    pub seen: IpAddr,
}

/// Why there was no reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// Nobody listens there, and somebody said so.
    #[error("refused")]
    Refused,
    /// No answer within a few seconds.
    #[error("timed out")]
    TimedOut,
    /// The server, or somebody in its name, ended the connection.
    #[error("connection reset")]
    Reset,
    /// Anything else.
    #[error("{0}")]
    Other(Errno),
}

/// What came of asking several times, each time on a new connection.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Answers {
    /// How often each server answered, by its name.
    pub by: BTreeMap<String, usize>,
    /// The client addresses that the servers saw.
    pub seen: BTreeSet<IpAddr>,
    /// The failures, in order.
    pub failures: Vec<Failure>,
}

impl<'a> Client<'a> {
    /// A client in this namespace.
    #[must_use]
    pub fn new(namespace: &'a Namespace) -> Self {
        Self {
            namespace,
            source: None,
        }
    }

    /// Sends from this address, or this address and port, rather than from what the kernel chooses.
    #[must_use]
    pub fn from(mut self, source: impl Into<SocketAddr>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Asks `count` times, each time on a new connection.
    ///
    /// # Errors
    /// The socket to ask with could not be made; that nobody answers is no error.
    pub fn ask(&self, protocol: Protocol, to: SocketAddr, count: usize) -> Result<Answers> {
        let mut answers = Answers::default();
        self.namespace.enter(|| {
            for _ in 0..count {
                let reply = match open(protocol, to, self.source)? {
                    Ok(connection) => connection.ask(),
                    Err(failure) => Err(failure),
                };
                answers.note(reply);
            }
            Ok(())
        })?;
        Ok(answers)
    }

    /// Opens a connection and keeps it.
    ///
    /// # Errors
    /// The socket could not be made; the connection's own failure is in the result.
    pub fn connect(
        &self,
        protocol: Protocol,
        to: SocketAddr,
    ) -> Result<std::result::Result<Connection, Failure>> {
        self.namespace.enter(|| open(protocol, to, self.source))
    }
}

/// An open connection, or a UDP socket that is bound to its peer.
#[derive(Debug)]
pub struct Connection {
    socket: OwnedFd,
}

impl Connection {
    /// Asks the server at the other end.
    ///
    /// # Errors
    /// There was no answer.
    pub fn ask(&self) -> std::result::Result<Reply, Failure> {
        send(&self.socket, QUESTION, SendFlags::NOSIGNAL)?;
        ready(&self.socket, PollFlags::IN)?;
        let mut buffer = [0; 512];
        let (read, _) = recv(&self.socket, &mut buffer[..], RecvFlags::empty())?;
        Reply::parse(buffer.get(..read).unwrap_or_default())
    }
}

impl Reply {
    /// Reads a server's line; an end of the connection in its place is a reset.
    pub(super) fn parse(line: &[u8]) -> std::result::Result<Self, Failure> {
        let text = String::from_utf8_lossy(line);
        let (name, seen) = text.trim_end().split_once(' ').ok_or(Failure::Reset)?;
        Ok(Self {
            name: name.to_owned(),
            seen: seen.parse().map_err(|_| Failure::Other(Errno::BADMSG))?,
        })
    }
}

fn open(
    protocol: Protocol,
    to: SocketAddr,
    source: Option<SocketAddr>,
) -> Result<std::result::Result<Connection, Failure>> {
    let (kind, number) = protocol.socket();
    let family = if to.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket =
        socket_with(family, kind, flags, Some(number)).context(|| format!("make a {protocol} socket"))?;
    if let Some(source) = source {
        let bound = sockopt::set_socket_reuseaddr(&socket, true).and_then(|()| bind(&socket, &source));
        bound.context(|| format!("bind to {source}"))?;
    }
    let connected = match connect(&socket, &to) {
        Err(Errno::INPROGRESS) => ready(&socket, PollFlags::OUT),
        other => other.map_err(Failure::from),
    };
    Ok(connected.map(|()| Connection { socket }))
}

/// Waits for the socket, and takes its pending error.
fn ready(socket: &OwnedFd, events: PollFlags) -> std::result::Result<(), Failure> {
    let patience = Timespec {
        tv_sec: PATIENCE.as_secs().cast_signed(),
        tv_nsec: 0,
    };
    match poll(&mut [PollFd::new(socket, events)], Some(&patience))? {
        0 => Err(Failure::TimedOut),
        _ => Ok(sockopt::socket_error(socket)??),
    }
}

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::CONNREFUSED => Self::Refused,
            Errno::TIMEDOUT => Self::TimedOut,
            Errno::CONNRESET | Errno::PIPE => Self::Reset,
            other => Self::Other(other),
        }
    }
}

impl Answers {
    fn note(&mut self, reply: std::result::Result<Reply, Failure>) {
        match reply {
            Ok(Reply { name, seen }) => {
                *self.by.entry(name).or_default() += 1;
                self.seen.insert(seen);
            }
            Err(failure) => self.failures.push(failure),
        }
    }

    /// The names of the servers that answered, in alphabetical order; nothing unless every question was answered.
    #[must_use]
    pub fn names(&self) -> Option<Vec<&str>> {
        self.failures
            .is_empty()
            .then(|| self.by.keys().map(String::as_str).collect())
    }

    /// The one client address that all servers saw.
    #[must_use]
    pub fn seen(&self) -> Option<IpAddr> {
        self.seen.first().copied().filter(|_| self.seen.len() == 1)
    }
}

/// `2 web-1, 2 web-2, seen as 10.244.0.1; 1 refused`.
impl fmt::Display for Answers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let by: Vec<_> = self
            .by
            .iter()
            .map(|(name, count)| format!("{count} {name}"))
            .collect();
        f.write_str(&by.join(", "))?;
        if !self.seen.is_empty() {
            let seen: Vec<_> = self.seen.iter().map(ToString::to_string).collect();
            write!(f, ", seen as {}", seen.join(" and "))?;
        }
        let mut failures: BTreeMap<String, usize> = BTreeMap::new();
        for failure in &self.failures {
            *failures.entry(failure.to_string()).or_default() += 1;
        }
        let separator = if self.by.is_empty() { "" } else { "; " };
        let failures: Vec<_> = failures
            .iter()
            .map(|(what, count)| format!("{count} {what}"))
            .collect();
        if !failures.is_empty() {
            write!(f, "{separator}{}", failures.join(", "))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_counted_and_told() {
        let mut answers = Answers::default();
        let reply = |name: &str| {
            Ok(Reply {
                name: name.into(),
                seen: [10, 244, 0, 1].into(),
            })
        };
        answers.note(reply("b"));
        answers.note(reply("a"));
        answers.note(reply("b"));
        assert_eq!(answers.to_string(), "1 a, 2 b, seen as 10.244.0.1");
        assert_eq!(answers.names(), Some(vec!["a", "b"]));
        assert_eq!(answers.seen(), Some([10, 244, 0, 1].into()));
        answers.note(Err(Failure::Refused));
        assert_eq!(answers.to_string(), "1 a, 2 b, seen as 10.244.0.1; 1 refused");
        assert_eq!(answers.names(), None);
    }
}
