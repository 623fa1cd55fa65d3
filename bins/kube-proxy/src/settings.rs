//! What the flags mean: the proxier's configuration, and where its objects come from.

use std::{fmt, net::IpAddr, path::PathBuf, time::Duration};

use ipnet::IpNet;
use ipvs::Scheduler;
use proxier::{
    Config,
    config::{LocalDetector, NodePortAddresses, Timeouts},
};

use crate::{
    address::{parse_cidr, parse_ip},
    flags::Flags,
};

/// What an operator has decided.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) config: Config,
    /// The pods' addresses are to be learned from the Node object before anything is programmed
    /// (`--detect-local-mode NodeCIDR`).
    pub(crate) local_is_node_cidrs: bool,
    pub(crate) source: Source,
    /// The node's primary address, instead of its object's (`--bind-address`).
    pub(crate) bind_address: Option<IpAddr>,
    pub(crate) dry_run: bool,
}

/// Where Services come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// A directory of manifests.
    Manifests(PathBuf),
    /// The API server that the kubeconfig names, or that runs the Pod that we are in.
    Api {
        kubeconfig: Option<PathBuf>,
        master: Option<String>,
    },
}

/// All that is wrong with the settings.
#[derive(Debug)]
pub(crate) struct Invalid(Vec<String>);

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "failed validate: {}", self.0.join("; "))
    }
}

impl std::error::Error for Invalid {}

impl Settings {
    /// Makes sense of the flags on the host `hostname`. All that is wrong is in the error, not the first only.
    pub(crate) fn new(flags: &Flags, hostname: &str) -> Result<Self, Invalid> {
        let mut errors = Errors::default();
        if !matches!(flags.text("proxy-mode"), "" | "ipvs") {
            errors.add(
                "proxy-mode",
                "this kube-proxy has the mode ipvs only; for the other modes run upstream's",
            );
        }
        if flags.duration("config-sync-period").is_zero() {
            errors.add("config-sync-period", "must be greater than 0");
        }
        let (local_detector, local_is_node_cidrs) = local_detector(flags, &mut errors);
        let settings = Self {
            config: Config {
                scheduler: scheduler(flags, &mut errors),
                exclude_cidrs: errors.cidrs("ipvs-exclude-cidrs", flags.list("ipvs-exclude-cidrs")),
                node_port_addresses: node_port_addresses(flags, &mut errors),
                local_detector,
                masquerade_all: flags.switch("masquerade-all"),
                masquerade_bit: masquerade_bit(flags, &mut errors),
                strict_arp: flags.switch("ipvs-strict-arp"),
                timeouts: Timeouts {
                    tcp: whole_seconds(flags, "ipvs-tcp-timeout"),
                    tcp_fin: whole_seconds(flags, "ipvs-tcpfin-timeout"),
                    udp: whole_seconds(flags, "ipvs-udp-timeout"),
                },
                sync_period: sync_period(flags, &mut errors),
                min_sync_period: flags.duration("ipvs-min-sync-period"),
                drain_timeout: flags.duration("ipvs-drain-timeout"),
                ..Config::new(node_name(flags, hostname, &mut errors))
            },
            local_is_node_cidrs,
            source: source(flags, &mut errors),
            bind_address: bind_address(flags, &mut errors),
            dry_run: flags.switch("dry-run"),
        };
        if errors.0.is_empty() {
            Ok(settings)
        } else {
            Err(Invalid(errors.0))
        }
    }
}

#[derive(Default)]
struct Errors(Vec<String>);

impl Errors {
    fn add(&mut self, flag: &str, problem: impl fmt::Display) {
        self.0.push(format!("--{flag}: {problem}"));
    }

    fn cidrs<'a>(&mut self, flag: &str, texts: impl Iterator<Item = &'a str>) -> Vec<IpNet> {
        texts
            .filter_map(|text| {
                let cidr = parse_cidr(text);
                if cidr.is_none() {
                    self.add(flag, format_args!("{text:?} is not a CIDR"));
                }
                cidr
            })
            .collect()
    }
}

fn node_name(flags: &Flags, hostname: &str, errors: &mut Errors) -> String {
    let chosen = flags.text("hostname-override");
    let name = if chosen.is_empty() { hostname } else { chosen }
        .trim()
        .to_lowercase();
    if name.is_empty() {
        errors.add("hostname-override", "the name of the node is blank");
    }
    name
}

fn source(flags: &Flags, errors: &mut Errors) -> Source {
    let optional = |flag| Some(flags.text(flag)).filter(|text| !text.is_empty());
    let (kubeconfig, master) = (optional("kubeconfig"), optional("master"));
    match optional("manifests") {
        Some(directory) => {
            if kubeconfig.is_some() || master.is_some() {
                errors.add(
                    "manifests",
                    "takes the place of --kubeconfig and --master; give one or the other",
                );
            }
            Source::Manifests(directory.into())
        }
        None => Source::Api {
            kubeconfig: kubeconfig.map(PathBuf::from),
            master: master.map(str::to_owned),
        },
    }
}

