//! Datagrams to and from the kernel.

use std::time::Duration;

use netlink_packet_core::NetlinkDeserializable;
use rustix::{
    buffer::spare_capacity,
    io,
    net::{self, RecvFlags, SendFlags, sockopt},
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    time::timeout,
};
use tracing::trace;

use crate::{
    Errno, Error, filter,
    wire::{self, Kind},
};

/// The kernel answers while it executes, so that an answer which takes long is one that does not come.
const DEADLINE: Duration = Duration::from_secs(5);
/// Asked of the kernel, in bytes: room for the answers of a large batch and for a burst of notifications.
const SOCKET_BUFFER: usize = 4 << 20;
/// What the kernel keeps free of the send buffer, in bytes.
const SEND_RESERVE: usize = 32;
/// Larger than any datagram of the kernel, which fills at most 32 KiB when it dumps, unless one message (whose
/// attributes hold at most 64 KiB) needs more.
const RECEIVE_BUFFER: usize = 128 << 10;

/// A socket that only the kernel can talk to. `netlink_sys::Socket` is never cloned: its clones share a descriptor
/// that each of them closes.
#[derive(Debug)]
pub(crate) struct Channel {
    protocol: isize,
    fd: AsyncFd<netlink_sys::Socket>,
    /// Has room for [`RECEIVE_BUFFER`]. What was never received into takes no memory.
    buffer: Vec<u8>,
    send_room: usize,
    receive_room: usize,
}

impl Channel {
    pub(crate) fn open(protocol: isize) -> Result<Self, Error> {
        Self::try_open(protocol).map_err(|error| Error::Open(errno(&error)))
    }

    fn try_open(protocol: isize) -> std::io::Result<Self> {
        let socket = netlink_sys::Socket::new(protocol)?;
        socket.set_non_blocking(true)?;
        // A connected socket takes unicasts from the kernel alone.
        socket.connect(&netlink_sys::SocketAddr::new(0, 0))?;
        socket.set_cap_ack(true)?;
        socket.set_ext_ack(true)?;
        // More than net.core.[rw]mem_max needs CAP_NET_ADMIN; smaller buffers do, with smaller sends.
        if sockopt::set_socket_recv_buffer_size_force(&socket, SOCKET_BUFFER).is_err() {
            sockopt::set_socket_recv_buffer_size(&socket, SOCKET_BUFFER)?;
        }
        if sockopt::set_socket_send_buffer_size_force(&socket, SOCKET_BUFFER).is_err() {
            sockopt::set_socket_send_buffer_size(&socket, SOCKET_BUFFER)?;
        }
        let (send_room, receive_room) = (
            send_room(&socket),
            sockopt::socket_recv_buffer_size(&socket).unwrap_or_default(),
        );
        // SAFETY: the socket owns its descriptor, and keeps it open and the same until the `AsyncFd` drops it.
        let fd = unsafe { AsyncFd::register(socket) }?;
        Ok(Self {
            protocol,
            fd,
            buffer: Vec::with_capacity(RECEIVE_BUFFER),
            send_room,
            receive_room,
        })
    }

    /// The port that the kernel has given to the socket.
    pub(crate) fn port(&self) -> Result<u32, Error> {
        let mut address = netlink_sys::SocketAddr::new(0, 0);
        self.fd
            .get_ref()
            .get_address(&mut address)
            .map_err(|error| Error::Open(errno(&error)))?;
        Ok(address.port_number())
    }

    /// The largest datagram that can be sent, in bytes.
    pub(crate) fn send_room(&self) -> usize {
        self.send_room
    }

    /// Size of the receive queue, in bytes as the kernel counts.
    pub(crate) fn receive_room(&self) -> usize {
        self.receive_room
    }

    /// Enlarges the send buffer for a datagram of this size, if it may.
    pub(crate) fn make_room(&mut self, bytes: usize) {
        let socket = self.fd.get_ref();
        // Where this fails, `send` says what is missing.
        if bytes > self.send_room
            && sockopt::set_socket_send_buffer_size_force(socket, bytes + SEND_RESERVE).is_ok()
        {
            self.send_room = send_room(socket);
        }
    }

    /// Gives a datagram to the kernel, which executes it before this returns.
    pub(crate) async fn send(&self, datagram: &[u8]) -> Result<(), Error> {
        trace!(protocol = self.protocol as i64, datagram, "sending");
        let send = |socket: &netlink_sys::Socket| Ok(net::send(socket, datagram, SendFlags::empty())?);
        match self.fd.async_io(Interest::WRITABLE, send).await {
            Ok(_) => Ok(()),
            Err(error) => match errno(&error) {
                Errno::MSGSIZE => Err(Error::TooLarge {
                    bytes: datagram.len(),
                    limit: self.send_room(),
                }),
                errno => Err(Error::Send(errno)),
            },
        }
    }

    /// The next datagram from the kernel, which has to come soon.
    pub(crate) async fn receive_answer(&mut self) -> Result<&[u8], Error> {
        // As a rule it is in the queue since `send`.
        let received = match receive(self.fd.get_ref(), &mut self.buffer) {
            Err(Errno::AGAIN) => timeout(DEADLINE, wait(&self.fd, &mut self.buffer))
                .await
                .map_err(|_| Error::Deadline)?,
            received => received,
        };
        self.received(received)
    }

