//! What the proxier reports of its work, told to those who ask: as health, metrics, events and answers to load
//! balancers.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use proxier::{
    model::ObjectName,
    report::{Occasion, Problem, Report, ServiceStatus, Sync},
};
use tokio::{
    sync::mpsc::{UnboundedReceiver, UnboundedSender},
    time::Instant,
};

use crate::{
    events::{Event, Events},
    health::Health,
    http::service_health::ServiceHealth,
    metrics::Metrics,
};

/// Takes note of the proxier's health on its own thread, and sends its reports on to [`Reports`].
///
/// Health has to know of a change before the kernel is at work on it, and may hang; but a thread that wakes up for that
/// would have its turn before the kernel.
pub(crate) fn observer(
    health: Arc<Health>,
    metrics: Arc<Metrics>,
    reports: UnboundedSender<Report>,
) -> impl FnMut(Report) + Send + 'static {
    let mut families = Vec::new();
    move |report| {
        match &report {
            Report::Queued { at } => {
                health.note_behind((*at).into());
                return metrics.note_queued(&families);
            }
            Report::Sync(sync) => {
                health.set_families(&sync.families);
                families.clone_from(&sync.families);
                if sync.complete
                    && !sync.pending
                    && !matches!(sync.occasion, Occasion::Retry | Occasion::Drain)
                {
                    health.note_synced();
                }
            }
            // What is wrong in the kernel, if anything, goes on being wrong.
            Report::Unreadable(_) => health.note_behind(Instant::now()),
            _ => {}
        }
        // Fails if the servers have ended, and with them the program.
        _ = reports.send(report);
    }
}

/// Where reports go.
pub(crate) struct Reports {
    metrics: Arc<Metrics>,
    events: Events,
    service_health: ServiceHealth,
    /// Of Services that have some: the problems that there are events of.
    problems: HashMap<ObjectName, BTreeSet<Problem>>,
}

impl Reports {
    /// Tells everybody.
    pub(crate) fn new(metrics: Arc<Metrics>, events: Events, service_health: ServiceHealth) -> Self {
        Self {
            metrics,
            events,
            service_health,
            problems: HashMap::new(),
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
            Report::Sync(sync) => self.take_sync(&sync),
            Report::Service(service, status) => self.take_service(service, status),
            Report::Conntrack {
                family,
                duration,
                deleted,
            } => self.metrics.note_conntrack(family, duration, deleted),
            Report::Carried(ports) => self.metrics.set_carried(&ports),
            Report::ForeignDrops(drops) => self.metrics.set_foreign_drops(drops.len()),
            Report::Queued { .. } | Report::Unreadable(_) | Report::Failing { .. } | Report::Recovered(_) => {
            }
        }
    }

    fn take_sync(&mut self, sync: &Sync) {
        self.metrics.note_sync(sync);
        self.service_health.set_addresses(&sync.node_port_addresses);
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::{sync::mpsc::unbounded_channel, time};

    use super::*;
    use crate::metrics::tests::sync;

    const PERIOD: Duration = Duration::from_secs(30);

    #[tokio::test(start_paused = true)]
    async fn health_knows_at_once_and_the_rest_is_sent_on() {
        let health = Arc::new(Health::new(PERIOD));
        let (sender, mut sent) = unbounded_channel();
        let mut observe = observer(health.clone(), Arc::new(Metrics::new().unwrap()), sender);
        let queued = || Report::Queued {
            at: Instant::now().into_std(),
        };
        observe(queued());
        assert!(sent.is_empty());

        for (report, healthy) in [
            (sync(Occasion::Change, true), false),
            (sync(Occasion::Change, false), true),
        ] {
            observe(Report::Sync(report));
            assert_eq!(health.is_healthy(), healthy);
            assert!(matches!(sent.try_recv(), Ok(Report::Sync(_))));
        }
        observe(queued());
        time::advance(2 * PERIOD).await;
        assert!(!health.is_healthy());
        for (occasion, healthy) in [
            (Occasion::Retry, false),
            (Occasion::Drain, false),
            (Occasion::Verification, true),
        ] {
            observe(Report::Sync(sync(occasion, false)));
            assert_eq!(health.is_healthy(), healthy);
        }
    }
}
