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

/// The same of kube-router's, where there is one.
pub const KUBE_ROUTER: &str = "kube-router";

/// A proxier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Proxier {
    /// Ours.
    Ours,
    /// Upstream's kube-proxy in mode ipvs.
    UpstreamIpvs,
    /// Upstream's kube-proxy in mode nftables.
    UpstreamNftables,
    /// kube-router, as no more than a proxier.
    KubeRouter,
}

impl Proxier {
    /// Those that every lab has.
    pub const ALL: [Self; 3] = [Self::Ours, Self::UpstreamIpvs, Self::UpstreamNftables];

    /// Upstream's.
    pub const UPSTREAM: [Self; 2] = [Self::UpstreamIpvs, Self::UpstreamNftables];

    const fn program(self) -> &'static str {
        match self {
            Self::Ours => "kube-proxy",
            Self::UpstreamIpvs | Self::UpstreamNftables => UPSTREAM,
            Self::KubeRouter => KUBE_ROUTER,
        }
    }

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
        let mut command = Command::new(self.program());
        command.envs(path.map(|path| ("PATH", path)));
        command.args(["--kubeconfig", KUBECONFIG, "--hostname-override=node"]);
        if self != Self::KubeRouter {
            command.args(["--cluster-cidr", CLUSTER_CIDRS]);
        }
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
            Self::KubeRouter => {
                command.args([
                    "--run-service-proxy=true",
                    "--run-router=false",
                    "--run-firewall=false",
                    "--enable-cni=false",
                    "--health-port=0",
                    // It asks a cloud otherwise.
                    "--disable-source-dest-check=false",
                ]);
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
            Self::KubeRouter => "kube-router",
        })
    }
}
