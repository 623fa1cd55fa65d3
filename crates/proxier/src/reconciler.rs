//! The loop: changes in, batches out, and what is known of the kernel kept true.

use std::{
    collections::{HashMap, HashSet},
    future::pending,
    time::Duration,
};

use ipvs::{Command, Family, Protocol, ServiceKey};
use tokio::{
    sync::mpsc::UnboundedReceiver,
    task::yield_now,
    time::{Instant, sleep_until},
};
use tracing::{debug, error, info, trace, warn};

use crate::{
    accounting::Accounting,
    applied::Applied,
    config::{Config, LocalDetector},
    drain::Draining,
    flows,
    kernel::{Event, Failure, FailureKind, Kernel, netfilter::foreign::ForeignDrop},
    model::Change,
    planner::{Planned, Planner},
    report::{Observer, Occasion, Report, Sync, Totals, Work},
    step::{Key, Operation, Step},
};

/// How many Services share the first batch; while others wait, each batch has twice as many as the one before it, up to
/// [`SERVICES_PER_LATER_BATCH`]. The first ones of a start are in force while others are planned, and a change that arrives
/// meanwhile waits for one batch only; but each batch is a transaction of nftables, for which the kernel takes its time.
const SERVICES_PER_BATCH: usize = 500;
const SERVICES_PER_LATER_BATCH: usize = 4000;

/// How many changes are received at once. Those that wait behind them come before anything else; a list of all that exists
/// would stay as long as a start made it.
const CHANGES_AT_ONCE: usize = 256;

/// How often draining real servers are looked at.
const DRAIN_PERIOD: Duration = Duration::from_secs(1);

/// The least time between two readings of the kernel.
const VERIFY_MIN_PERIOD: Duration = Duration::from_secs(1);

/// Of more virtual servers than [`VERIFY_FEW`], verifications that find all well are made so rarely that they take this part
/// of one processor, even where that is less often than the synchronisation period; but not more rarely than
/// [`VERIFY_MAX_PERIOD`], because what took so long may have been the machine.
const VERIFY_SHARE: u32 = 1000;
const VERIFY_FEW: usize = 1000;
const VERIFY_MAX_PERIOD: Duration = Duration::from_secs(15 * 60);

/// Services that wait, more than which have what everything else in the cluster needs programmed before them (B2): a batch
/// of its own costs as much as a hundred more of them.
const ALONE_BEFORE: usize = 100;

/// What failed is tried again after this time, then after twice the last time, up to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);

/// Keeps the kernel in step with the Services that a source describes.
#[derive(Debug)]
pub struct Reconciler<K> {
    planner: Planner,
    kernel: K,
    applied: Applied,
    draining: Draining,
    failures: foldhash::HashMap<Key, Retry>,
    families: Vec<Family>,
    local_detector: LocalDetector,
    observer: Observer,
    /// Whether it was reported that changes wait.
    queued: bool,
    /// Whether the kernel held nothing of ours at the start. It is programmed while the source is still sending.
    fresh: bool,
    /// Whether all that exists has been programmed once. Before, nothing is removed that was found (I6).
    complete: bool,
    /// Whether nothing is left of another kube-proxy's that stands in our place.
    taken_over: bool,
    verified_at: Instant,
    verify_at: Instant,
    batch_at: Instant,
    /// How many Services the next batch may have.
    batch_size: usize,
    drain_at: Instant,
    foreign_drops: Vec<ForeignDrop>,
    accounting: Accounting,
}

/// What was done on one occasion, so far.
struct Progress {
    occasion: Occasion,
    started: Instant,
    work: Vec<Work>,
    failed: bool,
    /// Whether UDP flows may lead astray now.
    flows_astray: bool,
    /// The virtual servers of UDP that are gone.
    gone: HashSet<ServiceKey>,
}

impl Progress {
    fn begin(occasion: Occasion) -> Self {
        Self {
            occasion,
            started: Instant::now(),
            work: Vec::new(),
            failed: false,
            flows_astray: false,
            gone: HashSet::new(),
        }
    }

    /// Takes note of what the kernel has done.
    fn note(&mut self, step: &Step) {
        let (Key::Server(server), Operation::Ipvs(command)) = (step.key, &step.operation) else {
            return;
        };
        if server.protocol() != Some(Protocol::Udp) {
            return;
        }
        match command {
            // Flows to an address that was not a Service's so far know nothing of IPVS.
            Command::NewService(_) | Command::DelDestination(..) => self.flows_astray = true,
            Command::DelService(key) => {
                self.flows_astray = true;
                self.gone.extend((*key == server).then_some(server));
            }
            _ => {}
        }
    }
}

/// When an object that failed is tried again.
#[derive(Clone, Debug)]
struct Retry {
    reason: String,
    delay: Duration,
    at: Instant,
}

impl<K: Kernel> Reconciler<K> {
    /// Reads what the kernel holds. Nothing is written yet. `observer` is told of all that is done, in the midst of it, on
    /// the thread that does it: it must not block.
    ///
    /// # Errors
    ///
    /// Fails if the kernel cannot be read.
    pub async fn new(
        config: Config,
        mut kernel: K,
        observer: impl FnMut(Report) + Send + 'static,
    ) -> Result<Self, Failure> {
        let mut observed = kernel.observe().await?;
        let foreign_drops = std::mem::take(&mut observed.foreign_drops);
        let now = Instant::now();
        let verify_at = now + config.sync_period;
        let (families, own_addresses) = (observed.families.clone(), observed.own_addresses.clone());
        let applied = Applied::new(observed, &config.exclude_cidrs);
        let fresh = applied.keys().next().is_none();
        let local_detector = config.local_detector.clone();
        let mut planner = Planner::new(config, families.clone(), own_addresses);
        planner.adopt(&applied);
        let mut reconciler = Self {
            planner,
            kernel,
            applied,
            draining: Draining::default(),
            failures: foldhash::HashMap::default(),
            families,
            local_detector,
            observer: Observer::new(observer),
            queued: false,
            fresh,
            complete: false,
            taken_over: false,
            verified_at: now,
            verify_at,
            batch_at: now,
            batch_size: SERVICES_PER_BATCH,
            drain_at: now,
            foreign_drops: Vec::new(),
            accounting: Accounting::default(),
        };
        reconciler.note_foreign_drops(foreign_drops);
        Ok(reconciler)
    }

    /// Runs until the source hangs up. The kernel's state stays as it is then.
    pub async fn run(mut self, mut changes: UnboundedReceiver<Change>) {
        let mut received = Vec::new();
        loop {
            self.tell_queued();
            let synced = self.planner.is_synced();
            let batch_at = self.is_batch_due().then_some(self.batch_at);
            let verify_at = synced.then_some(self.verify_at);
            let drain_at = (!self.draining.is_empty()).then_some(self.drain_at);
            let retry_at = self.failures.values().map(|retry| retry.at).min();
            tokio::select! {
                biased;
                // Everything that is pending shares the next batch (B3).
                count = changes.recv_many(&mut received, CHANGES_AT_ONCE) => match count {
                    0 => return,
                    _ => self.take(received.drain(..)).await,
                },
                event = self.kernel.event() => self.react(event).await,
                () = at(batch_at) => self.batch().await,
                () = at(verify_at) => self.verify().await,
                () = at(drain_at) => self.look_at_draining().await,
                () = at(retry_at) => self.retry().await,
            }
        }
    }

    async fn take(&mut self, changes: impl Iterator<Item = Change>) {
        changes.for_each(|change| self.planner.take(change));
        let detector = self.planner.local_detector();
        if detector != self.local_detector {
            info!("clients in the cluster are told from others by {detector:?} now");
            if let Err(failure) = self.kernel.detect_local(detector.clone()).await {
                warn!("cannot replace the nftables rules: {failure}");
                self.verify_soon();
            }
            self.local_detector = detector;
        }
    }

