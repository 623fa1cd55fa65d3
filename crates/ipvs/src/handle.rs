use std::collections::BTreeMap;
use std::fmt;

use foldhash::HashMap;
use netlink_batch::{Errno, KernelError, Socket};
use netlink_packet_core::{DecodeError, Emitable, NetlinkMessage, ParseableParametrized};
use netlink_packet_generic::ctrl::nlas::GenlCtrlAttrs;
use netlink_packet_generic::ctrl::{GenlCtrl, GenlCtrlCmd};
use netlink_packet_generic::{GenlFamily, GenlHeader, GenlMessage};
use netlink_sys::protocols::NETLINK_GENERIC;

use crate::proc;
use crate::sockopt::SockOpt;
use crate::wire::{IpvsCmd, IpvsMessage, ListedService, Query};
use crate::{
    Command, DestinationEntry, DestinationSummary, Error, Family, Info, ServiceEntry, ServiceKey, SyncDaemon,
    Timeouts, VirtualService,
};

/// The IPVS of the network namespace in which it was connected.
///
/// The kernel has no notifications for IPVS: what others change is seen by asking again. It reads its table piece by
/// piece, finds its place again by counting, and has no mark of consistency. So what is added or deleted during a
/// dump may be missing from it, and something else too. That goes for every network namespace: the table is one. Look
/// again before acting on what is *not* in a dump.
pub struct Handle {
    socket: Socket,
    family_id: u16,
    sockopt: SockOpt,
}

/// Without the socket's buffers.
impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle")
            .field("family_id", &self.family_id)
            .finish_non_exhaustive()
    }
}

impl Handle {
    /// Opens a socket and looks the family up, by which the kernel loads the module `ip_vs`.
    ///
    /// # Errors
    ///
    /// [`Error::NotSupported`] if the kernel has no such module.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime with I/O and time enabled.
    pub async fn connect() -> Result<Self, Error> {
        let mut socket = Socket::connect(NETLINK_GENERIC)?;
        let family_id = family_id(&mut socket).await?;
        let sockopt = SockOpt::open().map_err(netlink_batch::Error::Open)?;
        Ok(Self {
            socket,
            family_id,
            sockopt,
        })
    }

