use std::mem;

use netlink_packet_core::{NLA_F_NESTED, NLA_HEADER_SIZE, Nla};

use crate::wire::align;

/// A message's attributes, written one behind the other.
///
/// What does not fit in the buffer is only counted: the code that writes a message is also the one that knows how
/// long it is. Types of which thousands are sent implement `NetlinkSerializable` or `Emitable` with it, because
/// vectors of attributes cost an allocation for each level, and have the length of each attribute computed anew on
/// every level above it.
///
/// ```
/// use netlink_batch::Attributes;
///
/// let write = |attributes: &mut Attributes<'_>| attributes.nested(1, |nested| nested.value(2, &[7]));
/// let mut buffer = vec![0xff; Attributes::length(write)];
/// Attributes::write(&mut buffer, write);
/// // The numbers are in the byte order of the machine.
/// # #[cfg(target_endian = "little")]
/// assert_eq!(buffer, [12, 0, 1, 0x80, 5, 0, 2, 0, 7, 0, 0, 0]);
/// ```
#[derive(Debug)]
pub struct Attributes<'a> {
    /// What is left of the buffer.
    buffer: &'a mut [u8],
    length: usize,
}

impl<'a> Attributes<'a> {
    /// The bytes that `write` takes.
    pub fn length(write: impl FnOnce(&mut Attributes<'_>)) -> usize {
        let mut counted = Attributes {
            buffer: &mut [],
            length: 0,
        };
        write(&mut counted);
        counted.length
    }

    /// Has `write` fill a buffer, which has the [length](Self::length) that it takes.
    pub fn write(buffer: &mut [u8], write: impl FnOnce(&mut Attributes<'_>)) {
        write(&mut Attributes { buffer, length: 0 });
    }

    /// Bytes as they are: what a protocol has in front of the attributes, or other than them.
    #[inline(always)]
    pub fn bytes(&mut self, bytes: &[u8]) {
        if let Some(slot) = self.take(bytes.len()) {
            slot.copy_from_slice(bytes);
        }
    }

    /// An attribute with this value.
    #[inline(always)]
    pub fn value(&mut self, kind: u16, value: &[u8]) {
        self.padded(kind, value.len(), |slot| slot.copy_from_slice(value));
    }

    /// An attribute that holds a C string.
    #[inline]
    pub fn text(&mut self, kind: u16, value: &str) {
        self.padded(kind, value.len() + 1, |slot| {
            if let Some((end, text)) = slot.split_last_mut() {
                text.copy_from_slice(value.as_bytes());
                *end = 0;
            }
        });
    }

    /// An attribute that knows how to write itself.
    // Where the kind is known when this is compiled, so is the length, and not much is left.
    #[inline(always)]
    pub fn attribute(&mut self, attribute: &impl Nla) {
        self.padded(attribute.kind(), attribute.value_len(), |slot| {
            attribute.emit_value(slot);
        });
    }

    /// An attribute with those in it that `write` writes.
    #[inline(always)]
    pub fn nested(&mut self, kind: u16, write: impl FnOnce(&mut Self)) {
        self.composed(kind | NLA_F_NESTED, write);
    }

    /// An attribute whose value is written in parts, together a multiple of four bytes.
    #[inline(always)]
    pub fn composed(&mut self, kind: u16, write: impl FnOnce(&mut Self)) {
        let slot = self.take(NLA_HEADER_SIZE);
        let start = self.length;
        write(self);
        if let Some(slot) = slot {
            slot.copy_from_slice(&header(kind, self.length - start));
        }
    }

    /// One place for header, value and padding: where the length is known when this is compiled, it is looked at once.
    #[inline(always)]
    fn padded(&mut self, kind: u16, length: usize, write: impl FnOnce(&mut [u8])) {
        if let Some(slot) = self.take(NLA_HEADER_SIZE + align(length)) {
            let (head, rest) = slot.split_at_mut(NLA_HEADER_SIZE);
            let (value, padding) = rest.split_at_mut(length);
            head.copy_from_slice(&header(kind, length));
            write(value);
            padding.fill(0);
        }
    }

    /// The next bytes of the buffer, if there are as many.
    #[inline(always)]
    fn take(&mut self, length: usize) -> Option<&'a mut [u8]> {
        self.length += length;
        let (taken, rest) = mem::take(&mut self.buffer).split_at_mut_checked(length)?;
        self.buffer = rest;
        Some(taken)
    }
}

#[inline(always)]
fn header(kind: u16, value: usize) -> [u8; NLA_HEADER_SIZE] {
    // A message with an attribute that is too long for its length is refused by the kernel.
    let length = u16::try_from(NLA_HEADER_SIZE + value).unwrap_or(u16::MAX);
    let ([a, b], [c, d]) = (length.to_ne_bytes(), kind.to_ne_bytes());
    [a, b, c, d]
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::{DefaultNla, Emitable};
    use proptest::prelude::*;

    use super::*;

    fn emit(attribute: &DefaultNla) -> Vec<u8> {
        let mut bytes = vec![0xff; attribute.buffer_len()];
        attribute.emit(&mut bytes);
        bytes
    }

    proptest! {
        /// The attributes are those of netlink-packet-core.
        #[test]
        fn attributes_are_written_as_everywhere(
            kinds: [u8; 3],
            first in prop::collection::vec(any::<u8>(), 0..20),
            second in prop::collection::vec(any::<u8>(), 0..20),
        ) {
            let [outer, first_kind, second_kind] = kinds.map(u16::from);
            let write = |attributes: &mut Attributes<'_>| {
                attributes.bytes(&[1, 2, 3, 4]);
                attributes.nested(outer, |nested| {
                    nested.value(first_kind, &first);
                    nested.attribute(&DefaultNla::new(second_kind, second.clone()));
                });
            };
            let mut written = vec![0xff; Attributes::length(write)];
            Attributes::write(&mut written, write);
            let inner = [(first_kind, &first), (second_kind, &second)]
                .map(|(kind, value)| emit(&DefaultNla::new(kind, value.clone())));
            let mut expected = vec![1, 2, 3, 4];
            expected.extend(emit(&DefaultNla::new(outer | NLA_F_NESTED, inner.concat())));
            prop_assert_eq!(written, expected);
        }

        /// I8
        #[test]
        fn a_buffer_that_is_too_short_does_no_harm(short in 0_usize..40) {
            let write = |attributes: &mut Attributes<'_>| {
                attributes.nested(1, |nested| nested.value(2, &[7; 30]));
            };
            Attributes::write(&mut vec![0; short], write);
        }
    }
}
