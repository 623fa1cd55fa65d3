//! Traffic policies and source ranges: who reaches which pods, and is seen as whom.

use integration::manifest::{service, slice, slice_v6};
use integration::topology::Pod;
use integration::traffic::Client;
use integration::traffic::Protocol::Tcp;
use integration::{Cluster, Result};

use crate::{at, eventually, hold, web};

/// Node ports on this one of the node's addresses.
const NODE_PORTS: &[&str] = &["--nodeport-addresses=192.168.10.0/24"];

/// The addresses of the Service.
const BALANCER: &str = "203.0.113.8:80";
const BALANCER_V6: &str = "[2001:db8::8]:80";
const EXTERNAL: &str = "203.0.113.7:80";
const NODE_PORT: &str = "192.168.10.2:30080";

/// Makes `web` a load balancer's Service of both families with these further fields, and these pods.
fn apply(cluster: &Cluster, fields: &str, pods: &[&Pod]) -> Result<()> {
    let endpoints: Vec<_> = pods.iter().copied().map(Into::into).collect();
    let spec = format!(
        "type: LoadBalancer, clusterIP: 10.96.0.10, clusterIPs: [10.96.0.10, \"fd00:10:96::10\"],
         externalIPs: [203.0.113.7], ports: [{{port: 80, nodePort: 30080}}], {fields}"
    );
    cluster.apply(
        "web",
        &[
            service("web", &spec)
                + "status: {loadBalancer: {ingress: [{ip: 203.0.113.8}, {ip: \"2001:db8::8\"}]}}\n",
            slice("web-4", "web", "{port: 8080}", &endpoints),
            slice_v6("web-6", "web", "{port: 8080}", &endpoints),
        ],
    )
}

/// Waits until this comes of asking so many times over TCP as answers are told in `expected`.
fn expect(client: Client<'_>, to: &str, count: usize, expected: &str) -> Result<()> {
    eventually(|| {
        let answers = client.ask(Tcp, at(to), count)?.to_string();
        Ok(if answers == expected {
            Ok(())
        } else {
            Err(format!("{to}: expected \"{expected}\", got \"{answers}\""))
        })
    })
}

/// What `ipvsadm -Sn` says, sorted, without the numbers of firewall marks, which mean nothing.
fn servers(cluster: &Cluster) -> Result<String> {
    let servers = cluster.servers()?;
    let mut lines: Vec<_> = servers.lines().map(without_mark).collect();
    lines.sort();
    Ok(lines.join("\n"))
}

fn without_mark(line: &str) -> String {
    let mut words: Vec<_> = line.split(' ').collect();
    if let [_, "-f", mark, ..] = words.as_mut_slice() {
        *mark = "MARK";
    }
    words.join(" ")
}

#[test]
#[ignore = "needs root and ip_vs: cargo xtask test"]
fn e1_local_is_for_clients_outside_and_those_in_the_cluster_reach_every_pod() -> Result<()> {
    let (mut cluster, [here, there]) = web()?;
    let pod = cluster.node().pod("pod", 20, &[])?;
    apply(&cluster, "externalTrafficPolicy: Local", &[&here, &there])?;
    cluster.start(NODE_PORTS)?;
    let (outside, node) = (cluster.client(), cluster.node().client());
    for to in [BALANCER, EXTERNAL, NODE_PORT] {
        expect(outside, to, 4, "4 web-1, seen as 192.168.10.100")?;
        expect(pod.client(), to, 4, "2 web-1, 2 web-2, seen as 10.244.0.20")?;
    }
    for to in [BALANCER, EXTERNAL] {
        // E4: not as the address that it asks, which is the node's own, too.
        expect(
            node,
            to,
            4,
            "2 web-1, 2 web-2, seen as 10.244.0.1 and 192.168.10.2",
        )?;
    }
    expect(node, NODE_PORT, 4, "2 web-1, 2 web-2, seen as 192.168.10.2")?;
    expect(outside, BALANCER_V6, 4, "4 web-1, seen as fd01::100")?;
    expect(
        pod.client(),
        BALANCER_V6,
        4,
        "2 web-1, 2 web-2, seen as fd00:10:244::20",
    )?;
    expect(
        node,
        BALANCER_V6,
        4,
        "2 web-1, 2 web-2, seen as fd00:10:244::1 and fd01::2",
    )?;

    let servers = servers(&cluster)?;
    let of = |key: &str| -> Vec<_> { servers.lines().filter(|line| line.contains(key)).collect() };
    for to in [BALANCER, EXTERNAL, NODE_PORT] {
        let (server, real) = (
            format!("-A -t {to} -s rr"),
            format!("-a -t {to} -r 10.244.0.11:8080 -m -w 1"),
        );
        assert_eq!(of(&format!(" {to} ")), [server, real], "{servers}");
    }
    let marked = |server: &str| of(&format!("-a -f MARK -r {server}:8080 -m -w 1")).len();
    assert_eq!(
        [marked("10.244.0.11"), marked("10.244.1.12")],
        [3, 3],
        "{servers}"
    );
    Ok(())
}

