//! One kube-proxy in the place of another under load: what clients notice, and what is left afterwards.

use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::cluster::Cluster;
use crate::error::{Error, Result};
use crate::kube_proxy::KubeProxy;
use crate::manifest::{Endpoint, service, slice};
use crate::namespace::Namespace;
use crate::process::last_lines;
use crate::proxiers::Proxier;
use crate::topology::{CLIENT, NODE, Pod};
use crate::traffic::{Answers, Client, Protocol};
use crate::uplink::Uplink;

const TCP_8080: &[(Protocol, u16)] = &[(Protocol::Tcp, 8080)];

/// Upstream waits for half a minute for the object of its node.
const NODE_OBJECT: &str = "
apiVersion: v1
kind: Node
metadata: {name: node}
status:
  addresses: [{type: InternalIP, address: 192.168.10.2}]
";

/// Each of four clients asks as often: 50 questions a second in all.
const PERIOD: Duration = Duration::from_millis(80);

/// Connections that each client holds.
const HELD: usize = 5;

/// How long is asked before and after.
const MARGIN: Duration = Duration::from_secs(3);

/// How long a kube-proxy may take to program everything. Upstream starts a process for each entry of a set.
const LIMIT: Duration = Duration::from_secs(180);

/// Services besides the one that is asked.
const OTHERS: u8 = 20;

/// A kube-proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mode {
    /// Ours.
    Ours,
    /// Upstream's, in mode ipvs.
    Ipvs,
    /// Upstream's, in mode iptables.
    Iptables,
    /// Upstream's, in mode nftables.
    Nftables,
}

/// One takes the place of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Case {
    /// Is killed.
    pub from: Mode,
    /// Is started.
    pub to: Mode,
    /// Whether iptables' FORWARD drops what nobody accepts.
    pub forward_drop: bool,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// The case.
    pub case: Case,
    /// Connections that were opened, used and closed while it happened.
    pub asked: usize,
    /// How many of them failed, and how.
    pub failures: Vec<String>,
    /// Connections that were open before.
    pub held: usize,
    /// How many of them still served afterwards.
    pub lived: usize,
    /// From the end of one to when the other had programmed everything, in milliseconds.
    pub took_ms: u128,
    /// What `kube-proxy --cleanup`, run twice, left of either.
    pub left: Vec<String>,
}

impl Mode {
    fn start(self, node: &Namespace, log: &Path) -> Result<KubeProxy> {
        let (proxier, flags) = match self {
            Self::Ours => (Proxier::Ours, vec![]),
            Self::Ipvs => (Proxier::UpstreamIpvs, vec![]),
            // Of two modes the last one counts.
            Self::Iptables => (Proxier::UpstreamIpvs, vec!["--proxy-mode=iptables".to_owned()]),
            Self::Nftables => (Proxier::UpstreamNftables, vec![]),
        };
        proxier.start(node, &flags, None, log)
    }

    /// Waits until it has programmed everything once.
    fn settle(self, node: &Namespace, running: &mut KubeProxy) -> Result<()> {
        const DONE: &str = "kubeproxy_sync_proxy_rules_last_timestamp_seconds{";
        if self == Self::Ours {
            return running.wait_for("in sync");
        }
        let start = Instant::now();
        while start.elapsed() < LIMIT {
            // Nobody answers at first.
            let metrics = node.output("curl", &["--silent", "http://127.0.0.1:10249/metrics"]);
            let metrics = metrics.unwrap_or_default();
            let done = metrics.lines().filter(|line| line.starts_with(DONE));
            if done.filter(|line| !line.ends_with(" 0")).count() == 2 {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(200));
        }
        let said = last_lines(&running.log()?, 20);
        Err(Error::Unavailable(format!(
            "{self} has not settled, and says\n{said}"
        )))
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ours => "this one",
            Self::Ipvs => "upstream, ipvs",
            Self::Iptables => "upstream, iptables",
            Self::Nftables => "upstream, nftables",
        })
    }
}

impl Case {
    /// All that are measured; the first and the last are upstream's alone, to compare with.
    pub const ALL: [Self; 9] = [
        Self::new(Mode::Ipvs, Mode::Ipvs),
        Self::new(Mode::Ipvs, Mode::Ours),
        Self::new(Mode::Ours, Mode::Ipvs),
        Self::new(Mode::Ipvs, Mode::Ours).with_forward_drop(),
        Self::new(Mode::Ours, Mode::Ipvs).with_forward_drop(),
        Self::new(Mode::Iptables, Mode::Ours),
        Self::new(Mode::Nftables, Mode::Ours),
        Self::new(Mode::Ours, Mode::Nftables),
        Self::new(Mode::Ipvs, Mode::Nftables),
    ];

    const fn new(from: Mode, to: Mode) -> Self {
        Self {
            from,
            to,
            forward_drop: false,
        }
    }

    const fn with_forward_drop(self) -> Self {
        Self {
            forward_drop: true,
            ..self
        }
    }

