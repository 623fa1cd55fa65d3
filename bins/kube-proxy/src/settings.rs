//! What the configuration means: the proxier's, and what else the program does.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use ipnet::IpNet;
use ipvs::Scheduler;
use proxier::{
    Config,
    config::{Conntrack, LocalDetector, NodePortAddresses, StrictArp, Timeouts},
};

use crate::{
    address::{Listener, parse_cidr, parse_ip, parse_listener},
    configuration::{self, Configuration, Logging, VModule},
    duration::GoDuration,
    feature_gates::FeatureGates,
    flags::{self, Flags, Request},
    inspect::Format,
};

/// What an operator has decided.
#[allow(
    dead_code,
    reason = "the servers and tasks that read the rest are being added"
)]
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) config: Config,
    pub(crate) source: Source,
    /// How the API server is spoken to, if it is.
    pub(crate) client: Client,
    /// The node's primary address, instead of its object's (`bindAddress`).
    pub(crate) bind_address: Option<IpAddr>,
    /// Where `/healthz` is served, if it is. An unspecified IPv4 address means all addresses of both families.
    pub(crate) healthz_bind_address: Option<SocketAddr>,
    /// Where `/metrics` is served, if it is.
    pub(crate) metrics_bind_address: Option<SocketAddr>,
    /// One of them that cannot be had ends the program.
    pub(crate) bind_address_hard_fail: bool,
    /// Serve what profiles the program (`enableProfiling`).
    pub(crate) profiling: bool,
    /// The kernel's `oom_score_adj` of the process, -1000 to 1000.
    pub(crate) oom_score_adj: i32,
    /// Remove what is programmed, and exit.
    pub(crate) cleanup: bool,
    /// Do what needs all privileges, and exit.
    pub(crate) init_only: bool,
    /// What is asked for; all but [`Request::Run`] only look.
    pub(crate) request: Request,
    /// How the command `plan` prints.
    pub(crate) output: Format,
    pub(crate) feature_gates: FeatureGates,
    /// All of the above as it was decided: for `/configz`.
    pub(crate) configuration: Configuration,
    /// Each flag with its value: for `/flagz`.
    pub(crate) flag_values: Vec<(String, String)>,
}

/// Where Services come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// A directory of manifests.
    Manifests(PathBuf),
    /// The API server that the client's settings name, or that runs the Pod that we are in.
    Api,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Manifests(directory) => write!(f, "manifests in {}", directory.display()),
            Self::Api => f.write_str("API server"),
        }
    }
}

/// How the API server is spoken to (`clientConnection`, `--master`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Client {
    pub(crate) kubeconfig: Option<PathBuf>,
    /// URL that takes the place of the kubeconfig's.
    pub(crate) master: Option<String>,
}

/// All that is wrong with the configuration.
#[derive(Debug)]
pub(crate) struct Invalid(Vec<String>);

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "failed validate: {}", self.0.join("; "))
    }
}

impl std::error::Error for Invalid {}

