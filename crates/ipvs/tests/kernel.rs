//! Against a kernel, with `ipvsadm` 1.31 as the witness. Each test has a network namespace of its own.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by a panic, in its helpers too"
)]

use std::future::Future;
use std::io::Write;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::{Command as Process, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use ipvs::proc::{self, ProcService};
use ipvs::{
    Command, DaemonRole, Destination, DestinationSummary, Error, Forwarding, Handle, Netmask, Protocol,
    Scheduler, Service, ServiceEntry, ServiceFlags, ServiceKey, SyncDaemon, Timeouts, TunnelFlags,
    TunnelType, VirtualService, text,
};
use rustix::thread::{CapabilitySet, UnshareFlags};

/// What `ipvsadm` printed for one table on Linux 6.12.
const SAVED: &str = include_str!("ipvsadm-1.31/save");
const LISTED: &str = include_str!("ipvsadm-1.31/list");

/// Runs a test in a network namespace of its own.
fn in_namespace<T: Future>(test: T) -> T::Output {
    // SAFETY: a network namespace has nothing to do with memory or file descriptors.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.expect("root is needed");
    run("ip", &["link", "set", "lo", "up"], "");
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(async {
            let outcome = test.await;
            // The kernel has one table for all namespaces: what it would clean up later disturbs dumps until then.
            execute(&mut connect().await, &[Command::Flush]).await;
            outcome
        })
}

async fn connect() -> Handle {
    Handle::connect().await.expect("ip_vs is needed")
}

fn run(program: &str, arguments: &[&str], input: &str) -> String {
    let mut child = Process::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program} is needed: {error}"));
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        output.status
    );
    String::from_utf8(output.stdout).unwrap()
}

fn ipvsadm(arguments: &[&str]) -> String {
    run("ipvsadm", arguments, "")
}

/// Executes commands that all have to succeed.
async fn execute(handle: &mut Handle, commands: &[Command]) {
    let failures = handle.batch(commands).await.into_iter();
    let failures: Vec<_> = failures.map(|(index, error)| (&commands[index], error)).collect();
    assert_eq!(failures, []);
}

/// Our listing and saved text, and `ipvsadm`'s, are the same bytes.
async fn reads_as_in_ipvsadm(handle: &mut Handle) -> Vec<VirtualService> {
    let table = handle.table().await.unwrap();
    let info = handle.info().await.unwrap();
    assert_eq!(text::list(&info, &table), ipvsadm(&["-Ln"]));
    assert_eq!(text::save(&table), ipvsadm(&["-Sn"]));
    table
}

fn tcp(address: &str) -> ServiceKey {
    ServiceKey::address(address.parse().unwrap(), Protocol::Tcp)
}

fn round_robin(key: ServiceKey) -> Service {
    Service::new(key, Scheduler::ROUND_ROBIN)
}

fn server(address: &str) -> Destination {
    Destination::new(address.parse().unwrap())
}

#[test]
#[ignore = "needs root and ip_vs: run by cargo xtask test"]
fn a_table_reads_as_in_ipvsadm() {
    in_namespace(async {
        let mut handle = connect().await;
        execute(&mut handle, &text::parse(SAVED).unwrap()).await;
        assert_eq!(ipvsadm(&["-Sn"]), SAVED);
        assert_eq!(ipvsadm(&["-Ln"]), LISTED);
        reads_as_in_ipvsadm(&mut handle).await;
    });
}

#[test]
#[ignore = "needs root and ip_vs: run by cargo xtask test"]
fn ipvsadm_restores_what_is_saved() {
    in_namespace(async {
        let mut handle = connect().await;
        run("ipvsadm", &["-R"], SAVED);
        let table = handle.table().await.unwrap();
        execute(&mut handle, &[Command::Flush]).await;
        assert_eq!(handle.services().await.unwrap(), []);
        run("ipvsadm", &["-R"], &text::save(&table));
        assert_eq!(reads_as_in_ipvsadm(&mut handle).await.len(), table.len());
        assert_eq!(ipvsadm(&["-Sn"]), SAVED);
    });
}

