//! One course, in the guest.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpStream};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::apiserver::OWN_SERVICE;
use crate::bench::first_server::FirstServer;
use crate::bench::probe::{self, Commands, Probe, pause};
use crate::bench::{Course, FirstSync, Load, Memory, Outcome};
use crate::error::{Context, Error, Result};
use crate::kube_proxy::KubeProxy;
use crate::namespace::Namespace;
use crate::proxiers::Proxier;
use crate::topology::NODE;
use crate::uplink::Uplink;

/// Where upstream's kube-proxy tells its metrics.
const METRICS: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 10249);

/// How long a proxier is left alone after its first synchronisation, until its memory is looked at.
const REST: Duration = Duration::from_secs(5);

/// How long upstream is left alone between two changes: twice of what it waits itself for more (its
/// `minSyncPeriod`), so that no change has to wait for that.
const BETWEEN_CHANGES: Duration = Duration::from_secs(2);

/// The same for ours, which does not wait.
const BETWEEN_OUR_CHANGES: Duration = Duration::from_millis(200);

/// The synchronisation period that every proxier has by default. Elsewhere upstream's mode ipvs is started with a
/// longer one.
const DEFAULT_PERIOD: &str = "--ipvs-sync-period=30s";

/// How long a change may take.
const CHANGE_LIMIT: Duration = Duration::from_secs(5 * 60);

const SECONDS_OF_DAY: f64 = 86400.0;

/// `USER_HZ`, the unit of times in `/proc`.
const TICKS_PER_SECOND: f64 = 100.0;

/// A node with nothing but an address, and the way to the API server.
struct Node {
    uplink: Uplink,
    namespace: Namespace,
}

impl Node {
    fn new() -> Result<Self> {
        let namespace = Namespace::new("node")?;
        namespace.ip(&format!(
            "link add eth1 type dummy\n\
             link set eth1 up\n\
             address add {NODE}/24 dev eth1\n\
             route add default via 192.168.10.1"
        ))?;
        namespace.sysctl("net.ipv4.ip_forward=1")?;
        Ok(Self {
            uplink: Uplink::connect(&namespace)?,
            namespace,
        })
    }
}

/// A proxier at work, and what its first synchronisation took, unless that did not end in time.
pub(super) struct Started {
    running: KubeProxy,
    pub(super) first_sync: Option<FirstSync>,
}

/// Has each of these proxiers synchronise once without any Services, so that the kernel's modules are loaded
/// and the programs have been read.
///
/// # Errors
/// One does not run.
pub fn warm_up(proxiers: &BTreeSet<Proxier>) -> Result<()> {
    for proxier in proxiers.iter().copied() {
        let node = Node::new()?;
        node.uplink.load(Load::default())?;
        start(
            proxier,
            &[],
            Load::default(),
            CHANGE_LIMIT.as_secs(),
            &node.namespace,
        )?;
    }
    Ok(())
}

/// Runs a course.
///
/// # Errors
/// A proxier does not run, or has not programmed what it says.
pub fn run(course: &Course) -> Result<Outcome> {
    let mut outcome = Outcome {
        course: *course,
        first_syncs: Vec::new(),
        changes: Vec::new(),
        memory: Vec::new(),
        idle: None,
    };
    for number in 1..=course.starts {
        let node = Node::new()?;
        node.uplink.load(course.load)?;
        let started = start(course.proxier, &[], course.load, course.patience, &node.namespace)?;
        outcome.first_syncs.extend(started.first_sync);
        if number == course.starts {
            thread::sleep(REST);
            outcome.memory.push(memory(&started.running)?);
            if started.first_sync.is_some() {
                outcome.changes = changes(course, &node)?;
            }
        }
    }
    if course.idle > 0 {
        outcome.idle = idle(course)?;
    }
    Ok(outcome)
}

