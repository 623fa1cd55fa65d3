//! What was sent and what has been answered. No I/O.

use std::{collections::BTreeMap, iter::Peekable};

use netlink_packet_core::{NetlinkMessage, NetlinkSerializable};

use crate::{
    Error, KernelError,
    wire::{self, Kind},
};

/// Messages that one `send` gives to the kernel.
#[derive(Debug, Default)]
pub(crate) struct Datagram {
    pub(crate) bytes: Vec<u8>,
    pub(crate) messages: usize,
    last_offset: usize,
}

impl Datagram {
    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
        self.messages = 0;
    }

    pub(crate) fn push<T: NetlinkSerializable>(&mut self, message: NetlinkMessage<T>, sequence: u32) {
        let length = message.buffer_len();
        self.push_sized(message, length, sequence);
    }

    fn push_sized<T: NetlinkSerializable>(
        &mut self,
        message: NetlinkMessage<T>,
        length: usize,
        sequence: u32,
    ) {
        self.last_offset = wire::push(&mut self.bytes, message, length, sequence);
        self.messages += 1;
    }

    /// Takes messages up to the limits. One message is always taken, however large.
    pub(crate) fn fill<T: NetlinkSerializable>(
        &mut self,
        messages: &mut Peekable<impl Iterator<Item = NetlinkMessage<T>>>,
        first_sequence: u32,
        max_messages: usize,
        max_bytes: usize,
    ) {
        self.clear();
        let mut length = 0;
        while self.messages < max_messages
            && let Some(message) = messages.next_if(|message| {
                length = message.buffer_len();
                self.messages == 0 || self.bytes.len() + wire::align(length) <= max_bytes
            })
        {
            let sequence = first_sequence.wrapping_add(self.messages as u32);
            self.push_sized(message, length, sequence);
        }
    }

    /// Asks for an acknowledgement of the message that was added last.
    pub(crate) fn request_ack_of_last(&mut self) {
        wire::request_ack(&mut self.bytes, self.last_offset);
    }
}

/// The errors of a datagram's messages, by their sequence numbers, until the last message is answered.
#[derive(Debug)]
pub(crate) struct Tally {
    first_sequence: u32,
    messages: usize,
    /// By their message: as a rule there is none.
    errors: BTreeMap<usize, KernelError>,
    /// The first message begins a transaction: an error of it is one of the whole.
    transaction: bool,
    answered: bool,
}

impl Tally {
    /// Of `messages` consecutive sequence numbers.
    pub(crate) fn new(first_sequence: u32, messages: usize) -> Self {
        Self {
            first_sequence,
            messages,
            errors: BTreeMap::new(),
            transaction: false,
            answered: false,
        }
    }

    /// Of a transaction: as many consecutive sequence numbers, the first of which is of the message that begins it.
    pub(crate) fn of_transaction(begin_sequence: u32, messages: usize) -> Self {
        Self {
            transaction: true,
            ..Self::new(begin_sequence, messages)
        }
    }

    /// Whether all messages are answered: by the answer to the last one, or to a transaction as a whole.
    pub(crate) fn answered(&self) -> bool {
        self.answered
    }

    /// Takes note of the answers in a datagram from the kernel. Others than those of this tally are ignored: they
    /// answer an earlier operation that was given up.
    pub(crate) fn note(&mut self, datagram: &[u8]) -> Result<(), Error> {
        for answer in wire::answers(datagram) {
            let answer = answer?;
            let index = answer.header.sequence_number.wrapping_sub(self.first_sequence) as usize;
            if index >= self.messages {
                continue;
            }
            let last = index + 1 == self.messages;
            let whole = index == 0 && self.transaction;
            match answer.kind {
                Kind::Ack => self.answered |= last,
                Kind::Error(kernel) => {
                    self.errors.insert(index, kernel);
                    self.answered |= last || whole;
                }
                Kind::Overrun => return Err(Error::Overrun),
                Kind::Done | Kind::Payload(_) | Kind::Noop => {}
            }
        }
        Ok(())
    }

    /// What failed, by the index of its message; `lost` is why the last message was not answered.
    pub(crate) fn failures(self, lost: Option<&Error>) -> BTreeMap<usize, Error> {
        let mut failures = BTreeMap::new();
        if let Some(lost) = lost.filter(|_| !self.answered) {
            failures.extend((0..self.messages).map(|index| (index, lost.clone())));
        }
        failures.extend(
            self.errors
                .into_iter()
                .map(|(index, error)| (index, error.into())),
        );
        failures
    }

