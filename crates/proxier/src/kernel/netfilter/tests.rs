use netlink_packet_core::{NetlinkDeserializable, NetlinkHeader};
use netlink_packet_netfilter::nftables::{ChainAttribute, ChainMessage, Hook, InetHookNumber};
use proptest::prelude::*;
use rustix::thread::UnshareFlags;

use super::*;
use crate::config::LocalDetector;

fn ruleset() -> Ruleset {
    Ruleset {
        masquerade_bit: 14,
        masquerade_all: false,
        local_detector: LocalDetector::Cidrs(vec!["10.244.0.0/16".parse().unwrap()]),
        fully_random: true,
        source_ports: SourcePorts::default(),
    }
}

fn service(address: &str, port: u16, treatment: Treatment) -> Element {
    let address = address.parse().unwrap();
    Element::Service(
        Frontend {
            address,
            protocol: Protocol::Tcp,
            port,
        },
        treatment,
    )
}

/// What follows the header of the message that adds an element. The one by which the kernel lists it has the same
/// attributes.
fn message_of(element: Element) -> Vec<u8> {
    let update = Update::Add(element);
    let mut bytes = vec![0xff; update.buffer_len()];
    update.serialize(&mut bytes);
    bytes
}

fn read(message: &[u8]) -> Vec<Element> {
    let Ok(Elements(elements)) = Elements::deserialize(&NetlinkHeader::default(), message);
    elements
}

fn any_element() -> impl Strategy<Value = Element> {
    let protocol = prop::sample::select(vec![Protocol::Tcp, Protocol::Udp, Protocol::Sctp]);
    let frontend = (any::<IpAddr>(), protocol, any::<u16>()).prop_map(|(address, protocol, port)| Frontend {
        address,
        protocol,
        port,
    });
    let range =
        (frontend.clone(), any::<(u32, u128)>(), 0..=128_u8).prop_map(|(frontend, (v4, v6), length)| {
            let source = match frontend.address {
                IpAddr::V4(_) => IpNet::new(IpAddr::from(v4.to_be_bytes()), length % 33),
                IpAddr::V6(_) => IpNet::new(IpAddr::from(v6.to_be_bytes()), length),
            };
            Element::SourceRange(frontend, source.unwrap().trunc())
        });
    prop_oneof![
        (frontend.clone(), prop::sample::select(&Treatment::ALL))
            .prop_map(|(frontend, treatment)| Element::Service(frontend, treatment)),
        frontend.clone().prop_map(Element::HealthCheck),
        (frontend, any::<u32>()).prop_map(|(frontend, mark)| Element::Mark(frontend, mark)),
        range,
        any::<IpAddr>().prop_map(Element::ServiceAddress),
        any::<IpAddr>().prop_map(Element::Hairpin),
    ]
}

proptest! {
    #[test]
    fn an_element_is_read_as_it_was_written(element in any_element()) {
        prop_assert_eq!(read(&message_of(element)), [element]);
    }

    /// I8
    #[test]
    fn any_bytes_are_read_without_panic(bytes: Vec<u8>, element in any_element(), cut in 0..200_usize) {
        let mut valid = message_of(element);
        valid.truncate(cut);
        for bytes in [bytes, valid] {
            prop_assert!(read(&bytes).len() <= bytes.len());
            let message = Message::deserialize(&NetlinkHeader::default(), &bytes).unwrap();
            prop_assert!(listing::read_rule(&message).1.len() <= bytes.len() * 3);
        }
    }
}

#[test]
fn an_element_is_printed_as_nft_takes_it() {
    let printed = |element: Element| element.to_string();
    assert_eq!(
        printed(service("10.96.0.10", 53, Treatment::ClusterIp)),
        "ip kube-proxy services { 10.96.0.10 . tcp . 53 : goto cluster-ip }"
    );
    assert_eq!(
        printed(Element::ServiceAddress("fd00::1".parse().unwrap())),
        "ip6 kube-proxy service-addresses { fd00::1 }"
    );
    assert_eq!(
        printed(Element::Hairpin("10.244.0.5".parse().unwrap())),
        "ip kube-proxy hairpin { 10.244.0.5 . 10.244.0.5 }"
    );
}

/// What `nft` and the kernel take as a comment is shorter.
#[test]
fn comments_are_at_most_127_bytes() {
    for (_, comment) in Base::new(Family::Inet6, &ruleset()).comments() {
        assert!(comment.len() < 128, "{comment}");
    }
}

