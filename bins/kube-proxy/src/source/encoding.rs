//! The encodings in which an API server answers: Protocol Buffers, and JSON from who has nothing else.
//!
//! In Protocol Buffers an object is wrapped in a `runtime.Unknown` behind [`MAGIC`], and the events of a watch come each
//! behind its length. In JSON each is a line.

use std::io;

use hyper::{
    HeaderMap,
    body::Bytes,
    header::{CONTENT_TYPE, HeaderValue},
};
use prost::Message;
use serde::Deserialize;
use tokio_util::{
    bytes::BytesMut,
    codec::{AnyDelimiterCodec, AnyDelimiterCodecError, Decoder, LengthDelimitedCodec},
};

use crate::objects::{Decode, Metadata, or_default};

const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
/// What `Accept` says: the first is a half of the bytes, and an API server has it at hand, because it stores objects so.
pub(super) const ACCEPTED: HeaderValue =
    HeaderValue::from_static("application/vnd.kubernetes.protobuf, application/json");

/// What all objects in Protocol Buffers begin with.
const MAGIC: &[u8] = b"k8s\0";

/// An answer, or a part of it, that cannot be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("not an object in Protocol Buffers")]
    Magic,
    #[error("{0:?} is not known as the type of an event")]
    EventType(String),
    #[error(transparent)]
    Protobuf(#[from] prost::DecodeError),
    #[error(transparent)]
    Json(#[from] serde_json::Error),
}

/// A list of objects, or a page of one.
#[derive(Deserialize, Message)]
#[serde(bound = "K: Decode")]
pub(super) struct List<K: Decode> {
    #[serde(default, deserialize_with = "or_default")]
    #[prost(message, required, tag = "1")]
    pub(super) metadata: ListMetadata,
    #[serde(default, deserialize_with = "or_default")]
    #[prost(message, repeated, tag = "2")]
    pub(super) items: Vec<K>,
}

#[derive(Deserialize, Message)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct ListMetadata {
    #[prost(string, optional, tag = "2")]
    pub(super) resource_version: Option<String>,
    /// Asks for the next page, if there is one.
    #[serde(rename = "continue")]
    #[prost(string, tag = "3")]
    pub(super) continue_: String,
}

/// Why the API server does not do what it was asked.
#[derive(Clone, PartialEq, Eq, Deserialize, Message)]
#[serde(default)]
pub(super) struct Status {
    #[prost(string, tag = "3")]
    pub(super) message: String,
    /// As of HTTP.
    #[prost(int32, tag = "6")]
    pub(super) code: i32,
}

/// What of an object its metadata says.
#[derive(Deserialize, Message)]
#[serde(default)]
pub(super) struct Bookmark {
    #[serde(deserialize_with = "or_default")]
    #[prost(message, required, tag = "1")]
    pub(super) metadata: Metadata,
}

/// An event of a watch.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", content = "object", rename_all = "UPPERCASE")]
pub(super) enum Event<K> {
    /// The object is new, or has changed.
    #[serde(alias = "MODIFIED")]
    Added(K),
    Deleted(K),
    Bookmark(Bookmark),
    Error(Status),
}

/// `runtime.Unknown`, which says once more what is in it.
#[derive(Message)]
struct Unknown {
    #[prost(bytes = "bytes", tag = "2")]
    raw: Bytes,
}

/// `meta.WatchEvent`.
#[derive(Message)]
struct WatchEvent {
    #[prost(string, tag = "1")]
    type_: String,
    #[prost(message, required, tag = "2")]
    object: RawExtension,
}

#[derive(Message)]
struct RawExtension {
    #[prost(bytes = "bytes", tag = "1")]
    raw: Bytes,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    Protobuf,
    Json,
}

