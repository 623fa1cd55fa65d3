//! Kubernetes' feature gates.

use std::collections::BTreeMap;

/// The gates, each as it is decided.
#[allow(dead_code, reason = "read by the source, soon")]
#[derive(Clone, Debug, Default)]
pub(crate) struct FeatureGates(BTreeMap<String, bool>);

#[allow(dead_code, reason = "read by the source, soon")]
impl FeatureGates {
    /// Decides the gates as the configuration says.
    pub(crate) fn new(wanted: &BTreeMap<String, bool>) -> Result<Self, Vec<String>> {
        Ok(Self(wanted.clone()))
    }

    /// Whether `externalIPs` of Services are programmed.
    pub(crate) fn external_ips(&self) -> bool {
        self.0.get("AllowServiceExternalIPs").copied().unwrap_or(true)
    }
}
