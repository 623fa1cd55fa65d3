//! The command line: kube-proxy's flags, read as kube-proxy reads them.
//!
//! [`GROUPS`] is the whole surface, one row a flag. Most flags are another way to write a field of the
//! [configuration](crate::configuration), and are no more than its path and the type of its value here.

use std::{ffi::OsString, fmt::Write, time::Duration};

use clap::{
    Arg, ArgAction, ArgMatches, Command,
    error::{ContextKind, ContextValue, ErrorKind},
    parser::ValueSource,
};
use serde_json::{Map, Value, json};

use proxier::model::ObjectName;

use crate::{
    configuration::{Configuration, Quantity},
    duration::{self, GoDuration},
    version,
};

/// What a flag's value looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Any text.
    Text,
    /// Texts between commas; the flag may be repeated.
    List,
    /// `name=true,name=false`; the flag may be repeated.
    Gates,
    /// `--flag`, `--flag=true` or `--flag=false`.
    Switch,
    /// A whole number of 32 bits.
    Number,
    /// A number of 32 bits that may have a fraction.
    Float,
    /// A duration as Go writes it.
    Duration,
    /// An IP address.
    Address,
    /// An IP address, a port behind it or not; nothing, or a zero, for none.
    Listener,
    /// A number of bytes, such as `2Ki`.
    Quantity,
    /// How much is logged.
    Level,
    /// `pattern=N` between commas.
    VModule,
    /// `true`, `raw`, or the version to pretend to be.
    Version,
}

