//! The messages of the generic netlink family `IPVS`, as `include/uapi/linux/ip_vs.h` has them: bytes in, bytes
//! out, no I/O.
//!
//! The types are those of the rust-netlink family: [`IpvsMessage`], or a reference to a
//! [`Command`](crate::Command), is the payload of a `netlink_packet_generic::GenlMessage`. What this version does not
//! know is kept in an `Other` attribute, except among counters.

mod command;
mod convert;
mod daemon;
mod destination;
mod service;
mod stats;
#[cfg(test)]
mod tests;

use std::str::FromStr;

use netlink_packet_core::{
    DecodeError, DefaultNla, Emitable, ErrorContext, NLA_F_NESTED, Nla, NlaBuffer, NlasIterator, Parseable,
    ParseableParametrized, parse_u32,
};
use netlink_packet_generic::{GenlFamily, GenlHeader};

pub(crate) use command::Query;
pub use convert::ListedService;
pub use daemon::DaemonAttr;
pub use destination::DestinationAttr;
pub use service::ServiceAttr;

/// `IPVS_GENL_VERSION`.
const VERSION: u8 = 1;

/// What a message asks for, or answers (`IPVS_CMD_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum IpvsCmd {
    /// Add a service; also the answer to [`IpvsCmd::GetService`].
    NewService,
    /// Change a service.
    SetService,
    /// Delete a service and its destinations.
    DelService,
    /// Ask for one service, or dump all.
    GetService,
    /// Add a destination; also the answer to [`IpvsCmd::GetDestination`].
    NewDestination,
    /// Change a destination.
    SetDestination,
    /// Delete a destination.
    DelDestination,
    /// Dump the destinations of one service.
    GetDestination,
    /// Start a sync daemon; also the answer to [`IpvsCmd::GetDaemon`].
    NewDaemon,
    /// Stop a sync daemon.
    DelDaemon,
    /// Dump the sync daemons.
    GetDaemon,
    /// Set the timeouts; also the answer to [`IpvsCmd::GetConfig`].
    SetConfig,
    /// Ask for the timeouts.
    GetConfig,
    /// The answer to [`IpvsCmd::GetInfo`].
    SetInfo,
    /// Ask for the version and the size of the connection table.
    GetInfo,
    /// Zero the counters of one service and its destinations, or all.
    Zero,
    /// Delete all services.
    Flush,
    /// A command that this version does not know.
    Other(u8),
}

const COMMANDS: [IpvsCmd; 17] = [
    IpvsCmd::NewService,
    IpvsCmd::SetService,
    IpvsCmd::DelService,
    IpvsCmd::GetService,
    IpvsCmd::NewDestination,
    IpvsCmd::SetDestination,
    IpvsCmd::DelDestination,
    IpvsCmd::GetDestination,
    IpvsCmd::NewDaemon,
    IpvsCmd::DelDaemon,
    IpvsCmd::GetDaemon,
    IpvsCmd::SetConfig,
    IpvsCmd::GetConfig,
    IpvsCmd::SetInfo,
    IpvsCmd::GetInfo,
    IpvsCmd::Zero,
    IpvsCmd::Flush,
];

impl From<u8> for IpvsCmd {
    fn from(number: u8) -> Self {
        // The numbers start at 1: 0 is IPVS_CMD_UNSPEC.
        usize::from(number)
            .checked_sub(1)
            .and_then(|index| COMMANDS.get(index).copied())
            .unwrap_or(Self::Other(number))
    }
}

impl From<IpvsCmd> for u8 {
    fn from(cmd: IpvsCmd) -> Self {
        match cmd {
            IpvsCmd::NewService => 1,
            IpvsCmd::SetService => 2,
            IpvsCmd::DelService => 3,
            IpvsCmd::GetService => 4,
            IpvsCmd::NewDestination => 5,
            IpvsCmd::SetDestination => 6,
            IpvsCmd::DelDestination => 7,
            IpvsCmd::GetDestination => 8,
            IpvsCmd::NewDaemon => 9,
            IpvsCmd::DelDaemon => 10,
            IpvsCmd::GetDaemon => 11,
            IpvsCmd::SetConfig => 12,
            IpvsCmd::GetConfig => 13,
            IpvsCmd::SetInfo => 14,
            IpvsCmd::GetInfo => 15,
            IpvsCmd::Zero => 16,
            IpvsCmd::Flush => 17,
            IpvsCmd::Other(number) => number,
        }
    }
}