impl Settings {
    /// Makes sense of the configuration on the host `hostname`. All that is wrong is in the error, not the first only.
    pub(crate) fn new(configuration: Configuration, flags: &Flags, hostname: &str) -> Result<Self, Invalid> {
        let mut errors = Errors::default();
        let c = &configuration;
        without_effect(c, &mut errors);
        let feature_gates = FeatureGates::new(&c.feature_gates).unwrap_or_else(|problems| {
            problems
                .iter()
                .for_each(|problem| errors.add("featureGates", problem));
            FeatureGates::default()
        });
        logging(&c.logging, &feature_gates, &mut errors);
        let settings = Self {
            config: Config {
                scheduler: scheduler(c, &mut errors),
                exclude_cidrs: errors.cidrs("ipvs.excludeCIDRs", &c.ipvs.exclude_cidrs),
                external_cidrs: errors.cidrs("--ipvs-external-cidrs", &flags.list("ipvs-external-cidrs")),
                node_port_addresses: node_port_addresses(c, &mut errors),
                local_detector: local_detector(c, &mut errors),
                masquerade_all: c.iptables.masquerade_all,
                masquerade_fully_random: flags.value("ipvs-masquerade-fully-random") != Some(false.into()),
                masquerade_bit: masquerade_bit(c, &mut errors),
                strict_arp: strict_arp(c, flags, &mut errors),
                timeouts: Timeouts {
                    tcp: whole_seconds(c.ipvs.tcp_timeout),
                    tcp_fin: whole_seconds(c.ipvs.tcp_fin_timeout),
                    udp: whole_seconds(c.ipvs.udp_timeout),
                },
                conntrack: conntrack(&c.conntrack, &mut errors),
                sync_period: sync_period(c, &mut errors),
                min_sync_period: c.ipvs.min_sync_period.0,
                service_metrics: flags.switch("ipvs-service-metrics"),
                ..Config::new(node_name(c, hostname, &mut errors))
            },
            source: source(c, flags, &mut errors),
            client: Client {
                kubeconfig: Some(&c.client_connection.kubeconfig)
                    .filter(|path| !path.is_empty())
                    .map(PathBuf::from),
                master: Some(flags.text("master")).filter(|url| !url.is_empty()),
            },
            bind_address: bind_address(c, &mut errors),
            healthz_bind_address: errors.listener("healthzBindAddress", &c.healthz_bind_address),
            metrics_bind_address: errors.listener("metricsBindAddress", &c.metrics_bind_address),
            bind_address_hard_fail: c.bind_address_hard_fail,
            profiling: c.enable_profiling,
            oom_score_adj: oom_score_adj(c, &mut errors),
            cleanup: flags.switch("cleanup"),
            init_only: flags.switch("init-only"),
            request: flags.request().clone(),
            output: output(flags, &mut errors),
            feature_gates,
            flag_values: flags.values(),
            configuration: configuration.clone(),
        };
        let settings = match flags.duration("ipvs-drain-timeout") {
            None => settings,
            Some(drain_timeout) => Self {
                config: Config {
                    drain_timeout,
                    ..settings.config
                },
                ..settings
            },
        };
        if errors.0.is_empty() {
            Ok(settings)
        } else {
            Err(Invalid(errors.0))
        }
    }
}

fn output(flags: &Flags, errors: &mut Errors) -> Format {
    match flags.text("output").as_str() {
        "" | "ipvsadm" => Format::Ipvsadm,
        "json" => Format::Json,
        "nft" => Format::Nft,
        other => {
            errors
                .0
                .push(format!("--output: {other:?} is none of ipvsadm, json, nft"));
            Format::Ipvsadm
        }
    }
}

#[derive(Default)]
struct Errors(Vec<String>);

impl Errors {
    /// A problem with a field, which an operator may know by its flag.
    fn add(&mut self, field: &str, problem: impl fmt::Display) {
        self.0.push(match flags::flag_of_field(field) {
            Some(flag) => format!("{field} (--{}): {problem}", flag.name),
            None => format!("{field}: {problem}"),
        });
    }

    fn cidrs(&mut self, field: &str, texts: &[impl AsRef<str>]) -> Vec<IpNet> {
        let texts = texts.iter().map(AsRef::as_ref);
        texts
            .filter_map(|text| {
                let cidr = parse_cidr(text);
                if cidr.is_none() {
                    self.add(field, format_args!("{text:?} is not a CIDR"));
                }
                cidr
            })
            .collect()
    }

    fn natural(&mut self, field: &str, number: i32) -> u32 {
        u32::try_from(number).unwrap_or_else(|_| {
            self.add(field, format_args!("{number} is negative"));
            0
        })
    }

    fn listener(&mut self, field: &str, text: &str) -> Option<SocketAddr> {
        match parse_listener(text) {
            Some(Listener::None) => None,
            Some(Listener::Socket(socket)) => Some(socket),
            Some(Listener::Address(_)) | None => {
                self.add(field, format_args!("{text:?} is not IP:port; 0 stands for none"));
                None
            }
        }
    }

