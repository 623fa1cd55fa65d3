//! What `--version` says.

use std::env::consts::{ARCH, OS};

use serde_json::Value;

use crate::flags::Flags;

/// The release of Kubernetes whose kube-proxy this stands in for.
pub(crate) const KUBERNETES: &str = "v1.36.3";

/// The text that `--version` asks for; `None` where it asks for nothing. The first line is what tools read.
pub(crate) fn asked_for(flags: &Flags) -> Option<String> {
    let ours = env!("CARGO_PKG_VERSION");
    match flags.value("version")? {
        Value::Bool(true) => Some(format!("Kubernetes {KUBERNETES}\n")),
        Value::String(_) => Some(format!(
            "Kubernetes {KUBERNETES}\nkube-proxy for IPVS {ours}, {OS}/{ARCH}\n"
        )),
        _ => None,
    }
}
