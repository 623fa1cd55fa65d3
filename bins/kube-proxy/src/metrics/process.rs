//! `process_*`: what the kernel says of this process.

use std::fs;

use prometheus::{Counter, Gauge, Registry, Result};
use rustix::{
    param::{clock_ticks_per_second, page_size},
    process::{Resource, getrlimit},
};

#[derive(Debug)]
pub(super) struct Process {
    cpu: Counter,
    open_fds: Gauge,
    max_fds: Gauge,
    virtual_memory: Gauge,
    virtual_memory_max: Gauge,
    resident_memory: Gauge,
    received: Counter,
    sent: Counter,
    start: Gauge,
}

impl Process {
    pub(super) fn new(registry: &Registry) -> Result<Self> {
        let gauge = |name, help| {
            let gauge = Gauge::new(name, help)?;
            registry.register(Box::new(gauge.clone()))?;
            Result::Ok(gauge)
        };
        let counter = |name, help| {
            let counter = Counter::new(name, help)?;
            registry.register(Box::new(counter.clone()))?;
            Result::Ok(counter)
        };
        let process = Self {
            cpu: counter("process_cpu_seconds_total", "Processor time spent, in seconds.")?,
            open_fds: gauge("process_open_fds", "Open file descriptors.")?,
            max_fds: gauge("process_max_fds", "File descriptors that may be open.")?,
            virtual_memory: gauge("process_virtual_memory_bytes", "Virtual memory, in bytes.")?,
            virtual_memory_max: gauge(
                "process_virtual_memory_max_bytes",
                "Virtual memory that there may be, in bytes.",
            )?,
            resident_memory: gauge("process_resident_memory_bytes", "Resident memory, in bytes.")?,
            received: counter(
                "process_network_receive_bytes_total",
                "IPv4 bytes that the process's network namespace has received.",
            )?,
            sent: counter(
                "process_network_transmit_bytes_total",
                "IPv4 bytes that the process's network namespace has sent.",
            )?,
            start: gauge(
                "process_start_time_seconds",
                "When the process was started, in seconds since the Unix epoch.",
            )?,
        };
        if let (Some(stat), Some(booted)) = (Stat::read(), booted()) {
            process.start.set(booted + stat.started);
        }
        Ok(process)
    }

    /// When the process was started; seconds since the Unix epoch.
    pub(super) fn start(&self) -> f64 {
        self.start.get()
    }

    /// Looks again. What cannot be read stays as it was.
    pub(super) fn update(&self) {
        if let Some(stat) = Stat::read() {
            set(&self.cpu, stat.cpu);
            self.virtual_memory.set(stat.virtual_memory);
            self.resident_memory.set(stat.resident_memory);
        }
        if let Ok(fds) = fs::read_dir("/proc/self/fd") {
            self.open_fds.set(count(fds.count()));
        }
        let limit = |resource| {
            getrlimit(resource)
                .current
                .map_or(u64::MAX as f64, |limit| limit as f64)
        };
        self.max_fds.set(limit(Resource::Nofile));
        self.virtual_memory_max.set(limit(Resource::As));
        if let Some((received, sent)) = octets() {
            set(&self.received, received);
            set(&self.sent, sent);
        }
    }
}

/// Gives a counter the value that the kernel has counted.
fn set(counter: &Counter, value: f64) {
    counter.inc_by((value - counter.get()).max(0.));
}

fn count(number: usize) -> f64 {
    u32::try_from(number).map_or(f64::MAX, f64::from)
}

/// From `/proc/self/stat`.
struct Stat {
    /// Seconds of processor time.
    cpu: f64,
    /// Seconds after the start of the system.
    started: f64,
    /// Bytes.
    virtual_memory: f64,
    resident_memory: f64,
}

impl Stat {
    fn read() -> Option<Self> {
        Self::parse(&fs::read_to_string("/proc/self/stat").ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        // The second field is the program's name, in brackets and with any character.
        let (_, fields) = text.rsplit_once(')')?;
        let fields: Vec<_> = fields.split_whitespace().collect();
        // Of proc_pid_stat(5), the third field is the first here.
        let field = |number: usize| fields.get(number - 3)?.parse::<f64>().ok();
        let seconds = |ticks: f64| ticks / clock_ticks_per_second() as f64;
        Some(Self {
            cpu: seconds(field(14)? + field(15)?),
            started: seconds(field(22)?),
            virtual_memory: field(23)?,
            resident_memory: field(24)? * page_size() as f64,
        })
    }
}

/// When the system was started; seconds since the Unix epoch.
fn booted() -> Option<f64> {
    let text = fs::read_to_string("/proc/stat").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("btime "))?;
    line.trim().parse().ok()
}

/// `InOctets` and `OutOctets` of the network namespace.
fn octets() -> Option<(f64, f64)> {
    parse_octets(&fs::read_to_string("/proc/self/net/netstat").ok()?)
}

fn parse_octets(text: &str) -> Option<(f64, f64)> {
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("IpExt:"));
    let (names, values) = (lines.next()?, lines.next()?);
    let value = |wanted: &str| {
        let mut pairs = names.split_whitespace().zip(values.split_whitespace());
        pairs.find(|(name, _)| *name == wanted)?.1.parse().ok()
    };
    Some((value("InOctets")?, value("OutOctets")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_and_blanks_does_not_confuse() {
        let text = "7 (a) b (c)) S 1 7 7 0 -1 4194560 1 0 0 0 150 50 0 0 20 0 3 0 4200 1000000 25 0";
        let stat = Stat::parse(text).unwrap();
        let ticks = clock_ticks_per_second() as f64;
        assert_eq!(stat.cpu, 200. / ticks);
        assert_eq!(stat.started, 4200. / ticks);
        assert_eq!(stat.virtual_memory, 1_000_000.);
        assert_eq!(stat.resident_memory, 25. * page_size() as f64);
        assert!(Stat::parse("7 (a) S").is_none());
    }

    #[test]
    fn octets_are_found_by_name() {
        let text = "TcpExt: A B\nTcpExt: 1 2\nIpExt: InMcast InOctets OutOctets\nIpExt: 3 4 5\n";
        assert_eq!(parse_octets(text), Some((4., 5.)));
        assert_eq!(parse_octets("IpExt: InOctets\n"), None);
    }

    #[test]
    fn this_process_has_started_and_has_memory() {
        let process = Process::new(&Registry::new()).unwrap();
        process.update();
        assert!(process.start() > 1.7e9);
        assert!(process.resident_memory.get() > 1e5);
        assert!(process.open_fds.get() >= 3.);
    }
}
