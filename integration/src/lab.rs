//! Where the lab keeps what it fetched and made.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use crate::error::{Context, Result};

/// In a directory that is complete: what it was made of.
pub(crate) const STAMP: &str = "made-of";

/// The lab's directory, `target/lab` of this checkout.
#[derive(Debug, Clone)]
pub struct Lab {
    dir: PathBuf,
}

impl Lab {
    /// Opens the lab, making its directory when there is none.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn open() -> Result<Self> {
        let checkout = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let dir = checkout.join("target/lab");
        fs::create_dir_all(&dir).path("make", &dir)?;
        Ok(Self {
            dir: fs::canonicalize(&dir).path("find", &dir)?,
        })
    }

    /// A path inside the lab's directory.
    #[must_use]
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.join(name)
    }

    /// Holds the lab's set-up lock while `work` runs, so that two commands started at once do not set up the
    /// same thing twice.
    ///
    /// # Errors
    /// The lock cannot be taken, or `work` failed.
    pub fn locked<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let path = self.path("lock");
        let file = File::create(&path).path("make", &path)?;
        flock(&file, FlockOperation::LockExclusive).path("lock", &path)?;
        work()
    }

    /// A directory that is complete or absent, and made anew when what it is made of changes: `fill` works on a
    /// temporary one, which then takes its name.
    pub(crate) fn ensure(
        &self,
        name: &str,
        made_of: &str,
        fill: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let (done, partial) = (self.path(name), self.path(format!("{name}.partial")));
        if fs::read_to_string(done.join(STAMP)).is_ok_and(|stamp| stamp == made_of) {
            return Ok(done);
        }
        for stale in [&partial, &done] {
            if stale.exists() {
                fs::remove_dir_all(stale).path("remove", stale)?;
            }
        }
        fs::create_dir_all(&partial).path("make", &partial)?;
        fill(&partial)?;
        fs::write(partial.join(STAMP), made_of).path("finish", &partial)?;
        fs::rename(&partial, &done).path("finish", &done)?;
        Ok(done)
    }
}