/// Whom a flag speaks to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// A field of the configuration. With `--config` the file decides alone.
    Field(&'static str),
    /// A field of the configuration that the flag decides also where a file has it.
    Override(&'static str),
    /// This run of the program.
    Run,
}

pub(crate) struct Flag {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    pub(crate) target: Target,
    help: &'static str,
    hidden: bool,
}

struct Group {
    heading: &'static str,
    flags: &'static [Flag],
}

/// The heading of flags that upstream's kube-proxy does not have.
const OWN: &str = "Of this kube-proxy alone";
/// The heading of flags that change nothing here.
const WITHOUT_EFFECT: &str = "Accepted, without effect here";

const fn field(name: &'static str, kind: Kind, path: &'static str, help: &'static str) -> Flag {
    flag(name, kind, Target::Field(path), help)
}

const fn run(name: &'static str, kind: Kind, help: &'static str) -> Flag {
    flag(name, kind, Target::Run, help)
}

const fn flag(name: &'static str, kind: Kind, target: Target, help: &'static str) -> Flag {
    Flag {
        name,
        kind,
        target,
        help,
        hidden: false,
    }
}

const fn hidden(flag: Flag) -> Flag {
    Flag { hidden: true, ..flag }
}

// One row a flag, however long.
#[rustfmt::skip]
const GROUPS: &[Group] = &[
    Group { heading: "Configuration", flags: &[
        run("config", Kind::Text,
            "File with a KubeProxyConfiguration; flags that write its fields are then ignored, but for --hostname-override and those of the log"),
        run("write-config-to", Kind::Text, "Write the configuration to this file, defaults and all, and exit"),
        field("feature-gates", Kind::Gates, "featureGates",
            "Kubernetes' feature gates; AllowServiceExternalIPs=false programs no external addresses, the log's gates hold as upstream, the others are accepted"),
    ]},
    Group { heading: "API server", flags: &[
        field("kubeconfig", Kind::Text, "clientConnection.kubeconfig",
            "File that says how to reach the API server; else the Pod's own account"),
        run("master", Kind::Text, "URL of the API server, instead of the kubeconfig's"),
    ]},
    Group { heading: "Node", flags: &[
        flag("hostname-override", Kind::Text, Target::Override("hostnameOverride"),
            "Name of this node's object, instead of the host's name"),
        field("bind-address", Kind::Address, "bindAddress",
            "Primary address of this node, instead of its object's; 0.0.0.0 or :: for none. Nothing is bound to it"),
        field("nodeport-addresses", Kind::List, "nodePortAddresses",
            "CIDRs of the node addresses that answer on node ports, or the word primary; all if empty"),
        field("oom-score-adj", Kind::Number, "oomScoreAdj", "The kernel's oom_score_adj of this process, -1000 to 1000"),
    ]},
    Group { heading: "Masquerading", flags: &[
        field("detect-local-mode", Kind::Text, "detectLocalMode",
            "How traffic of pods is told from other traffic: ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix"),
        field("cluster-cidr", Kind::Text, "clusterCIDR",
            "Pods' addresses, for ClusterCIDR: one CIDR, or one of each family with a comma between"),
        field("pod-bridge-interface", Kind::Text, "detectLocal.bridgeInterface", "Bridge of the pods, for BridgeInterface"),
        field("pod-interface-name-prefix", Kind::Text, "detectLocal.interfaceNamePrefix",
            "Beginning of the names of pods' interfaces, for InterfaceNamePrefix"),
        field("masquerade-all", Kind::Switch, "iptables.masqueradeAll", "Masquerade all traffic to ClusterIPs"),
        field("iptables-masquerade-bit", Kind::Number, "iptables.masqueradeBit",
            "Bit of the packet mark that asks for masquerading, 0 to 31"),
    ]},
    Group { heading: "IPVS", flags: &[
        field("proxy-mode", Kind::Text, "mode", "ipvs, which is also meant by none; this kube-proxy has no other"),
        field("ipvs-scheduler", Kind::Text, "ipvs.scheduler", "Scheduler of every virtual server; rr if empty"),
        field("ipvs-exclude-cidrs", Kind::List, "ipvs.excludeCIDRs",
            "CIDRs in which virtual servers of others are left alone"),
        field("ipvs-strict-arp", Kind::Switch, "ipvs.strictARP", "Answer ARP for addresses of the receiving interface only"),
        field("ipvs-sync-period", Kind::Duration, "ipvs.syncPeriod", "How often the kernel's state is read back and mended"),
        field("ipvs-min-sync-period", Kind::Duration, "ipvs.minSyncPeriod", "Least time between two updates of the kernel"),
        field("ipvs-tcp-timeout", Kind::Duration, "ipvs.tcpTimeout",
            "Timeout of idle TCP connections; 0 leaves the kernel's"),
        field("ipvs-tcpfin-timeout", Kind::Duration, "ipvs.tcpFinTimeout",
            "Timeout of TCP connections after a FIN; 0 leaves the kernel's"),
        field("ipvs-udp-timeout", Kind::Duration, "ipvs.udpTimeout", "Timeout of idle UDP flows; 0 leaves the kernel's"),
    ]},
    Group { heading: "Connection tracking", flags: &[
        field("conntrack-max-per-core", Kind::Number, "conntrack.maxPerCore",
            "Connections to track for each processor; 0 leaves the kernel's limit"),
        field("conntrack-min", Kind::Number, "conntrack.min", "Least number of connections to track, whatever the processors"),
        field("conntrack-tcp-timeout-established", Kind::Duration, "conntrack.tcpEstablishedTimeout",
            "Timeout of idle TCP connections; 0 leaves the kernel's"),
        field("conntrack-tcp-timeout-close-wait", Kind::Duration, "conntrack.tcpCloseWaitTimeout",
            "Timeout of TCP connections in CLOSE_WAIT; 0 leaves the kernel's"),
        field("conntrack-tcp-be-liberal", Kind::Switch, "conntrack.tcpBeLiberal",
            "Keep TCP packets out of the window (nf_conntrack_tcp_be_liberal)"),
        field("conntrack-udp-timeout", Kind::Duration, "conntrack.udpTimeout",
            "Timeout of UDP flows without an answer; 0 leaves the kernel's"),
        field("conntrack-udp-timeout-stream", Kind::Duration, "conntrack.udpStreamTimeout",
            "Timeout of UDP flows with one; 0 leaves the kernel's"),
    ]},
    Group { heading: "Health and metrics", flags: &[
        field("healthz-bind-address", Kind::Listener, "healthzBindAddress",
            "Address and port of the health server; empty or 0 for none"),
        field("metrics-bind-address", Kind::Listener, "metricsBindAddress",
            "Address and port of the metrics server; empty or 0 for none"),
        field("bind-address-hard-fail", Kind::Switch, "bindAddressHardFail",
            "Exit if the health or metrics server's address cannot be had, instead of trying again"),
        field("profiling", Kind::Switch, "enableProfiling", "Serve /debug/flags/v on the metrics server"),
        field("show-hidden-metrics-for-version", Kind::Text, "showHiddenMetricsForVersion",
            "Version whose hidden metrics are shown; only the previous one is taken, and it hid none"),
        hidden(run("healthz-port", Kind::Number, "Port of the health server; use --healthz-bind-address")),
        hidden(run("metrics-port", Kind::Number, "Port of the metrics server; use --metrics-bind-address")),
    ]},
    Group { heading: "Log", flags: &[
        flag("v", Kind::Level, Target::Override("logging.verbosity"),
            "Verbosity: 2 tells of every sync, 4 and 6 add detail"),
        flag("vmodule", Kind::VModule, Target::Override("logging.vmodule"),
            "Verbosity of single source files: pattern=N, with commas between; text format only"),
        flag("logging-format", Kind::Text, Target::Override("logging.format"), "text or json"),
        flag("log-text-split-stream", Kind::Switch, Target::Override("logging.options.text.splitStream"),
            "In text format, errors and warnings go to standard error and the rest to standard output; needs the feature gate LoggingAlphaOptions"),
        flag("log-json-split-stream", Kind::Switch, Target::Override("logging.options.json.splitStream"),
            "The same in JSON format"),
    ]},
    Group { heading: "Instead of running", flags: &[
        run("init-only", Kind::Switch,
            "Do what needs all privileges, and exit; after that CAP_NET_ADMIN is enough to run"),
        run("cleanup", Kind::Switch, "Remove all that a kube-proxy has programmed on this node, and exit"),
        run("version", Kind::Version, "Print the version of Kubernetes that this stands in for, and exit; raw for details"),
    ]},
    Group { heading: OWN, flags: &[
        run("manifests", Kind::Text, "Directory of manifests to take Services from, instead of an API server"),
        run("output", Kind::Text, "What the command plan prints: ipvsadm, which is also meant by none, json or nft"),
        run("ipvs-external-cidrs", Kind::List,
            "CIDRs in which external and load-balancer addresses may be; others are not served. Empty for all"),
        run("ipvs-masquerade-fully-random", Kind::Switch,
            "Masquerade from source ports that the kernel chooses at random (default true)"),
        run("ipvs-drain-timeout", Kind::Duration,
            "How long a server that is no longer wanted may keep its last TCP connections (default 15m0s)"),
        run("ipvs-strict-arp-interfaces", Kind::List,
            "Interfaces that answer ARP for their own addresses only, instead of all as --ipvs-strict-arp has it"),
        run("ipvs-service-metrics", Kind::Switch,
            "Serve metrics of the connections, packets and bytes of each Service's ports"),
    ]},
    Group { heading: WITHOUT_EFFECT, flags: &[
        field("config-sync-period", Kind::Duration, "configSyncPeriod", "A watch that resumes needs no refresh"),
        field("kube-api-content-type", Kind::Text, "clientConnection.contentType",
            "Objects are asked for in Protocol Buffers, else in JSON"),
        field("kube-api-qps", Kind::Float, "clientConnection.qps", "A few watches need no limit"),
        field("kube-api-burst", Kind::Number, "clientConnection.burst", "A few watches need no limit"),
        field("iptables-localhost-nodeports", Kind::Switch, "iptables.localhostNodePorts", "Of mode iptables"),
        field("iptables-min-sync-period", Kind::Duration, "iptables.minSyncPeriod", "Of mode iptables"),
        field("iptables-sync-period", Kind::Duration, "iptables.syncPeriod", "Of mode iptables"),
        flag("log-flush-frequency", Kind::Duration, Target::Override("logging.flushFrequency"), "Every line is written at once"),
        flag("log-text-info-buffer-size", Kind::Quantity, Target::Override("logging.options.text.infoBufferSize"),
            "Every line is written at once"),
        flag("log-json-info-buffer-size", Kind::Quantity, Target::Override("logging.options.json.infoBufferSize"),
            "Every line is written at once"),
        run("boot-id-file", Kind::Text, "Read by nothing"),
        run("machine-id-file", Kind::Text, "Read by nothing"),
    ]},
];

/// A command line that cannot be used, as one sentence.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Error {
    /// Not an error: `--help` was given.
    #[error("help was asked for")]
    Help,
    #[error("unknown flag: {0}")]
    Unknown(String),
    #[error("unknown shorthand flag: '{0}' in -{0}")]
    UnknownShorthand(String),
    #[error("flag needs an argument: {0}")]
    NoArgument(String),
    #[error("invalid argument {value:?} for \"{flag}\" flag: {reason}")]
    Invalid {
        flag: String,
        value: String,
        reason: String,
    },
    #[error("\"kube-proxy\" does not take any arguments, got {0:?}")]
    Positional(Vec<String>),
    #[error("{0}")]
    Other(String),
}

