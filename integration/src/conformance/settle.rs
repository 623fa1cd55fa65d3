//! When a proxier has programmed a change.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use super::sentinel::Sentinel;
use crate::error::{Context, Error, Result};
use crate::kube_proxy::KubeProxy;
use crate::namespace::Namespace;
use crate::process::last_lines;
use crate::proxiers::Proxier;

/// How often the kernel is looked at.
const POLL: Duration = Duration::from_millis(100);

/// How long a proxier may take to program a change. Upstream starts a process for each entry of a set.
const LIMIT: Duration = Duration::from_secs(300);

/// Waits until a proxier has programmed all that was applied before the sentinel's last change.
///
/// # Errors
/// It does not in time; with what it says.
pub(super) fn settle(
    proxier: Proxier,
    node: &Namespace,
    sentinel: &Sentinel,
    running: &KubeProxy,
) -> Result<()> {
    let start = Instant::now();
    let mut seen = None;
    while start.elapsed() < LIMIT {
        let at = match seen {
            Some(at) => at,
            None if has(proxier, node, sentinel)? => *seen.insert(SystemTime::now()),
            None => {
                thread::sleep(POLL);
                continue;
            }
        };
        let settled = match proxier {
            Proxier::Ours => {
                let before = kernel_state(node)?;
                thread::sleep(POLL);
                kernel_state(node)? == before && !waits_for_nobody(&ip_vs(node)?)
            }
            Proxier::UpstreamIpvs | Proxier::UpstreamNftables | Proxier::KubeRouter => {
                // Mode ipvs has more to do when the sentinel is there; mode nftables makes one transaction.
                let since = match proxier {
                    Proxier::UpstreamNftables => SystemTime::UNIX_EPOCH,
                    _ => at - 2 * POLL,
                };
                let metrics = node.output("curl", &["--silent", "http://127.0.0.1:10249/metrics"]);
                metrics.is_ok_and(|metrics| nothing_queued(&metrics, since))
            }
        };
        if settled {
            return Ok(());
        }
        thread::sleep(POLL);
    }
    Err(Error::Unavailable(format!(
        "{proxier} has not settled in {} s, and says\n{}",
        LIMIT.as_secs(),
        last_lines(&running.log()?, 20)
    )))
}

/// Whether the kernel has the sentinel as it is now.
fn has(proxier: Proxier, node: &Namespace, sentinel: &Sentinel) -> Result<bool> {
    Ok(match proxier {
        Proxier::Ours | Proxier::UpstreamIpvs | Proxier::KubeRouter => sentinel.is_in(&ip_vs(node)?),
        Proxier::UpstreamNftables => node.shell(&sentinel.nft_query()).is_ok(),
    })
}

/// All virtual servers, in the kernel's own words; nothing as long as it has no IPVS.
fn ip_vs(node: &Namespace) -> Result<String> {
    node.enter(|| Ok(fs::read_to_string("/proc/thread-self/net/ip_vs").unwrap_or_default()))
}

/// Whether a real server without connections is still there to drain: ours looks once a second.
fn waits_for_nobody(ip_vs: &str) -> bool {
    let mut servers = ip_vs.lines().filter_map(|line| line.trim().strip_prefix("-> "));
    servers.any(|server| server.split_whitespace().skip(2).eq(["0", "0", "0"]))
}

/// What ours programs last, and what it programs most.
fn kernel_state(node: &Namespace) -> Result<String> {
    let addresses = node.enter(|| {
        let table = Path::new("/proc/thread-self/net/fib_trie");
        fs::read_to_string(table).path("read", table)
    })?;
    // Connections come and go.
    let servers: Vec<_> = ip_vs(node)?
        .lines()
        .map(|line| line.split_whitespace().take(4).collect::<Vec<_>>().join(" "))
        .collect();
    Ok(servers.join("\n") + &addresses)
}

/// Whether, in upstream's metrics, every family was programmed after the last change was noticed, and after `since`.
fn nothing_queued(metrics: &str, since: SystemTime) -> bool {
    let read = |name: &str| -> BTreeMap<String, f64> {
        let lines = metrics.lines().filter_map(|line| line.strip_prefix(name));
        let pairs = lines.filter_map(|line| line.rsplit_once(' '));
        pairs
            .filter_map(|(family, value)| Some((family.to_owned(), value.parse().ok()?)))
            .collect()
    };
    let since = since
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs_f64();
    let done = read("kubeproxy_sync_proxy_rules_last_timestamp_seconds");
    let queued = read("kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds");
    !done.is_empty()
        && queued.keys().all(|family| done.contains_key(family))
        && done.iter().all(|(family, done)| {
            let queued = queued.get(family).copied().unwrap_or_default();
            // The sentinel is a Service of IPv4; the other family need not have been programmed since.
            *done >= queued && (*done >= since || !family.contains("IPv4"))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_at_weight_0_is_waited_for_while_it_has_connections() {
        let with = |line: &str| {
            format!(
                "Prot LocalAddress:Port Scheduler Flags\n  -> RemoteAddress:Port Forward Weight ActiveConn InActConn\n\
                 TCP  0A60000A:0050 rr\n  -> 0AF4000B:1F90      Masq    1      0          0         \n{line}\n"
            )
        };
        assert!(waits_for_nobody(&with(
            "  -> 0AF4000C:1F90      Masq    0      0          0         "
        )));
        assert!(!waits_for_nobody(&with(
            "  -> 0AF4000C:1F90      Masq    0      0          2         "
        )));
        assert!(!waits_for_nobody(&with("")));
    }

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
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        assert!(nothing_queued(&metrics(1.6e9, 1.7e9), at(1_550_000_000)));
        assert!(!nothing_queued(&metrics(1.6e9, 1.7e9), at(1_650_000_000)));
        assert!(!nothing_queued(&metrics(1.6e9, 1.4e9), at(1_300_000_000)));
        assert!(nothing_queued(&metrics(1.7e9, 1.6e9), at(1_650_000_000)));
        assert!(!nothing_queued("", at(0)));
    }
}
