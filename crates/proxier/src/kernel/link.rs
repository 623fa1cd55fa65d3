//! kube-ipvs0, the dummy link that holds the addresses of virtual servers, and the addresses of the node.
//!
//! The kernel delivers locally, and so hands to IPVS, only what is sent to an address of its own. The link never
//! comes up and answers no ARP. Its name and its state are those that kube-proxy gives it: routing daemons and
//! network plugins know it by them (D7).

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    net::IpAddr,
};

use ipvs::Family;
use netlink_batch::{Attributes, Errno, Error as NetlinkError, Notifications, Socket};
use netlink_packet_core::{
    DecodeError, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NetlinkDeserializable, NetlinkHeader,
    NetlinkMessage, NetlinkPayload, NetlinkSerializable, NlasIterator, parse_ip,
};
use netlink_packet_route::{
    RouteNetlinkMessage,
    address::AddressMessage,
    link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage},
};
use netlink_sys::protocols::NETLINK_ROUTE;

/// The name of the link.
pub const SERVICE_LINK: &str = "kube-ipvs0";

/// The protocol (`IFA_PROTO`, Linux 5.18 and later) of the addresses that we add, by which routing daemons and
/// `ip address show proto 0x4b` tell them from others (D6). An older kernel does not keep it.
pub const ADDRESS_PROTOCOL: u8 = 0x4b;

const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_PROTO: u16 = 11;

const RTNLGRP_LINK: u32 = 1;
const RTNLGRP_IPV4_IFADDR: u32 = 5;
const RTNLGRP_IPV6_IFADDR: u32 = 9;

/// A change of the link's addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Update {
    /// The address is to be there, as /32 or /128. It may be already.
    Add(IpAddr),
    /// The address, which must be there, is to go.
    Remove(IpAddr),
}

/// As `ip` takes it: `ip address add 10.96.0.10/32 dev kube-ipvs0`.
impl fmt::Display for Update {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (verb, address) = match self {
            Self::Add(address) => ("add", address),
            Self::Remove(address) => ("delete", address),
        };
        write!(
            f,
            "ip address {verb} {address}/{} dev {SERVICE_LINK}",
            host_prefix(*address)
        )
    }
}

/// The addresses in our network namespace, each once and sorted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    /// Those on kube-ipvs0.
    pub service: Vec<IpAddr>,
    /// Those on all other links that others can reach: without 127.0.0.0/8, ::1 and IPv6 link-local ones (D3). An
    /// address may be among both (C5).
    pub node: Vec<IpAddr>,
}

/// Something that others did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// An address of the node came or went: read them again (D1).
    NodeAddressesChanged,
    /// An address came to kube-ipvs0 or left it (D8, D10).
    ServiceAddress {
        /// The address.
        address: IpAddr,
        /// Whether it is there now.
        present: bool,
    },
    /// kube-ipvs0 is gone, with all its addresses.
    ServiceLinkGone,
    /// Notifications were lost, and anything may have happened.
    Missed,
}

/// Why the link or its addresses could not be read or changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// `EPERM`
    #[error("changing links and addresses needs the capability CAP_NET_ADMIN")]
    NotPermitted,
    /// `EOPNOTSUPP`
    #[error("the kernel has no dummy links: load the module dummy")]
    NotSupported,
    /// `ENODEV`
    #[error("there is no link {SERVICE_LINK}")]
    NoLink,
    /// `EADDRNOTAVAIL`
    #[error("there is no such address on {SERVICE_LINK}")]
    NotFound,
    /// `EADDRNOTAVAIL`, `EINVAL`
    #[error("the kernel does not take {0} for an address of a link: give the Service another one")]
    NotAssignable(IpAddr),
    /// `EACCES`, `EAFNOSUPPORT`
    #[error("IPv6 is disabled: see the sysctl net.ipv6.conf.all.disable_ipv6")]
    Ipv6Disabled,
    /// Anything else.
    #[error("rtnetlink: {0}")]
    Netlink(NetlinkError),
}

impl Error {
    /// Whether the kernel may or may not have done what it was asked for.
    pub fn outcome_unknown(&self) -> bool {
        matches!(self, Self::Netlink(error) if error.outcome_unknown())
    }
}

impl From<NetlinkError> for Error {
    fn from(error: NetlinkError) -> Self {
        match error.errno() {
            Some(Errno::PERM) => Self::NotPermitted,
            Some(Errno::OPNOTSUPP) => Self::NotSupported,
            Some(Errno::NODEV) => Self::NoLink,
            Some(Errno::ADDRNOTAVAIL) => Self::NotFound,
            Some(Errno::ACCESS | Errno::AFNOSUPPORT) => Self::Ipv6Disabled,
            _ => Self::Netlink(error),
        }
    }
}

/// The links and addresses of the network namespace that we run in.
#[derive(Debug)]
pub struct Link {
    socket: Socket,
    notifications: Notifications,
    events: VecDeque<Event>,
    /// The index of kube-ipvs0, as last seen.
    index: Option<u32>,
}

