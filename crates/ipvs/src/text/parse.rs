use std::iter::Peekable;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::{FromStr, SplitWhitespace};

use super::scheduler_flag_names;
use crate::{
    Command, DaemonRole, Destination, Family, Forwarding, Netmask, Protocol, Scheduler, Service,
    ServiceFlags, ServiceKey, SyncDaemon, Timeouts, TunnelFlags, TunnelType,
};

/// The timeout of `-p` without a number, in seconds.
const DEFAULT_PERSISTENCE: u32 = 360;

/// What is wrong with a command line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidCommand(String);

/// What is wrong with a text, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {source}")]
pub struct ParseError {
    /// The line, from 1.
    pub line: usize,
    /// What is wrong with it.
    pub source: InvalidCommand,
}

/// Reads command lines, such as [`save`](super::save) and `ipvsadm -Sn` print: numbers only, no names of hosts or
/// ports, and short options where there are. Empty lines and those that begin with `#` are skipped.
///
/// # Errors
///
/// The first line that is no command.
pub fn parse(text: &str) -> Result<Vec<Command>, ParseError> {
    std::iter::zip(1.., text.lines())
        .filter(|(_, line)| !matches!(line.trim_start().chars().next(), None | Some('#')))
        .map(|(number, line)| line.parse().map_err(|source| ParseError { line: number, source }))
        .collect()
}

/// The `ipvsadm` command line, without `ipvsadm`.
impl FromStr for Command {
    type Err = InvalidCommand;

    fn from_str(line: &str) -> Result<Self, Self::Err> {
        let mut words = Words(line.split_whitespace().peekable());
        let words = &mut words;
        let command = match words.next("a command")? {
            "-A" => Self::NewService(service(words)?),
            "-E" => Self::SetService(service(words)?),
            "-D" => Self::DelService(key(words)?),
            "-a" => {
                let key = key(words)?;
                Self::NewDestination(key, destination(words, &key)?)
            }
            "-e" => {
                let key = key(words)?;
                Self::SetDestination(key, destination(words, &key)?)
            }
            "-d" => {
                let key = key(words)?;
                words.expect("-r")?;
                Self::DelDestination(key, words.value("-r")?)
            }
            "--start-daemon" => Self::NewDaemon(daemon(words)?),
            "--stop-daemon" => Self::DelDaemon(role(words)?),
            "--set" => Self::SetTimeouts(Timeouts {
                tcp: words.value("--set")?,
                tcp_fin: words.value("--set")?,
                udp: words.value("--set")?,
            }),
            "-Z" if words.is_empty() => Self::Zero(None),
            "-Z" => Self::Zero(Some(key(words)?)),
            "-C" => Self::Flush,
            other => return Err(invalid(format!("{other} is not a command"))),
        };
        match words.0.next() {
            None => Ok(command),
            Some(word) => Err(unexpected(word)),
        }
    }
}

/// The words of a command line that are not read yet.
struct Words<'a>(Peekable<SplitWhitespace<'a>>);

impl<'a> Words<'a> {
    fn is_empty(&mut self) -> bool {
        self.0.peek().is_none()
    }

    fn next(&mut self, wanted: &str) -> Result<&'a str, InvalidCommand> {
        self.0
            .next()
            .ok_or_else(|| invalid(format!("{wanted} is missing")))
    }

    fn expect(&mut self, option: &str) -> Result<(), InvalidCommand> {
        let word = self.next(option)?;
        (word == option)
            .then_some(())
            .ok_or_else(|| invalid(format!("{word} stands where {option} should")))
    }

    /// The value of an option.
    fn value<T: FromStr>(&mut self, option: &str) -> Result<T, InvalidCommand> {
        value(self.next(&format!("a value of {option}"))?, option)
    }
}

fn value<T: FromStr>(word: &str, option: &str) -> Result<T, InvalidCommand> {
    word.parse()
        .map_err(|_| invalid(format!("{word} is not a value of {option}")))
}

fn invalid(message: String) -> InvalidCommand {
    InvalidCommand(message)
}

fn unexpected(word: &str) -> InvalidCommand {
    invalid(format!("{word} does not belong here"))
}

fn key(words: &mut Words<'_>) -> Result<ServiceKey, InvalidCommand> {
    let option = words.next("a service")?;
    let protocol = match option {
        "-t" => Protocol::Tcp,
        "-u" => Protocol::Udp,
        "--sctp-service" => Protocol::Sctp,
        "-f" => {
            let number: i64 = words.value("-f")?;
            // ipvsadm prints marks from 2^31 on as negative numbers.
            let mark = u32::try_from(number)
                .or_else(|_| i32::try_from(number).map(i32::cast_unsigned))
                .map_err(|_| invalid(format!("{number} is not a mark")))?;
            let family = match words.0.next_if_eq(&"-6") {
                Some(_) => Family::Inet6,
                None => Family::Inet,
            };
            return Ok(ServiceKey::Fwmark { family, mark });
        }
        other => return Err(invalid(format!("{other} is not a service"))),
    };
    Ok(ServiceKey::address(words.value(option)?, protocol))
}

