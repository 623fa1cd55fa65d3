//! When IPVS has carried out commands, by the kernel's own record: a probe at the function's return, read afterwards.
//! Nothing runs meanwhile that would take the node's processor from the proxier.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};

use crate::error::{Context, Error, Result};

const TRACEFS: &str = "/sys/kernel/tracing";
/// The event's group and name, and the function that carries out all commands which change something.
const GROUP: &str = "bench";
const EVENT: &str = "ipvs_set";
const FUNCTION: &str = "ip_vs_genl_set_cmd";

/// The commands that were carried out in any network namespace, while this value lives.
#[derive(Debug)]
pub(super) struct Commands(());

impl Commands {
    /// Begins to record. The module `ip_vs` must be loaded.
    ///
    /// # Errors
    /// The kernel has no tracing, no kprobes or no such function.
    pub(super) fn record() -> Result<Self> {
        match mount("tracefs", TRACEFS, "tracefs", MountFlags::empty(), None) {
            Ok(()) | Err(Errno::BUSY) => {}
            Err(error) => return Err(error).context(|| format!("mount {TRACEFS}")),
        }
        if !event("").exists() {
            write("kprobe_events", &format!("r:{GROUP}/{EVENT} {FUNCTION}"))?;
        }
        write("trace_clock", "mono")?;
        let commands = Self(());
        write(event("enable"), "1")?;
        Ok(commands)
    }

    /// Forgets what has happened so far.
    pub(super) fn forget(&self) -> Result<()> {
        write("trace", "")
    }

    /// When the last command was carried out that is not forgotten, as of [`monotonic`](crate::clock::monotonic).
    pub(super) fn last(&self) -> Result<Option<Duration>> {
        let path = Path::new(TRACEFS).join("trace");
        let trace = fs::read_to_string(&path).path("read", &path)?;
        let last = trace.lines().rev().find(|line| !line.starts_with('#'));
        let time = |line: &str| {
            time(line).ok_or_else(|| Error::Unavailable(format!("the kernel's record has no time: {line}")))
        };
        last.map(time).transpose()
    }
}

impl Drop for Commands {
    fn drop(&mut self) {
        // It costs little when it goes on.
        let _ = write(event("enable"), "0");
    }
}

fn event(file: &str) -> PathBuf {
    Path::new("events").join(GROUP).join(EVENT).join(file)
}

fn write(file: impl AsRef<Path>, text: &str) -> Result<()> {
    let path = Path::new(TRACEFS).join(file);
    fs::write(&path, text).path("write", &path)
}

/// Of `kube-proxy-703     [000] d....    46.498306: ipvs_set: (...)`.
fn time(line: &str) -> Option<Duration> {
    let (before, _) = line.split_once(&format!(": {EVENT}:"))?;
    let seconds = before.split_whitespace().next_back()?.parse().ok()?;
    Duration::try_from_secs_f64(seconds).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_has_a_time() {
        let line = "      kube-proxy-703     [000] d....    46.498306: ipvs_set: (genl_family_rcv_msg_doit+0xe2/0x150 <- ip_vs_genl_set_cmd)";
        assert_eq!(time(line), Some(Duration::from_micros(46_498_306)));
        assert_eq!(time("# tracer: nop"), None);
    }
}