impl Link {
    /// Opens netlink sockets. Events are told from now on.
    ///
    /// # Errors
    ///
    /// [`Error::Netlink`] if that fails.
    pub fn connect() -> Result<Self, Error> {
        let socket = Socket::connect(NETLINK_ROUTE)?;
        let groups = [RTNLGRP_LINK, RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV6_IFADDR];
        let mut notifications = Notifications::subscribe(NETLINK_ROUTE, &groups)?;
        notifications.ignore(socket.port()?)?;
        Ok(Self {
            socket,
            notifications,
            events: VecDeque::new(),
            index: None,
        })
    }

    /// Makes kube-ipvs0, unless it is there; returns whether it had to be made. One that is there is left as it is.
    ///
    /// # Errors
    ///
    /// [`Error::NotSupported`] if the kernel has no dummy links.
    pub async fn ensure(&mut self) -> Result<bool, Error> {
        if self.find().await?.is_some() {
            return Ok(false);
        }
        // A new dummy link is down and NOARP.
        let mut link = named_link();
        link.attributes
            .push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Dummy)]));
        let mut create = NetlinkMessage::from(RouteNetlinkMessage::NewLink(link));
        create.header.flags = NLM_F_CREATE | NLM_F_EXCL;
        self.socket.request::<_, RouteNetlinkMessage>(create).await?;
        self.find().await?.map(|_| true).ok_or(Error::NoLink)
    }

    /// Whether there is a kube-ipvs0.
    ///
    /// # Errors
    ///
    /// [`Error::Netlink`] if the kernel does not say.
    pub async fn exists(&mut self) -> Result<bool, Error> {
        Ok(self.find().await?.is_some())
    }

    /// Deletes kube-ipvs0, if it is there.
    ///
    /// # Errors
    ///
    /// [`Error::NotPermitted`]
    pub async fn delete(&mut self) -> Result<(), Error> {
        self.index = None;
        match self
            .socket
            .request::<_, RouteNetlinkMessage>(RouteNetlinkMessage::DelLink(named_link()).into())
            .await
        {
            Err(error) if error.errno() == Some(Errno::NODEV) => Ok(()),
            outcome => Ok(outcome.map(drop)?),
        }
    }

    /// Lists all addresses.
    ///
    /// # Errors
    ///
    /// Any error: what is returned is never a part (I3).
    pub async fn addresses(&mut self) -> Result<Addresses, Error> {
        let service_link = self.find().await?;
        let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        let listed: Vec<Told> = self.socket.dump(request.into()).await?;
        let mut addresses = Addresses::default();
        for told in listed {
            match told {
                Told::Address { link, address, .. } if Some(link) == service_link => {
                    addresses.service.push(address);
                }
                Told::Address { address, .. } if is_reachable(address) => addresses.node.push(address),
                Told::Address { .. } | Told::LinkGone(_) | Told::Other => {}
            }
        }
        for list in [&mut addresses.service, &mut addresses.node] {
            list.sort_unstable();
            list.dedup();
        }
        Ok(addresses)
    }

    /// Changes the addresses on kube-ipvs0, in order. Returns what failed, by its index.
    pub async fn update(&mut self, updates: &[Update]) -> BTreeMap<usize, Error> {
        let Some(link) = self.index else {
            return (0..updates.len()).map(|index| (index, Error::NoLink)).collect();
        };
        let messages = updates.iter().map(|update| update_message(*update, link));
        let failures = self.socket.batch(messages).await.into_iter();
        let meaning = |(index, error): (usize, NetlinkError)| match (updates.get(index), error.errno()) {
            (Some(Update::Add(address)), Some(Errno::ADDRNOTAVAIL | Errno::INVAL)) => {
                (index, Error::NotAssignable(*address))
            }
            _ => (index, error.into()),
        };
        failures.map(meaning).collect()
    }

    /// Waits for the next event. Nothing is lost when the future is dropped. What we did ourselves is not told.
    pub async fn event(&mut self) -> Event {
        loop {
            if let Some(event) = self.events.pop_front() {
                return event;
            }
            let told = self.notifications.next().await;
            self.take_note(told);
        }
    }

    fn take_note(&mut self, told: Result<Vec<Told>, NetlinkError>) {
        let Ok(notifications) = told else {
            // Whoever hears of it reads everything again: that includes what is still queued.
            self.events.clear();
            self.events.push_back(Event::Missed);
            return;
        };
        for notification in notifications {
            let event = match notification {
                Told::Address {
                    link,
                    address,
                    present,
                } if Some(link) == self.index => Event::ServiceAddress { address, present },
                Told::Address { address, .. } if is_reachable(address) => Event::NodeAddressesChanged,
                Told::LinkGone(link) if Some(link) == self.index => {
                    self.index = None;
                    Event::ServiceLinkGone
                }
                Told::Address { .. } | Told::LinkGone(_) | Told::Other => continue,
            };
            if self.events.back() != Some(&event) {
                self.events.push_back(event);
            }
        }
    }

    /// Looks kube-ipvs0 up by its name: others may have made it anew.
    async fn find(&mut self) -> Result<Option<u32>, Error> {
        self.index = match self
            .socket
            .request(RouteNetlinkMessage::GetLink(named_link()).into())
            .await
        {
            Err(error) if error.errno() == Some(Errno::NODEV) => None,
            replies => replies?.into_iter().find_map(|reply| match reply {
                RouteNetlinkMessage::NewLink(link) => Some(link.header.index),
                _ => None,
            }),
        };
        Ok(self.index)
    }
}

