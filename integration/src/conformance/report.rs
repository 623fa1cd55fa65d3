//! The verdicts of all scenarios, as a text for people.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use super::scenario::Scenario;
use super::verdict::{Judged, Like, Verdict};

const HEAD: &str = "# Conformance

What this project's kube-proxy makes of the same objects as upstream's %UPSTREAM%, in modes ipvs and nftables.
`cargo xtask conformance --write-report` has written this file. What is up to chance in it, such as which of two allowed answers came, may differ in
the next run; a fault may not be.

After each step of a scenario everybody asks everybody: a pod that serves nothing (`visitor`), one that does (`local-N`), a pod of
another node (`remote-N`), the node itself (`node`), another node (`peer`) and a machine outside the cluster (`outside`) ask every address
and port of every Service over TCP, UDP or SCTP, a port that no Service has, and for an ICMP echo. An answer is who answered and which client
address they saw, or how the attempt failed. Mode nftables has node ports at the node's primary addresses only; what it answers there counts for
the others. Ours has to be as in mode ipvs, or as in mode nftables where upstream's two modes
disagree, or *better* than both for a reason that is given here. The lines of `ipvsadm -Sn` and the addresses on kube-ipvs0 are those of
mode ipvs; where they are not, the lines that ours has more (`+`) or less (`-`) are listed.

";

/// Writes the report.
#[must_use]
pub fn report(upstream: &str, scenarios: &[(&Scenario, &[Verdict])]) -> String {
    let mut text = HEAD.replace("%UPSTREAM%", upstream);
    let all = || scenarios.iter().flat_map(|(_, verdicts)| *verdicts);
    // Writing to a String cannot fail.
    let _ = writeln!(
        text,
        "| | scenarios | steps | probes | as both | as ipvs | as nftables | better |"
    );
    let _ = writeln!(text, "|---|---|---|---|---|---|---|---|");
    let mut topics: BTreeMap<&str, Vec<&[Verdict]>> = BTreeMap::new();
    for (scenario, verdicts) in scenarios {
        topics.entry(scenario.topic()).or_default().push(verdicts);
    }
    let row = |name: &str, scenarios: usize, verdicts: &mut dyn Iterator<Item = &Verdict>| {
        let mut steps = 0;
        let mut counts = Counts::default();
        for verdict in verdicts {
            steps += 1;
            counts.add(verdict);
        }
        format!(
            "| {name} | {scenarios} | {steps} | {} | {counts} |\n",
            counts.all()
        )
    };
    for (topic, of_topic) in &topics {
        let link = format!("[{topic}](#{topic})");
        text += &row(&link, of_topic.len(), &mut of_topic.iter().copied().flatten());
    }
    text += &row("all", scenarios.len(), &mut all());
    let mut topic = "";
    for (scenario, verdicts) in scenarios {
        if scenario.topic() != topic {
            topic = scenario.topic();
            let _ = write!(text, "\n## {topic}\n");
        }
        text += &section(scenario, verdicts);
    }
    text
}

/// What there is to be said of one scenario.
fn section(scenario: &Scenario, verdicts: &[Verdict]) -> String {
    let mut text = format!("\n### {}\n\n{}", scenario.name, scenario.why.trim());
    let flags = (!scenario.flags.is_empty()).then(|| format!("`{}`", scenario.flags.join(" ")));
    let about: Vec<_> = scenario.ids.iter().cloned().chain(flags).collect();
    if !about.is_empty() {
        let _ = write!(text, " ({})", about.join(", "));
    }
    text += "\n\n| step | as both | as ipvs | as nftables | better |\n|---|---|---|---|---|\n";
    for (step, verdict) in scenario.steps.iter().zip(verdicts) {
        let mut counts = Counts::default();
        counts.add(verdict);
        let _ = writeln!(text, "| {} | {counts} |", step.name);
    }
    let mut lines: Vec<String> = Vec::new();
    for verdict in verdicts {
        lines.extend(different(&verdict.probes));
        lines.extend(verdict.excused.iter().map(|line| format!("`ipvsadm`: {line}")));
    }
    let mut seen = BTreeSet::new();
    lines.retain(|line| seen.insert(line.clone()));
    if !lines.is_empty() {
        text.push('\n');
    }
    for line in lines {
        let _ = writeln!(text, "- {line}");
    }
    text
}

/// The probes in which upstream's modes, or ours and both, differ; those with the same outcome in one line.
fn different(probes: &[Judged]) -> Vec<String> {
    let mut groups: BTreeMap<Judged, Vec<&str>> = BTreeMap::new();
    for judged in probes.iter().filter(|judged| judged.like != Like::Both) {
        let mut outcome = judged.clone();
        outcome.probe.client.clear();
        groups.entry(outcome).or_default().push(&judged.probe.client);
    }
    let lines = groups.into_iter().map(|(judged, clients)| {
        let Judged {
            probe,
            ours,
            ipvs,
            nftables,
            like,
            why,
        } = judged;
        let target = probe.target;
        let clients = clients.join(", ");
        let told = match like {
            Like::Both | Like::Ipvs => format!("as ipvs: {ours}; nftables: {nftables}"),
            Like::Nftables => format!("as nftables: {ours}; ipvs: {ipvs}"),
            Like::Better | Like::Neither => format!("better: {ours}; ipvs: {ipvs}; nftables: {nftables}"),
        };
        let why = why.map(|why| format!(" ({why})")).unwrap_or_default();
        format!("{target} from {clients}: {told}{why}")
    });
    lines.collect()
}

/// How many probes are like whose.
#[derive(Default)]
struct Counts(BTreeMap<Like, usize>);

impl Counts {
    fn add(&mut self, verdict: &Verdict) {
        for judged in &verdict.probes {
            *self.0.entry(judged.like).or_default() += 1;
        }
    }

    fn all(&self) -> usize {
        self.0.values().sum()
    }
}

/// Four cells of a table.
impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [both, ipvs, nftables, better] = [Like::Both, Like::Ipvs, Like::Nftables, Like::Better]
            .map(|like| self.0.get(&like).copied().unwrap_or_default());
        write!(f, "{both} | {ipvs} | {nftables} | {better}")
    }
}
