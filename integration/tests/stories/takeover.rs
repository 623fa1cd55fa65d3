//! Another kube-proxy was here before: what it left goes on serving until ours does, and then goes.

use std::fs;
use std::io::ErrorKind;
use std::process::Command;
use std::thread;
use std::time::Duration;

use integration::Result;
use integration::cluster::{Cluster, eventually};
use integration::kube_proxy::KubeProxy;
use integration::traffic::Protocol::Tcp;
use rustix::mount::{MountFlags, mount_bind, mount_remount};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use crate::{WEB_SERVERS, at, hold, web};

/// What upstream's mode ipvs leaves of [`web`], a Service and a node port that are gone since, and a weight that
/// somebody has changed.
const SERVERS: &str = "ip link add kube-ipvs0 type dummy
    ip address add 10.96.0.10/32 dev kube-ipvs0; ip address add 10.96.0.99/32 dev kube-ipvs0
    ipvsadm -A -t 10.96.0.10:80 -s rr
    ipvsadm -a -t 10.96.0.10:80 -r 10.244.0.11:8080 -m -w 1
    ipvsadm -a -t 10.96.0.10:80 -r 10.244.1.12:8080 -m -w 0
    ipvsadm -A -t 10.96.0.99:80 -s rr
    ipvsadm -A -t 192.168.10.2:31000 -s rr
    sysctl -qw net.ipv4.vs.conntrack=1 net.ipv4.ip_forward=1";

const SETS: &str = "create() {
        ipset create KUBE-$1 $2 family inet
        ipset create $(printf %.31s KUBE-6-$1) $2 family inet6
    }
    for set in CLUSTER-IP EXTERNAL-IP EXTERNAL-IP-LOCAL LOAD-BALANCER LOAD-BALANCER-LOCAL LOAD-BALANCER-FW \\
            NODE-PORT-SCTP-HASH NODE-PORT-LOCAL-SCTP-HASH; do create $set hash:ip,port; done
    create LOOP-BACK hash:ip,port,ip; create LOAD-BALANCER-SOURCE-IP hash:ip,port,ip
    create LOAD-BALANCER-SOURCE-CIDR hash:ip,port,net; create IPVS-IPS hash:ip
    for set in NODE-PORT-TCP NODE-PORT-UDP NODE-PORT-LOCAL-TCP NODE-PORT-LOCAL-UDP HEALTH-CHECK-NODE-PORT; do
        for k in KUBE- KUBE-6-; do ipset create $k$set bitmap:port range 0-65535; done
    done
    ipset add KUBE-CLUSTER-IP 10.96.0.10,tcp:80; ipset add KUBE-NODE-PORT-TCP 31000
    ipset add KUBE-IPVS-IPS 10.96.0.10; ipset add KUBE-IPVS-IPS 10.96.0.99
    ipset create MINE hash:ip";