fn service(words: &mut Words<'_>) -> Result<Service, InvalidCommand> {
    let mut service = Service::new(key(words)?, Scheduler::WEIGHTED_LEAST_CONNECTION);
    while let Some(option) = words.0.next() {
        match option {
            "-s" => service.scheduler = words.value(option)?,
            "-p" => {
                service.flags |= ServiceFlags::PERSISTENT;
                service.timeout = match words.0.next_if(|word| !word.starts_with('-')) {
                    Some(word) => value(word, option)?,
                    None => DEFAULT_PERSISTENCE,
                };
            }
            "-M" => {
                service.netmask = match service.key.family() {
                    Family::Inet => words.value::<Ipv4Addr>(option)?.into(),
                    Family::Inet6 => Netmask::prefix(words.value(option)?),
                };
            }
            "--pe" => service.persistence_engine = Some(words.value(option)?),
            "-o" => service.flags |= ServiceFlags::ONE_PACKET,
            "-b" => {
                for name in words.next("a value of -b")?.split(',') {
                    service.flags |= scheduler_flag(&service.scheduler, name)?;
                }
            }
            other => return Err(unexpected(other)),
        }
    }
    Ok(service)
}

fn scheduler_flag(scheduler: &Scheduler, name: &str) -> Result<ServiceFlags, InvalidCommand> {
    // Each scheduler's flags also go by their numbers.
    let numbered = scheduler_flag_names("");
    scheduler_flag_names(scheduler.as_str())
        .iter()
        .chain(numbered)
        .find(|(_, known)| *known == name)
        .map(|(flag, _)| *flag)
        .ok_or_else(|| invalid(format!("{name} is not a flag of the scheduler {scheduler}")))
}

fn destination(words: &mut Words<'_>, key: &ServiceKey) -> Result<Destination, InvalidCommand> {
    words.expect("-r")?;
    let server = words.next("a value of -r")?;
    let address = match (server.parse(), server.parse::<IpAddr>(), key) {
        (Ok(address), ..) => address,
        // Without a port it is the service's.
        (_, Ok(address), ServiceKey::Address { port, .. }) => SocketAddr::new(address, *port),
        (_, Ok(address), ServiceKey::Fwmark { .. }) => SocketAddr::new(address, 0),
        _ => return Err(invalid(format!("{server} is not a value of -r"))),
    };
    let mut destination = Destination {
        forwarding: Forwarding::DirectRoute,
        ..Destination::new(address)
    };
    let mut tunnel = Tunnel::default();
    while let Some(option) = words.0.next() {
        match option {
            "-m" => destination.forwarding = Forwarding::Masquerade,
            "-g" => destination.forwarding = Forwarding::DirectRoute,
            "-i" => destination.forwarding = Forwarding::Tunnel(TunnelType::Ipip),
            "-w" => destination.weight = words.value(option)?,
            "-x" => destination.upper_threshold = words.value(option)?,
            "-y" => destination.lower_threshold = words.value(option)?,
            "--tun-type" => tunnel.name = Some(words.next("a value of --tun-type")?),
            "--tun-port" => tunnel.port = Some(words.value(option)?),
            "--tun-nocsum" => tunnel.flags.push(TunnelFlags::NONE),
            "--tun-csum" => tunnel.flags.push(TunnelFlags::CHECKSUM),
            "--tun-remcsum" => tunnel.flags.push(TunnelFlags::REMOTE_CHECKSUM),
            other => return Err(unexpected(other)),
        }
    }
    match &mut destination.forwarding {
        Forwarding::Tunnel(tunnel_type) => *tunnel_type = tunnel.tunnel_type()?,
        _ if tunnel != Tunnel::default() => {
            return Err(invalid("a tunnel's options without -i".to_owned()));
        }
        _ => {}
    }
    Ok(destination)
}

#[derive(Default, PartialEq, Eq)]
struct Tunnel<'a> {
    name: Option<&'a str>,
    port: Option<u16>,
    flags: Vec<TunnelFlags>,
}

impl Tunnel<'_> {
    fn tunnel_type(self) -> Result<TunnelType, InvalidCommand> {
        let bits = self.flags.iter().fold(0, |bits, flag| bits | flag.bits());
        let flags = TunnelFlags::from_bits(bits);
        match (self.name.unwrap_or("ipip"), self.port) {
            ("ipip", None) if self.flags.is_empty() => Ok(TunnelType::Ipip),
            ("ipip", _) => Err(invalid("a port or checksum for a tunnel of type ipip".to_owned())),
            ("gue", Some(port)) => Ok(TunnelType::Gue { port, flags }),
            ("gue", None) => Err(invalid("--tun-port is missing".to_owned())),
            ("gre", None) => Ok(TunnelType::Gre { flags }),
            ("gre", Some(_)) => Err(invalid("a port for a tunnel of type gre".to_owned())),
            (name, _) => Err(invalid(format!("{name} is not a tunnel type"))),
        }
    }
}

