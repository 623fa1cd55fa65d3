//! What a node does with an API server's objects: what its kernel holds, and who answers whom.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::panic::resume_unwind;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::target::{Candidates, Targets};
use crate::cluster::Cluster;
use crate::error::Result;
use crate::namespace::Namespace;
use crate::proxiers::Proxier;
use crate::traffic::{self, Failure, Heard, Question};

/// How long an answer may take where most likely none comes.
const PATIENCE: Duration = Duration::from_secs(1);

/// The same for whoever must be sure.
const MORE_PATIENCE: Duration = Duration::from_secs(3);

/// How often a question is repeated whose answers differ.
const REPEATS: usize = 3;

/// The answer to an ICMP echo request.
pub(super) const ECHO: &str = "echo";

/// What one proxier has made of a scenario's objects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observation {
    /// Who has made it.
    pub proxier: Proxier,
    /// The scenario's name.
    pub scenario: String,
    /// The number of the step, from 0.
    pub step: usize,
    /// The kernel's state.
    pub kernel: KernelState,
    /// The answers to each probe.
    pub probes: BTreeMap<Probe, String>,
    /// How long the proxier took to settle, and the probes, in milliseconds.
    pub took: (u64, u64),
}

/// The part of the kernel's state that others read, too.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelState {
    /// The lines of `ipvsadm -Sn` about addresses, sorted.
    pub servers: BTreeSet<String>,
    /// Those about firewall marks, which are named by the address, protocol and port that they stand for.
    pub marked: BTreeSet<String>,
    /// The addresses on kube-ipvs0.
    pub addresses: BTreeSet<String>,
}

/// Somebody who asks somebody.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Probe {
    /// What is asked, such as `TCP 10.96.0.10:80`.
    pub target: String,
    /// Who asks: `node`, `peer`, `outside` or a pod's name.
    pub client: String,
}

impl From<Probe> for String {
    fn from(probe: Probe) -> Self {
        format!("{} from {}", probe.target, probe.client)
    }
}

impl TryFrom<String> for Probe {
    type Error = String;

    fn try_from(text: String) -> std::result::Result<Self, String> {
        let (target, client) = text.rsplit_once(" from ").ok_or("not a probe")?;
        Ok(Self {
            target: target.to_owned(),
            client: client.to_owned(),
        })
    }
}

impl KernelState {
    /// Reads it, without what belongs to the virtual server at this address.
    pub(super) fn read(cluster: &Cluster, without: &str) -> Result<Self> {
        let said = cluster.servers()?;
        let lines = said.lines().map(str::to_owned);
        let (marked, servers): (BTreeSet<_>, BTreeSet<_>) = lines.partition(|line| line.contains(" -f "));
        let marked = if marked.is_empty() {
            marked
        } else {
            let names = marks(cluster)?;
            marked.iter().map(|line| renamed(line, &names)).collect()
        };
        Ok(Self {
            servers: servers
                .into_iter()
                .filter(|line| !line.contains(without))
                .collect(),
            marked,
            addresses: cluster
                .addresses()?
                .into_iter()
                .filter(|address| !address.starts_with(without))
                .collect(),
        })
    }
}

/// The firewall marks, as `ipvsadm` writes them, with what they stand for.
fn marks(cluster: &Cluster) -> Result<BTreeMap<String, String>> {
    let mut names = BTreeMap::new();
    for line in cluster.ruleset()?.lines() {
        // `10.96.0.10 . tcp . 80 : 0x4b500001`, with several in a line and whatever nft sets around them.
        for element in line.split([',', '{', '}']) {
            let Some((key, mark)) = element.rsplit_once(" : 0x") else {
                continue;
            };
            let Ok(mark) = u32::from_str_radix(mark.trim(), 16) else {
                continue;
            };
            let key = key.trim().rsplit('=').next().unwrap_or_default().trim();
            names.insert(mark.to_string(), key.replace(" . ", ":"));
        }
    }
    Ok(names)
}

