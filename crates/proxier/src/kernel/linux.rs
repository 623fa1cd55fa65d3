//! The real kernel.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fs,
    net::{IpAddr, Ipv4Addr},
};

use ipvs::{
    Command, Destination, DestinationSummary, Family, Forwarding, ForwardingKind, Handle, Protocol,
    Scheduler, ServiceKey, TunnelType,
};
use tracing::{info, warn};

use super::{
    Event, Failure, FailureKind, Kernel, Observed,
    conntrack::{self, Conntrack, Flow},
    link::{self, Link},
    netfilter::{self, Element, Netfilter, Ruleset},
    sysctl::{self, KernelVersion},
};
use crate::{
    config::{Config, LocalDetector, Timeouts},
    source_ports::SourcePorts,
    step::{Operation, RealServer},
    takeover::{self, Upstream},
};

/// Where a scheduler is tried out: an address for documentation (RFC 5737), which no Service has.
const PROBE_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 0));
const PROBE_PORT: u16 = 20000;

/// Of up to as many virtual servers IPVS is asked for each; of more, everything is read at once.
const ASKED_ONE_BY_ONE: usize = 100;

/// Why the kernel cannot be used. Nothing of the proxier works then.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// IPVS is missing, or refused what everything rests on.
    #[error(transparent)]
    Ipvs(#[from] ipvs::Error),
    /// nftables is missing, or refused our table.
    #[error(transparent)]
    Netfilter(#[from] netfilter::Error),
    /// kube-ipvs0 or the node's addresses cannot be had.
    #[error(transparent)]
    Link(#[from] link::Error),
    /// Connection tracking cannot be asked.
    #[error(transparent)]
    Conntrack(#[from] conntrack::Error),
    /// A kernel setting that Services depend on cannot be made.
    #[error(transparent)]
    Sysctl(#[from] sysctl::Error),
    /// What upstream's kube-proxy has left cannot be read.
    #[error(transparent)]
    Upstream(#[from] takeover::Error),
    /// The kernel has neither IPv4 nor IPv6.
    #[error("this kernel has nftables for no address family: load the module nf_tables")]
    NoFamily,
}

/// The kernel of the network namespace that the calling thread is in.
#[derive(Debug)]
pub struct Linux {
    ipvs: Handle,
    netfilter: Netfilter,
    link: Link,
    conntrack: Conntrack,
    families: Vec<Family>,
    ruleset: Ruleset,
    timeouts: Timeouts,
    /// What upstream's kube-proxy has left, until it is removed.
    upstream: Option<Upstream>,
    /// The elements of those families in which upstream's rules go on sending flows to endpoints. Our table takes
    /// their place all at once, when everything is programmed that it stands for.
    waiting: HashMap<Family, BTreeSet<Element>>,
}

impl Linux {
    /// The address families that this kernel has and that are programmed.
    pub fn families(&self) -> &[Family] {
        &self.families
    }

    /// Makes the kernel ready: sees that everything is there, then sets what all Services share: sysctls,
    /// timeouts, the nftables tables' chains and kube-ipvs0. What is so already is not written.
    ///
    /// # Errors
    ///
    /// The first thing that is missing. As a rule nothing has been changed then.
    pub async fn prepare(config: &Config) -> Result<Self, Error> {
        let mut netfilter = Netfilter::connect()?;
        let conntrack = Conntrack::connect()?;
        let (mut ipvs, link, families) = initialize(config).await?;
        if families.len() == 1 {
            info!("this kernel has no IPv6, or has it switched off: IPv4 only");
        }
        warn_of_keepalive(ipvs.timeouts().await?.tcp);
        let mut upstream = Upstream::connect()?;
        let mut waiting = HashMap::new();
        let mut ruleset = ruleset(config);
        ruleset.source_ports = source_ports(&mut netfilter, &families).await?;
        let mut supported = Vec::new();
        for family in families {
            let foreign = netfilter.is_foreign(family).await;
            let made = match foreign {
                Ok(foreign) if foreign || upstream.translates(family).await? => {
                    info!(
                        "upstream's rules go on sending flows to endpoints until all is programmed, {family}"
                    );
                    waiting.insert(family, BTreeSet::new());
                    Ok(false)
                }
                Ok(_) => netfilter.ensure_base(family, &ruleset).await,
                Err(error) => Err(error),
            };
            match made {
                Ok(_) => supported.push(family),
                Err(netfilter::Error::NotSupported) => warn!("this kernel has no nftables for {family}"),
                Err(error) => return Err(error.into()),
            }
        }
        if supported.is_empty() {
            return Err(Error::NoFamily);
        }
        Ok(Self {
            ipvs,
            netfilter,
            link,
            conntrack,
            families: supported,
            ruleset,
            timeouts: config.timeouts,
            upstream: Some(upstream),
            waiting,
        })
    }

    /// Does that part of [`prepare`](Self::prepare) for which programming may lack the privilege (F5): modules,
    /// sysctls, timeouts, kube-ipvs0.
    ///
    /// # Errors
    ///
    /// The first thing that is missing.
    pub async fn initialize(config: &Config) -> Result<(), Error> {
        initialize(config).await.map(drop)
    }

    /// Reads what the kernel holds, other programs' packet filters included, and compares what all Services share with
    /// what [`prepare`](Self::prepare) would make of it: each difference is a sentence. Nothing is changed.
    ///
    /// # Errors
    ///
    /// Something could not be read.
    pub async fn inspect(config: &Config) -> Result<(Observed, Vec<String>), Error> {
        let mut kernel = Self {
            ipvs: Handle::connect().await?,
            netfilter: Netfilter::connect()?,
            link: Link::connect()?,
            conntrack: Conntrack::connect()?,
            families: families(),
            ruleset: ruleset(config),
            timeouts: config.timeouts,
            upstream: Some(Upstream::connect()?),
            waiting: HashMap::new(),
        };
        kernel.ruleset.source_ports = source_ports(&mut kernel.netfilter, &kernel.families).await?;
        let mut differences = Vec::new();
        for family in &kernel.families {
            if !kernel.netfilter.has_base(*family, &kernel.ruleset).await? {
                differences.push(format!(
                    "the nftables table for {family} is missing, or not as we make it"
                ));
            }
        }
        if !kernel.link.exists().await? {
            differences.push(format!("the link {} is missing", link::SERVICE_LINK));
        }
        let ipv6 = kernel.families.contains(&Family::Inet6);
        let sysctls = sysctl::plan(KernelVersion::current(), &config.strict_arp, ipv6);
        let conntrack = sysctl::conntrack(&config.conntrack, sysctl::cpus());
        differences.extend(
            sysctl::differing(&[sysctls, conntrack].concat())
                .map(|sysctl| format!("sysctl {} is not {}", sysctl.name, sysctl.value)),
        );
        if let Some(timeouts) = timeouts_to_set(&mut kernel.ipvs, config.timeouts).await? {
            differences.push(format!(
                "the timeouts of IPVS are not {} s for TCP, {} s after a FIN, {} s for UDP",
                timeouts.tcp, timeouts.tcp_fin, timeouts.udp
            ));
        }
        let observed = Observed {
            foreign_drops: kernel.netfilter.foreign_drops().await?,
            ..kernel.holds().await?
        };
        Ok((observed, differences))
    }

    /// Carries out either updates of elements or changes of the ports.
    async fn apply_netfilter(&mut self, operations: &[&Operation]) -> BTreeMap<usize, Failure> {
        if let [Operation::SourcePorts(source_ports)] = operations {
            let failure = self.set_source_ports(*source_ports).await.err();
            return failure
                .map(|error| (0, Failure::unknown(&error)))
                .into_iter()
                .collect();
        }
        let updates: Vec<_> = operations.iter().filter_map(netfilter_update).collect();
        let failures = self.update_elements(&updates).await.into_iter();
        failures
            .filter_map(|(index, error)| Some((index, of_netfilter(updates.get(index)?, error)?)))
            .collect()
    }

    async fn set_source_ports(&mut self, source_ports: SourcePorts) -> Result<(), netfilter::Error> {
        self.ruleset.source_ports = source_ports;
        self.ensure_bases().await.map(drop)
    }

    /// Makes the tables as the ruleset has them; returns the families of those that were not. Where a table waits to
    /// take the place of upstream's rules, it is made of the ruleset then.
    async fn ensure_bases(&mut self) -> Result<Vec<Family>, netfilter::Error> {
        let mut made = Vec::new();
        for family in &self.families {
            if !self.waiting.contains_key(family)
                && self.netfilter.ensure_base(*family, &self.ruleset).await?
            {
                made.push(*family);
            }
        }
        Ok(made)
    }

    async fn read(&mut self) -> Result<Observed, Error> {
        if set_timeouts(&mut self.ipvs, self.timeouts).await? {
            warn!("the timeouts of IPVS had been changed, and are as configured again");
        }
        for family in self.ensure_bases().await? {
            warn!("the nftables table for {family} had been changed, and is ours again");
        }
        if self.link.ensure().await? {
            warn!("{} had gone, and is back", link::SERVICE_LINK);
        }
        let foreign_drops = match self.netfilter.see_to_foreign().await {
            Ok(drops) => drops,
            // Services work as well as without.
            Err(error) => {
                warn!("cannot see what other programs' packet filters drop: {error}");
                Vec::new()
            }
        };
        Ok(Observed {
            foreign_drops,
            ..self.holds().await?
        })
    }

    /// Everything that concerns Services.
    async fn holds(&mut self) -> Result<Observed, Error> {
        let mut observed = Observed {
            families: self.families.clone(),
            source_ports: self.ruleset.source_ports,
            ..Observed::default()
        };
        for family in &self.families {
            match self.waiting.get(family) {
                Some(elements) => observed.elements.extend(elements),
                None => observed.elements.extend(self.netfilter.elements(*family).await?),
            }
        }
        if let Some(upstream) = &mut self.upstream {
            observed.records = upstream.records().await?;
        }
        let addresses = self.link.addresses().await?;
        (observed.own_addresses, observed.addresses) = (addresses.node, addresses.service);
        for (entry, destinations) in self.ipvs.summary().await? {
            observed.counters.push((entry.service.key, entry.stats.into()));
            let destinations = destinations.into_iter().map(destination).collect();
            observed.servers.push((entry.service, destinations));
        }
        Ok(observed)
    }

    async fn update_elements(&mut self, updates: &[netfilter::Update]) -> BTreeMap<usize, netfilter::Error> {
        if self.waiting.is_empty() {
            return self.netfilter.update(updates).await;
        }
        let (mut places, mut now) = (Vec::new(), Vec::new());
        for (place, update) in updates.iter().enumerate() {
            match (self.waiting.get_mut(&update.family()), update) {
                (Some(waiting), netfilter::Update::Add(element)) => _ = waiting.insert(*element),
                (Some(waiting), netfilter::Update::Remove(element)) => _ = waiting.remove(element),
                (None, update) => {
                    places.push(place);
                    now.push(*update);
                }
            }
        }
        let failures = self.netfilter.update(&now).await.into_iter();
        failures
            .filter_map(|(index, error)| Some((*places.get(index)?, error)))
            .collect()
    }

    async fn count_connections(
        &mut self,
        servers: &HashSet<ServiceKey>,
    ) -> Result<HashMap<RealServer, u64>, ipvs::Error> {
        let mut counted = HashMap::new();
        if servers.len() > ASKED_ONE_BY_ONE {
            for (entry, destinations) in self.ipvs.summary().await? {
                counted.extend(connections(entry.service.key, destinations));
            }
            return Ok(counted);
        }
        for server in servers {
            let dumped = self.ipvs.find_destinations(server).await?;
            let destinations = dumped.into_iter().flatten().map(DestinationSummary::from);
            counted.extend(connections(*server, destinations));
        }
        Ok(counted)
    }

    async fn replace_upstream(&mut self) -> Result<(), Error> {
        for family in self.families.clone() {
            let Some(elements) = self.waiting.get(&family) else {
                continue;
            };
            self.netfilter
                .replace_table(family, &self.ruleset, elements.iter().copied())
                .await?;
            self.waiting.remove(&family);
            info!("our nftables table is in the place of upstream's rules, {family}");
        }
        let Some(upstream) = &mut self.upstream else {
            return Ok(());
        };
        // Upstream's KUBE-FORWARD admits them until now (C6).
        self.netfilter.ensure_answers().await?;
        let mut outcome = Ok(());
        for error in upstream.remove(true).await {
            match error {
                error @ takeover::Error::Netfilter(_) => outcome = Err(error.into()),
                error => warn!("left of upstream's kube-proxy: {error}"),
            }
        }
        if outcome.is_ok() {
            self.upstream = None;
        }
        outcome
    }
}

pub(super) fn ruleset(config: &Config) -> Ruleset {
    Ruleset {
        masquerade_bit: config.masquerade_bit,
        masquerade_all: config.masquerade_all,
        local_detector: config.local_detector.clone(),
        fully_random: config.masquerade_fully_random,
        source_ports: SourcePorts::default(),
    }
}

/// From which ports the kernel masquerades. What node ports have once demanded stays, or a restart would write (I6).
async fn source_ports(
    netfilter: &mut Netfilter,
    families: &[Family],
) -> Result<SourcePorts, netfilter::Error> {
    for family in families {
        match netfilter.source_ports(*family).await {
            Ok(Some(source_ports)) => return Ok(source_ports),
            Ok(None) | Err(netfilter::Error::NotSupported) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(SourcePorts::default())
}

async fn initialize(config: &Config) -> Result<(Handle, Link, Vec<Family>), Error> {
    // This loads ip_vs, and with it nf_conntrack, whose sysctls follow (Q48).
    let mut ipvs = Handle::connect().await?;
    let mut link = Link::connect()?;
    probe_scheduler(&mut ipvs, &config.scheduler).await?;
    let families = families();
    let ipv6 = families.contains(&Family::Inet6);
    let sysctls = sysctl::plan(KernelVersion::current(), &config.strict_arp, ipv6);
    let conntrack = sysctl::conntrack(&config.conntrack, sysctl::cpus());
    for change in sysctl::ensure(&[sysctls, conntrack.clone()].concat())? {
        info!("sysctl {change}");
    }
    sysctl::ensure_conntrack_buckets(&conntrack);
    set_timeouts(&mut ipvs, config.timeouts).await?;
    link.ensure().await?;
    Ok((ipvs, link, families))
}

/// A connection that IPVS forgets before its ends look whether it is still there hangs (A7).
fn warn_of_keepalive(timeout: u32) {
    if let Some(keepalive) = sysctl::value("net.ipv4.tcp_keepalive_time").filter(|time| *time > timeout) {
        warn!(
            "IPVS forgets TCP connections that are idle for {timeout} s, and this node's first keepalive comes after \
             {keepalive} s: set --ipvs-tcp-timeout, or net.ipv4.tcp_keepalive_time where the clients are"
        );
    }
}

/// IPv4, and IPv6 unless the kernel lacks it or has it switched off (E5). A kernel with IPVS always has IPv4; whether
/// its nftables has is seen when the table is made.
fn families() -> Vec<Family> {
    let disabled = fs::read_to_string("/proc/sys/net/ipv6/conf/all/disable_ipv6");
    match disabled.is_ok_and(|text| text.trim() == "0") {
        true => vec![Family::Inet, Family::Inet6],
        false => vec![Family::Inet],
    }
}

/// Sees whether the kernel has a scheduler, which loads its module, before anything is programmed.
async fn probe_scheduler(ipvs: &mut Handle, scheduler: &Scheduler) -> Result<(), ipvs::Error> {
    if ipvs
        .services()
        .await?
        .iter()
        .any(|entry| entry.service.scheduler == *scheduler)
    {
        return Ok(());
    }
    let key = ServiceKey::Address {
        address: PROBE_ADDRESS,
        protocol: Protocol::Tcp,
        port: PROBE_PORT,
    };
    let probe = ipvs::Service::new(key, *scheduler);
    match ipvs.execute(&Command::NewService(probe)).await {
        // Left behind by a probe that was killed.
        Err(error) if error.is_already_exists() => {}
        result => result?,
    }
    ipvs.execute(&Command::DelService(key)).await
}

/// Returns whether they had to be changed.
async fn set_timeouts(ipvs: &mut Handle, timeouts: Timeouts) -> Result<bool, ipvs::Error> {
    match timeouts_to_set(ipvs, timeouts).await? {
        Some(timeouts) => ipvs.execute(&Command::SetTimeouts(timeouts)).await.map(|()| true),
        None => Ok(false),
    }
}

/// The timeouts that IPVS is to have, if it has others. Where zero is configured, it keeps its own.
async fn timeouts_to_set(
    ipvs: &mut Handle,
    timeouts: Timeouts,
) -> Result<Option<ipvs::Timeouts>, ipvs::Error> {
    if timeouts == Timeouts::default() {
        return Ok(None);
    }
    let seconds = |duration: std::time::Duration| u32::try_from(duration.as_secs()).unwrap_or(u32::MAX);
    let has = ipvs.timeouts().await?;
    let or_kept = |wanted: std::time::Duration, has: u32| match seconds(wanted) {
        0 => has,
        seconds => seconds,
    };
    let wants = ipvs::Timeouts {
        tcp: or_kept(timeouts.tcp, has.tcp),
        tcp_fin: or_kept(timeouts.tcp_fin, has.tcp_fin),
        udp: or_kept(timeouts.udp, has.udp),
    };
    Ok((wants != has).then_some(wants))
}

fn destination(read: DestinationSummary) -> Destination {
    Destination {
        weight: read.weight,
        forwarding: match read.forwarding {
            ForwardingKind::Masquerade => Forwarding::Masquerade,
            ForwardingKind::Local => Forwarding::Local,
            ForwardingKind::Tunnel => Forwarding::Tunnel(TunnelType::default()),
            ForwardingKind::DirectRoute => Forwarding::DirectRoute,
        },
        ..Destination::new(read.address)
    }
}

impl Kernel for Linux {
    async fn observe(&mut self) -> Result<Observed, Failure> {
        self.read().await.map_err(|error| Failure::unknown(&error))
    }

    async fn detect_local(&mut self, detector: LocalDetector) -> Result<(), Failure> {
        // Where it fails now, the next reading makes up for it.
        self.ruleset.local_detector = detector;
        let ensured = self.ensure_bases().await.map(drop);
        ensured.map_err(|error| Failure::unknown(&error))
    }

    async fn apply(&mut self, operations: &[&Operation]) -> BTreeMap<usize, Failure> {
        match operations.first() {
            Some(Operation::Netfilter(_) | Operation::SourcePorts(_)) => {
                let (mut done, mut failures) = (0, BTreeMap::new());
                let updates = |operation: &&Operation| netfilter_update(operation).is_some();
                for group in operations.chunk_by(|a, b| updates(a) == updates(b)) {
                    let failed = self.apply_netfilter(group).await.into_iter();
                    failures.extend(failed.map(|(index, failure)| (done + index, failure)));
                    done += group.len();
                }
                failures
            }
            Some(Operation::Ipvs(_)) => {
                let commands = operations.iter().filter_map(ipvs_command);
                let failures = self.ipvs.batch(commands).await.into_iter();
                let failure = |(index, error)| {
                    let command = operations.get(index).and_then(ipvs_command)?;
                    Some((index, of_ipvs(command, error)?))
                };
                failures.filter_map(failure).collect()
            }
            Some(Operation::Link(_)) => {
                let updates: Vec<_> = operations.iter().filter_map(link_update).collect();
                let failures = self.link.update(&updates).await.into_iter();
                failures
                    .filter_map(|(index, error)| Some((index, of_link(updates.get(index)?, error)?)))
                    .collect()
            }
            None => BTreeMap::new(),
        }
    }

    async fn own_addresses(&mut self) -> Result<Vec<IpAddr>, Failure> {
        Ok(self
            .link
            .addresses()
            .await
            .map_err(|error| Failure::unknown(&error))?
            .node)
    }

    async fn connections(
        &mut self,
        servers: &HashSet<ServiceKey>,
    ) -> Result<HashMap<RealServer, u64>, Failure> {
        let counted = self.count_connections(servers).await;
        counted.map_err(|error| Failure::unknown(&error))
    }

    async fn take_over(&mut self) -> Result<(), Failure> {
        self.replace_upstream()
            .await
            .map_err(|error| Failure::unknown(&error))
    }

    async fn udp_flows(&mut self, family: Family) -> Result<Vec<Flow>, Failure> {
        let flows = self.conntrack.udp_flows(family).await;
        flows.map_err(|error| Failure::unknown(&error))
    }

    async fn end_flows(&mut self, flows: &[Flow]) -> BTreeMap<usize, Failure> {
        let mut failures = self.conntrack.end(flows).await;
        failures.retain(|_, error| *error != conntrack::Error::NotFound);
        let failures = failures.into_iter();
        failures
            .map(|(index, error)| (index, Failure::unknown(&error)))
            .collect()
    }

    async fn event(&mut self) -> Event {
        tokio::select! {
            event = self.link.event() => match event {
                link::Event::NodeAddressesChanged => Event::NodeAddresses,
                link::Event::ServiceAddress { address, present } => Event::ServiceAddress { address, present },
                link::Event::ServiceLinkGone | link::Event::Missed => Event::Unknown,
            },
            () = self.netfilter.changed() => Event::Unknown,
        }
    }
}

fn netfilter_update(operation: &&Operation) -> Option<netfilter::Update> {
    match operation {
        Operation::Netfilter(update) => Some(*update),
        _ => None,
    }
}

fn ipvs_command<'a>(operation: &&'a Operation) -> Option<&'a Command> {
    match operation {
        Operation::Ipvs(command) => Some(command),
        _ => None,
    }
}

fn link_update(operation: &&Operation) -> Option<link::Update> {
    match operation {
        Operation::Link(update) => Some(*update),
        _ => None,
    }
}

/// What was to go and is not there is as good as gone.
fn of_netfilter(update: &netfilter::Update, error: netfilter::Error) -> Option<Failure> {
    match (update, error) {
        (netfilter::Update::Remove(_), netfilter::Error::NotFound) => None,
        // The table, or its base, has gone or changed under us.
        (_, error @ (netfilter::Error::NotFound | netfilter::Error::Exists)) => {
            Some(Failure::unknown(&error))
        }
        (_, error) if error.outcome_unknown() => Some(Failure::unknown(&error)),
        (_, error) => Some(Failure::refused(&error)),
    }
}

fn of_ipvs(command: &Command, error: ipvs::Error) -> Option<Failure> {
    match command {
        Command::DelService(_) | Command::DelDestination(..) if error.is_not_found() => None,
        // Somebody else was there between our last reading and this.
        _ if error.is_not_found() || error.is_already_exists() || error.is_outcome_unknown() => {
            Some(Failure::unknown(&error))
        }
        _ => Some(Failure::refused(&error)),
    }
}

fn of_link(update: &link::Update, error: link::Error) -> Option<Failure> {
    match (update, error) {
        (link::Update::Remove(_), link::Error::NotFound) => None,
        (_, error @ link::Error::NoLink) => Some(Failure::unknown(&error)),
        (_, error) if error.outcome_unknown() => Some(Failure::unknown(&error)),
        (_, error) => Some(Failure::refused(&error)),
    }
}

fn connections(
    server: ServiceKey,
    destinations: impl IntoIterator<Item = DestinationSummary>,
) -> impl Iterator<Item = (RealServer, u64)> {
    destinations.into_iter().map(move |read| {
        let count = u64::from(read.active_connections) + u64::from(read.inactive_connections);
        ((server, read.address), count)
    })
}

impl Failure {
    fn unknown(error: &dyn std::error::Error) -> Self {
        Self {
            kind: FailureKind::Unknown,
            reason: error.to_string(),
        }
    }

    fn refused(error: &dyn std::error::Error) -> Self {
        Self {
            kind: FailureKind::Refused,
            reason: error.to_string(),
        }
    }
}
