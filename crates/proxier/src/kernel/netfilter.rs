//! nftables: which virtual servers are ours, how their new flows are treated, and which flows are masqueraded.
//!
//! Each address family has one table, `kube-proxy`. What a reader of `nft list ruleset` finds in it:
//!
//! ```text
//! table ip kube-proxy {
//!     map services {                 # every virtual server that is ours, and where its new flows go
//!         type ipv4_addr . inet_proto . inet_service : verdict
//!         elements = { 10.96.0.10 . udp . 53 : goto cluster-ip, 192.0.2.7 . tcp . 30080 : goto mark-for-masquerade }
//!     }
//!     map marks { ... }              # of externally local ones: the mark that sends clients in the cluster elsewhere
//!     set source-ranges { ... }      # of restricted ones: the clients that may use them
//!     set service-addresses { ... }  # addresses that we hold on kube-ipvs0
//!     set health-checks { ... }      # of these: the ports at which balancers ask for a Service's health
//!     set hairpin { ... }            # endpoint . endpoint, for the endpoints on this node
//!     chain input { ... }            # clients elsewhere, before IPVS takes their packets at LOCAL_IN
//!     chain output { ... }           # clients on the node, before IPVS takes their packets at LOCAL_OUT
//!     chain cluster-ip { ... }       # marks the flows of clients that are not in the cluster
//!     chain mark-for-masquerade { ... }
//!     chain local { ... }            # externalTrafficPolicy Local, with endpoints here ...
//!     chain not-here { ... }         # ... and without
//!     chain ranges-... { ... }       # the same for clients in the source ranges
//!     chain nat-prerouting { ... }   # keeps other programs' NAT rules away from service addresses ...
//!     chain nat-output { ... }       # ... also from clients on the node
//!     chain postrouting { ... }      # picks what is marked, and hairpins ...
//!     chain masquerading { ... }     # ... and masquerades it, from ports that are no node port's
//! }
//! ```
//!
//! Rules look at a flow's first packet: that one makes the NAT binding of the whole flow.
//!
//! The elements of `services` are our record of what is ours across restarts. Every change is one atomic
//! transaction.

mod expression;
pub mod foreign;
mod listing;
mod ruleset;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, fmt, net::IpAddr, time::Duration};

use foldhash::{HashSet, HashSetExt};
use ipnet::IpNet;
use ipvs::{Family, Protocol};
use netlink_batch::{Attributes, Errno, Error as NetlinkError, Notifications, Socket, TransactionError};
use netlink_packet_core::{
    NLM_F_CREATE, NLM_F_EXCL, NetlinkHeader, NetlinkMessage, NetlinkPayload, NetlinkSerializable,
};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterProtoFamily, NetfilterSubsystem,
    nftables::{NfTablesMessage, TableAttribute, TableMessage},
};
use netlink_sys::protocols::NETLINK_NETFILTER;
use tracing::error;

use self::{foreign::Foreign, ruleset::Base};
pub use self::{listing::Elements, ruleset::Ruleset};
use super::nfnetlink::Message;
use crate::source_ports::SourcePorts;

/// The name of our tables. kube-proxy's nftables mode has tables of this name too, and its other modes delete
/// them when they start, so that a node that goes back to kube-proxy is left clean.
const TABLE: &str = "kube-proxy";

/// The multicast group of changes to nftables.
const NFNLGRP_NFTABLES: u32 = 7;

const SERVICES: &str = "services";
const SERVICE_ADDRESSES: &str = "service-addresses";
const HEALTH_CHECKS: &str = "health-checks";
const HAIRPIN: &str = "hairpin";

const MARKS: &str = "marks";
const SOURCE_RANGES: &str = "source-ranges";

const SETS: [&str; 6] = [
    SERVICES,
    MARKS,
    SOURCE_RANGES,
    SERVICE_ADDRESSES,
    HEALTH_CHECKS,
    HAIRPIN,
];