#[test]
fn the_first_comment_tells_rulesets_apart() {
    let first = |ruleset: &Ruleset| Base::new(Family::Inet, ruleset).comments()[0].clone();
    assert_eq!(first(&ruleset()), first(&ruleset()));
    for other in [
        Ruleset {
            masquerade_bit: 13,
            ..ruleset()
        },
        Ruleset {
            masquerade_all: true,
            ..ruleset()
        },
        Ruleset {
            fully_random: false,
            ..ruleset()
        },
        Ruleset {
            source_ports: "1024-29999".parse().unwrap(),
            ..ruleset()
        },
        Ruleset {
            local_detector: LocalDetector::Cidrs(vec!["10.245.0.0/16".parse().unwrap()]),
            ..ruleset()
        },
    ] {
        assert_ne!(first(&other), first(&ruleset()));
    }
}

#[test]
fn clients_of_a_cluster_ip_are_told_apart_by_the_detector() {
    let comments = |local_detector, masquerade_all| -> Vec<_> {
        let ruleset = Ruleset {
            local_detector,
            masquerade_all,
            ..ruleset()
        };
        let comments = Base::new(Family::Inet, &ruleset).comments();
        comments
            .into_iter()
            .filter(|(chain, _)| chain == CLUSTER_IP)
            .map(|(_, comment)| comment)
            .collect()
    };
    let all = [
        "clients on this node",
        "clients in the cluster",
        "clients elsewhere",
    ];
    assert_eq!(comments(ruleset().local_detector, false), all);
    assert_eq!(
        comments(LocalDetector::BridgeInterface("cni0".into()), false),
        all
    );
    assert_eq!(
        comments(LocalDetector::InterfaceNamePrefix("veth".into()), false),
        all
    );
    assert_eq!(comments(LocalDetector::None, false), all[..1]);
    // CIDRs of the other family say nothing about this one.
    assert_eq!(
        comments(LocalDetector::Cidrs(vec!["fd00::/64".parse().unwrap()]), false),
        all[..1]
    );
    assert_eq!(comments(ruleset().local_detector, true), ["all clients"]);
}

/// Runs a test in a new network namespace, of which nothing is left when the thread ends.
fn in_new_netns(test: impl AsyncFnOnce(Netfilter)) {
    // SAFETY: a network namespace, unlike a file table, is not what memory safety rests on.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.expect("root is needed");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async { test(Netfilter::connect().unwrap()).await });
}

fn sorted(mut elements: Vec<Element>) -> Vec<Element> {
    elements.sort();
    elements
}

/// I2, I6
#[test]
#[ignore = "needs root and nf_tables: run by cargo xtask test"]
fn the_base_is_written_once_and_keeps_the_elements() {
    in_new_netns(async |mut netfilter| {
        for (family, address) in [(Family::Inet, "10.96.0.10"), (Family::Inet6, "fd00::1")] {
            assert_eq!(netfilter.elements(family).await, Ok(vec![]));
            assert_eq!(netfilter.ensure_base(family, &ruleset()).await, Ok(true));
            assert_eq!(netfilter.ensure_base(family, &ruleset()).await, Ok(false));

            let address = address.parse().unwrap();
            let frontend = Frontend {
                address,
                protocol: Protocol::Udp,
                port: 53,
            };
            let elements = sorted(vec![
                Element::Service(frontend, Treatment::ClusterIp),
                Element::Mark(frontend, 0x4b50_0001),
                Element::SourceRange(frontend, IpNet::new(address, 24).unwrap().trunc()),
                Element::ServiceAddress(address),
                Element::HealthCheck(frontend),
                Element::Hairpin(address),
            ]);
            let updates: Vec<_> = elements.iter().map(|element| Update::Add(*element)).collect();
            assert_eq!(netfilter.update(&updates).await, BTreeMap::new());
            assert_eq!(netfilter.elements(family).await.map(sorted), Ok(elements.clone()));

            let changed = Ruleset {
                masquerade_all: true,
                ..ruleset()
            };
            assert_eq!(netfilter.ensure_base(family, &changed).await, Ok(true));
            assert_eq!(netfilter.elements(family).await.map(sorted), Ok(elements));
        }
        assert_eq!(netfilter.delete_tables().await, Ok(()));
        assert_eq!(netfilter.delete_tables().await, Ok(()));
        assert_eq!(netfilter.elements(Family::Inet).await, Ok(vec![]));
    });
}