/// What is asked for, besides what flags say. Upstream knows the first only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// Nothing in particular: to run.
    Run,
    /// `plan`: what would be programmed.
    Plan,
    /// `verify`: how the kernel differs from it.
    Verify,
    /// `explain NAMESPACE/NAME`: why a Service is programmed as it is.
    Explain(ObjectName),
}

impl Request {
    fn parse(arguments: &[String]) -> Option<Self> {
        let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
        match words.as_slice() {
            [] => Some(Self::Run),
            ["plan"] => Some(Self::Plan),
            ["verify"] => Some(Self::Verify),
            ["explain", service] => {
                let (namespace, name) = service.split_once('/').unwrap_or(("default", service));
                Some(Self::Explain(ObjectName::new(namespace, name)))
            }
            _ => None,
        }
    }
}

/// The flags of a command line.
#[derive(Debug)]
pub(crate) struct Flags {
    matches: ArgMatches,
    request: Request,
}

impl Flags {
    /// Reads a command line, the program's name included.
    pub(crate) fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Self, Error> {
        let matches = command().try_get_matches_from(args.into_iter().map(with_dashes))?;
        let arguments: Vec<String> = matches
            .get_many::<String>(ARGUMENTS)
            .into_iter()
            .flatten()
            .filter(|argument| !argument.is_empty())
            .cloned()
            .collect();
        match Request::parse(&arguments) {
            Some(request) => Ok(Self { matches, request }),
            None => Err(Error::Positional(arguments)),
        }
    }

