//! What was sent to the kernel, and sending it again.

use std::{
    collections::HashSet,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use netlink_sys::protocols::NETLINK_NETFILTER;
use rustix::{
    io::Errno,
    net::{self, RecvFlags, SendFlags, sockopt},
};
use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    subscriber::Interest,
};
use tracing_subscriber::layer::{Context, Layer};

/// Where `netlink-batch` tells what it sends.
const SENDING: &str = "netlink_batch::channel";

const HEADER: usize = 16;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
const NFNL_MSG_BATCH_END: u16 = 0x11;
/// `NFT_MSG_NEWSETELEM` and `NFT_MSG_DELSETELEM` of `NFNL_SUBSYS_NFTABLES`.
const ELEMENTS: [u16; 2] = [0xa0c, 0xa0e];

/// The largest batches of independent messages, in bytes: larger ones gain nothing. A transaction is one batch.
const BATCH: usize = 1 << 20;
const SOCKET_BUFFER: usize = 32 << 20;

/// A datagram to the kernel.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sent {
    protocol: isize,
    bytes: Vec<u8>,
}

/// Takes down what is sent.
#[derive(Default)]
pub(crate) struct Recorder {
    recording: AtomicBool,
    tape: Mutex<Vec<Sent>>,
    /// The warnings that were passed on: each start has the same.
    warned: Mutex<HashSet<String>>,
}

impl Recorder {
    pub(crate) fn start(&self) {
        self.tape.lock().unwrap().clear();
        self.recording.store(true, Ordering::Relaxed);
    }

    pub(crate) fn stop(&self) -> Vec<Sent> {
        self.recording.store(false, Ordering::Relaxed);
        std::mem::take(&mut self.tape.lock().unwrap())
    }
}

impl<S: Subscriber> Layer<S> for &'static Recorder {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if metadata.target() == SENDING {
            Interest::sometimes()
        } else if *metadata.level() <= Level::WARN {
            Interest::always()
        } else {
            Interest::never()
        }
    }

    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        metadata.target() != SENDING || self.recording.load(Ordering::Relaxed)
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut told = Told::default();
        event.record(&mut told);
        if event.metadata().target() == SENDING {
            self.tape.lock().unwrap().push(told.sent);
        } else if self.warned.lock().unwrap().insert(told.text.clone()) {
            eprintln!("limit: the proxier says: {}", told.text);
        }
    }
}

/// The fields of an event.
#[derive(Default)]
struct Told {
    text: String,
    sent: Sent,
}

impl Visit for Told {
    fn record_i64(&mut self, field: &Field, value: i64) {
        if field.name() == "protocol" {
            self.sent.protocol = value as isize;
        }
    }

    fn record_bytes(&mut self, field: &Field, value: &[u8]) {
        if field.name() == "datagram" {
            self.sent.bytes = value.to_vec();
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        if field.name() == "message" {
            self.text = format!("{value:?}");
        }
    }
}

/// Datagrams that are ready to be sent, with their sockets.
pub(crate) struct Replay {
    sockets: Vec<(isize, netlink_sys::Socket)>,
    datagrams: Vec<Sent>,
}

impl Replay {
    /// The same messages, protocol by protocol, in as few datagrams as the kernel takes.
    pub(crate) fn batches(tape: &[Sent]) -> Self {
        let mut protocols: Vec<isize> = Vec::new();
        for sent in tape {
            if !protocols.contains(&sent.protocol) {
                protocols.push(sent.protocol);
            }
        }
        let datagrams = protocols.iter().flat_map(|protocol| {
            let messages = tape.iter().filter(|sent| sent.protocol == *protocol);
            let messages: Vec<_> = messages.flat_map(|sent| messages_of(&sent.bytes)).collect();
            let bytes = match *protocol {
                NETLINK_NETFILTER => vec![transaction(&messages)],
                _ => independent(&messages),
            };
            bytes.into_iter().map(|bytes| Sent {
                protocol: *protocol,
                bytes,
            })
        });
        Self::of(datagrams.collect())
    }

    /// As they were sent.
    pub(crate) fn as_sent(tape: &[Sent]) -> Self {
        Self::of(tape.to_vec())
    }

    fn of(datagrams: Vec<Sent>) -> Self {
        let mut sockets: Vec<(isize, netlink_sys::Socket)> = Vec::new();
        for sent in &datagrams {
            if !sockets.iter().any(|(protocol, _)| *protocol == sent.protocol) {
                sockets.push((sent.protocol, socket(sent.protocol)));
            }
        }
        Self { sockets, datagrams }
    }

    fn socket(&self, sent: &Sent) -> &netlink_sys::Socket {
        let found = self
            .sockets
            .iter()
            .find(|(protocol, _)| *protocol == sent.protocol);
        &found.unwrap().1
    }

