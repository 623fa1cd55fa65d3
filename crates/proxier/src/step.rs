//! What is asked of the kernel, and for which object: the words between the diff and the drivers.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use ipvs::{Command, ServiceKey};

use crate::{
    kernel::{
        link,
        netfilter::{self, Element},
    },
    source_ports::SourcePorts,
};

/// A kernel object, or a few that come and go together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Key {
    /// A virtual server with its real servers, and the one for clients in the cluster if that is another; and
    /// the netfilter elements that say how flows are treated.
    Server(ServiceKey),
    /// An address on kube-ipvs0, and the netfilter element that guards its unknown ports.
    Address(IpAddr),
    /// The netfilter element that opens a health-check port on a service address.
    HealthCheck(netfilter::Frontend),
    /// The netfilter element for a local pod's flows to itself.
    Hairpin(IpAddr),
    /// The range of ports from which masqueraded flows leave.
    SourcePorts,
}

impl Key {
    /// The virtual server, if it is one.
    pub const fn server(&self) -> Option<ServiceKey> {
        match self {
            Self::Server(server) => Some(*server),
            _ => None,
        }
    }

    /// The object that a netfilter element belongs to.
    pub(crate) fn of_element(element: &Element) -> Self {
        match *element {
            Element::Service(frontend, _)
            | Element::Mark(frontend, _)
            | Element::SourceRange(frontend, _) => {
                let netfilter::Frontend {
                    address,
                    protocol,
                    port,
                } = frontend;
                Self::Server(ServiceKey::Address {
                    address,
                    protocol,
                    port,
                })
            }
            Element::ServiceAddress(address) => Self::Address(address),
            Element::HealthCheck(frontend) => Self::HealthCheck(frontend),
            Element::Hairpin(address) => Self::Hairpin(address),
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Server(key) => write!(f, "virtual server {key}"),
            Self::Address(address) => write!(f, "address {address}"),
            Self::HealthCheck(frontend) => write!(f, "health-check port {frontend}"),
            Self::Hairpin(address) => write!(f, "hairpin masquerading of {address}"),
            Self::SourcePorts => f.write_str("source ports for masquerading"),
        }
    }
}

/// One thing that the kernel is asked to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Change an element of our nftables tables.
    Netfilter(netfilter::Update),
    /// Change a virtual or a real server.
    Ipvs(Command),
    /// Change an address on kube-ipvs0.
    Link(link::Update),
    /// Make our nftables tables anew, to masquerade from other ports.
    SourcePorts(SourcePorts),
}

impl Operation {
    /// Who carries it out.
    pub const fn driver(&self) -> Driver {
        match self {
            Self::Netfilter(_) | Self::SourcePorts(_) => Driver::Netfilter,
            Self::Ipvs(_) => Driver::Ipvs,
            Self::Link(_) => Driver::Link,
        }
    }
}

/// A part of the kernel that carries out operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Driver {
    /// nftables.
    Netfilter,
    /// IPVS.
    Ipvs,
    /// rtnetlink.
    Link,
}

/// The command line that does the same.
impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Netfilter(netfilter::Update::Add(element)) => write!(f, "nft add element {element}"),
            Self::Netfilter(netfilter::Update::Remove(element)) => write!(f, "nft delete element {element}"),
            Self::Ipvs(command) => write!(f, "ipvsadm {command}"),
            Self::Link(update) => update.fmt(f),
            Self::SourcePorts(ports) => write!(f, "nft masquerade to :{ports}"),
        }
    }
}

impl From<Command> for Operation {
    fn from(command: Command) -> Self {
        Self::Ipvs(command)
    }
}

impl From<netfilter::Update> for Operation {
    fn from(update: netfilter::Update) -> Self {
        Self::Netfilter(update)
    }
}

impl From<link::Update> for Operation {
    fn from(update: link::Update) -> Self {
        Self::Link(update)
    }
}

/// An operation and the object that it is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The object; when one of its steps fails, its later ones are not tried.
    pub key: Key,
    /// What to do.
    pub operation: Operation,
}

/// A real server: its virtual server's key, and its own address.
pub type RealServer = (ServiceKey, SocketAddr);