    /// Executes commands in order and returns what failed, by its index. A command that fails stops none of those that
    /// follow.
    ///
    /// A thousand commands are about one system call and one acknowledgement.
    #[must_use = "what failed"]
    pub async fn batch<'a>(
        &mut self,
        commands: impl IntoIterator<Item = &'a Command> + Clone,
    ) -> BTreeMap<usize, Error> {
        let mut failures = self.send(commands.clone()).await;
        // ENOENT is also the answer to a family id that is gone: then none was executed.
        if !failures.is_empty()
            && failures.values().all(is_enoent)
            && failures.len() == commands.clone().into_iter().count()
        {
            match self.family_moved().await {
                Ok(false) => {}
                Ok(true) => failures = self.send(commands.clone()).await,
                Err(error) => return failures.into_keys().map(|index| (index, error.clone())).collect(),
            }
        }
        let mut commands = commands.into_iter().enumerate();
        let of_command = |(index, error)| {
            let (_, command) = commands.find(|(known, _)| *known == index)?;
            Some((index, Error::of_command(command, error)))
        };
        failures.into_iter().filter_map(of_command).collect()
    }

    /// Executes one command.
    ///
    /// # Errors
    ///
    /// What the kernel's errno means for this command.
    pub async fn execute(&mut self, command: &Command) -> Result<(), Error> {
        let failures = self.batch([command]).await;
        failures.into_values().next().map_or(Ok(()), Err)
    }

    /// Dumps all services (`IPVS_CMD_GET_SERVICE`). Services of a protocol other than those of
    /// [`Protocol`](crate::Protocol) are left out: no packet reaches them.
    ///
    /// # Errors
    ///
    /// A dump is complete or an error.
    pub async fn services(&mut self) -> Result<Vec<ServiceEntry>, Error> {
        let listed: Vec<ListedService> = self
            .dump(Query {
                cmd: IpvsCmd::GetService,
                about: None,
            })
            .await?;
        Ok(listed.into_iter().filter_map(|service| service.0).collect())
    }

    /// One service.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchService`] if there is none.
    pub async fn service(&mut self, key: &ServiceKey) -> Result<ServiceEntry, Error> {
        let request = Query {
            cmd: IpvsCmd::GetService,
            about: Some(*key),
        };
        let answer = self.request(request).await?;
        let entry = answer.service_entry().map_err(decode)?;
        entry.ok_or(Error::NoSuchService(*key))
    }

    /// Dumps the destinations of a service (`IPVS_CMD_GET_DEST`), the one added last first.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchService`] if there is no such service. A dump is complete or an error.
    pub async fn destinations(&mut self, key: &ServiceKey) -> Result<Vec<DestinationEntry>, Error> {
        let answers: Vec<IpvsMessage> = self
            .dump(Query {
                cmd: IpvsCmd::GetDestination,
                about: Some(*key),
            })
            .await?;
        if answers.is_empty() {
            // So the kernel also answers when there is no such service.
            self.service(key).await?;
        }
        let entries = answers
            .iter()
            .map(|answer| answer.destination_entry(key.family()));
        entries.collect::<Result<_, _>>().map_err(decode)
    }

    /// The same; `None` if there is no such service, as when it was deleted since it was listed.
    ///
    /// # Errors
    ///
    /// A dump is complete or an error.
    pub async fn find_destinations(
        &mut self,
        key: &ServiceKey,
    ) -> Result<Option<Vec<DestinationEntry>>, Error> {
        match self.destinations(key).await {
            Err(Error::NoSuchService(_)) => Ok(None),
            destinations => destinations.map(Some),
        }
    }

    /// All services with their destinations: one dump, and one more for each service. Where weights and connection
    /// counts will do, [`Handle::summary`] takes a fraction of the time.
    ///
    /// # Errors
    ///
    /// A dump is complete or an error. A service that is deleted meanwhile is left out.
    pub async fn table(&mut self) -> Result<Vec<VirtualService>, Error> {
        let mut table = Vec::new();
        for entry in self.services().await? {
            if let Some(destinations) = self.find_destinations(&entry.service.key).await? {
                table.push(VirtualService { entry, destinations });
            }
        }
        Ok(table)
    }

    /// All services with the weights and connection counts of their destinations: one dump, and for the destinations
    /// of each IPv4 service a call of [`getsockopt`](crate::sockopt). Those of IPv6 are read in one pass from
    /// [`/proc/net/ip_vs`](mod@proc), for which the calling thread has to be in the network namespace in which the
    /// handle was connected, with a dump for each service that the file misses.
    ///
    /// # Errors
    ///
    /// A dump is complete or an error. A service that is deleted meanwhile is left out. The file is allowed to fail.
    pub async fn summary(&mut self) -> Result<Vec<(ServiceEntry, Vec<DestinationSummary>)>, Error> {
        let services = self.services().await?;
        let is_ipv6 = |entry: &ServiceEntry| entry.service.key.family() == Family::Inet6;
        let mut listed = match services.iter().any(is_ipv6) {
            true => listed_ipv6(),
            false => HashMap::default(),
        };
        let mut summary = Vec::with_capacity(services.len());
        for entry in services {
            let destinations = self.summarise(&entry.service.key, &mut listed).await?;
            summary.extend(destinations.map(|destinations| (entry, destinations)));
        }
        Ok(summary)
    }

    async fn summarise(
        &mut self,
        key: &ServiceKey,
        listed: &mut HashMap<ServiceKey, Vec<DestinationSummary>>,
    ) -> Result<Option<Vec<DestinationSummary>>, Error> {
        if key.family() == Family::Inet {
            return self.sockopt.destinations(key).map_err(|errno| {
                let refused = KernelError { errno, message: None };
                Error::of_query(Some(key), refused.into())
            });
        }
        if let Some(destinations) = listed.remove(key) {
            return Ok(Some(destinations));
        }
        let dumped = self.find_destinations(key).await?;
        Ok(dumped.map(|dumped| dumped.into_iter().map(DestinationSummary::from).collect()))
    }

    /// The version, and the size of the connection table (`IPVS_CMD_GET_INFO`).
    ///
    /// # Errors
    ///
    /// If the kernel cannot be asked.
    pub async fn info(&mut self) -> Result<Info, Error> {
        let answer = self
            .request(Query {
                cmd: IpvsCmd::GetInfo,
                about: None,
            })
            .await?;
        answer.info().map_err(decode)
    }

    /// The timeouts (`IPVS_CMD_GET_CONFIG`).
    ///
    /// # Errors
    ///
    /// If the kernel cannot be asked.
    pub async fn timeouts(&mut self) -> Result<Timeouts, Error> {
        let answer = self
            .request(Query {
                cmd: IpvsCmd::GetConfig,
                about: None,
            })
            .await?;
        Ok(answer.timeouts())
    }

    /// The sync daemons that run (`IPVS_CMD_GET_DAEMON`): none, one, or master and backup.
    ///
    /// # Errors
    ///
    /// A dump is complete or an error.
    pub async fn daemons(&mut self) -> Result<Vec<SyncDaemon>, Error> {
        let answers: Vec<IpvsMessage> = self
            .dump(Query {
                cmd: IpvsCmd::GetDaemon,
                about: None,
            })
            .await?;
        let daemons = answers.iter().map(IpvsMessage::sync_daemon);
        daemons.collect::<Result<_, _>>().map_err(decode)
    }

    async fn send<'a>(
        &mut self,
        commands: impl IntoIterator<Item = &'a Command>,
    ) -> BTreeMap<usize, netlink_batch::Error> {
        let family_id = self.family_id;
        let messages = commands.into_iter().map(|command| message(command, family_id));
        self.socket.batch(messages).await
    }

    async fn dump<F: ParseableParametrized<[u8], GenlHeader> + fmt::Debug>(
        &mut self,
        request: Query,
    ) -> Result<Vec<F>, Error> {
        let answers = match self.socket.dump(message(request, self.family_id)).await {
            Err(error) if error.errno() == Some(Errno::NOENT) && self.family_moved().await? => {
                self.socket.dump(message(request, self.family_id)).await
            }
            answers => answers,
        };
        let answers = answers.map_err(|error| Error::of_query(None, error))?;
        Ok(answers.into_iter().map(payload).collect())
    }

    async fn request(&mut self, request: Query) -> Result<IpvsMessage, Error> {
        let answers = match self.socket.request(message(request, self.family_id)).await {
            Err(error) if error.errno() == Some(Errno::NOENT) && self.family_moved().await? => {
                self.socket.request(message(request, self.family_id)).await
            }
            answers => answers,
        };
        let answers = answers.map_err(|error| Error::of_query(request.about.as_ref(), error))?;
        let answer = answers.into_iter().map(payload).next();
        answer.ok_or_else(|| Error::Decode("it is empty".to_owned()))
    }

    /// Looks the family up again: a module that was unloaded and loaded has another id. Returns whether it has.
    async fn family_moved(&mut self) -> Result<bool, Error> {
        let family_id = family_id(&mut self.socket).await?;
        Ok(std::mem::replace(&mut self.family_id, family_id) != family_id)
    }
}