    async fn react(&mut self, event: Event) {
        match event {
            Event::NodeAddresses => match self.kernel.own_addresses().await {
                Ok(addresses) => self.planner.set_own_addresses(addresses.into_iter().collect()),
                Err(failure) => {
                    warn!("cannot read the node's addresses: {failure}");
                    self.verify_soon();
                }
            },
            Event::ServiceAddress { address, present } => {
                if present != self.applied.addresses.contains(&address) {
                    self.verify_soon();
                }
            }
            Event::Unknown => self.verify_soon(),
        }
    }

    /// The kernel may not hold what we think.
    fn verify_soon(&mut self) {
        self.verify_at = self.verify_at.min(self.verified_at + VERIFY_MIN_PERIOD);
    }

    /// Whether there is enough to do for a batch. While the source is still sending what exists, a node that was found
    /// programmed stays as it is (I6), and one that was not has a batch as soon as one is full.
    fn is_batch_due(&self) -> bool {
        if self.planner.is_synced() {
            return self.planner.is_behind() || !self.complete;
        }
        let full = self.planner.is_kubernetes_api_next() || self.planner.behind() >= self.batch_size;
        self.fresh && self.planner.has_node() && full
    }

    /// Plans the Services that have waited longest and brings the kernel in step with them.
    async fn batch(&mut self) {
        let mut progress = Progress::begin(Occasion::Change);
        let synced = self.planner.is_synced();
        if synced && !self.complete {
            let room = self.planner.behind();
            self.planner.reserve(room);
            self.applied.reserve(room);
        }
        let alone =
            self.planner.is_kubernetes_api_next() && (!synced || self.planner.behind() > ALONE_BEFORE);
        let mut planned = self.planner.plan_next(if alone { 1 } else { self.batch_size });
        self.batch_size = match !synced || self.planner.is_behind() {
            true if alone => self.batch_size,
            true => (2 * self.batch_size).min(SERVICES_PER_LATER_BATCH),
            false => SERVICES_PER_BATCH,
        };
        let keys = std::mem::take(&mut planned.keys);
        self.reconcile(keys, &mut progress).await;
        if synced && !self.planner.is_behind() && !self.complete {
            self.complete = true;
            progress.flows_astray = true;
            // All that exists is programmed: what else is ours is left over from before.
            let leftovers = self.leftovers().collect();
            self.reconcile(leftovers, &mut progress).await;
            let now = Instant::now();
            self.applied
                .quiescent()
                .for_each(|server| self.draining.note_quiescent(server, now));
            self.take_over().await;
            info!("in sync");
        }
        for (service, status) in planned.statuses.drain() {
            self.observer.tell(Report::Service(service, status));
        }
        self.finish(progress, planned).await;
        self.batch_at = Instant::now() + self.planner.config().min_sync_period;
        // The kernel never lets us wait: whoever shares the thread, such as the source, has its turn now.
        yield_now().await;
    }

    fn tell_queued(&mut self) {
        if self.planner.is_behind() && !self.queued {
            self.queued = true;
            self.observer.tell(Report::Queued {
                at: Instant::now().into_std(),
            });
        }
    }

    /// Ends what the new state leaves astray, and tells of what was done.
    async fn finish(&mut self, progress: Progress, planned: Planned) {
        if progress.flows_astray && self.complete {
            self.end_stale_flows(&progress.gone).await;
        }
        self.tell_sync(progress, planned);
    }

    /// Ends the UDP flows that lead to where nobody wants them to (A5), found in the kernel's own table and not by
    /// what has happened: others that came before us may have left some (Q30, Q31).
    async fn end_stale_flows(&mut self, gone: &HashSet<ServiceKey>) {
        for family in self.families.clone() {
            let started = Instant::now();
            let stale: Vec<_> = match self.kernel.udp_flows(family).await {
                Ok(flows) => flows
                    .into_iter()
                    .filter(|flow| flows::is_stale(flow, self.planner.wanted(), gone))
                    .collect(),
                Err(failure) => {
                    warn!("cannot see whether {family} UDP flows lead to endpoints that are gone: {failure}");
                    continue;
                }
            };
            let failures = self.kernel.end_flows(&stale).await;
            for (index, flow) in stale.iter().enumerate() {
                match failures.get(&index) {
                    None => trace!("conntrack -D {flow}"),
                    Some(failure) => warn!("cannot end the UDP flow {flow}: {failure}"),
                }
            }
            let deleted = stale.len() - failures.len();
            if deleted > 0 {
                info!("ended {deleted} {family} UDP flows to endpoints that are gone");
            }
            self.observer.tell(Report::Conntrack {
                family,
                duration: started.elapsed(),
                deleted,
            });
        }
    }

    fn tell_sync(&mut self, progress: Progress, planned: Planned) {
        let pending = self.planner.is_behind();
        self.queued &= pending;
        let sync = Sync {
            occasion: progress.occasion,
            families: self.families.clone(),
            started: progress.started.into_std(),
            duration: progress.started.elapsed(),
            services: planned.services,
            work: progress.work,
            triggers: if progress.failed {
                Vec::new()
            } else {
                planned.triggers
            },
            node_port_addresses: self.planner.node_port_addresses().clone(),
            pending,
            complete: self.complete,
            totals: Totals {
                wanted: self.planner.wanted().len(),
                failing: self.failures.len(),
                draining: self.draining.len(),
            },
        };
        debug!(
            occasion = ?sync.occasion,
            services = sync.services,
            operations = sync.work.iter().map(|work| work.operations).sum::<usize>(),
            failures = sync.work.iter().map(|work| work.failures).sum::<usize>(),
            duration = ?sync.duration,
            kernel = ?sync.work.iter().map(|work| work.duration).sum::<Duration>(),
            wanted = sync.totals.wanted,
            failing = sync.totals.failing,
            draining = sync.totals.draining,
            "synced"
        );
        self.observer.tell(Report::Sync(sync));
    }

    /// Leaves nothing of another kube-proxy's in force; what cannot be removed now is tried again at the next
    /// verification.
    async fn take_over(&mut self) {
        match self.kernel.take_over().await {
            Ok(()) => self.taken_over = true,
            Err(failure) => error!("cannot take the place of what another kube-proxy has left: {failure}"),
        }
    }

    /// Makes the kernel hold what is wanted under these keys, as far as it lets us.
    async fn reconcile(&mut self, mut keys: Vec<Key>, progress: &mut Progress) {
        let phases = self
            .planner
            .phases_from(&self.applied, keys.iter().copied(), self.draining.drained());
        let mut failed = self.perform(&phases, progress).await;
        progress.failed |= !failed.is_empty();
        if failed.is_empty() && self.failures.is_empty() {
            return;
        }
        keys.sort_unstable();
        keys.dedup();
        for key in keys {
            match failed.remove(&key) {
                Some(failure) => self.note_failure(key, failure),
                None => {
                    if self.failures.remove(&key).is_some() {
                        info!("{key} is programmed after failures");
                        self.observer.tell(Report::Recovered(key));
                    }
                }
            }
        }
    }

    /// Has the kernel take the steps, phase by phase. An object is left alone from its first failure on; the others go on
    /// (I5).
    async fn perform(&mut self, phases: &[Vec<Step>], progress: &mut Progress) -> HashMap<Key, Failure> {
        let mut failed = HashMap::new();
        for phase in phases {
            let mut steps = Vec::with_capacity(phase.len());
            steps.extend(phase.iter().filter(|step| !failed.contains_key(&step.key)));
            let operations: Vec<_> = steps.iter().map(|step| &step.operation).collect();
            let Some(driver) = operations.first().map(|operation| operation.driver()) else {
                continue;
            };
            let started = Instant::now();
            let failures = self.kernel.apply(&operations).await;
            // One look at the clock for all: it may cost a system call.
            let now = Instant::now();
            progress.work.push(Work {
                driver,
                operations: operations.len(),
                failures: failures.len(),
                duration: now - started,
            });
            for (index, failure) in &failures {
                if failure.kind == FailureKind::Unknown {
                    self.verify_soon();
                }
                if let Some(step) = steps.get(*index) {
                    failed.entry(step.key).or_insert_with(|| failure.clone());
                }
            }
            let mut index = 0..;
            steps.retain(|_| index.next().is_some_and(|index| !failures.contains_key(&index)));
            for step in &steps {
                trace!("{}", step.operation);
                progress.note(step);
                if let Operation::Ipvs(command) = &step.operation {
                    self.draining.note(command, now);
                }
            }
            self.applied.record(steps.iter().map(|step| &step.operation));
        }
        failed
    }

