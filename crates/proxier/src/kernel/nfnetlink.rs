//! Messages of netfilter's netlink protocol with their attributes as bytes: what is read with care, and what
//! netlink-packet-netfilter has no types for. Its decoders are not used because they panic where a nested attribute
//! is too short.

use std::convert::Infallible;

use netlink_packet_core::{
    DefaultNla, Emitable, NetlinkDeserializable, NetlinkHeader, NetlinkMessage, NetlinkPayload,
    NetlinkSerializable, NlasIterator,
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
pub(crate) fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    NlasIterator::new(bytes).map_while(Result::ok).map(|attribute| {
        let (kind, length) = (attribute.kind(), usize::from(attribute.length()));
        (kind, attribute.into_inner().get(4..length).unwrap_or_default())
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
