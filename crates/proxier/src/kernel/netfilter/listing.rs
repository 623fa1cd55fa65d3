//! What the kernel lists of our tables.

use std::net::IpAddr;

use ipnet::IpNet;
use ipvs::{Family, Protocol};
use netlink_packet_core::NetlinkMessage;

use super::{
    Element, Frontend, HAIRPIN, HEALTH_CHECKS, MARKS, SERVICE_ADDRESSES, SERVICES, SOURCE_RANGES, Treatment,
    octets,
};
use crate::kernel::nfnetlink::{Message, attributes, find, string, text};

const NFNL_SUBSYS_NFTABLES: u8 = 10;
const NFT_MSG_NEWCHAIN: u16 = 3;
const NFT_MSG_GETCHAIN: u16 = 4;
const NFT_MSG_DELCHAIN: u16 = 5;
const NFT_MSG_GETRULE: u16 = 7;
const NFT_MSG_GETSETELEM: u16 = 13;

/// `NFTA_TABLE_NAME`, `NFTA_CHAIN_TABLE`, and so on: the number is the same in each kind of message.
const NFTA_TABLE: u16 = 1;
const NFTA_RULE_TABLE: u16 = NFTA_TABLE;
const NFTA_RULE_CHAIN: u16 = 2;

const NFT_GOTO: u32 = -4_i32 as u32;

/// The type of a comment in `NFTA_RULE_USERDATA`, as nft and libnftnl have it.
pub(super) const UDATA_RULE_COMMENT: u8 = 0;

/// Asks for the rules of a table.
pub(super) fn rules(family: Family, table: &str) -> NetlinkMessage<Message> {
    request(NFT_MSG_GETRULE, family, &[(NFTA_RULE_TABLE, table)])
}

/// Asks for the rules of a chain in a table of any family (`NFPROTO_*`).
pub(super) fn chain_rules(family: u8, table: &str, chain: &str) -> NetlinkMessage<Message> {
    let names = [text(NFTA_RULE_TABLE, table), text(NFTA_RULE_CHAIN, chain)];
    Message::new(of_nftables(NFT_MSG_GETRULE), family, &names)
}

/// Asks for all chains there are.
pub(super) fn chains() -> NetlinkMessage<Message> {
    const NFPROTO_UNSPEC: u8 = 0;
    Message::new(of_nftables(NFT_MSG_GETCHAIN), NFPROTO_UNSPEC, &[])
}

/// Asks for the elements of a set.
pub(super) fn set_elements(family: Family, table: &str, set: &str) -> NetlinkMessage<Message> {
    const NFTA_SET_ELEM_LIST_TABLE: u16 = 1;
    const NFTA_SET_ELEM_LIST_SET: u16 = 2;
    request(
        NFT_MSG_GETSETELEM,
        family,
        &[(NFTA_SET_ELEM_LIST_TABLE, table), (NFTA_SET_ELEM_LIST_SET, set)],
    )
}

fn request(message_type: u16, family: Family, names: &[(u16, &str)]) -> NetlinkMessage<Message> {
    let attributes: Vec<_> = names.iter().map(|(kind, name)| text(*kind, name)).collect();
    Message::new(of_nftables(message_type), family.number() as u8, &attributes)
}

const fn of_nftables(command: u16) -> u16 {
    (NFNL_SUBSYS_NFTABLES as u16) << 8 | command
}

/// Whether a message is about a chain.
pub(super) fn is_of_chain(message: &Message) -> bool {
    [NFT_MSG_NEWCHAIN, NFT_MSG_DELCHAIN]
        .map(of_nftables)
        .contains(&message.message_type)
}

/// The table of a message about a table, a chain or a rule; and the chain, unless it is about a table.
pub(super) fn table_and_chain(message: &Message) -> Option<(String, Option<String>)> {
    const NFT_MSG_NEWTABLE: u16 = 0;
    const NFT_MSG_DELTABLE: u16 = 2;
    const NFT_MSG_NEWRULE: u16 = 6;
    const NFT_MSG_DELRULE: u16 = 8;
    const NFTA_CHAIN_NAME: u16 = 3;
    let is = |commands: [u16; 2]| commands.map(of_nftables).contains(&message.message_type);
    let value = |kind| find(&message.attributes, kind).map(string);
    let table = value(NFTA_TABLE)?;
    if is_of_chain(message) {
        Some((table, value(NFTA_CHAIN_NAME)))
    } else if is([NFT_MSG_NEWRULE, NFT_MSG_DELRULE]) {
        Some((table, value(NFTA_RULE_CHAIN)))
    } else if is([NFT_MSG_NEWTABLE, NFT_MSG_DELTABLE]) {
        Some((table, None))
    } else {
        None
    }
}

/// Whether an `immediate` expression, given its attributes, is the verdict to drop the packet.
pub(super) fn is_drop(immediate: &[u8]) -> bool {
    const NFTA_IMMEDIATE_DATA: u16 = 2;
    const NFTA_DATA_VERDICT: u16 = 2;
    const NFTA_VERDICT_CODE: u16 = 1;
    const NF_DROP: [u8; 4] = [0; 4];
    let data = find(immediate, NFTA_IMMEDIATE_DATA).and_then(|data| find(data, NFTA_DATA_VERDICT));
    data.and_then(|verdict| find(verdict, NFTA_VERDICT_CODE)) == Some(&NF_DROP)
}

