//! What Prometheus is told: upstream's metrics under upstream's names, and ours, which begin with `ipvs_proxier_`.
//!
//! There are no `go_*` metrics, because there is no Go.

use std::{
    collections::{BTreeSet, HashMap},
    env::consts::{ARCH, OS},
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use hyper::{Method, StatusCode, Uri};
use ipvs::Family;
use prometheus::{
    Counter, CounterVec, Encoder, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, Opts, Registry,
    Result, TextEncoder, core::Collector, exponential_buckets,
};
use proxier::{
    accounting::{Counters, ServicePortName},
    model::{Change, ObjectName},
    report::{Occasion, Sync, Traffic},
    step::Driver,
};

mod process;
pub(crate) mod slis;

use process::Process;

use crate::{
    feature_gates::{FeatureGates, Stage},
    health, version,
};

/// The type of what [`Metrics::render`] gives.
pub(crate) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Upper bounds of requests to the API server; seconds. Name look-ups have all but the last.
const REQUEST_SECONDS: [f64; 12] = [0.005, 0.025, 0.1, 0.25, 0.5, 1., 2., 4., 8., 15., 30., 60.];

/// Upper bounds of what is sent to the API server and comes from there; bytes.
const REQUEST_BYTES: [f64; 11] = [
    64.,
    256.,
    512.,
    1024.,
    4096.,
    16384.,
    65536.,
    262_144.,
    1_048_576.,
    4_194_304.,
    16_777_216.,
];

/// All that is counted and measured. Threads share it.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    process: Process,
    feature_gates: GaugeVec,
    sync_duration: HistogramVec,
    synced: GaugeVec,
    queued: GaugeVec,
    programming_duration: HistogramVec,
    endpoint_changes: Changes,
    service_changes: Changes,
    restore_failures: CounterVec,
    without_local_endpoints: GaugeVec,
    /// The Services that the gauge above counts.
    lacking: Mutex<HashMap<ObjectName, BTreeSet<(Traffic, Family)>>>,
    conntrack_duration: HistogramVec,
    conntrack_deleted: CounterVec,
    healthz: CounterVec,
    livez: CounterVec,
    requests: CounterVec,
    request_duration: HistogramVec,
    request_size: HistogramVec,
    response_size: HistogramVec,
    resolution_duration: HistogramVec,
    heard: GaugeVec,
    kernel_duration: HistogramVec,
    operations: CounterVec,
    operation_failures: CounterVec,
    repairs: Counter,
    objects: GaugeVec,
    draining: Gauge,
    foreign_drops: Gauge,
    carried: Carried,
}

/// What the ports of Services have carried.
#[derive(Debug)]
struct Carried {
    connections: CounterVec,
    incoming_packets: CounterVec,
    outgoing_packets: CounterVec,
    incoming_bytes: CounterVec,
    outgoing_bytes: CounterVec,
}

impl Carried {
    fn new(families: &Families<'_>) -> Result<Self> {
        let counters = |what: &str, help| {
            let name = format!("ipvs_proxier_service_{what}_total");
            families.counters(&name, help, &["namespace", "service", "port", "protocol"])
        };
        Ok(Self {
            connections: counters("connections", "Connections and UDP flows to a Service's port.")?,
            incoming_packets: counters("incoming_packets", "Packets from clients of a Service's port.")?,
            outgoing_packets: counters("outgoing_packets", "Packets to clients of a Service's port.")?,
            incoming_bytes: counters("incoming_bytes", "Bytes from clients of a Service's port.")?,
            outgoing_bytes: counters("outgoing_bytes", "Bytes to clients of a Service's port.")?,
        })
    }

    /// Each family with its part of the counters.
    fn parts(&self, counters: &Counters) -> [(&CounterVec, u64); 5] {
        [
            (&self.connections, counters.connections),
            (&self.incoming_packets, counters.incoming_packets),
            (&self.outgoing_packets, counters.outgoing_packets),
            (&self.incoming_bytes, counters.incoming_bytes),
            (&self.outgoing_bytes, counters.outgoing_bytes),
        ]
    }
}

/// Changes of objects of one kind.
#[derive(Debug)]
struct Changes {
    pending: Gauge,
    total: Counter,
}

impl Changes {
    fn count(&self) {
        self.pending.inc();
        self.total.inc();
    }
}