/// `ipvsadm` sorts by a comparison that is no order.
#[test]
#[ignore = "needs root and ip_vs: run by cargo xtask test"]
fn addresses_come_as_in_ipvsadm() {
    in_namespace(async {
        let addresses = [
            "10.96.0.1",
            "127.0.0.1",
            "172.16.0.9",
            "192.168.0.1",
            "1.2.3.4",
            "100.64.0.1",
            "203.0.113.7",
            "223.255.255.1",
            "10.0.0.1",
            "172.31.0.1",
            "fd00::1",
            "2001:db8::7",
            "fdff:ffff::1",
            "fd00:0:ffff::1",
        ]
        .map(|address| address.parse::<IpAddr>().unwrap());
        let mut commands = Vec::new();
        for (index, address) in addresses.into_iter().enumerate() {
            for port in [443, 80] {
                let key = ServiceKey::address(SocketAddr::new(address, port), Protocol::Tcp);
                commands.push(Command::NewService(round_robin(key)));
                // A rotation for each service: what the sort starts from decides what it ends at.
                let others = addresses.iter().cycle().skip(index).take(addresses.len());
                for other in others.filter(|other| other.is_ipv4() == address.is_ipv4()) {
                    let destination = Destination::new(SocketAddr::new(*other, port));
                    commands.push(Command::NewDestination(key, destination));
                }
            }
        }
        let mut handle = connect().await;
        execute(&mut handle, &commands).await;
        assert_eq!(reads_as_in_ipvsadm(&mut handle).await.len(), 28);
    });
}

#[test]
#[ignore = "needs root and ip_vs: run by cargo xtask test"]
fn what_is_written_is_what_is_read() {
    in_namespace(async {
        let mut handle = connect().await;
        let key = tcp("10.0.0.1:80");
        let everything = Service {
            scheduler: Scheduler::MAGLEV_HASH,
            flags: ServiceFlags::PERSISTENT | ServiceFlags::MH_FALLBACK | ServiceFlags::MH_PORT,
            timeout: 86400,
            netmask: Netmask::from(std::net::Ipv4Addr::new(255, 0, 255, 0)),
            ..round_robin(key)
        };
        execute(&mut handle, &[Command::NewService(everything)]).await;
        assert_eq!(handle.service(&key).await.unwrap().service, everything);
        reads_as_in_ipvsadm(&mut handle).await;

        let flags = TunnelFlags::CHECKSUM;
        let methods = [
            Forwarding::Masquerade,
            Forwarding::Local,
            Forwarding::DirectRoute,
            Forwarding::Tunnel(TunnelType::Ipip),
            Forwarding::Tunnel(TunnelType::Gue { port: 6080, flags }),
            Forwarding::Tunnel(TunnelType::Gre { flags }),
            Forwarding::Bypass,
        ];
        for (number, forwarding) in (1..).zip(methods) {
            let destination = Destination {
                forwarding,
                weight: number * 100,
                upper_threshold: number * 10,
                lower_threshold: number,
                ..server(&format!("10.1.0.{number}:80"))
            };
            execute(&mut handle, &[Command::NewDestination(key, destination)]).await;
            let entries = handle.destinations(&key).await.unwrap();
            assert_eq!(entries[0].destination, destination);
        }
        reads_as_in_ipvsadm(&mut handle).await;
        let thresholds = ipvsadm(&["-Ln", "--thresholds"]);
        assert!(
            thresholds.contains("10.1.0.7:80                  70         7 "),
            "{thresholds}"
        );
    });
}