    /// The next datagram from the kernel, whenever it comes.
    async fn receive(&mut self) -> Result<&[u8], Error> {
        let received = wait(&self.fd, &mut self.buffer).await;
        self.received(received)
    }

    fn received(&self, received: io::Result<usize>) -> Result<&[u8], Error> {
        match received {
            Ok(length) => self.buffer.get(..length).ok_or(Error::Truncated(length)),
            Err(Errno::NOBUFS) => Err(Error::Overrun),
            Err(errno) => Err(Error::Receive(errno)),
        }
    }

    /// The next datagram from the kernel, if there is one already.
    pub(crate) fn receive_queued(&mut self) -> Option<Result<&[u8], Error>> {
        match receive(self.fd.get_ref(), &mut self.buffer) {
            Err(Errno::AGAIN) => None,
            received => Some(self.received(received)),
        }
    }
}

/// What the kernel takes at once.
fn send_room(socket: &netlink_sys::Socket) -> usize {
    let size = sockopt::socket_send_buffer_size(socket).unwrap_or_default();
    size.saturating_sub(SEND_RESERVE)
}

/// Length of the datagram that was received; more than the buffer's where the datagram was cut.
fn receive(socket: &netlink_sys::Socket, buffer: &mut Vec<u8>) -> io::Result<usize> {
    buffer.clear();
    net::recv(socket, spare_capacity(buffer), RecvFlags::TRUNC).map(|(_copied, length)| length)
}

async fn wait(fd: &AsyncFd<netlink_sys::Socket>, buffer: &mut Vec<u8>) -> io::Result<usize> {
    let receive = |socket: &netlink_sys::Socket| Ok(receive(socket, buffer)?);
    fd.async_io(Interest::READABLE, receive)
        .await
        .map_err(|error| errno(&error))
}

pub(crate) fn errno(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

/// What the kernel multicasts to groups of a netlink protocol.
#[derive(Debug)]
pub struct Notifications {
    channel: Channel,
    groups: Vec<u32>,
}

impl Notifications {
    /// Opens a socket for a netlink protocol (`NETLINK_ROUTE`, ...) and joins the groups (`RTNLGRP_LINK`, ...).
    ///
    /// # Errors
    ///
    /// [`Error::Open`] if the kernel lacks the protocol or a group.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn subscribe(protocol: isize, groups: &[u32]) -> Result<Self, Error> {
        let mut notifications = Self {
            channel: Channel::open(protocol)?,
            groups: groups.to_vec(),
        };
        notifications.join()?;
        Ok(notifications)
    }

    /// Joins the groups again after [`leave`](Self::leave).
    ///
    /// # Errors
    ///
    /// [`Error::Open`] if the kernel does not let us.
    pub fn join(&mut self) -> Result<(), Error> {
        self.for_each_group(netlink_sys::Socket::add_membership)
    }

    /// Hears of nothing more until [`join`](Self::join). What nobody listens to the kernel does not even put into words,
    /// which may be most of the work where thousands of objects are changed at once.
    ///
    /// # Errors
    ///
    /// [`Error::Open`] if the kernel does not let us.
    pub fn leave(&mut self) -> Result<(), Error> {
        self.for_each_group(netlink_sys::Socket::drop_membership)
    }

    fn for_each_group(
        &self,
        change: impl Fn(&netlink_sys::Socket, u32) -> std::io::Result<()>,
    ) -> Result<(), Error> {
        let socket = self.channel.fd.get_ref();
        let mut groups = self.groups.iter();
        groups
            .try_for_each(|group| change(socket, *group))
            .map_err(|error| Error::Open(errno(&error)))
    }

    /// Leaves out from now on what is done through the socket with this [port](crate::Socket::port): the kernel does not
    /// queue it, so that a thousand changes of one's own take no memory and no time.
    ///
    /// # Errors
    ///
    /// [`Error::Open`] if the kernel does not take the filter.
    pub fn ignore(&mut self, port: u32) -> Result<(), Error> {
        filter::ignore(self.channel.fd.get_ref(), port).map_err(Error::Open)
    }

    /// Waits for the next notifications. Nothing is lost when the future is dropped.
    ///
    /// # Errors
    ///
    /// [`Error::Overrun`] if the kernel had more to tell than the receive buffer takes, and other errors where what
    /// it told cannot be read. After any of them the caller has missed something and has to dump.
    pub async fn next<T: NetlinkDeserializable>(&mut self) -> Result<Vec<T>, Error> {
        read(self.channel.receive().await?)
    }

    /// The next notifications, if there are any now.
    ///
    /// # Errors
    ///
    /// As [`Notifications::next`].
    pub fn try_next<T: NetlinkDeserializable>(&mut self) -> Option<Result<Vec<T>, Error>> {
        let queued = self.channel.receive_queued()?;
        Some(queued.and_then(read))
    }
}

fn read<T: NetlinkDeserializable>(datagram: &[u8]) -> Result<Vec<T>, Error> {
    let mut notifications = Vec::new();
    for answer in wire::answers(datagram) {
        let answer = answer?;
        match answer.kind {
            Kind::Payload(payload) => notifications.push(wire::payload(&answer.header, payload)?),
            Kind::Overrun => return Err(Error::Overrun),
            Kind::Ack | Kind::Error(_) | Kind::Done | Kind::Noop => {}
        }
    }
    Ok(notifications)
}
