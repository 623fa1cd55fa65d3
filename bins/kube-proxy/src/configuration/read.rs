//! Where a configuration comes from: flags, or a file.

use std::{
    fs, io,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use serde_json::{Map, Value};

use super::{API_VERSION, Configuration, DISABLED, KIND};
use crate::{
    address::{Listener, parse_ip, parse_listener},
    flags::{self, Flags, Target},
    watch::Watch,
    yaml,
};

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{}: {source}", path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("{}: {message}", path.display())]
    Invalid { path: PathBuf, message: String },
    #[error("{0}")]
    Flags(String),
}

/// The configuration in a file.
#[derive(Debug)]
pub(crate) struct File {
    pub(crate) configuration: Configuration,
    /// What a strict reader would have refused: fields that are unknown, or there twice.
    pub(crate) complaints: Vec<String>,
    /// The fields that it decides and that change nothing here.
    pub(crate) without_effect: Vec<&'static str>,
    path: PathBuf,
    text: String,
}

/// Fields that change nothing here, besides those that a flag tells so of.
const WITHOUT_EFFECT: [&str; 12] = [
    "clientConnection.acceptContentTypes",
    "nftables.masqueradeAll",
    "nftables.masqueradeBit",
    "nftables.minSyncPeriod",
    "nftables.syncPeriod",
    "portRange",
    "windowsRunAsService",
    "winkernel.enableDSR",
    "winkernel.forwardHealthCheckVip",
    "winkernel.networkName",
    "winkernel.rootHnsEndpointName",
    "winkernel.sourceVip",
];

/// The configuration that the command line describes.
pub(crate) fn of_flags(flags: &Flags) -> Result<Configuration, Error> {
    let mut fields = Map::new();
    for flag in flags::flags() {
        let (Target::Field(path) | Target::Override(path)) = flag.target else {
            continue;
        };
        match flags.given(flag) {
            None => {}
            // An empty text leaves the default, but where it means none.
            Some(Value::String(text)) if text.is_empty() && flag.kind != flags::Kind::Listener => {}
            Some(value) => set(&mut fields, path, value),
        }
    }
    listener(
        &mut fields,
        "healthzBindAddress",
        "0.0.0.0",
        flags.number("healthz-port"),
    );
    listener(
        &mut fields,
        "metricsBindAddress",
        "127.0.0.1",
        flags.number("metrics-port"),
    );
    let mut configuration = typed(fields, &mut Vec::new()).map_err(Error::Flags)?;
    configuration.complete_listeners();
    configuration.forget_other_modes();
    Ok(configuration)
}

/// The configuration in a file, with what flags decide in any case.
pub(crate) fn of_file(path: PathBuf, flags: &Flags) -> Result<File, Error> {
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(source) => return Err(Error::Unreadable { path, source }),
    };
    match decode(&text) {
        Ok((configuration, complaints, without_effect)) => match with_overrides(&configuration, flags) {
            Ok(configuration) => Ok(File {
                configuration,
                complaints,
                without_effect,
                path,
                text,
            }),
            Err(message) => Err(Error::Flags(message)),
        },
        Err(message) => Err(Error::Invalid { path, message }),
    }
}

impl File {
    /// Waits until the file says something else than it did (Q46). While it cannot be read, it says what it said.
    pub(crate) async fn changed(&self) {
        let directory = match self.path.parent() {
            Some(directory) if !directory.as_os_str().is_empty() => directory,
            _ => Path::new("."),
        };
        let mut watch = Watch::new();
        loop {
            // Watched before it is read, so that no change falls in between.
            watch.set(directory);
            if fs::read_to_string(&self.path).is_ok_and(|text| text != self.text) {
                return;
            }
            watch.changed().await;
        }
    }
}

