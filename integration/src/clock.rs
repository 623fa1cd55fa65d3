//! Time as the kernel's records have it, which [`Instant`](std::time::Instant) cannot be compared with.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// The time of `CLOCK_MONOTONIC`.
#[must_use]
pub(crate) fn monotonic() -> Duration {
    let now = clock_gettime(ClockId::Monotonic);
    // This clock is never before its start.
    Duration::try_from(now).unwrap_or_default()
}
