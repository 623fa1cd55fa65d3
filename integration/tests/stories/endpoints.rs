//! Which endpoints get traffic, and what becomes of the connections of those that do not any more.

use integration::manifest::{Endpoint, service, slice};
use integration::traffic::Failure;
use integration::traffic::Protocol::Tcp;
use integration::{Cluster, Result};

use crate::{BRIDGE, TCP_8080, WEB_SERVERS, expect, hold, web, web_objects};

const NOT_READY: &str = "ready: false, serving: false, terminating: false";
const TERMINATING: &str = "ready: false, serving: true, terminating: true";

#[test]
#[ignore = "needs root and ip_vs: cargo xtask test"]
fn e7_ready_endpoints_serve_and_terminating_ones_if_there_is_no_other() -> Result<()> {
    let (mut cluster, [web_1, web_2]) = web()?;
    let endpoint = Endpoint::from;
    let with = |conditions: &'static str| [endpoint(&web_1).but(conditions), endpoint(&web_2)];
    cluster.apply("web", &web_objects(&with(NOT_READY)))?;
    cluster.start(&[])?;
    let only_web_2 = "-A -t 10.96.0.10:80 -s rr\n-a -t 10.96.0.10:80 -r 10.244.1.12:8080 -m -w 1";
    cluster.expect_servers(only_web_2)?;
    cluster.apply("web", &web_objects(&with("")))?;
    cluster.expect_servers(WEB_SERVERS)?;
    // Nobody is connected to it, so there is nothing to wait for.
    cluster.apply("web", &web_objects(&with(TERMINATING)))?;
    cluster.expect_servers(only_web_2)?;
    cluster.apply(
        "web",
        &web_objects(&[endpoint(&web_1).but(TERMINATING), endpoint(&web_2).but(NOT_READY)]),
    )?;
    cluster.expect_servers("-A -t 10.96.0.10:80 -s rr\n-a -t 10.96.0.10:80 -r 10.244.0.11:8080 -m -w 1")
}

#[test]
#[ignore = "needs root and ip_vs: cargo xtask test"]
fn slices_are_merged_by_port_and_duplicates_collapse() -> Result<()> {
    let mut cluster = Cluster::new()?;
    let web_1 = cluster.node().pod("web-1", 11, TCP_8080)?;
    let web_2 = cluster.node().pod("web-2", 12, &[(Tcp, 9090)])?;
    let old = Endpoint::from(&web_1).but(TERMINATING);
    cluster.apply(
        "web",
        &[
            service(
                "web",
                "clusterIP: 10.96.0.10, ports: [{name: http, port: 80}, {name: admin, port: 90}]",
            ),
            slice("web-1", "web", "{name: http, port: 8080}", &[(&web_1).into()]),
            // A13: the same address once more.
            slice("web-2", "web", "{name: http, port: 8080}", &[old]),
            // A named target port may differ from pod to pod.
            slice(
                "web-3",
                "web",
                "{name: http, port: 9090}, {name: admin, port: 9091}",
                &[(&web_2).into()],
            ),
        ],
    )?;
    cluster.start(&[])?;
    cluster.expect_servers(
        "-A -t 10.96.0.10:80 -s rr
         -a -t 10.96.0.10:80 -r 10.244.0.11:8080 -m -w 1
         -a -t 10.96.0.10:80 -r 10.244.0.12:9090 -m -w 1
         -A -t 10.96.0.10:90 -s rr
         -a -t 10.96.0.10:90 -r 10.244.0.12:9091 -m -w 1",
    )?;
    expect(
        cluster.client(),
        Tcp,
        "10.96.0.10:80",
        &["web-1", "web-2"],
        BRIDGE,
    )
}

#[test]
#[ignore = "needs root and ip_vs: cargo xtask test"]
fn a2_a4_a_terminating_endpoint_keeps_its_connections_and_may_come_back() -> Result<()> {
    let (mut cluster, [web_1, web_2]) = web()?;
    cluster.start(&[])?;
    cluster.expect_servers(WEB_SERVERS)?;
    let visitor = cluster.node().pod("visitor", 20, &[])?;
    let (held, name) = hold(visitor.client(), Tcp, "10.96.0.10:80")?;
    let (leaving, staying) = if name == "web-1" {
        (&web_1, &web_2)
    } else {
        (&web_2, &web_1)
    };

    let terminating = [Endpoint::from(leaving).but(TERMINATING), staying.into()];
    cluster.apply("web", &web_objects(&terminating))?;
    cluster.expect_server(&format!("-a -t 10.96.0.10:80 -r {}:8080 -m -w 0", leaving.ipv4))?;
    assert_eq!(held.ask().map(|reply| reply.name).as_ref(), Ok(&leaving.name));
    expect(
        visitor.client(),
        Tcp,
        "10.96.0.10:80",
        &[&staying.name],
        visitor.ipv4,
    )?;

    cluster.apply("web", &web_objects(&[leaving.into(), staying.into()]))?;
    cluster.expect_servers(WEB_SERVERS)?;
    assert_eq!(held.ask().map(|reply| reply.name).as_ref(), Ok(&leaving.name));
    Ok(())
}

#[test]
#[ignore = "needs root and ip_vs: cargo xtask test"]
fn a9_connections_of_an_endpoint_that_is_gone_end_at_once() -> Result<()> {
    let (mut cluster, [web_1, web_2]) = web()?;
    cluster.start(&[])?;
    let visitor = cluster.node().pod("visitor", 20, &[])?;
    let (held, name) = hold(visitor.client(), Tcp, "10.96.0.10:80")?;
    let staying = if name == "web-1" { &web_2 } else { &web_1 };
    cluster.apply("web", &web_objects(&[staying.into()]))?;
    cluster.expect_servers(&format!(
        "-A -t 10.96.0.10:80 -s rr\n-a -t 10.96.0.10:80 -r {}:8080 -m -w 1",
        staying.ipv4
    ))?;
    // The first packet makes the kernel drop the connection, and the next gets no answer but a reset.
    let answers = [held.ask(), held.ask()];
    assert!(answers.contains(&Err(Failure::Reset)), "{answers:?}");
    Ok(())
}
