//! The nftables expressions that our rules are made of. A rule is a sequence of them: they load registers, compare
//! them, and act; the first comparison that fails ends the rule.

use ipvs::Family;
use netlink_packet_core::DefaultNla;
use netlink_packet_netfilter::nftables::{
    Bitwise, Cmp, DataAttribute, Expressions, Immediate, Lookup, Meta, MetaKey, Operator, Payload, Register,
    Verdict, VerdictAttribute,
};

use crate::source_ports::SourcePorts;

/// The 32-bit register that a key begins in (`NFT_REG32_00`); later parts of a key follow in the next ones.
const FIRST: u32 = 8;

/// `NFT_PAYLOAD_NETWORK_HEADER`, `NFT_PAYLOAD_TRANSPORT_HEADER`.
const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;

fn register(offset: u32) -> Register {
    Register::from(FIRST + offset)
}

/// An expression that netlink-packet-netfilter has no type for.
fn other<const N: usize>(name: &str, attributes: [(u16, Vec<u8>); N]) -> Expressions {
    Expressions::Other {
        expression_type: name.to_owned(),
        attributes: attributes
            .into_iter()
            .map(|(kind, value)| DefaultNla::new(kind, value))
            .collect(),
    }
}

fn be32(value: u32) -> Vec<u8> {
    value.to_be_bytes().to_vec()
}

/// Loads bytes of the network header.
pub(super) fn network_header(offset: u32, len: u32, to: u32) -> Expressions {
    payload(NETWORK_HEADER, offset, len, to)
}

/// Loads `th sport`: the source port, at the same place in TCP, UDP and SCTP.
pub(super) fn source_port(to: u32) -> Expressions {
    payload(TRANSPORT_HEADER, 0, 2, to)
}

/// Loads `th dport`: the destination port, which TCP, UDP and SCTP have at the same place.
pub(super) fn destination_port(to: u32) -> Expressions {
    payload(TRANSPORT_HEADER, 2, 2, to)
}

fn payload(base: u32, offset: u32, len: u32, to: u32) -> Expressions {
    Expressions::Payload(vec![
        Payload::DestinationRegister(register(to)),
        Payload::Base(base),
        Payload::Offset(offset),
        Payload::Len(len),
    ])
}

/// Loads a property of the packet.
pub(super) fn meta(key: MetaKey, to: u32) -> Expressions {
    Expressions::Meta(vec![Meta::DestinationRegister(register(to)), Meta::Key(key)])
}

/// `meta mark set`: from a register.
pub(super) fn set_mark(from: u32) -> Expressions {
    Expressions::Meta(vec![
        Meta::Key(MetaKey::Mark),
        Meta::SourceRegister(register(from)),
    ])
}

/// `ct state new`
pub(super) fn new_flow() -> Vec<Expressions> {
    const NFTA_CT_DREG: u16 = 1;
    const NFTA_CT_KEY: u16 = 2;
    const NFT_CT_STATE: u32 = 0;
    /// The bit of `IP_CT_NEW`, in host order.
    const STATE_NEW: u32 = 8;
    let load = other(
        "ct",
        [(NFTA_CT_KEY, be32(NFT_CT_STATE)), (NFTA_CT_DREG, be32(FIRST))],
    );
    vec![
        load,
        bitwise(0, &STATE_NEW.to_ne_bytes(), &[0; 4]),
        cmp(0, Operator::NotEqual, &[0; 4]),
    ]
}

/// `fib saddr type local`: the source is an address of this node.
pub(super) fn source_is_local() -> Vec<Expressions> {
    const NFTA_FIB_DREG: u16 = 1;
    const NFTA_FIB_RESULT: u16 = 2;
    const NFTA_FIB_FLAGS: u16 = 3;
    const NFT_FIB_RESULT_ADDRTYPE: u32 = 3;
    const NFTA_FIB_F_SADDR: u32 = 1;
    const RTN_LOCAL: u32 = 2;
    let load = other(
        "fib",
        [
            (NFTA_FIB_DREG, be32(FIRST)),
            (NFTA_FIB_RESULT, be32(NFT_FIB_RESULT_ADDRTYPE)),
            (NFTA_FIB_FLAGS, be32(NFTA_FIB_F_SADDR)),
        ],
    );
    vec![load, cmp(0, Operator::Equal, &RTN_LOCAL.to_ne_bytes())]
}