    /// Logs a failure once for as long as it stays the same, and has it tried again.
    fn note_failure(&mut self, key: Key, failure: Failure) {
        let known = self.failures.get(&key);
        if known.is_none_or(|retry| retry.reason != failure.reason) {
            error!("cannot program {key}: {failure}");
            let owner = |server| self.planner.wanted().owner(&server);
            let service = key.server().and_then(owner).cloned();
            self.observer.tell(Report::Failing {
                key,
                service,
                reason: failure.reason.clone(),
            });
        }
        let delay = known.map_or(RETRY_MIN, |retry| (2 * retry.delay).min(RETRY_MAX));
        self.failures.insert(
            key,
            Retry {
                reason: failure.reason,
                delay,
                at: Instant::now() + delay,
            },
        );
    }

    async fn retry(&mut self) {
        let now = Instant::now();
        let due = self
            .failures
            .iter()
            .filter(|(_, retry)| retry.at <= now)
            .map(|(key, _)| *key)
            .collect();
        let mut progress = Progress::begin(Occasion::Retry);
        self.reconcile(due, &mut progress).await;
        self.finish(progress, Planned::default()).await;
    }

    /// Reads the kernel again and mends what differs. A reading that fails changes nothing (I3).
    async fn verify(&mut self) {
        let mut progress = Progress::begin(Occasion::Verification);
        self.verified_at = Instant::now();
        self.verify_at = self.verified_at + self.planner.config().sync_period;
        let mut observed = match self.kernel.observe().await {
            Ok(observed) => observed,
            Err(failure) => {
                warn!("cannot read the kernel's state: {failure}");
                self.observer.tell(Report::Unreadable(failure));
                return;
            }
        };
        self.note_foreign_drops(std::mem::take(&mut observed.foreign_drops));
        if self.planner.config().service_metrics {
            self.accounting.take(&observed.counters, self.planner.wanted());
            self.observer
                .tell(Report::Carried(self.accounting.ports().clone()));
        }
        let own_addresses = observed.own_addresses.iter().copied().collect();
        self.applied.renew(observed);
        self.draining.keep(&self.applied.quiescent().collect());
        self.planner.set_own_addresses(own_addresses);
        let mut keys = self.out_of_step();
        if self.complete {
            keys.extend(self.leftovers());
        }
        self.reconcile(keys, &mut progress).await;
        if self.complete && !self.taken_over {
            self.take_over().await;
        }
        progress.flows_astray = true;
        let all_was_well = progress.work.is_empty();
        self.finish(progress, Planned::default()).await;
        let took = self.verified_at.elapsed();
        if all_was_well && self.applied.servers().count() > VERIFY_FEW {
            let period = (VERIFY_SHARE * took).min(VERIFY_MAX_PERIOD);
            self.verify_at = self.verify_at.max(self.verified_at + period);
        }
    }

    /// What the kernel does not hold as it is wanted, and what has failed. As a rule there is nothing.
    fn out_of_step(&self) -> Vec<Key> {
        let drained = self.draining.drained();
        let in_step = |key| self.planner.is_in_step(key, &self.applied, drained);
        let wanted = self.planner.wanted().keys();
        wanted
            .filter(|key| self.failures.contains_key(key) || !in_step(*key))
            .collect()
    }

    /// What is ours and not wanted.
    fn leftovers(&self) -> impl Iterator<Item = Key> {
        let ours = self.applied.keys();
        ours.filter(|key| !self.planner.wanted().contains(key))
    }

    /// Says once what other programs' packet filters drop, and when they do not any more.
    fn note_foreign_drops(&mut self, drops: Vec<ForeignDrop>) {
        if drops == self.foreign_drops {
            return;
        }
        for drop in drops.iter().filter(|drop| !self.foreign_drops.contains(drop)) {
            warn!("{drop}; what Services need there is {}", drop.remedy());
        }
        for drop in self.foreign_drops.iter().filter(|drop| !drops.contains(drop)) {
            info!("no longer: {drop}");
        }
        self.foreign_drops.clone_from(&drops);
        self.observer.tell(Report::ForeignDrops(drops));
    }

    /// Removes the real servers whose connections have ended, or have had their time (A2).
    async fn look_at_draining(&mut self) {
        let now = Instant::now();
        self.drain_at = now + DRAIN_PERIOD;
        match self.kernel.connections(&self.draining.servers()).await {
            Ok(connections) => {
                let timeout = |server: &ServiceKey| self.planner.drain_timeout(*server);
                let drained = self.draining.look(&connections, now, timeout);
                if !drained.is_empty() {
                    let mut progress = Progress::begin(Occasion::Drain);
                    let wanted = self.planner.wanted();
                    let keys = drained.into_iter().map(|server| wanted.key_of(server)).collect();
                    self.reconcile(keys, &mut progress).await;
                    self.finish(progress, Planned::default()).await;
                }
            }
            Err(failure) => warn!("cannot see whether real servers have drained: {failure}"),
        }
    }
}