/// I7: what others did to our rules is seen and undone.
#[test]
#[ignore = "needs root and nf_tables: run by cargo xtask test"]
fn a_table_that_is_not_as_we_made_it_is_replaced() {
    in_new_netns(async |mut netfilter| {
        // Nothing but the table, as any other program may make it.
        let [table, _, _] = replace_table(Family::Inet);
        netfilter.transaction([table]).await.unwrap();
        assert_eq!(netfilter.ensure_base(Family::Inet, &ruleset()).await, Ok(true));

        // Without its last rule.
        let mut base = Base::new(Family::Inet, &ruleset()).messages();
        base.pop();
        netfilter
            .transaction(replace_table(Family::Inet).into_iter().chain(base))
            .await
            .unwrap();
        assert_eq!(netfilter.ensure_base(Family::Inet, &ruleset()).await, Ok(true));
        assert_eq!(netfilter.ensure_base(Family::Inet, &ruleset()).await, Ok(false));
    });
}

/// I5
#[test]
#[ignore = "needs root and nf_tables: run by cargo xtask test"]
fn one_refused_element_stops_no_other() {
    in_new_netns(async |mut netfilter| {
        netfilter.ensure_base(Family::Inet, &ruleset()).await.unwrap();
        let before = service("192.0.2.1", 80, Treatment::External(External::Local));
        let after = service("192.0.2.1", 80, Treatment::External(External::Masquerade));
        assert_eq!(netfilter.update(&[Update::Add(before)]).await, BTreeMap::new());
        assert_eq!(
            netfilter.update(&[Update::Add(after)]).await,
            BTreeMap::from([(0, Error::Exists)])
        );

        let missing = service("192.0.2.2", 80, Treatment::External(External::Local));
        let other_family = service("fd00::2", 80, Treatment::External(External::Local));
        let updates = [
            Update::Remove(missing),
            Update::Remove(before),
            Update::Add(after),
            Update::Add(other_family),
        ];
        assert_eq!(
            netfilter.update(&updates).await,
            BTreeMap::from([(0, Error::NotFound), (3, Error::NotFound)]),
            "the table of IPv6 was not made"
        );
        assert_eq!(netfilter.elements(Family::Inet).await, Ok(vec![after]));
    });
}

/// B6
#[test]
#[ignore = "needs root and nf_tables: run by cargo xtask test"]
fn tens_of_thousands_of_elements_change_at_once() {
    in_new_netns(async |mut netfilter| {
        netfilter.ensure_base(Family::Inet, &ruleset()).await.unwrap();
        let elements: Vec<_> = (0..70_000)
            .map(|n| {
                let address = std::net::Ipv4Addr::from_bits(0x0a60_0000 + n / 10).into();
                let frontend = Frontend {
                    address,
                    protocol: Protocol::Tcp,
                    port: (n % 10) as u16,
                };
                Element::Service(frontend, Treatment::ClusterIp)
            })
            .collect();
        let add: Vec<_> = elements.iter().map(|element| Update::Add(*element)).collect();
        assert_eq!(netfilter.update(&add).await, BTreeMap::new());
        assert_eq!(
            netfilter.elements(Family::Inet).await.map(sorted),
            Ok(sorted(elements.clone()))
        );

        // Each of them fails, and is told.
        let wrong: Vec<_> = (1..=20_000)
            .map(|port| {
                Update::Remove(service(
                    "198.51.100.1",
                    port,
                    Treatment::External(External::Local),
                ))
            })
            .collect();
        let failures = (0..20_000).map(|index| (index, Error::NotFound));
        assert_eq!(netfilter.update(&wrong).await, failures.collect());

        let remove: Vec<_> = elements.iter().map(|element| Update::Remove(*element)).collect();
        assert_eq!(netfilter.update(&remove).await, BTreeMap::new());
        assert_eq!(netfilter.elements(Family::Inet).await, Ok(vec![]));
    });
}

/// Whether a change is told of within a moment.
async fn is_told(netfilter: &mut Netfilter) -> bool {
    let soon = std::time::Duration::from_millis(200);
    tokio::time::timeout(soon, netfilter.changed()).await.is_ok()
}