/// `-m conntrack --ctstate RELATED,ESTABLISHED`, in iptables' representation: its match of that name, by way of
/// nft_compat.
pub(super) fn established() -> Expressions {
    const NFTA_MATCH_NAME: u16 = 1;
    const NFTA_MATCH_REV: u16 = 2;
    const NFTA_MATCH_INFO: u16 = 3;
    const XT_CONNTRACK_STATE: u16 = 1;
    /// `XT_CONNTRACK_STATE_BIT` of `IP_CT_ESTABLISHED` and `IP_CT_RELATED`.
    const STATES: u16 = 1 << 1 | 1 << 2;
    // `struct xt_conntrack_mtinfo3`, aligned to eight bytes: addresses, ports and times, to which nothing is compared;
    // `match_flags` and `invert_flags`; `state_mask`; the rest.
    let mut info = vec![0; 146];
    info.extend(XT_CONNTRACK_STATE.to_ne_bytes());
    info.extend([0; 2]);
    info.extend(STATES.to_ne_bytes());
    info.resize(168, 0);
    other(
        "match",
        [
            (NFTA_MATCH_NAME, b"conntrack\0".to_vec()),
            (NFTA_MATCH_REV, be32(3)),
            (NFTA_MATCH_INFO, info),
        ],
    )
}

/// `counter`
pub(super) fn counter() -> Expressions {
    const NFTA_COUNTER_BYTES: u16 = 1;
    const NFTA_COUNTER_PACKETS: u16 = 2;
    other(
        "counter",
        [
            (NFTA_COUNTER_BYTES, vec![0; 8]),
            (NFTA_COUNTER_PACKETS, vec![0; 8]),
        ],
    )
}

/// Compares the bytes of a register.
pub(super) fn cmp(from: u32, operator: Operator, data: &[u8]) -> Expressions {
    Expressions::Cmp(vec![
        Cmp::SourceRegister(register(from)),
        Cmp::Op(operator),
        Cmp::Data(DataAttribute::Value(data.to_vec())),
    ])
}

/// Replaces a register by `(register & mask) ^ xor`.
pub(super) fn bitwise(at: u32, mask: &[u8], xor: &[u8]) -> Expressions {
    Expressions::Bitwise(vec![
        Bitwise::SourceRegister(register(at)),
        Bitwise::DestinationRegister(register(at)),
        Bitwise::Length(mask.len() as u32),
        Bitwise::Mask(DataAttribute::Value(mask.to_vec())),
        Bitwise::Xor(DataAttribute::Value(xor.to_vec())),
    ])
}

/// `@set`: the key is in the set.
pub(super) fn in_set(set: &str) -> Expressions {
    Expressions::Lookup(vec![
        Lookup::Set(set.to_owned()),
        Lookup::SourceRegister(register(0)),
    ])
}

/// `map @map`: loads what the map has for the key; ends the rule if it has nothing.
pub(super) fn value_from_map(map: &str, to: u32) -> Expressions {
    Expressions::Lookup(vec![
        Lookup::Set(map.to_owned()),
        Lookup::SourceRegister(register(0)),
        Lookup::DestinationRegister(register(to)),
    ])
}

/// `vmap @map`: the verdict that the map has for the key, if it has one.
pub(super) fn verdict_map(map: &str) -> Expressions {
    Expressions::Lookup(vec![
        Lookup::Set(map.to_owned()),
        Lookup::SourceRegister(register(0)),
        Lookup::DestinationRegister(Register::Verdict),
    ])
}

/// The verdict to go on in another chain, for good.
pub(super) fn goto_chain(chain: &str) -> Vec<VerdictAttribute> {
    vec![
        VerdictAttribute::Code(Verdict::Goto),
        VerdictAttribute::Chain(chain.to_owned()),
    ]
}

