//! Netlink's framing: messages into a datagram, and a datagram into answers. No I/O, and no panic on any bytes.

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_ACK_TLVS, NLM_F_CAPPED, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NLMSG_NOOP,
    NLMSG_OVERRUN, NetlinkBuffer, NetlinkDeserializable, NetlinkHeader, NetlinkMessage, NetlinkSerializable,
    NlasIterator, Parseable,
};

use crate::{Errno, Error, KernelError};

const HEADER_LEN: usize = 16;
const FLAGS_OFFSET: usize = 6;
/// `NLMSGERR_ATTR_MSG`: the kernel's explanation, a C string.
const NLMSGERR_ATTR_MSG: u16 = 1;

/// Room that a message of `length` bytes takes in a datagram.
pub(crate) const fn align(length: usize) -> usize {
    length.next_multiple_of(4)
}

/// Appends `message` as a request without acknowledgement, and returns its offset. `length` is its
/// [`buffer_len`](NetlinkMessage::buffer_len), which may be costly.
pub(crate) fn push<T: NetlinkSerializable>(
    datagram: &mut Vec<u8>,
    mut message: NetlinkMessage<T>,
    length: usize,
    sequence: u32,
) -> usize {
    message.header.flags = (message.header.flags | NLM_F_REQUEST) & !NLM_F_ACK;
    message.header.sequence_number = sequence;
    message.header.port_number = 0;
    message.header.length = length as u32;
    message.header.message_type = message.payload.message_type();
    let offset = datagram.len();
    datagram.resize(offset + align(length), 0);
    if let Some(slot) = datagram.get_mut(offset..offset + length) {
        message.serialize(slot);
    }
    offset
}

/// Asks for an acknowledgement of the message at `offset`.
pub(crate) fn request_ack(datagram: &mut [u8], offset: usize) {
    if let Some([low, high]) = datagram.get_mut(offset + FLAGS_OFFSET..offset + FLAGS_OFFSET + 2) {
        let flags = u16::from_ne_bytes([*low, *high]) | NLM_F_ACK;
        [*low, *high] = flags.to_ne_bytes();
    }
}

/// A message from the kernel.
#[derive(Debug)]
pub(crate) struct Answer<'a> {
    pub(crate) header: NetlinkHeader,
    pub(crate) kind: Kind<'a>,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Kind<'a> {
    /// The message with this sequence number, and any before it in the same datagram, was executed.
    Ack,
    /// The message with this sequence number failed.
    Error(KernelError),
    /// A multipart answer is complete.
    Done,
    /// The payload of a message of the protocol at hand.
    Payload(&'a [u8]),
    /// `NLMSG_OVERRUN`: data were lost.
    Overrun,
    /// To be ignored.
    Noop,
}

/// Splits a datagram; ends after the first message that is malformed.
pub(crate) fn answers(mut datagram: &[u8]) -> impl Iterator<Item = Result<Answer<'_>, Error>> {
    std::iter::from_fn(move || {
        if datagram.is_empty() {
            return None;
        }
        let answer = split_first(datagram);
        datagram = match &answer {
            Ok(answer) => datagram
                .get(align(answer.header.length as usize)..)
                .unwrap_or_default(),
            Err(_) => &[],
        };
        Some(answer)
    })
}

fn split_first(datagram: &[u8]) -> Result<Answer<'_>, Error> {
    let buffer = NetlinkBuffer::new_checked(datagram).map_err(decode)?;
    let header = NetlinkHeader::parse(&buffer).map_err(decode)?;
    let payload = datagram
        .get(HEADER_LEN..header.length as usize)
        .unwrap_or_default();
    let kind = match header.message_type {
        NLMSG_NOOP => Kind::Noop,
        NLMSG_OVERRUN => Kind::Overrun,
        NLMSG_ERROR => match code(payload)? {
            0 => Kind::Ack,
            code => {
                // The refused request follows the code: only its header (NLM_F_CAPPED), or all of it.
                let request = payload.get(4..).unwrap_or_default();
                let request_len = match request.first_chunk::<4>() {
                    Some(length) if header.flags & NLM_F_CAPPED == 0 => {
                        align((u32::from_ne_bytes(*length) as usize).min(payload.len()))
                    }
                    _ => HEADER_LEN,
                };
                Kind::Error(kernel_error(code, &header, request.get(request_len..))?)
            }
        },
        NLMSG_DONE => match code(payload) {
            Ok(code) if code < 0 => Kind::Error(kernel_error(code, &header, payload.get(4..))?),
            // An old kernel's NLMSG_DONE may be empty.
            _ => Kind::Done,
        },
        _ => Kind::Payload(payload),
    };
    Ok(Answer { header, kind })
}

fn code(payload: &[u8]) -> Result<i32, Error> {
    let code = payload
        .first_chunk::<4>()
        .ok_or_else(|| decode("an error message without its code"))?;
    Ok(i32::from_ne_bytes(*code))
}