#[test]
#[ignore = "needs root and ip_vs: run by cargo xtask test"]
fn services_and_destinations_change_in_place() {
    in_namespace(async {
        let mut handle = connect().await;
        let key = ServiceKey::address("[fd00::1]:53".parse().unwrap(), Protocol::Udp);
        let persistent = Service {
            flags: ServiceFlags::PERSISTENT | ServiceFlags::ONE_PACKET,
            timeout: 60,
            netmask: Netmask::prefix(64),
            ..round_robin(key)
        };
        let (first, second) = (server("[fd00::2]:53"), server("[fd00::3]:53"));
        let draining = Destination { weight: 0, ..first };
        execute(
            &mut handle,
            &[
                Command::NewService(persistent),
                Command::NewDestination(key, first),
                Command::NewDestination(key, second),
                Command::SetService(Service::new(key, Scheduler::LEAST_CONNECTION)),
                Command::SetDestination(key, draining),
            ],
        )
        .await;
        assert_eq!(
            ipvsadm(&["-Sn"]),
            "-A -u [fd00::1]:53 -s lc\n-a -u [fd00::1]:53 -r [fd00::2]:53 -m -w 0\n\
             -a -u [fd00::1]:53 -r [fd00::3]:53 -m -w 1\n"
        );
        let service = handle.service(&key).await.unwrap().service;
        assert_eq!(service.flags, ServiceFlags::default());

        execute(&mut handle, &[Command::DelDestination(key, second.socket_addr())]).await;
        let left: Vec<_> = destinations(&mut handle, &key).await;
        assert_eq!(left, [draining]);
        execute(&mut handle, &[Command::DelService(key)]).await;
        assert_eq!(ipvsadm(&["-Sn"]), "");
    });
}

async fn destinations(handle: &mut Handle, key: &ServiceKey) -> Vec<Destination> {
    let entries = handle.destinations(key).await.unwrap();
    entries.into_iter().map(|entry| entry.destination).collect()
}

#[test]
#[ignore = "needs root and ip_vs: run by cargo xtask test"]
fn each_refusal_says_why() {
    in_namespace(async {
        let mut handle = connect().await;
        let (here, nowhere) = (tcp("10.0.0.1:80"), tcp("10.0.0.2:80"));
        let (known, unknown) = (server("10.1.0.1:80"), server("10.1.0.2:80"));
        execute(
            &mut handle,
            &[
                Command::NewService(round_robin(here)),
                Command::NewDestination(here, known),
            ],
        )
        .await;
        let scheduler = "nonesuch".parse().unwrap();
        let engine = "nonesuch".parse().unwrap();
        let mut with_engine = round_robin(nowhere);
        with_engine.persistence_engine = Some(engine);
        let gone = Error::NoSuchService(nowhere);
        let no_server = Error::NoSuchDestination(here, unknown.socket_addr());
        let expected = [
            (Command::NewService(round_robin(here)), Error::ServiceExists(here)),
            (
                Command::NewService(Service::new(nowhere, scheduler)),
                Error::NoSuchScheduler(scheduler),
            ),
            (
                Command::SetService(Service::new(here, scheduler)),
                Error::NoSuchScheduler(scheduler),
            ),
            (
                Command::NewService(with_engine),
                Error::NoSuchSchedulerOrEngine {
                    scheduler: Scheduler::ROUND_ROBIN,
                    persistence_engine: engine,
                },
            ),
            (Command::SetService(round_robin(nowhere)), gone.clone()),
            (Command::DelService(nowhere), gone.clone()),
            (Command::Zero(Some(nowhere)), gone.clone()),
            (Command::NewDestination(nowhere, known), gone.clone()),
            (Command::SetDestination(nowhere, known), gone.clone()),
            (
                Command::DelDestination(nowhere, known.socket_addr()),
                gone.clone(),
            ),
            (
                Command::NewDestination(here, known),
                Error::DestinationExists(here, known.socket_addr()),
            ),
            (Command::SetDestination(here, unknown), no_server.clone()),
            (
                Command::DelDestination(here, unknown.socket_addr()),
                no_server.clone(),
            ),
            (
                Command::DelDaemon(DaemonRole::Master),
                Error::NoSuchDaemon(DaemonRole::Master),
            ),
            (
                Command::NewDaemon(SyncDaemon::new(DaemonRole::Master, "nonesuch", 1)),
                Error::NoSuchInterface("nonesuch".to_owned()),
            ),
        ];
        for (command, error) in &expected {
            assert_eq!(handle.execute(command).await, Err(error.clone()), "{command}");
        }
        // One batch gives the same.
        let commands: Vec<Command> = expected.iter().map(|(command, _)| command.clone()).collect();
        let errors = expected.into_iter().map(|(_, error)| error);
        assert_eq!(handle.batch(&commands).await, errors.enumerate().collect());

        assert_eq!(handle.service(&nowhere).await, Err(gone.clone()));
        assert_eq!(handle.destinations(&nowhere).await, Err(gone));
    });
}