    /// What is asked for.
    pub(crate) fn request(&self) -> &Request {
        &self.request
    }

    /// What the command line says of a flag, as the configuration has it; `None` where it says nothing.
    pub(crate) fn given(&self, flag: &Flag) -> Option<Value> {
        if self.matches.value_source(flag.name) != Some(ValueSource::CommandLine) {
            return None;
        }
        let values = self.matches.get_many::<Value>(flag.name)?;
        // A flag that may be repeated adds up.
        values.cloned().reduce(|sum, value| match (sum, value) {
            (Value::Array(mut sum), Value::Array(more)) => {
                sum.extend(more);
                Value::Array(sum)
            }
            (Value::Object(mut sum), Value::Object(more)) => {
                sum.extend(more);
                Value::Object(sum)
            }
            (_, last) => last,
        })
    }

    pub(crate) fn value(&self, name: &str) -> Option<Value> {
        flags()
            .find(|flag| flag.name == name)
            .and_then(|flag| self.given(flag))
    }

    pub(crate) fn text(&self, name: &str) -> String {
        match self.value(name) {
            Some(Value::String(text)) => text,
            _ => String::new(),
        }
    }

    pub(crate) fn switch(&self, name: &str) -> bool {
        self.value(name) == Some(Value::Bool(true))
    }

    pub(crate) fn number(&self, name: &str) -> Option<i64> {
        self.value(name)?.as_i64()
    }

    pub(crate) fn list(&self, name: &str) -> Vec<String> {
        match self.value(name) {
            Some(Value::Array(items)) => items
                .iter()
                .filter_map(Value::as_str)
                .map(str::to_owned)
                .collect(),
            _ => Vec::new(),
        }
    }

    pub(crate) fn duration(&self, name: &str) -> Option<Duration> {
        duration::parse(self.value(name)?.as_str()?).ok()
    }

    /// Those on the command line that change nothing, as they are written there.
    pub(crate) fn without_effect(&self) -> impl Iterator<Item = &'static str> {
        flags_without_effect()
            .filter(|flag| self.given(flag).is_some())
            .map(|flag| flag.name)
    }

    /// Those on the command line that would write a field, while a file decides all fields.
    pub(crate) fn overruled(&self) -> impl Iterator<Item = &'static str> {
        flags()
            .filter(|flag| matches!(flag.target, Target::Field(_)) && self.given(flag).is_some())
            .map(|flag| flag.name)
    }

    /// All flags with their values, for people to read, in the order of their names.
    pub(crate) fn values(&self) -> Vec<(String, String)> {
        let mut values: Vec<_> = flags()
            .map(|flag| {
                let value = self.given(flag).or_else(|| default(flag));
                (flag.name.to_owned(), value.map(display).unwrap_or_default())
            })
            .collect();
        values.sort();
        values
    }
}

