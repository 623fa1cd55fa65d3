//! Many questions at once, from one namespace and one thread.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, connect, ipproto, recv, send, socket_with,
    sockopt,
};

use crate::error::{Context, Result};
use crate::namespace::Namespace;
use crate::traffic::Protocol;
use crate::traffic::client::{Failure, QUESTION, Reply};

/// How many calls may be under way and young. More would only make each other late.
const YOUNG_CALLS: usize = 16;

/// The age at which a call is likely to get no answer at all.
const YOUTH: Duration = Duration::from_millis(200);

/// Echo requests: type, code, checksum and identifier, which the kernel fills in, and a sequence number.
const ECHO: &[u8] = &[8, 0, 0, 0, 0, 0, 0, 1];
const ECHO_V6: &[u8] = &[128, 0, 0, 0, 0, 0, 0, 1];

/// What somebody is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Question {
    /// A server: its name, and whom it sees.
    Server(Protocol, SocketAddr),
    /// A host: an ICMP echo. The namespace's `net.ipv4.ping_group_range` is to admit group 0.
    Echo(IpAddr),
}

impl Question {
    /// The address that is asked.
    #[must_use]
    pub fn ip(&self) -> IpAddr {
        match self {
            Self::Server(_, address) => address.ip(),
            Self::Echo(ip) => *ip,
        }
    }
}

impl fmt::Display for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Server(protocol, address) => write!(f, "{protocol} {address}"),
            Self::Echo(address) => write!(f, "ICMP {address}"),
        }
    }
}

/// What came of one question that was asked several times, each time by a new call.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Heard {
    /// The servers that answered, with the client addresses that each saw.
    pub by: BTreeMap<String, BTreeSet<IpAddr>>,
    /// An echo came back.
    pub echo: bool,
    /// How calls failed.
    pub failures: BTreeSet<String>,
}

impl Heard {
    /// Adds what came of the same question at another time.
    pub fn merge(&mut self, other: Self) {
        for (name, seen) in other.by {
            self.by.entry(name).or_default().extend(seen);
        }
        self.echo |= other.echo;
        self.failures.extend(other.failures);
    }

    fn note(&mut self, result: std::result::Result<Said, Failure>) {
        match result {
            Ok(Said::Reply(Reply { name, seen })) => {
                self.by.entry(name).or_default().insert(seen);
            }
            Ok(Said::Echo) => self.echo = true,
            Err(failure) => {
                self.failures.insert(failure.to_string());
            }
        }
    }
}

/// Asks each question as often as it says, and gives what came of each.
///
/// The calls of one question begin at the same moment, and while `picking` is held: a scheduler that goes round
/// `n` servers has picked each of them after `n` calls. Nobody waits longer than `patience` for one answer.
///
/// # Errors
/// A socket could not be made; that nobody answers is no error.
pub fn ask(
    namespace: &Namespace,
    questions: &[(Question, usize)],
    picking: &Mutex<()>,
    patience: Duration,
) -> Result<Vec<Heard>> {
    namespace.enter(|| {
        let mut heard = vec![Heard::default(); questions.len()];
        let mut calls: Vec<Call> = Vec::new();
        let mut waiting = questions.iter().enumerate();
        let mut all_asked = false;
        loop {
            while !all_asked && calls.iter().filter(|call| call.begun.elapsed() < YOUTH).count() < YOUNG_CALLS
            {
                let Some((number, (question, times))) = waiting.next() else {
                    all_asked = true;
                    break;
                };
                let _turn = picking.lock().unwrap_or_else(PoisonError::into_inner);
                for _ in 0..*times {
                    match Call::begin(number, *question)? {
                        Ok(call) => calls.push(call),
                        Err(failure) => note(&mut heard, number, Err(failure)),
                    }
                }
            }
            if calls.is_empty() && all_asked {
                return Ok(heard);
            }
            for (number, result) in wait(&mut calls, patience)? {
                note(&mut heard, number, result);
            }
        }
    })
}

