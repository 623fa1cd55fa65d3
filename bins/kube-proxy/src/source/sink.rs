//! The way from a source to the proxier, on which the operator's word on the node counts.

use std::{net::IpAddr, sync::Arc, time::Duration};

use ipnet::IpNet;
use proxier::model::{Change, Node};
use tokio::{
    sync::{
        mpsc::{self, UnboundedReceiver, UnboundedSender},
        watch,
    },
    time,
};
use tracing::info;

use crate::metrics::Metrics;

/// How long the Node is waited for to get its pod CIDRs, as upstream does.
const POD_CIDR_PATIENCE: Duration = Duration::from_secs(5 * 60);

/// The Node has not got its pod CIDRs.
#[derive(Debug, thiserror::Error)]
#[error("--detect-local-mode NodeCIDR: the Node has no podCIDRs after {} s", POD_CIDR_PATIENCE.as_secs())]
pub(crate) struct NoPodCidrs;

/// Where a source sends what it learns.
#[derive(Clone)]
pub(crate) struct Sink {
    changes: UnboundedSender<Change>,
    heard: watch::Sender<Heard>,
    metrics: Arc<Metrics>,
    bind_address: Option<IpAddr>,
    external_ips: bool,
}

/// What has to be known of a source before there is a proxier.
#[derive(Default)]
struct Heard {
    /// There is a source: it has been connected to, or has said something.
    there: bool,
    /// The first that the Node had.
    pod_cidrs: Vec<IpNet>,
}

impl Sink {
    /// With a `bind_address` the node has that for its primary address, whatever its object says. `external_ips` says
    /// whether Services have the addresses of `spec.externalIPs`.
    pub(crate) fn new(
        metrics: Arc<Metrics>,
        bind_address: Option<IpAddr>,
        external_ips: bool,
    ) -> (Self, Beginning, UnboundedReceiver<Change>) {
        let (changes, receiver) = mpsc::unbounded_channel();
        let node = bind_address.map(|address| Node {
            addresses: vec![address],
            ..Node::default()
        });
        // The receiver is at hand.
        node.into_iter()
            .for_each(|node| _ = changes.send(Change::Node(node)));
        let (heard, beginning) = watch::channel(Heard::default());
        let sink = Self {
            changes,
            heard,
            metrics,
            bind_address,
            external_ips,
        };
        (sink, Beginning(beginning), receiver)
    }

    /// Hands a change on. Returns whether anybody listens.
    pub(crate) fn send(&self, mut change: Change) -> bool {
        match &mut change {
            Change::Service(service) if !self.external_ips => service.external_ips.clear(),
            Change::Node(node) => {
                if let Some(primary) = self.bind_address {
                    node.addresses
                        .retain(|address| address.is_ipv4() != primary.is_ipv4());
                    node.addresses.insert(0, primary);
                }
            }
            _ => {}
        }
        self.metrics.note_change(&change);
        // Once there is a proxier nobody waits for the beginning.
        if !self.heard.is_closed() {
            self.heard.send_modify(|heard| {
                heard.there = true;
                if let Change::Node(node) = &change
                    && heard.pod_cidrs.is_empty()
                {
                    heard.pod_cidrs.clone_from(&node.pod_cidrs);
                }
            });
        }
        self.changes.send(change).is_ok()
    }

    /// To be called when there is a source that will say something.
    pub(crate) fn witness(&self) -> impl Fn() + Clone + Send + Sync + use<> {
        let heard = self.heard.clone();
        move || heard.send_modify(|heard| heard.there = true)
    }

    /// Whether nobody listens any more.
    pub(crate) fn is_closed(&self) -> bool {
        self.changes.is_closed()
    }

    /// Waits until nobody listens any more.
    pub(crate) async fn closed(&self) {
        self.changes.closed().await;
    }
}

/// What a source says first is waited for. What it says meanwhile waits for the proxier.
pub(crate) struct Beginning(watch::Receiver<Heard>);