const CLUSTER_IP: &str = "cluster-ip";
const MARK_FOR_MASQUERADE: &str = "mark-for-masquerade";
const LOCAL: &str = "local";
const NOT_HERE: &str = "not-here";
const IN_CLUSTER: &str = "in-cluster";
const MASQUERADING: &str = "masquerading";

const NFT_MSG_NEWSETELEM: u16 = 12;
const NFT_MSG_DELSETELEM: u16 = 14;

const NFTA_SET_ELEM_LIST_TABLE: u16 = 1;
const NFTA_SET_ELEM_LIST_SET: u16 = 2;
const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
const NFTA_LIST_ELEM: u16 = 1;
const NFTA_SET_ELEM_KEY: u16 = 1;
const NFTA_SET_ELEM_DATA: u16 = 2;
const NFTA_SET_ELEM_KEY_END: u16 = 10;
const NFTA_DATA_VALUE: u16 = 1;
const NFTA_DATA_VERDICT: u16 = 2;
const NFTA_VERDICT_CODE: u16 = 1;
const NFTA_VERDICT_CHAIN: u16 = 2;
const NFT_GOTO: u32 = -4_i32 as u32;

/// So many elements are changed without listening: the kernel puts into words what it does with each, if anybody listens.
const UNHEARD: usize = 100;

/// How often a set is listed while the kernel resizes it, and how long that is waited for.
const LISTING_ATTEMPTS: usize = 5;
const RESIZE_TIME: Duration = Duration::from_millis(20);

/// How the new flows of a virtual server are treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Treatment {
    /// Masqueraded unless the client is in the cluster, as the local detector tells.
    ClusterIp,
    /// As for an address that clients elsewhere use.
    External(External),
    /// The same for clients in an element of `source-ranges`; those of others are dropped (C3).
    Restricted(External),
}

/// How the new flows to an address are treated that clients elsewhere use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum External {
    /// Masqueraded.
    Masquerade,
    /// `externalTrafficPolicy: Local`: left alone, so that servers see the client's address. Those of clients in the
    /// cluster get the firewall mark that the element of `marks` names, if there is one (E1).
    Local,
    /// The same without an endpoint on this node: dropped, except those of clients in the cluster (Q13).
    NotHere,
}

impl Treatment {
    /// All there are.
    const ALL: [Self; 7] = [
        Self::ClusterIp,
        Self::External(External::Masquerade),
        Self::External(External::Local),
        Self::External(External::NotHere),
        Self::Restricted(External::Masquerade),
        Self::Restricted(External::Local),
        Self::Restricted(External::NotHere),
    ];

    /// The chain that does it.
    const fn chain(self) -> &'static str {
        match self {
            Self::ClusterIp => CLUSTER_IP,
            Self::External(External::Masquerade) => MARK_FOR_MASQUERADE,
            Self::External(External::Local) => LOCAL,
            Self::External(External::NotHere) => NOT_HERE,
            Self::Restricted(External::Masquerade) => "ranges-masquerade",
            Self::Restricted(External::Local) => "ranges-local",
            Self::Restricted(External::NotHere) => "ranges-not-here",
        }
    }
}

impl fmt::Display for Treatment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "goto {}", self.chain())
    }
}

/// An address, a protocol and a port: what `services`, `marks` and `source-ranges` are looked up by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Frontend {
    /// The virtual server's address.
    pub address: IpAddr,
    /// Its transport protocol.
    pub protocol: Protocol,
    /// Its port.
    pub port: u16,
}

impl Frontend {
    /// Each part is padded to a multiple of four bytes.
    #[inline]
    fn write(&self, key: &mut Attributes<'_>) {
        write_address(key, self.address);
        key.bytes(&[self.protocol.number(), 0, 0, 0]);
        let [high, low] = self.port.to_be_bytes();
        key.bytes(&[high, low, 0, 0]);
    }
}

impl fmt::Display for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} . {} . {}", self.address, self.protocol, self.port)
    }
}