fn role(words: &mut Words<'_>) -> Result<DaemonRole, InvalidCommand> {
    match words.next("master or backup")? {
        "master" => Ok(DaemonRole::Master),
        "backup" => Ok(DaemonRole::Backup),
        other => Err(invalid(format!("{other} is neither master nor backup"))),
    }
}

fn daemon(words: &mut Words<'_>) -> Result<SyncDaemon, InvalidCommand> {
    let mut daemon = SyncDaemon::new(role(words)?, "eth0", 0);
    while let Some(option) = words.0.next() {
        match option {
            "--mcast-interface" => daemon.interface = words.value(option)?,
            "--syncid" => daemon.sync_id = words.value(option)?,
            "--sync-maxlen" => daemon.max_length = Some(words.value(option)?),
            "--mcast-group" => daemon.group = Some(words.value(option)?),
            "--mcast-port" => daemon.port = Some(words.value(option)?),
            "--mcast-ttl" => daemon.ttl = Some(words.value(option)?),
            other => return Err(unexpected(other)),
        }
    }
    Ok(daemon)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::any_command;

    /// The command as far as `ipvsadm`'s options can say it.
    fn sayable(mut command: Command) -> Option<Command> {
        match &mut command {
            Command::NewService(service) | Command::SetService(service) => {
                if !service.flags.contains(ServiceFlags::PERSISTENT) {
                    service.timeout = 0;
                    service.netmask = Netmask::host(service.key.family());
                }
                // These two have names for two flags only.
                if matches!(service.scheduler.as_str(), "sh" | "mh") {
                    service.flags = service.flags.without(ServiceFlags::SCHED_3);
                }
            }
            Command::NewDestination(_, destination) | Command::SetDestination(_, destination) => {
                match destination.forwarding {
                    Forwarding::Bypass
                    | Forwarding::Unassigned(_)
                    | Forwarding::Tunnel(TunnelType::Other { .. }) => return None,
                    Forwarding::Local => destination.forwarding = Forwarding::DirectRoute,
                    _ => {}
                }
            }
            _ => {}
        }
        Some(command)
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read(command in any_command().prop_filter_map("no options", sayable)) {
            prop_assert_eq!(command.to_string().parse(), Ok(command));
        }

        /// I8
        #[test]
        fn no_text_panics(text: String) {
            let _ = parse(&text);
        }

        /// I8
        #[test]
        fn no_words_panic(words in proptest::collection::vec(
            "-[AEDaedZCtufspMmgiwxyrob6]|--[a-z-]{1,16}|[0-9.:]{1,12}|[a-z]{1,8}", 0..12,
        )) {
            let _ = parse(&words.join(" "));
        }
    }

    fn error(line: &str) -> String {
        line.parse::<Command>().unwrap_err().to_string()
    }

    #[test]
    fn an_error_says_what_and_where() {
        for (line, message) in [
            ("-A", "a service is missing"),
            ("-A -t 10.0.0.1", "10.0.0.1 is not a value of -t"),
            ("-A -t 10.0.0.1:80 -s", "a value of -s is missing"),
            ("-A -t 10.0.0.1:80 -w 1", "-w does not belong here"),
            ("-A -f 4294967296", "4294967296 is not a mark"),
            (
                "-A -t 10.0.0.1:80 -s rr -b mh-port",
                "mh-port is not a flag of the scheduler rr",
            ),
            ("-a -t 10.0.0.1:80 -m", "-m stands where -r should"),
            (
                "-a -t 10.0.0.1:80 -r 10.1.0.1:80 -m --tun-csum",
                "a tunnel's options without -i",
            ),
            (
                "-a -t 10.0.0.1:80 -r 10.1.0.1:80 -i --tun-type gue",
                "--tun-port is missing",
            ),
            ("-C now", "now does not belong here"),
            ("-L", "-L is not a command"),
        ] {
            assert_eq!(error(line), message, "{line}");
        }
        let text = "# made by hand\n\n-A -t 10.0.0.1:80\n-A -t 10.0.0.1:port\n";
        assert_eq!(
            parse(text).unwrap_err().to_string(),
            "line 4: 10.0.0.1:port is not a value of -t"
        );
    }

    #[test]
    fn what_is_left_out_is_as_in_ipvsadm() {
        let at = |line: &str| line.parse::<Command>().unwrap().to_string();
        assert_eq!(at("-A -t 10.0.0.1:80 -p"), "-A -t 10.0.0.1:80 -s wlc -p 360");
        assert_eq!(at("-A -t 10.0.0.1:80 -p -s rr"), "-A -t 10.0.0.1:80 -s rr -p 360");
        assert_eq!(
            at("-a -t 10.0.0.1:80 -r 10.1.0.1"),
            "-a -t 10.0.0.1:80 -r 10.1.0.1:80 -g -w 1"
        );
        assert_eq!(at("-D -f -1"), "-D -f 4294967295");
    }
}
