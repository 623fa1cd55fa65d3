//! When a proxier was woken up and when IPVS had carried out its commands, by the kernel's own record, which is read
//! afterwards: nothing runs meanwhile that would take the node's processor from the proxier.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};

use crate::error::{Context, Error, Result};

const TRACEFS: &str = "/sys/kernel/tracing";
/// The event's group and name, and the function that carries out all commands which change something.
const GROUP: &str = "bench";
const COMMAND: &str = "ipvs_set";
const FUNCTION: &str = "ip_vs_genl_set_cmd";
/// The kernel's own event, and whose: names of threads have up to 15 bytes.
const WAKING: &str = "sched_waking";
const PROXIERS: &str = "comm == \"kube-proxy\" || comm ~ \"upstream-kube-*\" || comm == \"kube-router\"";

/// What happens in all network namespaces, while this value lives.
#[derive(Debug)]
pub(super) struct Record(());

impl Record {
    /// Begins to record. The module `ip_vs` must be loaded.
    ///
    /// # Errors
    /// The kernel has no tracing, no kprobes or no such function.
    pub(super) fn begin() -> Result<Self> {
        match mount("tracefs", TRACEFS, "tracefs", MountFlags::empty(), None) {
            Ok(()) | Err(Errno::BUSY) => {}
            Err(error) => return Err(error).context(|| format!("mount {TRACEFS}")),
        }
        if !of_command("").exists() {
            write("kprobe_events", &format!("r:{GROUP}/{COMMAND} {FUNCTION}"))?;
        }
        write("trace_clock", "mono")?;
        write(of_waking("filter"), PROXIERS)?;
        let record = Self(());
        write(of_command("enable"), "1")?;
        write(of_waking("enable"), "1")?;
        Ok(record)
    }

    /// Forgets what has happened so far.
    pub(super) fn forget(&self) -> Result<()> {
        write("trace", "")
    }

    /// When the last command was carried out that is not forgotten, as of [`monotonic`](crate::clock::monotonic).
    pub(super) fn last_command(&self) -> Result<Option<Duration>> {
        Ok(times(&read()?, COMMAND)?.pop())
    }

    /// When a proxier was woken up for the first time since then.
    pub(super) fn first_waking(&self, since: Duration) -> Result<Option<Duration>> {
        Ok(times(&read()?, WAKING)?.into_iter().find(|at| *at >= since))
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        // It costs little when it goes on.
        let _ = write(of_command("enable"), "0");
        let _ = write(of_waking("enable"), "0");
    }
}

fn of_command(file: &str) -> PathBuf {
    Path::new("events").join(GROUP).join(COMMAND).join(file)
}

fn of_waking(file: &str) -> PathBuf {
    Path::new("events/sched").join(WAKING).join(file)
}

fn read() -> Result<String> {
    let path = Path::new(TRACEFS).join("trace");
    fs::read_to_string(&path).path("read", &path)
}

fn write(file: impl AsRef<Path>, text: &str) -> Result<()> {
    let path = Path::new(TRACEFS).join(file);
    fs::write(&path, text).path("write", &path)
}

/// The times of an event, of lines like `kube-proxy-703     [000] d....    46.498306: ipvs_set: (...)`.
fn times(trace: &str, event: &str) -> Result<Vec<Duration>> {
    let named = format!(": {event}:");
    let of_event = trace
        .lines()
        .filter_map(|line| Some((line, line.split_once(&named)?.0)));
    let time = |(line, before): (&str, &str)| {
        let seconds = before
            .split_whitespace()
            .next_back()
            .and_then(|word| word.parse().ok());
        seconds
            .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
            .ok_or_else(|| Error::Unavailable(format!("the kernel's record has no time: {line}")))
    };
    of_event.map(time).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_has_times() {
        let trace = "# tracer: nop\n\
             \u{20}          bench-735     [000] d..2.    46.495102: sched_waking: comm=kube-proxy pid=703 prio=120 target_cpu=000\n\
             \u{20}     kube-proxy-703     [000] d....    46.498306: ipvs_set: (genl_family_rcv_msg_doit+0xe2/0x150 <- ip_vs_genl_set_cmd)\n\
             \u{20}     kube-proxy-703     [000] d....    46.498401: ipvs_set: (genl_family_rcv_msg_doit+0xe2/0x150 <- ip_vs_genl_set_cmd)\n";
        let micros = |micros: &[u64]| {
            micros
                .iter()
                .copied()
                .map(Duration::from_micros)
                .collect::<Vec<_>>()
        };
        assert_eq!(times(trace, WAKING).unwrap(), micros(&[46_495_102]));
        assert_eq!(times(trace, COMMAND).unwrap(), micros(&[46_498_306, 46_498_401]));
        assert!(times("# tracer: nop", COMMAND).unwrap().is_empty());
        assert!(times("kube-proxy-703 [000] d.... soon: ipvs_set: (...)", COMMAND).is_err());
    }
}
