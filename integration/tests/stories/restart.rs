//! What comes and goes: Services that are deleted, and kube-proxy itself.

use std::fs;
use std::process::Command;

use integration::Result;
use integration::cluster::eventually;
use integration::manifest::{Endpoint, service, slice};
use integration::traffic::Protocol::Tcp;

use crate::{WEB_SERVERS, hold, web, web_objects};

#[test]
#[ignore = "needs root and ip_vs: cargo xtask test"]
fn e10_a_deleted_service_leaves_nothing() -> Result<()> {
    let (mut cluster, [web_1, _web_2]) = web()?;
    cluster.apply(
        "shop",
        &[
            service(
                "shop",
                "type: NodePort, clusterIP: 10.96.0.20, externalIPs: [198.51.100.7],
                 ports: [{port: 80, nodePort: 30080}]",
            ),
            slice("shop-1", "shop", "{port: 8080}", &[(&web_1).into()]),
        ],
    )?;
    cluster.start(&[])?;
    cluster.expect_addresses(&["10.96.0.10/32", "10.96.0.20/32", "198.51.100.7/32"])?;
    cluster.delete("shop")?;
    cluster.expect_servers(WEB_SERVERS)?;
    for trace in ["10.96.0.20", "198.51.100.7", "30080"] {
        cluster.expect_no_trace(trace)?;
    }
    cluster.delete("web")?;
    // Also nothing of its endpoints.
    for trace in ["10.96.0.10", "10.244.0.11", "10.244.1.12"] {
        cluster.expect_no_trace(trace)?;
    }
    cluster.expect_servers("")?;
    cluster.expect_addresses(&[])
}

/// All that kube-proxy programs, with what the kernel counts and numbers.
const STATE: &str = "ipvsadm -Ln --stats; ipvsadm -Sn; nft --handle list ruleset; ip address show kube-ipvs0";

#[test]
#[ignore = "needs root and ip_vs: cargo xtask test"]
fn i6_a_restart_with_unchanged_objects_writes_nothing() -> Result<()> {
    let (mut cluster, _pods) = web()?;
    cluster.start(&[])?;
    let visitor = cluster.node().pod("visitor", 20, &[])?;
    let (held, name) = hold(visitor.client(), Tcp, "10.96.0.10:80")?;
    // A virtual server that was made anew would have forgotten its connection. The kernel sums up every two seconds:
    // before, what it counts may still change by itself.
    cluster.node().namespace.shell("sleep 5")?;
    eventually(|| {
        let state = cluster.node().namespace.shell(STATE)?;
        let counted = state
            .lines()
            .any(|line| line.starts_with("TCP") && line.split_whitespace().nth(2) == Some("1"));
        Ok(if counted { Ok(()) } else { Err(state) })
    })?;
    let before = cluster.node().namespace.shell(STATE)?;
    cluster.take_kube_proxy()?.kill()?;

    let logs = ["link", "nft"].map(|name| cluster.scratch(name));
    let mut watching = Vec::new();
    for (monitor, log) in ["ip monitor link address dev kube-ipvs0", "nft monitor"]
        .into_iter()
        .zip(&logs)
    {
        let script = format!("exec {monitor} > {}", log.display());
        watching.push(
            cluster
                .node()
                .namespace
                .spawn(Command::new("sh").args(["-c", &script]))?,
        );
    }
    cluster.start(&[])?;
    eventually(|| {
        let after = cluster.node().namespace.shell(STATE)?;
        Ok(if after == before {
            Ok(())
        } else {
            Err(format!("there was\n{before}\nand there is\n{after}"))
        })
    })?;
    for mut monitor in watching {
        monitor.kill().and_then(|()| monitor.wait()).unwrap();
    }
    for log in logs {
        assert_eq!(fs::read_to_string(&log).unwrap(), "", "{}", log.display());
    }
    assert_eq!(held.ask().map(|reply| reply.name), Ok(name));
    Ok(())
}

#[test]
#[ignore = "needs root and ip_vs: cargo xtask test"]
fn a3_changes_while_nobody_looked_are_made_up_for() -> Result<()> {
    let (mut cluster, [web_1, web_2]) = web()?;
    cluster.start(&[])?;
    let visitor = cluster.node().pod("visitor", 20, &[])?;
    let (held, name) = hold(visitor.client(), Tcp, "10.96.0.10:80")?;
    let (kept, gone) = if name == "web-1" {
        (&web_1, &web_2)
    } else {
        (&web_2, &web_1)
    };
    cluster.take_kube_proxy()?.kill()?;
    // A3: a weight of 0 that nobody wants any more; and Services that came and went.
    cluster.node().namespace.shell(&format!(
        "ipvsadm -e -t 10.96.0.10:80 -r {}:8080 -m -w 0",
        kept.ipv4
    ))?;
    cluster.apply("web", &web_objects(&[Endpoint::from(kept)]))?;
    cluster.apply(
        "new",
        &[service("new", "clusterIP: 10.96.0.30, ports: [{port: 80}]")],
    )?;
    cluster.start(&[])?;
    cluster.expect_servers(&format!(
        "-A -t 10.96.0.10:80 -s rr
         -a -t 10.96.0.10:80 -r {}:8080 -m -w 1
         -A -t 10.96.0.30:80 -s rr",
        kept.ipv4
    ))?;
    cluster.expect_addresses(&["10.96.0.10/32", "10.96.0.30/32"])?;
    cluster.expect_no_trace(&gone.ipv4.to_string())?;
    assert_eq!(held.ask().map(|reply| reply.name), Ok(name));

    // And a Service that was deleted meanwhile.
    cluster.take_kube_proxy()?.kill()?;
    cluster.delete("web")?;
    cluster.start(&[])?;
    cluster.expect_no_trace("10.96.0.10")
}