#[test]
#[ignore = "needs root and ip_vs: cargo xtask test"]
fn a2_connections_of_clients_in_the_cluster_outlive_the_policy_local() -> Result<()> {
    let (mut cluster, [here, there]) = web()?;
    let pod = cluster.node().pod("pod", 20, &[])?;
    apply(&cluster, "externalTrafficPolicy: Local", &[&here, &there])?;
    cluster.start(NODE_PORTS)?;
    expect(pod.client(), BALANCER, 2, "1 web-1, 1 web-2, seen as 10.244.0.20")?;
    let held = [
        hold(pod.client(), Tcp, BALANCER)?,
        hold(pod.client(), Tcp, BALANCER)?,
    ];

    apply(&cluster, "externalTrafficPolicy: Cluster", &[&here, &there])?;
    cluster.expect_server("-a -t 203.0.113.8:80 -r 10.244.1.12:8080 -m -w 1")?;
    expect(
        pod.client(),
        BALANCER,
        2,
        "1 web-1, 1 web-2, seen as 10.244.0.1 and 192.168.10.2",
    )?;
    for (connection, name) in &held {
        assert_eq!(connection.ask().map(|reply| reply.name).as_ref(), Ok(name));
    }
    // What nobody is connected through goes at once.
    eventually(|| {
        let servers = servers(&cluster)?;
        let marked = servers.lines().filter(|line| *line == "-A -f MARK -s rr").count();
        Ok(if marked == 1 { Ok(()) } else { Err(servers) })
    })
}

#[test]
#[ignore = "needs root and ip_vs: cargo xtask test"]
fn q13_local_without_a_pod_here_drops_clients_outside_only() -> Result<()> {
    let (mut cluster, [_here, there]) = web()?;
    let pod = cluster.node().pod("pod", 20, &[])?;
    apply(&cluster, "externalTrafficPolicy: Local", &[&there])?;
    cluster.start(NODE_PORTS)?;
    let (outside, node) = (cluster.client(), cluster.node().client());
    for to in [BALANCER, EXTERNAL, NODE_PORT] {
        expect(pod.client(), to, 2, "2 web-2, seen as 10.244.0.20")?;
        expect(node, to, 2, "2 web-2, seen as 192.168.10.2")?;
        expect(outside, to, 1, "1 timed out")?;
    }
    expect(pod.client(), BALANCER_V6, 2, "2 web-2, seen as fd00:10:244::20")?;
    expect(node, BALANCER_V6, 2, "2 web-2, seen as fd01::2")?;
    expect(outside, BALANCER_V6, 1, "1 timed out")?;
    // Its ClusterIP has the policy Cluster as ever.
    expect(outside, "10.96.0.10:80", 2, "2 web-2, seen as 192.168.10.2")
}

#[test]
#[ignore = "needs root and ip_vs: cargo xtask test"]
fn q13_internal_local_is_for_everybody() -> Result<()> {
    let (mut cluster, [here, there]) = web()?;
    let pod = cluster.node().pod("pod", 20, &[])?;
    apply(&cluster, "internalTrafficPolicy: Local", &[&here, &there])?;
    cluster.start(NODE_PORTS)?;
    let (outside, node) = (cluster.client(), cluster.node().client());
    let cluster_ips = ["10.96.0.10:80", "[fd00:10:96::10]:80"];
    for (to, pod_is, node_is) in [
        (cluster_ips[0], "10.244.0.20", "10.244.0.1"),
        (cluster_ips[1], "fd00:10:244::20", "fd00:10:244::1"),
    ] {
        expect(pod.client(), to, 4, &format!("4 web-1, seen as {pod_is}"))?;
        expect(node, to, 4, &format!("4 web-1, seen as {node_is}"))?;
        expect(outside, to, 4, &format!("4 web-1, seen as {node_is}"))?;
    }
    // The other addresses have a policy of their own.
    expect(
        outside,
        BALANCER,
        4,
        "2 web-1, 2 web-2, seen as 10.244.0.1 and 192.168.10.2",
    )?;

    apply(&cluster, "internalTrafficPolicy: Local", &[&there])?;
    for to in cluster_ips {
        for client in [pod.client(), node, outside] {
            expect(client, to, 2, "2 refused")?;
        }
    }
    expect(outside, BALANCER, 2, "2 web-2, seen as 192.168.10.2")
}

