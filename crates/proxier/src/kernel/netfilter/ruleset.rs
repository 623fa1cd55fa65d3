//! The part of our tables that does not depend on Services: sets, chains and rules.

use std::hash::{DefaultHasher, Hasher};

use ipnet::IpNet;
use ipvs::{Family, Protocol};
use netlink_packet_core::{DefaultNla, Emitable, NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, NetlinkMessage};
use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, Expressions, Hook, InetHookNumber, MetaKey, NfTablesMessage, Operator,
    RuleAttribute, RuleMessage, SetAttribute, SetDescription, SetFlags, SetMessage,
};

use super::{
    CLUSTER_IP, External, HAIRPIN, HEALTH_CHECKS, IN_CLUSTER, LOCAL, MARK_FOR_MASQUERADE, MARKS,
    MASQUERADING, NOT_HERE, Request, SERVICE_ADDRESSES, SERVICES, SOURCE_RANGES, TABLE, Treatment,
    expression::{
        accept_verdict, bitwise, cmp, destination_nat, destination_port, drop_verdict, goto_chain, in_set,
        masquerade, masquerade_to, meta, network_header, new_flow, reject, return_verdict, set_mark,
        source_is_local, source_port, value_from_map, verdict, verdict_map,
    },
    listing::UDATA_RULE_COMMENT,
    message,
};
use crate::{config::LocalDetector, source_ports::SourcePorts};

const INPUT: &str = "input";
const OUTPUT: &str = "output";
const NAT_PREROUTING: &str = "nat-prerouting";
const NAT_OUTPUT: &str = "nat-output";
const POSTROUTING: &str = "postrouting";

const CLIENTS_ON_THIS_NODE: &str = "clients on this node";
const CLIENTS_IN_PODS: &str = "clients in the cluster";

/// What the first rule's comment has before the number of the ruleset.
const RULESET: &str = "; ruleset ";

/// Whether a rule's comment says that its table is ours.
pub(super) fn is_ours(comment: &str) -> bool {
    comment.contains(RULESET)
}

/// What an operator's settings make of the rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ruleset {
    /// The bit of the packet mark, 0 to 31, that asks for masquerading. No other bit is looked at or changed.
    pub masquerade_bit: u8,
    /// Masquerade every client of a ClusterIP.
    pub masquerade_all: bool,
    /// How clients in the cluster are told from others, who are masqueraded when they use a ClusterIP.
    pub local_detector: LocalDetector,
    /// Let masquerading choose source ports at random (`fully-random`), so that flows compete for them less.
    pub fully_random: bool,
    /// From which of them.
    pub source_ports: SourcePorts,
}

/// The sets, chains and rules of one family's table.
#[derive(Debug)]
pub(super) struct Base {
    family: Family,
    rules: Vec<Rule>,
}

#[derive(Debug)]
struct Rule {
    chain: &'static str,
    /// For who reads `nft list ruleset`; it is also how we recognise our rules.
    comment: String,
    expressions: Vec<Expressions>,
}

impl Base {
    pub(super) fn new(family: Family, ruleset: &Ruleset) -> Self {
        let mut base = Self {
            family,
            rules: rules(family, ruleset),
        };
        // The first comment tells apart what different settings or versions make. It does not matter that another
        // release of Rust may hash in another way: the table is made again then.
        let mut hasher = DefaultHasher::new();
        for mut message in base.messages() {
            message.finalize();
            let mut bytes = vec![0; message.buffer_len()];
            message.serialize(&mut bytes);
            hasher.write(&bytes);
        }
        if let Some(rule) = base.rules.first_mut() {
            rule.comment
                .push_str(&format!("{RULESET}{:016x}", hasher.finish()));
        }
        base
    }

    /// The chain and the comment of each rule, in the kernel's order.
    pub(super) fn comments(&self) -> Vec<(String, String)> {
        self.rules
            .iter()
            .map(|rule| (rule.chain.to_owned(), rule.comment.clone()))
            .collect()
    }

    /// What makes it all in an empty table.
    pub(super) fn messages(&self) -> Vec<NetlinkMessage<Request>> {
        let Self { family, rules } = self;
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        let sets = sets(*family)
            .into_iter()
            .map(|set| message(*family, NfTablesMessage::NewSet(set), flags));
        let chains = chains()
            .into_iter()
            .map(|chain| message(*family, NfTablesMessage::NewChain(chain), flags));
        let rules = rules.iter().map(|rule| {
            message(
                *family,
                NfTablesMessage::NewRule(rule.message()),
                NLM_F_CREATE | NLM_F_APPEND,
            )
        });
        sets.chain(chains).chain(rules).collect()
    }
}

