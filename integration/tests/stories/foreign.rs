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