async fn at(instant: Option<Instant>) {
    match instant {
        Some(instant) => sleep_until(instant).await,
        None => pending().await,
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, pin::Pin};

    use tokio::{
        sync::mpsc::{UnboundedSender, unbounded_channel},
        time::timeout,
    };

    use super::*;
    use crate::{
        accounting::Counters,
        kernel::conntrack::Flow,
        kernel::fake::FakeKernel,
        model::{Endpoint, Node, ObjectName, Overrides, Service, TrafficPolicy},
        report::Problem,
        step::Driver,
        testing::{endpoint, endpoint_port, ip, name, port, service, slice},
    };

    const MOMENT: Duration = Duration::from_millis(10);

    /// A reconciler at work on a kernel in memory, on paused time.
    struct Running {
        kernel: FakeKernel,
        reports: UnboundedReceiver<Report>,
        changes: UnboundedSender<Change>,
        run: Pin<Box<dyn Future<Output = ()>>>,
    }

    impl Running {
        async fn on(kernel: &FakeKernel) -> Self {
            Self::with(kernel, Config::new("here")).await
        }

        async fn with(kernel: &FakeKernel, config: Config) -> Self {
            let (changes, receiver) = unbounded_channel();
            let (reporter, reports) = unbounded_channel();
            let reconciler = Reconciler::new(config, kernel.clone(), move |report| _ = reporter.send(report))
                .await
                .unwrap();
            Self {
                kernel: kernel.clone(),
                reports,
                changes,
                run: Box::pin(reconciler.run(receiver)),
            }
        }

        /// A cluster of one Service with one endpoint, in sync.
        async fn with_web(kernel: &FakeKernel) -> Self {
            let mut running = Self::on(kernel).await;
            running.send(Change::Service(web()));
            running.send(web_slice(&[endpoint("10.244.0.2")]));
            running.send(Change::Synced);
            running.pass(MOMENT).await;
            running
        }

        /// What was reported since the last call.
        fn take_reports(&mut self) -> Vec<Report> {
            std::iter::from_fn(|| self.reports.try_recv().ok()).collect()
        }

        /// Without those of looking at flows.
        fn take_reports_but_flows(&mut self) -> Vec<Report> {
            let mut reports = self.take_reports();
            reports.retain(|report| !matches!(report, Report::Conntrack { .. }));
            reports
        }

        fn take_syncs(&mut self) -> impl Iterator<Item = Sync> {
            self.take_reports().into_iter().filter_map(|report| match report {
                Report::Sync(sync) => Some(sync),
                _ => None,
            })
        }

        /// The problems of Services, where there is something to tell of them.
        fn take_statuses(&mut self) -> Vec<(ObjectName, BTreeSet<Problem>)> {
            let statuses = self.take_reports().into_iter().filter_map(|report| match report {
                Report::Service(service, status) => Some((service, status.problems)),
                _ => None,
            });
            statuses.collect()
        }

        fn send(&self, change: Change) {
            self.changes.send(change).unwrap();
        }

        async fn pass(&mut self, time: Duration) {
            timeout(time, &mut self.run)
                .await
                .expect_err("it runs until the source hangs up");
        }

        /// Sends a change and returns what is done for it.
        async fn done_for(&mut self, change: Change) -> Vec<String> {
            self.kernel.take_log();
            self.send(change);
            self.pass(MOMENT).await;
            self.kernel.take_log()
        }
    }

    fn web() -> Service {
        service("web", "10.96.0.10")
    }

    fn web_slice(endpoints: &[Endpoint]) -> Change {
        Change::EndpointSlice(slice("web-1", "web", endpoints))
    }

    #[tokio::test(start_paused = true)]
    async fn i1_netfilter_then_servers_then_the_address_and_back() {
        let kernel = FakeKernel::default();
        let mut running = Running::with_web(&kernel).await;
        assert_eq!(
            kernel.take_log(),
            [
                "nft add element ip kube-proxy services { 10.96.0.10 . tcp . 80 : goto cluster-ip }",
                "nft add element ip kube-proxy service-addresses { 10.96.0.10 }",
                "ipvsadm -A -t 10.96.0.10:80 -s rr",
                "ipvsadm -a -t 10.96.0.10:80 -r 10.244.0.2:8080 -m -w 1",
                "ip address add 10.96.0.10/32 dev kube-ipvs0",
            ]
        );
        assert_eq!(
            running.done_for(Change::ServiceGone(name("web"))).await,
            [
                "ipvsadm -D -t 10.96.0.10:80",
                "ip address delete 10.96.0.10/32 dev kube-ipvs0",
                "nft delete element ip kube-proxy services { 10.96.0.10 . tcp . 80 : goto cluster-ip }",
                "nft delete element ip kube-proxy service-addresses { 10.96.0.10 }",
            ]
        );
    }

    /// I6, F2
    #[tokio::test(start_paused = true)]
    async fn another_kube_proxy_s_state_is_taken_over_when_all_is_programmed() {
        let kernel = FakeKernel::default();
        kernel.change(|state| {
            state.upstream = Some("upstream's");
            state.take_over_fails = true;
        });
        let mut running = Running::on(&kernel).await;
        running.send(Change::Service(web()));
        running.pass(MOMENT).await;
        assert_eq!(kernel.take_log(), [""; 0], "nothing before the source is in sync");
        running.send(Change::Synced);
        running.pass(MOMENT).await;
        assert!(!kernel.take_log().contains(&"take over upstream's".to_owned()));
        kernel.change(|state| state.take_over_fails = false);
        running.pass(Duration::from_secs(300)).await;
        assert_eq!(kernel.take_log(), ["take over upstream's"], "it is tried again");
    }

    /// F8
    #[tokio::test(start_paused = true)]
    async fn what_services_have_carried_is_told_at_every_verification_if_asked_for() {
        for service_metrics in [false, true] {
            let kernel = FakeKernel::default();
            let config = Config {
                service_metrics,
                ..Config::new("here")
            };
            let period = config.sync_period;
            let mut running = Running::with(&kernel, config).await;
            running.send(Change::Service(web()));
            running.send(Change::Synced);
            running.pass(MOMENT).await;
            let server = ServiceKey::address("10.96.0.10:80".parse().unwrap(), Protocol::Tcp);
            let counters = Counters {
                connections: 7,
                ..Counters::default()
            };
            kernel.change(|state| state.counters = vec![(server, counters)]);
            running.pass(period).await;
            let told = running
                .take_reports()
                .into_iter()
                .filter_map(|report| match report {
                    Report::Carried(ports) => Some(ports.into_values().collect::<Vec<_>>()),
                    _ => None,
                });
            let told: Vec<_> = told.collect();
            assert_eq!(
                told,
                if service_metrics {
                    vec![vec![counters]]
                } else {
                    vec![]
                }
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn i2_a_change_touches_its_service_only_and_none_writes_nothing() {
        let kernel = FakeKernel::default();
        let mut running = Running::with_web(&kernel).await;
        running.send(Change::Service(service("other", "10.96.0.11")));
        running.pass(MOMENT).await;
        let replaced = web_slice(&[endpoint("10.244.0.3")]);
        assert_eq!(
            running.done_for(replaced.clone()).await,
            [
                "ipvsadm -a -t 10.96.0.10:80 -r 10.244.0.3:8080 -m -w 1",
                "ipvsadm -d -t 10.96.0.10:80 -r 10.244.0.2:8080",
            ],
            "A11: the new server comes before the old one goes"
        );
        assert_eq!(running.done_for(replaced).await, [""; 0]);
        running.pass(Duration::from_secs(300)).await;
        assert_eq!(
            kernel.take_log(),
            [""; 0],
            "ten periodic verifications find nothing to mend"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn b3_a_burst_shares_a_batch() {
        let kernel = FakeKernel::default();
        let mut running = Running::with_web(&kernel).await;
        kernel.take_log();
        for last in 3..100 {
            running.send(web_slice(&[endpoint(&format!("10.244.0.{last}"))]));
        }
        running.pass(MOMENT).await;
        assert_eq!(kernel.take_log().len(), 2);
    }

    /// The kernel searches what was deleted at every addition.
    #[tokio::test(start_paused = true)]
    async fn of_a_burst_all_real_servers_come_before_any_leaves() {
        let kernel = FakeKernel::default();
        let mut running = Running::with_web(&kernel).await;
        running.send(Change::Service(service("other", "10.96.0.11")));
        let other = |address| Change::EndpointSlice(slice("other-1", "other", &[endpoint(address)]));
        running.send(other("10.244.1.2"));
        running.pass(MOMENT).await;
        running.send(other("10.244.1.3"));
        assert_eq!(
            running.done_for(web_slice(&[endpoint("10.244.0.3")])).await,
            [
                "ipvsadm -a -t 10.96.0.10:80 -r 10.244.0.3:8080 -m -w 1",
                "ipvsadm -a -t 10.96.0.11:80 -r 10.244.1.3:8080 -m -w 1",
                "ipvsadm -d -t 10.96.0.10:80 -r 10.244.0.2:8080",
                "ipvsadm -d -t 10.96.0.11:80 -r 10.244.1.2:8080",
            ]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn i6_a_restart_with_unchanged_objects_writes_nothing() {
        let kernel = FakeKernel::default();
        drop(Running::with_web(&kernel).await);
        kernel.take_log();
        Running::with_web(&kernel).await;
        assert_eq!(kernel.take_log(), [""; 0]);
    }

    #[tokio::test(start_paused = true)]
    async fn i6_nothing_is_removed_nor_programmed_before_the_source_has_synced() {
        let kernel = FakeKernel::default();
        drop(Running::with_web(&kernel).await);
        kernel.take_log();
        let mut running = Running::on(&kernel).await;
        running.send(Change::Service(service("other", "10.96.0.11")));
        running.pass(Duration::from_secs(300)).await;
        assert_eq!(kernel.take_log(), [""; 0]);
        running.send(Change::Synced);
        running.pass(MOMENT).await;
        let log = kernel.take_log();
        assert!(
            log.contains(&"ipvsadm -A -t 10.96.0.11:80 -s rr".to_string()),
            "{log:?}"
        );
        assert_eq!(
            log.last().unwrap(),
            "nft delete element ip kube-proxy service-addresses { 10.96.0.10 }",
            "what is not there any more goes when all that exists is known"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn b2_a_node_with_nothing_is_programmed_while_the_source_is_sending() {
        let kernel = FakeKernel::default();
        let mut running = Running::on(&kernel).await;
        let served = |service: Service| {
            let name = service.name.name.clone();
            let slice = slice(&format!("{name}-1"), &name, &[endpoint("10.244.0.2")]);
            [Change::Service(service), Change::EndpointSlice(slice)]
        };
        let numbered = |number: usize| {
            let address = format!("10.96.{}.{}", number / 250, number % 250);
            served(service(&format!("s{number}"), &address))
        };
        let mut exposed = service("exposed", "10.98.0.1");
        exposed.external_ips = vec![ip("192.168.0.9")];
        let has = |address: &str| kernel.change(|state| state.addresses.contains(&ip(address)));

        (1..=SERVICES_PER_BATCH)
            .flat_map(numbered)
            .for_each(|change| running.send(change));
        served(exposed)
            .into_iter()
            .for_each(|change| running.send(change));
        running.send(Change::Service(service("waits", "10.97.0.1")));
        running.send(Change::Service(service("kubernetes", "10.99.0.1")));
        running.pass(MOMENT).await;
        assert_eq!(kernel.take_log(), [""; 0], "the node may be in any zone");

        running.send(Change::Node(Node::default()));
        running.pass(MOMENT).await;
        assert!(has("10.96.0.1"));
        assert!(
            !has("10.97.0.1") && !has("10.99.0.1"),
            "their endpoints may come yet"
        );
        assert!(!has("10.98.0.1"), "its other address may be an API server's");

        let [_, endpoints] = served(service("kubernetes", "10.99.0.1"));
        running.send(endpoints);
        numbered(SERVICES_PER_BATCH + 1)
            .into_iter()
            .for_each(|change| running.send(change));
        running.pass(MOMENT).await;
        assert!(has("10.99.0.1"));
        let batches = |running: &mut Running| {
            let syncs = running.take_syncs().map(|sync| (sync.services, sync.complete));
            syncs.collect::<Vec<_>>()
        };
        assert_eq!(
            batches(&mut running),
            [(SERVICES_PER_BATCH, false), (1, false)],
            "a batch is full or more urgent"
        );

        running.send(Change::Synced);
        running.pass(MOMENT).await;
        // The others are planned anew: addresses of API servers are refused.
        assert_eq!(batches(&mut running), [(SERVICES_PER_BATCH + 3, true)]);
        assert!(["10.97.0.1", "10.98.0.1", "192.168.0.9"].into_iter().all(has));
    }

    #[tokio::test(start_paused = true)]
    async fn i4_foreign_virtual_servers_stay() {
        let kernel = FakeKernel::default();
        let foreign: std::net::SocketAddr = "192.168.0.2:6443".parse().unwrap();
        let key = ipvs::ServiceKey::address(foreign, crate::model::Protocol::Tcp);
        let service = ipvs::Service::new(key, ipvs::Scheduler::ROUND_ROBIN);
        kernel.do_all([Operation::Ipvs(ipvs::Command::NewService(service))]);
        let mut running = Running::with_web(&kernel).await;
        running.send(Change::ServiceGone(name("web")));
        running.pass(Duration::from_secs(60)).await;
        kernel.change(|state| assert_eq!(state.servers.keys().collect::<Vec<_>>(), [&key]));
    }

    #[tokio::test(start_paused = true)]
    async fn i5_a_refused_object_delays_no_other_and_is_tried_again() {
        let kernel = FakeKernel::default();
        let address = "ip address add 10.96.0.10/32 dev kube-ipvs0".to_string();
        kernel.change(|state| state.refused.insert(address.clone()));
        let mut running = Running::with_web(&kernel).await;
        running.send(Change::Service(service("other", "10.96.0.11")));
        running.pass(MOMENT).await;
        kernel.change(|state| {
            assert_eq!(state.servers.len(), 2);
            assert_eq!(state.addresses, BTreeSet::from([ip("10.96.0.11")]));
            state.refused.clear();
        });
        running.pass(Duration::from_secs(3)).await;
        kernel.change(|state| assert!(state.addresses.contains(&ip("10.96.0.10"))));
    }

    #[tokio::test(start_paused = true)]
    async fn i7_a3_what_others_changed_is_mended_at_the_next_verification() {
        let kernel = FakeKernel::default();
        let mut running = Running::with_web(&kernel).await;
        let (wanted, elements) = kernel.change(|state| (state.servers.clone(), state.elements.clone()));
        kernel.change(|state| {
            state.addresses.clear();
            state
                .elements
                .insert(crate::kernel::netfilter::Element::Hairpin(ip("10.244.0.9")));
            for (_, destinations) in state.servers.values_mut() {
                destinations
                    .values_mut()
                    .for_each(|destination| destination.weight = 0);
            }
        });
        running.pass(Duration::from_secs(31)).await;
        kernel.change(|state| {
            assert_eq!(state.servers, wanted);
            assert_eq!(state.addresses, BTreeSet::from([ip("10.96.0.10")]));
            assert_eq!(state.elements, elements);
        });
    }

    /// How many verifications there are in an hour of so many Services, where each takes so long and this is done once a
    /// second.
    async fn verifications_of(services: usize, reading: Duration, change: impl Fn(&FakeKernel)) -> usize {
        let kernel = FakeKernel::default();
        kernel.change(|state| state.reading = reading);
        let mut running = Running::with_web(&kernel).await;
        for number in 1..services {
            let address = format!("10.97.{}.{}", number / 250, number % 250);
            running.send(Change::Service(service(&format!("s{number}"), &address)));
        }
        let verifications = |running: &mut Running| {
            let of_verification = |sync: &Sync| sync.occasion == Occasion::Verification;
            running.take_syncs().filter(of_verification).count()
        };
        let mut count = 0;
        for _ in 0..3600 {
            change(&kernel);
            running.pass(Duration::from_secs(1)).await;
            count += verifications(&mut running);
        }
        count
    }

    /// B1
    #[tokio::test(start_paused = true)]
    async fn verifications_of_many_servers_that_find_nothing_are_rare() {
        let nothing = |_: &FakeKernel| {};
        let weights = |kernel: &FakeKernel| {
            kernel.change(|state| {
                let servers = state.servers.values_mut();
                let destinations = servers.flat_map(|(_, destinations)| destinations.values_mut());
                destinations.for_each(|destination| destination.weight = 7);
            });
        };
        let (short, long) = (Duration::from_millis(20), Duration::from_millis(600));
        assert_eq!(verifications_of(1000, long, nothing).await, 119);
        assert_eq!(verifications_of(1001, short, nothing).await, 119);
        assert_eq!(verifications_of(1001, long, nothing).await, 6);
        assert_eq!(verifications_of(1001, long, weights).await, 119);
        assert_eq!(verifications_of(1001, Duration::from_secs(60), nothing).await, 4);
    }

    #[tokio::test(start_paused = true)]
    async fn i3_a_reading_that_fails_is_not_acted_upon() {
        let kernel = FakeKernel::default();
        let mut running = Running::with_web(&kernel).await;
        kernel.take_log();
        kernel.change(|state| state.unreadable = true);
        running.pass(Duration::from_secs(300)).await;
        assert_eq!(kernel.take_log(), [""; 0]);
    }

    #[tokio::test(start_paused = true)]
    async fn a2_a4_a_terminating_server_keeps_its_connections_and_may_return() {
        let kernel = FakeKernel::default();
        let mut running = Running::with_web(&kernel).await;
        let (old, new) = (endpoint("10.244.0.2"), endpoint("10.244.0.3"));
        let server = kernel.change(|state| {
            let key = *state.servers.keys().next().unwrap();
            let server = (key, "10.244.0.2:8080".parse().unwrap());
            state.connections.insert(server, 1);
            server
        });
        let quiet = "ipvsadm -e -t 10.96.0.10:80 -r 10.244.0.2:8080 -m -w 0";
        let log = running
            .done_for(web_slice(&[old.clone().terminating(true), new.clone()]))
            .await;
        assert_eq!(
            log,
            ["ipvsadm -a -t 10.96.0.10:80 -r 10.244.0.3:8080 -m -w 1", quiet]
        );

        let log = running.done_for(web_slice(&[old.clone(), new.clone()])).await;
        assert_eq!(log, ["ipvsadm -e -t 10.96.0.10:80 -r 10.244.0.2:8080 -m -w 1"]);

        let log = running.done_for(web_slice(&[old.terminating(true), new])).await;
        assert_eq!(log, [quiet]);
        running.pass(Duration::from_secs(60)).await;
        assert_eq!(kernel.take_log(), [""; 0]);
        kernel.change(|state| state.connections.insert(server, 0));
        running.pass(Duration::from_secs(2)).await;
        assert_eq!(
            kernel.take_log(),
            ["ipvsadm -d -t 10.96.0.10:80 -r 10.244.0.2:8080"]
        );
        running.pass(Duration::from_secs(60)).await;
        assert_eq!(kernel.take_log(), [""; 0], "what has drained does not come back");
    }

    #[tokio::test(start_paused = true)]
    async fn a2_a3_a_restart_goes_on_with_draining() {
        let kernel = FakeKernel::default();
        let mut running = Running::with_web(&kernel).await;
        let leaving = web_slice(&[endpoint("10.244.0.2").terminating(true), endpoint("10.244.0.3")]);
        kernel.change(|state| {
            let key = *state.servers.keys().next().unwrap();
            state
                .connections
                .insert((key, "10.244.0.2:8080".parse().unwrap()), 1);
        });
        running.send(leaving.clone());
        running.pass(MOMENT).await;
        drop(running);
        kernel.take_log();

        let mut running = Running::on(&kernel).await;
        running.send(Change::Service(web()));
        running.send(leaving);
        running.send(Change::Synced);
        running.pass(Duration::from_secs(60)).await;
        assert_eq!(kernel.take_log(), [""; 0]);
        running.pass(Config::new("here").drain_timeout).await;
        assert_eq!(
            kernel.take_log(),
            ["ipvsadm -d -t 10.96.0.10:80 -r 10.244.0.2:8080"]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_weight_of_0_by_annotation_is_no_reason_to_remove_a_server() {
        let kernel = FakeKernel::default();
        let mut running = Running::with_web(&kernel).await;
        let mut service = web();
        service.overrides = Some(Box::new(Overrides {
            weights: vec![(ip("10.244.0.2").into(), 0)],
            ..Overrides::default()
        }));
        let log = running.done_for(Change::Service(service)).await;
        assert_eq!(log, ["ipvsadm -e -t 10.96.0.10:80 -r 10.244.0.2:8080 -m -w 0"]);
        running.pass(Config::new("here").drain_timeout * 2).await;
        assert_eq!(kernel.take_log(), [""; 0]);
        let log = running.done_for(Change::Service(web())).await;
        assert_eq!(log, ["ipvsadm -e -t 10.96.0.10:80 -r 10.244.0.2:8080 -m -w 1"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a2_a_service_may_have_a_drain_timeout_of_its_own() {
        let kernel = FakeKernel::default();
        let mut running = Running::with_web(&kernel).await;
        let mut service = web();
        service.overrides = Some(Box::new(Overrides {
            drain_timeout: Some(Duration::from_secs(5)),
            ..Overrides::default()
        }));
        running.send(Change::Service(service));
        kernel.change(|state| {
            let key = *state.servers.keys().next().unwrap();
            let busy = (key, "10.244.0.2:8080".parse().unwrap());
            state.connections.insert(busy, 1);
        });
        let leaving = web_slice(&[endpoint("10.244.0.2").terminating(true), endpoint("10.244.0.3")]);
        running.done_for(leaving).await;
        running.pass(Duration::from_secs(4)).await;
        assert_eq!(kernel.take_log(), [""; 0]);
        running.pass(Duration::from_secs(2)).await;
        assert_eq!(
            kernel.take_log(),
            ["ipvsadm -d -t 10.96.0.10:80 -r 10.244.0.2:8080"]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a2_what_clients_in_the_cluster_hold_outlives_the_policy_local_and_a_restart() {
        let kernel = FakeKernel::default();
        let mut running = Running::with_web(&kernel).await;
        let local = Service {
            external_ips: vec![ip("203.0.113.10")],
            external_traffic_policy: TrafficPolicy::Local,
            ..web()
        };
        running.done_for(Change::Service(local.clone())).await;
        let by_mark = |kernel: &FakeKernel| {
            let keys: Vec<_> = kernel.change(|state| state.servers.keys().copied().collect());
            let by_mark = keys
                .into_iter()
                .filter(|key| matches!(key, ServiceKey::Fwmark { .. }));
            by_mark.collect::<Vec<_>>()
        };
        let [mark] = by_mark(&kernel)[..] else {
            panic!("one virtual server by firewall mark")
        };
        let held = (mark, "10.244.0.2:8080".parse().unwrap());
        kernel.change(|state| _ = state.connections.insert(held, 1));

        let everywhere = Change::Service(Service {
            external_traffic_policy: TrafficPolicy::Cluster,
            ..local
        });
        let done = running.done_for(everywhere.clone()).await;
        let quiet = |line: &String| line.starts_with("ipvsadm -e -f ") && line.ends_with(" -w 0");
        assert_eq!(done.iter().filter(|line| quiet(line)).count(), 1, "{done:?}");
        drop(running);
        let mut running = Running::on(&kernel).await;
        running.send(everywhere);
        running.send(web_slice(&[endpoint("10.244.0.2")]));
        running.send(Change::Synced);
        running.pass(Duration::from_secs(5)).await;
        assert_eq!(by_mark(&kernel), [mark]);

        kernel.change(|state| _ = state.connections.insert(held, 0));
        running.pass(Duration::from_secs(2)).await;
        assert_eq!(by_mark(&kernel), []);
    }

    #[tokio::test(start_paused = true)]
    async fn q25_of_two_services_with_one_address_the_older_wins_and_the_other_inherits() {
        let kernel = FakeKernel::default();
        let mut running = Running::on(&kernel).await;
        for (of, created) in [("younger", 2), ("older", 1)] {
            let mut service = service(of, "10.96.0.10");
            service.created = created;
            running.send(Change::Service(service));
            let backend = format!("10.244.0.{created}");
            running.send(Change::EndpointSlice(slice(of, of, &[endpoint(&backend)])));
        }
        running.send(Change::Synced);
        running.pass(MOMENT).await;
        let log = kernel.take_log();
        assert!(
            log.contains(&"ipvsadm -a -t 10.96.0.10:80 -r 10.244.0.1:8080 -m -w 1".into()),
            "{log:?}"
        );
        assert_eq!(log.len(), 5);
        assert_eq!(
            running.done_for(Change::ServiceGone(name("older"))).await,
            [
                "ipvsadm -a -t 10.96.0.10:80 -r 10.244.0.2:8080 -m -w 1",
                "ipvsadm -d -t 10.96.0.10:80 -r 10.244.0.1:8080",
            ]
        );
    }

    /// A UDP Service with one endpoint, which two flows lead to and one to where none is; and another flow.
    fn with_flows(kernel: &FakeKernel) -> (Service, [Flow; 4]) {
        let mut dns = service("dns", "10.96.0.53");
        dns.ports = vec![port("", Protocol::Udp, 53)];
        let flow = |id, destination: &str, server: &str| Flow {
            client: "10.244.0.9:40000".parse().unwrap(),
            destination: destination.parse().unwrap(),
            server: server.parse().unwrap(),
            id,
        };
        let flows = [
            flow(1, "10.96.0.53:53", "10.244.0.2:5353"),
            flow(2, "10.96.0.53:53", "10.244.0.2:5353"),
            flow(3, "10.96.0.53:53", "10.244.0.9:5353"),
            flow(4, "198.51.100.1:53", "198.51.100.1:53"),
        ];
        kernel.change(|state| state.flows = flows.into());
        (dns, flows)
    }

    fn dns_slice(endpoints: &[Endpoint]) -> Change {
        let mut slice = slice("dns-1", "dns", endpoints);
        slice.ports = vec![endpoint_port("", Protocol::Udp, 5353)];
        Change::EndpointSlice(slice)
    }

    #[tokio::test(start_paused = true)]
    async fn a5_a8_flows_that_are_right_live_and_stale_ones_end_when_the_state_is_there() {
        let kernel = FakeKernel::default();
        let (dns, [one, two, stale, other]) = with_flows(&kernel);
        let mut running = Running::on(&kernel).await;
        running.send(Change::Service(dns));
        running.send(dns_slice(&[endpoint("10.244.0.2")]));
        running.pass(MOMENT).await;
        kernel.change(|state| assert_eq!(state.flows_listed, 0, "not all is known"));
        running.send(Change::Synced);
        running.pass(MOMENT).await;
        kernel.change(|state| assert_eq!(state.flows, BTreeSet::from([one, two, other])));
        running.take_reports();

        // Others made it while nobody looked.
        kernel.change(|state| state.flows.insert(stale));
        running.pass(Duration::from_secs(300)).await;
        kernel.change(|state| assert_eq!(state.flows, BTreeSet::from([one, two, other])));
        let deleted = running
            .take_reports()
            .into_iter()
            .filter_map(|report| match report {
                Report::Conntrack {
                    family: Family::Inet,
                    deleted,
                    ..
                } => Some(deleted),
                _ => None,
            });
        assert_eq!(deleted.sum::<usize>(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a5_flows_are_looked_at_when_udp_servers_go_and_not_otherwise() {
        let kernel = FakeKernel::default();
        let (dns, [_, _, _, other]) = with_flows(&kernel);
        let mut running = Running::with_web(&kernel).await;
        running.send(Change::Service(dns));
        running.send(dns_slice(&[endpoint("10.244.0.2")]));
        running.pass(MOMENT).await;
        let before = kernel.change(|state| state.flows_listed);
        running.send(web_slice(&[endpoint("10.244.0.3")]));
        running.send(dns_slice(&[endpoint("10.244.0.2"), endpoint("10.244.0.3")]));
        running.pass(MOMENT).await;
        kernel.change(|state| assert_eq!(state.flows_listed, before, "nobody lost a server"));
        running.send(dns_slice(&[endpoint("10.244.0.3")]));
        running.pass(MOMENT).await;
        kernel.change(|state| assert_eq!(state.flows, BTreeSet::from([other])));
    }

    #[tokio::test(start_paused = true)]
    async fn q31_a_service_that_goes_takes_its_flows_along() {
        let kernel = FakeKernel::default();
        let (dns, [_, _, _, other]) = with_flows(&kernel);
        let mut running = Running::with_web(&kernel).await;
        running.send(Change::Service(dns));
        running.send(dns_slice(&[endpoint("10.244.0.2")]));
        running.pass(MOMENT).await;
        running.send(Change::ServiceGone(name("dns")));
        running.pass(MOMENT).await;
        kernel.change(|state| assert_eq!(state.flows, BTreeSet::from([other])));
    }

    #[tokio::test(start_paused = true)]
    async fn pod_cidrs_that_change_are_taken_over_at_once() {
        let kernel = FakeKernel::default();
        let cidrs = |text: &str| vec![text.parse::<ipnet::IpNet>().unwrap()];
        let config = Config {
            local_detector: LocalDetector::NodeCidrs(cidrs("10.244.1.0/24")),
            ..Config::new("here")
        };
        let mut running = Running::with(&kernel, config).await;
        let node = |pod_cidrs| {
            Change::Node(crate::model::Node {
                pod_cidrs,
                ..Default::default()
            })
        };
        running.send(Change::Synced);
        for (pod_cidrs, expected) in [
            (cidrs("10.244.1.0/24"), vec![]),
            (
                cidrs("10.244.2.0/24"),
                vec!["NodeCidrs([10.244.2.0/24])".to_owned()],
            ),
            (cidrs("10.244.2.0/24"), vec![]),
            (
                cidrs("10.244.1.0/24"),
                vec!["NodeCidrs([10.244.1.0/24])".to_owned()],
            ),
        ] {
            assert_eq!(running.done_for(node(pod_cidrs)).await, expected);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn c4_an_address_that_an_api_server_gets_is_given_up() {
        let kernel = FakeKernel::default();
        let mut running = Running::with_web(&kernel).await;
        let mut web = web();
        web.external_ips = vec![ip("192.168.0.9")];
        running.send(Change::Service(web));
        running.send(Change::Service(service("kubernetes", "10.96.0.1")));
        running.pass(MOMENT).await;
        kernel.change(|state| assert!(state.addresses.contains(&ip("192.168.0.9"))));
        running.take_reports();
        let api = slice("kubernetes", "kubernetes", &[endpoint("192.168.0.9")]);
        running.send(Change::EndpointSlice(api));
        running.pass(MOMENT).await;
        kernel.change(|state| assert!(!state.addresses.contains(&ip("192.168.0.9"))));
        let refused = Problem::RefusedAddress {
            address: ip("192.168.0.9"),
            reason: crate::report::Refusal::ApiServer,
        };
        assert_eq!(
            running.take_statuses(),
            [(name("web"), BTreeSet::from([refused]))]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn e8_another_zone_means_other_endpoints() {
        let kernel = FakeKernel::default();
        let mut running = Running::with_web(&kernel).await;
        let zone = |zone: &str| {
            Change::Node(crate::model::Node {
                zone: Some(zone.into()),
                ..Default::default()
            })
        };
        let hinted = |address: &str, zone: &str| Endpoint {
            hints: Some(Box::new(crate::model::Hints {
                zones: vec![zone.into()],
                nodes: vec![],
            })),
            ..endpoint(address)
        };
        running.send(zone("a"));
        running.send(web_slice(&[hinted("10.244.0.2", "a"), hinted("10.244.0.3", "b")]));
        running.pass(MOMENT).await;
        assert_eq!(
            running.done_for(zone("b")).await,
            [
                "ipvsadm -a -t 10.96.0.10:80 -r 10.244.0.3:8080 -m -w 1",
                "ipvsadm -e -t 10.96.0.10:80 -r 10.244.0.2:8080 -m -w 0",
            ]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn q25_a_conflict_is_told_once_and_its_end_too() {
        let kernel = FakeKernel::default();
        let mut running = Running::with_web(&kernel).await;
        running.take_reports();
        let mut older = service("older", "10.96.0.10");
        older.created = -1;
        running.send(Change::Service(older));
        running.send(Change::Service(service("bystander", "10.96.0.11")));
        running.pass(MOMENT).await;
        let conflict = Problem::Conflict {
            server: *kernel
                .change(|state| state.servers.clone())
                .keys()
                .next()
                .unwrap(),
            winner: name("older"),
        };
        assert_eq!(
            running.take_statuses(),
            [(name("web"), BTreeSet::from([conflict]))],
            "the younger one was there before"
        );
        running.send(web_slice(&[endpoint("10.244.0.3")]));
        running.pass(MOMENT).await;
        assert_eq!(running.take_statuses(), [], "it is known");
        running.send(Change::ServiceGone(name("older")));
        running.pass(MOMENT).await;
        assert_eq!(running.take_statuses(), [(name("web"), BTreeSet::new())]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_invalid_annotation_is_told_once_per_change() {
        let kernel = FakeKernel::default();
        let mut running = Running::with_web(&kernel).await;
        running.take_reports();
        let web = |external_ip: &str, invalid: Option<&str>| {
            let mut web = web();
            web.external_ips = vec![ip(external_ip)];
            web.overrides = invalid.map(|sentence| {
                Box::new(Overrides {
                    invalid: vec![sentence.into()],
                    ..Overrides::default()
                })
            });
            Change::Service(web)
        };
        for (external_ip, invalid, is_told) in [
            ("203.0.113.7", Some("one"), true),
            ("203.0.113.8", Some("one"), false),
            ("203.0.113.8", Some("another"), true),
            ("203.0.113.8", None, true),
        ] {
            running.send(web(external_ip, invalid));
            running.pass(MOMENT).await;
            let problems = invalid.map(|sentence| Problem::InvalidAnnotation(sentence.into()));
            let told = is_told.then(|| (name("web"), problems.into_iter().collect()));
            assert_eq!(running.take_statuses(), told.into_iter().collect::<Vec<_>>());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_done_is_reported() {
        let kernel = FakeKernel::default();
        let mut running = Running::with_web(&kernel).await;
        let reports = running.take_reports_but_flows();
        let [Report::Queued { .. }, Report::Sync(first)] = reports.as_slice() else {
            panic!("{reports:#?}")
        };
        assert_eq!((first.services, first.pending, first.complete), (1, false, true));
        let drivers: Vec<_> = first
            .work
            .iter()
            .map(|work| (work.driver, work.operations))
            .collect();
        assert_eq!(
            drivers,
            [(Driver::Netfilter, 2), (Driver::Ipvs, 2), (Driver::Link, 1)]
        );
        assert_eq!(first.totals.wanted, 2);

        running.pass(Duration::from_secs(31)).await;
        let reports = running.take_reports_but_flows();
        let [Report::Sync(verification)] = reports.as_slice() else {
            panic!("{reports:#?}")
        };
        assert_eq!(verification.occasion, Occasion::Verification);
        assert_eq!(verification.work, [], "nothing had to be mended");

        kernel.change(|state| state.unreadable = true);
        running.pass(Duration::from_secs(31)).await;
        assert!(matches!(
            running.take_reports().as_slice(),
            [Report::Unreadable(_)]
        ));
    }

    #[tokio::test(start_paused = true)]
    async fn what_made_endpoints_change_is_reported_with_the_sync_that_programs_it() {
        let kernel = FakeKernel::default();
        let mut running = Running::with_web(&kernel).await;
        running.take_reports();
        let trigger = std::time::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let mut replaced = slice("web-1", "web", &[endpoint("10.244.0.3")]);
        for (endpoints, at, expected) in [
            ("10.244.0.3", trigger, vec![(Family::Inet, trigger)]),
            // Only the annotation is another: nothing is programmed.
            ("10.244.0.3", trigger + MOMENT, vec![]),
        ] {
            replaced.endpoints = vec![endpoint(endpoints)];
            replaced.last_change_trigger = Some(at);
            running.send(Change::EndpointSlice(replaced.clone()));
            running.pass(MOMENT).await;
            let triggers: Vec<_> = running.take_syncs().flat_map(|sync| sync.triggers).collect();
            assert_eq!(triggers, expected);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn i5_a_failure_is_reported_once_and_so_is_its_end() {
        let kernel = FakeKernel::default();
        let address = "ip address add 10.96.0.10/32 dev kube-ipvs0".to_string();
        kernel.change(|state| state.refused.insert(address));
        let mut running = Running::with_web(&kernel).await;
        running.pass(Duration::from_secs(10)).await;
        let reports = running.take_reports();
        let failing: Vec<_> = reports
            .iter()
            .filter_map(|report| match report {
                Report::Failing { key, .. } => Some(*key),
                _ => None,
            })
            .collect();
        assert_eq!(failing, [Key::Address(ip("10.96.0.10"))]);
        kernel.change(|state| state.refused.clear());
        running.pass(Duration::from_secs(10)).await;
        let reports = running.take_reports();
        let recovered = |report: &Report| matches!(report, Report::Recovered(Key::Address(_)));
        assert_eq!(reports.iter().filter(|report| recovered(report)).count(), 1);
        assert!(matches!(reports.last(), Some(Report::Sync(sync)) if sync.totals.failing == 0));
    }

    #[tokio::test(start_paused = true)]
    async fn c2_masqueraded_flows_leave_from_no_node_port() {
        let kernel = FakeKernel::default();
        kernel.change(|state| state.own_addresses.insert(ip("192.168.0.2")));
        let mut running = Running::with_web(&kernel).await;
        let with_node_port = |port: u16| {
            let mut service = web();
            service.ports[0].node_port = port.try_into().ok();
            Change::Service(service)
        };
        let moved = |log: Vec<String>| log.into_iter().find(|line| line.contains("masquerade to"));
        assert_eq!(moved(running.done_for(with_node_port(30080)).await), None);
        assert_eq!(
            moved(running.done_for(with_node_port(40000)).await).as_deref(),
            Some("nft masquerade to :1024-29999")
        );
        drop(running);

        // I6, and a range that will do stays.
        let running = Running::with_web(&kernel).await;
        assert_eq!(moved(kernel.take_log()), None);
        kernel.change(|state| assert_eq!(state.source_ports.to_string(), "1024-29999"));
        drop(running);
    }

    #[tokio::test(start_paused = true)]
    async fn b2_the_api_servers_own_service_is_first() {
        let kernel = FakeKernel::default();
        let mut running = Running::on(&kernel).await;
        for last in 0..250 {
            running.send(Change::Service(service(
                &format!("s{last}"),
                &format!("10.96.1.{last}"),
            )));
        }
        running.send(Change::Service(service("kubernetes", "10.99.0.1")));
        running.send(Change::Synced);
        running.pass(MOMENT).await;
        let log = kernel.take_log();
        let first = log.iter().find(|line| line.starts_with("ipvsadm")).unwrap();
        assert_eq!(first, "ipvsadm -A -t 10.99.0.1:80 -s rr");
    }

    #[tokio::test(start_paused = true)]
    async fn b2_among_many_it_answers_before_anything_is_done_for_another() {
        let kernel = FakeKernel::default();
        let mut running = Running::on(&kernel).await;
        for last in 0..=SERVICES_PER_BATCH {
            let address = format!("10.96.{}.{}", last / 250, last % 250);
            running.send(Change::Service(service(&format!("s{last}"), &address)));
        }
        running.send(Change::Service(service("kubernetes", "10.99.0.1")));
        running.send(Change::Synced);
        running.pass(MOMENT).await;
        let log = kernel.take_log();
        let own = log.iter().rposition(|line| line.contains("10.99.0.1"));
        let others = log.iter().position(|line| line.contains("10.96."));
        assert!(own.is_some() && others.is_some() && own < others, "{log:?}");
    }

    /// B3
    #[tokio::test(start_paused = true)]
    async fn the_longer_the_queue_the_larger_the_batches() {
        let kernel = FakeKernel::default();
        let mut running = Running::on(&kernel).await;
        for number in 0..2000 {
            let address = format!("10.96.{}.{}", number / 250, number % 250);
            running.send(Change::Service(service(&format!("s{number}"), &address)));
        }
        running.send(Change::Synced);
        running.pass(MOMENT).await;
        let batches: Vec<_> = running.take_syncs().map(|sync| sync.services).collect();
        assert_eq!(batches, [500, 1000, 500]);
    }
}