impl Rule {
    fn new(
        chain: &'static str,
        comment: &str,
        expressions: impl IntoIterator<Item = Vec<Expressions>>,
    ) -> Self {
        Self {
            chain,
            comment: comment.to_owned(),
            expressions: expressions.into_iter().flatten().collect(),
        }
    }

    fn message(&self) -> RuleMessage {
        RuleMessage {
            attributes: vec![
                RuleAttribute::Table(TABLE.to_owned()),
                RuleAttribute::Chain(self.chain.to_owned()),
                RuleAttribute::Expressions(self.expressions.iter().cloned().map(Into::into).collect()),
                RuleAttribute::UserData(comment(&self.comment)),
            ],
        }
    }
}

/// A comment as nft and iptables read it from a rule's `NFTA_RULE_USERDATA`; it is shorter than 128 bytes.
pub(super) fn comment(text: &str) -> Vec<u8> {
    [&[UDATA_RULE_COMMENT, text.len() as u8 + 1], text.as_bytes(), &[0]].concat()
}

/// In the order of the chains, which is the one that the kernel lists them in.
fn rules(family: Family, ruleset: &Ruleset) -> Vec<Rule> {
    let mark = 1_u32.wrapping_shl(ruleset.masquerade_bit.into()).to_ne_bytes();
    let unmarked = (!u32::from_ne_bytes(mark)).to_ne_bytes();
    let to_virtual_server = || {
        [
            new_flow(),
            destination_and_port(family),
            vec![verdict_map(SERVICES)],
        ]
    };
    let is_marked = vec![
        meta(MetaKey::Mark, 0),
        bitwise(0, &mark, &[0; 4]),
        cmp(0, Operator::Equal, &mark),
    ];

    let goto_masquerade = || vec![verdict(goto_chain(MASQUERADING))];

    let mut rules = vec![
        Rule::new(INPUT, "new flows to our virtual servers", to_virtual_server()),
        Rule::new(
            INPUT,
            "health checks by load balancers",
            [
                new_flow(),
                destination_and_port(family),
                vec![in_set(HEALTH_CHECKS), verdict(accept_verdict())],
            ],
        ),
        Rule::new(
            INPUT,
            "other ports of service addresses",
            [
                new_flow(),
                vec![destination(family), in_set(SERVICE_ADDRESSES)],
                vec![
                    meta(MetaKey::L4Proto, 0),
                    cmp(0, Operator::NotEqual, &[icmp(family)]),
                ],
                vec![reject(icmp_port_unreachable(family))],
            ],
        ),
        Rule::new(OUTPUT, "new flows to our virtual servers", to_virtual_server()),
    ];
    rules.extend(cluster_ip_rules(family, ruleset));
    rules.extend(except_in_cluster(LOCAL, family, ruleset));
    rules.extend(except_in_cluster(NOT_HERE, family, ruleset));
    rules.push(Rule::new(
        NOT_HERE,
        "clients elsewhere",
        [vec![verdict(drop_verdict())]],
    ));
    rules.push(Rule::new(
        IN_CLUSTER,
        "on to all endpoints",
        [
            destination_and_port(family),
            vec![value_from_map(MARKS, 0), set_mark(0)],
        ],
    ));
    rules.extend(
        [External::Masquerade, External::Local, External::NotHere]
            .map(|e| restricted_rules(family, e))
            .into_iter()
            .flatten(),
    );
    rules.push(Rule::new(
        MARK_FOR_MASQUERADE,
        "for postrouting",
        [vec![
            meta(MetaKey::Mark, 0),
            bitwise(0, &unmarked, &mark),
            set_mark(0),
        ]],
    ));
    // The kernel walks no further NAT rules once a flow has its binding, be it to what it is anyway: rules for every
    // local address, as those of host ports are, come later and do not take what is sent to a Service (C7).
    rules.extend([NAT_PREROUTING, NAT_OUTPUT].map(|chain| {
        let bind = vec![
            destination(family),
            in_set(SERVICE_ADDRESSES),
            destination_nat(family, 0),
        ];
        Rule::new(chain, "no other NAT for service addresses", [bind])
    }));
    rules.extend([
        Rule::new(
            POSTROUTING,
            "endpoints that are their own clients",
            [
                vec![source(family), destination_after_source(family), in_set(HAIRPIN)],
                goto_masquerade(),
            ],
        ),
        Rule::new(
            POSTROUTING,
            "clients on this node that have a service address for their own",
            [vec![source(family), in_set(SERVICE_ADDRESSES)], goto_masquerade()],
        ),
        Rule::new(
            POSTROUTING,
            "marked flows",
            [
                is_marked,
                vec![meta(MetaKey::Mark, 0), bitwise(0, &[0xff; 4], &mark), set_mark(0)],
                goto_masquerade(),
            ],
        ),
    ]);
    rules.extend(masquerade_rules(ruleset));
    rules
}