/// With `$i` as `iptables` of a kind.
const CHAINS: &str = "$i -t nat -N KUBE-MARK-MASQ; $i -t nat -A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
    $i -t nat -N KUBE-SERVICES; $i -t nat -N KUBE-POSTROUTING; $i -t nat -N KUBE-NODE-PORT; $i -t nat -N KUBE-LOAD-BALANCER
    $i -t nat -A KUBE-SERVICES -m set --match-set KUBE-CLUSTER-IP src,dst -j KUBE-MARK-MASQ
    $i -t nat -A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODE-PORT
    $i -t nat -A KUBE-SERVICES -m set --match-set KUBE-CLUSTER-IP dst,dst -j ACCEPT
    $i -t nat -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
    $i -t nat -A KUBE-POSTROUTING -j MASQUERADE
    $i -N KUBE-FORWARD; $i -A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
    for c in NODE-PORT PROXY-FIREWALL SOURCE-RANGES-FIREWALL IPVS-FILTER IPVS-OUT-FILTER; do $i -N KUBE-$c; done
    $i -A KUBE-IPVS-FILTER -m set --match-set KUBE-CLUSTER-IP dst,dst -j RETURN
    $i -A KUBE-IPVS-FILTER -m conntrack --ctstate NEW -m set --match-set KUBE-IPVS-IPS dst -j REJECT
    $i -t nat -I OUTPUT -m comment --comment 'kubernetes service portals' -j KUBE-SERVICES
    $i -t nat -I PREROUTING -m comment --comment 'kubernetes service portals' -j KUBE-SERVICES
    $i -t nat -I POSTROUTING -m comment --comment 'kubernetes postrouting rules' -j KUBE-POSTROUTING
    $i -I FORWARD -m comment --comment 'kubernetes forwarding rules' -j KUBE-FORWARD
    $i -I INPUT -j KUBE-NODE-PORT; $i -I INPUT -j KUBE-PROXY-FIREWALL; $i -I FORWARD -j KUBE-PROXY-FIREWALL
    $i -I INPUT -j KUBE-IPVS-FILTER; $i -I OUTPUT -j KUBE-IPVS-OUT-FILTER";

/// What others have in the same tables: kubelet, a network plugin, somebody.
const OTHERS: &str = "$i -t mangle -N KUBE-KUBELET-CANARY; $i -N KUBE-FIREWALL; $i -I OUTPUT -j KUBE-FIREWALL
    $i -t nat -N CNI-HOSTPORT-SETMARK; $i -t nat -A CNI-HOSTPORT-SETMARK -s 10.244.0.0/24 -j KUBE-MARK-MASQ
    $i -A INPUT -p tcp --dport 1234 -j DROP";

/// The names in `iptables-save` and `ipset list` that begin with `KUBE-`, each once and sorted.
fn names(cluster: &Cluster, iptables: &str) -> Result<String> {
    cluster.node().namespace.shell(&format!(
        "({iptables}-save; ipset list -n) | grep -o 'KUBE-[A-Z0-9-]*' | sort -u"
    ))
}

fn expect_names(cluster: &Cluster, iptables: &str, expected: &[&str]) -> Result<()> {
    eventually(|| {
        let found = names(cluster, iptables)?;
        Ok(if found.lines().eq(expected.iter().copied()) {
            Ok(())
        } else {
            Err(format!("expected {expected:?}, and there is\n{found}"))
        })
    })
}

fn script(cluster: &Cluster, iptables: &str, scripts: &[&str]) -> Result<()> {
    let script = scripts.join("\n");
    cluster
        .node()
        .namespace
        .shell(&format!("set -e\ni='{iptables}'\n{script}"))
        .map(drop)
}

/// Waits until both pods answer a client outside.
fn expect_both(cluster: &Cluster) -> Result<()> {
    eventually(|| {
        let answers = cluster.client().ask(Tcp, at("10.96.0.10:80"), 4)?;
        let good = answers.names().as_deref() == Some(&["web-1", "web-2"]);
        Ok(if good { Ok(()) } else { Err(answers.to_string()) })
    })
}