/// Whether a notification is about a table or something in it.
pub(super) fn is_of_table(message: &Message, table: &str) -> bool {
    message.message_type >> 8 == u16::from(NFNL_SUBSYS_NFTABLES)
        && find(&message.attributes, NFTA_TABLE)
            .is_some_and(|name| name.strip_suffix(&[0]) == Some(table.as_bytes()))
}

/// The chain and the comment of a rule; empty where it has none.
pub(super) fn read_rule(message: &Message) -> (String, String) {
    const NFTA_RULE_USERDATA: u16 = 7;
    let chain = find(&message.attributes, NFTA_RULE_CHAIN)
        .map(string)
        .unwrap_or_default();
    let comment = match find(&message.attributes, NFTA_RULE_USERDATA) {
        Some([UDATA_RULE_COMMENT, len, rest @ ..]) => rest.get(..usize::from(*len)).map(string),
        _ => None,
    };
    (chain, comment.unwrap_or_default())
}

/// The elements in one message of a set's listing. Those that we cannot have made are passed over.
pub(super) fn read_elements(message: &Message, family: Family, set: &str) -> Vec<Element> {
    const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
    let list = find(&message.attributes, NFTA_SET_ELEM_LIST_ELEMENTS).unwrap_or_default();
    attributes(list)
        .filter_map(|(_, element)| read_element(element, family, set))
        .collect()
}

fn read_element(element: &[u8], family: Family, set: &str) -> Option<Element> {
    const NFTA_SET_ELEM_KEY: u16 = 1;
    const NFTA_SET_ELEM_DATA: u16 = 2;
    const NFTA_SET_ELEM_KEY_END: u16 = 10;
    const NFTA_DATA_VALUE: u16 = 1;
    const NFTA_DATA_VERDICT: u16 = 2;
    let key = find(find(element, NFTA_SET_ELEM_KEY)?, NFTA_DATA_VALUE)?;
    let data = |kind| find(find(element, NFTA_SET_ELEM_DATA)?, kind);
    match set {
        SERVICES => {
            let (frontend, _) = read_frontend(key, family)?;
            Some(Element::Service(
                frontend,
                read_treatment(data(NFTA_DATA_VERDICT)?)?,
            ))
        }
        MARKS => {
            let (frontend, _) = read_frontend(key, family)?;
            Some(Element::Mark(
                frontend,
                u32::from_ne_bytes(*data(NFTA_DATA_VALUE)?.first_chunk()?),
            ))
        }
        SOURCE_RANGES => {
            let end = find(find(element, NFTA_SET_ELEM_KEY_END)?, NFTA_DATA_VALUE)?;
            let ((frontend, first), (_, last)) = (read_frontend(key, family)?, read_frontend(end, family)?);
            let (first, last) = (read_address(first, family)?.0, read_address(last, family)?.0);
            Some(Element::SourceRange(frontend, range(first, last)?))
        }
        SERVICE_ADDRESSES => Some(Element::ServiceAddress(read_address(key, family)?.0)),
        HEALTH_CHECKS => Some(Element::HealthCheck(read_frontend(key, family)?.0)),
        HAIRPIN => Some(Element::Hairpin(read_address(key, family)?.0)),
        _ => None,
    }
}

fn read_frontend(key: &[u8], family: Family) -> Option<(Frontend, &[u8])> {
    let (address, rest) = read_address(key, family)?;
    let ([protocol, _, _, _, port_high, port_low, _, _], rest) = rest.split_first_chunk()?;
    let protocols = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
    let frontend = Frontend {
        address,
        protocol: protocols.into_iter().find(|known| known.number() == *protocol)?,
        port: u16::from_be_bytes([*port_high, *port_low]),
    };
    Some((frontend, rest))
}

/// The network from one address to another, if they are the ends of one.
fn range(first: IpAddr, last: IpAddr) -> Option<IpNet> {
    let differ = octets(first)
        .iter()
        .zip(octets(last))
        .map(|(a, b)| (a ^ b).count_ones())
        .sum::<u32>();
    let length = octets(first).len() as u32 * 8 - differ;
    let range = IpNet::new(first, u8::try_from(length).ok()?).ok()?;
    (range.network() == first && range.broadcast() == last).then_some(range)
}

fn read_address(key: &[u8], family: Family) -> Option<(IpAddr, &[u8])> {
    match family {
        Family::Inet => key
            .split_first_chunk::<4>()
            .map(|(octets, rest)| (IpAddr::from(*octets), rest)),
        Family::Inet6 => key
            .split_first_chunk::<16>()
            .map(|(octets, rest)| (IpAddr::from(*octets), rest)),
    }
}

fn read_treatment(verdict: &[u8]) -> Option<Treatment> {
    const NFTA_VERDICT_CODE: u16 = 1;
    const NFTA_VERDICT_CHAIN: u16 = 2;
    let code = u32::from_be_bytes(*find(verdict, NFTA_VERDICT_CODE)?.first_chunk()?);
    let chain = find(verdict, NFTA_VERDICT_CHAIN).map(string)?;
    let known = Treatment::ALL
        .into_iter()
        .find(|treatment| treatment.chain() == chain)?;
    (code == NFT_GOTO).then_some(known)
}