/// A line of `ipvsadm -Sn` with a mark's name in place of its number.
fn renamed(line: &str, names: &BTreeMap<String, String>) -> String {
    let words = line.split(' ');
    let words = words.map(|word| names.get(word).map_or(word, String::as_str));
    words.collect::<Vec<_>>().join(" ")
}

/// Somebody who asks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asker<'a> {
    pub(super) name: &'a str,
    pub(super) namespace: &'a Namespace,
    /// The only addresses that it sends to this node: on a pod's way to another node's node port there is no other
    /// proxier, and on its way to a Service's address there is that of its own node.
    pub(super) only: Option<&'a BTreeSet<IpAddr>>,
}

/// Has everybody ask everything. An answer that is not `likely` is believed if it comes twice.
///
/// # Errors
/// A question could not be asked.
pub(super) fn probe(
    proxier: Proxier,
    askers: &[Asker<'_>],
    targets: &Targets,
    likely: &(dyn Fn(&Probe, &str) -> bool + Sync),
) -> Result<BTreeMap<Probe, String>> {
    let picking = Mutex::new(());
    let ask = |asker: Asker<'_>| {
        let Asker {
            name,
            namespace,
            only,
        } = asker;
        let likely = |question: &Question, answer: &str| likely(&probe_of(question, name), answer);
        let targets = targets
            .iter()
            .filter(|(question, _)| only.is_none_or(|only| only.contains(&question.ip())));
        let heard = ask_all(proxier, namespace, targets.collect(), &picking, &likely)?;
        let named = |(question, answer)| (probe_of(question, name), answer);
        Ok(heard.into_iter().map(named).collect::<Vec<_>>())
    };
    let ask = &ask;
    let answers = thread::scope(|scope| {
        let asking: Vec<_> = askers
            .iter()
            .map(|asker| scope.spawn(move || ask(*asker)))
            .collect();
        let answered = asking
            .into_iter()
            .map(|asking| asking.join().unwrap_or_else(|panic| resume_unwind(panic)));
        answered.collect::<Result<Vec<_>>>()
    })?;
    Ok(answers.into_iter().flatten().collect())
}

fn probe_of(question: &Question, client: &str) -> Probe {
    Probe {
        target: question.to_string(),
        client: client.to_owned(),
    }
}

/// Asks everything from one place until each answer is likely, or has come twice.
fn ask_all<'a>(
    proxier: Proxier,
    namespace: &Namespace,
    mut open: Vec<(&'a Question, &'a Candidates)>,
    picking: &Mutex<()>,
    likely: &dyn Fn(&Question, &str) -> bool,
) -> Result<BTreeMap<&'a Question, String>> {
    let mut answers: BTreeMap<&Question, String> = BTreeMap::new();
    for patience in [PATIENCE].into_iter().chain([MORE_PATIENCE; REPEATS]) {
        let heard = ask_enough(proxier, namespace, &open, picking, patience)?;
        let mut doubtful = Vec::new();
        for ((question, candidates), heard) in open.into_iter().zip(heard) {
            let answer = words(&heard, candidates);
            let believed = likely(question, &answer) || answers.get(question) == Some(&answer);
            answers.insert(question, answer);
            if !believed {
                doubtful.push((question, candidates));
            }
        }
        open = doubtful;
    }
    Ok(answers)
}

/// Asks so often that everybody has answered who would.
fn ask_enough(
    proxier: Proxier,
    namespace: &Namespace,
    targets: &[(&Question, &Candidates)],
    picking: &Mutex<()>,
    patience: Duration,
) -> Result<Vec<Heard>> {
    let mut all = vec![Heard::default(); targets.len()];
    for round in 0..rounds(proxier) {
        // Whom nobody answers at first is not asked on and on.
        let open = all.iter_mut().zip(targets).filter(|(heard, (_, candidates))| {
            round == 0
                || heard.failures.is_empty()
                    && !heard.by.is_empty()
                    && candidates.pods.iter().any(|pod| !heard.by.contains_key(pod))
        });
        let (open, questions): (Vec<_>, Vec<_>) = open
            .map(|(heard, (question, candidates))| (heard, (**question, candidates.pods.len() + 1)))
            .unzip();
        if open.is_empty() {
            break;
        }
        for (heard, more) in open
            .into_iter()
            .zip(traffic::ask(namespace, &questions, picking, patience)?)
        {
            heard.merge(more);
        }
    }
    Ok(all)
}