impl Encoding {
    /// That of an answer.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let is_protobuf = headers
            .get(CONTENT_TYPE)
            .is_some_and(|value| value.as_bytes().starts_with(PROTOBUF.as_bytes()));
        if is_protobuf { Self::Protobuf } else { Self::Json }
    }

    /// Reads what an answer holds.
    pub(super) fn object<T: Decode>(self, bytes: Bytes) -> Result<T, Error> {
        match self {
            Self::Protobuf => {
                if !bytes.starts_with(MAGIC) {
                    return Err(Error::Magic);
                }
                Ok(T::decode(Unknown::decode(bytes.slice(MAGIC.len()..))?.raw)?)
            }
            Self::Json => Ok(serde_json::from_slice(&bytes)?),
        }
    }

    /// Reads what [`Events`] has cut out.
    pub(super) fn event<K: Decode>(self, bytes: Bytes) -> Result<Event<K>, Error> {
        if self == Self::Json {
            return Ok(serde_json::from_slice(&bytes)?);
        }
        let event = WatchEvent::decode(bytes)?;
        let object = event.object.raw;
        Ok(match event.type_.as_str() {
            "ADDED" | "MODIFIED" => Event::Added(self.object(object)?),
            "DELETED" => Event::Deleted(self.object(object)?),
            "BOOKMARK" => Event::Bookmark(self.object(object)?),
            "ERROR" => Event::Error(self.object(object)?),
            _ => return Err(Error::EventType(event.type_)),
        })
    }
}

/// Cuts an answer into the events of a watch.
pub(super) enum Events {
    Protobuf(LengthDelimitedCodec),
    Json(AnyDelimiterCodec),
}

impl Events {
    pub(super) fn new(encoding: Encoding) -> Self {
        match encoding {
            Encoding::Protobuf => Self::Protobuf(LengthDelimitedCodec::new()),
            Encoding::Json => Self::Json(AnyDelimiterCodec::new(b"\n".to_vec(), Vec::new())),
        }
    }
}

impl Decoder for Events {
    type Item = Bytes;
    type Error = io::Error;

    fn decode(&mut self, received: &mut BytesMut) -> io::Result<Option<Bytes>> {
        match self {
            Self::Protobuf(codec) => Ok(codec.decode(received)?.map(BytesMut::freeze)),
            Self::Json(codec) => codec.decode(received).map_err(|error| match error {
                AnyDelimiterCodecError::Io(error) => error,
                AnyDelimiterCodecError::MaxChunkLengthExceeded => io::Error::other(error),
            }),
        }
    }

    /// What has not come in full by the end has not come.
    fn decode_eof(&mut self, received: &mut BytesMut) -> io::Result<Option<Bytes>> {
        let event = self.decode(received)?;
        if event.is_none() {
            received.clear();
        }
        Ok(event)
    }
}

#[cfg(test)]
pub(super) mod testing {
    use hyper::body::Bytes;
    use prost::Message;
    use serde_json::{Value, json};

    use super::{Bookmark, Decode, Encoding, PROTOBUF, RawExtension, Status, Unknown, WatchEvent};

    impl Encoding {
        pub(in super::super) fn content_type(self) -> &'static str {
            match self {
                Self::Protobuf => PROTOBUF,
                Self::Json => "application/json",
            }
        }

        /// The answer that holds a `T`, of whose fields those that are read here.
        pub(in super::super) fn write<T: Decode>(self, object: &Value) -> Vec<u8> {
            match self {
                Self::Protobuf => {
                    let object: T = serde_json::from_value(object.clone()).unwrap();
                    let raw = object.encode_to_vec().into();
                    [super::MAGIC, &Unknown { raw }.encode_to_vec()].concat()
                }
                Self::Json => format!("{object}\n").into_bytes(),
            }
        }