/// Every flag there is.
pub(crate) fn flags() -> impl Iterator<Item = &'static Flag> {
    GROUPS.iter().flat_map(|group| group.flags)
}

fn flags_without_effect() -> impl Iterator<Item = &'static Flag> {
    let groups = GROUPS.iter().filter(|group| group.heading == WITHOUT_EFFECT);
    groups.flat_map(|group| group.flags)
}

/// The fields that flags write and that change nothing.
pub(crate) fn fields_without_effect() -> impl Iterator<Item = &'static str> {
    flags_without_effect().filter_map(|flag| match flag.target {
        Target::Field(path) | Target::Override(path) => Some(path),
        Target::Run => None,
    })
}

/// The flag that writes a field.
pub(crate) fn flag_of_field(path: &str) -> Option<&'static Flag> {
    flags().find(|flag| match flag.target {
        Target::Field(field) | Target::Override(field) => field == path,
        Target::Run => false,
    })
}

/// How to use the program: all flags, in their groups.
pub(crate) fn usage() -> String {
    let mut text = "Usage:\n  kube-proxy [flags]\n  \
        kube-proxy plan [flags]                    print what would be programmed\n  \
        kube-proxy verify [flags]                  print how the kernel differs from it; exit with 1 if it does\n  \
        kube-proxy explain NAMESPACE/NAME [flags]  print why a Service is programmed as it is\n"
        .to_owned();
    for group in GROUPS {
        _ = writeln!(text, "\n{}:", group.heading);
        for flag in group.flags.iter().filter(|flag| !flag.hidden) {
            _ = writeln!(text, "{}", flag.usage());
        }
    }
    _ = writeln!(text, "\n  -h, --help\n        Print this, and exit");
    text
}

const ARGUMENTS: &str = "arguments";

fn command() -> Command {
    Command::new("kube-proxy")
        .args_override_self(true)
        .args(flags().map(Flag::arg))
        .arg(Arg::new(ARGUMENTS).num_args(0..))
}

impl Flag {
    fn arg(&self) -> Arg {
        let arg = Arg::new(self.name).long(self.name);
        let arg = if self.name.len() == 1 {
            arg.short(self.name.chars().next())
        } else {
            arg
        };
        // As pflag does, take whatever follows for the value, be it `-1`.
        let arg = arg.allow_hyphen_values(true).value_parser(self.kind.parser());
        match self.kind {
            Kind::List | Kind::Gates | Kind::VModule => arg.action(ArgAction::Append),
            Kind::Switch | Kind::Version => arg
                .num_args(0..=1)
                .require_equals(true)
                .default_missing_value("true"),
            _ => arg,
        }
    }

    fn usage(&self) -> String {
        let dashes = if self.name.len() == 1 {
            format!("-{}, ", self.name)
        } else {
            String::new()
        };
        let value = self.kind.name();
        let mut text = format!("  {dashes}--{}{value}\n        {}", self.name, self.help);
        match default(self).map(display) {
            Some(value) if !matches!(value.as_str(), "" | "0" | "0s" | "false" | "[]") => {
                _ = write!(text, " (default {value})");
            }
            _ => {}
        }
        text
    }
}