fn bind_address(flags: &Flags, errors: &mut Errors) -> Option<IpAddr> {
    let text = flags.text("bind-address");
    let address = parse_ip(text);
    if address.is_none() {
        errors.add("bind-address", format_args!("{text:?} is not an IP address"));
    }
    address.filter(|address| !address.is_unspecified())
}

/// The detector, and whether its CIDRs are still to be learned from the Node.
fn local_detector(flags: &Flags, errors: &mut Errors) -> (LocalDetector, bool) {
    let mut interface = |flag| {
        let name = flags.text(flag);
        if name.is_empty() {
            errors.add(flag, "must be given for this --detect-local-mode");
        }
        name.into()
    };
    match flags.text("detect-local-mode") {
        "" | "ClusterCIDR" => (cluster_cidrs(flags, errors), false),
        "NodeCIDR" => (LocalDetector::None, true),
        "BridgeInterface" => (
            LocalDetector::BridgeInterface(interface("pod-bridge-interface")),
            false,
        ),
        "InterfaceNamePrefix" => (
            LocalDetector::InterfaceNamePrefix(interface("pod-interface-name-prefix")),
            false,
        ),
        other => {
            errors.add(
                "detect-local-mode",
                format_args!(
                    "{other:?} is none of ClusterCIDR, NodeCIDR, BridgeInterface, InterfaceNamePrefix"
                ),
            );
            (LocalDetector::None, false)
        }
    }
}

fn cluster_cidrs(flags: &Flags, errors: &mut Errors) -> LocalDetector {
    let text = flags.text("cluster-cidr");
    if text.is_empty() {
        return LocalDetector::None;
    }
    let cidrs = errors.cidrs("cluster-cidr", text.split(','));
    let of_both_families = |a: &IpNet, b: &IpNet| a.addr().is_ipv4() != b.addr().is_ipv4();
    match cidrs.as_slice() {
        [] | [_] => {}
        [a, b] if of_both_families(a, b) => {}
        _ => errors.add("cluster-cidr", "takes one CIDR, or one of each address family"),
    }
    LocalDetector::Cidrs(cidrs)
}

fn scheduler(flags: &Flags, errors: &mut Errors) -> Scheduler {
    match flags.text("ipvs-scheduler") {
        "" => Scheduler::ROUND_ROBIN,
        name => name.parse().unwrap_or_else(|error| {
            errors.add("ipvs-scheduler", error);
            Scheduler::ROUND_ROBIN
        }),
    }
}

fn node_port_addresses(flags: &Flags, errors: &mut Errors) -> NodePortAddresses {
    let texts: Vec<&str> = flags.list("nodeport-addresses").collect();
    match texts.as_slice() {
        [] => NodePortAddresses::All,
        ["primary"] => NodePortAddresses::Primary,
        _ if texts.contains(&"primary") => {
            errors.add(
                "nodeport-addresses",
                "the word primary stands alone, without CIDRs",
            );
            NodePortAddresses::Primary
        }
        _ => NodePortAddresses::Cidrs(errors.cidrs("nodeport-addresses", texts.into_iter())),
    }
}

fn masquerade_bit(flags: &Flags, errors: &mut Errors) -> u8 {
    let bit = u8::try_from(flags.number("iptables-masquerade-bit"))
        .ok()
        .filter(|bit| *bit < 32);
    if bit.is_none() {
        errors.add("iptables-masquerade-bit", "must be within the range [0, 31]");
    }
    bit.unwrap_or_default()
}

fn sync_period(flags: &Flags, errors: &mut Errors) -> Duration {
    let period = flags.duration("ipvs-sync-period");
    if period.is_zero() {
        errors.add("ipvs-sync-period", "must be greater than 0");
    }
    if period < flags.duration("ipvs-min-sync-period") {
        errors.add(
            "ipvs-sync-period",
            "must be greater than or equal to --ipvs-min-sync-period",
        );
    }
    period
}