/// An element of one of our sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Element {
    /// In `services`: a virtual server of ours, and how its new flows are treated. A virtual server has one treatment.
    Service(Frontend, Treatment),
    /// In `marks`: the firewall mark by which clients in the cluster reach other servers (E1).
    Mark(Frontend, u32),
    /// In `source-ranges`: clients that a restricted virtual server admits. Ranges of one must not overlap.
    SourceRange(Frontend, IpNet),
    /// In `service-addresses`: an address of ours alone, where a port that is no virtual server's is refused (C1).
    ServiceAddress(IpAddr),
    /// In `health-checks`: a `healthCheckNodePort` that is open on a service address, too: balancers ask there (C1).
    HealthCheck(Frontend),
    /// In `hairpin`: an endpoint on this node, which may be its own client and is masqueraded then (E3).
    Hairpin(IpAddr),
}

impl Element {
    fn address(&self) -> IpAddr {
        match *self {
            Self::Service(Frontend { address, .. }, _)
            | Self::Mark(Frontend { address, .. }, _)
            | Self::SourceRange(Frontend { address, .. }, _)
            | Self::HealthCheck(Frontend { address, .. })
            | Self::ServiceAddress(address)
            | Self::Hairpin(address) => address,
        }
    }

    /// The firewall mark, if it names one.
    pub(crate) fn mark(&self) -> Option<u32> {
        match self {
            Self::Mark(_, mark) => Some(*mark),
            _ => None,
        }
    }

    fn set(&self) -> &'static str {
        match self {
            Self::Service(..) => SERVICES,
            Self::Mark(..) => MARKS,
            Self::SourceRange(..) => SOURCE_RANGES,
            Self::ServiceAddress(_) => SERVICE_ADDRESSES,
            Self::HealthCheck(_) => HEALTH_CHECKS,
            Self::Hairpin(_) => HAIRPIN,
        }
    }

    #[inline]
    fn write(&self, element: &mut Attributes<'_>) {
        element.nested(NFTA_SET_ELEM_KEY, |key| {
            key.composed(NFTA_DATA_VALUE, |key| self.write_key(key));
        });
        match *self {
            Self::Service(_, treatment) => element.nested(NFTA_SET_ELEM_DATA, |data| {
                data.nested(NFTA_DATA_VERDICT, |verdict| {
                    verdict.value(NFTA_VERDICT_CODE, &NFT_GOTO.to_be_bytes());
                    verdict.text(NFTA_VERDICT_CHAIN, treatment.chain());
                });
            }),
            Self::Mark(_, mark) => {
                element.nested(NFTA_SET_ELEM_DATA, |data| {
                    data.value(NFTA_DATA_VALUE, &mark.to_ne_bytes())
                });
            }
            Self::SourceRange(frontend, range) => element.nested(NFTA_SET_ELEM_KEY_END, |end| {
                end.composed(NFTA_DATA_VALUE, |end| {
                    frontend.write(end);
                    write_address(end, range.broadcast());
                });
            }),
            Self::ServiceAddress(_) | Self::HealthCheck(_) | Self::Hairpin(_) => {}
        }
    }

    /// The key; or, of an interval, where it begins.
    #[inline]
    fn write_key(&self, key: &mut Attributes<'_>) {
        match *self {
            Self::Service(frontend, _) | Self::Mark(frontend, _) | Self::HealthCheck(frontend) => {
                frontend.write(key);
            }
            Self::SourceRange(frontend, range) => {
                frontend.write(key);
                write_address(key, range.network());
            }
            Self::ServiceAddress(address) => write_address(key, address),
            Self::Hairpin(address) => {
                write_address(key, address);
                write_address(key, address);
            }
        }
    }
}

