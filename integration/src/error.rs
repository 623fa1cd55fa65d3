//! What can go wrong in the lab, in words that say what to do.

use std::fmt;
use std::path::Path;
use std::time::Duration;

/// A result of the lab.
pub type Result<T> = std::result::Result<T, Error>;

/// A failure of the lab itself; the exit status of a command in a guest is none.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read or written, or a program could not be started.
    #[error("{action}: {source}")]
    Io {
        /// What was attempted, with the path.
        action: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A program that the lab ran on the host failed.
    #[error("`{command}` failed ({status})\n{output}")]
    Command {
        /// The command line.
        command: String,
        /// How it ended.
        status: std::process::ExitStatus,
        /// The end of what it said.
        output: String,
    },
    /// The API server refused something, or what was meant for it could not be read.
    #[error("{action}: {source}")]
    Api {
        /// What was attempted.
        action: String,
        /// The reason.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Something is needed that cannot be had here; the text says what would help.
    #[error("{0}")]
    Unavailable(String),
    /// The guest's kernel crashed.
    #[error("the guest's kernel failed: {fault}\nthe end of its log:\n{log}")]
    KernelFault {
        /// The line that announced it.
        fault: String,
        /// The last lines of the kernel's log.
        log: String,
    },
    /// The guest was still running when its time was up.
    #[error("the guest was stopped after {} s\nthe end of its kernel's log:\n{log}\nthe end of the command's output:\n{output}", .limit.as_secs())]
    Deadline {
        /// The time that it had, from power-on.
        limit: Duration,
        /// The last lines of the kernel's log.
        log: String,
        /// The last lines of the command's output.
        output: String,
    },
    /// The guest ended without an exit status.
    #[error(
        "the guest ended without saying how its command ended\nthe end of its kernel's log:\n{log}\n{qemu}"
    )]
    Vanished {
        /// The last lines of the kernel's log.
        log: String,
        /// What QEMU itself said.
        qemu: String,
    },
}

/// The message itself: it is what a test that ends with an error prints.
impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Gives an I/O error the action that failed.
pub(crate) trait Context<T> {
    fn context(self, action: impl FnOnce() -> String) -> Result<T>;
    fn path(self, verb: &str, path: &Path) -> Result<T>
    where
        Self: Sized,
    {
        self.context(|| format!("{verb} {}", path.display()))
    }
}

impl<T, E: Into<std::io::Error>> Context<T> for std::result::Result<T, E> {
    fn context(self, action: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| Error::Io {
            action: action(),
            source: source.into(),
        })
    }
}
