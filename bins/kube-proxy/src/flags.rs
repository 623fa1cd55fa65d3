//! The command line: kube-proxy's flags, read as kube-proxy reads them.
//!
//! [`FLAGS`] is the whole surface, one row a flag. What the values mean together is for
//! [`settings`](crate::settings) to say.

use std::{error::Error as _, ffi::OsString, time::Duration};

use clap::{
    Arg, ArgAction, ArgMatches, Command,
    error::{ContextKind, ContextValue, ErrorKind},
};

use crate::duration;

/// What a flag's value may look like.
#[derive(Clone, Copy)]
enum Kind {
    /// Any text.
    Text,
    /// Texts between commas; the flag may be repeated.
    List,
    /// `--flag`, `--flag=true` or `--flag=false`.
    Switch,
    /// A whole number.
    Number,
    /// A duration as Go writes it.
    Duration,
}

struct Flag {
    name: &'static str,
    kind: Kind,
    /// As it would be written on the command line.
    default: &'static str,
    help: &'static str,
}

const fn flag(name: &'static str, kind: Kind, default: &'static str, help: &'static str) -> Flag {
    Flag {
        name,
        kind,
        default,
        help,
    }
}

// One row a flag, however long.
#[rustfmt::skip]
const FLAGS: &[Flag] = &[
    // Where the objects come from.
    flag("kubeconfig", Kind::Text, "",
         "File that says how to reach the API server; else the Pod's own account"),
    flag("master", Kind::Text, "", "URL of the API server, instead of the kubeconfig's"),
    flag("manifests", Kind::Text, "",
         "Directory of manifests to take Services from, instead of an API server"),
    flag("config-sync-period", Kind::Duration, "15m", "Accepted; a watch that resumes needs no refresh"),
    // Who we are.
    flag("hostname-override", Kind::Text, "", "Name of this node's object, instead of the host's name"),
    flag("bind-address", Kind::Text, "0.0.0.0",
         "Primary address of this node, instead of its object's; 0.0.0.0 or :: for none"),
    // Whose traffic is masqueraded.
    flag("detect-local-mode", Kind::Text, "ClusterCIDR",
         "How traffic of pods is told from other traffic: ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix"),
    flag("cluster-cidr", Kind::Text, "",
         "Pods' addresses, for ClusterCIDR: one CIDR, or one of each family with a comma between"),
    flag("pod-bridge-interface", Kind::Text, "", "Bridge of the pods, for BridgeInterface"),
    flag("pod-interface-name-prefix", Kind::Text, "",
         "Beginning of the names of pods' interfaces, for InterfaceNamePrefix"),
    flag("masquerade-all", Kind::Switch, "false", "Masquerade all traffic to ClusterIPs"),
    flag("iptables-masquerade-bit", Kind::Number, "14",
         "Bit of the packet mark that asks for masquerading, 0 to 31"),
    // Node ports.
    flag("nodeport-addresses", Kind::List, "",
         "CIDRs of the node addresses that answer on node ports, or the word primary; all if empty"),
    // IPVS.
    flag("proxy-mode", Kind::Text, "ipvs", "Only ipvs"),
    flag("ipvs-scheduler", Kind::Text, "rr", "Scheduler of every virtual server"),
    flag("ipvs-exclude-cidrs", Kind::List, "", "CIDRs in which virtual servers of others are left alone"),
    flag("ipvs-strict-arp", Kind::Switch, "false",
         "Answer ARP for addresses of the receiving interface only"),
    flag("ipvs-sync-period", Kind::Duration, "30s", "How often the kernel's state is read back and mended"),
    flag("ipvs-min-sync-period", Kind::Duration, "0s", "Least time between two updates of the kernel"),
    flag("ipvs-tcp-timeout", Kind::Duration, "0s", "Timeout of idle TCP connections; 0 leaves the kernel's"),
    flag("ipvs-tcpfin-timeout", Kind::Duration, "0s",
         "Timeout of TCP connections after a FIN; 0 leaves the kernel's"),
    flag("ipvs-udp-timeout", Kind::Duration, "0s", "Timeout of idle UDP flows; 0 leaves the kernel's"),
    flag("ipvs-drain-timeout", Kind::Duration, "15m",
         "How long a server that is no longer wanted may keep its last TCP connections"),
    // This program.
    flag("dry-run", Kind::Switch, "false", "Print what would be programmed, and exit"),
    flag("version", Kind::Switch, "false", "Print the version, and exit"),
    flag("v", Kind::Number, "0", "Verbosity of the log: 4 and 6 add detail"),
];

/// A command line that cannot be used, as one sentence.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Error {
    /// Not an error: the text that was asked for with `--help`.
    #[error("{0}")]
    Help(String),
    #[error("unknown flag: {0}; see kube-proxy --help")]
    Unknown(String),
    #[error("flag needs an argument: {0}")]
    NoArgument(String),
    #[error("invalid argument {value:?} for flag {flag}: {reason}")]
    Invalid {
        flag: String,
        value: String,
        reason: String,
    },
    #[error("\"kube-proxy\" does not take any arguments, got {0:?}")]
    Positional(String),
    #[error("{0}")]
    Other(String),
}

/// The values of all flags of [`FLAGS`], by name.
#[derive(Debug)]
pub(crate) struct Flags(ArgMatches);

impl Flags {
    /// Reads a command line, the program's name included.
    pub(crate) fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Self, Error> {
        command()
            .try_get_matches_from(args.into_iter().map(with_dashes))
            .map(Self)
            .map_err(Error::from)
    }

    pub(crate) fn text(&self, name: &str) -> &str {
        self.0.get_one::<String>(name).map_or("", |text| text)
    }

