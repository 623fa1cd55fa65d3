//! What a proxier is put through, and what came out.

use serde::{Deserialize, Serialize};

use crate::bench::Load;
use crate::error::{Error, Result};
use crate::proxiers::Proxier;

/// What one proxier is put through. All courses of a boot are run on the same objects, which only become more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Course {
    /// Who runs it.
    pub proxier: Proxier,
    /// The objects that it finds.
    pub load: Load,
    /// How often it is started, each time in a fresh network namespace.
    pub starts: usize,
    /// How many endpoints are replaced, one after another, after the last start.
    pub changes: usize,
    /// How long it is watched doing nothing then, in seconds.
    pub idle: u64,
    /// How long a start may take, in seconds.
    pub patience: u64,
}

/// What came out of a course. Times are in seconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// What was done.
    pub course: Course,
    /// The first synchronisation of each start that ended in time.
    pub first_syncs: Vec<FirstSync>,
    /// From the arrival of each change at the node until the kernel has it.
    pub changes: Vec<f64>,
    /// Of the last start, when it has been idle for a while, or its time was over.
    pub memory: Option<Memory>,
    /// Processor time for each second of idleness.
    pub idle: Option<f64>,
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

/// A line of what is said in a guest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Line {
    /// Of a course.
    Outcome(Outcome),
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
}

/// A process's memory, in KiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// `VmRSS`
    pub resident: u64,
    /// `VmHWM`
    pub peak: u64,
}

impl Course {
    /// Reads a course from the JSON that it was written to.
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
