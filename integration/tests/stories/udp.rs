//! Flows of UDP, which nobody ends but the kernel, or kube-proxy (A5).

use integration::manifest::{service, slice};
use integration::topology::{CLIENT, Pod};
use integration::traffic::Client;
use integration::traffic::Protocol::Udp;
use integration::{Cluster, Result};

use crate::{BRIDGE, at, eventually, expect, hold};

const CLUSTER_IP: &str = "10.96.0.53:53";
/// All addresses of [`apply`]'s Service.
const ADDRESSES: [&str; 4] = [
    CLUSTER_IP,
    "203.0.113.7:53",
    "203.0.113.8:53",
    "192.168.10.2:30053",
];

/// Two pods that answer at 5353 as the Service's endpoints, and at 53 and 30053 by themselves.
fn dns() -> Result<(Cluster, [Pod; 2])> {
    let cluster = Cluster::new()?;
    let ports = &[(Udp, 5353), (Udp, 53), (Udp, 30053)];
    let pods = [
        cluster.node().pod("dns-1", 11, ports)?,
        cluster.peer().pod("dns-2", 12, ports)?,
    ];
    Ok((cluster, pods))
}

/// Makes these pods the endpoints of a Service with every kind of address.
fn apply(cluster: &Cluster, pods: &[&Pod]) -> Result<()> {
    let endpoints: Vec<_> = pods.iter().copied().map(Into::into).collect();
    let spec = "type: LoadBalancer, clusterIP: 10.96.0.53, externalIPs: [203.0.113.7],
        ports: [{port: 53, nodePort: 30053, protocol: UDP}]";
    cluster.apply(
        "dns",
        &[
            service("dns", spec) + "status: {loadBalancer: {ingress: [{ip: 203.0.113.8}]}}\n",
            slice("dns-1", "dns", "{port: 5353, protocol: UDP}", &endpoints),
        ],
    )
}

/// The flows of UDP that the node tracks and that have this text, with what tells them from later ones; sorted.
fn flows(cluster: &Cluster, text: &str) -> Result<Vec<String>> {
    let listed = cluster
        .node()
        .namespace
        .shell("conntrack -L -p udp -o id 2>/dev/null")?;
    let mut flows: Vec<_> = listed
        .lines()
        .filter(|line| line.contains(text))
        // What is left of its time changes.
        .map(|line| {
            let words = line.split_whitespace().enumerate();
            words.filter(|(number, _)| *number != 2).map(|(_, word)| word)
        })
        .map(|words| words.collect::<Vec<_>>().join(" "))
        .collect();
    flows.sort();
    Ok(flows)
}

#[test]
#[ignore = "needs root and ip_vs: cargo xtask test"]
fn a5_a_client_that_never_stops_is_moved_when_its_pod_goes() -> Result<()> {
    let (mut cluster, pods) = dns()?;
    let pod = cluster.node().pod("pod", 20, &[])?;
    apply(&cluster, &[])?;
    cluster.start(&["--nodeport-addresses=192.168.10.0/24"])?;
    let (pod, outside) = (pod.client(), cluster.client());
    for (client, to) in ADDRESSES
        .map(|to| (outside, to))
        .into_iter()
        .chain([(pod, CLUSTER_IP)])
    {
        apply(&cluster, &[&pods[0], &pods[1]])?;
        for pod in &pods {
            cluster.expect_server(&format!("-a -u {to} -r {}:5353 -m -w 1", pod.ipv4))?;
        }
        let (socket, first) = hold(client, Udp, to)?;
        let (goes, stays) = if first == pods[0].name {
            (&pods[0], &pods[1])
        } else {
            (&pods[1], &pods[0])
        };
        apply(&cluster, &[stays])?;
        // The one that has left its slice would still answer.
        eventually(|| {
            Ok(match socket.ask() {
                Ok(reply) if reply.name == stays.name => Ok(()),
                other => Err(format!("{to}: expected {} to answer, got {other:?}", stays.name)),
            })
        })?;
        let left = flows(&cluster, &format!("src={}", goes.ipv4))?;
        assert_eq!(left, [""; 0], "{to}");
        let left = cluster
            .node()
            .namespace
            .shell(&format!("ipvsadm -Lcn | grep {}:5353 || true", goes.ipv4))?;
        assert_eq!(left, "", "IPVS still knows a flow");
    }
    Ok(())
}