/// F2, I4, A3, Q40
#[test]
#[ignore = "needs root and ip_vs: cargo xtask test"]
fn f2_mode_ipvs_is_taken_over_as_it_is() -> Result<()> {
    let (mut cluster, _pods) = web()?;
    script(&cluster, "iptables-nft -w", &[SERVERS, SETS, CHAINS, OTHERS])?;
    script(
        &cluster,
        "ip6tables-nft -w",
        &["$i -N KUBE-FORWARD; $i -I FORWARD -j KUBE-FORWARD"],
    )?;
    let foreign = "-A -t 192.168.10.2:443 -s wlc\n";
    cluster
        .node()
        .namespace
        .shell("ipvsadm -A -t 192.168.10.2:443 -s wlc")?;
    let visitor = cluster.node().pod("visitor", 20, &[])?;
    let (held, name) = hold(visitor.client(), Tcp, "10.96.0.10:80")?;
    let listed = "ipvsadm -Ln --stats | grep -c 10.244.0.11:8080.*1";
    eventually(|| {
        let counted = cluster.node().namespace.shell(listed);
        Ok(counted.map(drop).map_err(|error| error.to_string()))
    })?;
    cluster.start(&[])?;
    cluster.expect_servers(&(foreign.to_owned() + WEB_SERVERS))?;
    cluster.expect_addresses(&["10.96.0.10/32"])?;
    // What others need, as far as they do.
    expect_names(
        &cluster,
        "iptables-nft",
        &["KUBE-FIREWALL", "KUBE-KUBELET-CANARY", "KUBE-MARK-MASQ"],
    )?;
    expect_names(&cluster, "ip6tables-nft", &[])?;
    let saved = cluster.node().namespace.shell("iptables-nft -S; ipset list -n")?;
    assert!(
        saved.contains("--dport 1234 -j DROP") && saved.contains("MINE"),
        "{saved}"
    );
    // The virtual server was edited, not made anew.
    cluster.node().namespace.shell(listed)?;
    assert_eq!(held.ask().map(|reply| reply.name), Ok(name));
    expect_both(&cluster)
}

/// Starts kube-proxy while a client outside goes on asking; all questions have to be answered.
fn start_under_load(cluster: &mut Cluster) -> Result<()> {
    let log = cluster.scratch("asked");
    let script = format!(
        "while sleep 0.05; do curl --silent --output /dev/null --max-time 3 http://10.96.0.10/; echo $?; done > {}",
        log.display()
    );
    let mut asking = cluster
        .outside()
        .spawn(Command::new("sh").args(["-c", &script]))?;
    let started = cluster.start(&[]);
    thread::sleep(Duration::from_secs(4));
    asking.kill().and_then(|()| asking.wait()).unwrap();
    started?;
    let said = fs::read_to_string(log).unwrap();
    assert!(
        said.lines().count() > 3 && said.lines().all(|line| line == "0"),
        "{said}"
    );
    Ok(())
}

const MODE_IPTABLES: &str = "sysctl -qw net.ipv4.ip_forward=1
    $i -t nat -N KUBE-MARK-MASQ; $i -t nat -A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
    $i -t nat -N KUBE-SEP-A; $i -t nat -A KUBE-SEP-A -p tcp -j DNAT --to-destination 10.244.0.11:8080
    $i -t nat -N KUBE-SVC-A; $i -t nat -A KUBE-SVC-A ! -s 10.244.0.0/16 -j KUBE-MARK-MASQ
    $i -t nat -A KUBE-SVC-A -j KUBE-SEP-A
    $i -t nat -N KUBE-SERVICES; $i -t nat -A KUBE-SERVICES -d 10.96.0.10 -p tcp --dport 80 -j KUBE-SVC-A
    $i -t nat -A PREROUTING -j KUBE-SERVICES; $i -t nat -A OUTPUT -j KUBE-SERVICES
    $i -t nat -N KUBE-POSTROUTING; $i -t nat -A POSTROUTING -j KUBE-POSTROUTING
    $i -t nat -A KUBE-POSTROUTING -m mark --mark 0x4000/0x4000 -j MASQUERADE
    $i -N KUBE-FORWARD; $i -A FORWARD -j KUBE-FORWARD
    $i -A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT";

/// F2, Q44
#[test]
#[ignore = "needs root and ip_vs: cargo xtask test"]
fn f2_mode_iptables_serves_until_ours_does() -> Result<()> {
    let (mut cluster, _pods) = web()?;
    script(&cluster, "iptables-nft -w", &[MODE_IPTABLES])?;
    let (held, name) = hold(cluster.client(), Tcp, "10.96.0.10:80")?;
    start_under_load(&mut cluster)?;
    expect_names(&cluster, "iptables-nft", &[])?;
    cluster.expect_servers(WEB_SERVERS)?;
    expect_both(&cluster)?;
    assert_eq!(held.ask().map(|reply| reply.name), Ok(name));
    Ok(())
}

