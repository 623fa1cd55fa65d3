//! What `--version` says.

use std::env::consts::{ARCH, OS};

use crate::flags::Flags;

/// The release of Kubernetes whose kube-proxy this stands in for.
pub(crate) const KUBERNETES: &str = "v1.36.3";

/// The text that `--version` asks for; `None` where it asks for nothing.
pub(crate) fn asked_for(flags: &Flags) -> Option<String> {
    let ours = env!("CARGO_PKG_VERSION");
    match flags.text("version").as_str() {
        "raw" => Some(format!(
            "Kubernetes {KUBERNETES}\nkube-proxy for IPVS {ours} {OS}/{ARCH}\n"
        )),
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(format!("Kubernetes {KUBERNETES}\n")),
        _ => None,
    }
}