        /// The event of a watch of `K`s.
        pub(in super::super) fn write_event<K: Decode>(self, type_: &str, object: &Value) -> Vec<u8> {
            if self == Self::Json {
                return format!("{}\n", json!({ "type": type_, "object": object })).into_bytes();
            }
            let raw = match type_ {
                "BOOKMARK" => self.write::<Bookmark>(object),
                "ERROR" => self.write::<Status>(object),
                _ => self.write::<K>(object),
            };
            let event = WatchEvent {
                type_: type_.to_owned(),
                object: RawExtension {
                    raw: Bytes::from(raw),
                },
            };
            let event = event.encode_to_vec();
            [
                &u32::try_from(event.len()).unwrap().to_be_bytes(),
                event.as_slice(),
            ]
            .concat()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::{EndpointSlice, Node, Object, Service};

    /// Objects as k8s.io/api 0.36.3 encodes them: numbers of fields are those of `generated.proto`.
    #[test]
    fn both_encodings_say_the_same() {
        fn check<K: Object>(protobuf: &'static [u8], json: &'static [u8]) -> String {
            let protobuf: K = Encoding::Protobuf.object(Bytes::from_static(protobuf)).unwrap();
            let json: K = Encoding::Json.object(Bytes::from_static(json)).unwrap();
            let all = |object: &K| {
                let version = &object.metadata().resource_version;
                format!("{:?} {:?} {version:?}", object.convert(), object.is_eligible())
            };
            assert_eq!(all(&protobuf), all(&json));
            all(&protobuf)
        }
        let service = check::<Service>(
            include_bytes!("../../testdata/service.pb"),
            include_bytes!("../../testdata/service.json"),
        );
        let slice = check::<EndpointSlice>(
            include_bytes!("../../testdata/slice.pb"),
            include_bytes!("../../testdata/slice.json"),
        );
        let node = check::<Node>(
            include_bytes!("../../testdata/node.pb"),
            include_bytes!("../../testdata/node.json"),
        );
        // What either encoding could have lost alone.
        for (text, said) in [
            (&service, "fd00:96::7"),
            (&service, "203.0.113.1"),
            (&slice, "worker-3.example.internal"),
            (&node, "Some(false)"),
        ] {
            assert!(text.contains(said), "{said}: {text}");
        }
    }

    #[test]
    fn a_node_without_pod_cidrs_has_none() {
        let raw = serde_json::json!({ "metadata": {}, "spec": { "podCIDR": "" } });
        let bytes = Encoding::Protobuf.write::<Node>(&raw);
        let node: Node = Encoding::Protobuf.object(bytes.into()).unwrap();
        assert_eq!(node.convert().problems, []);
    }

    #[test]
    fn events_come_in_pieces_and_the_last_may_be_cut_off() {
        let object = serde_json::json!({ "metadata": { "name": "n", "resourceVersion": "5" } });
        for encoding in [Encoding::Protobuf, Encoding::Json] {
            let event = encoding.write_event::<Node>("ADDED", &object);
            let stream = [event.as_slice(), &event, &event[..event.len() - 1]].concat();
            let (mut events, mut received, mut read) = (Events::new(encoding), BytesMut::new(), 0);
            for byte in stream {
                received.extend_from_slice(&[byte]);
                while let Some(event) = events.decode(&mut received).unwrap() {
                    let Event::Added(node) = encoding.event::<Node>(event).unwrap() else {
                        panic!("{encoding:?}")
                    };
                    assert_eq!(node.metadata.resource_version.as_deref(), Some("5"));
                    read += 1;
                }
            }
            assert_eq!(events.decode_eof(&mut received).unwrap(), None);
            assert_eq!(read, 2, "{encoding:?}");
        }
    }

    #[test]
    fn what_is_no_object_is_refused() {
        for bytes in [&b""[..], b"k8s", b"{}", b"k8s\0\xff"] {
            assert!(
                Encoding::Protobuf
                    .object::<Node>(Bytes::from_static(bytes))
                    .is_err()
            );
        }
        let unknown = Encoding::Protobuf.write_event::<Node>("ODD", &serde_json::json!({}));
        let event = Encoding::Protobuf.event::<Node>(Bytes::from(unknown).slice(4..));
        assert_eq!(
            event.unwrap_err().to_string(),
            "\"ODD\" is not known as the type of an event"
        );
    }
}