#[test]
#[ignore = "needs root and ip_vs: cargo xtask test"]
fn e1_a_policy_that_changes_and_changes_back_leaves_nothing_behind() -> Result<()> {
    let (mut cluster, [here, there]) = web()?;
    let pods = [&here, &there];
    let pod = cluster.node().pod("pod", 20, &[])?;
    apply(&cluster, "externalTrafficPolicy: Cluster", &pods)?;
    cluster.start(NODE_PORTS)?;
    let (servers, words) = (cluster.servers()?, words(&cluster.ruleset()?));
    // Turns are taken: one for each pod.
    let held = [
        hold(cluster.client(), Tcp, BALANCER)?,
        hold(cluster.client(), Tcp, BALANCER)?,
    ];
    assert_ne!(held[0].1, held[1].1);

    apply(&cluster, "externalTrafficPolicy: Local", &pods)?;
    expect(cluster.client(), BALANCER, 2, "2 web-1, seen as 192.168.10.100")?;
    expect(pod.client(), BALANCER, 4, "2 web-1, 2 web-2, seen as 10.244.0.20")?;
    // A2: the pod elsewhere drains.
    for (connection, name) in &held {
        assert_eq!(&connection.ask().unwrap().name, name);
    }

    apply(&cluster, "externalTrafficPolicy: Cluster", &pods)?;
    // A2: what the pod has just asked for waits for its connections to be forgotten.
    eventually(|| {
        let found = cluster.servers()?;
        let (marked, others): (Vec<_>, Vec<_>) = found.lines().partition(|line| line.contains(" -f "));
        let quiet = |line: &&str| line.starts_with("-A ") || line.ends_with(" -w 0");
        let good = others == servers.lines().collect::<Vec<_>>() && marked.iter().all(quiet);
        Ok(if good { Ok(()) } else { Err(found) })
    })?;
    eventually(|| {
        let ruleset = cluster.ruleset()?;
        Ok(if self::words(&ruleset) == words {
            Ok(())
        } else {
            Err(format!("not what it was before:\n{ruleset}"))
        })
    })?;
    for (connection, name) in &held {
        assert_eq!(&connection.ask().unwrap().name, name);
    }
    Ok(())
}

/// The words of a ruleset: in which order the kernel lists a set's elements means nothing.
fn words(ruleset: &str) -> Vec<String> {
    let mut words: Vec<_> = ruleset.split([' ', ',', '\n', '\t']).map(str::to_owned).collect();
    words.retain(|word| !word.is_empty());
    words.sort();
    words
}

