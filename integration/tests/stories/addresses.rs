//! The addresses of Services: kube-ipvs0, load balancers, external IPs, and what else answers there.

use integration::manifest::{service, slice};
use integration::namespace::Namespace;
use integration::topology::{CLIENT, NODE};
use integration::traffic::Failure::Refused;
use integration::traffic::Protocol::{Tcp, Udp};
use integration::traffic::Server;
use integration::{Cluster, Result};

use crate::{BRIDGE, TCP_8080, expect, expect_failure, web};

#[test]
#[ignore = "needs root and ip_vs: cargo xtask test"]
fn load_balancer_and_external_addresses_are_served() -> Result<()> {
    let mut cluster = Cluster::new()?;
    let pod = cluster.node().pod("web-1", 11, TCP_8080)?;
    let mut web = service(
        "web",
        "type: LoadBalancer, clusterIP: 10.96.0.10, externalIPs: [198.51.100.7], ports: [{port: 80}]",
    );
    // D12: traffic for 203.0.113.9 is to see the load balancer itself.
    web += "status: {loadBalancer: {ingress: [{ip: 203.0.113.8}, {ip: 203.0.113.9, ipMode: Proxy}]}}\n";
    cluster.apply(
        "web",
        &[web, slice("web-1", "web", "{port: 8080}", &[(&pod).into()])],
    )?;
    cluster.start(&[])?;
    cluster.expect_addresses(&["10.96.0.10/32", "198.51.100.7/32", "203.0.113.8/32"])?;
    cluster.expect_servers(
        "-A -t 10.96.0.10:80 -s rr
         -a -t 10.96.0.10:80 -r 10.244.0.11:8080 -m -w 1
         -A -t 198.51.100.7:80 -s rr
         -a -t 198.51.100.7:80 -r 10.244.0.11:8080 -m -w 1
         -A -t 203.0.113.8:80 -s rr
         -a -t 203.0.113.8:80 -r 10.244.0.11:8080 -m -w 1",
    )?;
    for address in ["198.51.100.7:80", "203.0.113.8:80"] {
        expect(cluster.client(), Tcp, address, &["web-1"], BRIDGE)?;
        expect(cluster.node().client(), Tcp, address, &["web-1"], BRIDGE)?;
    }
    Ok(())
}

#[test]
#[ignore = "needs root and ip_vs: cargo xtask test"]
fn c5_an_external_ip_that_is_the_nodes_own_is_served_and_stays_the_nodes() -> Result<()> {
    let mut cluster = Cluster::new()?;
    let pod = cluster.node().pod("web-1", 11, TCP_8080)?;
    let _sshd = Server::start(&cluster.node().namespace, "sshd", &[(Tcp, 22)])?;
    cluster.apply(
        "web",
        &[
            service(
                "web",
                &format!("clusterIP: 10.96.0.10, externalIPs: [{NODE}], ports: [{{port: 80}}]"),
            ),
            slice("web-1", "web", "{port: 8080}", &[(&pod).into()]),
        ],
    )?;
    cluster.start(&[])?;
    cluster.expect_addresses(&["10.96.0.10/32"])?;
    expect(cluster.client(), Tcp, &format!("{NODE}:80"), &["web-1"], BRIDGE)?;
    expect(cluster.client(), Tcp, &format!("{NODE}:22"), &["sshd"], CLIENT)
}

#[test]
#[ignore = "needs root and ip_vs: cargo xtask test"]
fn c1_e11_other_ports_of_a_service_address_are_refused_and_ping_is_answered() -> Result<()> {
    let (mut cluster, _pods) = web()?;
    // C1: what listens on all addresses of the node is not to be had at a Service's.
    let _sshd = Server::start(&cluster.node().namespace, "sshd", &[(Tcp, 22)])?;
    cluster.start(&[])?;
    cluster.expect_addresses(&["10.96.0.10/32"])?;
    let visitor = cluster.node().pod("visitor", 20, &[])?;
    for client in [visitor.client(), cluster.client(), cluster.node().client()] {
        expect_failure(client, Tcp, "10.96.0.10:22", Refused)?;
        expect_failure(client, Udp, "10.96.0.10:22", Refused)?;
    }
    for machine in [&visitor.namespace, cluster.outside(), &cluster.node().namespace] {
        machine.output("ping", &["-n", "-c", "1", "-W", "3", "10.96.0.10"])?;
    }
    Ok(())
}

