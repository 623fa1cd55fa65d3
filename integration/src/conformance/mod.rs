//! Differential conformance: ours beside upstream's two modes, on the same objects from the same API server.
//!
//! ```text
//! scenario     a file: objects, what is done to them, why it matters
//! target       whom to ask after each step, and who may answer
//! sentinel     the Service that tells how far a proxier has got
//! settle       when a proxier has programmed a change
//! run          in a guest: takes a proxier through scenarios
//! observation  what came of a step: the kernel's state, and who answers whom
//! recording    upstream's observations, in a file beside the scenario
//! verdict      ours beside what is recorded
//! report       the verdicts, for people
//! ```
//!
//! In every probe ours is to be as upstream's mode ipvs, or as its mode nftables, or as the scenario says and gives a
//! reason for. The virtual servers and the addresses on kube-ipvs0 are to be those of mode ipvs.

mod observation;
mod recording;
mod report;
mod run;
mod scenario;
mod sentinel;
mod settle;
mod target;
mod verdict;

pub use observation::{KernelState, Observation, Probe};
pub use recording::{RecordedStep, Recording, Upstream};
pub use report::report;
pub use run::{Event, Recorded, parse, run};
pub use scenario::{Better, Reference, Scenario, Step};
pub use verdict::{Judged, Like, Verdict, judge};
