//! Session affinity.

use integration::Result;
use integration::cluster::eventually;
use integration::manifest::{Endpoint, service, slice};
use integration::traffic::Protocol::Tcp;

use crate::{at, web};

#[test]
#[ignore = "needs root and ip_vs: cargo xtask test"]
fn a_client_comes_back_to_its_pod_until_affinity_ends() -> Result<()> {
    let (mut cluster, pods) = web()?;
    let objects = |affinity: &str| {
        [
            service(
                "web",
                &format!("clusterIP: 10.96.0.10, ports: [{{port: 80}}], {affinity}"),
            ),
            slice(
                "web-1",
                "web",
                "{port: 8080}",
                &pods.each_ref().map(Endpoint::from),
            ),
        ]
    };
    cluster.apply("web", &objects("sessionAffinity: ClientIP"))?;
    cluster.start(&[])?;
    // The API server's default of three hours holds where a manifest says nothing.
    cluster.expect_server("-A -t 10.96.0.10:80 -s rr -p 10800")?;
    let visitor = cluster.node().pod("visitor", 20, &[])?;
    let answers = visitor.client().ask(Tcp, at("10.96.0.10:80"), 6)?;
    assert_eq!(answers.names().map(|names| names.len()), Some(1), "{answers}");

    let counted = || {
        let stats = cluster
            .node()
            .namespace
            .shell("ipvsadm -Ln --stats -t 10.96.0.10:80 | awk '/^TCP/ {print $3}'")?;
        Ok(if stats == "6\n" {
            Ok(())
        } else {
            Err(format!("6 connections, the kernel says {stats}"))
        })
    };
    // The kernel sums up every two seconds.
    eventually(counted)?;

    // A6: edited in place.
    cluster.apply(
        "web",
        &objects("sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 60}}"),
    )?;
    cluster.expect_server("-A -t 10.96.0.10:80 -s rr -p 60")?;
    eventually(counted)?;

    cluster.apply("web", &objects("sessionAffinity: None"))?;
    cluster.expect_server("-A -t 10.96.0.10:80 -s rr")?;
    let other = cluster.node().pod("other", 21, &[])?;
    let answers = other.client().ask(Tcp, at("10.96.0.10:80"), 4)?;
    assert_eq!(answers.names().map(|names| names.len()), Some(2), "{answers}");
    Ok(())
}
