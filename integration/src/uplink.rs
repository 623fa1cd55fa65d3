//! How programs in a guest use an API server that runs on the host.
//!
//! The server listens on the host's loopback. In the guest its address is forwarded: on the guest's own loopback
//! and on that of a node's namespace, which has no other way out. So one kubeconfig is good in all three places, and
//! the node has no address more than the topology says.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::pipe::pipe;
use rustix::thread::gettid;
use serde::{Deserialize, Serialize};

use crate::api::Client;
use crate::apiserver::{ApiServer, HOST_OF_GUEST};
use crate::bench::load::{self, Load};
use crate::clock::monotonic;
use crate::error::{Context, Error, Result};
use crate::guest::Guest;
use crate::namespace::Namespace;
use crate::process;

/// In the guest: the kubeconfig.
pub const KUBECONFIG: &str = "/root/kubeconfig";

/// The environment variables with the ports, on the host's loopback, of the server and of who kills and resumes it.
const PORT: &str = "LAB_API_PORT";
const CONTROL: &str = "LAB_API_CONTROL";

/// How long the guest is left alone before a change.
const QUIET: Duration = Duration::from_millis(50);

/// Runs a command in a guest, whose programs can [`open`](Uplink::open) an uplink to this server.
///
/// # Errors
/// As of [`Guest::run`].
pub fn run(
    server: &mut ApiServer,
    guest: Guest,
    command: &[String],
    sink: &mut (dyn Write + Send),
) -> Result<u8> {
    let control = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context(|| "listen on the loopback".into())?;
    let address = control.local_addr().context(|| "listen on the loopback".into())?;
    let guest = guest
        .copy(server.kubeconfig(), KUBECONFIG)
        .env(PORT, server.port().to_string())
        .env(CONTROL, address.port().to_string());
    thread::scope(|scope| {
        scope.spawn(|| obey(&control, server));
        let status = guest.run(command, sink);
        order(address, Order::End)?;
        status
    })
}

/// What a guest asks the host to do, each a connection with a line of JSON there and a line back: nothing, or what
/// failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Order {
    /// Kill the API server and its database.
    Kill,
    /// Start both again.
    Resume,
    /// Make the objects of a load.
    Load(Load),
    /// Replace the first endpoint of the load's Service with this number, [`QUIET`] after the answer.
    Replace(usize, IpAddr),
    /// Take no more orders.
    End,
}

/// Carries out the orders of a guest.
fn obey(control: &TcpListener, server: &mut ApiServer) {
    let mut made = Load::default();
    for connection in control.incoming().flatten() {
        let mut line = String::new();
        // Whoever says nothing orders nothing.
        let _ = BufReader::new(&connection).read_line(&mut line);
        let mut replace = None;
        let done = match serde_json::from_str(&line) {
            Ok(Order::Kill) => {
                server.kill();
                Ok(())
            }
            Ok(Order::Resume) => server.resume(),
            Ok(Order::Load(load)) => make(server, load, &mut made),
            Ok(Order::Replace(service, address)) => {
                replace = Some((service, address));
                Ok(())
            }
            Ok(Order::End) => return,
            Err(error) => Err(Error::Unavailable(format!("no such order: {error}"))),
        };
        let answer = done.map_or_else(|error| error.to_string().replace('\n', " "), |()| String::new());
        // The guest may be gone.
        let _ = writeln!(&connection, "{answer}");
        drop(connection);
        if let Some((service, address)) = replace {
            thread::sleep(QUIET);
            let client = server.client();
            let replaced = client.and_then(|client| client.replace_endpoint(&load::name(service), address));
            // The guest waits for it in vain, and says so.
            replaced.unwrap_or_else(|error| eprintln!("lab: {error}"));
        }
    }
}

fn make(server: &ApiServer, load: Load, made: &mut Load) -> Result<()> {
    load.create(&server.client()?, *made)?;
    *made = load;
    Ok(())
}

fn order(control: SocketAddr, order: Order) -> Result<()> {
    let mut answer = String::new();
    let mut ask = || {
        let mut connection = TcpStream::connect(control)?;
        writeln!(connection, "{}", serde_json::to_string(&order)?)?;
        connection.read_to_string(&mut answer)
    };
    ask().context(|| format!("give the host the order {order:?}"))?;
    match answer.trim_end() {
        "" => Ok(()),
        failed => Err(Error::Unavailable(failed.to_owned())),
    }
}

/// In a guest: the way to the host's API server.
#[derive(Debug)]
pub struct Uplink {
    client: Client,
    control: SocketAddr,
    answers: Answers,
    _forwards: [Forward; 2],
}

impl Uplink {
    /// Makes [`KUBECONFIG`] work here and in a node's namespace, and the API server as good as new.
    ///
    /// # Errors
    /// This is no guest with an API server, or the server cannot be reached.
    pub fn open(node: &Namespace) -> Result<Self> {
        let uplink = Self::connect(node)?;
        uplink.client.clear()?;
        Ok(uplink)
    }