/// A file's configuration, what of it is not understood, and what of it changes nothing.
type Decoded = (Configuration, Vec<String>, Vec<&'static str>);

fn decode(text: &str) -> Result<Decoded, String> {
    let mut complaints = Vec::new();
    let mut configuration = typed(fields(text, &mut complaints)?, &mut complaints)?;
    configuration.complete();
    let (found, defaults) = (configuration.to_value(), Configuration::default().to_value());
    let differs = |path: &&str| {
        let pointer = format!("/{}", path.replace('.', "/"));
        found.pointer(&pointer) != defaults.pointer(&pointer)
    };
    let fields = WITHOUT_EFFECT.into_iter().chain(flags::fields_without_effect());
    let without_effect = fields.filter(differs).collect();
    configuration.forget_other_modes();
    Ok((configuration, complaints, without_effect))
}

/// The configuration with what flags decide in any case.
fn with_overrides(configuration: &Configuration, flags: &Flags) -> Result<Configuration, String> {
    let Value::Object(mut fields) = configuration.to_value() else {
        return Ok(configuration.clone());
    };
    for flag in flags::flags() {
        let Target::Override(path) = flag.target else {
            continue;
        };
        match flags.given(flag) {
            None => {}
            Some(Value::String(text)) if text.is_empty() => {}
            // The first pattern that fits decides.
            Some(Value::Array(mut first)) => {
                let rest = configuration.logging.vmodule.iter();
                first.extend(rest.filter_map(|item| serde_json::to_value(item).ok()));
                set(&mut fields, path, first.into());
            }
            Some(value) => set(&mut fields, path, value),
        }
    }
    typed(fields, &mut Vec::new())
}

/// The fields of the first document, which must be a KubeProxyConfiguration.
fn fields(text: &str, complaints: &mut Vec<String>) -> Result<Map<String, Value>, String> {
    let (line, document) = yaml::documents(text).next().ok_or("the file is empty")?;
    let read = yaml::read(document).or_else(|error| {
        if !error.duplicate {
            return Err(error);
        }
        complaints.push(format!("line {}: {}", line + error.line - 1, error.message));
        yaml::read_leniently(document)
    });
    let value = read.map_err(|error| format!("line {}: {}", line + error.line - 1, error.message))?;
    let Value::Object(mut fields) = value else {
        return Err(format!("not a {KIND}"));
    };
    for (name, expected) in [("apiVersion", API_VERSION), ("kind", KIND)] {
        match fields.remove(name) {
            Some(found) if found == *expected => {}
            Some(found) => return Err(format!("{name} is {found}, which must be {expected}")),
            None => return Err(format!("{name} is missing; it must be {expected}")),
        }
    }
    Ok(fields)
}

fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let fields = fields.into_iter().filter(|(_, value)| !value.is_null());
            fields.map(|(name, value)| (name, without_nulls(value))).collect()
        }
        Value::Array(items) => items.into_iter().map(without_nulls).collect(),
        other => other,
    }
}

/// The fields as what they are; a null says nothing. Adds to the complaints those that are unknown.
fn typed(fields: Map<String, Value>, complaints: &mut Vec<String>) -> Result<Configuration, String> {
    let mut unknown = |path: serde_ignored::Path<'_>| complaints.push(format!("unknown field {path}"));
    let deserializer = serde_ignored::Deserializer::new(without_nulls(fields.into()), &mut unknown);
    serde_path_to_error::deserialize(deserializer).map_err(|error| error.to_string())
}

fn set(fields: &mut Map<String, Value>, path: &str, value: Value) {
    match path.split_once('.') {
        None => _ = fields.insert(path.to_owned(), value),
        Some((first, rest)) => {
            let inner = fields.entry(first).or_insert_with(|| Map::new().into());
            if let Value::Object(inner) = inner {
                set(inner, rest, value);
            }
        }
    }
}

/// Makes one address of what two flags say, the older of which has the port only.
fn listener(fields: &mut Map<String, Value>, path: &str, default_address: &str, port: Option<i64>) {
    let given = fields.get(path).and_then(Value::as_str);
    let text = match (given.map(parse_listener), port) {
        (_, Some(0)) | (Some(Some(Listener::None)), _) => DISABLED.to_owned(),
        (None, Some(port)) => format!("{default_address}:{port}"),
        (Some(Some(Listener::Address(IpAddr::V6(address)))), Some(port)) => format!("[{address}]:{port}"),
        (Some(Some(Listener::Address(address))), Some(port)) => format!("{address}:{port}"),
        _ => return,
    };
    fields.insert(path.to_owned(), text.into());
}

