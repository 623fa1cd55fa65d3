//! Packet filters of others that drop what nobody accepts.

use std::time::{Duration, Instant};

use integration::manifest::{service, slice, slice_v6};
use integration::topology::{NODE, NODE_V6, Pod};
use integration::traffic::Failure::TimedOut;
use integration::traffic::Protocol::Tcp;
use integration::{Cluster, Result};

use crate::{TCP_8080, eventually, expect, expect_failure};

/// What `iptables -S FORWARD` says of our rule.
const ANSWERS: &str = "-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED \
    -m comment --comment \"kube-proxy: answers to the clients of Services\" -j ACCEPT";

/// Our rule comes a second after the kernel tells, and then an emulated machine needs time to look.
const SOON: Duration = Duration::from_secs(6);

/// A cluster with the Service `web` at 10.96.0.10 and fd00:10:96::10, and its pod on the other node: its answers are
/// forwarded.
fn web_elsewhere() -> Result<(Cluster, Pod)> {
    let cluster = Cluster::new()?;
    let pod = cluster.peer().pod("web-2", 12, TCP_8080)?;
    cluster.apply(
        "web",
        &[
            service(
                "web",
                "clusterIP: 10.96.0.10, clusterIPs: [10.96.0.10, \"fd00:10:96::10\"], ports: [{port: 80}]",
            ),
            slice("web-4", "web", "{port: 8080}", &[(&pod).into()]),
            slice_v6("web-6", "web", "{port: 8080}", &[(&pod).into()]),
        ],
    )?;
    Ok((cluster, pod))
}

fn forward(cluster: &Cluster, tool: &str) -> Result<Vec<String>> {
    let said = cluster.node().namespace.output(tool, &["-S", "FORWARD"])?;
    Ok(said.lines().map(str::to_owned).collect())
}

/// Waits until our rule is in `FORWARD` of both families this often, and nothing else of ours.
fn expect_rule(cluster: &Cluster, times: usize) -> Result<()> {
    eventually(|| {
        for tool in ["iptables", "ip6tables"] {
            let rules = forward(cluster, tool)?;
            let ours = rules.iter().filter(|rule| rule.contains("kube-proxy")).count();
            if ours != times || rules.iter().filter(|rule| *rule == ANSWERS).count() != times {
                return Ok(Err(format!("expected our rule {times} times in {rules:#?}")));
            }
        }
        Ok(Ok(()))
    })
}

const BOTH: &str = "for tool in iptables ip6tables; do $tool";

fn both(cluster: &Cluster, arguments: &str) -> Result<()> {
    let script = format!("set -e; {BOTH} {arguments}; done");
    cluster.node().namespace.shell(&script).map(drop)
}

fn expect_answers(cluster: &Cluster) -> Result<()> {
    expect(cluster.client(), Tcp, "10.96.0.10:80", &["web-2"], NODE)?;
    expect(cluster.client(), Tcp, "[fd00:10:96::10]:80", &["web-2"], NODE_V6)
}

#[test]
#[ignore = "needs root and ip_vs: cargo xtask test"]
fn c6_services_work_where_iptables_drops_what_is_forwarded() -> Result<()> {
    let (mut cluster, _pod) = web_elsewhere()?;
    both(&cluster, "-P FORWARD DROP")?;
    cluster.start(&["--ipvs-sync-period=10m"])?;
    expect_rule(&cluster, 1)?;
    expect_answers(&cluster)?;
    // Nothing else passes.
    let peers_pod = cluster.peer().pod("other", 13, TCP_8080)?;
    let to = format!("{}:8080", peers_pod.ipv4);
    expect_failure(cluster.client(), Tcp, &to, TimedOut)?;

    // It comes back: iptables -F, and a reload.
    for damage in ["-F", "-F FORWARD", "-D FORWARD 1"] {
        let start = Instant::now();
        both(&cluster, damage)?;
        expect_rule(&cluster, 1)?;
        assert!(
            start.elapsed() < SOON,
            "{damage}: mended after {:?}",
            start.elapsed()
        );
    }
    cluster
        .node()
        .namespace
        .shell("iptables-save > /tmp/saved; iptables-restore < /tmp/saved; rm /tmp/saved")?;
    expect_rule(&cluster, 1)?;
    expect_answers(&cluster)?;

    // I6: a restart leaves it as it is. The handle tells a rule that was made anew.
    let listed = |cluster: &Cluster| {
        let chain = ["--handle", "list", "chain", "ip", "filter", "FORWARD"];
        let listed = cluster.node().namespace.output("nft", &chain)?;
        Ok::<_, integration::Error>(
            listed
                .split("# handle")
                .map(|part| part.split_whitespace().next().map(str::to_owned))
                .collect::<Vec<_>>(),
        )
    };
    let before = listed(&cluster)?;
    cluster.take_kube_proxy()?.kill()?;
    cluster.start(&["--ipvs-sync-period=10m"])?;
    expect_rule(&cluster, 1)?;
    assert_eq!(listed(&cluster)?, before);

    // It goes when it is not needed, and comes when it is.
    both(&cluster, "-P FORWARD ACCEPT")?;
    expect_rule(&cluster, 0)?;
    both(&cluster, "-A FORWARD -j REJECT")?;
    expect_rule(&cluster, 1)?;
    expect_answers(&cluster)
}