impl Metrics {
    /// # Errors
    ///
    /// Fails if two metrics have the same name, or one a bad name.
    pub(crate) fn new() -> Result<Self> {
        let registry = Registry::new();
        let families = Families(&registry);
        let milliseconds = exponential_buckets(0.001, 2.0, 15)?;
        tell_build(&families)?;
        Ok(Self {
            process: Process::new(&registry)?,
            feature_gates: families.gauges(
                "kubernetes_feature_enabled",
                "[BETA] Feature gates, and whether they are on.",
                &["name", "stage"],
            )?,
            sync_duration: families.histogram(
                "kubeproxy_sync_proxy_rules_duration_seconds",
                "[ALPHA] Time that it took to bring the kernel in step with what is wanted.",
                &["ip_family"],
                milliseconds.clone(),
            )?,
            synced: families.gauges(
                "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
                "[ALPHA] When all that was wanted was programmed last; seconds since the Unix epoch.",
                &["ip_family"],
            )?,
            queued: families.gauges(
                "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds",
                "[ALPHA] When changes came last that had to be programmed; seconds since the Unix epoch.",
                &["ip_family"],
            )?,
            programming_duration: families.histogram(
                "kubeproxy_network_programming_duration_seconds",
                "[ALPHA] Time from a pod's or Service's change to the kernel's.",
                &["ip_family"],
                programming_seconds(),
            )?,
            endpoint_changes: Changes {
                pending: families.gauge(
                    "kubeproxy_sync_proxy_rules_endpoint_changes_pending",
                    "[ALPHA] Changes of EndpointSlices that are not programmed yet.",
                )?,
                total: families.counter(
                    "kubeproxy_sync_proxy_rules_endpoint_changes_total",
                    "[ALPHA] Changes of EndpointSlices.",
                )?,
            },
            service_changes: Changes {
                pending: families.gauge(
                    "kubeproxy_sync_proxy_rules_service_changes_pending",
                    "[ALPHA] Changes of Services that are not programmed yet.",
                )?,
                total: families.counter(
                    "kubeproxy_sync_proxy_rules_service_changes_total",
                    "[ALPHA] Changes of Services.",
                )?,
            },
            restore_failures: families.counters(
                "kubeproxy_sync_proxy_rules_iptables_restore_failures_total",
                "[ALPHA] Updates of nftables, which stand where iptables was, that the kernel refused in part.",
                &["ip_family"],
            )?,
            without_local_endpoints: families.gauges(
                "kubeproxy_sync_proxy_rules_no_local_endpoints_total",
                "[ALPHA] Services with a traffic policy Local and endpoints, but none on this node.",
                &["traffic_policy", "ip_family"],
            )?,
            lacking: Mutex::default(),
            conntrack_duration: families.histogram(
                "kubeproxy_conntrack_reconciler_sync_duration_seconds",
                "[ALPHA] Time that it took to look for flows to endpoints that are gone.",
                &["ip_family"],
                milliseconds.clone(),
            )?,
            conntrack_deleted: families.counters(
                "kubeproxy_conntrack_reconciler_deleted_entries_total",
                "[ALPHA] Flows to endpoints that are gone.",
                &["ip_family"],
            )?,
            healthz: families.counters(
                "kubeproxy_proxy_healthz_total",
                "[ALPHA] Answers to /healthz.",
                &["code"],
            )?,
            livez: families.counters("kubeproxy_proxy_livez_total", "[ALPHA] Answers to /livez.", &["code"])?,
            requests: families.counters(
                "rest_client_requests_total",
                "[ALPHA] Requests to the API server.",
                &["code", "method", "host"],
            )?,
            request_duration: families.histogram(
                "rest_client_request_duration_seconds",
                "[ALPHA] Time until the API server began to answer a request.",
                &["verb", "host"],
                REQUEST_SECONDS.to_vec(),
            )?,
            request_size: families.histogram(
                "rest_client_request_size_bytes",
                "[ALPHA] Sizes of requests to the API server, watches apart.",
                &["verb", "host"],
                REQUEST_BYTES.to_vec(),
            )?,
            response_size: families.histogram(
                "rest_client_response_size_bytes",
                "[ALPHA] Sizes of the API server's answers, watches apart.",
                &["verb", "host"],
                REQUEST_BYTES.to_vec(),
            )?,
            resolution_duration: families.histogram(
                "rest_client_dns_resolution_duration_seconds",
                "[ALPHA] Time that it took to look up the API server's name.",
                &["host"],
                REQUEST_SECONDS.iter().copied().filter(|bound| *bound < 60.).collect(),
            )?,
            heard: families.gauges(
                "ipvs_proxier_watch_heard_timestamp_seconds",
                "When the API server said something on a watch last, be it a bookmark; seconds since the Unix epoch.",
                &["resource"],
            )?,
            kernel_duration: families.histogram(
                "ipvs_proxier_kernel_batch_duration_seconds",
                "Time that a part of the kernel took for a batch of operations.",
                &["driver"],
                milliseconds,
            )?,
            operations: families.counters(
                "ipvs_proxier_kernel_operations_total",
                "Operations that a part of the kernel was asked for.",
                &["driver"],
            )?,
            operation_failures: families.counters(
                "ipvs_proxier_kernel_operation_failures_total",
                "Operations that a part of the kernel did not do.",
                &["driver"],
            )?,
            repairs: families.counter(
                "ipvs_proxier_repairs_total",
                "Operations that mended what others had changed.",
            )?,
            objects: families.gauges(
                "ipvs_proxier_objects",
                "Virtual servers, addresses and other kernel objects that Services want, by what has become of them.",
                &["state"],
            )?,
            draining: families.gauge(
                "ipvs_proxier_draining_servers",
                "Real servers that only end the connections that they have.",
            )?,
            foreign_drops: families.gauge(
                "ipvs_proxier_foreign_drops",
                "Packet filters of other programs that may drop what Services need; the log names them.",
            )?,
            carried: Carried::new(&families)?,
            registry,
        })
    }