/// How often all candidates are asked until those that have not answered are taken not to. IPVS picks servers in
/// turn, and all of them within one round; nftables mode draws lots.
fn rounds(proxier: Proxier) -> usize {
    match proxier {
        Proxier::Ours | Proxier::UpstreamIpvs | Proxier::KubeRouter => 1,
        Proxier::UpstreamNftables => 10,
    }
}

/// Whether this is an answer that a busy machine could have given in place of another.
pub(super) fn is_doubtful(answer: &str) -> bool {
    [Failure::TimedOut, Failure::Reset]
        .iter()
        .any(|failure| answer.contains(&failure.to_string()))
}

/// `local-11, remote-12 see 10.244.0.1; timed out`: who answers, and whom they see. How often is up to a scheduler.
fn words(heard: &Heard, candidates: &Candidates) -> String {
    if candidates.hashed && !heard.by.is_empty() {
        let picked = ["a pod that a hash has picked".to_owned()].into_iter();
        return picked
            .chain(heard.failures.iter().cloned())
            .collect::<Vec<_>>()
            .join("; ");
    }
    if candidates.sticky && candidates.pods.len() > 1 && heard.by.len() == 1 && heard.failures.is_empty() {
        // Which one, and so whom it sees, is up to a scheduler, too.
        return "always the same pod".into();
    }
    let mut alike: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for (pod, seen) in &heard.by {
        let seen: Vec<_> = seen.iter().map(ToString::to_string).collect();
        alike.entry(seen.join(" and ")).or_default().push(pod);
    }
    let mut words: Vec<_> = alike
        .into_iter()
        .map(|(seen, pods)| {
            let see = if pods.len() == 1 { "sees" } else { "see" };
            format!("{} {see} {seen}", pods.join(", "))
        })
        .collect();
    words.extend(heard.echo.then(|| ECHO.to_owned()));
    words.extend(heard.failures.iter().cloned());
    words.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_told_without_their_number() {
        let seen = |addresses: &[[u8; 4]]| addresses.iter().map(|address| (*address).into()).collect();
        let mut heard = Heard::default();
        heard.by.insert("local-11".into(), seen(&[[10, 244, 0, 1]]));
        let one = Candidates::default();
        assert_eq!(words(&heard, &one), "local-11 sees 10.244.0.1");
        let sticky = Candidates {
            pods: ["local-11".into(), "local-12".into()].into(),
            sticky: true,
            hashed: false,
        };
        assert_eq!(words(&heard, &sticky), "always the same pod");
        heard.by.insert("local-12".into(), seen(&[[10, 244, 0, 1]]));
        heard.by.insert("remote-13".into(), seen(&[[10, 244, 0, 99]]));
        heard.failures.insert("timed out".into());
        let all = "local-11, local-12 see 10.244.0.1; remote-13 sees 10.244.0.99; timed out";
        assert_eq!(words(&heard, &sticky), all);
        assert!(is_doubtful(all) && !is_doubtful("refused"));
        let hashed = Candidates {
            hashed: true,
            ..sticky
        };
        assert_eq!(words(&heard, &hashed), "a pod that a hash has picked; timed out");
    }

    #[test]
    fn marks_have_the_name_of_what_they_serve() {
        let names = [("1263534081".to_owned(), "203.0.113.1:tcp:80".to_owned())].into();
        assert_eq!(
            renamed("-a -f 1263534081 -r 10.244.0.11:8080 -m -w 1", &names),
            "-a -f 203.0.113.1:tcp:80 -r 10.244.0.11:8080 -m -w 1"
        );
    }
}