/// A message of the family `IPVS`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IpvsMessage {
    /// What it asks for.
    pub cmd: IpvsCmd,
    /// What it says.
    pub attributes: Vec<IpvsAttr>,
}

impl IpvsMessage {
    /// A message without attributes.
    pub const fn new(cmd: IpvsCmd) -> Self {
        Self {
            cmd,
            attributes: Vec::new(),
        }
    }
}

impl GenlFamily for IpvsMessage {
    fn family_name() -> &'static str {
        "IPVS"
    }

    fn command(&self) -> u8 {
        self.cmd.into()
    }

    fn version(&self) -> u8 {
        VERSION
    }
}

impl Emitable for IpvsMessage {
    fn buffer_len(&self) -> usize {
        self.attributes.as_slice().buffer_len()
    }

    fn emit(&self, buffer: &mut [u8]) {
        self.attributes.as_slice().emit(buffer);
    }
}

impl ParseableParametrized<[u8], GenlHeader> for IpvsMessage {
    fn parse_with_param(buffer: &[u8], header: GenlHeader) -> Result<Self, DecodeError> {
        let cmd = IpvsCmd::from(header.cmd);
        let attributes = NlasIterator::new(buffer)
            .map(|attribute| IpvsAttr::parse_with_param(&attribute?, cmd))
            .collect::<Result<_, _>>()
            .with_context(|| format!("invalid IPVS message {cmd:?}"))?;
        Ok(Self { cmd, attributes })
    }
}

const IPVS_CMD_ATTR_SERVICE: u16 = 1;
const IPVS_CMD_ATTR_DEST: u16 = 2;
const IPVS_CMD_ATTR_DAEMON: u16 = 3;
const IPVS_CMD_ATTR_TIMEOUT_TCP: u16 = 4;
const IPVS_CMD_ATTR_TIMEOUT_TCP_FIN: u16 = 5;
const IPVS_CMD_ATTR_TIMEOUT_UDP: u16 = 6;

const IPVS_INFO_ATTR_VERSION: u16 = 1;
const IPVS_INFO_ATTR_CONN_TAB_SIZE: u16 = 2;

/// The attributes of a message (`IPVS_CMD_ATTR_*`; in the answer to [`IpvsCmd::GetInfo`], `IPVS_INFO_ATTR_*`).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum IpvsAttr {
    /// A service, or as much of it as identifies it.
    Service(Vec<ServiceAttr>),
    /// A destination, or as much of it as identifies it.
    Destination(Vec<DestinationAttr>),
    /// A sync daemon.
    Daemon(Vec<DaemonAttr>),
    /// Timeout of established TCP connections, in seconds.
    TimeoutTcp(u32),
    /// Timeout of TCP connections after a FIN, in seconds.
    TimeoutTcpFin(u32),
    /// Timeout of UDP flows, in seconds.
    TimeoutUdp(u32),
    /// In [`IpvsCmd::SetInfo`]: the version of IPVS, a byte for each number.
    InfoVersion(u32),
    /// In [`IpvsCmd::SetInfo`]: the number of rows of the connection table.
    InfoConnTabSize(u32),
    /// An attribute that this version does not know.
    Other(DefaultNla),
}

impl Nla for IpvsAttr {
    fn value_len(&self) -> usize {
        match self {
            Self::Service(attributes) => attributes.as_slice().buffer_len(),
            Self::Destination(attributes) => attributes.as_slice().buffer_len(),
            Self::Daemon(attributes) => attributes.as_slice().buffer_len(),
            Self::TimeoutTcp(_)
            | Self::TimeoutTcpFin(_)
            | Self::TimeoutUdp(_)
            | Self::InfoVersion(_)
            | Self::InfoConnTabSize(_) => 4,
            Self::Other(other) => other.value_len(),
        }
    }

