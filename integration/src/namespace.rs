//! Network namespaces: each is a machine of its own as far as networking goes.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::error::{Context, Error, Result};
use crate::process;

/// A network namespace with a name, as `ip netns` knows them. It goes when this value does.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    handle: File,
}

impl Namespace {
    /// Makes a namespace whose only link is its loopback, up.
    ///
    /// # Errors
    /// There is one of this name, or no privilege to make one.
    pub fn new(name: &str) -> Result<Self> {
        process::output(Command::new("ip").args(["netns", "add", name]))?;
        let path = Path::new("/run/netns").join(name);
        let handle = File::open(&path).path("open", &path)?;
        let namespace = Self {
            name: name.to_owned(),
            handle,
        };
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// The name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `work` on a thread inside the namespace. Sockets that it opens and programs that it starts stay there.
    ///
    /// # Errors
    /// The namespace cannot be entered, or `work` failed.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let entered = thread::scope(|scope| {
            let inside = || {
                move_into_link_name_space(self.handle.as_fd(), Some(LinkNameSpaceType::Network))
                    .context(|| format!("enter the network namespace {}", self.name))?;
                work()
            };
            scope.spawn(inside).join()
        });
        entered.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Carries out commands of `ip`, one a line, without the word `ip`.
    ///
    /// # Errors
    /// One of them failed; those after it were not carried out.
    pub fn ip(&self, commands: &str) -> Result<()> {
        let mut command = Command::new("ip");
        command.args(["-netns", &self.name, "-batch", "-"]);
        process::output_of(&mut command, commands).map(drop)
    }

    /// Sets kernel parameters, one a line, as in `sysctl.conf`.
    ///
    /// # Errors
    /// There is no such parameter, or it does not take the value.
    pub fn sysctl(&self, settings: &str) -> Result<()> {
        self.enter(|| {
            for line in settings.lines().filter(|line| !line.trim().is_empty()) {
                let (name, value) = line
                    .split_once('=')
                    .ok_or_else(|| Error::Unavailable(format!("sysctl without a value: {line}")))?;
                let path = Path::new("/proc/sys").join(name.trim().replace('.', "/"));
                let mut file = File::options().write(true).open(&path).path("open", &path)?;
                file.write_all(value.trim().as_bytes()).path("write", &path)?;
            }
            Ok(())
        })
    }

    /// Runs a program to its end and gives its standard output.
    ///
    /// # Errors
    /// It cannot be started, or it failed.
    pub fn output(&self, program: &str, arguments: &[&str]) -> Result<String> {
        self.enter(|| process::output(Command::new(program).args(arguments)))
    }

    /// Runs a shell script to its end and gives its standard output.
    ///
    /// # Errors
    /// Its last command failed.
    pub fn shell(&self, script: &str) -> Result<String> {
        self.output("sh", &["-c", script])
    }

    /// Runs a program on this process's terminal, to its end.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn interact(&self, command: &mut Command) -> Result<()> {
        self.enter(|| {
            let status = command.status();
            status.context(|| "start a shell".into()).map(drop)
        })
    }

    /// Starts a program with nothing on its standard input.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn spawn(&self, command: &mut Command) -> Result<Child> {
        self.enter(|| {
            let name = command.get_program().to_string_lossy().into_owned();
            command
                .stdin(Stdio::null())
                .spawn()
                .context(|| format!("start {name}"))
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // Somebody at the shell may have deleted it.
        let _ = process::output(Command::new("ip").args(["netns", "delete", &self.name]));
    }
}