    /// Has the kernel execute everything.
    pub(crate) fn write(&self) {
        let mut buffer = vec![0; 128 << 10];
        for sent in &self.datagrams {
            let socket = self.socket(sent);
            net::send(socket, &sent.bytes, SendFlags::empty()).unwrap();
            // It has been executed, and what there is to be said of it is in the queue.
            loop {
                match net::recv(socket, &mut buffer[..], RecvFlags::DONTWAIT) {
                    Ok((length, _)) => expect_success(&buffer[..length]),
                    Err(Errno::AGAIN) => break,
                    Err(errno) => panic!("cannot read the kernel's answers: {errno}"),
                }
            }
        }
    }

    /// Has the kernel list everything.
    pub(crate) fn read(&self) {
        let mut buffer = vec![0; 128 << 10];
        for sent in &self.datagrams {
            let socket = self.socket(sent);
            let flags = u16::from_ne_bytes([sent.bytes[6], sent.bytes[7]]);
            let is_dump = flags & NLM_F_DUMP == NLM_F_DUMP;
            net::send(socket, &sent.bytes, SendFlags::empty()).unwrap();
            let mut ended = false;
            while !ended {
                let (length, _) = net::recv(socket, &mut buffer[..], RecvFlags::empty()).unwrap();
                // Only the last message of the last datagram is of interest.
                ended = messages_of(&buffer[..length]).last().is_none_or(|message| {
                    let kind = kind(message);
                    kind == NLMSG_DONE || kind == NLMSG_ERROR || !is_dump && flags & NLM_F_ACK == 0
                });
            }
        }
    }
}

fn socket(protocol: isize) -> netlink_sys::Socket {
    let socket = netlink_sys::Socket::new(protocol).unwrap();
    socket.connect(&netlink_sys::SocketAddr::new(0, 0)).unwrap();
    socket.set_cap_ack(true).unwrap();
    sockopt::set_socket_recv_buffer_size_force(&socket, SOCKET_BUFFER).unwrap();
    sockopt::set_socket_send_buffer_size_force(&socket, SOCKET_BUFFER).unwrap();
    socket
}

/// Cuts a datagram into its messages, each with its padding.
fn messages_of(mut datagram: &[u8]) -> Vec<&[u8]> {
    let mut messages = Vec::new();
    while datagram.len() >= HEADER {
        let length = u32::from_ne_bytes(datagram[..4].try_into().unwrap()) as usize;
        let (message, rest) = datagram.split_at(length.next_multiple_of(4).min(datagram.len()));
        messages.push(message);
        datagram = rest;
    }
    messages
}

fn kind(message: &[u8]) -> u16 {
    u16::from_ne_bytes([message[4], message[5]])
}

fn with_ack(message: &[u8], ack: bool) -> Vec<u8> {
    let mut message = message.to_vec();
    let flags = u16::from_ne_bytes([message[6], message[7]]);
    let flags = if ack {
        flags | NLM_F_ACK
    } else {
        flags & !NLM_F_ACK
    };
    message[6..8].copy_from_slice(&flags.to_ne_bytes());
    message
}

/// Batches of at most [`BATCH`] bytes, of which the last message is acknowledged.
fn independent(messages: &[&[u8]]) -> Vec<Vec<u8>> {
    let mut batches = vec![Vec::new()];
    let mut messages = messages.iter().peekable();
    while let Some(message) = messages.next() {
        let next = messages.peek().map_or(BATCH, |next| next.len());
        let batch = batches.last_mut().unwrap();
        let is_last = batch.len() + message.len() + next > BATCH;
        batch.extend(with_ack(message, is_last));
        if is_last && messages.peek().is_some() {
            batches.push(Vec::new());
        }
    }
    batches
}

/// All of several transactions in one. What is read in between, such as flows, is no part of it.
fn transaction(messages: &[&[u8]]) -> Vec<u8> {
    let is = |message: &&&[u8], wanted| kind(message) == wanted;
    let begin = messages.iter().find(|message| is(message, NFNL_MSG_BATCH_BEGIN));
    let end = messages.iter().find(|message| is(message, NFNL_MSG_BATCH_END));
    let inner: Vec<_> = messages
        .iter()
        .filter(|message| ELEMENTS.contains(&kind(message)))
        .collect();
    let last = inner.len().saturating_sub(1);
    let mut bytes = begin.unwrap().to_vec();
    for (index, message) in inner.into_iter().enumerate() {
        bytes.extend(with_ack(message, index == last));
    }
    bytes.extend_from_slice(end.unwrap());
    bytes
}

fn expect_success(answers: &[u8]) {
    for answer in messages_of(answers) {
        let code = i32::from_ne_bytes(answer[HEADER..HEADER + 4].try_into().unwrap());
        assert!(
            kind(answer) != NLMSG_ERROR || code == 0,
            "the kernel refused a message: {code}"
        );
    }
}
