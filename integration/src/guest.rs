//! Runs one command as root on a stock kernel.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::cargo;
use crate::error::{Context, Result};
use crate::image::{self, GuestFile};
use crate::job::Job;
use crate::kernel::{Kernel, Series};
use crate::lab::Lab;
use crate::qemu::{self, Accelerator, Boot};
use crate::userland::Userland;

/// A guest that is about to run one command.
///
/// It has 2 processors (one where it is emulated), 3 GiB of memory, the address 10.0.2.15/24 on `eth0`, and reaches
/// the host's loopback as 10.0.2.2. The command starts in `/root`, with nothing on its standard input.
#[derive(Debug)]
pub struct Guest {
    lab: Lab,
    kernel: Kernel,
    init: PathBuf,
    files: Vec<GuestFile>,
    environment: Vec<(String, String)>,
    limit: Duration,
}

impl Guest {
    /// Prepares a guest with a kernel of the given series, or with the default one, setting up whatever the lab
    /// lacks.
    ///
    /// # Errors
    /// Something that is needed cannot be had here.
    pub fn prepare(series: Option<Series>) -> Result<Self> {
        let lab = Lab::open()?;
        let kernel = lab.locked(|| {
            qemu::require()?;
            let userland = Userland::ensure(&lab)?;
            let kernel = match series {
                Some(series) => Kernel::ensure(&lab, &userland, series)?,
                None => Kernel::ensure_any(&lab, &userland)?,
            };
            image::ensure_base(&kernel, &userland)?;
            Ok(kernel)
        })?;
        let init = cargo::program("integration", "guest-init")?;
        let limit = Duration::from_secs(300);
        Ok(Self {
            lab,
            kernel,
            init,
            files: Vec::new(),
            environment: Vec::new(),
            limit,
        })
    }

    /// The guest's kernel.
    #[must_use]
    pub fn kernel(&self) -> &Kernel {
        &self.kernel
    }

    /// Copies a file or a directory of the host into the guest.
    #[must_use]
    pub fn copy(mut self, host: impl Into<PathBuf>, guest: impl Into<PathBuf>) -> Self {
        self.files.push(GuestFile {
            host: host.into(),
            guest: guest.into(),
        });
        self
    }

    /// Sets an environment variable for the command.
    #[must_use]
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Sets how long the guest may take, from power-on; 300 s when it is not set.
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Runs a command, copies its output (standard output and standard error) to `sink`, and gives its exit status.
    ///
    /// # Errors
    /// The guest could not be started, its kernel crashed, or its time ran out.
    pub fn run(&self, command: &[String], sink: &mut (dyn Write + Send)) -> Result<u8> {
        self.boot(command, None, Some(sink))
    }

    /// Runs a command on this process's terminal, without a time limit, and gives its exit status.
    ///
    /// # Errors
    /// The guest could not be started, or its kernel crashed.
    pub fn run_on_terminal(&self, command: &[String]) -> Result<u8> {
        let size = rustix::termios::tcgetwinsize(std::io::stdin());
        let size = size
            .map(|size| (size.ws_row, size.ws_col))
            .ok()
            .filter(|(rows, _)| *rows > 0)
            .unwrap_or((24, 80));
        self.boot(command, Some(size), None)
    }

    fn boot(
        &self,
        command: &[String],
        terminal: Option<(u16, u16)>,
        sink: Option<&mut (dyn Write + Send)>,
    ) -> Result<u8> {
        let accelerator = self.lab.locked(|| Accelerator::choose(&self.lab, &self.kernel))?;
        let limit = terminal.is_none().then_some(self.limit);
        let job = Job {
            command: command.to_vec(),
            environment: self.environment.clone(),
            terminal,
        };
        let job = serde_json::to_vec(&job).context(|| "write the job".into())?;
        let dir = self.run_dir()?;
        let image = dir.join("image.cpio");
        image::write_run(&image, &self.kernel, &self.init, &job, &self.files)?;
        eprintln!("lab: booting Linux {} ({accelerator})", self.kernel.release());
        let boot = Boot {
            kernel: &self.kernel,
            accelerator,
            dir: &dir,
            image: &image,
            limit,
        };
        let ended = boot.run(sink);
        fs::remove_file(&image).path("remove", &image)?;
        let log = dir.join("kernel.log");
        let status = ended.inspect_err(|_| eprintln!("lab: the kernel's log is {}", log.display()))?;
        fs::remove_dir_all(&dir).path("remove", &dir)?;
        Ok(status)
    }

    /// A directory for one run. That of a run which failed stays for whoever wants to read the kernel's log, until
    /// the next run.
    fn run_dir(&self) -> Result<PathBuf> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let runs = self.lab.path("runs");
        fs::create_dir_all(&runs).path("make", &runs)?;
        for entry in fs::read_dir(&runs).path("read", &runs)?.flatten() {
            let owner = entry
                .file_name()
                .to_string_lossy()
                .split('-')
                .next()
                .unwrap_or_default()
                .to_owned();
            if !PathBuf::from("/proc").join(owner).exists() {
                // Another run may be removing the same.
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        let dir = runs.join(format!(
            "{}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        ));
        fs::create_dir_all(&dir).path("make", &dir)?;
        Ok(dir)
    }
}