/// I7
#[test]
#[ignore = "needs root and nf_tables: run by cargo xtask test"]
fn only_the_changes_of_others_to_our_tables_are_told() {
    in_new_netns(async |mut netfilter| {
        let mut other = Netfilter::connect().unwrap();
        netfilter.ensure_base(Family::Inet, &ruleset()).await.unwrap();
        let hairpin = Update::Add(Element::Hairpin("10.244.0.5".parse().unwrap()));
        assert_eq!(netfilter.update(&[hairpin]).await, BTreeMap::new());
        let table = TableMessage {
            attributes: vec![TableAttribute::Name("foreign".to_owned())],
        };
        let foreign = message(Family::Inet, NfTablesMessage::NewTable(table), NLM_F_CREATE);
        other.transaction([foreign]).await.unwrap();
        assert!(!is_told(&mut netfilter).await);

        other.delete_tables().await.unwrap();
        assert!(is_told(&mut netfilter).await);
    });
}

/// I7
#[test]
#[ignore = "needs root and nf_tables: run by cargo xtask test"]
fn what_others_change_while_nobody_listens_is_known() {
    in_new_netns(async |mut netfilter| {
        let mut other = Netfilter::connect().unwrap();
        netfilter.ensure_base(Family::Inet, &ruleset()).await.unwrap();
        let hairpins: Vec<_> = (0..2 * UNHEARD as u32)
            .map(|n| {
                Update::Add(Element::Hairpin(
                    std::net::Ipv4Addr::from_bits(0x0af4_0000 + n).into(),
                ))
            })
            .collect();

        assert_eq!(netfilter.update(&hairpins).await, BTreeMap::new());
        assert!(!is_told(&mut netfilter).await, "we did that ourselves");
        let missing = Update::Remove(Element::Hairpin("192.0.2.1".parse().unwrap()));
        assert_eq!(netfilter.update(&vec![missing; UNHEARD]).await.len(), UNHEARD);
        assert!(!is_told(&mut netfilter).await, "nothing was done");

        let before = netfilter.stop_listening().await;
        assert_eq!(other.change(&hairpins[..1]).await, BTreeMap::new());
        let [Update::Add(element), ..] = hairpins[..] else {
            unreachable!()
        };
        assert_eq!(other.change(&[Update::Remove(element)]).await, BTreeMap::new());
        netfilter.listen_again(before, 0).await;
        assert!(is_told(&mut netfilter).await);
        assert!(!is_told(&mut netfilter).await, "once");

        other.delete_tables().await.unwrap();
        assert!(is_told(&mut netfilter).await, "it listens again");
    });
}

/// C6: before a notification tells that packets are dropped now.
#[test]
#[ignore = "needs root and nf_tables: run by cargo xtask test"]
fn answers_pass_iptables_as_it_is_and_not_as_it_was() {
    in_new_netns(async |mut netfilter| {
        let table = TableMessage {
            attributes: vec![TableAttribute::Name("filter".to_owned())],
        };
        let forward = |policy: u32| ChainMessage {
            attributes: vec![
                ChainAttribute::Table("filter".to_owned()),
                ChainAttribute::Name("FORWARD".to_owned()),
                ChainAttribute::Hook(vec![
                    Hook::Number(InetHookNumber::Forward.into()),
                    Hook::Priority(0),
                ]),
                ChainAttribute::Policy(policy),
                ChainAttribute::Type("filter".to_owned()),
            ],
        };
        let set_policy = |policy| {
            [
                NfTablesMessage::NewTable(table.clone()),
                NfTablesMessage::NewChain(forward(policy)),
            ]
            .map(|inner| message(Family::Inet, inner, NLM_F_CREATE))
        };
        let mut other = Netfilter::connect().unwrap();
        let rules = async |netfilter: &mut Netfilter| {
            let request = listing::chain_rules(Family::Inet.number() as u8, "filter", "FORWARD");
            netfilter.socket.dump::<_, Message>(request).await.unwrap().len()
        };
        other.transaction(set_policy(1)).await.unwrap();
        assert_eq!(netfilter.ensure_answers().await, Ok(()));
        assert_eq!(rules(&mut other).await, 0);
        other.transaction(set_policy(0)).await.unwrap();
        assert_eq!(netfilter.ensure_answers().await, Ok(()));
        assert_eq!(rules(&mut other).await, 1);
    });
}