/// What the comment of the rules begins with that name a range of source ports.
const SOURCE_PORTS: &str = "source ports ";

/// `masquerading`: no flow leaves from a node port (C2). Who has a reserved port keeps one, as NFS servers ask for.
fn masquerade_rules(ruleset: &Ruleset) -> Vec<Rule> {
    let Ruleset {
        source_ports,
        fully_random,
        ..
    } = *ruleset;
    let mut rules = vec![Rule::new(
        MASQUERADING,
        "reserved source ports",
        [vec![
            source_port(0),
            cmp(0, Operator::LessThan, &1024_u16.to_be_bytes()),
            masquerade(fully_random),
        ]],
    )];
    rules.extend([Protocol::Tcp, Protocol::Udp, Protocol::Sctp].map(|protocol| {
        let is_protocol = vec![
            meta(MetaKey::L4Proto, 0),
            cmp(0, Operator::Equal, &[protocol.number()]),
        ];
        let masquerade = masquerade_to(source_ports, fully_random).into();
        Rule::new(
            MASQUERADING,
            &format!("{SOURCE_PORTS}{source_ports}: no node port"),
            [is_protocol, masquerade],
        )
    }));
    rules.push(Rule::new(
        MASQUERADING,
        "protocols without ports",
        [vec![masquerade(fully_random)]],
    ));
    rules
}

/// The range that a rule of ours names, given its chain and its comment.
pub(super) fn read_source_ports((chain, comment): &(String, String)) -> Option<SourcePorts> {
    let named = comment
        .strip_prefix(SOURCE_PORTS)
        .filter(|_| chain == MASQUERADING)?;
    named.split(':').next()?.parse().ok()
}

/// `mark-for-masquerade` for clients that are not in the cluster.
fn cluster_ip_rules(family: Family, ruleset: &Ruleset) -> Vec<Rule> {
    let goto_mark = || vec![verdict(goto_chain(MARK_FOR_MASQUERADE))];
    if ruleset.masquerade_all {
        return vec![Rule::new(CLUSTER_IP, "all clients", [goto_mark()])];
    }
    // The kernel may choose the virtual address itself as the source address of a client on the node (E4).
    let mut rules = vec![Rule::new(
        CLUSTER_IP,
        CLIENTS_ON_THIS_NODE,
        [source_is_local(), goto_mark()],
    )];
    let pods = pods(family, &ruleset.local_detector);
    if !pods.is_empty() {
        rules.extend(pods.into_iter().map(|pods| {
            Rule::new(
                CLUSTER_IP,
                CLIENTS_IN_PODS,
                [pods, vec![verdict(return_verdict())]],
            )
        }));
        rules.push(Rule::new(CLUSTER_IP, "clients elsewhere", [goto_mark()]));
    }
    rules
}

/// What both chains for `externalTrafficPolicy: Local` begin with: clients in the cluster leave.
fn except_in_cluster(chain: &'static str, family: Family, ruleset: &Ruleset) -> Vec<Rule> {
    let leave = || vec![verdict(goto_chain(IN_CLUSTER))];
    let mut rules = vec![Rule::new(
        chain,
        CLIENTS_ON_THIS_NODE,
        [source_is_local(), leave()],
    )];
    let pods = pods(family, &ruleset.local_detector);
    rules.extend(
        pods.into_iter()
            .map(|pods| Rule::new(chain, CLIENTS_IN_PODS, [pods, leave()])),
    );
    rules
}

/// The chain of a restricted treatment: on to the unrestricted one for those in the ranges.
fn restricted_rules(family: Family, external: External) -> [Rule; 2] {
    let chain = Treatment::Restricted(external).chain();
    let words = address_len(family) / 4;
    let mut key = destination_and_port(family);
    key.push(source_to(family, words + 2));
    key.push(in_set(SOURCE_RANGES));
    let go_on = vec![verdict(goto_chain(Treatment::External(external).chain()))];
    [
        Rule::new(chain, "clients in the source ranges", [key, go_on]),
        Rule::new(chain, "clients elsewhere", [vec![verdict(drop_verdict())]]),
    ]
}