    /// Carries it out in a cluster of its own, in a guest with an API server.
    ///
    /// # Errors
    /// The lab failed. What clients notice is no error.
    pub fn run(self) -> Result<Outcome> {
        let mut cluster = Cluster::new()?;
        let logs = [cluster.new_log(), cluster.new_log()];
        let cluster = cluster;
        let node = &cluster.node().namespace;
        let uplink = Uplink::open(node)?;
        let pods = [
            cluster.node().pod("web-1", 11, TCP_8080)?,
            cluster.peer().pod("web-2", 12, TCP_8080)?,
        ];
        let visitor = cluster.node().pod("visitor", 20, &[])?;
        // What whoever set up the machine would have done.
        let policy = if self.forward_drop { "DROP" } else { "ACCEPT" };
        node.shell(&format!(
            "modprobe --all br_netfilter nf_conntrack; iptables-nft -P FORWARD {policy}; ip route add default via {CLIENT}
             sysctl -qw net.ipv4.ip_forward=1"
        ))?;
        uplink.client().apply(NODE_OBJECT)?;
        uplink.client().apply(&objects(&pods))?;

        let mut first = self.from.start(node, &logs[0])?;
        self.from.settle(node, &mut first)?;
        let cluster_ip = SocketAddr::from(([10, 96, 0, 10], 80));
        let node_port = SocketAddr::from((NODE, 30080));
        let clients = [
            (visitor.client(), cluster_ip),
            (cluster.node().client(), cluster_ip),
            (cluster.client(), cluster_ip),
            (cluster.client(), node_port),
        ];
        let mut held = Vec::new();
        for (client, to) in clients {
            for _ in 0..HELD {
                held.extend(client.connect(Protocol::Tcp, to)?.ok());
            }
        }
        held.retain(|connection| connection.ask().is_ok());

        let (answers, replaced) = under_load(clients, || {
            first.kill()?;
            let start = Instant::now();
            let mut second = self.to.start(node, &logs[1])?;
            self.to.settle(node, &mut second)?;
            Ok((second, start.elapsed()))
        });
        let (second, took) = replaced?;
        let answers = answers?;
        let lived = held.iter().filter(|connection| connection.ask().is_ok()).count();
        second.kill()?;
        Ok(Outcome {
            case: self,
            asked: answers.by.values().sum::<usize>() + answers.failures.len(),
            failures: answers.failures.iter().map(ToString::to_string).collect(),
            held: held.len(),
            lived,
            took_ms: took.as_millis(),
            left: left(node)?,
        })
    }
}

/// Has the clients ask on and on, before, during and after some work.
fn under_load<T>(
    clients: [(Client<'_>, SocketAddr); 4],
    work: impl FnOnce() -> Result<T>,
) -> (Result<Answers>, Result<T>) {
    let enough = AtomicBool::new(false);
    thread::scope(|scope| {
        let asking = clients.map(|(client, to)| {
            let enough = &enough;
            scope.spawn(move || ask_until(enough, client, to))
        });
        thread::sleep(MARGIN);
        let done = work();
        thread::sleep(MARGIN);
        enough.store(true, Ordering::Relaxed);
        let mut all = Answers::default();
        for thread in asking {
            match thread.join() {
                Ok(Ok(answers)) => {
                    for (name, count) in answers.by {
                        *all.by.entry(name).or_default() += count;
                    }
                    all.failures.extend(answers.failures);
                }
                Ok(Err(error)) => return (Err(error), done),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        (Ok(all), done)
    })
}

fn ask_until(enough: &AtomicBool, client: Client<'_>, to: SocketAddr) -> Result<Answers> {
    let mut all = Answers::default();
    let mut next = Instant::now();
    while !enough.load(Ordering::Relaxed) {
        let answers = client.ask(Protocol::Tcp, to, 1)?;
        for (name, count) in answers.by {
            *all.by.entry(name).or_default() += count;
        }
        all.failures.extend(answers.failures);
        next += PERIOD;
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    Ok(all)
}

/// What is left of any kube-proxy after a clean-up that is run twice, beside a virtual server of somebody else's.
/// `KUBE-FIREWALL` is kubelet's, too, whoever made it.
fn left(node: &Namespace) -> Result<Vec<String>> {
    const FOREIGN: &str = "-A -t 192.168.10.2:443 -s wlc";
    node.shell("ipvsadm -A -t 192.168.10.2:443 -s wlc")?;
    for _ in 0..2 {
        node.output("kube-proxy", &["--cleanup"])?;
    }
    let servers = node.shell("ipvsadm -Sn")?;
    let mut left: Vec<_> = servers.lines().map(|line| line.trim().to_owned()).collect();
    match left.iter().position(|line| line == FOREIGN) {
        Some(at) => _ = left.remove(at),
        None => left.push(format!("no {FOREIGN}")),
    }
    let named = node.shell(
        "(iptables-nft-save; ip6tables-nft-save; ipset list -n; nft list tables; ip -brief link) 2>/dev/null |
             grep -i kube | grep -v KUBE-FIREWALL || true",
    )?;
    left.extend(named.lines().map(str::to_owned));
    Ok(left)
}

/// A Service with a node port, and more that nobody asks.
fn objects(pods: &[Pod; 2]) -> String {
    let endpoints = pods.each_ref().map(Endpoint::from);
    let mut text = service(
        "web",
        "type: NodePort, clusterIP: 10.96.0.10, ports: [{port: 80, nodePort: 30080}]",
    );
    text += &slice("web-1", "web", "{port: 8080}", &endpoints);
    for number in 0..OTHERS {
        let name = format!("other-{number}");
        text += &service(
            &name,
            &format!("clusterIP: 10.96.0.{}, ports: [{{port: 80}}]", 100 + number),
        );
        text += &slice(&name, &name, "{port: 8080}", &endpoints);
    }
    text
}
