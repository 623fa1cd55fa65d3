//! Stories: given these objects, the kernel holds this, and this client reaches these pods and is seen as that.
//!
//! Each runs in a small cluster of its own with a kube-proxy that reads manifests. `ipvsadm`, `ip` and `nft` say
//! what the kernel holds.

#![allow(clippy::unwrap_used, reason = "a test says that it fails by panicking")]

use std::net::{IpAddr, SocketAddr};

use integration::cluster::{Cluster, eventually};
use integration::manifest::{self, Endpoint};
use integration::topology::Pod;
use integration::traffic::{Client, Connection, Failure, Protocol};
use integration::{Error, Result};

mod addresses;
mod affinity;
mod annotations;
mod bad_input;
mod cluster_ip;
mod conduct;
mod endpoints;
mod firewall;
mod foreign;
mod host_port;
mod http;
mod masquerade;
mod network;
mod node;
mod node_port;
mod policies;
mod repair;
mod restart;
mod takeover;
mod udp;

const TCP_8080: &[(Protocol, u16)] = &[(Protocol::Tcp, 8080)];

/// The address of the pods' bridge on the node: pods of the node see masqueraded clients as this.
const BRIDGE: [u8; 4] = [10, 244, 0, 1];

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

/// Waits until a question ends like this.
fn expect_failure(client: Client<'_>, protocol: Protocol, to: &str, failure: Failure) -> Result<()> {
    eventually(|| {
        let answers = client.ask(protocol, at(to), 1)?;
        Ok(if answers.failures == [failure] {
            Ok(())
        } else {
            Err(format!("{protocol} {to}: expected {failure}, got {answers}"))
        })
    })
}

/// Opens a connection that is to last, and says who is at its other end.
fn hold(client: Client<'_>, protocol: Protocol, to: &str) -> Result<(Connection, String)> {
    let failed = |failure| Error::Unavailable(format!("{protocol} {to}: {failure}"));
    let connection = client.connect(protocol, at(to))?.map_err(failed)?;
    let reply = connection.ask().map_err(failed)?;
    Ok((connection, reply.name))
}

/// A cluster with one TCP Service `web` at 10.96.0.10:80, and its two pods, one on each node.
fn web() -> Result<(Cluster, [Pod; 2])> {
    let cluster = Cluster::new()?;
    let pods = [
        cluster.node().pod("web-1", 11, TCP_8080)?,
        cluster.peer().pod("web-2", 12, TCP_8080)?,
    ];
    cluster.apply("web", &web_objects(&pods.each_ref().map(Endpoint::from)))?;
    Ok((cluster, pods))
}

/// The Service `web` with other endpoints.
fn web_objects(endpoints: &[Endpoint<'_>]) -> [String; 2] {
    [
        manifest::service("web", "clusterIP: 10.96.0.10, ports: [{port: 80}]"),
        manifest::slice("web-1", "web", "{port: 8080}", endpoints),
    ]
}

/// What `ipvsadm -Sn` says of [`web`].
const WEB_SERVERS: &str = "-A -t 10.96.0.10:80 -s rr
    -a -t 10.96.0.10:80 -r 10.244.0.11:8080 -m -w 1
    -a -t 10.96.0.10:80 -r 10.244.1.12:8080 -m -w 1";