/// Matches for the pods' clients, one of which is enough.
fn pods(family: Family, detector: &LocalDetector) -> Vec<Vec<Expressions>> {
    match detector {
        LocalDetector::None => Vec::new(),
        LocalDetector::Cidrs(cidrs) | LocalDetector::NodeCidrs(cidrs) => {
            cidrs.iter().filter_map(|cidr| source_in(family, cidr)).collect()
        }
        LocalDetector::BridgeInterface(name) => vec![input_interface(interface_name(name))],
        LocalDetector::InterfaceNamePrefix(prefix) => vec![input_interface(prefix.as_bytes().to_vec())],
    }
}

/// `ip daddr . meta l4proto . th dport`
fn destination_and_port(family: Family) -> Vec<Expressions> {
    let words = address_len(family) / 4;
    vec![
        destination(family),
        meta(MetaKey::L4Proto, words),
        destination_port(words + 1),
    ]
}

fn destination(family: Family) -> Expressions {
    match family {
        Family::Inet => network_header(16, 4, 0),
        Family::Inet6 => network_header(24, 16, 0),
    }
}

fn source(family: Family) -> Expressions {
    source_to(family, 0)
}

fn source_to(family: Family, to: u32) -> Expressions {
    match family {
        Family::Inet => network_header(12, 4, to),
        Family::Inet6 => network_header(8, 16, to),
    }
}

/// The second part of the key of `hairpin`.
fn destination_after_source(family: Family) -> Expressions {
    match family {
        Family::Inet => network_header(16, 4, 1),
        Family::Inet6 => network_header(24, 16, 4),
    }
}

fn source_in(family: Family, cidr: &IpNet) -> Option<Vec<Expressions>> {
    let (network, mask) = match (family, cidr) {
        (Family::Inet, IpNet::V4(cidr)) => {
            (cidr.network().octets().to_vec(), cidr.netmask().octets().to_vec())
        }
        (Family::Inet6, IpNet::V6(cidr)) => {
            (cidr.network().octets().to_vec(), cidr.netmask().octets().to_vec())
        }
        _ => return None,
    };
    let zeroes = vec![0; mask.len()];
    Some(vec![
        source(family),
        bitwise(0, &mask, &zeroes),
        cmp(0, Operator::Equal, &network),
    ])
}

/// `iifname`: compared as far as the bytes given go.
fn input_interface(name: Vec<u8>) -> Vec<Expressions> {
    vec![meta(MetaKey::Iifname, 0), cmp(0, Operator::Equal, &name)]
}

/// An interface's name as the kernel has it: `IFNAMSIZ` bytes, filled up with zeroes.
fn interface_name(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize(16, 0);
    bytes
}

const fn address_len(family: Family) -> u32 {
    match family {
        Family::Inet => 4,
        Family::Inet6 => 16,
    }
}

/// `IPPROTO_ICMP`, `IPPROTO_ICMPV6`
const fn icmp(family: Family) -> u8 {
    match family {
        Family::Inet => 1,
        Family::Inet6 => 58,
    }
}

/// `ICMP_PORT_UNREACH`, `ICMPV6_PORT_UNREACH`
const fn icmp_port_unreachable(family: Family) -> u8 {
    match family {
        Family::Inet => 3,
        Family::Inet6 => 4,
    }
}

fn chains() -> Vec<ChainMessage> {
    // NF_IP_PRI_FILTER, before IPVS's LOCAL_IN hooks (98 and later).
    const FILTER: i32 = 0;
    // NF_IP_PRI_MANGLE, after connection tracking (-200) and before IPVS's LOCAL_OUT hooks (-99 and later).
    const MANGLE: i32 = -150;
    // Before those of other programs, NF_IP_PRI_NAT_DST.
    const BEFORE_DSTNAT: i32 = -101;
    // NF_IP_PRI_NAT_SRC
    const SRCNAT: i32 = 100;
    let treatments = [
        CLUSTER_IP,
        LOCAL,
        NOT_HERE,
        IN_CLUSTER,
        Treatment::Restricted(External::Masquerade).chain(),
        Treatment::Restricted(External::Local).chain(),
        Treatment::Restricted(External::NotHere).chain(),
        MARK_FOR_MASQUERADE,
    ];
    let mut chains = vec![
        base_chain(INPUT, "filter", InetHookNumber::LocalIn, FILTER),
        base_chain(OUTPUT, "filter", InetHookNumber::LocalOut, MANGLE),
    ];
    chains.extend(treatments.map(|name| ChainMessage {
        attributes: chain(name),
    }));
    chains.extend([
        base_chain(NAT_PREROUTING, "nat", InetHookNumber::PreRouting, BEFORE_DSTNAT),
        base_chain(NAT_OUTPUT, "nat", InetHookNumber::LocalOut, BEFORE_DSTNAT),
        base_chain(POSTROUTING, "nat", InetHookNumber::PostRouting, SRCNAT),
        ChainMessage {
            attributes: chain(MASQUERADING),
        },
    ]);
    chains
}

