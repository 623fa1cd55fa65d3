//! One line on standard error for each thing that takes longer than a moment.

use std::time::Instant;

use crate::Result;

/// Announces `what`, does it, and says how long it took when that was more than a second.
pub(crate) fn step<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    eprintln!("lab: {what}");
    let start = Instant::now();
    let result = work()?;
    let seconds = start.elapsed().as_secs_f32();
    if seconds > 1.0 {
        eprintln!("lab: {what}: done in {seconds:.0} s");
    }
    Ok(result)
}