    fn one_of(&mut self, field: &str, text: &str, allowed: &[&str]) {
        if !allowed.contains(&text) {
            self.add(
                field,
                format_args!(
                    "{text:?} is none of {}",
                    allowed
                        .iter()
                        .filter(|allowed| !allowed.is_empty())
                        .copied()
                        .collect::<Vec<_>>()
                        .join(", ")
                ),
            );
        }
    }
}

/// What is wrong with what changes nothing.
fn without_effect(c: &Configuration, errors: &mut Errors) {
    if c.mode != "ipvs" {
        let problem = "this kube-proxy has the mode ipvs only; for the other modes run upstream's";
        errors.add("mode", format_args!("{:?}: {problem}", c.mode));
    }
    if c.config_sync_period.0.is_zero() {
        errors.add("configSyncPeriod", "must be greater than 0");
    }
    errors.natural("clientConnection.burst", c.client_connection.burst);
    errors.one_of(
        "showHiddenMetricsForVersion",
        &c.show_hidden_metrics_for_version,
        &["", configuration::PREVIOUS_MINOR],
    );
}

fn logging(c: &Logging, gates: &FeatureGates, errors: &mut Errors) {
    errors.one_of("logging.format", &c.format, &["text", "json"]);
    if c.format == "json" && !gates.logging_beta_options() {
        errors.add("logging.format", "json needs the feature gate LoggingBetaOptions");
    }
    if c.flush_frequency.duration().is_zero() {
        errors.add("logging.flushFrequency", "must be greater than 0");
    }
    if i32::try_from(c.verbosity).is_err() {
        errors.add("logging.verbosity", "must be a number of 31 bits");
    }
    if c.format != "text" && !c.vmodule.is_empty() {
        errors.add("logging.vmodule", "is for the format text only");
    }
    for (
        index,
        VModule {
            file_pattern,
            verbosity,
        },
    ) in c.vmodule.iter().enumerate()
    {
        let item = format!("logging.vmodule[{index}]");
        if file_pattern.is_empty() || file_pattern.contains(['=', ',']) {
            let problem = "is empty, or has a comma or an equals sign";
            errors.add(
                &format!("{item}.filePattern"),
                format_args!("{file_pattern:?} {problem}"),
            );
        }
        if i32::try_from(*verbosity).is_err() {
            errors.add(&format!("{item}.verbosity"), "must be a number of 31 bits");
        }
    }
    for (format, options) in [("text", &c.options.text), ("json", &c.options.json)] {
        let field = |name| format!("logging.options.{format}.{name}");
        let is_zero = !options
            .info_buffer_size
            .0
            .contains(|c: char| ('1'..='9').contains(&c));
        if !options.info_buffer_size.is_valid() {
            errors.add(
                &field("infoBufferSize"),
                "must be a number of bytes such as 512, 1K or 2Ki",
            );
        } else if !is_zero && !gates.logging_alpha_options() {
            errors.add(
                &field("infoBufferSize"),
                "needs the feature gate LoggingAlphaOptions",
            );
        }
        if options.split_stream && !gates.logging_alpha_options() {
            errors.add(
                &field("splitStream"),
                "needs the feature gate LoggingAlphaOptions",
            );
        }
    }
}

fn node_name(c: &Configuration, hostname: &str, errors: &mut Errors) -> String {
    let chosen = &c.hostname_override;
    let name = if chosen.is_empty() { hostname } else { chosen }
        .trim()
        .to_lowercase();
    if name.is_empty() {
        errors.add("hostnameOverride", "the name of the node is blank");
    }
    name
}

fn source(c: &Configuration, flags: &Flags, errors: &mut Errors) -> Source {
    let directory = flags.text("manifests");
    if directory.is_empty() {
        return Source::Api;
    }
    if !c.client_connection.kubeconfig.is_empty() || !flags.text("master").is_empty() {
        errors.0.push(
            "--manifests: takes the place of --kubeconfig and --master; give one or the other".to_owned(),
        );
    }
    Source::Manifests(directory.into())
}

