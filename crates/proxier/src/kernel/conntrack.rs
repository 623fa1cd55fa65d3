//! Connection tracking: the kernel's table of flows, of which only those of UDP are looked at.
//!
//! A tracked flow decides where its later packets go. One of TCP ends with its connection; one of UDP lives for as
//! long as its client sends, whatever has become of the server (A5).

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
};

use ipvs::Family;
use netlink_batch::{Errno, Error as NetlinkError, Socket};
use netlink_packet_core::{
    DecodeError, DefaultNla, Emitable, NetlinkDeserializable, NetlinkHeader, NetlinkMessage, NetlinkPayload,
    NetlinkSerializable, NlasIterator,
};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterProtoFamily,
    conntrack::{ConntrackAttribute, ConntrackMessage, IPTuple, ProtoTuple, Protocol, Tuple},
};
use netlink_sys::protocols::NETLINK_NETFILTER;

const IPPROTO_UDP: u8 = 17;
const IPCTNL_MSG_CT_GET: u8 = 1;
// enum ctattr_type
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_FILTER: u16 = 25;
// enum ctattr_tuple
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_TUPLE_ZONE: u16 = 3;
// enum ctattr_ip
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;
// enum ctattr_l4proto
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;

/// A UDP flow that the kernel tracks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Flow {
    /// Who sent the first packet.
    pub client: SocketAddr,
    /// What it was sent to.
    pub destination: SocketAddr,
    /// Where answers come from: the same, unless IPVS or NAT sends the flow elsewhere.
    pub server: SocketAddr,
    /// Tells the flow from a later one with the same addresses.
    pub id: u32,
}

/// As `conntrack -D` takes it.
impl fmt::Display for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            client,
            destination,
            server,
            ..
        } = self;
        write!(
            f,
            "-p udp -s {} --sport {} -d {} --dport {}",
            client.ip(),
            client.port(),
            destination.ip(),
            destination.port(),
        )?;
        write!(f, " -r {} --reply-port-src {}", server.ip(), server.port())
    }
}

/// Why flows could not be read or ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// `EPERM`
    #[error("looking at tracked flows needs the capability CAP_NET_ADMIN")]
    NotPermitted,
    /// `ENOENT`: the flow has ended already.
    #[error("there is no such flow")]
    NotFound,
    /// Anything else.
    #[error("connection tracking: {0}")]
    Netlink(NetlinkError),
}

impl From<NetlinkError> for Error {
    fn from(error: NetlinkError) -> Self {
        match error.errno() {
            Some(Errno::PERM) => Self::NotPermitted,
            Some(Errno::NOENT) => Self::NotFound,
            _ => Self::Netlink(error),
        }
    }
}

/// The flows of the network namespace that we run in.
#[derive(Debug)]
pub struct Conntrack {
    socket: Socket,
}

impl Conntrack {
    /// Opens a netlink socket.
    ///
    /// # Errors
    ///
    /// [`Error::Netlink`] if that fails.
    pub fn connect() -> Result<Self, Error> {
        let socket = Socket::connect(NETLINK_NETFILTER)?;
        Ok(Self { socket })
    }

    /// Lists the UDP flows of a family, without those of other conntrack zones than the default one, in which no
    /// packet of ours is.
    ///
    /// # Errors
    ///
    /// Any error: what is returned is never a part (I3). Flows come and go meanwhile, though.
    pub async fn udp_flows(&mut self, family: Family) -> Result<Vec<Flow>, Error> {
        const CTA_FILTER_ORIG_FLAGS: u16 = 1;
        const CTA_FILTER_F_CTA_PROTO_NUM: u32 = 1 << 3;

        // The kernel has this filter since 5.8; an older one lists the other protocols, too. It wants the flag of a
        // nested attribute, which the message's own type has no place for.
        let protocol = DefaultNla::new(CTA_PROTO_NUM, vec![IPPROTO_UDP]);
        let flags = CTA_FILTER_F_CTA_PROTO_NUM.to_ne_bytes().to_vec();
        let get = ConntrackMessage::Other {
            message_type: IPCTNL_MSG_CT_GET,
            attributes: vec![
                nested(CTA_TUPLE_ORIG, &nested(CTA_TUPLE_PROTO, &protocol)),
                nested(CTA_FILTER, &DefaultNla::new(CTA_FILTER_ORIG_FLAGS, flags)),
            ],
        };
        let listed = self.socket.dump(message(family, get)).await?;
        Ok(listed.into_iter().filter_map(Message::into_flow).collect())
    }

    /// Ends flows: the next packet of each begins a new one. Returns what failed, by its index.
    pub async fn end(&mut self, flows: &[Flow]) -> BTreeMap<usize, Error> {
        let messages = flows.iter().map(|flow| {
            let delete = ConntrackMessage::Delete(vec![
                original_tuple(flow),
                ConntrackAttribute::Other(DefaultNla::new(CTA_ID, flow.id.to_be_bytes().to_vec())),
            ]);
            message(Family::of(flow.destination.ip()), delete)
        });
        let failures = self.socket.batch(messages).await.into_iter();
        failures.map(|(index, error)| (index, error.into())).collect()
    }
}