impl Kind {
    /// The value's place in the usage, behind the flag's name.
    fn name(self) -> &'static str {
        match self {
            Self::Text => " string",
            Self::List => " strings",
            Self::Gates => " name=bool,...",
            Self::Switch => "[=bool]",
            Self::Number => " int",
            Self::Float => " float",
            Self::Duration => " duration",
            Self::Address => " ip",
            Self::Listener => " ip[:port]",
            Self::Quantity => " quantity",
            Self::Level => " level",
            Self::VModule => " pattern=level,...",
            Self::Version => "[=raw]",
        }
    }

    fn parser(self) -> fn(&str) -> Result<Value, String> {
        match self {
            Self::Text => |text| Ok(text.into()),
            Self::List => |text| Ok(text.split(',').filter(|item| !item.is_empty()).collect()),
            Self::Gates => gates,
            Self::Switch => |text| switch(text).map(Value::Bool),
            Self::Number => |text| {
                let number = text.parse::<i32>();
                number
                    .map(Value::from)
                    .map_err(|_| "must be a whole number of 32 bits".to_owned())
            },
            Self::Float => |text| {
                let number = text.parse::<f32>().ok().filter(|number| number.is_finite());
                number
                    .map(Value::from)
                    .ok_or_else(|| "must be a number".to_owned())
            },
            Self::Duration => |text| {
                let duration = duration::parse(text).map_err(|reason| reason.to_string())?;
                Ok(GoDuration(duration).to_string().into())
            },
            Self::Address => |text| {
                crate::address::parse_ip(text)
                    .map(|_| text.into())
                    .ok_or_else(|| format!("{text:?} is not an IP address"))
            },
            Self::Listener => |text| {
                crate::address::parse_listener(text)
                    .map(|_| text.into())
                    .ok_or_else(|| format!("{text:?} is neither an IP address nor one with a port"))
            },
            Self::Quantity => |text| {
                let quantity = Quantity(text.to_owned());
                if quantity.is_valid() {
                    Ok(quantity.0.into())
                } else {
                    Err("must be a number of bytes such as 512, 1K or 2Ki".to_owned())
                }
            },
            Self::Level => |text| level(text).map(Value::from),
            Self::VModule => vmodule,
            Self::Version => version,
        }
    }
}

/// The value that holds where the command line says nothing.
fn default(flag: &Flag) -> Option<Value> {
    let (Target::Field(path) | Target::Override(path)) = flag.target else {
        return None;
    };
    let defaults = Configuration::default().to_value();
    defaults.pointer(&format!("/{}", path.replace('.', "/"))).cloned()
}

/// A value as people read it.
fn display(value: Value) -> String {
    match value {
        Value::Null => "[]".to_owned(),
        Value::String(text) => text,
        Value::Array(items) => {
            let items: Vec<String> = items.into_iter().map(display).collect();
            format!("[{}]", items.join(","))
        }
        Value::Object(fields) => {
            let fields: Vec<String> = fields
                .into_iter()
                .map(|(name, value)| format!("{name}={}", display(value)))
                .collect();
            fields.join(",")
        }
        other => other.to_string(),
    }
}

/// The same argument with its flag's name written with dashes, as pflag allows `_` for `-`.
fn with_dashes(arg: OsString) -> OsString {
    let Some(text) = arg.to_str().filter(|text| text.starts_with("--")) else {
        return arg;
    };
    match text.split_once('=') {
        Some((name, value)) => format!("{}={value}", name.replace('_', "-")).into(),
        None => text.replace('_', "-").into(),
    }
}

fn switch(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("must be true or false".to_owned()),
    }
}

/// Nothing reports the version that a text pretends, but it must be one that could be.
fn version(text: &str) -> Result<Value, String> {
    let ours = version::KUBERNETES;
    match text.strip_prefix(ours) {
        Some(suffix) if suffix.is_empty() || suffix.starts_with(['-', '+']) => Ok(Value::Bool(false)),
        None if text == "raw" => Ok(text.into()),
        _ if text.starts_with('v') => Err(format!(
            "version {text:?} must match major/minor/patch of default version {ours:?}"
        )),
        _ => switch(text).map(Value::Bool),
    }
}

fn level(text: &str) -> Result<u32, String> {
    let level = text.parse().ok().filter(|level| i32::try_from(*level).is_ok());
    level.ok_or_else(|| "must be a whole number, not negative, of 31 bits".to_owned())
}

fn gates(text: &str) -> Result<Value, String> {
    let mut gates = Map::new();
    for pair in text.split(',').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').ok_or("malformed pair, expect string=bool")?;
        let value = switch(value.trim()).map_err(|reason| format!("invalid value of {name}: {reason}"))?;
        gates.insert(name.trim().to_owned(), value.into());
    }
    Ok(gates.into())
}

fn vmodule(text: &str) -> Result<Value, String> {
    let items = text.split(',').filter(|item| !item.is_empty()).map(|item| {
        let (pattern, verbosity) = item
            .split_once('=')
            .filter(|(pattern, _)| !pattern.is_empty())
            .ok_or_else(|| format!("{item:?} does not have the pattern=N format"))?;
        Ok(json!({"filePattern": pattern, "verbosity": level(verbosity)?}))
    });
    items.collect()
}