fn bind_address(c: &Configuration, errors: &mut Errors) -> Option<IpAddr> {
    let address = parse_ip(&c.bind_address);
    if address.is_none() {
        errors.add(
            "bindAddress",
            format_args!("{:?} is not an IP address", c.bind_address),
        );
    }
    address.filter(|address| !address.is_unspecified())
}

fn strict_arp(c: &Configuration, flags: &Flags, errors: &mut Errors) -> StrictArp {
    const FLAG: &str = "ipvs-strict-arp-interfaces";
    let interfaces = flags.list(FLAG);
    // IFNAMSIZ, with the zero at the end.
    let is_name = |name: &str| (1..16).contains(&name.len()) && !name.contains(['/', ' ']);
    for name in interfaces.iter().filter(|name| !is_name(name)) {
        errors.add(
            &format!("--{FLAG}"),
            format_args!("{name:?} is not an interface's name"),
        );
    }
    match (interfaces.is_empty(), c.ipvs.strict_arp) {
        (true, false) => StrictArp::Nowhere,
        (true, true) => StrictArp::Everywhere,
        (false, _) => StrictArp::On(interfaces.into_iter().map(Into::into).collect()),
    }
}

/// The detector; the Node's CIDRs are still to be learned from the Node.
fn local_detector(c: &Configuration, errors: &mut Errors) -> LocalDetector {
    let mut interface = |field, name: &str| {
        if name.is_empty() {
            errors.add(
                field,
                format_args!("must be given for detectLocalMode {}", c.detect_local_mode),
            );
        }
        name.into()
    };
    let detect = &c.detect_local;
    match c.detect_local_mode.as_str() {
        "ClusterCIDR" => cluster_cidrs(c, errors),
        "NodeCIDR" => LocalDetector::NodeCidrs(Vec::new()),
        "BridgeInterface" => {
            let bridge = interface("detectLocal.bridgeInterface", &detect.bridge_interface);
            LocalDetector::BridgeInterface(bridge)
        }
        "InterfaceNamePrefix" => {
            let prefix = interface("detectLocal.interfaceNamePrefix", &detect.interface_name_prefix);
            LocalDetector::InterfaceNamePrefix(prefix)
        }
        other => {
            let modes = [
                "ClusterCIDR",
                "NodeCIDR",
                "BridgeInterface",
                "InterfaceNamePrefix",
            ];
            errors.one_of("detectLocalMode", other, &modes);
            LocalDetector::None
        }
    }
}

fn cluster_cidrs(c: &Configuration, errors: &mut Errors) -> LocalDetector {
    if c.cluster_cidr.is_empty() {
        return LocalDetector::None;
    }
    let texts: Vec<&str> = c.cluster_cidr.split(',').collect();
    let cidrs = errors.cidrs("clusterCIDR", &texts);
    let of_both_families = |a: &IpNet, b: &IpNet| a.addr().is_ipv4() != b.addr().is_ipv4();
    match cidrs.as_slice() {
        [] | [_] => {}
        [a, b] if of_both_families(a, b) => {}
        _ => errors.add("clusterCIDR", "takes one CIDR, or one of each address family"),
    }
    LocalDetector::Cidrs(cidrs)
}

fn scheduler(c: &Configuration, errors: &mut Errors) -> Scheduler {
    match c.ipvs.scheduler.as_str() {
        "" => Scheduler::ROUND_ROBIN,
        name => name.parse().unwrap_or_else(|error| {
            errors.add("ipvs.scheduler", error);
            Scheduler::ROUND_ROBIN
        }),
    }
}

fn node_port_addresses(c: &Configuration, errors: &mut Errors) -> NodePortAddresses {
    const FIELD: &str = "nodePortAddresses";
    match c.node_port_addresses.as_slice() {
        [] => NodePortAddresses::All,
        [word] if word == "primary" => NodePortAddresses::Primary,
        texts if texts.iter().any(|text| text == "primary") => {
            errors.add(FIELD, "the word primary stands alone, without CIDRs");
            NodePortAddresses::Primary
        }
        texts => NodePortAddresses::Cidrs(errors.cidrs(FIELD, texts)),
    }
}

