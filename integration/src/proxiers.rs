//! The proxiers that are compared, run alike.

use std::ffi::OsStr;
use std::fmt;
use std::path::Path;
use std::process::Command;

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::kube_proxy::KubeProxy;
use crate::namespace::Namespace;
use crate::topology::CLUSTER_CIDRS;
use crate::uplink::KUBECONFIG;

/// In a guest: upstream's program on the search path.
pub const UPSTREAM: &str = "upstream-kube-proxy";

/// A proxier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Proxier {
    /// Ours.
    Ours,
    /// Upstream's kube-proxy in mode ipvs.
    UpstreamIpvs,
    /// Upstream's kube-proxy in mode nftables.
    UpstreamNftables,
}

impl Proxier {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Ours, Self::UpstreamIpvs, Self::UpstreamNftables];

    /// Upstream's.
    pub const UPSTREAM: [Self; 2] = [Self::UpstreamIpvs, Self::UpstreamNftables];

    /// Starts it on a node, with the API server of [`KUBECONFIG`], the usual flags, and these. It finds programs on
    /// the search path `path`, or on this process's own.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(
        self,
        node: &Namespace,
        flags: &[String],
        path: Option<&OsStr>,
        log: &Path,
    ) -> Result<KubeProxy> {
        let program = if self == Self::Ours {
            "kube-proxy"
        } else {
            UPSTREAM
        };
        let mut command = Command::new(program);
        command.envs(path.map(|path| ("PATH", path)));
        command.args([
            "--kubeconfig",
            KUBECONFIG,
            "--hostname-override=node",
            "--cluster-cidr",
            CLUSTER_CIDRS,
        ]);
        // Of conntrack's limits, those of the first network namespace cannot be set from another.
        let limits = ["--conntrack-max-per-core=0", "--conntrack-min=0"];
        match self {
            Self::Ours => {}
            Self::UpstreamIpvs => {
                // A synchronisation that nothing asks for would be waited for, too, and takes seconds here.
                command
                    .args(["--proxy-mode=ipvs", "--ipvs-sync-period=1h"])
                    .args(limits);
            }
            Self::UpstreamNftables => {
                command.arg("--proxy-mode=nftables").args(limits);
            }
        }
        KubeProxy::start_command(node, command.args(flags), log)
    }
}

impl fmt::Display for Proxier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ours => "ours",
            Self::UpstreamIpvs => "upstream, ipvs",
            Self::UpstreamNftables => "upstream, nftables",
        })
    }
}