#[test]
#[ignore = "needs root and ip_vs: cargo xtask test"]
fn c3_source_ranges_hold_for_every_client_of_the_balancers_address() -> Result<()> {
    let (mut cluster, [here, _there]) = web()?;
    let pod = cluster.node().pod("pod", 20, &[])?;
    cluster.start(NODE_PORTS)?;
    let ranges = |ranges: &str| {
        apply(
            &cluster,
            &format!("loadBalancerSourceRanges: [{ranges}]"),
            &[&here],
        )
    };
    ranges("192.168.10.100/32")?;
    cluster.apply(
        "other",
        &[
            service(
                "other",
                "type: LoadBalancer, clusterIP: 10.96.0.11, ports: [{port: 81}]",
            ) + "status: {loadBalancer: {ingress: [{ip: 203.0.113.8}]}}\n",
            slice("other-1", "other", "{port: 8080}", &[(&here).into()]),
        ],
    )?;
    let (outside, node) = (cluster.client(), cluster.node().client());
    let ok = "1 web-1, seen as 10.244.0.1";

    expect(outside, BALANCER, 1, ok)?;
    expect(pod.client(), BALANCER, 1, "1 timed out")?;
    expect(node, BALANCER, 1, "1 timed out")?;
    // Q16: there is no range of this family.
    expect(outside, BALANCER_V6, 1, "1 timed out")?;

    // What is not the balancer's address and port of this Service is everybody's.
    for to in ["203.0.113.8:81", EXTERNAL, NODE_PORT] {
        for client in [outside, pod.client(), node] {
            expect(client, to, 1, ok)?;
        }
    }

    // The node is whoever has one of its addresses, and uses the balancer's for its own.
    ranges("\"192.168.10.2/32\"")?;
    expect(node, BALANCER, 1, ok)?;
    expect(outside, BALANCER, 1, "1 timed out")?;

    ranges("10.244.0.16/28, \"fd01::100/128\"")?;
    expect(pod.client(), BALANCER, 1, ok)?;
    expect(node, BALANCER, 1, "1 timed out")?;
    expect(outside, BALANCER_V6, 1, "1 web-1, seen as fd00:10:244::1")?;
    expect(pod.client(), BALANCER_V6, 1, "1 timed out")
}

#[test]
#[ignore = "needs root and ip_vs: cargo xtask test"]
fn q16_no_valid_range_is_for_nobody_and_slash_0_for_everybody() -> Result<()> {
    let (mut cluster, [here, _there]) = web()?;
    let pod = cluster.node().pod("pod", 20, &[])?;
    cluster.start(NODE_PORTS)?;
    let ranges = |ranges: &str| {
        apply(
            &cluster,
            &format!("loadBalancerSourceRanges: [{ranges}]"),
            &[&here],
        )
    };
    ranges("no-range, 10.0.0.0/99")?;
    let clients = [cluster.client(), pod.client(), cluster.node().client()];
    for client in clients {
        expect(client, BALANCER, 1, "1 timed out")?;
    }
    ranges("0.0.0.0/0")?;
    for client in clients {
        expect(client, BALANCER, 1, "1 web-1, seen as 10.244.0.1")?;
    }
    Ok(())
}

#[test]
#[ignore = "needs root and ip_vs: cargo xtask test"]
fn c3_source_ranges_and_local_together() -> Result<()> {
    let (mut cluster, [here, there]) = web()?;
    let pod = cluster.node().pod("pod", 20, &[])?;
    cluster.start(NODE_PORTS)?;
    let ranges = |ranges: &str| {
        let fields = format!("externalTrafficPolicy: Local, loadBalancerSourceRanges: [{ranges}]");
        apply(&cluster, &fields, &[&here, &there])
    };
    ranges("192.168.10.100/32")?;
    expect(cluster.client(), BALANCER, 2, "2 web-1, seen as 192.168.10.100")?;
    expect(pod.client(), BALANCER, 1, "1 timed out")?;
    ranges("10.244.0.0/16")?;
    expect(pod.client(), BALANCER, 4, "2 web-1, 2 web-2, seen as 10.244.0.20")?;
    expect(cluster.client(), BALANCER, 1, "1 timed out")
}

#[test]
#[ignore = "needs root and ip_vs: cargo xtask test"]
fn e1_a_connection_from_the_cluster_lasts_as_long_as_its_pod() -> Result<()> {
    let (mut cluster, [here, there]) = web()?;
    let pod = cluster.node().pod("pod", 20, &[])?;
    cluster.start(NODE_PORTS)?;
    for stays in [&here, &there] {
        apply(&cluster, "externalTrafficPolicy: Local", &[&here, &there])?;
        expect(pod.client(), BALANCER, 4, "2 web-1, 2 web-2, seen as 10.244.0.20")?;
        let held = [
            hold(pod.client(), Tcp, BALANCER)?,
            hold(pod.client(), Tcp, BALANCER)?,
        ];
        apply(&cluster, "externalTrafficPolicy: Local", &[stays])?;
        expect(
            pod.client(),
            BALANCER,
            2,
            &format!("2 {}, seen as 10.244.0.20", stays.name),
        )?;
        let (connection, name) = held.iter().find(|(_, name)| *name == stays.name).unwrap();
        assert_eq!(connection.ask().map(|reply| reply.name).as_ref(), Ok(name));
    }
    Ok(())
}
