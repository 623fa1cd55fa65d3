//! One boot of a guest in QEMU.

use std::collections::VecDeque;
use std::fmt;
use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Context, Error, Result};
use crate::job::Report;
use crate::kernel::Kernel;
use crate::lab::Lab;
use crate::packages;
use crate::process::last_lines;
use crate::progress::step;

/// How often a running guest is looked at.
const POLL: Duration = Duration::from_millis(50);

/// How long a kernel under KVM may stay silent before the lab takes KVM for broken.
const TRIAL: Duration = Duration::from_secs(8);

/// How much of the command's output is kept for a report, in bytes.
const TAIL: usize = 8192;

/// Lines of a kernel's log that mean that nothing which the guest says can be trusted.
const FAULTS: &[&str] = &["Kernel panic", "BUG:", "Oops:", "general protection fault"];

/// A warning of a slow host rather than of a broken kernel: reported, and no failure.
const STALLS: &[&str] = &["soft lockup", "rcu_preempt detected stalls"];

/// What executes the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    /// The host's processor. A guest is about as fast as the host.
    Kvm,
    /// QEMU's translator. Works everywhere; user code is about twenty times slower.
    Tcg,
}

impl fmt::Display for Accelerator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        })
    }
}

impl Accelerator {
    /// The accelerator of this host: what `LAB_ACCEL` says; TCG in CI; else KVM where a trial boot is heard of. The
    /// trial's result is kept in the lab.
    ///
    /// # Errors
    /// `LAB_ACCEL` is neither `kvm` nor `tcg`, or the trial could not be started.
    pub fn choose(lab: &Lab, kernel: &Kernel) -> Result<Self> {
        if let Some(name) = std::env::var_os("LAB_ACCEL") {
            return Self::named(&name.to_string_lossy()).ok_or_else(|| {
                Error::Unavailable(format!("LAB_ACCEL={} is neither kvm nor tcg", name.display()))
            });
        }
        if std::env::var_os("CI").is_some() {
            return Ok(Self::Tcg);
        }
        let remembered = lab.path("accelerator");
        if let Some(known) = fs::read_to_string(&remembered)
            .ok()
            .and_then(|name| Self::named(&name))
        {
            return Ok(known);
        }
        let usable = fs::File::options()
            .read(true)
            .write(true)
            .open("/dev/kvm")
            .is_ok();
        let chosen = if usable && heard_under_kvm(lab, kernel)? {
            Self::Kvm
        } else {
            Self::Tcg
        };
        fs::write(&remembered, chosen.to_string()).path("write", &remembered)?;
        Ok(chosen)
    }

    fn named(name: &str) -> Option<Self> {
        [Self::Kvm, Self::Tcg]
            .into_iter()
            .find(|accelerator| accelerator.to_string() == name)
    }
}

/// A `/dev/kvm` that opens may still hang a stock kernel: boot one without a root file system and see if it speaks.
fn heard_under_kvm(lab: &Lab, kernel: &Kernel) -> Result<bool> {
    step("trying KVM", || {
        let log = lab.path("kvm-trial.log");
        fs::write(&log, "").path("write", &log)?;
        let mut command = machine(Accelerator::Kvm, kernel);
        command.arg("-serial").arg(format!("file:{}", log.display()));
        let mut qemu = Qemu::start(command.stdout(Stdio::null()).stderr(Stdio::null()))?;
        let start = Instant::now();
        let mut heard = false;
        while !heard
            && start.elapsed() < TRIAL
            && qemu
                .child
                .try_wait()
                .context(|| "wait for QEMU".into())?
                .is_none()
        {
            thread::sleep(POLL);
            heard = fs::metadata(&log).is_ok_and(|metadata| metadata.len() > 0);
        }
        Ok(heard)
    })
}

/// Installs QEMU when the host has none.
///
/// # Errors
/// It cannot be installed here.
pub fn require() -> Result<()> {
    packages::require(
        "qemu-system-x86_64",
        "qemu-system-x86",
        "to boot the guest's kernel",
    )
}

/// One boot, from power-on to power-off.
#[derive(Debug)]
pub struct Boot<'a> {
    /// The kernel.
    pub kernel: &'a Kernel,
    /// What executes it.
    pub accelerator: Accelerator,
    /// A directory for the consoles' files: `kernel.log`, `reports`.
    pub dir: &'a Path,
    /// The initramfs.
    pub image: &'a Path,
    /// The time until the guest is stopped; none for a guest with somebody at its shell.
    pub limit: Option<Duration>,
}