/// The verdict to leave the chain.
pub(super) fn return_verdict() -> Vec<VerdictAttribute> {
    vec![VerdictAttribute::Code(Verdict::Return)]
}

/// The verdict that the packet may pass this hook, as far as we are concerned.
pub(super) fn accept_verdict() -> Vec<VerdictAttribute> {
    const NF_ACCEPT: u32 = 1;
    vec![VerdictAttribute::Code(Verdict::Other(NF_ACCEPT))]
}

/// The verdict to drop the packet.
pub(super) fn drop_verdict() -> Vec<VerdictAttribute> {
    const NF_DROP: u32 = 0;
    vec![VerdictAttribute::Code(Verdict::Other(NF_DROP))]
}

/// Ends the chain with a verdict.
pub(super) fn verdict(verdict: Vec<VerdictAttribute>) -> Expressions {
    Expressions::Immediate(vec![
        Immediate::DestinationRegister(Register::Verdict),
        Immediate::Data(DataAttribute::Verdict(verdict)),
    ])
}

/// `reject`: with an ICMP error of this code.
pub(super) fn reject(icmp_code: u8) -> Expressions {
    const NFTA_REJECT_TYPE: u16 = 1;
    const NFTA_REJECT_ICMP_CODE: u16 = 2;
    const NFT_REJECT_ICMP_UNREACH: u32 = 0;
    other(
        "reject",
        [
            (NFTA_REJECT_TYPE, be32(NFT_REJECT_ICMP_UNREACH)),
            (NFTA_REJECT_ICMP_CODE, vec![icmp_code]),
        ],
    )
}

/// `dnat to`: the address in a register.
pub(super) fn destination_nat(family: Family, from: u32) -> Expressions {
    const NFTA_NAT_TYPE: u16 = 1;
    const NFTA_NAT_FAMILY: u16 = 2;
    const NFTA_NAT_REG_ADDR_MIN: u16 = 3;
    const NFT_NAT_DNAT: u32 = 1;
    other(
        "nat",
        [
            (NFTA_NAT_TYPE, be32(NFT_NAT_DNAT)),
            (NFTA_NAT_FAMILY, be32(family.number().into())),
            (NFTA_NAT_REG_ADDR_MIN, be32(FIRST + from)),
        ],
    )
}

const NFTA_MASQ_FLAGS: u16 = 1;

const fn random_flag(fully_random: bool) -> u32 {
    const NF_NAT_RANGE_PROTO_RANDOM_FULLY: u32 = 1 << 4;
    if fully_random {
        NF_NAT_RANGE_PROTO_RANDOM_FULLY
    } else {
        0
    }
}

/// `masquerade`, or `masquerade fully-random`: from a source port that cannot be guessed, and that fewer flows
/// compete for.
pub(super) fn masquerade(fully_random: bool) -> Expressions {
    other("masq", [(NFTA_MASQ_FLAGS, be32(random_flag(fully_random)))])
}

/// `masquerade to :FIRST-LAST`, and `fully-random`: from source ports of this range.
pub(super) fn masquerade_to(ports: SourcePorts, fully_random: bool) -> [Expressions; 3] {
    const NFTA_MASQ_REG_PROTO_MIN: u16 = 2;
    const NFTA_MASQ_REG_PROTO_MAX: u16 = 3;
    const NF_NAT_RANGE_PROTO_SPECIFIED: u32 = 1 << 1;
    let load = |port: u16, to| {
        Expressions::Immediate(vec![
            Immediate::DestinationRegister(register(to)),
            Immediate::Data(DataAttribute::Value(port.to_be_bytes().to_vec())),
        ])
    };
    let flags = NF_NAT_RANGE_PROTO_SPECIFIED | random_flag(fully_random);
    let masquerade = other(
        "masq",
        [
            (NFTA_MASQ_FLAGS, be32(flags)),
            (NFTA_MASQ_REG_PROTO_MIN, be32(FIRST)),
            (NFTA_MASQ_REG_PROTO_MAX, be32(FIRST + 1)),
        ],
    );
    [load(ports.first, 0), load(ports.last, 1), masquerade]
}
