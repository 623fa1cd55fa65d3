//! Others on the same node: what is theirs stays.

use integration::Result;

use crate::{WEB_SERVERS, web};

#[test]
#[ignore = "needs root and ip_vs: cargo xtask test"]
fn i4_d9_foreign_state_stays() -> Result<()> {
    let (mut cluster, _pods) = web()?;
    cluster.node().namespace.shell(
        "ipvsadm -A -t 192.168.10.2:443 -s wlc && ipvsadm -a -t 192.168.10.2:443 -r 192.168.10.3:443 -g -w 7 &&
         ipvsadm -A -f 77 -s rr &&
         ip link add keepalived0 type dummy && ip address add 192.0.2.1/32 dev keepalived0 &&
         nft add table ip theirs && nft add chain ip theirs input '{ type filter hook input priority 0; }'",
    )?;
    cluster.start(&["--ipvs-sync-period=1s"])?;
    let theirs = "-A -t 192.168.10.2:443 -s wlc
        -a -t 192.168.10.2:443 -r 192.168.10.3:443 -g -w 7
        -A -f 77 -s rr\n";
    cluster.expect_servers(&(theirs.to_owned() + WEB_SERVERS))?;
    cluster.delete("web")?;
    cluster.expect_no_trace("10.96.0.10")?;
    // Some verifications later, too.
    let verified = cluster
        .node()
        .namespace
        .shell("sleep 3; ip -brief address show keepalived0")?;
    assert!(verified.contains("192.0.2.1/32"), "{verified}");
    cluster.expect_servers(theirs)?;
    assert!(cluster.ruleset()?.contains("table ip theirs"));
    let (status, log) = cluster.take_kube_proxy()?.terminate()?;
    assert!(status.success(), "{status}: {log}");
    cluster.expect_servers(theirs)
}

#[test]
#[ignore = "needs root and ip_vs: cargo xtask test"]
fn i4_d9_excluded_addresses_stay_with_their_virtual_servers() -> Result<()> {
    let (mut cluster, _pods) = web()?;
    // Of both an address is on kube-ipvs0, as if they were left over.
    cluster.node().namespace.shell(
        "set -e
         ip link add kube-ipvs0 type dummy
         for last in 1 2; do
             ip address add 10.97.$last.1/32 dev kube-ipvs0
             ipvsadm -A -t 10.97.$last.1:80 -s wlc
             ipvsadm -a -t 10.97.$last.1:80 -r 10.244.9.9:80 -m -w 7
         done",
    )?;
    cluster.start(&[
        "--ipvs-exclude-cidrs=10.97.1.0/24,10.96.0.10/32",
        "--ipvs-sync-period=1s",
    ])?;
    let theirs = "-A -t 10.97.1.1:80 -s wlc
        -a -t 10.97.1.1:80 -r 10.244.9.9:80 -m -w 7\n";
    // What a Service wants is programmed, excluded or not.
    let expected = theirs.to_owned() + WEB_SERVERS;
    cluster.expect_servers(&expected)?;
    cluster.expect_addresses(&["10.96.0.10/32", "10.97.1.1/32"])?;
    // Some verifications, a restart and the Service's end later, too.
    cluster.node().namespace.shell("sleep 3")?;
    cluster.expect_servers(&expected)?;
    cluster.take_kube_proxy()?.kill()?;
    cluster.start(&["--ipvs-exclude-cidrs=10.97.1.0/24,10.96.0.10/32"])?;
    cluster.delete("web")?;
    cluster.expect_servers(theirs)?;
    cluster.expect_addresses(&["10.97.1.1/32"])
}