    /// All metrics in Prometheus' text format.
    ///
    /// # Errors
    ///
    /// Fails if a metric family has no metrics, which none has.
    pub(crate) fn render(&self) -> Result<Vec<u8>> {
        self.process.update();
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }

    /// When the process was started; seconds since the Unix epoch.
    pub(crate) fn process_start(&self) -> f64 {
        self.process.start()
    }

    /// The feature gates are these.
    pub(crate) fn set_feature_gates(&self, gates: &FeatureGates) {
        for (name, stage, is_on) in gates.iter() {
            let stage = match stage {
                Stage::Alpha => "ALPHA",
                Stage::Beta => "BETA",
                Stage::General => "",
                Stage::Deprecated => "DEPRECATED",
            };
            self.feature_gates
                .with_label_values(&[name, stage])
                .set(f64::from(u8::from(is_on)));
        }
    }

    /// A source has said something.
    pub(crate) fn note_change(&self, change: &Change) {
        match change {
            Change::Service(_) | Change::ServiceGone(_) => self.service_changes.count(),
            Change::EndpointSlice(_) | Change::EndpointSliceGone(_) => self.endpoint_changes.count(),
            Change::Node(_) | Change::Synced => {}
        }
    }

    /// Changes have come that have to be programmed, for these families.
    pub(crate) fn note_queued(&self, families: &[Family]) {
        for family in families {
            self.queued
                .with_label_values(&[health::name(*family)])
                .set(seconds(SystemTime::now()));
        }
    }

    /// The kernel was brought in step with what is wanted.
    pub(crate) fn note_sync(&self, sync: &Sync) {
        let now = SystemTime::now();
        let refused = sync
            .work
            .iter()
            .any(|work| work.driver == Driver::Netfilter && work.failures > 0);
        for family in &sync.families {
            let family = [health::name(*family)];
            self.sync_duration
                .with_label_values(&family)
                .observe(sync.duration.as_secs_f64());
            if !sync.pending {
                self.synced.with_label_values(&family).set(seconds(now));
            }
            if refused {
                self.restore_failures.with_label_values(&family).inc();
            }
        }
        for (family, trigger) in &sync.triggers {
            // Of what came about before us we do not know why it took so long.
            if seconds(*trigger) > self.process.start() {
                let duration = now.duration_since(*trigger).unwrap_or_default();
                self.programming_duration
                    .with_label_values(&[health::name(*family)])
                    .observe(duration.as_secs_f64());
            }
        }
        if !sync.pending {
            self.service_changes.pending.set(0.);
            self.endpoint_changes.pending.set(0.);
        }
        for work in &sync.work {
            let driver = [driver_name(work.driver)];
            self.kernel_duration
                .with_label_values(&driver)
                .observe(work.duration.as_secs_f64());
            self.operations
                .with_label_values(&driver)
                .inc_by(number(work.operations));
            self.operation_failures
                .with_label_values(&driver)
                .inc_by(number(work.failures));
            if sync.occasion == Occasion::Verification {
                self.repairs
                    .inc_by(number(work.operations.saturating_sub(work.failures)));
            }
        }
        for (state, count) in [("wanted", sync.totals.wanted), ("failing", sync.totals.failing)] {
            self.objects.with_label_values(&[state]).set(number(count));
        }
        self.draining.set(number(sync.totals.draining));
    }

