use std::collections::BTreeMap;

use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_DUMP_INTR, NetlinkDeserializable, NetlinkMessage, NetlinkPayload, NetlinkSerializable,
};

use crate::{
    Error, TransactionError,
    batch::{Datagram, Tally},
    channel::Channel,
    wire::{self, Kind},
};

/// Limits of one `send`, which keep the memory that a batch needs, here and in the kernel, small. More messages
/// per send would gain nothing.
const MAX_MESSAGES: usize = 1000;
const MAX_BYTES: usize = 128 << 10;
/// What an error takes of the receive buffer, in bytes: the kernel counts its own bookkeeping too.
const ERROR_ROOM: usize = 2048;
/// `NFNL_MSG_BATCH_BEGIN` and `NFNL_MSG_BATCH_END`: the messages around a transaction.
const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
const NFNL_MSG_BATCH_END: u16 = 0x11;
/// How often a dump is tried that concurrent changes interrupt.
const DUMP_ATTEMPTS: usize = 5;

/// A netlink socket that executes one operation at a time.
///
/// An operation whose future is dropped half way may have been executed; the socket stays usable.
///
/// Sockets are made and used in a tokio runtime with I/O and time enabled.
#[derive(Debug)]
pub struct Socket {
    channel: Channel,
    next_sequence: u32,
    /// An operation was given up, and its answers may still be in the receive queue.
    unread: bool,
}

