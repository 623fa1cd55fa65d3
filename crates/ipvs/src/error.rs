use std::fmt;
use std::net::SocketAddr;

use netlink_batch::{Errno, KernelError};

use crate::{Command, DaemonRole, Family, PersistenceEngine, Scheduler, ServiceKey};

/// Why the kernel did not do what it was asked to, or why that is not known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no generic netlink family `IPVS`, and the kernel could not load it.
    #[error("this kernel has no IPVS: load the module ip_vs, or install the kernel package that it is in")]
    NotSupported,
    /// IPVS asks for `CAP_NET_ADMIN` in the initial user namespace, whatever the network namespace.
    #[error("IPVS needs the capability CAP_NET_ADMIN in the initial user namespace")]
    PermissionDenied,
    /// The family of the service or destination is switched off in this kernel.
    #[error("{0} is switched off in this kernel")]
    FamilyNotSupported(Family),
    /// No module has the scheduler.
    #[error("this kernel has no scheduler {0}: load or install the module ip_vs_{0}")]
    NoSuchScheduler(Scheduler),
    /// No module has the scheduler, or none has the persistence engine: the kernel does not say which.
    #[error(
        "this kernel has no scheduler {scheduler} or no persistence engine {persistence_engine}: load or \
         install the modules ip_vs_{scheduler} and ip_vs_pe_{persistence_engine}"
    )]
    NoSuchSchedulerOrEngine {
        /// The scheduler that was asked for.
        scheduler: Scheduler,
        /// The persistence engine that was asked for.
        persistence_engine: PersistenceEngine,
    },
    /// There is no such service.
    #[error("there is no virtual service {0}")]
    NoSuchService(ServiceKey),
    /// The service has no such destination.
    #[error("virtual service {0} has no destination {1}")]
    NoSuchDestination(ServiceKey, SocketAddr),
    /// No such daemon runs.
    #[error("no {0} sync daemon runs")]
    NoSuchDaemon(DaemonRole),
    /// There is no interface to run the daemon on.
    #[error("there is no interface {0}")]
    NoSuchInterface(String),
    /// There is such a service.
    #[error("there is a virtual service {0} already")]
    ServiceExists(ServiceKey),
    /// The service has such a destination.
    #[error("virtual service {0} has a destination {1} already")]
    DestinationExists(ServiceKey, SocketAddr),
    /// Such a daemon runs.
    #[error("a {0} sync daemon runs already")]
    DaemonExists(DaemonRole),
    /// The kernel refused the command for another reason.
    #[error("the kernel refused `ipvsadm {command}`: {source}{}", Hint(hint(.command, .source.errno)))]
    Refused {
        /// The command.
        command: Box<Command>,
        /// The kernel's reason.
        source: KernelError,
    },
    /// The answer lacks something that every kernel sends.
    #[error("cannot make sense of the kernel's answer: {0}")]
    Decode(String),
    /// The socket failed, or the kernel refused a query.
    #[error(transparent)]
    Netlink(#[from] netlink_batch::Error),
}

impl Error {
    /// Whether the service, destination or daemon is not there.
    pub const fn is_not_found(&self) -> bool {
        matches!(
            self,
            Self::NoSuchService(_) | Self::NoSuchDestination(..) | Self::NoSuchDaemon(_)
        )
    }

    /// Whether the service, destination or daemon is there already.
    pub const fn is_already_exists(&self) -> bool {
        matches!(
            self,
            Self::ServiceExists(_) | Self::DestinationExists(..) | Self::DaemonExists(_)
        )
    }

    /// Whether the kernel may or may not have executed the command: its answer was lost. Only a look at its
    /// state settles it.
    pub fn is_outcome_unknown(&self) -> bool {
        matches!(self, Self::Netlink(error) if error.outcome_unknown())
    }

    /// What an error of the socket means for a command.
    pub(crate) fn of_command(command: &Command, error: netlink_batch::Error) -> Self {
        let netlink_batch::Error::Kernel(source) = error else {
            return Self::Netlink(error);
        };
        // ip_vs_genl_set_cmd() and ip_vs_genl_set_daemon() in net/netfilter/ipvs/ip_vs_ctl.c. ESRCH is always the
        // service; ENOENT is what it lacks, or what the kernel lacks to make it.
        match (command, source.errno) {
            (_, Errno::PERM) => Self::PermissionDenied,
            (Command::NewService(service) | Command::SetService(service), Errno::NOENT) => {
                match service.persistence_engine {
                    None => Self::NoSuchScheduler(service.scheduler),
                    Some(persistence_engine) => Self::NoSuchSchedulerOrEngine {
                        scheduler: service.scheduler,
                        persistence_engine,
                    },
                }
            }
            (Command::NewService(service), Errno::EXIST) => Self::ServiceExists(service.key),
            (Command::SetService(service), Errno::SRCH) => Self::NoSuchService(service.key),
            (
                Command::DelService(key)
                | Command::Zero(Some(key))
                | Command::NewDestination(key, _)
                | Command::SetDestination(key, _)
                | Command::DelDestination(key, _),
                Errno::SRCH,
            ) => Self::NoSuchService(*key),
            (Command::NewDestination(key, destination), Errno::EXIST) => {
                Self::DestinationExists(*key, destination.socket_addr())
            }
            (Command::SetDestination(key, destination), Errno::NOENT) => {
                Self::NoSuchDestination(*key, destination.socket_addr())
            }
            (Command::DelDestination(key, address), Errno::NOENT) => Self::NoSuchDestination(*key, *address),
            (
                Command::NewService(_) | Command::NewDestination(..) | Command::SetDestination(..),
                Errno::AFNOSUPPORT,
            ) => Self::FamilyNotSupported(Family::Inet6),
            (Command::NewDaemon(daemon), Errno::EXIST) => Self::DaemonExists(daemon.role),
            (Command::NewDaemon(daemon), Errno::NODEV) => Self::NoSuchInterface(daemon.interface.clone()),
            (Command::DelDaemon(role), Errno::SRCH) => Self::NoSuchDaemon(*role),
            _ => Self::Refused {
                command: Box::new(command.clone()),
                source,
            },
        }
    }