#[test]
#[ignore = "needs root and ip_vs: run by cargo xtask test"]
fn what_cannot_be_is_refused_with_a_hint() {
    in_namespace(async {
        let mut handle = connect().await;
        let key = tcp("10.0.0.1:80");
        let ipv6 = tcp("[fd00::1]:80");
        execute(
            &mut handle,
            &[
                Command::NewService(round_robin(key)),
                Command::NewService(round_robin(ipv6)),
            ],
        )
        .await;
        let mark = ServiceKey::Fwmark {
            family: ipvs::Family::Inet,
            mark: 0,
        };
        let gue = TunnelType::Gue {
            port: 0,
            flags: TunnelFlags::NONE,
        };
        let to = server("10.1.0.1:80");
        for (command, words) in [
            (Command::NewService(round_robin(mark)), "the fwmark is 0"),
            (
                Command::SetService(Service {
                    netmask: Netmask::prefix(129),
                    ..round_robin(ipv6)
                }),
                "prefix length not from 1 to 128",
            ),
            (
                Command::NewDestination(key, server("224.0.0.1:80")),
                "not a unicast one",
            ),
            (
                Command::NewDestination(key, server("[fd00::2]:80")),
                "of another family",
            ),
            (
                Command::NewDestination(
                    key,
                    Destination {
                        forwarding: Forwarding::Tunnel(gue),
                        ..to
                    },
                ),
                "the GUE port is 0",
            ),
            (
                Command::NewDestination(
                    key,
                    Destination {
                        weight: u32::MAX,
                        ..to
                    },
                ),
                "the weight is above 2147483647",
            ),
            (
                Command::NewDestination(
                    key,
                    Destination {
                        lower_threshold: 1,
                        ..to
                    },
                ),
                "the lower threshold above the upper",
            ),
            (
                Command::SetTimeouts(Timeouts {
                    tcp: u32::MAX,
                    ..Timeouts::default()
                }),
                "a timeout is too long",
            ),
            (
                Command::NewDaemon(SyncDaemon::new(DaemonRole::Master, "sixteen-letters-", 1)),
                "longer than 15 bytes",
            ),
        ] {
            let error = handle.execute(&command).await.unwrap_err();
            assert!(error.to_string().contains(words), "{command}: {error}");
        }
        // Nothing came of it.
        assert_eq!(
            ipvsadm(&["-Sn"]),
            "-A -t 10.0.0.1:80 -s rr\n-A -t [fd00::1]:80 -s rr\n"
        );
    });
}

#[test]
#[ignore = "needs root and ip_vs: run by cargo xtask test"]
fn without_the_capability_there_is_permission_denied() {
    in_namespace(async {
        let check = || {
            let mut sets = rustix::thread::capabilities(None).unwrap();
            sets.effective.remove(CapabilitySet::NET_ADMIN);
            rustix::thread::set_capabilities(None, sets).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async {
                let mut handle = connect().await;
                let command = Command::NewService(round_robin(tcp("10.0.0.1:80")));
                assert_eq!(handle.execute(&command).await, Err(Error::PermissionDenied));
                assert_eq!(handle.services().await, Err(Error::PermissionDenied));
                assert_eq!(handle.info().await, Err(Error::PermissionDenied));
            });
        };
        // Capabilities are a thread's own.
        std::thread::spawn(check).join().unwrap();
    });
}

