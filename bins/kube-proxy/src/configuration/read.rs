//! Where a configuration comes from: flags, or a file.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use serde_json::{Map, Value};

use super::{API_VERSION, Configuration, DISABLED, KIND};
use crate::{
    address::{Listener, parse_ip, parse_listener},
    flags::{self, Flags, Target},
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
    Ok(configuration)
}

/// The configuration in a file, with what flags decide in any case. Also what a strict reader would have refused:
/// fields that are unknown, or there twice.
pub(crate) fn of_file(path: PathBuf, flags: &Flags) -> Result<(Configuration, Vec<String>), Error> {
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(source) => return Err(Error::Unreadable { path, source }),
    };
    let mut complaints = Vec::new();
    match decode(&text, flags, &mut complaints) {
        Ok(configuration) => Ok((configuration, complaints)),
        Err(message) => Err(Error::Invalid { path, message }),
    }
}

fn decode(text: &str, flags: &Flags, complaints: &mut Vec<String>) -> Result<Configuration, String> {
    let mut configuration = typed(fields(text, complaints)?, complaints)?;
    configuration.complete();
    let Ok(Value::Object(mut fields)) = serde_json::to_value(&configuration) else {
        return Ok(configuration);
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
    use super::*;
    use crate::flags::tests::parse;

    fn flags(args: &[&str]) -> Configuration {
        of_flags(&parse(args).unwrap()).unwrap()
    }

    /// A file with these fields besides its header.
    fn file(fields: &str, args: &[&str]) -> Result<(Configuration, Vec<String>), String> {
        let text = format!("apiVersion: {API_VERSION}\nkind: {KIND}\n{fields}");
        let mut complaints = Vec::new();
        decode(&text, &parse(args).unwrap(), &mut complaints).map(|configuration| (configuration, complaints))
    }

    #[test]
    fn nothing_said_is_the_defaults() {
        assert_eq!(flags(&[]), Configuration::default());
        assert_eq!(file("", &[]), Ok((Configuration::default(), vec![])));
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
        assert_eq!(file(fields, &[]), Ok((Configuration::default(), vec![])));
    }

    #[test]
    fn a_zero_that_means_something_stays() {
        let fields = "\
oomScoreAdj: 0
iptables: {masqueradeBit: 0, localhostNodePorts: false}
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
";
        let (configuration, _) = file(fields, &[]).unwrap();
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
            let (configuration, _) = file(fields, &[]).unwrap();
            assert_eq!(configuration.healthz_bind_address, healthz, "{fields}");
            assert_eq!(configuration.metrics_bind_address, metrics, "{fields}");
        }
    }
}