    /// Of a transaction: the error of the whole, and those of its messages by index, not counting the one that
    /// begins it.
    pub(crate) fn refused(mut self) -> (Option<KernelError>, Vec<(usize, KernelError)>) {
        let whole = self.errors.remove(&0);
        let refused = self.errors.into_iter();
        (whole, refused.map(|(index, error)| (index - 1, error)).collect())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{Errno, wire::tests::error_frame};

    /// A message that is nothing but `0` bytes.
    struct Zeroes(usize);

    impl NetlinkSerializable for Zeroes {
        fn message_type(&self) -> u16 {
            0x20
        }
        fn buffer_len(&self) -> usize {
            self.0
        }
        fn serialize(&self, buffer: &mut [u8]) {
            buffer.fill(0);
        }
    }

    fn message(length: usize) -> NetlinkMessage<Zeroes> {
        NetlinkMessage::new(
            Default::default(),
            netlink_packet_core::NetlinkPayload::InnerMessage(Zeroes(length)),
        )
    }

    fn exists() -> Error {
        KernelError {
            errno: Errno::EXIST,
            message: None,
        }
        .into()
    }

    #[test]
    fn only_the_last_message_asks_for_an_acknowledgement() {
        let mut datagram = Datagram::default();
        let mut messages = [message(3), message(4)].into_iter().peekable();
        datagram.fill(&mut messages, 41, 10, 1000);
        datagram.request_ack_of_last();
        let headers: Vec<_> = wire::answers(&datagram.bytes)
            .map(|answer| answer.unwrap().header)
            .collect();
        let seen: Vec<_> = headers
            .iter()
            .map(|header| (header.length, header.flags, header.sequence_number))
            .collect();
        assert_eq!(seen, [(19, 1, 41), (20, 1 | 4, 42)]);
    }

    #[test]
    fn an_error_is_of_the_message_with_its_sequence_number() {
        let mut tally = Tally::new(u32::MAX, 3);
        let mut answers = error_frame(0, -17);
        // A stale answer of an operation before.
        answers.extend(error_frame(u32::MAX - 1, -1));
        answers.extend(error_frame(1, 0));
        tally.note(&answers).unwrap();
        assert!(tally.answered());
        assert_eq!(tally.failures(None), BTreeMap::from([(1, exists())]));
    }

    #[test]
    fn lost_answers_leave_what_is_known() {
        let mut tally = Tally::new(1, 3);
        tally.note(&error_frame(2, -17)).unwrap();
        assert!(!tally.answered());
        let failures = tally.failures(Some(&Error::Overrun));
        let expected = [(0, Error::Overrun), (1, exists()), (2, Error::Overrun)];
        assert_eq!(failures, BTreeMap::from(expected));
    }

    #[test]
    fn a_transaction_fails_by_its_messages_or_as_a_whole() {
        let exist = KernelError {
            errno: Errno::EXIST,
            message: None,
        };
        let mut tally = Tally::of_transaction(10, 3);
        let mut answers = error_frame(11, -17);
        answers.extend(error_frame(12, 0));
        tally.note(&answers).unwrap();
        assert!(tally.answered());
        assert_eq!(tally.refused(), (None, vec![(0, exist.clone())]));

        // The kernel refuses what begins it, and may have nothing more to say.
        let mut tally = Tally::of_transaction(10, 3);
        tally.note(&error_frame(10, -17)).unwrap();
        assert!(tally.answered());
        assert_eq!(tally.refused(), (Some(exist), vec![]));
    }

    proptest! {
        /// However the limits cut, each message is sent once and in order, and no datagram exceeds the limits
        /// unless a single message does.
        #[test]
        fn splitting_loses_and_reorders_nothing(
            lengths in prop::collection::vec(0_usize..200, 0..60),
            max_messages in 1_usize..10,
            max_bytes in 16_usize..600,
        ) {
            let mut messages = lengths.iter().map(|length| message(*length)).peekable();
            let mut datagram = Datagram::default();
            let mut sent = Vec::new();
            while messages.peek().is_some() {
                datagram.fill(&mut messages, sent.len() as u32, max_messages, max_bytes);
                prop_assert!((1..=max_messages).contains(&datagram.messages));
                prop_assert!(datagram.bytes.len() <= max_bytes || datagram.messages == 1);
                for answer in wire::answers(&datagram.bytes) {
                    let header = answer.unwrap().header;
                    prop_assert_eq!(header.sequence_number, sent.len() as u32);
                    sent.push(header.length as usize - 16);
                }
            }
            prop_assert_eq!(sent, lengths);
        }

        #[test]
        fn whatever_is_answered_only_what_was_sent_can_fail(datagram: Vec<u8>, messages in 0_usize..20) {
            let mut tally = Tally::new(0, messages);
            let noted = tally.note(&datagram);
            let failures = tally.failures(noted.err().as_ref());
            prop_assert!(failures.into_keys().all(|index| index < messages));
        }
    }
}