/// What the kernel's file has of IPv6.
fn listed_ipv6() -> HashMap<ServiceKey, Vec<DestinationSummary>> {
    let services = proc::read().unwrap_or_default().into_iter();
    let keyed = services.filter_map(|service| Some((service.service_key()?, service.destinations)));
    keyed.filter(|(key, _)| key.family() == Family::Inet6).collect()
}

fn is_enoent(error: &netlink_batch::Error) -> bool {
    error.errno() == Some(Errno::NOENT)
}

/// Asks the generic netlink controller for the number of the family.
async fn family_id(socket: &mut Socket) -> Result<u16, Error> {
    let name = IpvsMessage::family_name().to_owned();
    let request = GenlCtrl {
        cmd: GenlCtrlCmd::GetFamily,
        nlas: vec![GenlCtrlAttrs::FamilyName(name)],
    };
    let answers: Vec<GenlMessage<GenlCtrl>> = match socket.request(message(request, 0)).await {
        Err(error) if error.errno() == Some(Errno::NOENT) => return Err(Error::NotSupported),
        answers => answers?,
    };
    answers
        .iter()
        .flat_map(|answer| &answer.payload.nlas)
        .find_map(|attribute| match attribute {
            GenlCtrlAttrs::FamilyId(id) => Some(*id),
            _ => None,
        })
        .ok_or_else(|| Error::Decode("CTRL_ATTR_FAMILY_ID is missing".to_owned()))
}

fn message<F: GenlFamily + Emitable + fmt::Debug>(
    payload: F,
    family_id: u16,
) -> NetlinkMessage<GenlMessage<F>> {
    let mut message = GenlMessage::from_payload(payload);
    message.set_resolved_family_id(family_id);
    message.into()
}

fn payload<F>(message: GenlMessage<F>) -> F {
    message.payload
}

fn decode(error: DecodeError) -> Error {
    Error::Decode(error.to_string())
}
