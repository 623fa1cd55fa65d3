//! This machine in the guest's place, where its kernel has IPVS and the user is root.

use std::path::Path;
use std::process::Command;

use rustix::process::geteuid;

use crate::error::{Context, Result};
use crate::packages;

/// The tools that the guest has and that a host may lack, with their packages and their uses.
const TOOLS: &[(&str, &str, &str)] = &[
    ("ip", "iproute2", "to build the demonstration's network"),
    ("ipvsadm", "ipvsadm", "to show the virtual servers"),
    ("nft", "nftables", "to show the netfilter state"),
];

/// Whether the host can do what a guest does.
#[must_use]
pub fn has_ip_vs() -> bool {
    // Where it is neither loaded nor to be had, modprobe fails, and so does the look at the file.
    let load = || {
        let mut modprobe = Command::new("modprobe");
        modprobe.args(["--quiet", "ip_vs"]).status()
    };
    geteuid().is_root() && {
        let _ = load();
        Path::new("/proc/net/ip_vs").exists()
    }
}

/// A command that runs `program` with `kube_proxy` on its search path. Nothing that it does to the network is seen
/// outside.
///
/// # Errors
/// A tool is missing and cannot be installed here.
pub fn private(program: &Path, kube_proxy: &Path) -> Result<Command> {
    for (program, package, use_) in TOOLS {
        packages::require(program, package, use_)?;
    }
    // The names of network namespaces are files in /run/netns.
    let script = "mount -t tmpfs tmpfs /run && exec \"$@\"";
    let mut command = Command::new("unshare");
    command
        .args([
            "--mount",
            "--net",
            "--propagation",
            "private",
            "sh",
            "-c",
            script,
            "sh",
        ])
        .arg(program);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let ours = kube_proxy.parent().map(Path::to_owned);
    let dirs = ours.into_iter().chain(std::env::split_paths(&path));
    if let Ok(path) = std::env::join_paths(dirs) {
        command.env("PATH", path);
    }
    Ok(command)
}

/// Runs a command and gives its exit status; 1 when a signal ended it.
///
/// # Errors
/// It cannot be started.
pub fn status(command: &mut Command) -> Result<u8> {
    let status = command.status().context(|| "run unshare".into())?;
    Ok(status
        .code()
        .and_then(|code| u8::try_from(code).ok())
        .unwrap_or(1))
}