    /// Makes [`KUBECONFIG`] work here and in a node's namespace. The API server keeps its objects.
    ///
    /// # Errors
    /// This is no guest with an API server.
    pub fn connect(node: &Namespace) -> Result<Self> {
        let port = port(PORT)?;
        let server = (HOST_OF_GUEST, port).into();
        let kubeconfig = Path::new(KUBECONFIG);
        let kubeconfig = std::fs::read_to_string(kubeconfig).path("read", kubeconfig)?;
        let listen =
            || TcpListener::bind((Ipv4Addr::LOCALHOST, port)).context(|| "listen on the loopback".into());
        let answers = Answers::default();
        let forward = || {
            Ok([
                Forward::start(listen()?, server, Answers::default())?,
                Forward::start(node.enter(listen)?, server, answers.clone())?,
            ])
        };
        Ok(Self {
            control: (HOST_OF_GUEST, self::port(CONTROL)?).into(),
            _forwards: before_all_others(forward)?,
            answers,
            client: Client::new(&kubeconfig)?,
        })
    }

    /// A client of the server.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The server's port on the loopback of the guest and of the node's namespace.
    ///
    /// # Errors
    /// This is no guest with an API server.
    pub fn port(&self) -> Result<u16> {
        port(PORT)
    }

    /// What the server says to the programs in the node's namespace.
    #[must_use]
    pub fn arrivals(&self) -> &Arrivals {
        &self.answers.arrivals
    }

    /// How many connections programs in the node's namespace have made to the server.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.answers.connections.load(Ordering::Relaxed)
    }

    /// Lets nothing that the server says through the connections that there are reach the node's namespace any more. All
    /// that is sent on them is acknowledged, and new ones are as good as ever.
    pub fn silence(&self) {
        self.answers.silences.fetch_add(1, Ordering::Relaxed);
    }

    /// Has the host make the objects of a load, as far as they are not there.
    ///
    /// # Errors
    /// The API server refuses one.
    pub fn load(&self, load: Load) -> Result<()> {
        order(self.control, Order::Load(load))
    }

    /// Has the host replace the first endpoint of the load's Service with this number, a moment later: then nothing but
    /// the change itself is at work in the guest.
    ///
    /// # Errors
    /// The host does not answer.
    pub fn replace(&self, service: usize, address: IpAddr) -> Result<()> {
        order(self.control, Order::Replace(service, address))
    }

    /// Kills the API server and its database.
    ///
    /// # Errors
    /// The host does not answer.
    pub fn kill_server(&self) -> Result<()> {
        order(self.control, Order::Kill)
    }

    /// Starts both again with the same data, and waits until they answer.
    ///
    /// # Errors
    /// They do not start.
    pub fn resume_server(&self) -> Result<()> {
        order(self.control, Order::Resume)
    }
}

/// Runs `work` on a thread that goes before all ordinary ones, and so do those that it starts. What forwards stands for
/// the network: were it in line with the others, it would be interrupted by the program that it has woken up, and have
/// the processor once more in the midst of what that does then.
fn before_all_others<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let in_time = || {
        let thread = gettid().as_raw_nonzero().to_string();
        process::output(Command::new("chrt").args(["--fifo", "--pid", "1", &thread]))?;
        work()
    };
    let done = thread::scope(|scope| scope.spawn(in_time).join());
    done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn port(variable: &str) -> Result<u16> {
    let value = std::env::var(variable).unwrap_or_default();
    value.parse().map_err(|_| {
        Error::Unavailable(format!(
            "{variable}={value:?} is no port: this is no guest with an API server"
        ))
    })
}

/// When the API server had something to say.
#[derive(Debug, Clone, Default)]
pub struct Arrivals(Arc<Mutex<Option<Duration>>>);

impl Arrivals {
    /// Forgets what came before.
    pub fn forget(&self) {
        *self.lock() = None;
    }

    /// When the first bytes came since, as of `CLOCK_MONOTONIC`.
    #[must_use]
    pub fn first(&self) -> Option<Duration> {
        *self.lock()
    }

    fn note(&self) {
        self.lock().get_or_insert_with(monotonic);
    }

