//! The forms of `ipvsadm`: what it lists, what it saves, and its command lines.
//!
//! [`list`] and [`save`] print what `ipvsadm -Ln` and `ipvsadm -Sn` print (version 1.31), byte for byte, and
//! [`parse`] reads it back. `ipvsadm` cannot say everything that the kernel can:
//!
//! - [`save`] has no thresholds. (A [`Command`]'s own `Display` has: `-x`, `-y`.)
//! - A local destination is saved as `-g`, direct routing; the kernel finds out for itself that it is local.
//! - For a forwarding method without an option it prints `(null)`, which is no command any more.
//! - It takes marks for signed numbers, and then refuses to read them. Here a mark from 2147483648 on is negative in
//!   [`list`] only.

mod order;
mod parse;

use std::fmt::{self, Write as _};
use std::net::SocketAddr;

pub use parse::{InvalidCommand, ParseError, parse};

use crate::{
    Command, Destination, Family, Forwarding, Info, Netmask, Protocol, Service, ServiceFlags, ServiceKey,
    SyncDaemon, TunnelFlags, TunnelType, VirtualService,
};

/// What `ipvsadm -Ln` prints. The order of services and destinations is `ipvsadm`'s.
pub fn list(info: &Info, table: &[VirtualService]) -> String {
    let mut text = format!(
        "IP Virtual Server version {} (size={})\n\
         Prot LocalAddress:Port Scheduler Flags\n  \
         -> RemoteAddress:Port           Forward Weight ActiveConn InActConn\n",
        info.version, info.connection_table_size
    );
    for service in order::services(table) {
        let _ = writeln!(text, "{}", Listed(&service.entry.service));
        for entry in order::destinations(&service.destinations) {
            let destination = &entry.destination;
            let _ = writeln!(
                text,
                "  -> {:<28} {:<7} {:<6} {:<10} {:<10}",
                destination.socket_addr().to_string(),
                forwarding_name(destination.forwarding),
                destination.weight,
                entry.active_connections,
                entry.inactive_connections
            );
        }
    }
    text
}

/// What `ipvsadm -Sn` prints. The order of services and destinations is `ipvsadm`'s.
pub fn save(table: &[VirtualService]) -> String {
    let mut text = String::new();
    for service in order::services(table) {
        let key = &service.entry.service.key;
        let _ = writeln!(text, "-A {}", ServiceOptions(&service.entry.service));
        for entry in order::destinations(&service.destinations) {
            let _ = writeln!(
                text,
                "-a {} {}",
                KeyOption(key),
                DestinationOptions(&entry.destination)
            );
        }
    }
    text
}

/// The `ipvsadm` command line, without `ipvsadm`.
impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NewService(service) => write!(f, "-A {}", ServiceOptions(service)),
            Self::SetService(service) => write!(f, "-E {}", ServiceOptions(service)),
            Self::DelService(key) => write!(f, "-D {}", KeyOption(key)),
            Self::NewDestination(key, destination) => {
                let options = DestinationOptions(destination);
                write!(f, "-a {} {options}{}", KeyOption(key), Thresholds(destination))
            }
            Self::SetDestination(key, destination) => {
                let options = DestinationOptions(destination);
                write!(f, "-e {} {options}{}", KeyOption(key), Thresholds(destination))
            }
            Self::DelDestination(key, address) => write!(f, "-d {} -r {address}", KeyOption(key)),
            Self::NewDaemon(daemon) => write!(f, "--start-daemon {}", DaemonOptions(daemon)),
            Self::DelDaemon(role) => write!(f, "--stop-daemon {role}"),
            Self::SetTimeouts(timeouts) => {
                write!(f, "--set {} {} {}", timeouts.tcp, timeouts.tcp_fin, timeouts.udp)
            }
            Self::Zero(None) => f.write_str("-Z"),
            Self::Zero(Some(key)) => write!(f, "-Z {}", KeyOption(key)),
            Self::Flush => f.write_str("-C"),
        }
    }
}

/// A service as a line of the listing.
struct Listed<'a>(&'a Service);

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let service = self.0;
        match service.key {
            ServiceKey::Address {
                address,
                protocol,
                port,
            } => {
                let protocol = protocol.to_string().to_ascii_uppercase();
                write!(f, "{protocol:<4} {}", SocketAddr::new(address, port))?;
            }
            ServiceKey::Fwmark {
                family: Family::Inet,
                mark,
            } => write!(f, "FWM  {}", mark.cast_signed())?,
            ServiceKey::Fwmark {
                family: Family::Inet6,
                mark,
            } => write!(f, "FWM  {} IPv6", mark.cast_signed())?,
        }
        write!(f, " {}", service.scheduler)?;
        if has_scheduler_flags(service) {
            write!(f, " ({})", SchedulerFlags(service))?;
        }
        if service.flags.contains(ServiceFlags::PERSISTENT) {
            write!(f, " persistent {}", service.timeout)?;
            if let Some(mask) = mask(service) {
                write!(f, " mask {mask}")?;
            }
            if let Some(engine) = service.persistence_engine {
                write!(f, " pe {engine}")?;
            }
        }
        if service.flags.contains(ServiceFlags::ONE_PACKET) {
            f.write_str(" ops")?;
        }
        Ok(())
    }
}

