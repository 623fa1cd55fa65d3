//! `getsockopt(IP_VS_SO_GET_DESTS)`: the destinations of one IPv4 service, by the interface that is older than netlink.
//!
//! Netlink takes a dump for each service, with some thirty attributes for each destination. `/proc/net/ip_vs` has them as
//! text, a page at a time, and for each page the kernel counts its way through the table from the beginning. Here it looks
//! the service up and copies what it has of each destination.
//!
//! But it knows of IPv4 alone, and nothing of a tunnel's type; and it leaves out the destinations of the other family,
//! which only tunnels have.

use std::ffi::c_int;
use std::io;
use std::mem::{offset_of, size_of};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};

use netlink_batch::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use crate::{DestinationSummary, Family, Forwarding, ServiceKey, TunnelType};

/// `IP_VS_SO_GET_DESTS` of `linux/ip_vs.h`.
const GET_DESTINATIONS: c_int = 64 + 1024 + 64 + 4;

/// How many destinations there is room for at first, and how many times as many where that was too little.
const ROOM: usize = 16;
const MORE_ROOM: usize = 16;

/// `struct ip_vs_get_dests`, without what follows it.
#[repr(C)]
struct Question {
    protocol: u16,
    address: u32,
    port: u16,
    fwmark: u32,
    room: u32,
    answer: [Entry; 0],
}

/// `struct ip_vs_dest_entry`.
#[repr(C)]
struct Entry {
    address: u32,
    port: u16,
    connection_flags: u32,
    weight: i32,
    thresholds: [u32; 2],
    active_connections: u32,
    inactive_connections: u32,
    persistent_connections: u32,
    stats: Stats,
}

/// `struct ip_vs_stats_user`.
#[repr(C)]
struct Stats {
    packets: [u32; 3],
    bytes: [u64; 2],
    rates: [u32; 5],
}

/// The IPVS of the network namespace in which it was opened.
#[derive(Debug)]
pub(crate) struct SockOpt {
    /// Any socket of IPv4 will do.
    socket: OwnedFd,
    buffer: Vec<u8>,
}

impl SockOpt {
    pub(crate) fn open() -> Result<Self, Errno> {
        let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
        Ok(Self {
            socket,
            buffer: Vec::new(),
        })
    }

    /// The destinations of an IPv4 service, the one added last first; `None` if there is no such service.
    pub(crate) fn destinations(
        &mut self,
        key: &ServiceKey,
    ) -> Result<Option<Vec<DestinationSummary>>, Errno> {
        let mut room = ROOM;
        loop {
            match self.ask(key, room) {
                Err(Errno::SRCH) => return Ok(None),
                answer => answer?,
            }
            let answer = self.buffer.get(size_of::<Question>()..).unwrap_or_default();
            let destinations = parse(answer);
            if destinations.len() < room {
                return Ok(Some(destinations));
            }
            // The kernel does not say whether there are more.
            room *= MORE_ROOM;
        }
    }

    /// Has the kernel fill the buffer behind the question.
    fn ask(&mut self, key: &ServiceKey, room: usize) -> Result<(), Errno> {
        // What the kernel does not write is to be recognised.
        self.buffer.clear();
        self.buffer
            .resize(size_of::<Question>() + room * size_of::<Entry>(), 0);
        match *key {
            ServiceKey::Address {
                address: IpAddr::V4(address),
                protocol,
                port,
            } => {
                let protocol = u16::from(protocol.number());
                put(
                    &mut self.buffer,
                    offset_of!(Question, protocol),
                    protocol.to_ne_bytes(),
                );
                put(&mut self.buffer, offset_of!(Question, address), address.octets());
                put(&mut self.buffer, offset_of!(Question, port), port.to_be_bytes());
            }
            ServiceKey::Fwmark {
                family: Family::Inet,
                mark,
            } => put(&mut self.buffer, offset_of!(Question, fwmark), mark.to_ne_bytes()),
            _ => return Err(Errno::AFNOSUPPORT),
        }
        let room = u32::try_from(room).map_err(|_| Errno::NOBUFS)?;
        put(&mut self.buffer, offset_of!(Question, room), room.to_ne_bytes());
        let mut length = libc::socklen_t::try_from(self.buffer.len()).map_err(|_| Errno::NOBUFS)?;
        // SAFETY: the kernel writes no more than `length` bytes from the beginning of the buffer, which it has.
        let result = unsafe {
            libc::getsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_IP,
                GET_DESTINATIONS,
                self.buffer.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        match result {
            0 => Ok(()),
            _ => Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)),
        }
    }
}

