//! What the kernel lists of our tables.

use std::{convert::Infallible, net::IpAddr};

use ipnet::IpNet;
use ipvs::{Family, Protocol};
use netlink_packet_core::{NetlinkDeserializable, NetlinkHeader, NetlinkMessage};

use super::{
    Element, Frontend, HAIRPIN, HEALTH_CHECKS, MARKS, NFT_GOTO, NFTA_DATA_VALUE, NFTA_DATA_VERDICT,
    NFTA_SET_ELEM_DATA, NFTA_SET_ELEM_KEY, NFTA_SET_ELEM_KEY_END, NFTA_SET_ELEM_LIST_ELEMENTS,
    NFTA_SET_ELEM_LIST_SET, NFTA_SET_ELEM_LIST_TABLE, NFTA_VERDICT_CHAIN, NFTA_VERDICT_CODE,
    SERVICE_ADDRESSES, SERVICES, SOURCE_RANGES, Treatment,
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
    request(
        NFT_MSG_GETSETELEM,
        family,
        &[(NFTA_SET_ELEM_LIST_TABLE, table), (NFTA_SET_ELEM_LIST_SET, set)],
    )
}

/// Asks for the generation of the network namespace's nftables.
pub(super) fn generation() -> NetlinkMessage<Message> {
    const NFT_MSG_GETGEN: u16 = 16;
    const NFPROTO_UNSPEC: u8 = 0;
    Message::new(of_nftables(NFT_MSG_GETGEN), NFPROTO_UNSPEC, &[])
}

/// The generation, if the message tells of one.
pub(super) fn read_generation(message: &Message) -> Option<u32> {
    const NFT_MSG_NEWGEN: u16 = 15;
    const NFTA_GEN_ID: u16 = 1;
    let is_generation = message.message_type == of_nftables(NFT_MSG_NEWGEN);
    let id = is_generation.then(|| find(&message.attributes, NFTA_GEN_ID))??;
    Some(u32::from_be_bytes(id.try_into().ok()?))
}

fn request(message_type: u16, family: Family, names: &[(u16, &str)]) -> NetlinkMessage<Message> {
    let attributes: Vec<_> = names.iter().map(|(kind, name)| text(*kind, name)).collect();
    Message::new(of_nftables(message_type), family.number() as u8, &attributes)
}

pub(super) const fn of_nftables(command: u16) -> u16 {
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

/// The elements in one message of a set's listing, without those that we cannot have made. They are read in place:
/// there are tens of thousands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Elements(pub Vec<Element>);

impl NetlinkDeserializable for Elements {
    type Error = Infallible;

    fn deserialize(_: &NetlinkHeader, payload: &[u8]) -> Result<Self, Infallible> {
        Ok(Self(read_elements(payload).unwrap_or_default()))
    }
}

fn read_elements(payload: &[u8]) -> Option<Vec<Element>> {
    // struct nfgenmsg
    let ([family, _, _, _], message) = payload.split_first_chunk()?;
    let family = Family::from_number((*family).into())?;
    let set = find(message, NFTA_SET_ELEM_LIST_SET)?.strip_suffix(&[0])?;
    let read: fn(&Listed<'_>) -> Option<Element> = match std::str::from_utf8(set).ok()? {
        SERVICES => |element| Some(Element::Service(element.frontend()?, element.treatment()?)),
        MARKS => |element| Some(Element::Mark(element.frontend()?, element.mark()?)),
        SOURCE_RANGES => |element| element.source_range(),
        SERVICE_ADDRESSES => |element| Some(Element::ServiceAddress(element.address()?)),
        HEALTH_CHECKS => |element| Some(Element::HealthCheck(element.frontend()?)),
        HAIRPIN => |element| Some(Element::Hairpin(element.address()?)),
        _ => return None,
    };
    let elements = attributes(find(message, NFTA_SET_ELEM_LIST_ELEMENTS)?);
    let listed = elements.filter_map(|(_, attributes)| read(&Listed::new(attributes, family)?));
    Some(listed.collect())
}

/// A listed element.
struct Listed<'a> {
    family: Family,
    key: &'a [u8],
    attributes: &'a [u8],
}

impl<'a> Listed<'a> {
    fn new(attributes: &'a [u8], family: Family) -> Option<Self> {
        let key = find(find(attributes, NFTA_SET_ELEM_KEY)?, NFTA_DATA_VALUE)?;
        Some(Self {
            family,
            key,
            attributes,
        })
    }

    fn address(&self) -> Option<IpAddr> {
        read_address(self.key, self.family).map(|(address, _)| address)
    }

    fn frontend(&self) -> Option<Frontend> {
        read_frontend(self.key, self.family).map(|(frontend, _)| frontend)
    }

    fn data(&self, kind: u16) -> Option<&'a [u8]> {
        find(find(self.attributes, NFTA_SET_ELEM_DATA)?, kind)
    }

    fn treatment(&self) -> Option<Treatment> {
        read_treatment(self.data(NFTA_DATA_VERDICT)?)
    }

    fn mark(&self) -> Option<u32> {
        self.data(NFTA_DATA_VALUE)?
            .first_chunk()
            .map(|mark| u32::from_ne_bytes(*mark))
    }

    fn source_range(&self) -> Option<Element> {
        let end = find(find(self.attributes, NFTA_SET_ELEM_KEY_END)?, NFTA_DATA_VALUE)?;
        let (frontend, first) = read_frontend(self.key, self.family)?;
        let (_, last) = read_frontend(end, self.family)?;
        let (first, _) = read_address(first, self.family)?;
        let (last, _) = read_address(last, self.family)?;
        Some(Element::SourceRange(frontend, range(first, last)?))
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
    let length = match (first, last) {
        (IpAddr::V4(first), IpAddr::V4(last)) => (first.to_bits() ^ last.to_bits()).leading_zeros(),
        (IpAddr::V6(first), IpAddr::V6(last)) => (first.to_bits() ^ last.to_bits()).leading_zeros(),
        _ => return None,
    };
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
    let code = u32::from_be_bytes(*find(verdict, NFTA_VERDICT_CODE)?.first_chunk()?);
    let chain = find(verdict, NFTA_VERDICT_CHAIN)?.strip_suffix(&[0])?;
    let known = Treatment::ALL
        .into_iter()
        .find(|treatment| treatment.chain().as_bytes() == chain)?;
    (code == NFT_GOTO).then_some(known)
}
