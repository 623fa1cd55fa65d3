use std::time::Duration;

use proptest::prelude::*;
use rustix::thread::UnshareFlags;

use super::*;

const RTM_DELLINK: u16 = 17;
const LOOPBACK: u32 = 1;

fn ip(address: &str) -> IpAddr {
    address.parse().unwrap()
}

fn header(message_type: u16) -> NetlinkHeader {
    let mut header = NetlinkHeader::default();
    header.message_type = message_type;
    header
}

#[test]
fn an_update_is_printed_as_ip_takes_it() {
    assert_eq!(
        Update::Add(ip("10.96.0.10")).to_string(),
        "ip address add 10.96.0.10/32 dev kube-ipvs0"
    );
    assert_eq!(
        Update::Remove(ip("fd00::1")).to_string(),
        "ip address delete fd00::1/128 dev kube-ipvs0"
    );
}

/// D3, D7
#[test]
fn loopback_and_link_local_addresses_are_not_the_nodes() {
    for address in ["127.0.0.1", "127.8.8.8", "::1", "fe80::1"] {
        assert!(!is_reachable(ip(address)), "{address}");
    }
    for address in ["192.0.2.1", "169.254.20.10", "fd00::1", "2001:db8::1"] {
        assert!(is_reachable(ip(address)), "{address}");
    }
}

#[test]
fn an_address_with_a_peer_is_the_local_one() {
    let mut attributes = [0; 16];
    Attributes::write(&mut attributes, |message| {
        message.value(IFA_ADDRESS, &[192, 0, 2, 2]);
        message.value(IFA_LOCAL, &[192, 0, 2, 1]);
    });
    let (peer, both) = (&attributes[..8], &attributes[..]);
    assert_eq!(local_address(peer).unwrap(), Some(ip("192.0.2.2")));
    assert_eq!(local_address(both).unwrap(), Some(ip("192.0.2.1")));
}

#[test]
fn a_link_that_leaves_a_bridge_is_not_gone() {
    let notification = |family| {
        let payload = [family, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        Told::deserialize(&header(RTM_DELLINK), &payload).unwrap()
    };
    assert_eq!(notification(0), Told::LinkGone(7_u32.to_le()));
    assert_eq!(notification(7), Told::Other);
}

proptest! {
    /// I8
    #[test]
    fn any_bytes_are_decoded_without_panic(message_type in 16_u16..24, payload: Vec<u8>) {
        if let Ok(Told::Address { .. }) = Told::deserialize(&header(message_type), &payload) {
            prop_assert!(payload.len() >= 8 + 4 + 4, "no room for an address");
        }
    }
}

/// Runs a test in a new network namespace, of which nothing is left when the thread ends.
fn in_new_netns(test: impl AsyncFnOnce(Link)) {
    // SAFETY: a network namespace, unlike a file table, is not what memory safety rests on.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.expect("root is needed");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async { test(Link::connect().unwrap()).await });
}

/// Makes kube-ipvs0: a dummy link, or where the kernel has none the next best, which is down and NOARP too.
async fn make_service_link(link: &mut Link) {
    match link.ensure().await {
        Err(Error::NotSupported) => {
            let mut message = named_link();
            message
                .attributes
                .push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Ifb)]));
            let mut create = NetlinkMessage::from(RouteNetlinkMessage::NewLink(message));
            create.header.flags = NLM_F_CREATE | NLM_F_EXCL;
            link.socket
                .request::<_, RouteNetlinkMessage>(create)
                .await
                .unwrap();
        }
        made => assert_eq!(made, Ok(true)),
    }
    assert_eq!(link.ensure().await, Ok(false), "it is there now");
}

async fn next(link: &mut Link) -> Option<Event> {
    tokio::time::timeout(Duration::from_millis(200), link.event())
        .await
        .ok()
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn addresses_are_added_listed_and_removed() {
    in_new_netns(async |mut link| {
        let addresses = [ip("10.96.0.10"), ip("fd00::1")];
        let add = addresses.map(Update::Add);
        let no_link = [(0, Error::NoLink), (1, Error::NoLink)];
        assert_eq!(link.update(&add).await, BTreeMap::from(no_link));
        make_service_link(&mut link).await;

        assert_eq!(link.update(&add).await, BTreeMap::new());
        assert_eq!(
            link.update(&add).await,
            BTreeMap::new(),
            "they may be there already"
        );
        let node = [update_message(Update::Add(ip("192.0.2.1")), LOOPBACK)];
        assert_eq!(link.socket.batch(node).await, BTreeMap::new());
        let listed = Addresses {
            service: addresses.to_vec(),
            node: vec![ip("192.0.2.1")],
        };
        assert_eq!(link.addresses().await, Ok(listed));

        let remove = [ip("10.96.0.11"), addresses[0], addresses[1]].map(Update::Remove);
        assert_eq!(link.update(&remove).await, BTreeMap::from([(0, Error::NotFound)]));
        assert!(link.addresses().await.unwrap().service.is_empty());

        assert_eq!(link.delete().await, Ok(()));
        assert_eq!(link.delete().await, Ok(()));
    });
}

/// I7, D1, D10
#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn what_others_do_is_told() {
    in_new_netns(async |mut link| {
        make_service_link(&mut link).await;
        let index = link.index.unwrap();
        let address = ip("10.96.0.10");
        assert_eq!(link.update(&[Update::Add(address)]).await, BTreeMap::new());
        assert_eq!(next(&mut link).await, None, "we did that ourselves");

        let mut other = Socket::connect(NETLINK_ROUTE).unwrap();
        let done = other.batch([
            update_message(Update::Remove(address), index),
            update_message(Update::Add(ip("127.0.0.2")), LOOPBACK),
            update_message(Update::Add(ip("192.0.2.1")), LOOPBACK),
            update_message(Update::Add(ip("192.0.2.2")), LOOPBACK),
        ]);
        assert_eq!(done.await, BTreeMap::new());
        assert_eq!(
            next(&mut link).await,
            Some(Event::ServiceAddress {
                address,
                present: false
            })
        );
        assert_eq!(next(&mut link).await, Some(Event::NodeAddressesChanged));
        // The second address of the node may be told on its own.
        assert!(matches!(
            next(&mut link).await,
            None | Some(Event::NodeAddressesChanged)
        ));

        other
            .request::<_, RouteNetlinkMessage>(RouteNetlinkMessage::DelLink(named_link()).into())
            .await
            .unwrap();
        assert_eq!(next(&mut link).await, Some(Event::ServiceLinkGone));
        assert_eq!(
            link.update(&[Update::Add(address)]).await,
            BTreeMap::from([(0, Error::NoLink)])
        );
    });
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn thousands_of_addresses_of_our_own_overrun_nothing() {
    in_new_netns(async |mut link| {
        make_service_link(&mut link).await;
        let addresses: Vec<_> = (0..12_000)
            .map(|n| IpAddr::from(std::net::Ipv4Addr::from_bits(0x0a60_0000 + n)))
            .collect();
        let add: Vec<_> = addresses.iter().map(|address| Update::Add(*address)).collect();
        assert_eq!(link.update(&add).await, BTreeMap::new());
        assert_eq!(link.addresses().await.unwrap().service, addresses);
        assert_eq!(next(&mut link).await, None);
    });
}
