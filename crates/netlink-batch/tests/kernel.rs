//! Against the kernel's `NETLINK_ROUTE`. What writes does it in a network namespace of the test's own thread.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use std::net::{IpAddr, Ipv4Addr};
use std::ops::Range;

use netlink_batch::{Errno, Error, KernelError, Notifications, Socket};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NetlinkMessage};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage},
    link::{LinkAttribute, LinkMessage},
};
use netlink_sys::protocols::NETLINK_ROUTE;
use rustix::thread::UnshareFlags;

const LOOPBACK: u32 = 1;
const RTNLGRP_IPV4_IFADDR: u32 = 5;

/// Gives the loopback device addresses that it does not have.
async fn add(socket: &mut Socket, numbers: Range<u32>) {
    let failures = socket.batch(numbers.map(|n| new_address(nth(n), LOOPBACK))).await;
    assert!(failures.is_empty(), "{failures:?}");
}

/// Runs a test in a new network namespace, of which nothing is left when the thread ends.
fn in_new_netns(test: impl Future<Output = ()>) {
    // SAFETY: a network namespace, unlike a file table, is not what memory safety rests on.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.expect("root is needed");
    run(test);
}

fn run(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(test);
}

fn address(address: IpAddr, link: u32) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = if address.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    message.header.prefix_len = 32;
    message.header.index = link;
    message.attributes = vec![
        AddressAttribute::Local(address),
        AddressAttribute::Address(address),
    ];
    message
}

fn new_address(ip: Ipv4Addr, link: u32) -> NetlinkMessage<RouteNetlinkMessage> {
    let mut message = NetlinkMessage::from(RouteNetlinkMessage::NewAddress(address(ip.into(), link)));
    message.header.flags = NLM_F_CREATE | NLM_F_EXCL;
    message
}

fn nth(n: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 96, 0, 0).to_bits() + n)
}

async fn local_addresses(socket: &mut Socket) -> Vec<Ipv4Addr> {
    let mut request = AddressMessage::default();
    request.header.family = AddressFamily::Inet;
    let messages = socket
        .dump(RouteNetlinkMessage::GetAddress(request).into())
        .await
        .unwrap();
    let local = |attributes: Vec<AddressAttribute>| {
        attributes.into_iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(IpAddr::V4(ip)) => Some(ip),
            _ => None,
        })
    };
    messages
        .into_iter()
        .filter_map(|message| match message {
            RouteNetlinkMessage::NewAddress(address) => local(address.attributes),
            _ => None,
        })
        .collect()
}

#[test]
fn a_request_is_answered_and_a_wrong_one_refused() {
    run(async {
        let mut socket = Socket::connect(NETLINK_ROUTE).unwrap();
        let mut link = LinkMessage::default();
        link.attributes.push(LinkAttribute::IfName("lo".to_owned()));
        let replies = socket
            .request(RouteNetlinkMessage::GetLink(link.clone()).into())
            .await
            .unwrap();
        let [RouteNetlinkMessage::NewLink(link)] = &replies[..] else {
            panic!("{replies:?}")
        };
        assert_eq!(link.header.index, LOOPBACK);

        let mut link = LinkMessage::default();
        link.attributes
            .push(LinkAttribute::IfName("no-such-link".to_owned()));
        let refused = socket
            .request::<_, RouteNetlinkMessage>(RouteNetlinkMessage::GetLink(link).into())
            .await
            .unwrap_err();
        assert_eq!(refused.errno(), Some(Errno::NODEV));
    });
}