/// `-t 10.0.0.1:80`, `-f 5 -6`.
struct KeyOption<'a>(&'a ServiceKey);

impl fmt::Display for KeyOption<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self.0 {
            ServiceKey::Address {
                address,
                protocol,
                port,
            } => {
                let option = match protocol {
                    Protocol::Tcp => "-t",
                    Protocol::Udp => "-u",
                    Protocol::Sctp => "--sctp-service",
                };
                write!(f, "{option} {}", SocketAddr::new(address, port))
            }
            ServiceKey::Fwmark { family, mark } => match family {
                Family::Inet => write!(f, "-f {mark}"),
                Family::Inet6 => write!(f, "-f {mark} -6"),
            },
        }
    }
}

struct ServiceOptions<'a>(&'a Service);

impl fmt::Display for ServiceOptions<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let service = self.0;
        write!(f, "{} -s {}", KeyOption(&service.key), service.scheduler)?;
        if service.flags.contains(ServiceFlags::PERSISTENT) {
            write!(f, " -p {}", service.timeout)?;
            if let Some(mask) = mask(service) {
                write!(f, " -M {mask}")?;
            }
        }
        if let Some(engine) = service.persistence_engine {
            write!(f, " --pe {engine}")?;
        }
        if service.flags.contains(ServiceFlags::ONE_PACKET) {
            f.write_str(" -o")?;
        }
        if has_scheduler_flags(service) {
            write!(f, " -b {}", SchedulerFlags(service))?;
        }
        Ok(())
    }
}

/// The persistence mask, unless it tells each client from the other.
fn mask(service: &Service) -> Option<String> {
    let family = service.key.family();
    (service.netmask != Netmask::host(family)).then(|| match family {
        Family::Inet => service.netmask.to_ipv4().to_string(),
        Family::Inet6 => service
            .netmask
            .prefix_length()
            .map_or_else(String::new, |length| length.to_string()),
    })
}

fn has_scheduler_flags(service: &Service) -> bool {
    let all = ServiceFlags::SCHED_1 | ServiceFlags::SCHED_2 | ServiceFlags::SCHED_3;
    !(service.flags & all).is_empty()
}

/// The names that a scheduler's flags have.
fn scheduler_flag_names(scheduler: &str) -> &'static [(ServiceFlags, &'static str)] {
    match scheduler {
        "sh" => &[
            (ServiceFlags::SH_FALLBACK, "sh-fallback"),
            (ServiceFlags::SH_PORT, "sh-port"),
        ],
        "mh" => &[
            (ServiceFlags::MH_FALLBACK, "mh-fallback"),
            (ServiceFlags::MH_PORT, "mh-port"),
        ],
        _ => &[
            (ServiceFlags::SCHED_1, "flag-1"),
            (ServiceFlags::SCHED_2, "flag-2"),
            (ServiceFlags::SCHED_3, "flag-3"),
        ],
    }
}

/// `mh-fallback,mh-port`.
struct SchedulerFlags<'a>(&'a Service);

impl fmt::Display for SchedulerFlags<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for (flag, name) in scheduler_flag_names(self.0.scheduler.as_str()) {
            if self.0.flags.contains(*flag) {
                write!(f, "{separator}{name}")?;
                separator = ",";
            }
        }
        Ok(())
    }
}

/// `-r 10.0.0.2:80 -m -w 1`.
struct DestinationOptions<'a>(&'a Destination);

impl fmt::Display for DestinationOptions<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let destination = self.0;
        let forwarding = match destination.forwarding {
            Forwarding::Masquerade => "-m",
            Forwarding::Tunnel(_) => "-i",
            Forwarding::Local | Forwarding::DirectRoute => "-g",
            Forwarding::Bypass | Forwarding::Unassigned(_) => "(null)",
        };
        let (address, weight) = (destination.socket_addr(), destination.weight);
        write!(f, "-r {address} {forwarding} -w {weight}")?;
        match destination.forwarding {
            Forwarding::Tunnel(TunnelType::Ipip) => f.write_str(" --tun-type ipip"),
            Forwarding::Tunnel(TunnelType::Gue { port, flags }) => {
                write!(f, " --tun-type gue --tun-port {port}{}", TunnelFlagOptions(flags))
            }
            Forwarding::Tunnel(TunnelType::Gre { flags }) => {
                write!(f, " --tun-type gre{}", TunnelFlagOptions(flags))
            }
            _ => Ok(()),
        }
    }
}