#[test]
#[ignore = "needs root and ip_vs: run by cargo xtask test"]
fn one_failure_among_thousands_is_found_and_stops_nothing() {
    in_namespace(async {
        let mut handle = connect().await;
        let mut commands = Vec::new();
        for service in 0..1000u16 {
            let [high, low] = service.to_be_bytes();
            let key = tcp(&format!("10.{high}.{low}.1:80"));
            commands.push(Command::NewService(round_robin(key)));
            for port in 1..=10 {
                let to = server(&format!("10.200.{high}.{low}:{port}"));
                commands.push(Command::NewDestination(key, to));
            }
        }
        let (key, address) = (tcp("10.0.0.1:80"), "10.200.0.0:99".parse().unwrap());
        commands.insert(5555, Command::DelDestination(key, address));

        let start = Instant::now();
        let failures = handle.batch(&commands).await;
        eprintln!("{} commands in {:?}", commands.len(), start.elapsed());
        let expected = (5555, Error::NoSuchDestination(key, address));
        assert_eq!(failures.into_iter().collect::<Vec<_>>(), [expected]);

        let start = Instant::now();
        let table = handle.table().await.unwrap();
        eprintln!("dumped in {:?}", start.elapsed());
        let start = Instant::now();
        let listed = proc::read().unwrap();
        eprintln!("read from /proc in {:?}", start.elapsed());
        let start = Instant::now();
        let summary = handle.summary().await.unwrap();
        eprintln!("summarised in {:?}", start.elapsed());
        assert_eq!(summary, table.iter().map(summary_of).collect::<Vec<_>>());
        assert_eq!(table.len(), 1000);
        assert!(table.iter().all(|service| service.destinations.len() == 10));
        assert_proc_tells(&table, &listed);
        assert_eq!(text::save(&table), ipvsadm(&["-Sn"]));
    });
}

#[test]
#[ignore = "needs root and ip_vs: run by cargo xtask test"]
fn proc_tells_what_a_dump_tells() {
    in_namespace(async {
        let mut handle = connect().await;
        execute(&mut handle, &text::parse(SAVED).unwrap()).await;
        let table = handle.table().await.unwrap();
        assert_proc_tells(&table, &proc::read().unwrap());
    });
}

/// The kernel's file misses services when another namespace has some, too.
#[test]
#[ignore = "needs root and ip_vs: run by cargo xtask test"]
fn a_summary_has_what_the_file_misses() {
    async fn fill(handle: &mut Handle) {
        let mut commands = Vec::new();
        for number in 0..300u16 {
            let [high, low] = number.to_be_bytes();
            let key = tcp(&format!("10.0.{high}.{low}:80"));
            let to = server(&format!("10.1.{high}.{low}:80"));
            commands.push(Command::NewService(round_robin(key)));
            commands.push(Command::NewDestination(key, to));
        }
        let mark = ServiceKey::Fwmark {
            family: ipvs::Family::Inet6,
            mark: 5,
        };
        commands.push(Command::NewService(round_robin(mark)));
        execute(handle, &commands).await;
    }

    let (fill_other, filled) = mpsc::channel();
    let (done, until_done) = mpsc::channel::<()>();
    // The closure owns `done`: a panic in it also ends the other thread.
    std::thread::scope(move |scope| {
        scope.spawn(move || {
            in_namespace(async {
                fill(&mut connect().await).await;
                fill_other.send(()).unwrap();
                let _ = until_done.recv();
            });
        });
        in_namespace(async {
            let mut handle = connect().await;
            fill(&mut handle).await;
            filled.recv().unwrap();
            let listed = proc::read().unwrap();
            eprintln!("{} of 301 services in the file", listed.len());
            let dumped: Vec<_> = handle.table().await.unwrap().iter().map(summary_of).collect();
            assert_eq!(dumped.len(), 301);
            assert_eq!(handle.summary().await.unwrap(), dumped);
            for service in listed.iter().filter(|service| service.service_key().is_some()) {
                let there = |(entry, destinations): &(ServiceEntry, _)| {
                    Some(entry.service.key) == service.service_key() && *destinations == service.destinations
                };
                assert!(dumped.iter().any(there), "{service:?}");
            }
        });
        done.send(()).unwrap();
    });
}

