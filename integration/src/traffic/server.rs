//! A server that says its name, and the address of the client that it sees.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread::{self, JoinHandle};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{AddressFamily, SocketFlags, bind, listen, socket_with, sockopt};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::error::{Context, Result};
use crate::namespace::Namespace;
use crate::traffic::Protocol;

/// A server on some ports of a namespace, for IPv4 and IPv6. It ends, and closes its connections, with this value.
#[derive(Debug)]
pub struct Server {
    /// Closed to stop the thread.
    stop: Option<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens on all addresses of the namespace.
    ///
    /// # Errors
    /// A port is taken, or the kernel does not have the protocol.
    pub fn start(namespace: &Namespace, name: &str, ports: &[(Protocol, u16)]) -> Result<Self> {
        let mut sockets = namespace.enter(|| {
            ports
                .iter()
                .map(|&(protocol, port)| {
                    Socket::open(protocol, port).context(|| format!("serve {protocol} port {port} as {name}"))
                })
                .collect::<Result<Vec<_>>>()
        })?;
        let (stopped, stop) = pipe_with(PipeFlags::CLOEXEC).context(|| "make a pipe".into())?;
        let name = name.to_owned();
        let thread = thread::spawn(move || {
            while let Some(ready) = wait(&sockets, stopped.as_fd()) {
                // From the back, because those that hang up are removed.
                for index in ready.into_iter().rev() {
                    match sockets.get_mut(index).map(|socket| socket.serve(&name)) {
                        Some(Ok(Some(accepted))) => sockets.push(accepted),
                        Some(Ok(None)) | None => {}
                        Some(Err(_)) => drop(sockets.swap_remove(index)),
                    }
                }
            }
        });
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been reported when it happened.
            let _ = thread.join();
        }
    }
}

#[derive(Debug)]
enum Socket {
    Listener(TcpListener),
    Datagrams(UdpSocket),
    Stream(TcpStream, IpAddr),
}

impl Socket {
    fn open(protocol: Protocol, port: u16) -> io::Result<Self> {
        let (kind, number) = protocol.socket();
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::INET6, kind, flags, Some(number))?;
        sockopt::set_ipv6_v6only(&socket, false)?;
        sockopt::set_socket_reuseaddr(&socket, true)?;
        bind(&socket, &SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)))?;
        if protocol == Protocol::Udp {
            return Ok(Self::Datagrams(socket.into()));
        }
        listen(&socket, 128)?;
        // An SCTP socket of this kind reads, writes and accepts as a TCP one does.
        Ok(Self::Listener(socket.into()))
    }

    /// Does what a ready socket asks for. An error means that it is of no more use.
    fn serve(&mut self, name: &str) -> io::Result<Option<Self>> {
        let mut request = [0; 2048];
        match self {
            Self::Listener(listener) => {
                // The client may have given up.
                let Ok((stream, client)) = listener.accept() else {
                    return Ok(None);
                };
                stream.set_nonblocking(true)?;
                return Ok(Some(Self::Stream(stream, client.ip().to_canonical())));
            }
            Self::Datagrams(socket) => {
                // As above; an ICMP error of an earlier answer arrives here, too.
                if let Ok((_, client)) = socket.recv_from(&mut request) {
                    let _ = socket.send_to(line(name, client.ip().to_canonical()).as_bytes(), client);
                }
            }
            Self::Stream(stream, client) => {
                let read = stream.read(&mut request)?;
                let request = request.get(..read).unwrap_or_default();
                if request.is_empty() {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                let line = line(name, *client);
                let response = if request.starts_with(b"GET ") {
                    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{line}", line.len())
                } else {
                    line
                };
                stream.write_all(response.as_bytes())?;
            }
        }
        Ok(None)
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Listener(socket) => socket.as_fd(),
            Self::Datagrams(socket) => socket.as_fd(),
            Self::Stream(socket, _) => socket.as_fd(),
        }
    }
}

fn line(name: &str, client: IpAddr) -> String {
    format!("{name} {client}\n")
}

/// The indices of the sockets that are ready, in order; nothing when it is time to stop.
fn wait(sockets: &[Socket], stopped: BorrowedFd<'_>) -> Option<Vec<usize>> {
    let fds = sockets.iter().map(AsFd::as_fd).chain([stopped]);
    let mut fds: Vec<_> = fds
        .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN))
        .collect();
    poll(&mut fds, None).ok()?;
    let ready: Vec<_> = fds
        .iter()
        .enumerate()
        .filter(|(_, fd)| !fd.revents().is_empty())
        .map(|(index, _)| index)
        .collect();
    (ready.last() != Some(&sockets.len())).then_some(ready)
}