    /// So many packet filters of others are in the way.
    pub(crate) fn set_foreign_drops(&self, count: usize) {
        self.foreign_drops.set(number(count));
    }

    /// The ports of Services have carried this by now. Only the thread that renders may call it: for a moment there is
    /// nothing.
    pub(crate) fn set_carried(&self, ports: &HashMap<ServicePortName, Counters>) {
        for (family, _) in self.carried.parts(&Counters::default()) {
            family.reset();
        }
        for (port, counters) in ports {
            let ObjectName { namespace, name } = &port.service;
            let protocol = port.protocol.to_string().to_uppercase();
            let labels = [&**namespace, &**name, &*port.port, &protocol];
            for (family, count) in self.carried.parts(counters) {
                family.with_label_values(&labels).inc_by(count as f64);
            }
        }
    }

    /// The connection tracking table was searched for flows to endpoints that are gone.
    pub(crate) fn note_conntrack(&self, family: Family, duration: Duration, deleted: usize) {
        let family = [health::name(family)];
        self.conntrack_duration
            .with_label_values(&family)
            .observe(duration.as_secs_f64());
        self.conntrack_deleted
            .with_label_values(&family)
            .inc_by(number(deleted));
    }

    /// A Service has endpoints, but for this of its traffic none on this node.
    pub(crate) fn set_without_local_endpoints(
        &self,
        service: &ObjectName,
        lacks: BTreeSet<(Traffic, Family)>,
    ) {
        let mut lacking = self.lacking.lock().unwrap_or_else(PoisonError::into_inner);
        let add = |(traffic, family), by: f64| {
            let policy = match traffic {
                Traffic::Internal => "internal",
                Traffic::External => "external",
            };
            self.without_local_endpoints
                .with_label_values(&[policy, health::name(family)])
                .add(by);
        };
        lacking
            .remove(service)
            .into_iter()
            .flatten()
            .for_each(|lack| add(lack, -1.));
        lacks.iter().for_each(|lack| add(*lack, 1.));
        if !lacks.is_empty() {
            lacking.insert(service.clone(), lacks);
        }
    }

    pub(crate) fn count_healthz(&self, code: StatusCode) {
        self.healthz.with_label_values(&[code.as_str()]).inc();
    }

    pub(crate) fn count_livez(&self, code: StatusCode) {
        self.livez.with_label_values(&[code.as_str()]).inc();
    }

    /// Counts a request to the API server; `code` is a status or what stands for none, `size` that of its body in bytes.
    pub(crate) fn note_request(
        &self,
        method: &Method,
        uri: &Uri,
        code: &str,
        size: Option<u64>,
        duration: Duration,
    ) {
        let (method, host) = (method.as_str(), host(uri));
        self.requests.with_label_values(&[code, method, host]).inc();
        self.request_duration
            .with_label_values(&[method, host])
            .observe(duration.as_secs_f64());
        if let Some(size) = size.filter(|_| watched(uri).is_none()) {
            self.request_size
                .with_label_values(&[method, host])
                .observe(size as f64);
        }
    }

    /// What the API server answers to a request is about to come. Who is refused a watch hears nothing on it.
    pub(crate) fn answer(&self, method: &Method, uri: &Uri, status: StatusCode) -> Answer {
        match watched(uri).filter(|_| status.is_success()) {
            Some(resource) => Answer::Watch(self.heard.with_label_values(&[resource])),
            None => Answer::Whole {
                sizes: self
                    .response_size
                    .with_label_values(&[method.as_str(), host(uri)]),
                bytes: 0,
            },
        }
    }

    /// The API server's name was looked up.
    pub(crate) fn note_resolution(&self, name: &str, duration: Duration) {
        self.resolution_duration
            .with_label_values(&[name])
            .observe(duration.as_secs_f64());
    }
}

fn host(uri: &Uri) -> &str {
    uri.authority().map_or("", |authority| authority.as_str())
}

