//! In a guest: takes proxiers through scenarios, and tells what became of them.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::observation::{Asker, KernelState, Observation, Probe, is_doubtful, probe};
use super::recording::Recording;
use super::scenario::{Families, Scenario};
use super::sentinel::{self, Sentinel};
use super::settle::settle;
use super::target::{self, Place, Targets};
use crate::cluster::{Cluster, eventually};
use crate::error::{Context, Error, Result};
use crate::kube_proxy::KubeProxy;
use crate::proxiers::Proxier;
use crate::topology::{CLIENT, CLIENT_V6, Pod};
use crate::uplink::Uplink;

/// The object of the node. Upstream waits for half a minute for it.
const NODE: &str = "
apiVersion: v1
kind: Node
metadata: {name: node, labels: {topology.kubernetes.io/zone: a}}
spec: {podCIDR: 10.244.0.0/24, podCIDRs: [10.244.0.0/24, \"fd00:10:244::/64\"]}
status:
  addresses: [{type: InternalIP, address: 192.168.10.2}, {type: InternalIP, address: \"fd01::2\"}]
";

/// The fourth byte of the address of a pod that serves nothing.
const VISITOR: u8 = 200;

/// How long a proxier may take to notice what the API server does not tell in the order of its Services: changes of
/// the node's own addresses and of its object.
const NOTICE: Duration = Duration::from_secs(1);

/// How many scenarios share a cluster at most. What is recorded of them is kept when all have ended.
const SHARE: usize = 12;

/// What a guest tells, one on a line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Event {
    /// What a proxier has made of a step.
    Observed(Observation),
    /// A scenario could not be followed to its end, or left something behind.
    Failed {
        /// The proxier.
        proxier: Proxier,
        /// The scenario's name.
        scenario: String,
        /// What happened.
        error: String,
    },
}

/// A scenario, and what is recorded of it.
pub type Recorded = (Scenario, Option<Recording>);

/// Takes each proxier through all scenarios.
///
/// # Errors
/// There is no such machine as a scenario needs; what goes wrong in one scenario is told, and the next one begins.
pub fn run(
    proxiers: &[Proxier],
    scenarios: &[Recorded],
    tell: &mut dyn FnMut(Event) -> Result<()>,
) -> Result<()> {
    let mut alike: BTreeMap<(&[String], Families), Vec<&Recorded>> = BTreeMap::new();
    for recorded in scenarios {
        let (scenario, _) = recorded;
        let run = (scenario.flags.as_slice(), scenario.families());
        alike.entry(run).or_default().push(recorded);
    }
    for ((flags, families), scenarios) in alike {
        for share in scenarios.chunks(SHARE) {
            for proxier in proxiers {
                let mut stage = None;
                for (scenario, recording) in share {
                    let result = stage
                        .take()
                        .map_or_else(|| Stage::set(*proxier, flags, families, share), Ok);
                    let result = result.and_then(|stage| stage.follow(scenario, recording.as_ref(), tell));
                    match result {
                        Ok(reusable) => stage = reusable,
                        Err(error) => tell(Event::Failed {
                            proxier: *proxier,
                            scenario: scenario.name.clone(),
                            error: error.to_string(),
                        })?,
                    }
                }
            }
        }
    }
    Ok(())
}

/// A cluster with one proxier.
struct Stage {
    proxier: Proxier,
    // In the order in which they go.
    running: KubeProxy,
    uplink: Uplink,
    sentinel: Sentinel,
    pods: Vec<Pod>,
    cluster: Cluster,
    /// The kernel's state without a scenario's objects.
    bare: (KernelState, BTreeSet<String>),
}

impl Stage {
    fn set(proxier: Proxier, flags: &[String], families: Families, scenarios: &[&Recorded]) -> Result<Self> {
        let mut cluster = Cluster::new()?;
        let uplink = Uplink::open(&cluster.node().namespace)?;
        let slices: Vec<_> = scenarios
            .iter()
            .flat_map(|(scenario, _)| scenario.states())
            .flat_map(|state| state.slices())
            .collect();
        let mut pods = vec![cluster.node().pod("visitor", VISITOR, &[])?];
        for (place, ports) in target::places(&slices) {
            let host = if place.remote {
                cluster.peer()
            } else {
                cluster.node()
            };
            let ports: Vec<_> = ports.into_iter().collect();
            pods.push(host.pod(&place.name(), place.number, &ports)?);
        }
        let log = cluster.new_log();
        // What a network plugin and whoever set up the machine would have done.
        let node = &cluster.node().namespace;
        node.shell("modprobe --all br_netfilter nf_conntrack")?;
        node.sysctl("net.ipv4.ip_forward=1\nnet.ipv6.conf.all.forwarding=1")?;
        node.ip(&format!(
            "route add default via {CLIENT}\nroute add default via {CLIENT_V6}"
        ))?;
        let machines = [node, &cluster.peer().namespace, cluster.outside()];
        for machine in machines.into_iter().chain(pods.iter().map(|pod| &pod.namespace)) {
            // Nobody has to wait for an ICMP error because others have just got some.
            machine.sysctl(
                "net.ipv4.ping_group_range=0 0\nnet.ipv4.icmp_ratelimit=0\nnet.ipv6.icmp.ratelimit=0",
            )?;
        }
        uplink.client().apply(NODE)?;
        let mut sentinel = Sentinel::default();
        sentinel.advance(uplink.client())?;
        let path = match families {
            Families::Both => None,
            Families::Ipv4 => Some(without_ip6tables(&cluster)?),
        };
        let running = proxier.start(node, flags, path.as_deref(), &log)?;
        settle(proxier, node, &sentinel, &running)?;
        let bare = everything(&cluster)?;
        Ok(Self {
            proxier,
            running,
            uplink,
            sentinel,
            pods,
            cluster,
            bare,
        })
    }

    /// Takes the proxier through a scenario, and away from it again. The stage is given back if the next scenario
    /// finds it as this one has.
    fn follow(
        mut self,
        scenario: &Scenario,
        recording: Option<&Recording>,
        tell: &mut dyn FnMut(Event) -> Result<()>,
    ) -> Result<Option<Self>> {
        let targets = target::of_steps(scenario);
        let states = scenario.states();
        let mut reusable = !scenario.alone;
        for (number, (step, targets)) in scenario.steps.iter().zip(&targets).enumerate() {
            for command in &step.node {
                self.cluster.node().namespace.shell(command)?;
            }
            let deleted: Vec<_> = step.delete.iter().map(|reference| reference.object()).collect();
            self.uplink.client().delete_objects(&deleted)?;
            self.uplink.client().apply_objects(&step.apply)?;
            let of_node = step
                .apply
                .iter()
                .chain(&deleted)
                .any(|object| object.types.as_ref().is_some_and(|types| types.kind == "Node"));
            if of_node || !step.node.is_empty() {
                reusable = false;
                thread::sleep(NOTICE);
            }
            let start = Instant::now();
            self.settle()?;
            let settled = start.elapsed();
            let recorded = recording.and_then(|recording| recording.steps.get(number));
            let likely = |probe: &Probe, answer: &str| match recorded.and_then(|step| step.answers(probe)) {
                Some(upstream) => answer == upstream.ipvs || answer == upstream.nftables,
                None => !is_doubtful(answer),
            };
            let kernel = KernelState::read(&self.cluster, sentinel::ADDRESS)?;
            let probes = self.probe(scenario, targets, &likely)?;
            let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
            tell(Event::Observed(Observation {
                proxier: self.proxier,
                scenario: scenario.name.clone(),
                step: number,
                kernel,
                probes,
                took: (
                    milliseconds(settled),
                    milliseconds(start.elapsed().saturating_sub(settled)),
                ),
            }))?;
        }
        let rest = states.last().into_iter().flat_map(|state| state.references());
        let rest: Vec<_> = rest
            .filter(|reference| reference.passes())
            .map(|reference| reference.object())
            .collect();
        if self.proxier == Proxier::Ours {
            self.uplink.client().delete_objects(&rest)?;
            self.settle()?;
            self.expect_bare()?;
        } else {
            // Upstream takes its time, and keeps servers as long as they have connections.
            self.cluster.node().namespace.shell("ipvsadm --clear || true")?;
            self.uplink.client().delete_objects(&rest)?;
        }
        Ok(reusable.then_some(self))
    }

    /// Waits until the proxier has programmed all that was applied.
    fn settle(&mut self) -> Result<()> {
        self.sentinel.advance(self.uplink.client())?;
        let node = &self.cluster.node().namespace;
        settle(self.proxier, node, &self.sentinel, &self.running)
    }

    /// Waits until nothing is left of a scenario's objects.
    fn expect_bare(&self) -> Result<()> {
        eventually(|| {
            let found = everything(&self.cluster)?;
            Ok(if found == self.bare {
                Ok(())
            } else {
                Err(format!(
                    "left behind: {found:?}, and before there was {:?}",
                    self.bare
                ))
            })
        })
    }

    fn probe(
        &self,
        scenario: &Scenario,
        targets: &Targets,
        likely: &(dyn Fn(&Probe, &str) -> bool + Sync),
    ) -> Result<BTreeMap<Probe, String>> {
        let slices: Vec<_> = scenario
            .states()
            .iter()
            .flat_map(|state| state.slices())
            .collect();
        // One that serves shows what happens to who asks itself.
        let local = target::places(&slices).into_keys().find(|place| !place.remote);
        let remote = target::places(&slices).into_keys().find(|place| place.remote);
        let names: BTreeSet<_> = [local, remote]
            .into_iter()
            .flatten()
            .map(|place| place.name())
            .collect();
        let nodes = target::node_addresses(scenario);
        let pods = self
            .pods
            .iter()
            .filter(|pod| pod.name == "visitor" || names.contains(&pod.name));
        let pods = pods.map(|pod| (pod.name.as_str(), &pod.namespace));
        let machines = [
            ("node", &self.cluster.node().namespace),
            ("peer", &self.cluster.peer().namespace),
            ("outside", self.cluster.outside()),
        ];
        let remote = remote.map(Place::name);
        let asker = |(name, namespace)| Asker {
            name,
            namespace,
            only: (remote.as_deref() == Some(name)).then_some(&nodes),
        };
        let askers: Vec<_> = pods.chain(machines).map(asker).collect();
        probe(self.proxier, &askers, targets, likely)
    }
}

/// A search path on which upstream's mode ipvs finds that there is no IPv6 here, and so does half the work.
fn without_ip6tables(cluster: &Cluster) -> Result<OsString> {
    let dir = cluster.scratch("without-ipv6");
    let program = dir.join("ip6tables");
    fs::create_dir_all(&dir).path("make", &dir)?;
    fs::write(&program, "#!/bin/sh\nexit 1\n").path("write", &program)?;
    fs::set_permissions(&program, Permissions::from_mode(0o755)).path("make executable", &program)?;
    let mut path = dir.into_os_string();
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    Ok(path)
}

/// What a proxier of ours programs, without the sentinel: what others read too, and the elements of its tables.
fn everything(cluster: &Cluster) -> Result<(KernelState, BTreeSet<String>)> {
    let ruleset = cluster.ruleset()?;
    let elements = ruleset.split(['{', '}', ',', '\n']).map(str::trim);
    let elements = elements.filter(|element| !sentinel::PARTS.iter().any(|part| element.contains(part)));
    let state = KernelState::read(cluster, sentinel::ADDRESS)?;
    Ok((state, elements.map(str::to_owned).collect()))
}

/// Reads an event from a line of a guest.
///
/// # Errors
/// It is none.
pub fn parse(line: &str) -> Result<Event> {
    serde_json::from_str(line).map_err(|error| Error::Unavailable(format!("not an event: {error}: {line}")))
}
