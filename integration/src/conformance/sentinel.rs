//! A Service that tells how far a proxier has got.
//!
//! An API server delivers the changes of one kind of objects in their order. So whoever has programmed the last change
//! of a Service and of its EndpointSlice has been told of all changes before.

use kube::api::DynamicObject;
use serde_json::json;

use crate::api::Client;
use crate::error::{Context, Result};

/// Its address, which no scenario uses.
pub(super) const ADDRESS: &str = "10.96.255.250";

/// The first port of its Service.
const PORTS: u16 = 1000;

/// Where its one endpoint is: nowhere.
const ENDPOINT: &str = "10.244.9.9";

/// By what it is known in the kernel's state.
pub(super) const PARTS: [&str; 2] = [ADDRESS, ENDPOINT];

/// The Service and its slice. They change with each [`advance`](Self::advance).
#[derive(Debug, Default)]
pub(super) struct Sentinel {
    changes: u16,
}

impl Sentinel {
    /// Changes both, behind all that was applied so far.
    pub(super) fn advance(&mut self, client: &Client) -> Result<()> {
        self.changes += 1;
        let (port, name) = (self.port(), format!("n{}", self.changes));
        let service = json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "sentinel"},
            "spec": {"clusterIP": ADDRESS, "ports": [{"name": name, "port": port}]},
        });
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {"name": "sentinel", "labels": {"kubernetes.io/service-name": "sentinel"}},
            "addressType": "IPv4",
            "ports": [{"name": name, "port": 80}],
            "endpoints": [{"addresses": [ENDPOINT]}],
        });
        let objects: std::result::Result<Vec<DynamicObject>, _> =
            [service, slice].into_iter().map(serde_json::from_value).collect();
        client.apply_objects(&objects.context(|| "make the sentinel".into())?)
    }

    fn port(&self) -> u16 {
        PORTS + self.changes
    }

    /// Whether it is in `/proc/net/ip_vs`, with its endpoint.
    pub(super) fn is_in(&self, ip_vs: &str) -> bool {
        let server = format!("TCP  0A60FFFA:{:04X} ", self.port());
        let mut lines = ip_vs.lines();
        lines.any(|line| line.starts_with(&server)) && lines.next().is_some_and(|line| line.contains("->"))
    }

    /// A command that succeeds if upstream's nftables mode has programmed it with its endpoint.
    pub(super) fn nft_query(&self) -> String {
        let port = self.port();
        format!("nft get element ip kube-proxy service-ips '{{ {ADDRESS} . tcp . {port} }}'")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_there_with_its_endpoint_only() {
        let sentinel = Sentinel { changes: 1 };
        let server = "TCP  0A60FFFA:03E9 rr  \n";
        let endpoint = "  -> 0AF40909:0050      Masq    1      0          0         \n";
        assert!(sentinel.is_in(&format!("TCP  0A600001:01BB rr  \n{server}{endpoint}")));
        assert!(!sentinel.is_in(&format!("{endpoint}{server}")));
        assert!(!Sentinel { changes: 2 }.is_in(&format!("{server}{endpoint}")));
        assert!(sentinel.nft_query().ends_with("'{ 10.96.255.250 . tcp . 1001 }'"));
    }
}
