//! The lab: boots a stock distribution kernel in QEMU and runs programs in it as root.
//!
//! ```text
//! packages   apt: what the host lacks, what the guest is made of
//! userland   a root file system out of packages: ipvsadm, nft, ip, a shell
//! kernel     a kernel of a wanted series with the modules that networking needs
//! image      both as an initramfs, and a second archive with the files of one run
//! qemu       one boot: consoles, deadline, accelerator
//! guest      the run of one command: what callers use
//! ```
//!
//! Everything that was fetched or made is kept under `target/lab`; once it is there, no network is needed.

mod cpio;
mod error;
mod lab;
mod process;
mod progress;

pub mod cargo;
pub mod guest;
pub mod image;
pub mod job;
pub mod kernel;
pub mod packages;
pub mod qemu;
pub mod userland;

pub use error::{Error, Result};
pub use guest::Guest;
pub use lab::Lab;