    /// What an error of the socket means for a query, about one service or not.
    pub(crate) fn of_query(service: Option<&ServiceKey>, error: netlink_batch::Error) -> Self {
        match (error.errno(), service) {
            (Some(Errno::PERM), _) => Self::PermissionDenied,
            (Some(Errno::SRCH), Some(key)) => Self::NoSuchService(*key),
            _ => Self::Netlink(error),
        }
    }
}

/// What the kernel means by an errno that can mean several things.
fn hint(command: &Command, errno: Errno) -> Option<&'static str> {
    match (command, errno) {
        (Command::NewService(_) | Command::SetService(_), Errno::INVAL) => {
            Some("the fwmark is 0, or the IPv6 prefix length not from 1 to 128")
        }
        (Command::NewDestination(..) | Command::SetDestination(..), Errno::RANGE) => {
            Some("the weight is above 2147483647, or the lower threshold above the upper")
        }
        (Command::NewDestination(..) | Command::SetDestination(..), Errno::INVAL) => Some(
            "the address is not a unicast one, or of another family than the service (which only tunnels may be, \
             and only while no sync daemon runs), or the GUE port is 0",
        ),
        (Command::SetTimeouts(_), Errno::INVAL) => Some("a timeout is too long"),
        (Command::NewDaemon(_), Errno::INVAL) => Some(
            "the interface's name is longer than 15 bytes, or the group is not a multicast address, or a \
                 destination is of another family than its service",
        ),
        _ => None,
    }
}

struct Hint(Option<&'static str>);

impl fmt::Display for Hint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |hint| write!(f, " ({hint})"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Destination, Protocol, Service, SyncDaemon, Timeouts};

    fn key() -> ServiceKey {
        ServiceKey::address("10.0.0.1:80".parse().unwrap(), Protocol::Tcp)
    }

    fn message(command: &Command, errno: Errno) -> String {
        let error = KernelError { errno, message: None };
        Error::of_command(command, error.into()).to_string()
    }

    #[test]
    fn an_errno_means_what_the_command_makes_of_it() {
        let service = Service::new(key(), Scheduler::ROUND_ROBIN);
        let mut sip = service;
        sip.persistence_engine = Some("sip".parse().unwrap());
        let server: SocketAddr = "10.1.0.1:8080".parse().unwrap();
        let destination = Destination::new(server);
        let daemon = SyncDaemon::new(DaemonRole::Master, "eth7", 1);
        for (command, errno, words) in [
            (
                Command::NewService(service),
                Errno::NOENT,
                "this kernel has no scheduler rr: load or install the module ip_vs_rr",
            ),
            (
                Command::SetService(sip),
                Errno::NOENT,
                "this kernel has no scheduler rr or no persistence engine sip: load or install the modules \
                 ip_vs_rr and ip_vs_pe_sip",
            ),
            (
                Command::NewService(service),
                Errno::EXIST,
                "there is a virtual service TCP 10.0.0.1:80 already",
            ),
            (
                Command::SetService(service),
                Errno::SRCH,
                "there is no virtual service TCP 10.0.0.1:80",
            ),
            (
                Command::DelService(key()),
                Errno::SRCH,
                "there is no virtual service TCP 10.0.0.1:80",
            ),
            (
                Command::NewDestination(key(), destination),
                Errno::SRCH,
                "there is no virtual service TCP 10.0.0.1:80",
            ),
            (
                Command::NewDestination(key(), destination),
                Errno::EXIST,
                "virtual service TCP 10.0.0.1:80 has a destination 10.1.0.1:8080 already",
            ),
            (
                Command::SetDestination(key(), destination),
                Errno::NOENT,
                "virtual service TCP 10.0.0.1:80 has no destination 10.1.0.1:8080",
            ),
            (
                Command::DelDestination(key(), server),
                Errno::NOENT,
                "virtual service TCP 10.0.0.1:80 has no destination 10.1.0.1:8080",
            ),
            (
                Command::NewDaemon(daemon.clone()),
                Errno::NODEV,
                "there is no interface eth7",
            ),
            (
                Command::NewDaemon(daemon),
                Errno::EXIST,
                "a master sync daemon runs already",
            ),
            (
                Command::DelDaemon(DaemonRole::Backup),
                Errno::SRCH,
                "no backup sync daemon runs",
            ),
            (
                Command::Flush,
                Errno::PERM,
                "IPVS needs the capability CAP_NET_ADMIN in the initial user namespace",
            ),
            (
                Command::SetTimeouts(Timeouts::default()),
                Errno::INVAL,
                "the kernel refused `ipvsadm --set 0 0 0`: Invalid argument (os error 22) (a timeout is too long)",
            ),
        ] {
            assert_eq!(message(&command, errno), words, "{command} {errno}");
        }
    }

    #[test]
    fn predicates() {
        let server = "10.1.0.1:8080".parse().unwrap();
        assert!(Error::NoSuchDestination(key(), server).is_not_found());
        assert!(!Error::NoSuchScheduler(Scheduler::ROUND_ROBIN).is_not_found());
        assert!(Error::ServiceExists(key()).is_already_exists());
        assert!(Error::from(netlink_batch::Error::Overrun).is_outcome_unknown());
        assert!(!Error::PermissionDenied.is_outcome_unknown());
    }
}