/// As `nft` takes it: `nft add element ip kube-proxy services { 10.96.0.10 . udp . 53 : goto cluster-ip }`.
impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = match self.address() {
            IpAddr::V4(_) => "ip",
            IpAddr::V6(_) => "ip6",
        };
        write!(f, "{family} {TABLE} {} {{ ", self.set())?;
        match self {
            Self::Service(frontend, treatment) => write!(f, "{frontend} : {treatment}")?,
            Self::Mark(frontend, mark) => write!(f, "{frontend} : {mark:#010x}")?,
            Self::SourceRange(frontend, range) => write!(f, "{frontend} . {range}")?,
            Self::ServiceAddress(address) => address.fmt(f)?,
            Self::HealthCheck(frontend) => frontend.fmt(f)?,
            Self::Hairpin(address) => write!(f, "{address} . {address}")?,
        }
        f.write_str(" }")
    }
}

#[inline]
fn write_address(key: &mut Attributes<'_>, address: IpAddr) {
    match address {
        IpAddr::V4(address) => key.bytes(&address.octets()),
        IpAddr::V6(address) => key.bytes(&address.octets()),
    }
}

/// A change of one element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Update {
    /// The element is to be there. It may be already, but not with another treatment.
    Add(Element),
    /// The element, which must be there, is to go.
    Remove(Element),
}

impl Update {
    /// The address family of the table that it changes.
    pub(crate) fn family(&self) -> Family {
        let (Self::Add(element) | Self::Remove(element)) = self;
        Family::of(element.address())
    }
}

/// Why the kernel's nftables could not be read or changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// `EPERM`
    #[error("nftables needs the capability CAP_NET_ADMIN")]
    NotPermitted,
    /// The kernel has no nf_tables, or not for this address family.
    #[error("the kernel has no nf_tables for this address family: load the module nf_tables")]
    NotSupported,
    /// `ENOENT`: what was to be removed is not there, or our table is gone.
    #[error("there is no such element, or no table {TABLE}")]
    NotFound,
    /// `EEXIST`, `EBUSY`: the key is there with another treatment.
    #[error("the element is there with another treatment")]
    Exists,
    /// `FORWARD` of iptables drops endpoints' answers, and our rule cannot be made there (C6).
    #[error("chain {0} drops the answers to the clients of Services, and takes no rule of ours")]
    AnswersDropped(foreign::Chain),
    /// Anything else.
    #[error("nftables: {0}")]
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
            Some(Errno::OPNOTSUPP | Errno::AFNOSUPPORT | Errno::PROTONOSUPPORT) => Self::NotSupported,
            Some(Errno::NOENT) => Self::NotFound,
            Some(Errno::EXIST | Errno::BUSY) => Self::Exists,
            _ => match error {
                NetlinkError::Open(Errno::PROTONOSUPPORT) => Self::NotSupported,
                NetlinkError::Open(Errno::PERM) => Self::NotPermitted,
                error => Self::Netlink(error),
            },
        }
    }
}

impl From<TransactionError> for Error {
    fn from(error: TransactionError) -> Self {
        match error {
            TransactionError::Failed(error) => error.into(),
            TransactionError::Refused(refusals) => match refusals.into_iter().next() {
                Some((_, error)) => NetlinkError::from(error).into(),
                None => Self::NotFound,
            },
        }
    }
}

/// Our nftables tables in the network namespace that we run in.
#[derive(Debug)]
pub struct Netfilter {
    socket: Socket,
    notifications: Notifications,
    /// Whether something was changed that was not heard of.
    missed: bool,
    foreign: Foreign,
}

impl Netfilter {
    /// Opens netlink sockets; the kernel loads nf_tables when it is used.
    ///
    /// # Errors
    ///
    /// [`Error::NotSupported`] if the kernel has no netfilter.
    pub fn connect() -> Result<Self, Error> {
        let socket = Socket::connect(NETLINK_NETFILTER)?;
        let mut notifications = Notifications::subscribe(NETLINK_NETFILTER, &[NFNLGRP_NFTABLES])?;
        notifications.ignore(socket.port()?)?;
        Ok(Self {
            socket,
            notifications,
            missed: false,
            foreign: Foreign::default(),
        })
    }