/// Of many destinations, too, and none but those of the other family, which only tunnels have.
#[test]
#[ignore = "needs root and ip_vs: run by cargo xtask test"]
fn a_summary_tells_what_a_dump_tells() {
    in_namespace(async {
        let mut handle = connect().await;
        let mut commands = text::parse(SAVED).unwrap();
        for count in [15, 16, 17, 300] {
            let key = tcp(&format!("10.9.0.1:{count}"));
            commands.push(Command::NewService(round_robin(key)));
            let to = |port| Command::NewDestination(key, server(&format!("10.8.0.1:{port}")));
            commands.extend((1..=count).map(to));
        }
        execute(&mut handle, &commands).await;
        let mut expected = handle.table().await.unwrap();
        let mut foreign = 0;
        for service in &mut expected {
            let is_ipv4 = service.entry.service.key.family() == ipvs::Family::Inet;
            let before = service.destinations.len();
            service
                .destinations
                .retain(|entry| !is_ipv4 || entry.destination.address.is_ipv4());
            foreign += before - service.destinations.len();
        }
        assert_eq!(foreign, 1);
        let expected: Vec<_> = expected.iter().map(summary_of).collect();
        assert_eq!(handle.summary().await.unwrap(), expected);
    });
}

fn summary_of(service: &VirtualService) -> (ServiceEntry, Vec<DestinationSummary>) {
    (service.entry, summarised(service))
}

fn summarised(service: &VirtualService) -> Vec<DestinationSummary> {
    let entries = service.destinations.iter().copied();
    entries.map(DestinationSummary::from).collect()
}

/// The services come in the same order, and so do their destinations.
fn assert_proc_tells(table: &[VirtualService], listed: &[ProcService]) {
    assert_eq!(table.len(), listed.len());
    for (dumped, listed) in table.iter().zip(listed) {
        let service = &dumped.entry.service;
        if let Some(key) = listed.service_key() {
            assert_eq!(key, service.key);
        } else {
            let mark = listed.key;
            assert!(
                matches!((service.key, mark), (ServiceKey::Fwmark { mark, .. }, proc::ProcKey::Fwmark(other)) if mark == other),
                "{service:?} {mark:?}"
            );
        }
        assert_eq!(listed.scheduler, service.scheduler);
        assert_eq!(
            listed.persistence.is_some(),
            service.flags.contains(ServiceFlags::PERSISTENT)
        );
        assert_eq!(listed.destinations, summarised(dumped), "{}", service.key);
    }
}