impl Beginning {
    /// Waits until the source is there, or has ended.
    pub(crate) async fn ready(&mut self) {
        _ = self.0.wait_for(|heard| heard.there).await;
    }

    /// Waits for the Node's pod CIDRs.
    pub(crate) async fn pod_cidrs(&mut self) -> Result<Vec<IpNet>, NoPodCidrs> {
        info!("waiting for the Node's podCIDRs");
        let has_some = self.0.wait_for(|heard| !heard.pod_cidrs.is_empty());
        let heard = time::timeout(POD_CIDR_PATIENCE, has_some).await;
        // There are none either when the source has ended.
        let heard = heard.ok().and_then(Result::ok).ok_or(NoPodCidrs)?;
        Ok(heard.pod_cidrs.clone())
    }
}

#[cfg(test)]
impl Sink {
    /// One that changes nothing.
    pub(crate) fn plain() -> (Self, UnboundedReceiver<Change>) {
        let (sink, _, changes) = Self::new(Arc::new(Metrics::new().unwrap()), None, true);
        (sink, changes)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::objects::{self, Object};

    fn sink(bind_address: Option<&str>, external_ips: bool) -> (Sink, Beginning, UnboundedReceiver<Change>) {
        let bind_address = bind_address.map(|address| address.parse().unwrap());
        Sink::new(Arc::new(Metrics::new().unwrap()), bind_address, external_ips)
    }

    fn node(addresses: &[&str], pod_cidrs: &[&str]) -> Change {
        Change::Node(Node {
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
            pod_cidrs: pod_cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect(),
            ..Node::default()
        })
    }

    #[tokio::test]
    async fn external_ips_may_be_left_out() {
        let service = json!({
            "metadata": {"namespace": "default", "name": "web"},
            "spec": {"clusterIP": "10.96.0.1", "externalIPs": ["192.0.2.7"], "ports": [{"port": 80}]},
        });
        let service: objects::Service = serde_json::from_value(service).unwrap();
        let service = service.convert().change.unwrap();
        for external_ips in [true, false] {
            let (sink, _, mut changes) = sink(None, external_ips);
            assert!(sink.send(service.clone()));
            let Some(Change::Service(sent)) = changes.recv().await else {
                panic!("a Service was sent")
            };
            assert_eq!(sent.external_ips.is_empty(), !external_ips);
        }
    }

    #[tokio::test]
    async fn a_bind_address_is_the_node_s_primary_one() {
        let (sink, _, mut changes) = sink(Some("192.0.2.9"), true);
        sink.send(node(&["192.0.2.1", "fd00::1", "192.0.2.2"], &[]));
        drop(sink);
        assert_eq!(changes.recv().await, Some(node(&["192.0.2.9"], &[])));
        assert_eq!(changes.recv().await, Some(node(&["192.0.2.9", "fd00::1"], &[])));
        assert_eq!(changes.recv().await, None);
    }

    #[tokio::test]
    async fn pod_cidrs_are_waited_for_and_nothing_is_lost() {
        let (sink, mut beginning, mut changes) = sink(None, true);
        let with_cidrs = node(&[], &["10.244.1.0/24"]);
        let sent = [node(&[], &[]), Change::Synced, with_cidrs, node(&[], &[])];
        for change in &sent {
            sink.send(change.clone());
        }
        beginning.ready().await;
        assert_eq!(
            beginning.pod_cidrs().await.unwrap(),
            ["10.244.1.0/24".parse().unwrap()]
        );
        for change in sent {
            assert_eq!(changes.recv().await, Some(change));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn pod_cidrs_that_do_not_come_are_an_error() {
        let (_sink, mut beginning, _changes) = sink(None, true);
        assert!(beginning.pod_cidrs().await.is_err());
    }

    #[tokio::test]
    async fn a_source_that_has_ended_is_not_waited_for() {
        let (sink, mut beginning, _changes) = sink(None, true);
        drop(sink);
        beginning.ready().await;
        assert!(beginning.pod_cidrs().await.is_err());
    }
}