    /// Makes the table of a family, its sets, chains and rules, unless they are there as `ruleset` wants them;
    /// returns whether anything had to be done. Where they were made for another ruleset, or by another version,
    /// the elements are carried over. A table of our name that is not ours is replaced.
    ///
    /// # Errors
    ///
    /// [`Error::NotSupported`] if the kernel lacks the family. Nothing has changed after an error whose outcome
    /// is known.
    pub async fn ensure_base(&mut self, family: Family, ruleset: &Ruleset) -> Result<bool, Error> {
        if self.has_base(family, ruleset).await? {
            return Ok(false);
        }
        let base = Base::new(family, ruleset);
        let elements = self.elements(family).await?;
        self.replace(family, &base, elements).await?;
        Ok(true)
    }

    /// Whether the table of our name in a family is not ours: upstream's mode nftables has one. One without rules is
    /// nobody's.
    ///
    /// # Errors
    ///
    /// [`Error::NotSupported`] if the kernel lacks the family.
    pub async fn is_foreign(&mut self, family: Family) -> Result<bool, Error> {
        let rules = self.rules(family).await?;
        Ok(!rules.is_empty() && !rules.iter().any(|(_, comment)| ruleset::is_ours(comment)))
    }

    /// Replaces the table of a family, whoever made it, by ours with these elements, all at once.
    ///
    /// # Errors
    ///
    /// Nothing has changed after an error whose outcome is known.
    pub async fn replace_table(
        &mut self,
        family: Family,
        ruleset: &Ruleset,
        elements: impl IntoIterator<Item = Element>,
    ) -> Result<(), Error> {
        self.replace(family, &Base::new(family, ruleset), elements).await
    }

    async fn replace(
        &mut self,
        family: Family,
        base: &Base,
        elements: impl IntoIterator<Item = Element>,
    ) -> Result<(), Error> {
        let add = elements
            .into_iter()
            .map(|element| update_message(&Update::Add(element)));
        let messages = replace_table(family)
            .into_iter()
            .chain(base.messages())
            .chain(add);
        Ok(self.transaction(messages).await?)
    }

    /// Whether the table of a family, its sets, chains and rules, are there as `ruleset` wants them.
    ///
    /// # Errors
    ///
    /// [`Error::NotSupported`] if the kernel lacks the family.
    pub async fn has_base(&mut self, family: Family, ruleset: &Ruleset) -> Result<bool, Error> {
        Ok(self.rules(family).await? == Base::new(family, ruleset).comments())
    }

    /// From which ports the table of a family has masqueraded flows leave, if there is one.
    ///
    /// # Errors
    ///
    /// Any error.
    pub async fn source_ports(&mut self, family: Family) -> Result<Option<SourcePorts>, Error> {
        let rules = self.rules(family).await?;
        Ok(rules.iter().find_map(ruleset::read_source_ports))
    }

    /// The elements of a family's sets, in no order; none, if there is no table.
    ///
    /// # Errors
    ///
    /// Any error: what is returned is never a part (I3).
    pub async fn elements(&mut self, family: Family) -> Result<Vec<Element>, Error> {
        let mut elements = Vec::new();
        for set in SETS {
            elements.extend(self.set_elements(family, set).await?);
        }
        Ok(elements)
    }

    async fn set_elements(&mut self, family: Family, set: &str) -> Result<Vec<Element>, Error> {
        for _ in 0..LISTING_ATTEMPTS {
            let request = listing::set_elements(family, TABLE, set);
            let listed: Vec<Elements> = match self.socket.dump(request).await {
                Err(error) if error.errno() == Some(Errno::NOENT) => return Ok(Vec::new()),
                listed => listed?,
            };
            let elements: Vec<_> = listed.into_iter().flat_map(|elements| elements.0).collect();
            // The kernel walks a hash table by position. If the table is resized meanwhile, some elements come
            // twice, and as many are left out.
            let mut seen = HashSet::with_capacity(elements.len());
            if elements.iter().all(|element| seen.insert(element)) {
                return Ok(elements);
            }
            tokio::time::sleep(RESIZE_TIME).await;
        }
        Err(NetlinkError::Interrupted.into())
    }