fn chain(name: &str) -> Vec<ChainAttribute> {
    vec![
        ChainAttribute::Table(TABLE.to_owned()),
        ChainAttribute::Name(name.to_owned()),
    ]
}

fn base_chain(name: &str, kind: &str, hook: InetHookNumber, priority: i32) -> ChainMessage {
    const POLICY_ACCEPT: u32 = 1;
    let mut attributes = chain(name);
    attributes.extend([
        ChainAttribute::Hook(vec![Hook::Number(hook.into()), Hook::Priority(priority as u32)]),
        ChainAttribute::Policy(POLICY_ACCEPT),
        ChainAttribute::Type(kind.to_owned()),
    ]);
    ChainMessage { attributes }
}

/// The types of nft, which the kernel only keeps for it: six bits each.
const INET_PROTO: u32 = 12;
const INET_SERVICE: u32 = 13;
const MARK: u32 = 19;

fn sets(family: Family) -> [SetMessage; 6] {
    let (address, address_type) = match family {
        Family::Inet => (4, 7),
        Family::Inet6 => (16, 8),
    };
    let frontend = [address_type, INET_PROTO, INET_SERVICE];
    let map = |id, name, data_type, data_len| {
        let mut map = set(id, name, &frontend, address + 4 + 4, SetFlags::Map);
        map.attributes
            .extend([SetAttribute::DataType(data_type), SetAttribute::DataLen(data_len)]);
        map
    };
    // NFT_DATA_VERDICT
    let services = map(1, SERVICES, 0xffff_ff00, 0);
    let mut marks = map(4, MARKS, MARK, 4);
    // So that nft prints marks as the numbers that `ipvsadm` and `iptables` print: NFTNL_UDATA_SET_DATABYTEORDER, 4
    // bytes, BYTEORDER_HOST_ENDIAN.
    marks.attributes.push(SetAttribute::UserData(
        [&[1, 4], 1_u32.to_ne_bytes().as_slice()].concat(),
    ));
    let mut source_ranges = set(
        5,
        SOURCE_RANGES,
        &[address_type, INET_PROTO, INET_SERVICE, address_type],
        2 * address + 4 + 4,
        SetFlags::Interval | SetFlags::Concat,
    );
    let fields = [address, 1, 2, address].map(field);
    source_ranges
        .attributes
        .push(SetAttribute::Description(vec![SetDescription::Concat(
            fields.to_vec(),
        )]));
    [
        services,
        set(2, SERVICE_ADDRESSES, &[address_type], address, SetFlags::empty()),
        set(
            3,
            HAIRPIN,
            &[address_type, address_type],
            2 * address,
            SetFlags::empty(),
        ),
        marks,
        source_ranges,
        set(6, HEALTH_CHECKS, &frontend, address + 4 + 4, SetFlags::empty()),
    ]
}

/// One part of a concatenated key with intervals, by its length in bytes.
fn field(len: u32) -> DefaultNla {
    const NFTA_LIST_ELEM: u16 = 1;
    const NFTA_SET_FIELD_LEN: u16 = 1;
    let len = DefaultNla::new(NFTA_SET_FIELD_LEN, len.to_be_bytes().to_vec());
    let mut value = vec![0; len.buffer_len()];
    len.emit(&mut value);
    DefaultNla::new(NFTA_LIST_ELEM, value)
}

fn set(id: u32, name: &str, key: &[u32], key_len: u32, flags: SetFlags) -> SetMessage {
    SetMessage {
        attributes: vec![
            SetAttribute::Table(TABLE.to_owned()),
            SetAttribute::Name(name.to_owned()),
            SetAttribute::Flags(flags),
            SetAttribute::KeyType(key.iter().fold(0, |types, part| types << 6 | part)),
            SetAttribute::KeyLen(key_len),
            SetAttribute::Id(id),
        ],
    }
}