/// Starts a proxier on a node, and waits until it has programmed these objects, or its time is over: `patience`
/// seconds.
pub(super) fn start(
    proxier: Proxier,
    flags: &[String],
    load: Load,
    patience: u64,
    node: &Namespace,
) -> Result<Started> {
    let log = log_file();
    let mut commands = match proxier {
        Proxier::KubeRouter => Some(Commands::watch(node, load)?),
        _ => None,
    };
    let mut first_server = FirstServer::listen(node)?;
    let began = Instant::now();
    let start = time_of_day(SystemTime::now());
    let running = proxier.start(node, flags, None, &log)?;
    let limit = Duration::from_secs(patience);
    let done = loop {
        let completed = match &mut commands {
            None => completed(proxier, node, &running)?,
            Some(commands) => commands.completed()?,
        };
        match completed {
            None if began.elapsed() < limit => first_server.wait(pause(began.elapsed()))?,
            done => break done,
        }
    };
    let Some(done) = done else {
        return Ok(Started {
            running,
            first_sync: None,
        });
    };
    let caches = caches_synced(&running.log()?)?;
    let complete = match proxier {
        Proxier::Ours | Proxier::UpstreamIpvs => probe::complete(node, load)?,
        // kube-router is done when they are.
        Proxier::UpstreamNftables | Proxier::KubeRouter => load.services,
    };
    if complete != load.services {
        return Err(Error::Unavailable(format!(
            "{proxier} says that it is done, and has programmed {complete} of {} Services",
            load.services
        )));
    }
    // What is there to be heard already.
    first_server.wait(Duration::ZERO)?;
    let first_server = match (proxier, first_server.at()) {
        (Proxier::Ours, Some(at)) => Some(between(caches, time_of_day(at))),
        (Proxier::Ours, None) => {
            let missing = format!("{proxier} says that it is done, and has not assigned {OWN_SERVICE}");
            return Err(Error::Unavailable(missing));
        }
        // Upstream assigns the address before it makes the virtual server, or never.
        (Proxier::UpstreamIpvs | Proxier::UpstreamNftables | Proxier::KubeRouter, _) => None,
    };
    Ok(Started {
        running,
        first_sync: Some(FirstSync {
            from_start: between(start, done),
            from_caches: between(caches, done),
            first_server,
        }),
    })
}

/// The time of day at which all objects were programmed for the first time, if they are.
fn completed(proxier: Proxier, node: &Namespace, running: &KubeProxy) -> Result<Option<f64>> {
    if proxier == Proxier::Ours {
        return Ok(last_said(&running.log()?, &["in sync"]));
    }
    // Nobody answers at first.
    let metrics = node.enter(|| fetch().context(|| "ask for metrics".into()));
    let name = "kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family=\"IPv4\"} ";
    let done = metrics.ok().and_then(|metrics| {
        let value = metrics.lines().find_map(|line| line.strip_prefix(name))?;
        value.trim().parse::<f64>().ok()
    });
    Ok(done.filter(|done| *done > 0.0).map(|done| done % SECONDS_OF_DAY))
}

fn fetch() -> std::io::Result<String> {
    let mut connection = TcpStream::connect(METRICS)?;
    connection.set_read_timeout(Some(CHANGE_LIMIT))?;
    connection.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer)?;
    Ok(answer)
}

/// The time of day at which a proxier had all Services and slices.
fn caches_synced(log: &str) -> Result<f64> {
    // kube-router says this when it has them, and nothing else.
    let said = last_said(log, &["aches are synced", "Disabling metrics for kube-router"]);
    said.ok_or_else(|| {
        Error::Unavailable(format!(
            "nothing is said of the caches in\n{}",
            crate::process::last_lines(log, 20)
        ))
    })
}

/// When a log says a text for the last time: seconds since midnight, out of klog's
/// `I1121 02:22:44.028733    1041 main.rs:64] text`.
fn last_said(log: &str, texts: &[&str]) -> Option<f64> {
    let mut lines = log.lines().rev();
    let line = lines.find(|line| texts.iter().any(|text| line.contains(text)))?;
    let mut parts = line.split_whitespace().nth(1)?.split(':');
    let hours: f64 = parts.next()?.parse().ok()?;
    let minutes: f64 = parts.next()?.parse().ok()?;
    let seconds: f64 = parts.next()?.parse().ok()?;
    Some(hours * 3600.0 + minutes * 60.0 + seconds)
}

pub(super) fn time_of_day(at: SystemTime) -> f64 {
    at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64() % SECONDS_OF_DAY
}

/// Across midnight, too. Negative if the end was before the start.
fn between(start: f64, end: f64) -> f64 {
    let half = SECONDS_OF_DAY / 2.0;
    (end - start + half).rem_euclid(SECONDS_OF_DAY) - half
}

