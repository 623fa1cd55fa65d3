//! The lab: boots a stock distribution kernel in QEMU and runs programs in it as root.
//!
//! ```text
//! packages   apt: what the host lacks, what the guest is made of
//! userland   a root file system out of packages: ipvsadm, nft, ip, a shell
//! kernel     a kernel of a wanted series with the modules that networking needs
//! image      both as an initramfs, and a second archive with the files of one run
//! qemu       one boot: consoles, deadline, accelerator
//! guest      the run of one command: what callers use
//! host       this machine in the guest's place, where it has IPVS
//! go         upstream's programs, built from their modules
//! apiserver  a kube-apiserver with its etcd, on the host
//! api        its objects, applied and deleted as YAML
//! ```
//!
//! In the guest, or wherever else there is IPVS and privilege, the tests find:
//!
//! ```text
//! namespace  a machine as far as networking goes
//! topology   a cluster of such machines: a node, its pods, a second node, a client outside
//! traffic    servers that say who they are and whom they see, and clients that ask them
//! kube_proxy a running kube-proxy
//! uplink     the way from there to the host's API server
//! cluster    all of these with a directory of manifests: what a test starts from
//! conformance  scenarios that ours and upstream's kube-proxy are taken through, and what became of them
//! takeover   one proxier in the place of another, under load
//! manifest   short ways to write objects
//! bench      what a proxier costs
//! ```
//!
//! Everything that was fetched or made is kept under `target/lab`; once it is there, no network is needed.

mod clock;
mod cpio;
mod daemon;
mod error;
mod lab;
mod progress;

pub mod api;
pub mod apiserver;
pub mod bench;
pub mod cargo;
pub mod cluster;
pub mod conformance;
pub mod go;
pub mod guest;
pub mod host;
pub mod image;
pub mod job;
pub mod kernel;
pub mod kube_proxy;
pub mod manifest;
pub mod namespace;
pub mod packages;
pub mod process;
pub mod proxiers;
pub mod qemu;
pub mod takeover;
pub mod topology;
pub mod traffic;
pub mod uplink;
pub mod userland;

pub use apiserver::ApiServer;
pub use cluster::Cluster;
pub use error::{Error, Result};
pub use guest::Guest;
pub use lab::Lab;
pub use uplink::Uplink;