/// The resource that a request watches, if that is what it does.
fn watched(uri: &Uri) -> Option<&str> {
    let is_watch = uri.query()?.split('&').any(|pair| pair == "watch=true");
    let (_, resource) = uri.path().rsplit_once('/')?;
    is_watch.then_some(resource)
}

/// An answer of the API server, which is measured while it comes.
#[derive(Debug)]
pub(crate) enum Answer {
    /// To a watch: when something came last.
    Watch(Gauge),
    /// To any other request: what has come so far counts when it ends.
    Whole { sizes: Histogram, bytes: usize },
}

impl Answer {
    /// So many bytes of it have come.
    pub(crate) fn note(&mut self, more: usize) {
        match self {
            Self::Watch(heard) => heard.set(seconds(SystemTime::now())),
            Self::Whole { bytes, .. } => *bytes += more,
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if let Self::Whole { sizes, bytes } = self {
            sizes.observe(*bytes as f64);
        }
    }
}

/// Makes and registers metric families.
struct Families<'a>(&'a Registry);

impl Families<'_> {
    fn counter(&self, name: &str, help: &str) -> Result<Counter> {
        self.add(Counter::new(name, help)?)
    }

    fn gauge(&self, name: &str, help: &str) -> Result<Gauge> {
        self.add(Gauge::new(name, help)?)
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> Result<CounterVec> {
        self.add(CounterVec::new(Opts::new(name, help), labels)?)
    }

    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> Result<GaugeVec> {
        self.add(GaugeVec::new(Opts::new(name, help), labels)?)
    }

    fn histogram(&self, name: &str, help: &str, labels: &[&str], buckets: Vec<f64>) -> Result<HistogramVec> {
        self.add(HistogramVec::new(
            HistogramOpts::new(name, help).buckets(buckets),
            labels,
        )?)
    }

    fn add<C: Collector + Clone + 'static>(&self, family: C) -> Result<C> {
        self.0.register(Box::new(family.clone()))?;
        Ok(family)
    }
}

/// Which program this is. What Go says of a build and Rust does not is empty.
fn tell_build(families: &Families<'_>) -> Result<()> {
    let mut minor = version::KUBERNETES.trim_start_matches('v').split('.');
    let major = minor.next().unwrap_or_default();
    let architecture = match ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let labels = [
        ("major", major),
        ("minor", minor.next().unwrap_or_default()),
        ("git_version", version::KUBERNETES),
        ("git_commit", ""),
        ("git_tree_state", ""),
        ("build_date", ""),
        ("go_version", ""),
        ("compiler", "rustc"),
        ("platform", &format!("{OS}/{architecture}")),
    ];
    let (names, values): (Vec<_>, Vec<_>) = labels.into_iter().unzip();
    let help = "[BETA] The release of Kubernetes that this program stands in for.";
    let build = families.gauges("kubernetes_build_info", help, &names)?;
    build.with_label_values(&values).set(1.);
    Ok(())
}

/// Upper bounds of the time from a pod's change to the kernel's: finer where it should be.
fn programming_seconds() -> Vec<f64> {
    let whole = (1..60).chain((60..120).step_by(5)).chain((120..=300).step_by(30));
    [0.25, 0.5].into_iter().chain(whole.map(f64::from)).collect()
}

fn driver_name(driver: Driver) -> &'static str {
    match driver {
        Driver::Netfilter => "netfilter",
        Driver::Ipvs => "ipvs",
        Driver::Link => "link",
    }
}

/// Since the Unix epoch.
pub(crate) fn seconds(time: SystemTime) -> f64 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0., |duration| duration.as_secs_f64())
}

