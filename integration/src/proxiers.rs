//! The proxiers that are compared, run alike.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::kube_proxy::KubeProxy;
use crate::namespace::Namespace;
use crate::topology::CLUSTER_CIDRS;
use crate::uplink::KUBECONFIG;

/// In a guest: upstream's program on the search path.
pub const UPSTREAM: &str = "upstream-kube-proxy";

/// How long a change may take to get from the API server to a proxier.
const ON_THE_WAY: Duration = Duration::from_secs(2);

/// How long the kernel's state must have stayed the same to be taken for what ours wanted.
const STABLE: Duration = Duration::from_secs(2);

/// How long a proxier may take to program a change. Upstream starts a process for each entry of a set.
const LIMIT: Duration = Duration::from_secs(180);

/// A proxier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Proxier {
    /// Ours.
    Ours,
    /// Upstream's kube-proxy in mode ipvs.
    UpstreamIpvs,
    /// Upstream's kube-proxy in mode nftables.
    UpstreamNftables,
}

impl Proxier {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Ours, Self::UpstreamIpvs, Self::UpstreamNftables];

    /// Starts it on a node, with the API server of [`KUBECONFIG`].
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(self, node: &Namespace, log: &Path) -> Result<KubeProxy> {
        let mut command = match self {
            Self::Ours => Command::new("kube-proxy"),
            Self::UpstreamIpvs | Self::UpstreamNftables => Command::new(UPSTREAM),
        };
        command.args([
            "--kubeconfig",
            KUBECONFIG,
            "--hostname-override=node",
            "--cluster-cidr",
            CLUSTER_CIDRS,
        ]);
        match self {
            Self::Ours => {}
            // Of conntrack's limits, those of the first network namespace cannot be set from another.
            Self::UpstreamIpvs => {
                command.args([
                    "--proxy-mode=ipvs",
                    "--conntrack-max-per-core=0",
                    "--conntrack-min=0",
                ]);
            }
            Self::UpstreamNftables => {
                command.args([
                    "--proxy-mode=nftables",
                    "--conntrack-max-per-core=0",
                    "--conntrack-min=0",
                ]);
            }
        }
        KubeProxy::start_command(node, &mut command, log)
    }

    /// Waits until it has programmed what the API server says now.
    ///
    /// # Errors
    /// It does not in time; with what it says.
    pub fn settle(self, node: &Namespace, running: &mut KubeProxy) -> Result<()> {
        let start = Instant::now();
        if self == Self::Ours {
            running.wait_for("in sync")?;
        }
        thread::sleep(ON_THE_WAY);
        while start.elapsed() < LIMIT {
            let settled = match self {
                Self::Ours => {
                    let before = kernel_state(node)?;
                    thread::sleep(STABLE);
                    kernel_state(node)? == before
                }
                Self::UpstreamIpvs | Self::UpstreamNftables => {
                    // Nobody answers before the first synchronisation has begun.
                    let metrics = node.output("curl", &["--silent", "http://127.0.0.1:10249/metrics"]);
                    metrics.is_ok_and(|metrics| nothing_queued(&metrics))
                }
            };
            if settled {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(500));
        }
        let log = running.log()?;
        let said = crate::process::last_lines(&log, 20);
        Err(Error::Unavailable(format!(
            "{self} has not settled in {} s, and says\n{said}",
            LIMIT.as_secs()
        )))
    }
}

impl fmt::Display for Proxier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ours => "ours",
            Self::UpstreamIpvs => "upstream, ipvs",
            Self::UpstreamNftables => "upstream, nftables",
        })
    }
}

/// What a proxier has programmed, without the kernel's counters.
fn kernel_state(node: &Namespace) -> Result<String> {
    node.shell("ipvsadm -Sn; ip -brief address show; nft --stateless list ruleset")
}

/// Whether, in upstream's metrics, both families were programmed after the last change was noticed.
fn nothing_queued(metrics: &str) -> bool {
    let read = |name: &str| -> BTreeMap<String, f64> {
        let lines = metrics.lines().filter_map(|line| line.strip_prefix(name));
        let pairs = lines.filter_map(|line| line.rsplit_once(' '));
        pairs
            .filter_map(|(family, value)| Some((family.to_owned(), value.parse().ok()?)))
            .collect()
    };
    let done = read("kubeproxy_sync_proxy_rules_last_timestamp_seconds");
    let queued = read("kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds");
    done.len() == 2
        && done.iter().all(|(family, done)| {
            let queued = queued.get(family).copied().unwrap_or_default();
            *done > 0.0 && *done >= queued
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_programmed_when_both_families_are() {
        let metrics = |v4: f64, v6: f64| {
            format!(
                "# HELP kubeproxy_sync_proxy_rules_last_timestamp_seconds when\n\
                 kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds{{ip_family=\"IPv4\"}} 1.5e+09\n\
                 kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds{{ip_family=\"IPv6\"}} 1.5e+09\n\
                 kubeproxy_sync_proxy_rules_last_timestamp_seconds{{ip_family=\"IPv4\"}} {v4}\n\
                 kubeproxy_sync_proxy_rules_last_timestamp_seconds{{ip_family=\"IPv6\"}} {v6}\n"
            )
        };
        assert!(nothing_queued(&metrics(1.6e9, 1.7e9)));
        assert!(!nothing_queued(&metrics(1.6e9, 1.4e9)));
        assert!(!nothing_queued(&metrics(0.0, 1.7e9)));
        assert!(!nothing_queued(""));
    }
}