fn nested(kind: u16, attribute: &DefaultNla) -> DefaultNla {
    const NLA_F_NESTED: u16 = 1 << 15;
    let mut value = vec![0; attribute.buffer_len()];
    attribute.emit(&mut value);
    DefaultNla::new(kind | NLA_F_NESTED, value)
}

fn original_tuple(flow: &Flow) -> ConntrackAttribute {
    ConntrackAttribute::CtaTupleOrig(vec![
        Tuple::Ip(vec![
            IPTuple::SourceAddress(flow.client.ip()),
            IPTuple::DestinationAddress(flow.destination.ip()),
        ]),
        Tuple::Proto(vec![
            ProtoTuple::Protocol(Protocol::Udp),
            ProtoTuple::SourcePort(flow.client.port()),
            ProtoTuple::DestinationPort(flow.destination.port()),
        ]),
    ])
}

fn message(family: Family, message: ConntrackMessage) -> NetlinkMessage<Message> {
    let family = match family {
        Family::Inet => NetfilterProtoFamily::IPv4,
        Family::Inet6 => NetfilterProtoFamily::IPv6,
    };
    let request = NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), message);
    NetlinkMessage::new(
        NetlinkHeader::default(),
        NetlinkPayload::InnerMessage(Message::Request(request)),
    )
}

/// What is sent, and as much of what is listed as matters: there may be hundreds of thousands of flows.
#[derive(Debug)]
enum Message {
    Request(NetfilterMessage),
    Flow(Flow),
    /// A flow of another protocol or zone.
    Other,
}

impl Message {
    fn into_flow(self) -> Option<Flow> {
        match self {
            Self::Flow(flow) => Some(flow),
            Self::Request(_) | Self::Other => None,
        }
    }
}

impl NetlinkSerializable for Message {
    fn message_type(&self) -> u16 {
        match self {
            Self::Request(request) => NetlinkSerializable::message_type(request),
            Self::Flow(_) | Self::Other => 0,
        }
    }

    fn buffer_len(&self) -> usize {
        match self {
            Self::Request(request) => NetlinkSerializable::buffer_len(request),
            Self::Flow(_) | Self::Other => 0,
        }
    }

    fn serialize(&self, buffer: &mut [u8]) {
        if let Self::Request(request) = self {
            request.serialize(buffer);
        }
    }
}

impl NetlinkDeserializable for Message {
    type Error = DecodeError;

    fn deserialize(_: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        // struct nfgenmsg
        let attributes = payload.get(4..).unwrap_or_default();
        Ok(flow(attributes)?.map_or(Self::Other, Self::Flow))
    }
}

/// Reads a listed flow, if it is one of UDP in the default zone.
fn flow(attributes: &[u8]) -> Result<Option<Flow>, DecodeError> {
    let (mut original, mut reply, mut id) = (None, None, 0);
    for attribute in NlasIterator::new(attributes) {
        let attribute = attribute?;
        match attribute.kind() {
            CTA_TUPLE_ORIG => original = udp_tuple(attribute.value())?,
            CTA_TUPLE_REPLY => reply = udp_tuple(attribute.value())?,
            CTA_ID => {
                id = attribute
                    .value()
                    .first_chunk()
                    .map_or(0, |id| u32::from_be_bytes(*id))
            }
            CTA_ZONE => return Ok(None),
            _ => {}
        }
    }
    let (Some((client, destination)), Some((server, _))) = (original, reply) else {
        return Ok(None);
    };
    Ok(Some(Flow {
        client,
        destination,
        server,
        id,
    }))
}

/// Source and destination of a `CTA_TUPLE_*`, if that is one of UDP in the default zone.
fn udp_tuple(attributes: &[u8]) -> Result<Option<(SocketAddr, SocketAddr)>, DecodeError> {
    let (mut addresses, mut ports, mut is_udp) = ([None; 2], [None; 2], false);
    for attribute in NlasIterator::new(attributes) {
        let attribute = attribute?;
        let parts = NlasIterator::new(attribute.value());
        match attribute.kind() {
            CTA_TUPLE_IP => {
                for part in parts {
                    let part = part?;
                    let [source, destination] = &mut addresses;
                    match part.kind() {
                        CTA_IP_V4_SRC | CTA_IP_V6_SRC => *source = address(part.value()),
                        CTA_IP_V4_DST | CTA_IP_V6_DST => *destination = address(part.value()),
                        _ => {}
                    }
                }
            }
            CTA_TUPLE_PROTO => {
                for part in parts {
                    let part = part?;
                    let [source, destination] = &mut ports;
                    match part.kind() {
                        CTA_PROTO_NUM => is_udp = part.value() == [IPPROTO_UDP],
                        CTA_PROTO_SRC_PORT => *source = port(part.value()),
                        CTA_PROTO_DST_PORT => *destination = port(part.value()),
                        _ => {}
                    }
                }
            }
            CTA_TUPLE_ZONE => return Ok(None),
            _ => {}
        }
    }
    let ends = match (addresses, ports) {
        ([Some(source), Some(destination)], [Some(source_port), Some(destination_port)]) if is_udp => Some((
            SocketAddr::new(source, source_port),
            SocketAddr::new(destination, destination_port),
        )),
        _ => None,
    };
    Ok(ends)
}

