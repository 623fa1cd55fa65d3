//! Whether this node forwards Services as it should: what load balancers and kubelets ask for.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use ipvs::Family;
use jiff::Timestamp;
use serde::Serialize;
use tokio::time::Instant;

/// How the proxier and the node are doing. Threads share it.
#[derive(Debug)]
pub(crate) struct Health {
    /// How long a change may take to be programmed.
    patience: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    families: Vec<Family>,
    /// Since when there is something that is not programmed.
    behind_since: Option<Instant>,
    /// When all was programmed last.
    synced_at: Option<Timestamp>,
    node_is_eligible: bool,
}

/// What is answered to whoever asks.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Report {
    last_updated: String,
    current_time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) node_eligible: Option<bool>,
    pub(crate) healthy: bool,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    status: BTreeMap<&'static str, FamilyReport>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct FamilyReport {
    last_updated: String,
    healthy: bool,
}

impl Health {
    /// Not healthy yet (Q21, Q51). Later a change that is not programmed within two of the proxier's sync periods
    /// makes it so again.
    pub(crate) fn new(sync_period: Duration) -> Self {
        Self {
            patience: 2 * sync_period,
            state: Mutex::default(),
        }
    }

    /// The proxier runs, for these address families.
    pub(crate) fn set_families(&self, families: &[Family]) {
        self.state().families = families.to_vec();
    }

    /// Since then there is something to be programmed.
    pub(crate) fn note_behind(&self, since: Instant) {
        self.state().behind_since.get_or_insert(since);
    }

    /// All is programmed.
    pub(crate) fn note_synced(&self) {
        let mut state = self.state();
        state.behind_since = None;
        state.synced_at = Some(Timestamp::now());
    }

    /// Whether the Node object is there, and says that the node stays.
    pub(crate) fn set_node_eligible(&self, eligible: bool) {
        self.state().node_is_eligible = eligible;
    }

    /// Whether Services are programmed as they should be.
    pub(crate) fn is_healthy(&self) -> bool {
        self.state().is_healthy(self.patience)
    }

    /// The answer, with the node's eligibility for new connections or without.
    pub(crate) fn report(&self, with_node: bool) -> Report {
        let state = self.state();
        let healthy = state.is_healthy(self.patience);
        let now = Timestamp::now();
        let node_eligible = with_node.then_some(state.node_is_eligible);
        // To clients, what is well is up to date; upstream's zero time says "never".
        let last_updated = match state.synced_at {
            _ if healthy && node_eligible != Some(false) => now.to_string(),
            Some(at) => at.to_string(),
            None => "0001-01-01T00:00:00Z".to_owned(),
        };
        let status = state.families.iter().map(|family| {
            let report = FamilyReport {
                last_updated: last_updated.clone(),
                healthy,
            };
            (name(*family), report)
        });
        Report {
            current_time: now.to_string(),
            node_eligible,
            healthy,
            status: status.collect(),
            last_updated,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn is_healthy(&self, patience: Duration) -> bool {
        self.synced_at.is_some() && self.behind_since.is_none_or(|since| since.elapsed() < patience)
    }
}

/// How Kubernetes calls a family.
pub(crate) fn name(family: Family) -> &'static str {
    match family {
        Family::Inet => "IPv4",
        Family::Inet6 => "IPv6",
    }
}

impl Report {
    /// Whether new connections should come here.
    pub(crate) fn is_good(&self) -> bool {
        self.healthy && self.node_eligible != Some(false)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const PERIOD: Duration = Duration::from_secs(30);

    #[tokio::test(start_paused = true)]
    async fn q21_q51_nothing_is_healthy_before_the_first_sync() {
        let health = Health::new(PERIOD);
        assert!(!health.is_healthy());
        health.note_behind(Instant::now());
        assert!(!health.is_healthy());
        health.note_synced();
        assert!(health.is_healthy());
    }

    #[tokio::test(start_paused = true)]
    async fn e9_a_change_that_is_not_programmed_in_time_makes_it_unhealthy() {
        let health = Health::new(PERIOD);
        health.note_synced();
        tokio::time::advance(100 * PERIOD).await;
        assert!(health.is_healthy(), "nothing to do is well");
        health.note_behind(Instant::now());
        tokio::time::advance(2 * PERIOD - Duration::from_secs(1)).await;
        health.note_behind(Instant::now());
        assert!(health.is_healthy());
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(!health.is_healthy(), "the oldest change counts");
        health.note_synced();
        assert!(health.is_healthy());
    }

    #[test]
    fn the_report_has_upstream_s_keys() {
        let health = Health::new(PERIOD);
        let text = serde_json::to_string(&health.report(false)).unwrap();
        let start = "{\"lastUpdated\":\"0001-01-01T00:00:00Z\",\"currentTime\":\"20";
        assert!(
            text.starts_with(start) && text.ends_with("Z\",\"healthy\":false}"),
            "{text}"
        );

        health.set_families(&[Family::Inet, Family::Inet6]);
        health.note_synced();
        let report = serde_json::to_value(health.report(true)).unwrap();
        assert_eq!(report["nodeEligible"], json!(false));
        assert_eq!(report["healthy"], json!(true));
        assert_eq!(report["status"]["IPv6"]["healthy"], json!(true));
        assert!(!health.report(true).is_good());
        health.set_node_eligible(true);
        let report = health.report(true);
        assert!(report.is_good());
        assert_eq!(report.last_updated, report.current_time);
    }
}
