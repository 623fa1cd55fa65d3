//! Stories: given these objects, the kernel holds this, and this client reaches these pods and is seen as that.
//!
//! Each runs in a small cluster of its own with a kube-proxy that reads manifests. `ipvsadm`, `ip` and `nft` say
//! what the kernel holds.

#![allow(clippy::unwrap_used, reason = "a test says that it fails by panicking")]

use std::net::{IpAddr, SocketAddr};

use integration::cluster::{Cluster, eventually};
use integration::topology::Pod;
use integration::traffic::{Client, Protocol};
use integration::{Result, manifest};

mod cluster_ip;

const TCP_8080: &[(Protocol, u16)] = &[(Protocol::Tcp, 8080)];

/// Reads an address and a port.
fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// Waits until the pods of these names answer, and nobody else, and see this client address.
///
/// Each is asked for twice: a scheduler that takes turns shows them all.
fn expect(
    client: Client<'_>,
    protocol: Protocol,
    to: &str,
    names: &[&str],
    seen: impl Into<IpAddr>,
) -> Result<()> {
    let (to, seen) = (at(to), seen.into());
    eventually(|| {
        let answers = client.ask(protocol, to, 2 * names.len())?;
        let good = answers.names().as_deref() == Some(names) && answers.seen() == Some(seen);
        Ok(if good {
            Ok(())
        } else {
            Err(format!(
                "{protocol} {to}: expected {names:?} seeing {seen}, got {answers}"
            ))
        })
    })
}

/// A cluster with one TCP Service `web` at 10.96.0.10:80, and its two pods, one on each node.
fn web() -> Result<(Cluster, [Pod; 2])> {
    let cluster = Cluster::new()?;
    let pods = [
        cluster.node().pod("web-1", 11, TCP_8080)?,
        cluster.peer().pod("web-2", 12, TCP_8080)?,
    ];
    cluster.apply("web", &web_objects(&pods))?;
    Ok((cluster, pods))
}

fn web_objects(pods: &[Pod]) -> [String; 2] {
    let endpoints: Vec<_> = pods.iter().map(Into::into).collect();
    [
        manifest::service("web", "clusterIP: 10.96.0.10, ports: [{port: 80}]"),
        manifest::slice("web-1", "web", "{port: 8080}", &endpoints),
    ]
}