#[test]
fn every_message_of_a_batch_that_is_refused_throughout_has_its_error() {
    run(async {
        let mut socket = Socket::connect(NETLINK_ROUTE).unwrap();
        // No such link; without privilege the kernel does not even look.
        let failures = socket
            .batch((0..3000).map(|n| new_address(nth(n), 0x7fff_ffff)))
            .await;
        assert!(failures.keys().copied().eq(0..3000));
        for error in failures.into_values() {
            let errno = error.errno().unwrap();
            assert!(matches!(errno, Errno::NODEV | Errno::PERM), "{errno}");
        }
    });
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn one_failure_among_thousands_is_told_by_its_index() {
    in_new_netns(async {
        let mut socket = Socket::connect(NETLINK_ROUTE).unwrap();
        add(&mut socket, 2500..2501).await;

        let failures = socket
            .batch((0..5000).map(|n| new_address(nth(n), LOOPBACK)))
            .await;
        let failed: Vec<_> = failures.into_iter().collect();
        let [
            (
                2500,
                Error::Kernel(KernelError {
                    errno: Errno::EXIST, ..
                }),
            ),
        ] = &failed[..]
        else {
            panic!("{failed:?}")
        };
        assert_eq!(local_addresses(&mut socket).await.len(), 5000);
    });
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_dump_that_was_given_up_does_not_disturb_the_next_operation() {
    in_new_netns(async {
        let mut socket = Socket::connect(NETLINK_ROUTE).unwrap();
        add(&mut socket, 0..2000).await;
        // A message that the decoder refuses, in the first of several datagrams.
        let dump: Result<Vec<Undecodable>, _> = socket.dump(NetlinkMessage::from(Undecodable)).await;
        assert!(matches!(dump, Err(Error::Decode(_))), "{dump:?}");
        assert_eq!(local_addresses(&mut socket).await.len(), 2000);
    });
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn notifications_tell_what_was_done() {
    in_new_netns(async {
        let mut notifications = Notifications::subscribe(NETLINK_ROUTE, &[RTNLGRP_IPV4_IFADDR]).unwrap();
        let mut socket = Socket::connect(NETLINK_ROUTE).unwrap();
        add(&mut socket, 1..2).await;
        let told = notifications.next::<RouteNetlinkMessage>().await.unwrap();
        let [RouteNetlinkMessage::NewAddress(address)] = &told[..] else {
            panic!("{told:?}")
        };
        assert!(
            address
                .attributes
                .contains(&AddressAttribute::Local(nth(1).into()))
        );

        // Not what is done through the socket that is to be ignored.
        notifications.ignore(socket.port().unwrap()).unwrap();
        add(&mut socket, 2..3).await;
        let mut other = Socket::connect(NETLINK_ROUTE).unwrap();
        add(&mut other, 3..4).await;
        let told = notifications.try_next::<RouteNetlinkMessage>().unwrap().unwrap();
        let [RouteNetlinkMessage::NewAddress(address)] = &told[..] else {
            panic!("{told:?}")
        };
        assert!(
            address
                .attributes
                .contains(&AddressAttribute::Local(nth(3).into()))
        );
        assert_eq!(notifications.try_next::<RouteNetlinkMessage>(), None);

        // More than the receive buffer takes, unread.
        add(&mut other, 10..15_000).await;
        let mut seen = 0;
        loop {
            match notifications.next::<RouteNetlinkMessage>().await {
                Ok(told) => seen += told.len(),
                Err(error) => break assert_eq!(error, Error::Overrun),
            }
        }
        assert!(seen < 14_990);
    });
}

/// Asks for addresses and cannot read them.
#[derive(Debug)]
struct Undecodable;

impl From<Undecodable> for netlink_packet_core::NetlinkPayload<Undecodable> {
    fn from(message: Undecodable) -> Self {
        Self::InnerMessage(message)
    }
}

impl netlink_packet_core::NetlinkSerializable for Undecodable {
    fn message_type(&self) -> u16 {
        RouteNetlinkMessage::GetAddress(AddressMessage::default()).message_type()
    }
    fn buffer_len(&self) -> usize {
        8
    }
    fn serialize(&self, buffer: &mut [u8]) {
        buffer.fill(0);
    }
}

impl netlink_packet_core::NetlinkDeserializable for Undecodable {
    type Error = std::io::Error;
    fn deserialize(_: &netlink_packet_core::NetlinkHeader, _: &[u8]) -> Result<Self, Self::Error> {
        Err(std::io::ErrorKind::InvalidData.into())
    }
}