    /// Changes elements, in order and atomically, except that the kernel's refusal of one does not stop the
    /// others (I5). Returns what failed, by its index.
    pub async fn update(&mut self, updates: &[Update]) -> BTreeMap<usize, Error> {
        if updates.len() < UNHEARD {
            return self.change(updates).await;
        }
        let before = self.stop_listening().await;
        let failures = self.change(updates).await;
        let changed = failures.len() < updates.len();
        self.listen_again(before, u32::from(changed)).await;
        failures
    }

    /// Hears of nothing more; returns the generation that nftables is of.
    async fn stop_listening(&mut self) -> Option<u32> {
        let generation = self.generation().await;
        // Where that fails, more is heard than would have to be.
        _ = self.notifications.leave();
        generation
    }

    /// Hears of everything again. Whether others have changed something meanwhile tells the generation, which is one more
    /// after each transaction, whoever's.
    async fn listen_again(&mut self, before: Option<u32>, transactions: u32) {
        if let Err(error) = self.notifications.join() {
            error!(
                "cannot hear of changes to nftables any more, which are now mended at verifications: {error}"
            );
        }
        let expected = before.map(|before| before.wrapping_add(transactions));
        self.missed |= expected.is_none() || self.generation().await != expected;
    }

    /// The generation of the network namespace's nftables (`NFTA_GEN_ID`), if the kernel tells.
    async fn generation(&mut self) -> Option<u32> {
        let told: Vec<Message> = self.socket.request(listing::generation()).await.ok()?;
        told.iter().find_map(listing::read_generation)
    }

    async fn change(&mut self, updates: &[Update]) -> BTreeMap<usize, Error> {
        let mut failures = BTreeMap::new();
        loop {
            let is_left = |(index, _): &(usize, _)| !failures.contains_key(index);
            let left = || updates.iter().enumerate().filter(is_left);
            match self
                .transaction(left().map(|(_, update)| update_message(update)))
                .await
            {
                Ok(()) => return failures,
                // At least one each time, so that this ends.
                Err(TransactionError::Refused(refusals)) => {
                    let left: Vec<_> = left().map(|(index, _)| index).collect();
                    let refused = refusals.into_iter().filter_map(|(place, error)| {
                        Some((*left.get(place)?, NetlinkError::from(error).into()))
                    });
                    failures.extend(refused);
                }
                Err(TransactionError::Failed(error)) => {
                    let failed: Vec<_> = left().map(|(index, _)| (index, error.clone().into())).collect();
                    failures.extend(failed);
                    return failures;
                }
            }
        }
    }

    /// Waits until something may have been changed by others in our tables, of either family (I7), or in what
    /// [`see_to_foreign`](Self::see_to_foreign) reads. Nothing is lost when the future is dropped.
    pub async fn changed(&mut self) {
        if std::mem::take(&mut self.missed) {
            return self.foreign.invalidate();
        }
        loop {
            let told = self.notifications.next::<Message>().await;
            // After an error something was missed.
            let any = |concerns: &dyn Fn(&Message) -> bool| {
                told.as_ref().map_or(true, |told| told.iter().any(concerns))
            };
            let foreign = any(&|message| self.foreign.is_concerned(message));
            let ours = any(&|message| listing::is_of_table(message, TABLE));
            if foreign {
                self.foreign.invalidate();
            }
            if foreign || ours {
                return;
            }
        }
    }

    /// Deletes our tables, and our rule in those of iptables. Families that the kernel does not have are passed over.
    ///
    /// # Errors
    ///
    /// The first of the families' errors; the other family is tried nevertheless.
    pub async fn delete_tables(&mut self) -> Result<(), Error> {
        let mut outcome = Ok(());
        for family in [Family::Inet, Family::Inet6] {
            let [create, delete, _] = replace_table(family);
            match self.transaction([create, delete]).await.map_err(Error::from) {
                Ok(()) | Err(Error::NotSupported) => {}
                Err(error) => outcome = outcome.and(Err(error)),
            }
            outcome = outcome.and(self.withdraw_answers(family).await);
        }
        outcome
    }