fn address(octets: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(octets).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(octets).map(IpAddr::from))
        .ok()
}

fn port(value: &[u8]) -> Option<u16> {
    value.first_chunk().map(|port| u16::from_be_bytes(*port))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use netlink_packet_route::{
        RouteNetlinkMessage,
        link::{LinkFlags, LinkMessage},
    };
    use netlink_sys::protocols::NETLINK_ROUTE;
    use proptest::prelude::*;
    use rustix::thread::UnshareFlags;

    use super::*;
    use crate::{Config, kernel::netfilter::Netfilter};

    fn example(client: &str, destination: &str) -> Flow {
        Flow {
            client: client.parse().unwrap(),
            destination: destination.parse().unwrap(),
            server: destination.parse().unwrap(),
            id: 7,
        }
    }

    fn attributes(flow: &Flow, more: impl IntoIterator<Item = ConntrackAttribute>) -> Vec<u8> {
        let reply = Flow {
            client: flow.server,
            destination: flow.client,
            ..*flow
        };
        let ConntrackAttribute::CtaTupleOrig(reply) = original_tuple(&reply) else {
            unreachable!()
        };
        let mut attributes = vec![
            original_tuple(flow),
            ConntrackAttribute::CtaTupleReply(reply),
            ConntrackAttribute::Other(DefaultNla::new(CTA_ID, flow.id.to_be_bytes().to_vec())),
        ];
        attributes.extend(more);
        let mut bytes = vec![0; attributes.as_slice().buffer_len()];
        attributes.as_slice().emit(&mut bytes);
        bytes
    }

    #[test]
    fn flows_of_both_families_are_read() {
        for (client, destination) in [
            ("10.244.0.2:40000", "10.96.0.10:53"),
            ("[fd00::2]:40000", "[fd00::a]:53"),
        ] {
            let expected = example(client, destination);
            assert_eq!(flow(&attributes(&expected, [])).unwrap(), Some(expected));
        }
    }

    #[test]
    fn flows_of_other_zones_are_not_ours() {
        let zone = ConntrackAttribute::Other(DefaultNla::new(CTA_ZONE, vec![0, 5]));
        let listed = attributes(&example("10.244.0.2:40000", "10.96.0.10:53"), [zone]);
        assert_eq!(flow(&listed).unwrap(), None);
    }

    /// In a new network namespace, so that there are no other flows. Our nftables table has its packets tracked.
    #[test]
    #[ignore = "needs root and nf_conntrack: run by cargo xtask test"]
    fn udp_flows_and_no_others_are_listed_and_ended() {
        // SAFETY: a network namespace, unlike a file table, is not what memory safety rests on.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.expect("root is needed");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let mut up = LinkMessage::default();
            up.header.index = 1;
            up.header.flags = LinkFlags::Up;
            up.header.change_mask = LinkFlags::Up;
            let mut route = Socket::connect(NETLINK_ROUTE).unwrap();
            let up = RouteNetlinkMessage::SetLink(up);
            assert!(route.batch([NetlinkMessage::from(up)]).await.is_empty());
            let mut netfilter = Netfilter::connect().unwrap();
            let ruleset = super::super::linux::ruleset(&Config::new("here"));
            netfilter.ensure_base(Family::Inet, &ruleset).await.unwrap();

            let server = UdpSocket::bind("127.0.0.1:0").unwrap();
            let client = UdpSocket::bind("127.0.0.1:0").unwrap();
            let destination = server.local_addr().unwrap();
            client.send_to(b"?", destination).unwrap();
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let _connection = TcpStream::connect(listener.local_addr().unwrap()).unwrap();

            let mut conntrack = Conntrack::connect().unwrap();
            let flows = conntrack.udp_flows(Family::Inet).await.unwrap();
            let [flow] = flows.as_slice() else {
                panic!("{flows:?}")
            };
            let expected = Flow {
                client: client.local_addr().unwrap(),
                destination,
                server: destination,
                id: flow.id,
            };
            assert_eq!(*flow, expected);
            assert_eq!(conntrack.udp_flows(Family::Inet6).await, Ok(vec![]));

            let another = Flow {
                id: !flow.id,
                ..*flow
            };
            assert_eq!(
                conntrack.end(&[another, *flow, *flow]).await,
                BTreeMap::from([(0, Error::NotFound), (2, Error::NotFound)])
            );
            assert_eq!(conntrack.udp_flows(Family::Inet).await, Ok(vec![]));
        });
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes: Vec<u8>) {
            _ = Message::deserialize(&NetlinkHeader::default(), &bytes);
        }
    }
}