#[test]
#[ignore = "needs root and ip_vs: run by cargo xtask test"]
fn connections_are_counted_and_counters_zeroed() {
    in_namespace(async {
        let mut handle = connect().await;
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = Destination::new(listener.local_addr().unwrap());
        let key = tcp("127.0.0.1:80");
        execute(
            &mut handle,
            &[
                Command::NewService(round_robin(key)),
                Command::NewDestination(key, to),
            ],
        )
        .await;
        let client = TcpStream::connect("127.0.0.1:80").unwrap();
        let served = listener.accept().unwrap();
        let entry = handle.destinations(&key).await.unwrap()[0];
        assert_eq!(entry.active_connections, 1);
        assert_eq!(proc::read().unwrap()[0].destinations[0].active_connections, 1);

        // The counters are those of the estimator, which runs every two seconds.
        let deadline = Instant::now() + Duration::from_secs(20);
        while handle.service(&key).await.unwrap().stats.connections == 0 {
            assert!(Instant::now() < deadline, "no connection was counted");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        let stats = handle.service(&key).await.unwrap().stats;
        assert_eq!(stats.connections, 1);
        assert!(
            stats.in_packets >= 2 && stats.in_bytes > stats.in_packets,
            "{stats:?}"
        );
        let entry = handle.destinations(&key).await.unwrap()[0];
        assert_eq!(entry.stats.connections, 1);

        drop((client, served));
        execute(&mut handle, &[Command::Zero(Some(key))]).await;
        assert_eq!(handle.service(&key).await.unwrap().stats.connections, 0);
        execute(&mut handle, &[Command::Zero(None)]).await;
    });
}

#[test]
#[ignore = "needs root and ip_vs: run by cargo xtask test"]
fn timeouts_are_set_and_left() {
    in_namespace(async {
        let mut handle = connect().await;
        let first = Timeouts {
            tcp: 901,
            tcp_fin: 121,
            udp: 301,
        };
        let second = Timeouts {
            udp: 61,
            ..Timeouts::default()
        };
        execute(
            &mut handle,
            &[Command::SetTimeouts(first), Command::SetTimeouts(second)],
        )
        .await;
        assert_eq!(handle.timeouts().await.unwrap(), Timeouts { udp: 61, ..first });
        assert_eq!(
            ipvsadm(&["-L", "--timeout"]),
            "Timeout (tcp tcpfin udp): 901 121 61\n"
        );
    });
}

#[test]
#[ignore = "needs root and ip_vs: run by cargo xtask test"]
fn daemons_start_and_stop() {
    in_namespace(async {
        run("ip", &["link", "add", "mcast0", "type", "dummy"], "");
        run("ip", &["address", "add", "10.9.0.1/24", "dev", "mcast0"], "");
        run("ip", &["link", "set", "mcast0", "up"], "");
        let mut handle = connect().await;
        assert_eq!(handle.daemons().await.unwrap(), []);
        let master = SyncDaemon {
            max_length: Some(1400),
            group: Some("239.1.2.3".parse().unwrap()),
            port: Some(9000),
            ttl: Some(3),
            ..SyncDaemon::new(DaemonRole::Master, "mcast0", 7)
        };
        let backup = SyncDaemon::new(DaemonRole::Backup, "mcast0", 0);
        execute(
            &mut handle,
            &[Command::NewDaemon(master.clone()), Command::NewDaemon(backup)],
        )
        .await;
        let daemons = handle.daemons().await.unwrap();
        let [first, second] = daemons.as_slice() else {
            panic!("{daemons:?}");
        };
        assert_eq!(*first, master);
        assert_eq!(
            (second.role, second.port, second.ttl),
            (DaemonRole::Backup, Some(8848), Some(1))
        );
        assert_eq!(second.group, Some("224.0.0.81".parse().unwrap()));
        let listed = ipvsadm(&["-L", "--daemon"]);
        assert!(
            listed.starts_with(
                "master sync daemon (mcast=mcast0, syncid=7, maxlen=1400, group=239.1.2.3, port=9000, ttl=3)\n"
            ),
            "{listed}"
        );

        let again = Command::NewDaemon(master);
        assert_eq!(
            handle.execute(&again).await,
            Err(Error::DaemonExists(DaemonRole::Master))
        );
        execute(
            &mut handle,
            &[
                Command::DelDaemon(DaemonRole::Master),
                Command::DelDaemon(DaemonRole::Backup),
            ],
        )
        .await;
        assert_eq!(handle.daemons().await.unwrap(), []);
    });
}