    /// The chain and the comment of each rule in the table of a family.
    async fn rules(&mut self, family: Family) -> Result<Vec<(String, String)>, Error> {
        let listed = self.socket.dump(listing::rules(family, TABLE)).await?;
        Ok(listed.iter().map(listing::read_rule).collect())
    }

    async fn transaction(
        &mut self,
        messages: impl IntoIterator<Item = NetlinkMessage<Request>>,
    ) -> Result<(), TransactionError> {
        self.socket
            .transaction(NetfilterSubsystem::NfTables.into(), messages)
            .await
    }
}

/// Each element has a message of its own, so that the kernel tells which one it refuses.
fn update_message(update: &Update) -> NetlinkMessage<Request> {
    let flags = match update {
        Update::Add(_) => NLM_F_CREATE,
        Update::Remove(_) => 0,
    };
    request(Request::Element(*update), flags)
}

impl Update {
    fn write(&self, message: &mut Attributes<'_>) {
        let (Self::Add(element) | Self::Remove(element)) = self;
        // struct nfgenmsg
        message.bytes(&[self.family().number() as u8, 0, 0, 0]);
        message.text(NFTA_SET_ELEM_LIST_TABLE, TABLE);
        message.text(NFTA_SET_ELEM_LIST_SET, element.set());
        message.nested(NFTA_SET_ELEM_LIST_ELEMENTS, |list| {
            list.nested(NFTA_LIST_ELEM, |nested| element.write(nested));
        });
    }
}

/// Elements come by the ten thousand: nothing is allocated on their way into the datagram.
impl NetlinkSerializable for Update {
    fn message_type(&self) -> u16 {
        listing::of_nftables(match self {
            Self::Add(_) => NFT_MSG_NEWSETELEM,
            Self::Remove(_) => NFT_MSG_DELSETELEM,
        })
    }

    fn buffer_len(&self) -> usize {
        Attributes::length(|message| self.write(message))
    }

    fn serialize(&self, buffer: &mut [u8]) {
        Attributes::write(buffer, |message| self.write(message));
    }
}

/// What a transaction is made of.
#[derive(Debug)]
enum Request {
    Element(Update),
    /// Changes something else than an element.
    Other(NetfilterMessage),
}

impl NetlinkSerializable for Request {
    fn message_type(&self) -> u16 {
        match self {
            Self::Element(update) => update.message_type(),
            Self::Other(message) => NetlinkSerializable::message_type(message),
        }
    }

    fn buffer_len(&self) -> usize {
        match self {
            Self::Element(update) => update.buffer_len(),
            Self::Other(message) => NetlinkSerializable::buffer_len(message),
        }
    }

    fn serialize(&self, buffer: &mut [u8]) {
        match self {
            Self::Element(update) => update.serialize(buffer),
            Self::Other(message) => message.serialize(buffer),
        }
    }
}

/// Creates the table, which may exist; deletes it, with all that is in it; creates it anew.
fn replace_table(family: Family) -> [NetlinkMessage<Request>; 3] {
    let table = || TableMessage {
        attributes: vec![TableAttribute::Name(TABLE.to_owned())],
    };
    [
        message(family, NfTablesMessage::NewTable(table()), NLM_F_CREATE),
        message(family, NfTablesMessage::DeleteTable(table()), 0),
        message(
            family,
            NfTablesMessage::NewTable(table()),
            NLM_F_CREATE | NLM_F_EXCL,
        ),
    ]
}

fn message(family: Family, inner: NfTablesMessage, flags: u16) -> NetlinkMessage<Request> {
    let family = match family {
        Family::Inet => NetfilterProtoFamily::IPv4,
        Family::Inet6 => NetfilterProtoFamily::IPv6,
    };
    let message = NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), inner);
    request(Request::Other(message), flags)
}

fn request(request: Request, flags: u16) -> NetlinkMessage<Request> {
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    NetlinkMessage::new(header, NetlinkPayload::InnerMessage(request))
}