impl Configuration {
    /// Puts the defaults where the file has nothing. For these fields a zero is nothing.
    fn complete(&mut self) {
        let defaults = Self::default();
        let or = |text: &mut String, default: String| {
            if text.is_empty() {
                *text = default;
            }
        };
        or(&mut self.mode, defaults.mode);
        or(&mut self.bind_address, defaults.bind_address);
        or(&mut self.detect_local_mode, defaults.detect_local_mode);
        or(&mut self.logging.format, defaults.logging.format);
        let (client, default) = (&mut self.client_connection, defaults.client_connection);
        or(&mut client.content_type, default.content_type);
        if client.qps == 0.0 {
            client.qps = default.qps;
        }
        if client.burst == 0 {
            client.burst = default.burst;
        }
        if self.logging.flush_frequency.duration().is_zero() {
            self.logging.flush_frequency = defaults.logging.flush_frequency;
        }
        for (period, default) in [
            (&mut self.config_sync_period, defaults.config_sync_period),
            (&mut self.ipvs.sync_period, defaults.ipvs.sync_period),
        ] {
            if period.0.is_zero() {
                *period = default;
            }
        }
        self.complete_listeners();
    }

    /// Clears the periods of modes that are not the one, and what is long without meaning, as Kubernetes does when it
    /// writes a configuration.
    fn forget_other_modes(&mut self) {
        let defaults = Self::default();
        self.iptables.sync_period = defaults.iptables.sync_period;
        self.iptables.min_sync_period = defaults.iptables.min_sync_period;
        self.nftables.sync_period = defaults.nftables.sync_period;
        self.nftables.min_sync_period = defaults.nftables.min_sync_period;
        self.port_range = defaults.port_range;
    }