fn note(heard: &mut [Heard], number: usize, result: std::result::Result<Said, Failure>) {
    if let Some(heard) = heard.get_mut(number) {
        heard.note(result);
    }
}

enum Said {
    Reply(Reply),
    Echo,
}

/// A question under way.
struct Call {
    /// The number of the question.
    number: usize,
    socket: OwnedFd,
    begun: Instant,
    message: &'static [u8],
    echo: bool,
    asked: bool,
}

type Ended = (usize, std::result::Result<Said, Failure>);

/// Waits until something has happened, and gives the calls that ended.
fn wait(calls: &mut Vec<Call>, patience: Duration) -> Result<Vec<Ended>> {
    let mut fds: Vec<_> = calls
        .iter()
        .map(|call| {
            let awaited = if call.asked { PollFlags::IN } else { PollFlags::OUT };
            PollFd::new(&call.socket, awaited)
        })
        .collect();
    // Whoever waits to begin does so once others have aged; nothing is lost by looking again soon.
    let pause = Timespec {
        tv_sec: 0,
        tv_nsec: YOUTH.subsec_nanos().into(),
    };
    match poll(&mut fds, Some(&pause)) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(error) => return Err(error).context(|| "wait for answers".into()),
    }
    let ready: Vec<_> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
    let mut ended = Vec::new();
    let mut ready = ready.into_iter();
    calls.retain_mut(|call| {
        let result = if ready.next() == Some(true) {
            call.proceed()
        } else if call.begun.elapsed() > patience {
            Some(Err(Failure::TimedOut))
        } else {
            None
        };
        let goes_on = result.is_none();
        ended.extend(result.map(|result| (call.number, result)));
        goes_on
    });
    Ok(ended)
}

impl Call {
    fn begin(number: usize, question: Question) -> Result<std::result::Result<Self, Failure>> {
        let (to, (kind, protocol), message) = match question {
            Question::Server(protocol, to) => (to, protocol.socket(), QUESTION),
            Question::Echo(ip) => {
                let (protocol, message) = match ip {
                    IpAddr::V4(_) => (ipproto::ICMP, ECHO),
                    IpAddr::V6(_) => (ipproto::ICMPV6, ECHO_V6),
                };
                (SocketAddr::new(ip, 0), (SocketType::DGRAM, protocol), message)
            }
        };
        let family = if to.is_ipv4() {
            AddressFamily::INET
        } else {
            AddressFamily::INET6
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(family, kind, flags, Some(protocol))
            .context(|| format!("make a socket to ask {question}"))?;
        let mut call = Self {
            number,
            socket,
            begun: Instant::now(),
            message,
            echo: matches!(question, Question::Echo(_)),
            asked: false,
        };
        let begun = match connect(&call.socket, &to) {
            Err(Errno::INPROGRESS) => Ok(()),
            // A datagram is what a scheduler sees.
            Ok(()) if kind == SocketType::DGRAM => call.send(),
            other => other.map_err(Failure::from),
        };
        Ok(begun.map(|()| call))
    }

    fn send(&mut self) -> std::result::Result<(), Failure> {
        send(&self.socket, self.message, SendFlags::NOSIGNAL)?;
        self.asked = true;
        Ok(())
    }

    /// Does what the ready socket asks for, and gives the answer if it is there.
    fn proceed(&mut self) -> Option<std::result::Result<Said, Failure>> {
        let mut step = || {
            sockopt::socket_error(&self.socket)??;
            if !self.asked {
                self.send()?;
                return Ok(None);
            }
            let mut buffer = [0; 512];
            let (read, _) = match recv(&self.socket, &mut buffer[..], RecvFlags::empty()) {
                Err(Errno::AGAIN) => return Ok(None),
                other => other?,
            };
            if self.echo {
                return Ok(Some(Said::Echo));
            }
            Reply::parse(buffer.get(..read).unwrap_or_default()).map(|reply| Some(Said::Reply(reply)))
        };
        step().transpose()
    }
}
