//! The way from the source to the proxier, on which the operator's word on the node counts.

use std::{collections::VecDeque, net::IpAddr, time::Duration};

use ipnet::IpNet;
use proxier::model::{Change, Node};
use tokio::{sync::mpsc::UnboundedReceiver, time};
use tracing::info;

/// How long the Node is waited for to get its pod CIDRs, as upstream does.
const POD_CIDR_PATIENCE: Duration = Duration::from_secs(5 * 60);

/// Why the source's changes can be relayed no more.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("--detect-local-mode NodeCIDR: the Node has no podCIDRs after {} s", POD_CIDR_PATIENCE.as_secs())]
    NoPodCidrs,
}

/// Hands a source's changes on.
pub(crate) struct Relay {
    changes: UnboundedReceiver<Change>,
    bind_address: Option<IpAddr>,
    /// Whether Services have the addresses of `spec.externalIPs`.
    external_ips: bool,
    /// Received, but not yet asked for.
    held: VecDeque<Change>,
}

impl Relay {
    /// With a `bind_address` the node has that for its primary address, whatever its object says.
    pub(crate) fn new(changes: UnboundedReceiver<Change>, bind_address: Option<IpAddr>) -> Self {
        let node = bind_address.map(|address| Node {
            addresses: vec![address],
            ..Node::default()
        });
        Self {
            changes,
            bind_address,
            external_ips: true,
            held: node.map(Change::Node).into_iter().collect(),
        }
    }

    /// The same, with or without the addresses of Services' `spec.externalIPs`.
    pub(crate) fn with_external_ips(self, external_ips: bool) -> Self {
        Self { external_ips, ..self }
    }

    /// Waits until the source has something to say.
    pub(crate) async fn ready(&mut self) -> Result<(), Error> {
        let change = self.receive().await?;
        self.held.extend(change);
        Ok(())
    }

    /// Waits for the Node's pod CIDRs.
    pub(crate) async fn pod_cidrs(&mut self) -> Result<Vec<IpNet>, Error> {
        info!("waiting for the Node's podCIDRs");
        let waiting = time::timeout(POD_CIDR_PATIENCE, self.first_pod_cidrs());
        waiting.await.unwrap_or(Err(Error::NoPodCidrs))
    }

    async fn first_pod_cidrs(&mut self) -> Result<Vec<IpNet>, Error> {
        let mut looked_at = 0;
        loop {
            for change in self.held.range(looked_at..) {
                if let Change::Node(Node { pod_cidrs, .. }) = change
                    && !pod_cidrs.is_empty()
                {
                    return Ok(pod_cidrs.clone());
                }
            }
            looked_at = self.held.len();
            let change = self.receive().await?.ok_or(Error::NoPodCidrs)?;
            self.held.push_back(change);
        }
    }

    /// The next change; `None` when the source has ended.
    pub(crate) async fn next(&mut self) -> Result<Option<Change>, Error> {
        let mut change = match self.held.pop_front() {
            Some(change) => Some(change),
            None => self.receive().await?,
        };
        if let Some(Change::Service(service)) = &mut change
            && !self.external_ips
        {
            service.external_ips.clear();
        }
        Ok(change)
    }

    async fn receive(&mut self) -> Result<Option<Change>, Error> {
        let mut change = self.changes.recv().await;
        if let Some(Change::Node(node)) = &mut change
            && let Some(primary) = self.bind_address
        {
            node.addresses
                .retain(|address| address.is_ipv4() != primary.is_ipv4());
            node.addresses.insert(0, primary);
        }
        Ok(change)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tokio::sync::mpsc;

    use super::*;
    use crate::objects::{self, Object};

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
            let (sink, changes) = mpsc::unbounded_channel();
            let mut relay = Relay::new(changes, None).with_external_ips(external_ips);
            sink.send(service.clone()).unwrap();
            let Some(Change::Service(relayed)) = relay.next().await.unwrap() else {
                panic!("a Service was sent")
            };
            assert_eq!(relayed.external_ips.is_empty(), !external_ips);
        }
    }

    #[tokio::test]
    async fn a_bind_address_is_the_node_s_primary_one() {
        let (sink, changes) = mpsc::unbounded_channel();
        let mut relay = Relay::new(changes, Some("192.0.2.9".parse().unwrap()));
        sink.send(node(&["192.0.2.1", "fd00::1", "192.0.2.2"], &[]))
            .unwrap();
        drop(sink);
        assert_eq!(relay.next().await.unwrap(), Some(node(&["192.0.2.9"], &[])));
        assert_eq!(
            relay.next().await.unwrap(),
            Some(node(&["192.0.2.9", "fd00::1"], &[]))
        );
        assert_eq!(relay.next().await.unwrap(), None);
    }

    #[tokio::test]
    async fn pod_cidrs_are_waited_for_and_nothing_is_lost() {
        let (sink, changes) = mpsc::unbounded_channel();
        let mut relay = Relay::new(changes, None);
        let sent = [node(&[], &[]), Change::Synced, node(&[], &["10.244.1.0/24"])];
        sent.iter().for_each(|change| sink.send(change.clone()).unwrap());
        relay.ready().await.unwrap();
        assert_eq!(
            relay.pod_cidrs().await.unwrap(),
            ["10.244.1.0/24".parse().unwrap()]
        );
        for change in sent {
            assert_eq!(relay.next().await.unwrap(), Some(change));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn pod_cidrs_that_do_not_come_are_an_error() {
        let (_sink, changes) = mpsc::unbounded_channel();
        let mut relay = Relay::new(changes, None);
        assert!(matches!(relay.pod_cidrs().await, Err(Error::NoPodCidrs)));
    }
}