    fn kind(&self) -> u16 {
        match self {
            Self::Service(_) => IPVS_CMD_ATTR_SERVICE | NLA_F_NESTED,
            Self::Destination(_) => IPVS_CMD_ATTR_DEST | NLA_F_NESTED,
            Self::Daemon(_) => IPVS_CMD_ATTR_DAEMON | NLA_F_NESTED,
            Self::TimeoutTcp(_) => IPVS_CMD_ATTR_TIMEOUT_TCP,
            Self::TimeoutTcpFin(_) => IPVS_CMD_ATTR_TIMEOUT_TCP_FIN,
            Self::TimeoutUdp(_) => IPVS_CMD_ATTR_TIMEOUT_UDP,
            Self::InfoVersion(_) => IPVS_INFO_ATTR_VERSION,
            Self::InfoConnTabSize(_) => IPVS_INFO_ATTR_CONN_TAB_SIZE,
            Self::Other(other) => other.kind(),
        }
    }

    fn emit_value(&self, buffer: &mut [u8]) {
        match self {
            Self::Service(attributes) => attributes.as_slice().emit(buffer),
            Self::Destination(attributes) => attributes.as_slice().emit(buffer),
            Self::Daemon(attributes) => attributes.as_slice().emit(buffer),
            Self::TimeoutTcp(value)
            | Self::TimeoutTcpFin(value)
            | Self::TimeoutUdp(value)
            | Self::InfoVersion(value)
            | Self::InfoConnTabSize(value) => put(buffer, &value.to_ne_bytes()),
            Self::Other(other) => other.emit_value(buffer),
        }
    }
}

impl<'a> ParseableParametrized<NlaBuffer<&'a [u8]>, IpvsCmd> for IpvsAttr {
    fn parse_with_param(buffer: &NlaBuffer<&'a [u8]>, cmd: IpvsCmd) -> Result<Self, DecodeError> {
        let value = buffer.value();
        Ok(match (cmd, buffer.kind()) {
            (IpvsCmd::SetInfo, IPVS_INFO_ATTR_VERSION) => Self::InfoVersion(parse_u32(value)?),
            (IpvsCmd::SetInfo, IPVS_INFO_ATTR_CONN_TAB_SIZE) => Self::InfoConnTabSize(parse_u32(value)?),
            (IpvsCmd::SetInfo, _) => Self::Other(DefaultNla::parse(buffer)?),
            (_, IPVS_CMD_ATTR_SERVICE) => Self::Service(parse_nested(value).context("invalid service")?),
            (_, IPVS_CMD_ATTR_DEST) => Self::Destination(parse_nested(value).context("invalid destination")?),
            (_, IPVS_CMD_ATTR_DAEMON) => Self::Daemon(parse_nested(value).context("invalid sync daemon")?),
            (_, IPVS_CMD_ATTR_TIMEOUT_TCP) => Self::TimeoutTcp(parse_u32(value)?),
            (_, IPVS_CMD_ATTR_TIMEOUT_TCP_FIN) => Self::TimeoutTcpFin(parse_u32(value)?),
            (_, IPVS_CMD_ATTR_TIMEOUT_UDP) => Self::TimeoutUdp(parse_u32(value)?),
            _ => Self::Other(DefaultNla::parse(buffer)?),
        })
    }
}

/// The attributes nested in another's value.
fn parse_nested<'a, T: Parseable<NlaBuffer<&'a [u8]>>>(value: &'a [u8]) -> Result<Vec<T>, DecodeError> {
    NlasIterator::new(value)
        .map(|attribute| T::parse(&attribute?))
        .collect()
}

/// Writes a value into its buffer, which [`Nla::value_len`] has given the same size.
fn put(buffer: &mut [u8], value: &[u8]) {
    buffer.copy_from_slice(value);
}

/// Writes a string and its terminating NUL.
fn put_string(buffer: &mut [u8], value: &str) {
    if let Some((nul, text)) = buffer.split_last_mut() {
        text.copy_from_slice(value.as_bytes());
        *nul = 0;
    }
}

/// The name of something that a kernel module provides, if this can be one.
fn parse_name<T: FromStr>(value: &[u8]) -> Option<T> {
    let name = std::str::from_utf8(value.strip_suffix(&[0]).unwrap_or(value));
    name.ok()?.parse().ok()
}

/// A `union nf_inet_addr`: an IPv4 address is in its first four bytes.
fn parse_address(value: &[u8]) -> Result<[u8; 16], DecodeError> {
    let mut address = [0; 16];
    address
        .get_mut(..value.len())
        .ok_or_else(|| DecodeError::invalid_ip_address(value.len()))?
        .copy_from_slice(value);
    Ok(address)
}
