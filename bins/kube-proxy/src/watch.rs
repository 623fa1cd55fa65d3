//! Watching files through the directory that they are in.
//!
//! So a file is noticed however it changes: written, renamed over, removed and made anew, or by the swap of a symbolic
//! link, as in a mounted ConfigMap.

use std::{io, os::fd::OwnedFd, path::Path, time::Duration};

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::{io::unix::AsyncFd, time};
use tracing::warn;

/// How long after a first notification one should look: editors and deployments take several steps.
pub(crate) const SETTLE: Duration = Duration::from_millis(50);
/// How often one should look without a notification: a link's target may change elsewhere.
pub(crate) const RESCAN: Duration = Duration::from_secs(5);

/// Notices that something has happened in a directory, by inotify where the kernel lets us.
pub(crate) struct Watch {
    inotify: Option<AsyncFd<OwnedFd>>,
    descriptor: Option<i32>,
}

impl Watch {
    pub(crate) fn new() -> Self {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)
            .map_err(io::Error::from)
            // SAFETY: an `OwnedFd` stands for one open descriptor as long as it lives.
            .and_then(|inotify| Ok(unsafe { AsyncFd::register(inotify) }?))
            .inspect_err(|error| {
                warn!(
                    "no inotify, so changes are seen every {} s only: {error}",
                    RESCAN.as_secs()
                )
            });
        Self {
            inotify: inotify.ok(),
            descriptor: None,
        }
    }

    /// Watches the directory that is at `path` now, and no other.
    pub(crate) fn set(&mut self, path: &Path) {
        let Some(inotify) = &self.inotify else { return };
        let events = WatchFlags::ATTRIB
            | WatchFlags::CLOSE_WRITE
            | WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE
            | WatchFlags::MOVE_SELF
            | WatchFlags::ONLYDIR;
        let descriptor = inotify::add_watch(inotify, path, events).ok();
        if let Some(old) = self.descriptor.filter(|old| Some(*old) != descriptor) {
            // Fails if the kernel dropped the watch with the directory.
            _ = inotify::remove_watch(inotify, old);
        }
        self.descriptor = descriptor;
    }

    /// Waits until something has happened and has had the time to settle, or until it is time to look anyway.
    pub(crate) async fn changed(&self) {
        let Some(inotify) = &self.inotify else {
            return time::sleep(RESCAN).await;
        };
        if let Ok(Ok(mut ready)) = time::timeout(RESCAN, inotify.readable()).await {
            time::sleep(SETTLE).await;
            // What has happened where does not matter: the files tell.
            let mut events = [0; 4096];
            while rustix::io::read(inotify, &mut events).is_ok_and(|length| length > 0) {}
            ready.clear_ready();
        }
    }
}