fn masquerade_bit(c: &Configuration, errors: &mut Errors) -> u8 {
    let bit = u8::try_from(c.iptables.masquerade_bit)
        .ok()
        .filter(|bit| *bit < 32);
    if bit.is_none() {
        errors.add("iptables.masqueradeBit", "must be within the range [0, 31]");
    }
    bit.unwrap_or_default()
}

fn oom_score_adj(c: &Configuration, errors: &mut Errors) -> i32 {
    if !(-1000..=1000).contains(&c.oom_score_adj) {
        errors.add("oomScoreAdj", "must be within the range [-1000, 1000]");
    }
    c.oom_score_adj
}

fn conntrack(c: &configuration::Conntrack, errors: &mut Errors) -> Conntrack {
    let timeout = |duration: GoDuration| Some(duration.0).filter(|duration| !duration.is_zero());
    Conntrack {
        max_per_core: Some(errors.natural("conntrack.maxPerCore", c.max_per_core)).filter(|max| *max > 0),
        min: errors.natural("conntrack.min", c.min),
        tcp_established: timeout(c.tcp_established_timeout),
        tcp_close_wait: timeout(c.tcp_close_wait_timeout),
        be_liberal: c.tcp_be_liberal,
        udp: timeout(c.udp_timeout),
        udp_stream: timeout(c.udp_stream_timeout),
    }
}

fn sync_period(c: &Configuration, errors: &mut Errors) -> Duration {
    let (period, least) = (c.ipvs.sync_period, c.ipvs.min_sync_period);
    if period.0.is_zero() {
        errors.add("ipvs.syncPeriod", "must be greater than 0");
    }
    if period < least {
        errors.add(
            "ipvs.syncPeriod",
            format_args!("{period} is less than ipvs.minSyncPeriod {least}"),
        );
    }
    period.0
}

/// The kernel counts these in seconds.
fn whole_seconds(duration: GoDuration) -> Duration {
    Duration::from_secs(duration.0.as_secs())
}

#[cfg(test)]
mod tests {
    use proxier::model::ObjectName;

    use super::*;
    use crate::flags::tests::parse;

    fn settings(args: &[&str]) -> Result<Settings, String> {
        let flags = parse(args).unwrap();
        let configuration = configuration::of_flags(&flags).unwrap();
        Settings::new(configuration, &flags, "Host").map_err(|invalid| invalid.to_string())
    }

    /// The library's defaults, and limits of connection tracking, which the library leaves to the kernel.
    fn upstream_defaults(node: &str) -> Config {
        Config {
            conntrack: proxier::config::Conntrack {
                max_per_core: Some(32768),
                min: 131_072,
                tcp_established: Some(Duration::from_secs(24 * 60 * 60)),
                tcp_close_wait: Some(Duration::from_secs(60 * 60)),
                ..Default::default()
            },
            ..Config::new(node)
        }
    }

    #[test]
    fn without_flags_upstream_s_defaults_hold() {
        let settings = settings(&[]).unwrap();
        assert_eq!(
            format!("{:?}", settings.config),
            format!("{:?}", upstream_defaults("host"))
        );
        assert_eq!(settings.source, Source::Api);
        assert_eq!((settings.client.kubeconfig, settings.client.master), (None, None));
        assert_eq!(settings.bind_address, None);
        assert_eq!(
            (settings.request, settings.output),
            (Request::Run, Format::Ipvsadm)
        );
    }