#[test]
#[ignore = "needs root and ip_vs: cargo xtask test"]
fn c1_q52_balancers_ask_for_health_at_their_own_address() -> Result<()> {
    let mut cluster = Cluster::new()?;
    let pod = cluster.node().pod("web-1", 11, TCP_8080)?;
    // What answers on all addresses of the node, as the server of health checks does.
    let _health = Server::start(&cluster.node().namespace, "health", &[(Tcp, 32000)])?;
    let mut web = service(
        "web",
        "type: LoadBalancer, clusterIP: 10.96.0.10, externalTrafficPolicy: Local, healthCheckNodePort: 32000,
         ports: [{port: 80}]",
    );
    web += "status: {loadBalancer: {ingress: [{ip: 203.0.113.8}]}}\n";
    let slice = || slice("web-1", "web", "{port: 8080}", &[(&pod).into()]);
    cluster.apply("web", &[web.clone(), slice()])?;
    cluster.start(&[])?;
    for address in [format!("{NODE}:32000"), "203.0.113.8:32000".to_owned()] {
        expect(cluster.client(), Tcp, &address, &["health"], CLIENT)?;
    }
    expect_failure(cluster.client(), Tcp, "10.96.0.10:32000", Refused)?;
    cluster.apply(
        "web",
        &[
            web.replace("externalTrafficPolicy: Local, healthCheckNodePort: 32000,", ""),
            slice(),
        ],
    )?;
    expect_failure(cluster.client(), Tcp, "203.0.113.8:32000", Refused)?;
    expect(
        cluster.client(),
        Tcp,
        &format!("{NODE}:32000"),
        &["health"],
        CLIENT,
    )
}

/// Whether a machine that takes `address` for its neighbour's gets an answer: to its ARP requests first.
fn is_neighbour(machine: &Namespace, address: &str) -> Result<bool> {
    let script =
        format!("ip neigh flush all; ping -n -c 1 -W 3 {address} > /dev/null && echo yes || echo no");
    Ok(machine.shell(&script)? == "yes\n")
}

/// D4
#[test]
#[ignore = "needs root and ip_vs: cargo xtask test"]
fn d4_named_interfaces_answer_arp_for_their_own_addresses_only() -> Result<()> {
    const BALANCER: &str = "203.0.113.8";
    let mut cluster = Cluster::new()?;
    let mut web = service(
        "web",
        "type: LoadBalancer, clusterIP: 10.96.0.10, ports: [{port: 80}]",
    );
    web += &format!("status: {{loadBalancer: {{ingress: [{{ip: {BALANCER}}}]}}}}\n");
    cluster.apply("web", &[web])?;
    let pod = cluster.node().pod("visitor", 20, &[])?;
    cluster.outside().ip(&format!("route add {BALANCER} dev eth1"))?;
    pod.namespace.ip(&format!("route add {BALANCER} dev eth0"))?;
    cluster.start(&[])?;
    assert!(is_neighbour(cluster.outside(), BALANCER)?);
    cluster.take_kube_proxy()?.kill()?;
    // The node has two links to the network. There is none of the third name.
    cluster.start(&["--ipvs-strict-arp-interfaces=eth1,eth2,bond0.100"])?;
    assert!(!is_neighbour(cluster.outside(), BALANCER)?);
    assert!(is_neighbour(cluster.outside(), &NODE.to_string())?);
    assert!(is_neighbour(&pod.namespace, BALANCER)?, "pods are not concerned");
    let log = cluster.kube_proxy()?.log()?;
    assert!(log.contains("net.ipv4.conf.bond0/100.arp_ignore"), "{log}");
    Ok(())
}

#[test]
#[ignore = "needs root and ip_vs: cargo xtask test"]
fn d7_the_link_is_down_and_answers_no_arp() -> Result<()> {
    let (mut cluster, _pods) = web()?;
    cluster.start(&[])?;
    let link = cluster
        .node()
        .namespace
        .output("ip", &["-details", "link", "show", "kube-ipvs0"])?;
    assert!(
        link.contains("<BROADCAST,NOARP>") && link.contains("state DOWN"),
        "{link}"
    );
    assert!(link.contains("mtu 1500") && link.contains("dummy"), "{link}");
    Ok(())
}