/// What the kernel writes behind the question (`struct ip_vs_dest_entry`), up to an entry that it has not written: no
/// destination has the address 0.0.0.0.
pub fn parse(answer: &[u8]) -> Vec<DestinationSummary> {
    let entries = answer.chunks_exact(size_of::<Entry>());
    entries.map_while(destination).collect()
}

fn destination(entry: &[u8]) -> Option<DestinationSummary> {
    let number = |offset| Some(u32::from_ne_bytes(field(entry, offset)?));
    let address = Ipv4Addr::from(field(entry, offset_of!(Entry, address))?);
    let port = u16::from_be_bytes(field(entry, offset_of!(Entry, port))?);
    let method = number(offset_of!(Entry, connection_flags))?;
    let destination = DestinationSummary {
        address: SocketAddr::from((address, port)),
        forwarding: Forwarding::from_number(method, TunnelType::default()).into(),
        weight: number(offset_of!(Entry, weight))?,
        active_connections: number(offset_of!(Entry, active_connections))?,
        inactive_connections: number(offset_of!(Entry, inactive_connections))?,
    };
    (!address.is_unspecified()).then_some(destination)
}

fn field<const LENGTH: usize>(entry: &[u8], offset: usize) -> Option<[u8; LENGTH]> {
    entry.get(offset..)?.first_chunk().copied()
}

fn put<const LENGTH: usize>(buffer: &mut [u8], offset: usize, value: [u8; LENGTH]) {
    if let Some(field) = buffer.get_mut(offset..offset + LENGTH) {
        field.copy_from_slice(&value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ForwardingKind;

    /// As of `linux/ip_vs.h` on a machine of 64 bits.
    #[test]
    #[cfg(target_pointer_width = "64")]
    fn structures_are_those_of_the_kernel() {
        assert_eq!((size_of::<Question>(), size_of::<Entry>()), (24, 96));
        assert_eq!(offset_of!(Question, answer), size_of::<Question>());
        assert_eq!(offset_of!(Entry, inactive_connections), 28);
    }

    #[test]
    fn an_answer_ends_where_the_kernel_has_not_written() {
        let mut answer = vec![0; 3 * size_of::<Entry>()];
        for (index, method) in [(0, 0x100), (1, 0x102)] {
            let mut put = |offset, value: u32| {
                super::put(
                    &mut answer,
                    index * size_of::<Entry>() + offset,
                    value.to_ne_bytes(),
                );
            };
            put(offset_of!(Entry, address), u32::from_ne_bytes([10, 1, 0, 7]));
            put(offset_of!(Entry, connection_flags), method);
            put(offset_of!(Entry, weight), 3);
            put(offset_of!(Entry, active_connections), 5);
            put(offset_of!(Entry, inactive_connections), 6);
            let port = index * size_of::<Entry>() + offset_of!(Entry, port);
            super::put(&mut answer, port, 8080_u16.to_be_bytes());
        }
        let destination = |forwarding| DestinationSummary {
            address: "10.1.0.7:8080".parse().unwrap(),
            forwarding,
            weight: 3,
            active_connections: 5,
            inactive_connections: 6,
        };
        let expected = [ForwardingKind::Masquerade, ForwardingKind::Tunnel].map(destination);
        assert_eq!(parse(&answer), expected);
        assert_eq!(parse(&answer[..size_of::<Entry>()]), expected[..1]);
        assert_eq!(parse(&answer[..5]), []);
    }

    #[test]
    fn ipv6_is_not_asked_for() {
        let key = ServiceKey::address("[fd00::1]:80".parse().unwrap(), crate::Protocol::Tcp);
        let answer = SockOpt::open().unwrap().destinations(&key);
        assert_eq!(answer, Err(Errno::AFNOSUPPORT));
    }
}