    #[test]
    fn every_flag_reaches_the_setting_behind_it() {
        let settings = settings(&[
            "--manifests=/etc/manifests",
            "--hostname-override= Node-1 ",
            "--bind-address=192.0.2.1",
            "--cluster-cidr=10.244.0.0/16,fd00::/64",
            "--masquerade-all",
            "--iptables-masquerade-bit=0",
            "--ipvs-masquerade-fully-random=false",
            "--nodeport-addresses=192.0.2.0/24,fd01::/64",
            "--ipvs-scheduler=mh",
            "--ipvs-exclude-cidrs=198.51.100.0/24",
            "--ipvs-strict-arp",
            "--ipvs-sync-period=1m",
            "--ipvs-min-sync-period=2s",
            "--ipvs-tcp-timeout=3500ms",
            "--ipvs-tcpfin-timeout=4s",
            "--ipvs-udp-timeout=5s",
            "--ipvs-drain-timeout=6s",
            "--ipvs-external-cidrs=203.0.113.0/24",
            "--ipvs-service-metrics",
            "--output=json",
            "explain",
            "kube-system/dns",
        ])
        .unwrap();
        let cidrs = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        let expected = Config {
            scheduler: "mh".parse().unwrap(),
            exclude_cidrs: cidrs(&["198.51.100.0/24"]),
            node_port_addresses: NodePortAddresses::Cidrs(cidrs(&["192.0.2.0/24", "fd01::/64"])),
            local_detector: LocalDetector::Cidrs(cidrs(&["10.244.0.0/16", "fd00::/64"])),
            masquerade_all: true,
            masquerade_fully_random: false,
            masquerade_bit: 0,
            strict_arp: StrictArp::Everywhere,
            timeouts: Timeouts {
                tcp: Duration::from_secs(3),
                tcp_fin: Duration::from_secs(4),
                udp: Duration::from_secs(5),
            },
            sync_period: Duration::from_secs(60),
            min_sync_period: Duration::from_secs(2),
            drain_timeout: Duration::from_secs(6),
            external_cidrs: cidrs(&["203.0.113.0/24"]),
            service_metrics: true,
            ..upstream_defaults("node-1")
        };
        assert_eq!(format!("{:?}", settings.config), format!("{expected:?}"));
        assert_eq!(settings.source, Source::Manifests("/etc/manifests".into()));
        assert_eq!(settings.bind_address, Some("192.0.2.1".parse().unwrap()));
        assert_eq!(
            settings.request,
            Request::Explain(ObjectName::new("kube-system", "dns"))
        );
        assert_eq!(settings.output, Format::Json);
    }

    /// D4
    #[test]
    fn interfaces_take_the_place_of_all_for_strict_arp() {
        let interfaces = "--ipvs-strict-arp-interfaces=eth0,bond0.100";
        let on = StrictArp::On(vec!["eth0".into(), "bond0.100".into()]);
        for args in [&[interfaces][..], &[interfaces, "--ipvs-strict-arp"]] {
            assert_eq!(settings(args).unwrap().config.strict_arp, on, "{args:?}");
        }
    }

    #[test]
    fn the_servers_limits_and_tasks_follow_their_flags() {
        let defaults = settings(&[]).unwrap();
        assert_eq!(
            defaults.healthz_bind_address,
            Some("0.0.0.0:10256".parse().unwrap())
        );
        assert_eq!(
            defaults.metrics_bind_address,
            Some("127.0.0.1:10249".parse().unwrap())
        );
        assert_eq!(defaults.config.conntrack.max_per_core, Some(32768));
        assert_eq!(
            defaults.config.conntrack.tcp_established,
            Some(Duration::from_secs(24 * 3600))
        );
        assert_eq!(defaults.config.conntrack.udp, None);
        let settings = settings(&[
            "--healthz-bind-address=",
            "--metrics-bind-address=0",
            "--bind-address-hard-fail",
            "--profiling",
            "--conntrack-max-per-core=0",
            "--conntrack-min=1",
            "--conntrack-tcp-timeout-established=0",
            "--conntrack-tcp-timeout-close-wait=2s",
            "--conntrack-tcp-be-liberal",
            "--conntrack-udp-timeout=3s",
            "--conntrack-udp-timeout-stream=4s",
            "--oom-score-adj=0",
            "--kubeconfig=/k",
            "--master=http://192.0.2.1",
            "--cleanup",
            "--init-only",
            "--feature-gates=AllowServiceExternalIPs=false",
        ])
        .unwrap();
        assert_eq!(
            (settings.healthz_bind_address, settings.metrics_bind_address),
            (None, None)
        );
        assert!(
            settings.bind_address_hard_fail && settings.profiling && settings.cleanup && settings.init_only
        );
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        assert_eq!(
            settings.config.conntrack,
            Conntrack {
                max_per_core: None,
                min: 1,
                tcp_established: None,
                tcp_close_wait: seconds(2),
                be_liberal: true,
                udp: seconds(3),
                udp_stream: seconds(4),
            }
        );
        assert_eq!(settings.oom_score_adj, 0);
        assert_eq!(
            settings.client,
            Client {
                kubeconfig: Some("/k".into()),
                master: Some("http://192.0.2.1".to_owned()),
            }
        );
        assert!(!settings.feature_gates.external_ips());
        let value = |name: &str| {
            settings
                .flag_values
                .iter()
                .find(|(flag, _)| flag == name)
                .unwrap()
                .1
                .clone()
        };
        assert_eq!(value("conntrack-min"), "1");
        assert_eq!(value("ipvs-sync-period"), "30s");
        assert_eq!(value("feature-gates"), "AllowServiceExternalIPs=false");
    }

