//! How ready the kernel is to kill this process when memory runs out.

use std::fs;

use tracing::debug;

const FILE: &str = "/proc/self/oom_score_adj";

/// Sets `oom_score_adj`. To lower it takes CAP_SYS_RESOURCE, without which the program does as well.
pub(crate) fn adjust(wanted: i32) {
    let has = fs::read_to_string(FILE).ok();
    if has.is_some_and(|has| has.trim() == wanted.to_string()) {
        return;
    }
    if let Err(error) = fs::write(FILE, wanted.to_string()) {
        debug!("oom_score_adj is not {wanted}: {error}");
    }
}