/// Replaces endpoints, and says how long each took from the node's hearing of it until the kernel has it. One more
/// comes before them all: an emulator translates what the proxier does for the first time.
fn changes(course: &Course, node: &Node) -> Result<Vec<f64>> {
    let mut probe = Probe::new(&node.namespace, course.proxier)?;
    let mut times = Vec::new();
    for number in 0..=course.changes {
        thread::sleep(match course.proxier {
            Proxier::Ours => BETWEEN_OUR_CHANGES,
            Proxier::UpstreamIpvs | Proxier::UpstreamNftables | Proxier::KubeRouter => BETWEEN_CHANGES,
        });
        // Spread over the Services.
        let service = number * 7919 % course.load.services.max(1);
        let address = IpAddr::from(replacement());
        probe.forget()?;
        node.uplink.arrivals().forget();
        node.uplink.replace(service, address)?;
        let done = probe.wait(service, address, CHANGE_LIMIT)?;
        let (Some(arrived), Some(done)) = (node.uplink.arrivals().first(), done) else {
            return Err(Error::Unavailable(format!(
                "{} has not programmed {address} of Service {service} in {} s",
                course.proxier,
                CHANGE_LIMIT.as_secs()
            )));
        };
        times.push(done.saturating_sub(probe.heard(arrived)?).as_secs_f64());
    }
    Ok(times.split_off(1))
}

/// An address that was never an endpoint's before, in this boot.
fn replacement() -> Ipv4Addr {
    use std::sync::atomic::{AtomicUsize, Ordering};
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    Load::replacement(COUNT.fetch_add(1, Ordering::Relaxed))
}

fn memory(running: &KubeProxy) -> Result<Memory> {
    let path = PathBuf::from(format!("/proc/{}/status", running.id()));
    let status = fs::read_to_string(&path).path("read", &path)?;
    let value = |name: &str| {
        let value = status.lines().find_map(|line| line.strip_prefix(name))?;
        value.split_whitespace().next()?.parse().ok()
    };
    let memory = || {
        Some(Memory {
            resident: value("VmRSS:")?,
            peak: value("VmHWM:")?,
        })
    };
    memory().ok_or_else(|| Error::Unavailable(format!("{} says nothing of memory", path.display())))
}

/// Processor time for each second in which there is nothing to do, as the proxier comes by default; `None` if it has not
/// programmed everything in its time.
fn idle(course: &Course) -> Result<Option<f64>> {
    let node = Node::new()?;
    node.uplink.load(course.load)?;
    let flags = [DEFAULT_PERIOD.to_owned()];
    let started = start(
        course.proxier,
        &flags,
        course.load,
        course.patience,
        &node.namespace,
    )?;
    if started.first_sync.is_none() {
        return Ok(None);
    }
    thread::sleep(REST);
    let before = processor_time(&started.running)?;
    thread::sleep(Duration::from_secs(course.idle));
    let used = processor_time(&started.running)? - before;
    Ok(Some(used / course.idle as f64))
}

/// What a process and the programs that it has run have used so far, in seconds.
fn processor_time(running: &KubeProxy) -> Result<f64> {
    let path = PathBuf::from(format!("/proc/{}/stat", running.id()));
    let stat = fs::read_to_string(&path).path("read", &path)?;
    ticks(&stat)
        .map(|ticks| ticks / TICKS_PER_SECOND)
        .ok_or_else(|| Error::Unavailable(format!("{} says nothing of time", path.display())))
}

/// `utime`, `stime`, `cutime` and `cstime` of `/proc/PID/stat`, the fields 14 to 17. The second is the program's name in
/// parentheses, in which there may be anything.
fn ticks(stat: &str) -> Option<f64> {
    let (_, fields) = stat.rsplit_once(") ")?;
    let times: Vec<f64> = fields
        .split(' ')
        .skip(11)
        .take(4)
        .map(|ticks| ticks.parse().ok())
        .collect::<Option<_>>()?;
    (times.len() == 4).then(|| times.iter().sum())
}

/// A new file for what a proxier says.
fn log_file() -> PathBuf {
    use std::sync::atomic::{AtomicUsize, Ordering};
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    PathBuf::from(format!(
        "/tmp/proxier-{}.log",
        COUNT.fetch_add(1, Ordering::Relaxed)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_says_when() {
        let log = "I1121 23:59:59.500000    1041 main.rs:64] caches are synced\n\
                   I1122 00:00:00.250000    1041 main.rs:65] in sync\n";
        let caches = caches_synced(log).unwrap();
        assert_eq!(caches, 86399.5);
        assert_eq!(between(caches, last_said(log, &["in sync"]).unwrap()), 0.75);
        assert_eq!(between(0.25, caches), -0.75);
        assert_eq!(last_said(log, &["done"]), None);
    }

    #[test]
    fn a_process_s_time_is_its_own_and_its_children_s() {
        let stat = "7 (kube) proxy) S 1 7 7 0 -1 4194560 1 0 0 0 150 50 20 30 20 0 4 0 1";
        assert_eq!(ticks(stat), Some(250.0));
        assert_eq!(ticks("7 (short) S 1"), None);
    }
}