    #[test]
    fn the_local_detector_follows_the_mode() {
        for (args, detector) in [
            (
                &["--cluster-cidr=010.0.0.1/8"][..],
                LocalDetector::Cidrs(vec!["10.0.0.0/8".parse().unwrap()]),
            ),
            (&["--detect-local-mode="], LocalDetector::None),
            (
                &["--detect-local-mode=NodeCIDR", "--cluster-cidr=10.0.0.0/8"],
                LocalDetector::NodeCidrs(vec![]),
            ),
            (
                &[
                    "--detect-local-mode=BridgeInterface",
                    "--pod-bridge-interface=cni0",
                ],
                LocalDetector::BridgeInterface("cni0".into()),
            ),
            (
                &[
                    "--detect-local-mode=InterfaceNamePrefix",
                    "--pod-interface-name-prefix=veth",
                ],
                LocalDetector::InterfaceNamePrefix("veth".into()),
            ),
        ] {
            let settings = settings(args).unwrap();
            assert_eq!(settings.config.local_detector, detector, "{args:?}");
        }
    }

    #[test]
    fn node_port_addresses_are_all_some_or_the_primary_ones() {
        let addresses = |args: &[&str]| settings(args).unwrap().config.node_port_addresses;
        assert_eq!(addresses(&["--nodeport-addresses="]), NodePortAddresses::All);
        assert_eq!(
            addresses(&["--nodeport-addresses=primary"]),
            NodePortAddresses::Primary
        );
    }

    #[test]
    fn an_unspecified_bind_address_is_none() {
        for address in ["0.0.0.0", "::"] {
            assert_eq!(
                settings(&["--bind-address", address]).unwrap().bind_address,
                None,
                "{address}"
            );
        }
    }