impl Boot<'_> {
    /// Boots, copies the command's output to `sink` as it comes, and gives the command's exit status. Without a
    /// sink the output device is this process's own terminal.
    ///
    /// # Errors
    /// QEMU could not be started, the kernel crashed, time ran out, or there was no status.
    pub fn run(&self, sink: Option<&mut (dyn Write + Send)>) -> Result<u8> {
        let (log, reports) = (self.dir.join("kernel.log"), self.dir.join("reports"));
        let mut command = machine(self.accelerator, self.kernel);
        command.arg("-initrd").arg(self.image);
        command.arg("-serial").arg(format!("file:{}", log.display()));
        command.args([
            "-chardev",
            "stdio,id=output,signal=off",
            "-serial",
            "chardev:output",
        ]);
        command.arg("-serial").arg(format!("file:{}", reports.display()));
        let errors = self.dir.join("qemu.log");
        if sink.is_some() {
            let file = fs::File::create(&errors).path("make", &errors)?;
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(file);
        }
        let start = Instant::now();
        let mut qemu = Qemu::start(&mut command)?;
        let output = qemu.child.stdout.take();
        let tail = Arc::new(Mutex::new(VecDeque::new()));
        let ended = thread::scope(|scope| {
            if let (Some(output), Some(sink)) = (output, sink) {
                let tail = Arc::clone(&tail);
                scope.spawn(move || forward(output, sink, &tail));
            }
            let ended = self.wait(&mut qemu, start, &reports);
            // Ends the output, and with it the thread that reads it.
            drop(qemu);
            ended
        })?;
        let kernel_said = lossy(&log);
        let is = |line: &str, marks: &[&str]| marks.iter().any(|mark| line.contains(mark));
        if let Some(fault) = kernel_said
            .lines()
            .find(|line| is(line, FAULTS) && !is(line, STALLS))
        {
            return Err(Error::KernelFault {
                fault: fault.trim_end().to_owned(),
                log: last_lines(&kernel_said, 40),
            });
        }
        if let Some(stall) = kernel_said.lines().find(|line| is(line, STALLS)) {
            eprintln!(
                "lab: the guest's kernel complains of a slow host: {}",
                stall.trim_end()
            );
        }
        match (ended, exit_status(&reports)) {
            (_, Some(status)) => Ok(status),
            (Ended::Stopped, None) => Err(Error::Deadline {
                limit: self.limit.unwrap_or_default(),
                log: last_lines(&kernel_said, 20),
                output: last_lines(&tail_text(&tail), 20),
            }),
            (Ended::PoweredOff, None) => Err(Error::Vanished {
                log: last_lines(&kernel_said, 40),
                qemu: last_lines(&lossy(&errors), 10),
            }),
        }
    }

    fn wait(&self, qemu: &mut Qemu, start: Instant, reports: &Path) -> Result<Ended> {
        let mut started = false;
        loop {
            if qemu
                .child
                .try_wait()
                .context(|| "wait for QEMU".into())?
                .is_some()
            {
                return Ok(Ended::PoweredOff);
            }
            if !started
                && lossy(reports)
                    .lines()
                    .any(|line| line.parse() == Ok(Report::Started))
            {
                started = true;
                eprintln!("lab: booted in {:.1} s", start.elapsed().as_secs_f32());
            }
            if self.limit.is_some_and(|limit| start.elapsed() > limit) {
                return Ok(Ended::Stopped);
            }
            thread::sleep(POLL);
        }
    }
}

enum Ended {
    PoweredOff,
    Stopped,
}

/// A running QEMU, which does not outlive this value.
struct Qemu {
    child: Child,
}

impl Qemu {
    fn start(command: &mut Command) -> Result<Self> {
        Ok(Self {
            child: command.spawn().context(|| "start QEMU".into())?,
        })
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The virtual machine without its consoles and its initramfs. `setpriv` makes it die with this process.
fn machine(accelerator: Accelerator, kernel: &Kernel) -> Command {
    let mut command = Command::new("setpriv");
    command.args([
        "--pdeathsig",
        "KILL",
        "qemu-system-x86_64",
        "-nodefaults",
        "-display",
        "none",
        "-no-reboot",
    ]);
    match accelerator {
        Accelerator::Kvm => command.args(["-accel", "kvm", "-cpu", "host", "-smp", "2"]),
        // One processor: when a kernel patches its code (static keys), another translated one may still run into
        // the breakpoint that was there for the moment, and oops ("int3").
        Accelerator::Tcg => command.args(["-accel", "tcg", "-cpu", "max", "-smp", "1"]),
    };
    command.args(["-m", "3G"]);
    command.args([
        "-netdev",
        "user,id=uplink",
        "-device",
        "virtio-net-pci,netdev=uplink,romfile=",
    ]);
    command.arg("-kernel").arg(kernel.image());
    // An oops ends the guest: a command that runs on a damaged kernel proves nothing.
    command.args([
        "-append",
        "console=ttyS0 panic=-1 oops=panic mitigations=off nokaslr",
    ]);
    command
}

fn forward(mut output: impl Read, sink: &mut (dyn Write + Send), tail: &Mutex<VecDeque<u8>>) {
    let mut buffer = [0; 8192];
    while let Ok(read) = output.read(&mut buffer) {
        let bytes = buffer.get(..read).unwrap_or_default();
        if bytes.is_empty() {
            return;
        }
        // Nobody may be listening any more; the run goes on for its status.
        let _ = sink.write_all(bytes).and_then(|()| sink.flush());
        let mut tail = tail.lock().unwrap_or_else(PoisonError::into_inner);
        tail.extend(bytes);
        let excess = tail.len().saturating_sub(TAIL);
        tail.drain(..excess);
    }
}

fn tail_text(tail: &Mutex<VecDeque<u8>>) -> String {
    let tail = tail.lock().unwrap_or_else(PoisonError::into_inner);
    String::from_utf8_lossy(&tail.iter().copied().collect::<Vec<_>>()).into_owned()
}

fn exit_status(reports: &Path) -> Option<u8> {
    lossy(reports).lines().find_map(|line| match line.parse() {
        Ok(Report::Exited(status)) => Some(status),
        _ => None,
    })
}

/// A console's file, which may not be there yet.
fn lossy(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}