/// F2: their table has the name of ours.
#[test]
#[ignore = "needs root and ip_vs: cargo xtask test"]
fn f2_mode_nftables_serves_until_ours_does() -> Result<()> {
    let (mut cluster, _pods) = web()?;
    script(
        &cluster,
        "",
        &["sysctl -qw net.ipv4.ip_forward=1
        nft -f - <<EOF
        table ip kube-proxy {
            comment \"rules for kube-proxy\"
            map service-ips {
                type ipv4_addr . inet_proto . inet_service : verdict
                elements = { 10.96.0.10 . tcp . 80 : goto service-A }
            }
            chain service-A { ip saddr != 10.244.0.0/16 meta mark set meta mark or 0x4000; meta l4proto tcp dnat to 10.244.0.11:8080; }
            chain services { ip daddr . meta l4proto . th dport vmap @service-ips; }
            chain nat-prerouting { type nat hook prerouting priority dstnat; jump services; }
            chain nat-output { type nat hook output priority -100; jump services; }
            chain nat-postrouting { type nat hook postrouting priority srcnat; meta mark and 0x4000 != 0 masquerade; }
        }
EOF"],
    )?;
    let (held, name) = hold(cluster.client(), Tcp, "10.96.0.10:80")?;
    start_under_load(&mut cluster)?;
    cluster.expect_no_trace("service-ips")?;
    cluster.expect_servers(WEB_SERVERS)?;
    expect_both(&cluster)?;
    assert_eq!(held.ask().map(|reply| reply.name), Ok(name));
    Ok(())
}

/// F2, C6: legacy iptables, whose FORWARD drops what nobody accepts.
#[test]
#[ignore = "needs root and ip_vs: cargo xtask test"]
fn f2_legacy_iptables_lose_all_but_what_services_need() -> Result<()> {
    let (mut cluster, _pods) = web()?;
    script(
        &cluster,
        "iptables-legacy -w",
        &[SERVERS, SETS, CHAINS, "$i -P FORWARD DROP"],
    )?;
    cluster.start(&[])?;
    expect_names(&cluster, "iptables-legacy", &["KUBE-FORWARD"])?;
    expect_both(&cluster)?;
    let log = cluster.kube_proxy()?.log()?;
    assert!(log.contains("KUBE-FORWARD stays"), "{log}");
    Ok(())
}

/// F2, C6: iptables drops what is forwarded, except what upstream's chain or our rule admits.
#[test]
#[ignore = "needs root and ip_vs: cargo xtask test"]
fn c6_answers_are_admitted_before_upstream_s_chain_goes() -> Result<()> {
    let (mut cluster, _pods) = web()?;
    let drop = "$i -P FORWARD DROP";
    script(&cluster, "iptables-nft -w", &[SERVERS, SETS, CHAINS, drop])?;
    let (held, name) = hold(cluster.client(), Tcp, "10.96.0.10:80")?;
    let changes = cluster.scratch("changes");
    let script = format!("exec nft monitor > {}", changes.display());
    let mut monitor = cluster
        .node()
        .namespace
        .spawn(Command::new("sh").args(["-c", &script]))?;
    let taken_over = start_under_load(&mut cluster);
    monitor.kill().and_then(|()| monitor.wait()).unwrap();
    taken_over?;
    expect_names(&cluster, "iptables-nft", &[])?;
    let changes = fs::read_to_string(changes).unwrap();
    let at = |change: &str| changes.lines().position(|line| line.contains(change));
    let admitted = at("answers to the clients of Services");
    let removed = at("delete chain ip filter KUBE-FORWARD");
    assert!(admitted.is_some() && admitted < removed, "{changes}");
    expect_both(&cluster)?;
    assert_eq!(held.ask().map(|reply| reply.name), Ok(name));
    Ok(())
}

/// F4, I4, Q40, Q41, Q43
#[test]
#[ignore = "needs root and ip_vs: cargo xtask test"]
fn f4_a_cleanup_removes_what_is_ours_and_upstream_s_and_nothing_else() -> Result<()> {
    let (mut cluster, _pods) = web()?;
    script(&cluster, "iptables-nft -w", &[SERVERS, SETS, CHAINS, OTHERS])?;
    let foreign = "-A -t 192.168.10.2:443 -s wlc
        -A -t 198.51.100.7:80 -s rr
        -A -f 7 -s rr";
    cluster.node().namespace.shell(
        "ipvsadm -A -t 192.168.10.2:443 -s wlc; ipvsadm -A -f 7 -s rr; ipvsadm -A -t 198.51.100.7:80 -s rr
         ip address add 198.51.100.7/32 dev kube-ipvs0; nft add table ip theirs",
    )?;
    let cleanup = |cluster: &Cluster| {
        let arguments = ["--cleanup", "--ipvs-exclude-cidrs=198.51.100.0/24"];
        cluster.node().namespace.output("kube-proxy", &arguments)
    };
    let expect_clean = |cluster: &Cluster| {
        cluster.expect_servers(foreign)?;
        cluster.expect_addresses(&["198.51.100.7/32"])?;
        let others = ["KUBE-FIREWALL", "KUBE-KUBELET-CANARY", "KUBE-MARK-MASQ"];
        expect_names(cluster, "iptables-nft", &others)?;
        let ruleset = cluster.ruleset()?;
        assert!(
            ruleset.contains("table ip theirs") && !ruleset.contains("kube-proxy"),
            "{ruleset}"
        );
        Ok::<_, integration::Error>(())
    };
    // What upstream left.
    cleanup(&cluster)?;
    expect_clean(&cluster)?;
    cleanup(&cluster)?;
    expect_clean(&cluster)?;
    // What we leave.
    cluster.start(&["--ipvs-exclude-cidrs=198.51.100.0/24"])?;
    cluster.expect_servers(&format!("{foreign}\n{WEB_SERVERS}"))?;
    cluster.take_kube_proxy()?.kill()?;
    cleanup(&cluster)?;
    expect_clean(&cluster)?;
    // Without anything to keep, the link goes.
    cluster.node().namespace.output("kube-proxy", &["--cleanup"])?;
    cluster.expect_addresses(&[])?;
    cluster
        .node()
        .namespace
        .shell("! ip link show kube-ipvs0 2>/dev/null")
        .map(drop)
}

/// Q42: nothing of IPVS is asked for, and so nothing loaded.
#[test]
#[ignore = "needs root and ip_vs: cargo xtask test"]
fn f4_a_cleanup_needs_no_ip_vs() -> Result<()> {
    let cluster = Cluster::new()?;
    let node = &cluster.node().namespace;
    node.shell(
        "# A namespace that has gone lets go of the module in its own time.
         for attempt in $(seq 60); do
             grep -q '^ip_vs' /proc/modules || break
             rmmod $(grep -o '^ip_vs_[a-z]*' /proc/modules) ip_vs 2>/dev/null || sleep 0.5
         done
         ip link add kube-ipvs0 type dummy; ip address add 10.96.0.10/32 dev kube-ipvs0",
    )?;
    let loaded = "grep -q '^ip_vs ' /proc/modules && echo loaded || echo not loaded";
    assert_eq!(node.shell(loaded)?, "not loaded\n");
    node.output("kube-proxy", &["--cleanup"])?;
    node.output("kube-proxy", &["--cleanup"])?;
    assert_eq!(node.shell(loaded)?, "not loaded\n");
    cluster.expect_addresses(&[])
}

/// Who runs a program as nobody, with CAP_NET_ADMIN alone.
const NET_ADMIN_ALONE: [&str; 8] = [
    "setpriv",
    "--reuid=65534",
    "--regid=65534",
    "--clear-groups",
    "--no-new-privs",
    "--bounding-set=-all,+net_admin",
    "--inh-caps=-all,+net_admin",
    "--ambient-caps=-all,+net_admin",
];

/// Starts kube-proxy with few privileges, and with the root and `/proc/sys` read-only.
fn start_unprivileged(cluster: &mut Cluster) -> Result<KubeProxy> {
    const SYSCTLS: &str = "/proc/sys";
    let (flags, log) = (cluster.flags(), cluster.new_log());
    let node = &cluster.node().namespace;
    node.enter(|| {
        // SAFETY: the thread has this to do and nothing else, and what it starts shares its mounts.
        unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.unwrap();
        mount_bind(SYSCTLS, SYSCTLS).unwrap();
        // Where the log is.
        mount_bind("/tmp", "/tmp").unwrap();
        for path in ["/", SYSCTLS] {
            mount_remount(path, MountFlags::BIND | MountFlags::RDONLY, "").unwrap();
        }
        let written = fs::write("/written", "").map_err(|error| error.kind());
        assert_eq!(written, Err(ErrorKind::ReadOnlyFilesystem));
        let [setpriv, arguments @ ..] = NET_ADMIN_ALONE;
        let mut command = Command::new(setpriv);
        command.args(arguments).arg("kube-proxy").args(&flags);
        KubeProxy::start_command(node, &mut command, &log)
    })
}

/// F5
#[test]
#[ignore = "needs root and ip_vs: cargo xtask test"]
fn f5_after_init_only_cap_net_admin_is_enough() -> Result<()> {
    let (mut cluster, _pods) = web()?;
    // It says what is missing, and how to have it.
    let (status, log) = start_unprivileged(&mut cluster)?.wait()?;
    assert!(
        !status.success() && log.contains("sysctl -w net.ipv4.vs.conntrack=1"),
        "{log}"
    );
    let init = [
        "--init-only",
        "--ipvs-tcp-timeout=1800s",
        "--conntrack-udp-timeout=45s",
    ];
    let node = &cluster.node().namespace;
    node.output("kube-proxy", &init)?;
    let made = node.shell(
        "ipvsadm -L --timeout; ip -o link show kube-ipvs0; ipvsadm -Sn; nft list ruleset
         cd /proc/sys/net; cat ipv4/vs/conntrack netfilter/nf_conntrack_tcp_timeout_established \\
             netfilter/nf_conntrack_udp_timeout",
    )?;
    assert!(made.contains("tcp tcpfin udp): 1800 120 300"), "{made}");
    assert!(
        made.contains("state DOWN") && made.ends_with("1\n86400\n45\n"),
        "{made}"
    );
    assert!(!made.contains("table"), "nothing is programmed: {made}");
    let mut running = start_unprivileged(&mut cluster)?;
    running.wait_for("in sync")?;
    cluster.expect_servers(WEB_SERVERS)?;
    expect_both(&cluster)
}

/// A7
#[test]
#[ignore = "needs root and ip_vs: cargo xtask test"]
fn a7_timeouts_stay_as_configured() -> Result<()> {
    let (mut cluster, _pods) = web()?;
    cluster.start(&["--ipvs-tcp-timeout=600s", "--ipvs-sync-period=1s"])?;
    let log = cluster.kube_proxy()?.log()?;
    assert!(log.contains("idle for 600 s") && log.contains("7200 s"), "{log}");
    let node = &cluster.node().namespace;
    node.shell("ipvsadm --set 900 60 200")?;
    eventually(|| {
        let said = node.shell("ipvsadm -L --timeout")?;
        // Those that were not asked for are nobody's.
        Ok(if said.contains(": 600 60 200") {
            Ok(())
        } else {
            Err(said)
        })
    })
}
