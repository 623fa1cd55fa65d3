//! A running kube-proxy of ours.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::error::{Context, Error, Result};
use crate::namespace::Namespace;
use crate::process::last_lines;

/// How long a kube-proxy may take for what it is waited for. Emulated guests are slow.
pub const PATIENCE: Duration = Duration::from_secs(30);

const POLL: Duration = Duration::from_millis(50);

/// A kube-proxy, which is killed with this value.
#[derive(Debug)]
pub struct KubeProxy {
    child: Child,
    log: PathBuf,
}

impl KubeProxy {
    /// Starts the `kube-proxy` of the search path in a node's namespace. Its output is appended to the file `log`.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(node: &Namespace, flags: &[&str], log: &Path) -> Result<Self> {
        Self::start_command(node, Command::new("kube-proxy").args(flags), log)
    }

    /// Starts a program that ends as a kube-proxy: under another user, or traced.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start_command(node: &Namespace, command: &mut Command, log: &Path) -> Result<Self> {
        let open = || {
            File::options()
                .create(true)
                .append(true)
                .open(log)
                .path("open", log)
        };
        let child = node.spawn(command.stdout(open()?).stderr(open()?))?;
        Ok(Self {
            child,
            log: log.to_owned(),
        })
    }

    /// The process's number.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has said so far.
    ///
    /// # Errors
    /// The log cannot be read.
    pub fn log(&self) -> Result<String> {
        let bytes = fs::read(&self.log).path("read", &self.log)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Waits until it has said this.
    ///
    /// # Errors
    /// It ended, or did not say it in time; with what it said instead.
    pub fn wait_for(&mut self, text: &str) -> Result<()> {
        let start = Instant::now();
        loop {
            let log = self.log()?;
            if log.contains(text) {
                return Ok(());
            }
            let ended = self.child.try_wait().context(|| "wait for kube-proxy".into())?;
            if ended.is_some() || start.elapsed() > PATIENCE {
                let state = ended.map_or("is still running".to_owned(), |status| {
                    format!("has ended ({status})")
                });
                let said = last_lines(&log, 20);
                return Err(Error::Unavailable(format!(
                    "kube-proxy {state}, and did not say \"{text}\" but\n{said}"
                )));
            }
            thread::sleep(POLL);
        }
    }

    /// Waits until it has ended by itself, and gives its status and what it said.
    ///
    /// # Errors
    /// It did not end in time.
    pub fn wait(mut self) -> Result<(ExitStatus, String)> {
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            if let Some(status) = self.child.try_wait().context(|| "wait for kube-proxy".into())? {
                return Ok((status, self.log()?));
            }
            thread::sleep(POLL);
        }
        let said = last_lines(&self.log()?, 20);
        Err(Error::Unavailable(format!(
            "kube-proxy is still running, and said\n{said}"
        )))
    }

    /// Asks it to end (SIGTERM), and waits for that.
    ///
    /// # Errors
    /// It did not end in time.
    pub fn terminate(self) -> Result<(ExitStatus, String)> {
        self.signal(Signal::TERM)?;
        self.wait()
    }

    /// Kills it (SIGKILL).
    ///
    /// # Errors
    /// It did not end.
    pub fn kill(self) -> Result<()> {
        self.signal(Signal::KILL)?;
        self.wait().map(drop)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        match pid {
            Some(pid) => kill_process(pid, signal).context(|| "signal kube-proxy".into()),
            None => Ok(()),
        }
    }
}

impl Drop for KubeProxy {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
