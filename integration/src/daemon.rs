//! Programs of the host that run beside the lab for a while.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::error::{Context, Error, Result};
use crate::process::last_lines;

/// A running program that writes a log, and is killed when this value goes, or the thread that started it.
#[derive(Debug)]
pub(crate) struct Daemon {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts a program; what it says is added to the file `log`.
    pub(crate) fn start(program: &Path, arguments: &[String], log: &Path) -> Result<Self> {
        let name = program
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let file = File::options()
            .create(true)
            .append(true)
            .open(log)
            .path("open", log)?;
        let errors = file.try_clone().path("open", log)?;
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).arg(program).args(arguments);
        command.stdin(Stdio::null()).stdout(file).stderr(errors);
        let child = command.spawn().context(|| format!("start {name}"))?;
        Ok(Self {
            name,
            child,
            log: log.to_owned(),
        })
    }

    /// # Errors
    /// The program has ended, which it should not by itself.
    pub(crate) fn check(&mut self) -> Result<()> {
        match self
            .child
            .try_wait()
            .context(|| format!("wait for {}", self.name))?
        {
            None => Ok(()),
            Some(status) => Err(Error::Command {
                command: self.name.clone(),
                status,
                output: self.said(),
            }),
        }
    }

    /// The end of its log.
    pub(crate) fn said(&self) -> String {
        last_lines(
            &String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()),
            20,
        )
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
