//! What proxiers are put through, and what came out.

use std::slice;

use serde::{Deserialize, Serialize};

use crate::bench::Load;
use crate::error::{Error, Result};
use crate::proxiers::Proxier;

/// What is done in a guest. All tasks of a boot are done on the same objects, which only become more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Task {
    /// One proxier is put through this.
    Course(Course),
    /// Packets are.
    Flows(Flows),
}

/// What one proxier is put through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Course {
    /// Who runs it.
    pub proxier: Proxier,
    /// The objects that it finds.
    pub load: Load,
    /// How often its first synchronisation is measured, each time in a fresh network namespace.
    pub starts: usize,
    /// How many endpoints are replaced, one after another, after the last start.
    pub changes: usize,
    /// How long it is watched doing nothing, after one more start, in seconds: synchronisation periods, of 30 seconds,
    /// so that each has its part.
    pub idle: u64,
    /// How long a start may take, in seconds.
    pub patience: u64,
}

/// How connections through nodes that proxiers have programmed are measured: in turns, round by round, because the
/// speed of an emulated processor changes with the time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flows {
    /// The objects.
    pub load: Load,
    /// Who programs a node with them. The first nodes of a boot stay, and are measured with the later ones, too.
    pub proxiers: Vec<Proxier>,
    /// How many rounds there are.
    pub rounds: usize,
    /// How long a proxier may take to program its node, in seconds.
    pub patience: u64,
}

/// What came out of a course. Times are in seconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// What was done.
    pub course: Course,
    /// The first synchronisation of each start that ended in time.
    pub first_syncs: Vec<FirstSync>,
    /// From the proxier's hearing of each change until the kernel has it.
    pub changes: Vec<f64>,
    /// Of the last start of each course, when it has been idle for a while, or its time was over.
    pub memory: Vec<Memory>,
    /// Processor time for each second of idleness, of the programs that it runs, too.
    pub idle: Option<f64>,
}

impl Outcome {
    /// Adds what came out of another course of the same proxier on the same objects.
    pub fn add(&mut self, other: Self) {
        self.first_syncs.extend(other.first_syncs);
        self.changes.extend(other.changes);
        self.memory.extend(other.memory);
        self.idle = self.idle.or(other.idle);
    }
}

/// What a part of the proxier takes, and what it is held against, in seconds, as the benchmark `limit` of the crate
/// `proxier` prints it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Limit {
    /// `first sync`, `burst`, `verification` or `change`.
    pub what: String,
    /// Services and endpoints of each: `10000 x 10`.
    pub size: String,
    /// The proxier's times.
    pub ours: Vec<f64>,
    /// Those of the same messages, or of the same change among a hundred Services.
    pub theirs: Vec<f64>,
}

/// What connections cost through some nodes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FlowCosts {
    /// The objects that there were.
    pub load: Load,
    /// Of each node.
    pub nodes: Vec<NodeCosts>,
}

/// What connections cost through one node: the mean of each round, in seconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeCosts {
    /// Who has programmed it.
    pub proxier: Proxier,
    /// What is programmed.
    pub load: Load,
    /// A byte there and back on an established connection from a pod to a ClusterIP.
    pub round_trips: Vec<f64>,
    /// The same on a connection of its own: from its first packet until it is closed.
    pub cluster_ip: Vec<f64>,
    /// The same from outside the cluster to a node port.
    pub node_port: Vec<f64>,
}

/// A line of what is said in a guest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Line {
    /// Of a course.
    Outcome(Outcome),
    /// Of flows.
    Flows(FlowCosts),
    /// Of the benchmark `limit`.
    Limit(Limit),
}

/// A first synchronisation, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct FirstSync {
    /// From the start of the process.
    pub from_start: f64,
    /// From when it had all objects.
    pub from_caches: f64,
    /// From then until the API server's own Service was programmed, where that is measured: for ours.
    pub first_server: Option<f64>,
}

/// A process's memory, in KiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// `VmRSS`
    pub resident: u64,
    /// `VmHWM`
    pub peak: u64,
}

impl Task {
    /// Those who are put through it.
    pub fn proxiers(&self) -> impl Iterator<Item = Proxier> {
        let proxiers = match self {
            Self::Course(course) => slice::from_ref(&course.proxier),
            Self::Flows(flows) => &flows.proxiers,
        };
        proxiers.iter().copied()
    }

    /// The objects that there are meanwhile.
    #[must_use]
    pub fn load(&self) -> Load {
        match self {
            Self::Course(course) => course.load,
            Self::Flows(flows) => flows.load,
        }
    }

    /// Reads a task from the JSON that it was written to.
    ///
    /// # Errors
    /// The text is none.
    pub fn parse(text: &str) -> Result<Self> {
        parse(text)
    }
}

impl Line {
    /// Reads a line from the JSON that it was written to.
    ///
    /// # Errors
    /// The text is none.
    pub fn parse(text: &str) -> Result<Self> {
        parse(text)
    }
}

fn parse<T: for<'de> Deserialize<'de>>(text: &str) -> Result<T> {
    serde_json::from_str(text).map_err(|error| Error::Unavailable(format!("cannot read {text:?}: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_and_lines_are_read_as_what_they_were() {
        let load = Load {
            services: 10,
            endpoints: 10,
        };
        let course = Course {
            proxier: Proxier::Ours,
            load,
            starts: 1,
            changes: 0,
            idle: 0,
            patience: 60,
        };
        let flows = Flows {
            load,
            proxiers: vec![Proxier::Ours],
            rounds: 1,
            patience: 60,
        };
        for task in [Task::Course(course), Task::Flows(flows)] {
            let text = serde_json::to_string(&task).unwrap();
            assert_eq!(Task::parse(&text).unwrap(), task);
        }
        let outcome = Outcome {
            course,
            first_syncs: Vec::new(),
            changes: vec![0.5],
            memory: Vec::new(),
            idle: None,
        };
        let costs = FlowCosts {
            load,
            nodes: vec![NodeCosts {
                proxier: Proxier::Ours,
                load,
                round_trips: vec![0.5],
                cluster_ip: Vec::new(),
                node_port: Vec::new(),
            }],
        };
        let limit = Limit {
            what: "burst".into(),
            size: "10 x 10".into(),
            ours: vec![0.5],
            theirs: Vec::new(),
        };
        for line in [Line::Outcome(outcome), Line::Flows(costs), Line::Limit(limit)] {
            let text = serde_json::to_string(&line).unwrap();
            assert_eq!(Line::parse(&text).unwrap(), line);
        }
    }
}
