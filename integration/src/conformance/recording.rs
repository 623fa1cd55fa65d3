//! Upstream's answers, kept in a file beside their scenario.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use serde::{Deserialize, Serialize};

use super::observation::{Observation, Probe};
use super::scenario::Scenario;
use crate::error::{Context, Error, Result};

/// What upstream's two modes make of a scenario.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Recording {
    /// The version of upstream's kube-proxy.
    pub upstream: String,
    /// The [fingerprint](Scenario::fingerprint) of the scenario that it was given.
    pub scenario: String,
    /// What became of each step.
    pub steps: Vec<RecordedStep>,
}

/// What upstream's two modes make of one step.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecordedStep {
    /// In mode ipvs, the lines of `ipvsadm -Sn`, sorted.
    pub servers: BTreeSet<String>,
    /// In mode ipvs, the addresses on kube-ipvs0.
    pub addresses: BTreeSet<String>,
    /// For each target the answers to clients, of which those that are told the same share an entry.
    probes: BTreeMap<String, BTreeMap<String, Answers>>,
}

/// The answers of both modes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(untagged)]
enum Answers {
    Both(String),
    Each { ipvs: String, nftables: String },
}

/// What upstream's two modes answer to a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Upstream<'a> {
    /// Mode ipvs.
    pub ipvs: &'a str,
    /// Mode nftables.
    pub nftables: &'a str,
}

impl RecordedStep {
    /// From what both modes have made of the step.
    #[must_use]
    pub fn new(ipvs: &Observation, nftables: &Observation) -> Self {
        let mut probes: BTreeMap<String, BTreeMap<Answers, Vec<&str>>> = BTreeMap::new();
        for (probe, ipvs) in &ipvs.probes {
            let nftables = nftables.probes.get(probe).map_or("", String::as_str);
            let answers = if ipvs == nftables {
                Answers::Both(ipvs.clone())
            } else {
                Answers::Each {
                    ipvs: ipvs.clone(),
                    nftables: nftables.to_owned(),
                }
            };
            let clients = probes.entry(probe.target.clone()).or_default().entry(answers);
            clients.or_default().push(&probe.client);
        }
        let by_clients = |answers: BTreeMap<Answers, Vec<&str>>| {
            let pairs = answers
                .into_iter()
                .map(|(answers, clients)| (clients.join(", "), answers));
            pairs.collect()
        };
        Self {
            servers: ipvs.kernel.servers.clone(),
            addresses: ipvs.kernel.addresses.clone(),
            probes: probes
                .into_iter()
                .map(|(target, answers)| (target, by_clients(answers)))
                .collect(),
        }
    }

    /// The answers to a probe.
    #[must_use]
    pub fn answers(&self, probe: &Probe) -> Option<Upstream<'_>> {
        let mut answers = self.probes.get(&probe.target)?.iter();
        let (_, answers) =
            answers.find(|(clients, _)| clients.split(", ").any(|client| client == probe.client))?;
        Some(match answers {
            Answers::Both(both) => Upstream {
                ipvs: both,
                nftables: both,
            },
            Answers::Each { ipvs, nftables } => Upstream { ipvs, nftables },
        })
    }

    /// All probes.
    pub fn probes(&self) -> impl Iterator<Item = Probe> {
        self.probes.iter().flat_map(|(target, answers)| {
            let clients = answers.keys().flat_map(|clients| clients.split(", "));
            clients.map(|client| Probe {
                target: target.clone(),
                client: client.to_owned(),
            })
        })
    }
}

impl Recording {
    /// Reads what is recorded of this text of a scenario; nothing if there is nothing, or it is of another text.
    ///
    /// # Errors
    /// There is a file that is no recording.
    pub fn read(scenario: &Scenario) -> Result<Option<Self>> {
        let file = scenario.recorded();
        if !file.exists() {
            return Ok(None);
        }
        let text = fs::read_to_string(&file).path("read", &file)?;
        let recording: Self = serde_saphyr::from_str(&text)
            .map_err(|error| Error::Unavailable(format!("{}: {error}", file.display())))?;
        let of_this =
            recording.scenario == scenario.fingerprint() && recording.steps.len() == scenario.steps.len();
        Ok(of_this.then_some(recording))
    }

    /// Writes it to the scenario's file.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, scenario: &Scenario) -> Result<()> {
        let file = scenario.recorded();
        let options = serde_saphyr::ser_options! { prefer_block_scalars: false };
        let body = serde_saphyr::to_string_with_options(self, options)
            .map_err(|error| Error::Unavailable(format!("{}: {error}", file.display())))?;
        let text = format!(
            "# The answers of upstream's kube-proxy. Written by `cargo xtask conformance --record {}`.\n{body}",
            scenario.name
        );
        fs::write(&file, text).path("write", &file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxiers::Proxier;

    fn observation(proxier: Proxier, outside: &str) -> Observation {
        let probe = |client: &str, answer: &str| {
            let probe = Probe {
                target: "TCP 10.96.0.10:80".into(),
                client: client.into(),
            };
            (probe, answer.to_owned())
        };
        Observation {
            proxier,
            scenario: "kinds/web".into(),
            step: 0,
            kernel: Default::default(),
            probes: [
                probe("node", "local-11 sees 10.244.0.1"),
                probe("outside", outside),
                probe("peer", "local-11 sees 10.244.0.1"),
            ]
            .into(),
            took: (0, 0),
        }
    }

    #[test]
    fn answers_are_kept_once_and_read_as_written() {
        let ipvs = observation(Proxier::UpstreamIpvs, "timed out");
        let nftables = observation(Proxier::UpstreamNftables, "refused");
        let recording = Recording {
            upstream: "v1.36.3".into(),
            scenario: "0".into(),
            steps: vec![RecordedStep::new(&ipvs, &nftables)],
        };
        let text = serde_saphyr::to_string(&recording).unwrap();
        assert!(
            text.contains("\"node, peer\": local-11 sees 10.244.0.1"),
            "{text}"
        );
        assert_eq!(serde_saphyr::from_str::<Recording>(&text).unwrap(), recording);
        let step = &recording.steps[0];
        for probe in ipvs.probes.keys() {
            let upstream = step.answers(probe).unwrap();
            assert_eq!(upstream.ipvs, ipvs.probes[probe]);
            assert_eq!(upstream.nftables, nftables.probes[probe]);
        }
        let probes: BTreeSet<_> = step.probes().collect();
        assert!(probes.iter().eq(ipvs.probes.keys()));
    }
}
