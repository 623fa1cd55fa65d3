//! Messages of netfilter's netlink protocol with their attributes as bytes: what is read with care, and what
//! netlink-packet-netfilter has no types for. Its decoders are not used because they panic where a nested attribute
//! is too short.

use std::convert::Infallible;

use netlink_packet_core::{
    DefaultNla, Emitable, NLA_ALIGNTO, NLA_HEADER_SIZE, NLA_TYPE_MASK, NetlinkDeserializable, NetlinkHeader,
    NetlinkMessage, NetlinkPayload, NetlinkSerializable,
};

/// A message.
#[derive(Debug)]
pub(crate) struct Message {
    /// The subsystem (`NFNL_SUBSYS_*`) in the upper byte, its command in the lower.
    pub(crate) message_type: u16,
    /// `AF_*` or `NFPROTO_*`, as the subsystem has it.
    pub(crate) family: u8,
    pub(crate) attributes: Vec<u8>,
}

/// Length of `struct nfgenmsg`.
const HEADER_LEN: usize = 4;

impl Message {
    /// A request with these attributes.
    pub(crate) fn new(message_type: u16, family: u8, attributes: &[DefaultNla]) -> NetlinkMessage<Self> {
        let message = Self {
            message_type,
            family,
            attributes: emit(attributes),
        };
        NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::InnerMessage(message))
    }
}

impl NetlinkSerializable for Message {
    fn message_type(&self) -> u16 {
        self.message_type
    }

    fn buffer_len(&self) -> usize {
        HEADER_LEN + self.attributes.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        if let Some((header, attributes)) = buffer.split_first_chunk_mut::<HEADER_LEN>() {
            *header = [self.family, 0, 0, 0];
            attributes.copy_from_slice(&self.attributes);
        }
    }
}

impl NetlinkDeserializable for Message {
    type Error = Infallible;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, Infallible> {
        Ok(Self {
            message_type: header.message_type,
            family: payload.first().copied().unwrap_or_default(),
            attributes: payload.get(HEADER_LEN..).unwrap_or_default().to_vec(),
        })
    }
}

/// An attribute that holds a C string.
pub(crate) fn text(kind: u16, value: &str) -> DefaultNla {
    DefaultNla::new(kind, [value.as_bytes(), &[0]].concat())
}

fn emit(attributes: &[DefaultNla]) -> Vec<u8> {
    let mut bytes = vec![0; attributes.buffer_len()];
    attributes.emit(&mut bytes);
    bytes
}

/// The kinds and values of attributes, up to the first that is malformed.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let [a, b, c, d] = *bytes.first_chunk()?;
        let length = usize::from(u16::from_ne_bytes([a, b]));
        let value = bytes.get(NLA_HEADER_SIZE..length)?;
        let next = length.next_multiple_of(NLA_ALIGNTO);
        bytes = bytes.get(next..).unwrap_or_default();
        Some((u16::from_ne_bytes([c, d]) & NLA_TYPE_MASK, value))
    })
}

/// The value of the first attribute of a kind.
pub(crate) fn find(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes)
        .find(|(found, _)| *found == kind)
        .map(|(_, value)| value)
}

/// The value of an attribute that holds a C string.
pub(crate) fn string(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.strip_suffix(&[0]).unwrap_or(bytes)).into_owned()
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::NlasIterator;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// The attributes are those of netlink-packet-core.
        #[test]
        fn attributes_are_read_as_everywhere(
            written: Vec<(u16, Vec<u8>)>,
            cut: prop::sample::Index,
            any_bytes: Vec<u8>,
        ) {
            let written = written.into_iter().map(|(kind, value)| DefaultNla::new(kind, value));
            let mut valid = emit(&written.collect::<Vec<_>>());
            valid.truncate(cut.index(valid.len() + 1));
            for bytes in [valid, any_bytes] {
                let expected = NlasIterator::new(&bytes).map_while(Result::ok);
                let expected = expected.map(|attribute| (attribute.kind(), attribute.value().to_vec()));
                let read = attributes(&bytes).map(|(kind, value)| (kind, value.to_vec()));
                prop_assert!(read.eq(expected));
            }
        }
    }
}