/// The kernel counts these in seconds.
fn whole_seconds(flags: &Flags, flag: &str) -> Duration {
    Duration::from_secs(flags.duration(flag).as_secs())
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;

    fn settings(args: &[&str]) -> Result<Settings, String> {
        let args = std::iter::once("kube-proxy")
            .chain(args.iter().copied())
            .map(OsString::from);
        Settings::new(&Flags::parse(args).unwrap(), "Host").map_err(|invalid| invalid.to_string())
    }

    #[test]
    fn without_flags_the_library_s_defaults_hold() {
        let settings = settings(&[]).unwrap();
        assert_eq!(
            format!("{:?}", settings.config),
            format!("{:?}", Config::new("host"))
        );
        assert_eq!(
            settings.source,
            Source::Api {
                kubeconfig: None,
                master: None
            }
        );
        assert_eq!(settings.bind_address, None);
        assert!(!settings.dry_run && !settings.local_is_node_cidrs);
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
            "--dry-run",
        ])
        .unwrap();
        let cidrs = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        let expected = Config {
            scheduler: "mh".parse().unwrap(),
            exclude_cidrs: cidrs(&["198.51.100.0/24"]),
            node_port_addresses: NodePortAddresses::Cidrs(cidrs(&["192.0.2.0/24", "fd01::/64"])),
            local_detector: LocalDetector::Cidrs(cidrs(&["10.244.0.0/16", "fd00::/64"])),
            masquerade_all: true,
            masquerade_bit: 0,
            strict_arp: true,
            timeouts: Timeouts {
                tcp: Duration::from_secs(3),
                tcp_fin: Duration::from_secs(4),
                udp: Duration::from_secs(5),
            },
            sync_period: Duration::from_secs(60),
            min_sync_period: Duration::from_secs(2),
            drain_timeout: Duration::from_secs(6),
            ..Config::new("node-1")
        };
        assert_eq!(format!("{:?}", settings.config), format!("{expected:?}"));
        assert_eq!(settings.source, Source::Manifests("/etc/manifests".into()));
        assert_eq!(settings.bind_address, Some("192.0.2.1".parse().unwrap()));
        assert!(settings.dry_run);
    }

    #[test]
    fn the_local_detector_follows_the_mode() {
        for (args, detector, node_cidrs) in [
            (
                &["--cluster-cidr=010.0.0.1/8"][..],
                LocalDetector::Cidrs(vec!["10.0.0.0/8".parse().unwrap()]),
                false,
            ),
            (&["--detect-local-mode="], LocalDetector::None, false),
            (
                &["--detect-local-mode=NodeCIDR", "--cluster-cidr=10.0.0.0/8"],
                LocalDetector::None,
                true,
            ),
            (
                &[
                    "--detect-local-mode=BridgeInterface",
                    "--pod-bridge-interface=cni0",
                ],
                LocalDetector::BridgeInterface("cni0".into()),
                false,
            ),
            (
                &[
                    "--detect-local-mode=InterfaceNamePrefix",
                    "--pod-interface-name-prefix=veth",
                ],
                LocalDetector::InterfaceNamePrefix("veth".into()),
                false,
            ),
        ] {
            let settings = settings(args).unwrap();
            assert_eq!(settings.config.local_detector, detector, "{args:?}");
            assert_eq!(settings.local_is_node_cidrs, node_cidrs, "{args:?}");
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
                "--proxy-mode: this kube-proxy has the mode ipvs only; for the other modes run upstream's",
            ),
            (
                &["--config-sync-period=0"],
                "--config-sync-period: must be greater than 0",
            ),
            (
                &["--hostname-override= "],
                "--hostname-override: the name of the node is blank",
            ),
            (
                &["--bind-address=localhost"],
                "--bind-address: \"localhost\" is not an IP address",
            ),
            (
                &["--manifests=x", "--master=http://localhost"],
                "--manifests: takes the place of --kubeconfig and --master; give one or the other",
            ),
            (
                &["--cluster-cidr=10.0.0.0/8,11.0.0.0/8"],
                "--cluster-cidr: takes one CIDR, or one of each address family",
            ),
            (
                &["--cluster-cidr=10.0.0.0/8, fd00::/64"],
                "--cluster-cidr: \" fd00::/64\" is not a CIDR",
            ),
            (
                &["--detect-local-mode=Guess"],
                "--detect-local-mode: \"Guess\" is none of ClusterCIDR, NodeCIDR, BridgeInterface, InterfaceNamePrefix",
            ),
            (
                &["--detect-local-mode=BridgeInterface"],
                "--pod-bridge-interface: must be given for this --detect-local-mode",
            ),
            (
                &["--iptables-masquerade-bit=32"],
                "--iptables-masquerade-bit: must be within the range [0, 31]",
            ),
            (
                &["--iptables-masquerade-bit=-1"],
                "--iptables-masquerade-bit: must be within the range [0, 31]",
            ),
            (
                &["--nodeport-addresses=primary,10.0.0.0/8"],
                "--nodeport-addresses: the word primary stands alone, without CIDRs",
            ),
            (
                &["--ipvs-exclude-cidrs=10.0.0.0"],
                "--ipvs-exclude-cidrs: \"10.0.0.0\" is not a CIDR",
            ),
            (
                &["--ipvs-sync-period=0s"],
                "--ipvs-sync-period: must be greater than 0",
            ),
            (
                &["--ipvs-min-sync-period=1m"],
                "--ipvs-sync-period: must be greater than or equal to --ipvs-min-sync-period",
            ),
            (
                &["--ipvs-sync-period=0s", "--iptables-masquerade-bit=32"],
                "--iptables-masquerade-bit: must be within the range [0, 31]; --ipvs-sync-period: must be greater than 0",
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
                .contains("--ipvs-scheduler: ")
        );
    }
}