    #[test]
    fn what_is_wrong_is_said_all_at_once() {
        for (args, message) in [
            (
                &["--proxy-mode=iptables"][..],
                "mode (--proxy-mode): \"iptables\": this kube-proxy has the mode ipvs only; for the other modes run upstream's",
            ),
            (
                &["--config-sync-period=0"],
                "configSyncPeriod (--config-sync-period): must be greater than 0",
            ),
            (
                &["--hostname-override= "],
                "hostnameOverride (--hostname-override): the name of the node is blank",
            ),
            (
                &["--manifests=x", "--master=http://localhost"],
                "--manifests: takes the place of --kubeconfig and --master; give one or the other",
            ),
            (
                &["--cluster-cidr=10.0.0.0/8,11.0.0.0/8"],
                "clusterCIDR (--cluster-cidr): takes one CIDR, or one of each address family",
            ),
            (
                &["--cluster-cidr=10.0.0.0/8, fd00::/64"],
                "clusterCIDR (--cluster-cidr): \" fd00::/64\" is not a CIDR",
            ),
            (
                &["--detect-local-mode=Guess"],
                "detectLocalMode (--detect-local-mode): \"Guess\" is none of ClusterCIDR, NodeCIDR, BridgeInterface, InterfaceNamePrefix",
            ),
            (
                &["--detect-local-mode=BridgeInterface"],
                "detectLocal.bridgeInterface (--pod-bridge-interface): must be given for detectLocalMode BridgeInterface",
            ),
            (
                &["--ipvs-strict-arp-interfaces=eth0,a/b"],
                "--ipvs-strict-arp-interfaces: \"a/b\" is not an interface's name",
            ),
            (
                &["--iptables-masquerade-bit=32"],
                "iptables.masqueradeBit (--iptables-masquerade-bit): must be within the range [0, 31]",
            ),
            (
                &["--iptables-masquerade-bit=-1"],
                "iptables.masqueradeBit (--iptables-masquerade-bit): must be within the range [0, 31]",
            ),
            (
                &["--nodeport-addresses=primary,10.0.0.0/8"],
                "nodePortAddresses (--nodeport-addresses): the word primary stands alone, without CIDRs",
            ),
            (
                &["--ipvs-external-cidrs=all"],
                "--ipvs-external-cidrs: \"all\" is not a CIDR",
            ),
            (
                &["--ipvs-exclude-cidrs=10.0.0.0"],
                "ipvs.excludeCIDRs (--ipvs-exclude-cidrs): \"10.0.0.0\" is not a CIDR",
            ),
            (
                &["--ipvs-sync-period=0s"],
                "ipvs.syncPeriod (--ipvs-sync-period): must be greater than 0",
            ),
            (
                &["--ipvs-min-sync-period=1m"],
                "ipvs.syncPeriod (--ipvs-sync-period): 30s is less than ipvs.minSyncPeriod 1m0s",
            ),
            (
                &["--oom-score-adj=-1001"],
                "oomScoreAdj (--oom-score-adj): must be within the range [-1000, 1000]",
            ),
            (
                &["--kube-api-burst=-1"],
                "clientConnection.burst (--kube-api-burst): -1 is negative",
            ),
            (
                &["--conntrack-min=-1"],
                "conntrack.min (--conntrack-min): -1 is negative",
            ),
            (
                &["--show-hidden-metrics-for-version=1.34"],
                "showHiddenMetricsForVersion (--show-hidden-metrics-for-version): \"1.34\" is none of 1.35",
            ),
            (
                &["--feature-gates=NoSuchGate=true"],
                "featureGates (--feature-gates): unrecognized feature gate: NoSuchGate",
            ),
            (
                &["--logging-format=xml"],
                "logging.format (--logging-format): \"xml\" is none of text, json",
            ),
            (
                &[
                    "--logging-format=json",
                    "--feature-gates=LoggingBetaOptions=false",
                ],
                "logging.format (--logging-format): json needs the feature gate LoggingBetaOptions",
            ),
            (
                &["--logging-format=json", "--vmodule=a=1"],
                "logging.vmodule (--vmodule): is for the format text only",
            ),
            (
                &["--log-flush-frequency=0"],
                "logging.flushFrequency (--log-flush-frequency): must be greater than 0",
            ),
            (
                &["--log-text-split-stream"],
                "logging.options.text.splitStream (--log-text-split-stream): needs the feature gate LoggingAlphaOptions",
            ),
            (
                &["--log-json-info-buffer-size=1Ki"],
                "logging.options.json.infoBufferSize (--log-json-info-buffer-size): needs the feature gate LoggingAlphaOptions",
            ),
            (
                &["--ipvs-sync-period=0s", "--iptables-masquerade-bit=32"],
                "iptables.masqueradeBit (--iptables-masquerade-bit): must be within the range [0, 31]; ipvs.syncPeriod (--ipvs-sync-period): must be greater than 0",
            ),
        ] {
            assert_eq!(
                settings(args).unwrap_err(),
                format!("failed validate: {message}"),
                "{args:?}"
            );
        }
        assert!(
            settings(&["--ipvs-scheduler=a name that is too long"])
                .unwrap_err()
                .contains("ipvs.scheduler (--ipvs-scheduler): ")
        );
    }
}