/// What rtnetlink tells, as far as it matters: in a listing of addresses, or when something happens. It is read in
/// place, because addresses come by the ten thousand; and of links only that one is gone, because new kernels put
/// new things into their messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// An address.
    Address {
        /// The index of its link.
        link: u32,
        /// The node's end of it.
        address: IpAddr,
        /// Whether it is there, or has gone.
        present: bool,
    },
    /// The link with this index has gone.
    LinkGone(u32),
    /// Anything else.
    Other,
}

impl NetlinkDeserializable for Told {
    type Error = DecodeError;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        const RTM_DELLINK: u16 = 17;
        const AF_UNSPEC: u8 = 0;
        match (header.message_type, payload) {
            // struct ifinfomsg. A link that leaves a bridge is told of with family AF_BRIDGE.
            (RTM_DELLINK, &[AF_UNSPEC, _, _, _, a, b, c, d, ..]) => {
                Ok(Self::LinkGone(u32::from_ne_bytes([a, b, c, d])))
            }
            // struct ifaddrmsg
            (RTM_NEWADDR | RTM_DELADDR, &[family, _, _, _, a, b, c, d, ref attributes @ ..])
                if Family::from_number(family.into()).is_some() =>
            {
                let address = local_address(attributes)?;
                Ok(address.map_or(Self::Other, |address| Self::Address {
                    link: u32::from_ne_bytes([a, b, c, d]),
                    address,
                    present: header.message_type == RTM_NEWADDR,
                }))
            }
            _ => Ok(Self::Other),
        }
    }
}

/// The node's end of an address: `IFA_ADDRESS` is the peer's where there is an `IFA_LOCAL`.
fn local_address(attributes: &[u8]) -> Result<Option<IpAddr>, DecodeError> {
    let (mut local, mut address) = (None, None);
    for attribute in NlasIterator::new(attributes) {
        let attribute = attribute?;
        match attribute.kind() {
            IFA_LOCAL => local = Some(parse_ip(attribute.value())?),
            IFA_ADDRESS => address = Some(parse_ip(attribute.value())?),
            _ => {}
        }
    }
    Ok(local.or(address))
}

fn named_link() -> LinkMessage {
    let mut message = LinkMessage::default();
    message
        .attributes
        .push(LinkAttribute::IfName(SERVICE_LINK.to_owned()));
    message
}

fn update_message(update: Update, link: u32) -> NetlinkMessage<Request> {
    let mut header = NetlinkHeader::default();
    if let Update::Add(_) = update {
        header.flags = NLM_F_CREATE | NLM_F_REPLACE;
    }
    NetlinkMessage::new(header, NetlinkPayload::InnerMessage(Request { update, link }))
}

/// An update as a message. Addresses come by the ten thousand: nothing is allocated on their way into the datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// What is to change.
    pub update: Update,
    /// The index of kube-ipvs0.
    pub link: u32,
}

impl Request {
    fn write(&self, message: &mut Attributes<'_>) {
        match self.update {
            Update::Add(address) => {
                self.write_address(message, address);
                message.value(IFA_PROTO, &[ADDRESS_PROTOCOL]);
            }
            Update::Remove(address) => self.write_address(message, address),
        }
    }

    #[inline]
    fn write_address(&self, message: &mut Attributes<'_>, address: IpAddr) {
        const RT_SCOPE_UNIVERSE: u8 = 0;
        // The same address is on every node: duplicate address detection would take it away (D5).
        const IFA_F_NODAD: u8 = 0x02;
        let family = Family::of(address);
        let flags = match family {
            Family::Inet => 0,
            Family::Inet6 => IFA_F_NODAD,
        };
        // struct ifaddrmsg
        message.bytes(&[
            family.number() as u8,
            host_prefix(address),
            flags,
            RT_SCOPE_UNIVERSE,
        ]);
        message.bytes(&self.link.to_ne_bytes());
        for kind in [IFA_LOCAL, IFA_ADDRESS] {
            match address {
                IpAddr::V4(address) => message.value(kind, &address.octets()),
                IpAddr::V6(address) => message.value(kind, &address.octets()),
            }
        }
    }
}

impl NetlinkSerializable for Request {
    fn message_type(&self) -> u16 {
        match self.update {
            Update::Add(_) => RTM_NEWADDR,
            Update::Remove(_) => RTM_DELADDR,
        }
    }

    fn buffer_len(&self) -> usize {
        Attributes::length(|message| self.write(message))
    }

    fn serialize(&self, buffer: &mut [u8]) {
        Attributes::write(buffer, |message| self.write(message));
    }
}

const fn host_prefix(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

/// Whether others can reach the node by an address of this kind.
fn is_reachable(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => !address.is_loopback(),
        IpAddr::V6(address) => !address.is_loopback() && !address.is_unicast_link_local(),
    }
}