    /// Puts the default address, which is of the family of `bindAddress`, and the default port where there is none.
    fn complete_listeners(&mut self) {
        let ipv6 = parse_ip(&self.bind_address).is_some_and(|address| address.is_ipv6());
        let (all, loopback) = if ipv6 {
            ("::", "::1")
        } else {
            ("0.0.0.0", "127.0.0.1")
        };
        for (listener, default, port) in [
            (&mut self.healthz_bind_address, all, 10256),
            (&mut self.metrics_bind_address, loopback, 10249),
        ] {
            let address = if listener.is_empty() {
                default
            } else {
                listener.as_str()
            };
            if let Some(address) = parse_ip(address) {
                *listener = SocketAddr::new(address, port).to_string();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::symlink, time::Duration};

    use tokio::time::timeout;

    use super::*;
    use crate::flags::tests::parse;

    fn flags(args: &[&str]) -> Configuration {
        of_flags(&parse(args).unwrap()).unwrap()
    }

    /// A file with these fields besides its header.
    fn file(fields: &str) -> Result<Decoded, String> {
        decode(&format!("apiVersion: {API_VERSION}\nkind: {KIND}\n{fields}"))
    }

    #[test]
    fn nothing_said_is_the_defaults() {
        assert_eq!(flags(&[]), Configuration::default());
        assert_eq!(file(""), Ok((Configuration::default(), vec![], vec![])));
    }

    /// What kubeadm writes: a null, an empty text or a zero asks for the default.
    #[test]
    fn empty_fields_of_a_file_are_the_defaults() {
        let fields = "\
bindAddress: \"\"
bindAddressHardFail: false
clientConnection: {acceptContentTypes: \"\", burst: 0, contentType: \"\", kubeconfig: \"\", qps: 0}
clusterCIDR: \"\"
configSyncPeriod: 0s
conntrack:
  maxPerCore: null
  min: null
  tcpBeLiberal: false
  tcpCloseWaitTimeout: null
  tcpEstablishedTimeout: null
  udpStreamTimeout: 0s
  udpTimeout: 0s
detectLocal: {bridgeInterface: \"\", interfaceNamePrefix: \"\"}
detectLocalMode: \"\"
enableProfiling: false
healthzBindAddress: \"\"
hostnameOverride: \"\"
iptables: {localhostNodePorts: null, masqueradeAll: false, masqueradeBit: null, minSyncPeriod: 0s, syncPeriod: 0s}
ipvs:
  excludeCIDRs: null
  minSyncPeriod: 0s
  scheduler: \"\"
  strictARP: false
  syncPeriod: 0s
  tcpFinTimeout: 0s
  tcpTimeout: 0s
  udpTimeout: 0s
logging: {flushFrequency: 0, options: {json: {infoBufferSize: \"0\"}, text: {infoBufferSize: \"0\"}}, verbosity: 0}
metricsBindAddress: \"\"
mode: \"\"
nftables: {masqueradeAll: false, masqueradeBit: null, minSyncPeriod: 0s, syncPeriod: 0s}
nodePortAddresses: null
oomScoreAdj: null
portRange: \"\"
showHiddenMetricsForVersion: \"\"
winkernel: {enableDSR: false, forwardHealthCheckVip: false, networkName: \"\", rootHnsEndpointName: \"\", sourceVip: \"\"}
";
        assert_eq!(file(fields), Ok((Configuration::default(), vec![], vec![])));
    }

    #[test]
    fn a_zero_that_means_something_stays() {
        let fields = "\
oomScoreAdj: 0
iptables: {masqueradeBit: 0, localhostNodePorts: false}
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
";
        let (configuration, ..) = file(fields).unwrap();
        assert_eq!(configuration.oom_score_adj, 0);
        assert_eq!(configuration.iptables.masquerade_bit, 0);
        assert!(!configuration.iptables.localhost_node_ports);
        let conntrack = configuration.conntrack;
        assert_eq!((conntrack.max_per_core, conntrack.min), (0, 0));
        assert!(
            conntrack.tcp_established_timeout.0.is_zero() && conntrack.tcp_close_wait_timeout.0.is_zero()
        );
    }

    /// Q47, Q49: upstream cannot be told to serve nothing, and follows the family of the address in a file only.
    #[test]
    fn listeners_are_disabled_by_nothing_and_follow_the_family() {
        for (args, healthz, metrics) in [
            (&["--bind-address=::"][..], "[::]:10256", "[::1]:10249"),
            (
                &["--healthz-bind-address=", "--metrics-bind-address="],
                DISABLED,
                DISABLED,
            ),
            (
                &["--healthz-bind-address=0", "--metrics-bind-address=0"],
                DISABLED,
                DISABLED,
            ),
            (&["--healthz-port=0", "--metrics-port=0"], DISABLED, DISABLED),
            (
                &["--healthz-port=1", "--metrics-port=2"],
                "0.0.0.0:1",
                "127.0.0.1:2",
            ),
            (
                &["--healthz-bind-address=192.0.2.1", "--healthz-port=1"],
                "192.0.2.1:1",
                "127.0.0.1:10249",
            ),
            (
                &["--healthz-bind-address=::1", "--healthz-port=1"],
                "[::1]:1",
                "127.0.0.1:10249",
            ),
            (
                &["--healthz-bind-address=[::1]:2", "--healthz-port=1"],
                "[::1]:2",
                "127.0.0.1:10249",
            ),
            (&["--metrics-bind-address=::"], "0.0.0.0:10256", "[::]:10249"),
        ] {
            let configuration = flags(args);
            assert_eq!(configuration.healthz_bind_address, healthz, "{args:?}");
            assert_eq!(configuration.metrics_bind_address, metrics, "{args:?}");
        }
        for (fields, healthz, metrics) in [
            ("bindAddress: fd00::1", "[::]:10256", "[::1]:10249"),
            (
                "healthzBindAddress: \"0\"\nmetricsBindAddress: \"0\"",
                DISABLED,
                DISABLED,
            ),
            (
                "healthzBindAddress: 192.0.2.1\nmetricsBindAddress: \"::\"",
                "192.0.2.1:10256",
                "[::]:10249",
            ),
        ] {
            let (configuration, ..) = file(fields).unwrap();
            assert_eq!(configuration.healthz_bind_address, healthz, "{fields}");
            assert_eq!(configuration.metrics_bind_address, metrics, "{fields}");
        }
    }

    #[test]
    fn what_changes_nothing_is_named_and_forgotten() {
        let fields = "\
iptables: {syncPeriod: 1m, minSyncPeriod: 2s, localhostNodePorts: false}
winkernel: {networkName: net}
portRange: 1-2
";
        let (configuration, _, without_effect) = file(fields).unwrap();
        assert_eq!(
            without_effect,
            [
                "portRange",
                "winkernel.networkName",
                "iptables.localhostNodePorts",
                "iptables.minSyncPeriod",
                "iptables.syncPeriod",
            ]
        );
        assert!(configuration.iptables.sync_period.0.is_zero() && configuration.port_range.is_empty());
        assert_eq!(flags(&["--iptables-sync-period=1m"]), Configuration::default());
    }

    #[test]
    fn a_file_that_strict_readers_refuse_is_read_with_complaints() {
        let (configuration, complaints, _) =
            file("ipvs:\n  scheduler: rr\n  Scheduler: lc\n  scheduler: sh\nnoSuchField: 1\n").unwrap();
        assert_eq!(configuration.ipvs.scheduler, "sh");
        assert_eq!(complaints.len(), 3, "{complaints:?}");
        assert!(
            complaints[0].starts_with("line 6: ") && complaints[0].contains("scheduler: sh"),
            "{complaints:?}"
        );
        assert_eq!(
            complaints[1..],
            ["unknown field ipvs.Scheduler", "unknown field noSuchField"]
        );
    }

    #[test]
    fn only_the_first_document_counts_which_may_be_json() {
        let text = format!(
            "# ours\n---\n{{\"apiVersion\": \"{API_VERSION}\", \"kind\": \"{KIND}\", \"oomScoreAdj\": 1}}\n---\noomScoreAdj: 2\n"
        );
        let (configuration, complaints, _) = decode(&text).unwrap();
        assert_eq!(configuration.oom_score_adj, 1);
        assert!(complaints.is_empty(), "{complaints:?}");
    }

    #[test]
    fn a_file_that_makes_no_sense_is_an_error_that_names_the_field() {
        for (text, message) in [
            ("", "the file is empty"),
            ("[]", "not a KubeProxyConfiguration"),
            (
                "kind: KubeProxyConfiguration",
                "apiVersion is missing; it must be kubeproxy.config.k8s.io/v1alpha1",
            ),
            (
                "apiVersion: v1\nkind: ConfigMap",
                "apiVersion is \"v1\", which must be kubeproxy.config.k8s.io/v1alpha1",
            ),
            (
                "apiVersion: kubeproxy.config.k8s.io/v1alpha1",
                "kind is missing; it must be KubeProxyConfiguration",
            ),
        ] {
            assert_eq!(decode(text).unwrap_err(), message, "{text:?}");
        }
        for (fields, message) in [
            (
                "ipvs: {syncPeriod: 30}",
                "ipvs.syncPeriod: invalid type: integer `30`, expected a string",
            ),
            ("ipvs: {syncPeriod: 30}x", "line 3: "),
            (
                "ipvs: {syncPeriod: \"30\"}",
                "ipvs.syncPeriod: \"30\": a number without a unit",
            ),
            (
                "nodePortAddresses: primary",
                "nodePortAddresses: invalid type: string \"primary\", expected a sequence",
            ),
            (
                "oomScoreAdj: \"5\"",
                "oomScoreAdj: invalid type: string \"5\", expected i32",
            ),
            (
                "clientConnection: {burst: 99999999999}",
                "clientConnection.burst: invalid value: integer `99999999999`",
            ),
            (
                "ipvs: {strictARP: 1}",
                "ipvs.strictARP: invalid type: integer `1`, expected a boolean",
            ),
            (
                "logging: {vmodule: [{filePattern: a}]}",
                "logging.vmodule[0]: missing field `verbosity`",
            ),
        ] {
            let error = file(fields).unwrap_err();
            assert!(error.starts_with(message), "{fields}: {error}");
        }
    }

    #[test]
    fn yaml_s_old_booleans_are_booleans() {
        let (configuration, ..) = file("bindAddressHardFail: yes\nenableProfiling: on\n").unwrap();
        assert!(configuration.bind_address_hard_fail && configuration.enable_profiling);
    }

    #[test]
    fn some_flags_hold_beside_a_file() {
        let (configuration, ..) = file(
            "hostnameOverride: file\nlogging: {verbosity: 1, vmodule: [{filePattern: a, verbosity: 1}]}\noomScoreAdj: 1\n",
        )
        .unwrap();
        let with = |args: &[&str]| with_overrides(&configuration, &parse(args).unwrap()).unwrap();
        assert_eq!(
            with(&[
                "--oom-score-adj=2",
                "--proxy-mode=iptables",
                "--hostname-override="
            ]),
            configuration
        );
        let changed = with(&[
            "--hostname-override=flag",
            "-v=2",
            "--vmodule=b=2",
            "--logging-format=json",
            "--log-json-split-stream",
        ]);
        assert_eq!(changed.hostname_override, "flag");
        assert_eq!(
            (changed.logging.verbosity, changed.logging.format.as_str()),
            (2, "json")
        );
        assert!(changed.logging.options.json.split_stream);
        let patterns: Vec<_> = changed
            .logging
            .vmodule
            .iter()
            .map(|item| item.file_pattern.as_str())
            .collect();
        assert_eq!(patterns, ["b", "a"]);
    }

    /// Q46: upstream notices the first of these only.
    #[tokio::test]
    async fn q46_a_file_that_changes_in_whatever_way_is_noticed() {
        let directory = std::env::temp_dir().join(format!("configuration-{}", std::process::id()));
        let header = format!("apiVersion: {API_VERSION}\nkind: {KIND}\n");
        let path = directory.join("config.conf");
        let write = |name: &str, fields: &str| {
            fs::create_dir_all(&directory).unwrap();
            fs::write(directory.join(name), format!("{header}{fields}")).unwrap();
        };
        let ways: [(&str, &dyn Fn()); 4] = [
            ("written in place", &|| write("config.conf", "oomScoreAdj: 1\n")),
            ("renamed over", &|| {
                write("new", "oomScoreAdj: 1\n");
                fs::rename(directory.join("new"), &path).unwrap();
            }),
            ("removed and made anew", &|| {
                fs::remove_file(&path).unwrap();
                write("config.conf", "oomScoreAdj: 1\n");
            }),
            ("swapped like a ConfigMap", &|| {
                fs::create_dir_all(directory.join("..2")).unwrap();
                write("..2/config.conf", "oomScoreAdj: 1\n");
                symlink("..2", directory.join("..tmp")).unwrap();
                fs::rename(directory.join("..tmp"), directory.join("..data")).unwrap();
            }),
        ];
        for (way, change) in ways {
            _ = fs::remove_dir_all(&directory);
            if way.starts_with("swapped") {
                fs::create_dir_all(directory.join("..1")).unwrap();
                write("..1/config.conf", "");
                symlink("..1", directory.join("..data")).unwrap();
                symlink("..data/config.conf", &path).unwrap();
            } else {
                write("config.conf", "");
            }
            let file = of_file(path.clone(), &parse(&[]).unwrap()).unwrap();
            let changed = file.changed();
            tokio::pin!(changed);
            let patience = |seconds| Duration::from_secs(seconds);
            assert!(
                timeout(patience(0), &mut changed).await.is_err(),
                "{way}: nothing has changed"
            );
            write("other", "");
            assert!(
                timeout(Duration::from_millis(200), &mut changed).await.is_err(),
                "{way}: another file has changed"
            );
            change();
            // Sooner than by looking from time to time.
            assert!(timeout(patience(4), &mut changed).await.is_ok(), "{way}");
        }
        fs::remove_dir_all(&directory).unwrap();
    }
}