impl Socket {
    /// Opens a socket for a netlink protocol: one of `netlink_sys::protocols`.
    ///
    /// # Errors
    ///
    /// [`Error::Open`] if the kernel lacks the protocol.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn connect(protocol: isize) -> Result<Self, Error> {
        Ok(Self {
            channel: Channel::open(protocol)?,
            next_sequence: 1,
            unread: false,
        })
    }

    /// The socket's port, by which the kernel's notifications name who made a change.
    ///
    /// # Errors
    ///
    /// [`Error::Open`], which the kernel gives no cause for.
    pub fn port(&self) -> Result<u32, Error> {
        self.channel.port()
    }

    /// Executes independent messages in order, and returns what failed, by its index. A message that fails stops none of
    /// those that follow.
    ///
    /// Acknowledgements are this method's business: `NLM_F_ACK` of the messages is ignored, and so are replies
    /// other than errors.
    #[must_use = "what failed"]
    pub async fn batch<T: NetlinkSerializable>(
        &mut self,
        messages: impl IntoIterator<Item = NetlinkMessage<T>>,
    ) -> BTreeMap<usize, Error> {
        let mut messages = messages.into_iter().peekable();
        let (mut sent, mut failures) = (0, BTreeMap::new());
        let mut datagram = Datagram::default();
        let max_messages = (self.channel.receive_room() / ERROR_ROOM).clamp(1, MAX_MESSAGES);
        let max_bytes = self.channel.send_room().min(MAX_BYTES);
        while messages.peek().is_some() {
            let first = self.next_sequence;
            datagram.fill(&mut messages, first, max_messages, max_bytes);
            datagram.request_ack_of_last();
            self.next_sequence = first.wrapping_add(datagram.messages as u32);
            let mut tally = Tally::new(first, datagram.messages);
            let outcome = self.exchange(&datagram.bytes, &mut tally).await;
            let failed = tally.failures(outcome.err().as_ref()).into_iter();
            failures.extend(failed.map(|(index, error)| (sent + index, error)));
            sent += datagram.messages;
        }
        failures
    }

    /// Executes nfnetlink messages in one atomic transaction: all or none. `subsystem` (`NFNL_SUBSYS_*`) is the one
    /// that the messages belong to. The messages that frame the transaction are added here.
    ///
    /// # Errors
    ///
    /// [`TransactionError::Refused`] names each message that the kernel refused. [`Error::TooLarge`] if the
    /// transaction exceeds the send buffer and that could not be enlarged (which needs `CAP_NET_ADMIN`).
    pub async fn transaction<T: NetlinkSerializable>(
        &mut self,
        subsystem: u8,
        messages: impl IntoIterator<Item = NetlinkMessage<T>>,
    ) -> Result<(), TransactionError> {
        let begin = self.next_sequence;
        let mut datagram = Datagram::default();
        datagram.push(Boundary::message(NFNL_MSG_BATCH_BEGIN, subsystem), begin);
        for message in messages {
            datagram.push(message, begin.wrapping_add(datagram.messages as u32));
        }
        if datagram.messages == 1 {
            return Ok(());
        }
        // The end of a transaction is acknowledged by Linux 6.10 and later only.
        datagram.request_ack_of_last();
        let mut tally = Tally::of_transaction(begin, datagram.messages);
        let end = begin.wrapping_add(datagram.messages as u32);
        datagram.push(Boundary::message(NFNL_MSG_BATCH_END, subsystem), end);
        self.next_sequence = end.wrapping_add(1);

        self.channel.make_room(datagram.bytes.len());
        let outcome = self.exchange(&datagram.bytes, &mut tally).await;
        let (whole, refused) = tally.refused();
        if !refused.is_empty() {
            return Err(TransactionError::Refused(refused));
        }
        match whole {
            Some(error) => Err(Error::from(error).into()),
            None => Ok(outcome?),
        }
    }

    /// Sends `request` with `NLM_F_DUMP`, and returns what the kernel lists: all of it, or an error. A dump that
    /// was inconsistent because of a concurrent change is repeated a few times.
    ///
    /// # Errors
    ///
    /// [`Error::Interrupted`] if each repetition was inconsistent too; [`Error::Decode`] if a single message cannot
    /// be decoded.
    pub async fn dump<Q: NetlinkSerializable, R: NetlinkDeserializable>(
        &mut self,
        mut request: NetlinkMessage<Q>,
    ) -> Result<Vec<R>, Error> {
        request.header.flags |= NLM_F_DUMP;
        let sequence = self.take_sequence();
        let mut datagram = Datagram::default();
        datagram.push(request, sequence);
        for _ in 0..DUMP_ATTEMPTS {
            // The number serves again: an interrupted dump is read to its end.
            match self.query(&datagram, sequence).await {
                Err(Error::Interrupted) => {}
                result => return result,
            }
        }
        Err(Error::Interrupted)
    }

    /// Executes one message and returns the kernel's replies to it: none, if all it does is acknowledge.
    ///
    /// # Errors
    ///
    /// [`Error::Kernel`] if the kernel refuses it; [`Error::Decode`] if a reply cannot be decoded.
    pub async fn request<Q: NetlinkSerializable, R: NetlinkDeserializable>(
        &mut self,
        request: NetlinkMessage<Q>,
    ) -> Result<Vec<R>, Error> {
        let sequence = self.take_sequence();
        let mut datagram = Datagram::default();
        datagram.push(request, sequence);
        datagram.request_ack_of_last();
        self.query(&datagram, sequence).await
    }

    fn take_sequence(&mut self) -> u32 {
        let sequence = self.next_sequence;
        self.next_sequence = sequence.wrapping_add(1);
        sequence
    }

    /// Sends a datagram of one message and collects what the kernel answers to it.
    async fn query<T: NetlinkDeserializable>(
        &mut self,
        datagram: &Datagram,
        sequence: u32,
    ) -> Result<Vec<T>, Error> {
        self.send(&datagram.bytes).await?;
        let mut replies = Vec::new();
        let mut interrupted = false;
        loop {
            for answer in wire::answers(self.channel.receive_answer().await?) {
                let answer = answer?;
                if answer.header.sequence_number != sequence {
                    continue;
                }
                interrupted |= answer.header.flags & NLM_F_DUMP_INTR != 0;
                match answer.kind {
                    Kind::Payload(payload) => replies.push(wire::payload(&answer.header, payload)?),
                    Kind::Ack | Kind::Done => {
                        self.unread = false;
                        return if interrupted {
                            Err(Error::Interrupted)
                        } else {
                            Ok(replies)
                        };
                    }
                    Kind::Error(error) => {
                        self.unread = false;
                        return Err(error.into());
                    }
                    Kind::Overrun => return Err(Error::Overrun),
                    Kind::Noop => {}
                }
            }
        }
    }

    /// Sends messages and reads until all of them are answered.
    async fn exchange(&mut self, datagram: &[u8], tally: &mut Tally) -> Result<(), Error> {
        self.send(datagram).await?;
        while !tally.answered() {
            match self.channel.receive_answer().await {
                Ok(answers) => tally.note(answers)?,
                Err(lost) => {
                    // What was queued before the loss still counts.
                    while let Some(Ok(answers)) = self.channel.receive_queued() {
                        tally.note(answers)?;
                    }
                    return Err(lost);
                }
            }
        }
        self.unread = false;
        Ok(())
    }

    async fn send(&mut self, datagram: &[u8]) -> Result<(), Error> {
        if std::mem::replace(&mut self.unread, true) {
            // This also ends a dump that was given up: the kernel allows a socket one at a time.
            while !matches!(self.channel.receive_queued(), None | Some(Err(Error::Receive(_)))) {}
        }
        self.channel.send(datagram).await
    }
}

/// A message that begins or ends a transaction: a `struct nfgenmsg`.
struct Boundary {
    message_type: u16,
    subsystem: u8,
}

impl Boundary {
    fn message(message_type: u16, subsystem: u8) -> NetlinkMessage<Self> {
        NetlinkMessage::new(
            Default::default(),
            NetlinkPayload::InnerMessage(Self {
                message_type,
                subsystem,
            }),
        )
    }
}

impl NetlinkSerializable for Boundary {
    fn message_type(&self) -> u16 {
        self.message_type
    }

    fn buffer_len(&self) -> usize {
        4
    }

    fn serialize(&self, buffer: &mut [u8]) {
        // AF_UNSPEC, NFNETLINK_V0, and the subsystem in network byte order.
        buffer.copy_from_slice(&[0, 0, 0, self.subsystem]);
    }
}