/// C6, F4, I4
#[test]
#[ignore = "needs root and ip_vs: cargo xtask test"]
fn c6_a_cleanup_takes_our_rule_back_and_no_other() -> Result<()> {
    let (mut cluster, _pod) = web_elsewhere()?;
    both(&cluster, "-P FORWARD DROP")?;
    both(&cluster, "-A FORWARD -p tcp --dport 1234 -j ACCEPT")?;
    both(
        &cluster,
        "-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
    )?;
    let listed = |cluster: &Cluster| {
        let script = format!("{BOTH} -S; done");
        cluster.node().namespace.shell(&script)
    };
    let before = listed(&cluster)?;
    cluster.start(&[])?;
    expect_rule(&cluster, 1)?;
    cluster.take_kube_proxy()?.kill()?;
    cluster.node().namespace.output("kube-proxy", &["--cleanup"])?;
    assert_eq!(listed(&cluster)?, before);
    Ok(())
}

#[test]
#[ignore = "needs root and ip_vs: cargo xtask test"]
fn c6_what_others_drop_is_told_once_with_the_rule_to_add() -> Result<()> {
    let (mut cluster, _pod) = web_elsewhere()?;
    cluster.node().namespace.shell(
        "set -e
         iptables -P INPUT DROP
         nft add table inet filter
         nft add chain inet filter forward '{ type filter hook forward priority 10; policy drop; }'
         nft add table inet firewalld
         nft add chain inet firewalld filter_INPUT '{ type filter hook input priority 10; }'
         nft add rule inet firewalld filter_INPUT ct state established,related accept
         nft add rule inet firewalld filter_INPUT reject with icmpx admin-prohibited",
    )?;
    cluster.start(&["--ipvs-sync-period=1s"])?;
    let log = cluster.kube_proxy()?.log()?;
    for told in [
        "chain ip filter INPUT drops what its rules do not accept; what Services need there is `iptables -I INPUT -d SERVICE-CIDR -j ACCEPT`",
        "`nft insert rule inet filter forward ct state established,related accept`",
        "`nft insert rule inet firewalld filter_INPUT ip daddr SERVICE-CIDR accept` and `nft insert rule inet firewalld filter_INPUT ip6 daddr SERVICE-CIDR accept`",
    ] {
        assert!(log.contains(told), "{told}\n{log}");
    }
    expect_failure(cluster.client(), Tcp, "10.96.0.10:80", TimedOut)?;
    // The rules that were told of do it.
    cluster.node().namespace.shell(
        "set -e
         iptables -I INPUT -d 10.96.0.0/12 -j ACCEPT
         nft insert rule inet filter forward ct state established,related accept
         nft insert rule inet firewalld filter_INPUT ip daddr 10.96.0.0/12 accept",
    )?;
    expect(cluster.client(), Tcp, "10.96.0.10:80", &["web-2"], NODE)?;
    cluster
        .node()
        .namespace
        .shell("nft delete table inet firewalld; sleep 3")?;
    let log = cluster.kube_proxy()?.log()?;
    let count = |text: &str| log.matches(text).count();
    assert_eq!(count("inet filter forward drops"), 1, "{log}");
    assert_eq!(count("no longer: chain inet firewalld filter_INPUT"), 1, "{log}");
    Ok(())
}
