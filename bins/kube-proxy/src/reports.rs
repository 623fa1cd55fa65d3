//! What the proxier reports of its work, told to those who ask: as health, metrics, events and answers to load
//! balancers.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use ipvs::Family;
use proxier::{
    model::ObjectName,
    report::{Occasion, Problem, Report, ServiceStatus, Sync},
};
use tokio::sync::mpsc::UnboundedReceiver;

use crate::{
    events::{Event, Events},
    health::Health,
    http::service_health::ServiceHealth,
    metrics::Metrics,
};

/// Where reports go.
pub(crate) struct Reports {
    health: Arc<Health>,
    metrics: Arc<Metrics>,
    events: Events,
    service_health: ServiceHealth,
    /// Of Services that have some: the problems that there are events of.
    problems: HashMap<ObjectName, BTreeSet<Problem>>,
    families: Vec<Family>,
}

impl Reports {
    /// Tells everybody.
    pub(crate) fn new(
        health: Arc<Health>,
        metrics: Arc<Metrics>,
        events: Events,
        service_health: ServiceHealth,
    ) -> Self {
        Self {
            health,
            metrics,
            events,
            service_health,
            problems: HashMap::new(),
            families: Vec::new(),
        }
    }

    /// Takes reports until the proxier has ended.
    pub(crate) async fn take(mut self, mut reports: UnboundedReceiver<Report>) {
        while let Some(report) = reports.recv().await {
            self.take_one(report);
        }
    }

    fn take_one(&mut self, report: Report) {
        match report {
            Report::Queued { at } => {
                self.health.note_behind(at.into());
                self.metrics.note_queued(&self.families);
            }
            Report::Sync(sync) => self.take_sync(&sync),
            // What is wrong in the kernel, if anything, goes on being wrong.
            Report::Unreadable(_) => self.health.note_behind(tokio::time::Instant::now()),
            Report::Service(service, status) => self.take_service(service, status),
            Report::Failing { .. } | Report::Recovered(_) => {}
            Report::Conntrack {
                family,
                duration,
                deleted,
            } => self.metrics.note_conntrack(family, duration, deleted),
            Report::Carried(ports) => self.metrics.set_carried(&ports),
            Report::ForeignDrops(drops) => self.metrics.set_foreign_drops(drops.len()),
        }
    }

    fn take_sync(&mut self, sync: &Sync) {
        self.metrics.note_sync(sync);
        self.service_health.set_addresses(&sync.node_port_addresses);
        self.health.set_families(&sync.families);
        self.families.clone_from(&sync.families);
        if sync.complete && !sync.pending && !matches!(sync.occasion, Occasion::Retry | Occasion::Drain) {
            self.health.note_synced();
        }
    }

    fn take_service(&mut self, service: ObjectName, status: ServiceStatus) {
        self.metrics
            .set_without_local_endpoints(&service, status.without_local_endpoints);
        let known = self.problems.remove(&service).unwrap_or_default();
        for problem in status.problems.difference(&known) {
            self.events.send(Event::problem(&service, problem));
        }
        if !status.problems.is_empty() {
            self.problems.insert(service.clone(), status.problems);
        }
        self.service_health.set_check(service, status.health_check);
    }
}