/// Numbers are floating ones to Prometheus.
fn number(count: usize) -> f64 {
    u32::try_from(count).map_or(f64::INFINITY, f64::from)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::Instant;

    use proxier::{
        model::Protocol,
        report::{Totals, Work},
    };

    use super::*;

    /// After a bit of everything.
    fn used() -> Metrics {
        let metrics = Metrics::new().unwrap();
        let service = ObjectName::new("ns", "web");
        metrics.note_change(&Change::ServiceGone(service.clone()));
        metrics.note_change(&Change::EndpointSliceGone(service.clone()));
        metrics.note_queued(&[Family::Inet]);
        metrics.set_without_local_endpoints(&service, [(Traffic::External, Family::Inet)].into());
        metrics.set_feature_gates(&FeatureGates::default());
        metrics.count_healthz(StatusCode::OK);
        metrics.count_livez(StatusCode::SERVICE_UNAVAILABLE);
        metrics.note_resolution("api.example", Duration::from_millis(3));
        for (path, status) in [
            ("services?watch=true", StatusCode::OK),
            ("nodes?watch=true", StatusCode::FORBIDDEN),
            ("events", StatusCode::CREATED),
        ] {
            let uri: Uri = format!("https://api.example:6443/api/v1/{path}").parse().unwrap();
            let took = Duration::from_millis(30);
            metrics.note_request(&Method::POST, &uri, status.as_str(), Some(700), took);
            let mut answer = metrics.answer(&Method::POST, &uri, status);
            [300, 500].into_iter().for_each(|bytes| answer.note(bytes));
        }
        metrics.note_conntrack(Family::Inet6, Duration::from_millis(3), 4);
        metrics
    }

    pub(crate) fn sync(occasion: Occasion, pending: bool) -> Sync {
        Sync {
            occasion,
            families: vec![Family::Inet, Family::Inet6],
            started: Instant::now(),
            duration: Duration::from_millis(20),
            services: 1,
            work: vec![Work {
                driver: Driver::Netfilter,
                operations: 3,
                failures: 1,
                duration: Duration::from_millis(5),
            }],
            triggers: vec![
                (Family::Inet, SystemTime::now()),
                (Family::Inet, SystemTime::UNIX_EPOCH),
            ],
            node_port_addresses: BTreeSet::new(),
            pending,
            complete: true,
            totals: Totals {
                wanted: 5,
                failing: 1,
                draining: 2,
            },
        }
    }

    fn port(name: &str) -> ServicePortName {
        ServicePortName {
            service: ObjectName::new("ns", "web"),
            port: name.into(),
            protocol: Protocol::Udp,
        }
    }

    fn text(metrics: &Metrics) -> String {
        String::from_utf8(metrics.render().unwrap()).unwrap()
    }

    fn assert_has(metrics: &Metrics, lines: &[&str]) {
        let text = text(metrics);
        for line in lines {
            assert!(text.lines().any(|other| other == *line), "{line} in\n{text}");
        }
    }

    #[test]
    fn a_sync_is_counted() {
        let metrics = used();
        metrics.note_sync(&sync(Occasion::Change, true));
        assert_has(
            &metrics,
            &[
                "kubeproxy_sync_proxy_rules_service_changes_pending 1",
                "kubeproxy_sync_proxy_rules_service_changes_total 1",
                "ipvs_proxier_repairs_total 0",
            ],
        );
        metrics.note_sync(&sync(Occasion::Verification, false));
        assert_has(
            &metrics,
            &[
                "kubeproxy_sync_proxy_rules_duration_seconds_bucket{ip_family=\"IPv6\",le=\"0.016\"} 0",
                "kubeproxy_sync_proxy_rules_duration_seconds_bucket{ip_family=\"IPv6\",le=\"0.032\"} 2",
                "kubeproxy_sync_proxy_rules_duration_seconds_bucket{ip_family=\"IPv6\",le=\"16.384\"} 2",
                "kubeproxy_network_programming_duration_seconds_bucket{ip_family=\"IPv4\",le=\"0.25\"} 2",
                "kubeproxy_network_programming_duration_seconds_bucket{ip_family=\"IPv4\",le=\"300\"} 2",
                "kubeproxy_network_programming_duration_seconds_count{ip_family=\"IPv4\"} 2",
                "kubeproxy_sync_proxy_rules_service_changes_pending 0",
                "kubeproxy_sync_proxy_rules_endpoint_changes_total 1",
                "kubeproxy_sync_proxy_rules_iptables_restore_failures_total{ip_family=\"IPv4\"} 2",
                "ipvs_proxier_kernel_operations_total{driver=\"netfilter\"} 6",
                "ipvs_proxier_kernel_operation_failures_total{driver=\"netfilter\"} 2",
                "ipvs_proxier_repairs_total 2",
                "ipvs_proxier_objects{state=\"failing\"} 1",
                "ipvs_proxier_draining_servers 2",
            ],
        );
    }

    #[test]
    fn requests_are_counted_and_measured_but_watches_have_no_size() {
        let host = "host=\"api.example:6443\"";
        let verb = "verb=\"POST\"";
        assert_has(
            &used(),
            &[
                &format!("rest_client_requests_total{{code=\"201\",{host},method=\"POST\"}} 1"),
                &format!("rest_client_request_duration_seconds_count{{{host},{verb}}} 3"),
                &format!("rest_client_request_size_bytes_sum{{{host},{verb}}} 700"),
                &format!("rest_client_response_size_bytes_bucket{{{host},{verb},le=\"512\"}} 0"),
                &format!("rest_client_response_size_bytes_bucket{{{host},{verb},le=\"1024\"}} 2"),
                &format!("rest_client_response_size_bytes_bucket{{{host},{verb},le=\"16777216\"}} 2"),
                &format!("rest_client_response_size_bytes_sum{{{host},{verb}}} 1600"),
                "rest_client_dns_resolution_duration_seconds_bucket{host=\"api.example\",le=\"30\"} 1",
            ],
        );
        let text = text(&used());
        let heard = |resource| {
            text.contains(&format!(
                "ipvs_proxier_watch_heard_timestamp_seconds{{resource=\"{resource}\"}} "
            ))
        };
        assert!(heard("services") && !heard("nodes"), "{text}");
    }

    #[test]
    fn f8_ports_of_services_are_there_as_long_as_they_are_told_of() {
        let metrics = used();
        let counters = |connections| Counters {
            connections,
            outgoing_bytes: 1 << 40,
            ..Counters::default()
        };
        metrics.set_carried(&[(port("dns"), counters(7)), (port("old"), counters(1))].into());
        metrics.set_carried(&[(port("dns"), counters(9))].into());
        let labels = "{namespace=\"ns\",port=\"dns\",protocol=\"UDP\",service=\"web\"}";
        assert_has(
            &metrics,
            &[
                &format!("ipvs_proxier_service_connections_total{labels} 9"),
                &format!("ipvs_proxier_service_outgoing_bytes_total{labels} 1099511627776"),
            ],
        );
        assert!(!text(&metrics).contains("\"old\""));
    }

    #[test]
    fn services_without_local_endpoints_are_counted_while_they_are() {
        let metrics = used();
        let line = "kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family=\"IPv4\",traffic_policy=\"external\"}";
        let service = |name| ObjectName::new("ns", name);
        let lacks = || BTreeSet::from([(Traffic::External, Family::Inet)]);
        metrics.set_without_local_endpoints(&service("web"), lacks());
        metrics.set_without_local_endpoints(&service("other"), lacks());
        assert_has(&metrics, &[&format!("{line} 2")]);
        metrics.set_without_local_endpoints(&service("web"), BTreeSet::new());
        metrics.set_without_local_endpoints(&service("web"), BTreeSet::new());
        assert_has(&metrics, &[&format!("{line} 1")]);
    }

    /// What `promtool check metrics` looks at, and upstream's names, which it would not all like.
    #[test]
    fn the_text_is_as_prometheus_wants_it() {
        let metrics = used();
        metrics.note_sync(&sync(Occasion::Change, false));
        metrics.set_carried(&[(port("http"), Counters::default())].into());
        let text = text(&metrics);
        let mut families = BTreeSet::new();
        let mut samples = BTreeSet::new();
        let (mut name, mut kind) = ("", "");
        for line in text.lines() {
            if let Some(help) = line.strip_prefix("# HELP ") {
                name = help.split_once(' ').expect(line).0;
                assert!(families.insert(name), "{line}: a second time");
                let upstream_s = ["kubeproxy_", "rest_client_", "kubernetes_"];
                let of_upstream = upstream_s.iter().any(|prefix| name.starts_with(prefix));
                let is_rated = help.contains(" [ALPHA] ") || help.contains(" [BETA] ");
                assert_eq!(is_rated, of_upstream, "{line}");
                continue;
            }
            if let Some(typed) = line.strip_prefix("# TYPE ") {
                kind = typed.strip_prefix(name).expect(line).trim();
                if kind == "counter" {
                    assert!(name.ends_with("_total"), "{line}");
                }
                continue;
            }
            let (sample, value) = line.rsplit_once(' ').expect(line);
            value.parse::<f64>().expect(line);
            assert!(samples.insert(sample), "{line}: a second time");
            let suffix = sample
                .split('{')
                .next()
                .and_then(|full| full.strip_prefix(name))
                .expect(line);
            match kind {
                "histogram" => assert!(["_bucket", "_sum", "_count"].contains(&suffix), "{line}"),
                _ => assert_eq!(suffix, "", "{line}"),
            }
        }
        assert!(families.len() > 25, "{families:?}");
    }
}
