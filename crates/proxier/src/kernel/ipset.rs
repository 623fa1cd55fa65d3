//! ipsets: their names and entries, and their removal. This proxier makes none.

use std::{net::IpAddr, path::Path};

use netlink_batch::{Errno, Socket};
use netlink_packet_core::{DefaultNla, NetlinkMessage};
use netlink_sys::protocols::NETLINK_NETFILTER;

use super::{
    netfilter::Error,
    nfnetlink::{Message, attributes, find, string, text},
};

const NFNL_SUBSYS_IPSET: u8 = 6;
const IPSET_CMD_DESTROY: u8 = 3;
const IPSET_CMD_LIST: u8 = 7;

const IPSET_ATTR_PROTOCOL: u16 = 1;
const IPSET_ATTR_SETNAME: u16 = 2;
const IPSET_ATTR_FLAGS: u16 = 6;
const IPSET_ATTR_ADT: u16 = 8;

/// The version of the protocol: 6 is understood by all kernels since 2.6.39.
const PROTOCOL: u8 = 6;

/// An entry of a set that has ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// The address, if the entries of the set have one.
    pub(crate) address: Option<IpAddr>,
    /// The number of the transport protocol, likewise.
    pub(crate) protocol: Option<u8>,
    pub(crate) port: u16,
}

/// The sets of the network namespace that we run in.
#[derive(Debug)]
pub(crate) struct IpSets {
    socket: Socket,
}

impl IpSets {
    /// Opens a socket, if there can be sets: asking for them would have the kernel load ip_set.
    pub(crate) fn connect() -> Result<Option<Self>, Error> {
        if !Path::new("/sys/module/ip_set").exists() {
            return Ok(None);
        }
        Ok(Some(Self {
            socket: Socket::connect(NETLINK_NETFILTER)?,
        }))
    }

    /// The names of all sets.
    pub(crate) async fn names(&mut self) -> Result<Vec<String>, Error> {
        const IPSET_FLAG_LIST_SETNAME: u32 = 1 << 1;
        let only_names = DefaultNla::new(IPSET_ATTR_FLAGS, IPSET_FLAG_LIST_SETNAME.to_be_bytes().to_vec());
        let listed = self.socket.dump(request(IPSET_CMD_LIST, [only_names])).await?;
        let name = |message: &Message| find(&message.attributes, IPSET_ATTR_SETNAME).map(string);
        Ok(listed.iter().filter_map(name).collect())
    }

    /// The entries of a set of this name; none, if there is no such set.
    pub(crate) async fn entries(&mut self, name: &str) -> Result<Vec<Entry>, Error> {
        let list = request(IPSET_CMD_LIST, [text(IPSET_ATTR_SETNAME, name)]);
        match self.socket.dump(list).await {
            Err(error) if error.errno() == Some(Errno::NOENT) => Ok(Vec::new()),
            listed => Ok(listed?.iter().flat_map(read_entries).collect()),
        }
    }

    /// Removes a set, unless it is used, for which ip_set has an error number of its own: list the names again to see.
    pub(crate) async fn destroy(&mut self, name: &str) {
        let destroy = request(IPSET_CMD_DESTROY, [text(IPSET_ATTR_SETNAME, name)]);
        if let Err(error) = self.socket.request::<_, Message>(destroy).await {
            tracing::debug!("ipset destroy {name}: {error}");
        }
    }
}

fn request(command: u8, attributes: impl IntoIterator<Item = DefaultNla>) -> NetlinkMessage<Message> {
    const AF_INET: u8 = 2;
    let protocol = DefaultNla::new(IPSET_ATTR_PROTOCOL, vec![PROTOCOL]);
    let attributes: Vec<_> = [protocol].into_iter().chain(attributes).collect();
    Message::new(
        u16::from_be_bytes([NFNL_SUBSYS_IPSET, command]),
        AF_INET,
        &attributes,
    )
}

fn read_entries(message: &Message) -> Vec<Entry> {
    let list = find(&message.attributes, IPSET_ATTR_ADT).unwrap_or_default();
    attributes(list)
        .filter_map(|(_, entry)| read_entry(entry))
        .collect()
}

fn read_entry(entry: &[u8]) -> Option<Entry> {
    const IPSET_ATTR_IP: u16 = 1;
    const IPSET_ATTR_PORT: u16 = 4;
    const IPSET_ATTR_PROTO: u16 = 7;
    const IPSET_ATTR_IPADDR_IPV4: u16 = 1;
    const IPSET_ATTR_IPADDR_IPV6: u16 = 2;
    let address = find(entry, IPSET_ATTR_IP).and_then(|address| {
        let v4 = || find(address, IPSET_ATTR_IPADDR_IPV4)?.first_chunk::<4>();
        let v6 = || find(address, IPSET_ATTR_IPADDR_IPV6)?.first_chunk::<16>();
        v4().map(|octets| IpAddr::from(*octets))
            .or_else(|| v6().map(|octets| IpAddr::from(*octets)))
    });
    Some(Entry {
        address,
        protocol: find(entry, IPSET_ATTR_PROTO).and_then(|number| number.first().copied()),
        port: u16::from_be_bytes(*find(entry, IPSET_ATTR_PORT)?.first_chunk()?),
    })
}