#[test]
#[ignore = "needs root and ip_vs: cargo xtask test"]
fn q30_q31_flows_go_with_their_service_and_those_of_others_stay() -> Result<()> {
    let (mut cluster, [dns_1, dns_2]) = dns()?;
    apply(&cluster, &[&dns_1, &dns_2])?;
    cluster.start(&[])?;
    let outside = cluster.client();
    // These pods are asked at their own addresses, at the port numbers of the Service.
    let others = ["10.244.1.12:53", "10.244.1.12:30053"].map(|to| hold(outside, Udp, to));
    let unrelated = || -> Result<_> {
        let mut flows = flows(&cluster, "dst=10.244.1.12")?;
        flows.retain(|flow| !flow.contains("dport=5353"));
        Ok(flows)
    };
    let before = unrelated()?;
    assert_eq!(before.len(), 2, "{before:#?}");
    let held = ADDRESSES.map(|to| hold(outside, Udp, to));
    for to in ADDRESSES {
        let address = to.split(':').next().unwrap();
        assert_ne!(flows(&cluster, &format!("dst={address}"))?, [""; 0]);
    }
    cluster.delete("dns")?;
    for to in ADDRESSES {
        let (address, port) = to.split_once(':').unwrap();
        eventually(|| {
            let mut left = flows(&cluster, &format!("dst={address} "))?;
            left.retain(|flow| flow.contains(&format!("dport={port} ")));
            Ok(match left.as_slice() {
                [] => Ok(()),
                left => Err(format!("{left:#?}")),
            })
        })?;
    }
    assert_eq!(unrelated()?, before);
    drop((held, others));
    Ok(())
}

#[test]
#[ignore = "needs root and ip_vs: cargo xtask test"]
fn a5_a_flow_that_is_older_than_its_service_finds_it() -> Result<()> {
    let (mut cluster, [_, dns_2]) = dns()?;
    cluster.start(&[])?;
    // Somebody has the address so far, and does not answer.
    cluster
        .node()
        .namespace
        .ip("route add 10.96.0.53/32 via 192.168.10.3")?;
    let asked_from: Client<'_> = cluster.client().from((CLIENT, 40_000));
    let socket = asked_from.connect(Udp, at(CLUSTER_IP))?.unwrap();
    assert!(socket.ask().is_err());
    assert_eq!(flows(&cluster, "dst=10.96.0.53")?.len(), 1);
    apply(&cluster, &[&dns_2])?;
    cluster.expect_addresses(&["10.96.0.53/32", "203.0.113.7/32", "203.0.113.8/32"])?;
    eventually(|| {
        Ok(match socket.ask() {
            Ok(reply) if reply.name == "dns-2" => Ok(()),
            other => Err(format!("expected dns-2 to answer, got {other:?}")),
        })
    })
}

#[test]
#[ignore = "needs root and ip_vs: cargo xtask test"]
fn a8_a_restart_ends_no_flow_but_stale_ones() -> Result<()> {
    let (mut cluster, [dns_1, _]) = dns()?;
    apply(&cluster, &[&dns_1])?;
    cluster.start(&["--ipvs-sync-period=1s"])?;
    let held = ADDRESSES.map(|to| hold(cluster.client(), Udp, to));
    let before = flows(&cluster, "src=10.244.0.11")?;
    assert_eq!(before.len(), ADDRESSES.len(), "{before:#?}");
    cluster.take_kube_proxy()?.kill()?;
    // What another proxy, or we, might have left behind.
    cluster.node().namespace.shell(
        "conntrack -I -p udp -s 192.168.10.100 --sport 5000 -d 10.96.0.53 --dport 53 \
         -r 10.244.0.99 --reply-port-src 5353 -q 192.168.10.100 --reply-port-dst 5000 -t 600",
    )?;
    assert_eq!(flows(&cluster, "src=10.244.0.99")?.len(), 1);
    cluster.start(&["--ipvs-sync-period=1s"])?;
    eventually(|| {
        Ok(match flows(&cluster, "src=10.244.0.99")?.as_slice() {
            [] => Ok(()),
            left => Err(format!("{left:#?}")),
        })
    })?;
    // Some verifications later, too.
    cluster.node().namespace.shell("sleep 3")?;
    assert_eq!(flows(&cluster, "src=10.244.0.11")?, before);
    drop(held);
    expect(cluster.client(), Udp, CLUSTER_IP, &["dns-1"], BRIDGE)
}