fn kernel_error(code: i32, header: &NetlinkHeader, attributes: Option<&[u8]>) -> Result<KernelError, Error> {
    // The range of errno; what is outside of it `Errno` cannot hold.
    if !(-4095..0).contains(&code) {
        return Err(decode(format!("{code} is not an error code")));
    }
    let attributes = attributes
        .filter(|_| header.flags & NLM_F_ACK_TLVS != 0)
        .unwrap_or_default();
    let message = NlasIterator::new(attributes)
        .map_while(Result::ok)
        .find(|attribute| attribute.kind() == NLMSGERR_ATTR_MSG)
        .map(|attribute| {
            let text = attribute.value();
            String::from_utf8_lossy(text.strip_suffix(&[0]).unwrap_or(text)).into_owned()
        });
    Ok(KernelError {
        errno: Errno::from_raw_os_error(-code),
        message,
    })
}

/// Decodes the payload of a message of the protocol at hand.
pub(crate) fn payload<T: NetlinkDeserializable>(header: &NetlinkHeader, payload: &[u8]) -> Result<T, Error> {
    T::deserialize(header, payload).map_err(decode)
}

fn decode(reason: impl ToString) -> Error {
    Error::Decode(reason.to_string())
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A message as the kernel would send it.
    pub(crate) fn frame(message_type: u16, flags: u16, sequence: u32, payload: &[u8]) -> Vec<u8> {
        let length = HEADER_LEN + payload.len();
        let mut bytes = (length as u32).to_ne_bytes().to_vec();
        bytes.extend(message_type.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend(sequence.to_ne_bytes());
        bytes.extend(0_u32.to_ne_bytes());
        bytes.extend(payload);
        bytes.resize(align(length), 0);
        bytes
    }

    /// `NLMSG_ERROR` with the header of the refused request, as with `NETLINK_CAP_ACK`.
    pub(crate) fn error_frame(sequence: u32, code: i32) -> Vec<u8> {
        let mut payload = code.to_ne_bytes().to_vec();
        payload.extend([0; HEADER_LEN]);
        frame(NLMSG_ERROR, NLM_F_CAPPED, sequence, &payload)
    }

    fn kinds(datagram: &[u8]) -> Vec<Result<Kind<'_>, Error>> {
        answers(datagram)
            .map(|answer| answer.map(|answer| answer.kind))
            .collect()
    }

    #[test]
    fn answers_are_told_apart() {
        let mut datagram = error_frame(7, 0);
        datagram.extend(error_frame(8, -17));
        datagram.extend(frame(NLMSG_DONE, 0, 9, &0_i32.to_ne_bytes()));
        datagram.extend(frame(NLMSG_DONE, 0, 9, &[]));
        datagram.extend(frame(NLMSG_DONE, 0, 9, &(-12_i32).to_ne_bytes()));
        datagram.extend(frame(20, 0, 9, &[1, 2, 3]));
        let kinds: Vec<_> = kinds(&datagram).into_iter().map(Result::unwrap).collect();
        let error = |errno| Kind::Error(KernelError { errno, message: None });
        assert_eq!(
            kinds,
            [
                Kind::Ack,
                error(Errno::EXIST),
                Kind::Done,
                Kind::Done,
                error(Errno::NOMEM),
                Kind::Payload(&[1, 2, 3])
            ]
        );
    }

    #[test]
    fn the_explanation_is_found_behind_a_capped_and_behind_a_whole_request() {
        let request = frame(20, 1, 3, &[0xff; 20]);
        let mut text = 13_u16.to_ne_bytes().to_vec();
        text.extend(NLMSGERR_ATTR_MSG.to_ne_bytes());
        text.extend(b"no such\x00\x00\x00\x00\x00");
        text.truncate(16);
        text[0..2].copy_from_slice(&12_u16.to_ne_bytes());
        for (flags, request) in [(NLM_F_CAPPED, &request[..HEADER_LEN]), (0, &request[..])] {
            let mut payload = (-2_i32).to_ne_bytes().to_vec();
            payload.extend(request);
            payload.extend(&text);
            let datagram = frame(NLMSG_ERROR, flags | NLM_F_ACK_TLVS, 3, &payload);
            let message = Some("no such".to_owned());
            assert_eq!(
                kinds(&datagram),
                [Ok(Kind::Error(KernelError {
                    errno: Errno::NOENT,
                    message
                }))]
            );
        }
    }

    #[test]
    fn a_malformed_message_ends_the_datagram() {
        let mut datagram = error_frame(1, 0);
        datagram.extend([200, 0, 0, 0, 2, 0]);
        let kinds = kinds(&datagram);
        assert_eq!(kinds.len(), 2);
        assert_eq!(kinds[0], Ok(Kind::Ack));
        assert!(matches!(kinds[1], Err(Error::Decode(_))));
        // A code that is no errno.
        assert!(matches!(
            self::kinds(&error_frame(1, i32::MIN))[..],
            [Err(Error::Decode(_))]
        ));
    }

    proptest! {
        #[test]
        fn any_bytes_are_split_without_panic(datagram: Vec<u8>) {
            prop_assert!(answers(&datagram).count() <= datagram.len() / HEADER_LEN + 1);
        }

        /// Bytes behind a correct header, so that each branch is reached.
        #[test]
        fn any_payload_is_split_without_panic(message_type in 0_u16..6, flags: u16, payload: Vec<u8>) {
            let datagram = frame(message_type, flags, 1, &payload);
            prop_assert_eq!(answers(&datagram).count(), 1);
        }
    }
}
