//! The guest's first process: makes the machine a bare node, runs the job, reports, and switches off.

use std::error::Error;
use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, ExitCode, Stdio};

use integration::job::{self, Job, Report};
use rustix::fs::CWD;
use rustix::mount::{MountFlags, mount};
use rustix::process::WaitOptions;
use rustix::system::{RebootCommand, reboot, sethostname};
use rustix::termios::{OptionalActions, Winsize, tcdrain, tcgetattr, tcsetattr, tcsetwinsize};

fn main() -> ExitCode {
    if std::process::id() != 1 {
        eprintln!("guest-init is the first process of a guest; `cargo xtask vm` starts it");
        return ExitCode::FAILURE;
    }
    if let Err(error) = run() {
        eprintln!("guest-init: {error}");
    }
    rustix::fs::sync();
    let off = reboot(RebootCommand::PowerOff);
    eprintln!("guest-init: cannot switch off: {off:?}");
    ExitCode::FAILURE
}

fn run() -> Result<(), Box<dyn Error>> {
    file_systems()?;
    let job: Job = serde_json::from_slice(&fs::read(job::PATH)?)?;
    let output = File::options().read(true).write(true).open(job::OUTPUT)?;
    let mut reports = File::options().read(true).write(true).open(job::REPORTS)?;
    match job.terminal {
        Some((ws_row, ws_col)) => tcsetwinsize(
            &output,
            Winsize {
                ws_row,
                ws_col,
                ws_xpixel: 0,
                ws_ypixel: 0,
            },
        )?,
        None => raw(&output)?,
    }
    raw(&reports)?;
    sethostname(b"node")?;
    network()?;

    writeln!(reports, "{}", Report::Started)?;
    let status = run_command(&job, &output)?;
    // A terminal was hung up when its session ended, and the descriptor is of no more use.
    if job.terminal.is_none() {
        tcdrain(&output)?;
    }
    writeln!(reports, "{}", Report::Exited(status))?;
    tcdrain(&reports)?;
    Ok(())
}

fn file_systems() -> io::Result<()> {
    for (kind, path) in [
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("devtmpfs", "/dev"),
        ("devpts", "/dev/pts"),
        ("tmpfs", "/dev/shm"),
        ("tmpfs", "/run"),
        ("cgroup2", "/sys/fs/cgroup"),
    ] {
        fs::create_dir_all(path)?;
        mount(kind, path, kind, MountFlags::empty(), None)?;
    }
    fs::set_permissions("/tmp", Permissions::from_mode(0o1777))?;
    rustix::fs::symlinkat("/proc/self/fd", CWD, "/dev/fd")?;
    Ok(())
}

/// Loopback, and the address that QEMU's user network gives to its first guest.
fn network() -> Result<(), Box<dyn Error>> {
    let commands = "modprobe --all virtio_pci virtio_net
        ip link set lo up
        ip address add 10.0.2.15/24 dev eth0
        ip link set eth0 up
        ip route add default via 10.0.2.2";
    for command in commands.lines() {
        let mut words = command.split_whitespace();
        let mut command = Command::new(words.next().unwrap_or_default());
        let status = command.args(words).env("PATH", PATH).status()?;
        if !status.success() {
            return Err(format!("{command:?} failed: {status}").into());
        }
    }
    Ok(())
}

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin";

/// Runs the job's command and reaps what others leave behind, until the command itself ends.
fn run_command(job: &Job, output: &File) -> Result<u8, Box<dyn Error>> {
    let (program, arguments) = job.command.split_first().ok_or("the job has no command")?;
    let mut command = if job.terminal.is_some() {
        let mut command = prepared("setsid", job);
        command
            .args(["--ctty", "--wait", program])
            .stdin(output.try_clone()?);
        command
    } else {
        let mut command = prepared(program, job);
        command.stdin(Stdio::null());
        command
    };
    command
        .args(arguments)
        .stdout(output.try_clone()?)
        .stderr(output.try_clone()?);
    let child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            writeln!(&mut &*output, "{program}: {error}")?;
            return Ok(127);
        }
    };
    loop {
        let Some((pid, status)) = rustix::process::wait(WaitOptions::empty())? else {
            continue;
        };
        if u32::try_from(pid.as_raw_nonzero().get()) == Ok(child.id()) {
            let code = status
                .exit_status()
                .or(status.terminating_signal().map(|signal| 128 + signal));
            return Ok(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX));
        }
    }
}

fn prepared(program: &str, job: &Job) -> Command {
    let mut command = Command::new(program);
    command
        .env_clear()
        .env("PATH", PATH)
        .env("HOME", "/root")
        .env("LC_ALL", "C.UTF-8");
    command
        .envs(job.environment.iter().map(|(name, value)| (name, value)))
        .current_dir("/root");
    command
}

/// A serial line that carries bytes as they are.
fn raw(device: impl AsFd) -> io::Result<()> {
    let mut settings = tcgetattr(&device)?;
    settings.make_raw();
    tcsetattr(device, OptionalActions::Now, &settings)?;
    Ok(())
}