    fn lock(&self) -> MutexGuard<'_, Option<Duration>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What becomes of the server's answers.
#[derive(Debug, Clone, Default)]
struct Answers {
    arrivals: Arrivals,
    /// How often the connections of the time were silenced.
    silences: Arc<AtomicUsize>,
    /// How many connections there have been.
    connections: Arc<AtomicUsize>,
}

impl Answers {
    /// Reads what the server says on a new connection.
    fn of<R: Read>(&self, server: R) -> impl Read + use<R> {
        self.connections.fetch_add(1, Ordering::Relaxed);
        Answer {
            silences: self.silences.load(Ordering::Relaxed),
            answers: self.clone(),
            server,
        }
    }
}

/// What the server says on a connection.
struct Answer<R> {
    server: R,
    answers: Answers,
    /// Those from before the connection.
    silences: usize,
}

impl<R: Read> Read for Answer<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let read = self.server.read(buffer)?;
            let silenced = self.answers.silences.load(Ordering::Relaxed) > self.silences;
            if read == 0 || !silenced {
                self.answers.arrivals.note();
                return Ok(read);
            }
        }
    }
}

/// Carries TCP connections from a listener to another address. It takes no more of them when this value goes; those
/// that there are end with one of their ends.
#[derive(Debug)]
struct Forward {
    /// Closed to stop the thread.
    stop: Option<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Forward {
    fn start(listener: TcpListener, to: SocketAddr, answers: Answers) -> Result<Self> {
        let (stopped, stop) = pipe().context(|| "make a pipe".into())?;
        let thread = thread::spawn(move || {
            loop {
                let mut fds = [
                    PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN),
                    PollFd::from_borrowed_fd(stopped.as_fd(), PollFlags::IN),
                ];
                let polled = poll(&mut fds, None);
                let [_, stopped] = &fds;
                if polled.is_err() || !stopped.revents().is_empty() {
                    return;
                }
                // Where the server is away, the client finds its connection closed.
                if let Ok((client, _)) = listener.accept() {
                    let _ = TcpStream::connect(to).and_then(|server| join(client, server, &answers));
                }
            }
        });
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been reported when it happened.
            let _ = thread.join();
        }
    }
}

/// Copies between two connections until both have ended.
fn join(client: TcpStream, server: TcpStream, answers: &Answers) -> io::Result<()> {
    // What comes in two segments must not wait until the first is acknowledged.
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let answers = answers.of(server.try_clone()?);
    copy(client.try_clone()?, server);
    copy(answers, client);
    Ok(())
}

fn copy(mut from: impl Read + Send + 'static, mut to: TcpStream) {
    thread::spawn(move || {
        // Either end may go at any time, which ends the other.
        let _ = io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Write);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_carried_there_and_back() {
        let listen = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let (server, entry) = (listen(), listen());
        let at = entry.local_addr().unwrap();
        let forward = Forward::start(entry, server.local_addr().unwrap(), Answers::default()).unwrap();
        let echo = thread::spawn(move || {
            let (mut connection, _) = server.accept().unwrap();
            let mut said = String::new();
            connection.read_to_string(&mut said).unwrap();
            connection.write_all(said.to_uppercase().as_bytes()).unwrap();
        });
        let mut client = TcpStream::connect(at).unwrap();
        client.write_all(b"hello").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "HELLO");
        echo.join().unwrap();
        // The server has gone: so does the connection.
        let mut client = TcpStream::connect(at).unwrap();
        assert_eq!(client.read(&mut [0]).unwrap_or(0), 0);
        drop(forward);
        assert!(TcpStream::connect(at).is_err());
    }

    #[test]
    fn a_silenced_connection_takes_all_and_says_nothing() {
        let listen = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let (server, entry) = (listen(), listen());
        let at = entry.local_addr().unwrap();
        let answers = Answers::default();
        let _forward = Forward::start(entry, server.local_addr().unwrap(), answers.clone()).unwrap();
        let connect = || {
            let mut ends = (TcpStream::connect(at).unwrap(), server.accept().unwrap().0);
            ends.1.write_all(b"?").unwrap();
            ends.0.read_exact(&mut [0]).unwrap();
            ends
        };
        let mut old = connect();
        answers.silences.fetch_add(1, Ordering::Relaxed);
        let mut new = connect();
        for (client, server) in [&mut old, &mut new] {
            client.write_all(b"hello").unwrap();
            server.read_exact(&mut [0; 5]).unwrap();
            server.write_all(b"hello").unwrap();
            server.shutdown(Shutdown::Write).unwrap();
        }
        let said = |mut client: TcpStream| {
            let mut said = String::new();
            client.read_to_string(&mut said).map(|_| said).unwrap()
        };
        assert_eq!([said(old.0), said(new.0)], ["", "hello"]);
    }

    #[test]
    fn orders_are_carried_out_one_by_one() {
        let control = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let at = control.local_addr().unwrap();
        let failed = thread::spawn(move || {
            let (connection, _) = control.accept().unwrap();
            let mut line = String::new();
            BufReader::new(&connection).read_line(&mut line).unwrap();
            writeln!(&connection, "cannot {line}").unwrap();
        });
        let error = order(at, Order::Resume).unwrap_err().to_string();
        failed.join().unwrap();
        assert!(error.contains("cannot \"Resume\""), "{error}");
    }
}