struct TunnelFlagOptions(TunnelFlags);

impl fmt::Display for TunnelFlagOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == TunnelFlags::NONE {
            return f.write_str(" --tun-nocsum");
        }
        if self.0.contains(TunnelFlags::CHECKSUM) {
            f.write_str(" --tun-csum")?;
        }
        if self.0.contains(TunnelFlags::REMOTE_CHECKSUM) {
            f.write_str(" --tun-remcsum")?;
        }
        Ok(())
    }
}

struct Thresholds<'a>(&'a Destination);

impl fmt::Display for Thresholds<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.upper_threshold != 0 {
            write!(f, " -x {}", self.0.upper_threshold)?;
        }
        if self.0.lower_threshold != 0 {
            write!(f, " -y {}", self.0.lower_threshold)?;
        }
        Ok(())
    }
}

struct DaemonOptions<'a>(&'a SyncDaemon);

impl fmt::Display for DaemonOptions<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let daemon = self.0;
        let (role, interface, id) = (daemon.role, &daemon.interface, daemon.sync_id);
        write!(f, "{role} --mcast-interface {interface} --syncid {id}")?;
        if let Some(length) = daemon.max_length {
            write!(f, " --sync-maxlen {length}")?;
        }
        if let Some(group) = daemon.group {
            write!(f, " --mcast-group {group}")?;
        }
        if let Some(port) = daemon.port {
            write!(f, " --mcast-port {port}")?;
        }
        if let Some(ttl) = daemon.ttl {
            write!(f, " --mcast-ttl {ttl}")?;
        }
        Ok(())
    }
}

fn forwarding_name(forwarding: Forwarding) -> &'static str {
    match forwarding {
        Forwarding::Masquerade => "Masq",
        Forwarding::Local => "Local",
        Forwarding::Tunnel(_) => "Tunnel",
        Forwarding::DirectRoute => "Route",
        Forwarding::Bypass | Forwarding::Unassigned(_) => "(null)",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DestinationEntry, ServiceEntry, Stats, Version};

    /// What `ipvsadm` 1.31 printed for one table on Linux 6.12.
    const SAVED: &str = include_str!("../../tests/ipvsadm-1.31/save");
    const LISTED: &str = include_str!("../../tests/ipvsadm-1.31/list");

    /// The table that a saved text would make.
    fn table(text: &str) -> Vec<VirtualService> {
        let mut table: Vec<VirtualService> = Vec::new();
        for command in parse(text).unwrap() {
            match command {
                Command::NewService(service) => table.push(VirtualService {
                    entry: ServiceEntry {
                        service,
                        stats: Stats::default(),
                    },
                    destinations: Vec::new(),
                }),
                Command::NewDestination(key, destination) => {
                    let service = table.last_mut().unwrap();
                    assert_eq!(service.entry.service.key, key);
                    service.destinations.push(DestinationEntry {
                        destination,
                        active_connections: 0,
                        inactive_connections: 0,
                        persistent_connections: 0,
                        stats: Stats::default(),
                    });
                }
                other => panic!("{other} in a saved table"),
            }
        }
        table
    }

    #[test]
    fn a_table_is_saved_as_ipvsadm_saves_it() {
        assert_eq!(save(&table(SAVED)), SAVED);
    }

    #[test]
    fn a_table_is_listed_as_ipvsadm_lists_it() {
        let info = Info {
            version: Version(0x01_02_01),
            connection_table_size: 4096,
        };
        assert_eq!(list(&info, &table(SAVED)), LISTED);
    }

    #[test]
    fn connection_counts_are_listed() {
        let mut table = table("-A -t 10.0.0.1:80 -s rr\n-a -t 10.0.0.1:80 -r 10.1.0.1:8080 -m -w 65535\n");
        table[0].destinations[0].active_connections = 12;
        table[0].destinations[0].inactive_connections = 1_234_567_890;
        let info = Info {
            version: Version(0x01_02_01),
            connection_table_size: 1 << 20,
        };
        let lines: Vec<String> = list(&info, &table).lines().map(str::to_owned).collect();
        assert_eq!(lines[0], "IP Virtual Server version 1.2.1 (size=1048576)");
        assert_eq!(
            lines[4],
            "  -> 10.1.0.1:8080                Masq    65535  12         1234567890"
        );
    }

    #[test]
    fn a_commands_thresholds_are_not_saved() {
        let text = "-a -t 10.0.0.1:80 -r 10.1.0.1:8080 -m -w 1 -x 10 -y 5";
        assert_eq!(text.parse::<Command>().unwrap().to_string(), text);
        let table = table(&format!("-A -t 10.0.0.1:80 -s rr\n{text}\n"));
        assert_eq!(
            save(&table),
            "-A -t 10.0.0.1:80 -s rr\n-a -t 10.0.0.1:80 -r 10.1.0.1:8080 -m -w 1\n"
        );
    }
}