impl From<clap::Error> for Error {
    fn from(error: clap::Error) -> Self {
        let context = |kind| match error.get(kind) {
            Some(ContextValue::String(text)) => text.clone(),
            _ => String::new(),
        };
        // clap adds what the value should be: `--v <int>`.
        let argument = context(ContextKind::InvalidArg);
        let flag = argument
            .split([' ', '=', '['])
            .next()
            .unwrap_or_default()
            .to_owned();
        let value = context(ContextKind::InvalidValue);
        match error.kind() {
            ErrorKind::DisplayHelp => Self::Help,
            ErrorKind::UnknownArgument => match flag.strip_prefix('-') {
                Some(letter) if !letter.starts_with('-') => Self::UnknownShorthand(letter.to_owned()),
                _ => Self::Unknown(flag),
            },
            ErrorKind::InvalidValue if value.is_empty() => Self::NoArgument(flag),
            ErrorKind::ValueValidation => Self::Invalid {
                flag,
                value,
                reason: std::error::Error::source(&error)
                    .map(ToString::to_string)
                    .unwrap_or_default(),
            },
            _ => Self::Other(error.to_string().lines().next().unwrap_or_default().to_owned()),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn parse(args: &[&str]) -> Result<Flags, Error> {
        let args = std::iter::once(&"kube-proxy").chain(args);
        Flags::parse(args.map(OsString::from))
    }

    #[test]
    fn flags_read_as_pflag_reads_them() {
        for (args, expected) in [
            (&["--ipvs-scheduler=lc"][..], "lc"),
            (&["--ipvs-scheduler", "lc"], "lc"),
            (&["--ipvs_scheduler=lc"], "lc"),
            (&["--ipvs_scheduler", "under_score"], "under_score"),
            (&["--ipvs-scheduler=rr", "--ipvs-scheduler=lc"], "lc"),
            (&["--ipvs-scheduler="], ""),
            (&["--ipvs-scheduler", "-1"], "-1"),
        ] {
            assert_eq!(parse(args).unwrap().text("ipvs-scheduler"), expected, "{args:?}");
        }
        for (args, expected) in [
            (&["--masquerade-all"][..], true),
            (&["--masquerade_all"], true),
            (&["--masquerade-all=false"], false),
            (&["--masquerade-all=T"], true),
            (&["--masquerade-all", "--masquerade-all=0"], false),
        ] {
            assert_eq!(
                parse(args).unwrap().switch("masquerade-all"),
                expected,
                "{args:?}"
            );
        }
        for args in [
            &["-v", "4"][..],
            &["-v4"],
            &["-v=4"],
            &["--v=4"],
            &["--v", "4"],
            &["-v2", "--v=4"],
        ] {
            assert_eq!(parse(args).unwrap().number("v"), Some(4), "{args:?}");
        }
        for args in [
            &["--ipvs-exclude-cidrs=a,b"][..],
            &["--ipvs-exclude-cidrs=a", "--ipvs-exclude-cidrs=b"],
            &["--ipvs-exclude-cidrs", "a,b"],
        ] {
            let cidrs = parse(args).unwrap().value("ipvs-exclude-cidrs");
            assert_eq!(cidrs, Some(json!(["a", "b"])), "{args:?}");
        }
        for args in [
            &["--feature-gates=A=true,B=false"][..],
            &["--feature-gates=A=false,B=false", "--feature-gates= A = T "],
        ] {
            let gates = parse(args).unwrap().value("feature-gates");
            assert_eq!(gates, Some(json!({"A": true, "B": false})), "{args:?}");
        }
        for (args, expected) in [
            (&[][..], None),
            (&["--version"], Some(json!(true))),
            (&["--version=raw"], Some(json!("raw"))),
            (&["--version=v1.36.3-here"], Some(json!(false))),
            (&[""], None),
        ] {
            let flags = parse(args).unwrap();
            assert_eq!(flags.value("version"), expected, "{args:?}");
        }
    }

    #[test]
    fn a_bad_command_line_is_one_sentence() {
        for (args, message) in [
            (&["--ipvs-sheduler=rr"][..], "unknown flag: --ipvs-sheduler"),
            (&["-x"], "unknown shorthand flag: 'x' in -x"),
            (&["--ipvs-scheduler"], "flag needs an argument: --ipvs-scheduler"),
            (
                &["serve", "", "it"],
                "\"kube-proxy\" does not take any arguments, got [\"serve\", \"it\"]",
            ),
            (
                &["--masquerade-all", "false"],
                "\"kube-proxy\" does not take any arguments, got [\"false\"]",
            ),
            (
                &["--masquerade-all=yes"],
                "invalid argument \"yes\" for \"--masquerade-all\" flag: must be true or false",
            ),
            (
                &["--ipvs-sync-period", "30"],
                "invalid argument \"30\" for \"--ipvs-sync-period\" flag: a number without a unit; write for example 30s",
            ),
            (
                &["--iptables-masquerade-bit=99999999999"],
                "invalid argument \"99999999999\" for \"--iptables-masquerade-bit\" flag: must be a whole number of 32 bits",
            ),
            (
                &["--bind-address=localhost"],
                "invalid argument \"localhost\" for \"--bind-address\" flag: \"localhost\" is not an IP address",
            ),
            (
                &["--healthz-bind-address=192.0.2.1:70000"],
                "invalid argument \"192.0.2.1:70000\" for \"--healthz-bind-address\" flag: \"192.0.2.1:70000\" is neither an IP address nor one with a port",
            ),
            (
                &["-v", "-1"],
                "invalid argument \"-1\" for \"--v\" flag: must be a whole number, not negative, of 31 bits",
            ),
            (
                &["--vmodule=a"],
                "invalid argument \"a\" for \"--vmodule\" flag: \"a\" does not have the pattern=N format",
            ),
            (
                &["--feature-gates=A"],
                "invalid argument \"A\" for \"--feature-gates\" flag: malformed pair, expect string=bool",
            ),
            (
                &["--kube-api-qps=many"],
                "invalid argument \"many\" for \"--kube-api-qps\" flag: must be a number",
            ),
            (
                &["--log-json-info-buffer-size=2x"],
                "invalid argument \"2x\" for \"--log-json-info-buffer-size\" flag: must be a number of bytes such as 512, 1K or 2Ki",
            ),
        ] {
            assert_eq!(parse(args).unwrap_err().to_string(), message, "{args:?}");
        }
    }

    #[test]
    fn usage_names_every_flag_but_the_hidden_ones() {
        for args in [["--help"], ["-h"]] {
            assert_eq!(parse(&args).unwrap_err(), Error::Help, "{args:?}");
        }
        let usage = usage();
        for flag in flags() {
            let line = usage.lines().find(|line| {
                line.trim_start()
                    .trim_start_matches("-v, ")
                    .strip_prefix(&format!("--{}", flag.name))
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '[']))
            });
            assert_eq!(line.is_some(), !flag.hidden, "{}: {usage}", flag.name);
        }
        assert!(usage.contains("(default 24h0m0s)"), "{usage}");
    }

    /// The document says of each flag and of each field what becomes of it.
    #[test]
    fn the_document_has_every_flag_and_every_field() {
        let document = include_str!("../../../docs/compatibility.md");
        for flag in upstream_s_flags() {
            let dashes = if flag.name.len() == 1 { "-" } else { "--" };
            assert!(
                document.contains(&format!("`{dashes}{}`", flag.name)),
                "{}",
                flag.name
            );
        }
        let mut paths = Vec::new();
        leaves(&Configuration::default().to_value(), "", &mut paths);
        for path in paths {
            assert!(document.contains(&format!("| `{path}` |")), "{path}");
        }
    }

    fn upstream_s_flags() -> impl Iterator<Item = &'static Flag> {
        let groups = GROUPS.iter().filter(|group| group.heading != OWN);
        groups.flat_map(|group| group.flags)
    }

    fn leaves(value: &Value, path: &str, found: &mut Vec<String>) {
        let Value::Object(fields) = value else {
            return found.push(path.to_owned());
        };
        for (name, value) in fields {
            let separator = if path.is_empty() { "" } else { "." };
            leaves(value, &format!("{path}{separator}{name}"), found);
        }
    }

    #[test]
    fn every_field_of_a_flag_exists() {
        for flag in flags().filter(|flag| flag.target != Target::Run) {
            // These are left out of a file while they are empty.
            let optional = [
                "feature-gates",
                "vmodule",
                "log-text-split-stream",
                "log-json-split-stream",
            ];
            assert_eq!(
                default(flag).is_none(),
                optional.contains(&flag.name),
                "{}",
                flag.name
            );
        }
    }
}