    pub(crate) fn list(&self, name: &str) -> impl Iterator<Item = &str> {
        let items = self
            .0
            .get_many::<String>(name)
            .into_iter()
            .flatten()
            .map(String::as_str);
        items.filter(|item| !item.is_empty())
    }

    pub(crate) fn switch(&self, name: &str) -> bool {
        self.0.get_one(name).copied().unwrap_or_default()
    }

    pub(crate) fn number(&self, name: &str) -> i32 {
        self.0.get_one(name).copied().unwrap_or_default()
    }

    pub(crate) fn duration(&self, name: &str) -> Duration {
        self.0.get_one(name).copied().unwrap_or_default()
    }
}

fn command() -> Command {
    Command::new("kube-proxy")
        .about("Programs Kubernetes Services as IPVS virtual servers.")
        .help_template("{about}\n\nUsage:\n  kube-proxy [flags]\n\nFlags:\n{options}")
        .args_override_self(true)
        .args(FLAGS.iter().map(Flag::arg))
}

impl Flag {
    fn arg(&self) -> Arg {
        let arg = Arg::new(self.name).long(self.name).help(self.help);
        let arg = if self.name.len() == 1 {
            arg.short(self.name.chars().next())
        } else {
            arg
        };
        // As pflag does, take whatever follows for the value, be it `-1`.
        let arg = arg.allow_hyphen_values(true);
        let arg = match self.kind {
            Kind::Text => arg.value_name("string"),
            Kind::List => arg
                .value_name("strings")
                .value_delimiter(',')
                .action(ArgAction::Append),
            Kind::Switch => arg
                .value_name("bool")
                .num_args(0..=1)
                .require_equals(true)
                .default_missing_value("true")
                .value_parser(switch),
            Kind::Number => arg.value_name("int").value_parser(number),
            Kind::Duration => arg.value_name("duration").value_parser(duration::parse),
        };
        if self.default.is_empty() {
            arg
        } else {
            arg.default_value(self.default)
        }
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

fn switch(text: &str) -> Result<bool, &'static str> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("must be true or false"),
    }
}

fn number(text: &str) -> Result<i32, &'static str> {
    text.parse().map_err(|_| "must be a whole number of 32 bits")
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
            ErrorKind::DisplayHelp => Self::Help(error.to_string()),
            ErrorKind::UnknownArgument if flag.starts_with('-') => Self::Unknown(flag),
            ErrorKind::UnknownArgument => Self::Positional(argument),
            ErrorKind::InvalidValue if value.is_empty() => Self::NoArgument(flag),
            ErrorKind::ValueValidation => Self::Invalid {
                flag,
                value,
                reason: error.source().map(ToString::to_string).unwrap_or_default(),
            },
            _ => Self::Other(error.to_string().lines().next().unwrap_or_default().to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Flags, Error> {
        Flags::parse(
            std::iter::once("kube-proxy")
                .chain(args.iter().copied())
                .map(OsString::from),
        )
    }

    #[test]
    fn without_flags_the_defaults_hold() {
        let flags = parse(&[]).unwrap();
        assert_eq!(flags.text("cluster-cidr"), "");
        assert_eq!(flags.list("nodeport-addresses").count(), 0);
        assert!(!flags.switch("masquerade-all"));
        assert_eq!(flags.number("iptables-masquerade-bit"), 14);
        assert_eq!(flags.duration("ipvs-sync-period"), Duration::from_secs(30));
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
            assert_eq!(parse(args).unwrap().number("v"), 4, "{args:?}");
        }
        for args in [
            &["--ipvs-exclude-cidrs=a,b"][..],
            &["--ipvs-exclude-cidrs=a", "--ipvs-exclude-cidrs=b"],
            &["--ipvs-exclude-cidrs", "a,b"],
        ] {
            let flags = parse(args).unwrap();
            assert_eq!(
                flags.list("ipvs-exclude-cidrs").collect::<Vec<_>>(),
                ["a", "b"],
                "{args:?}"
            );
        }
        assert_eq!(
            parse(&["--ipvs-exclude-cidrs="])
                .unwrap()
                .list("ipvs-exclude-cidrs")
                .count(),
            0
        );
    }

    #[test]
    fn a_bad_command_line_is_one_sentence() {
        for (args, message) in [
            (
                &["--ipvs-sheduler=rr"][..],
                "unknown flag: --ipvs-sheduler; see kube-proxy --help",
            ),
            (&["-x"], "unknown flag: -x; see kube-proxy --help"),
            (&["--ipvs-scheduler"], "flag needs an argument: --ipvs-scheduler"),
            (
                &["serve"],
                "\"kube-proxy\" does not take any arguments, got \"serve\"",
            ),
            (
                &["--masquerade-all", "false"],
                "\"kube-proxy\" does not take any arguments, got \"false\"",
            ),
            (
                &["--masquerade-all=yes"],
                "invalid argument \"yes\" for flag --masquerade-all: must be true or false",
            ),
            (
                &["--ipvs-sync-period", "30"],
                "invalid argument \"30\" for flag --ipvs-sync-period: a number without a unit; write for example 30s",
            ),
            (
                &["--iptables-masquerade-bit=99999999999"],
                "invalid argument \"99999999999\" for flag --iptables-masquerade-bit: must be a whole number of 32 bits",
            ),
        ] {
            assert_eq!(parse(args).unwrap_err().to_string(), message, "{args:?}");
        }
    }

    #[test]
    fn help_names_every_flag() {
        for args in [["--help"], ["-h"]] {
            let Err(Error::Help(help)) = parse(&args) else {
                panic!("{args:?} gives no help")
            };
            for flag in FLAGS {
                assert!(
                    help.contains(&format!("--{} ", flag.name))
                        || help.contains(&format!("--{}[", flag.name)),
                    "{}: {help}",
                    flag.name
                );
            }
        }
    }
}
