//! The demonstration: kube-proxy on a folder of manifests, in a small cluster, with every claim checked.
//!
//! `cargo xtask demo` runs it, in a guest or in private namespaces.

mod report;

use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Instant;

use integration::topology::{NODE, NODE_2};
use integration::traffic::Protocol::Tcp;
use integration::{Cluster, Error, Result};
use report::Report;

/// Who asks the node from outside is seen by pods of this node as the address of the pods' bridge.
const BRIDGE: &str = "10.244.0.1";

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let Some(manifests) = arguments.next() else {
        eprintln!("usage: demo MANIFESTS [--keep]");
        return ExitCode::from(2);
    };
    let keep = arguments.next().is_some_and(|argument| argument == "--keep");
    match run(Path::new(&manifests), keep) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("demo: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs all steps; whether every claim holds.
fn run(manifests: &Path, keep: bool) -> Result<bool> {
    let mut report = Report::new();

    report.heading("A node with two addresses, a second node, a client outside, and pods");
    let mut cluster = Cluster::new()?;
    let http = &[(Tcp, 80)];
    let web_1 = cluster.node().pod("web-1", 11, http)?;
    let _web_2 = cluster.node().pod("web-2", 12, http)?;
    let _web_3 = cluster.peer().pod("web-3", 13, http)?;
    let _mysql = cluster.peer().pod("mysql-0", 21, &[(Tcp, 3306)])?;
    let _admin = cluster.node().pod("admin-1", 31, &[(Tcp, 300)])?;
    let visitor = cluster.node().pod("visitor", 99, &[])?;
    for entry in fs::read_dir(manifests)
        .map_err(|source| read(manifests, source))?
        .flatten()
    {
        let path = entry.path();
        let text = fs::read_to_string(&path).map_err(|source| read(&path, source))?;
        let name = path
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        cluster.apply(&name, &[text])?;
    }
    report.show(cluster.node(), "ip -4 -brief address")?;

    report.heading("kube-proxy starts on a folder of manifests");
    let flags = cluster.flags().join(" ");
    report.say(&format!("kube-proxy {flags}"));
    let started = Instant::now();
    cluster.start(&[])?;
    report.claim(
        &format!(
            "it is in sync {:.1} s after its start",
            started.elapsed().as_secs_f32()
        ),
        true,
    );
    report.show(cluster.node(), "ipvsadm -Ln")?;
    let servers = cluster.servers()?;
    let count = |what: &str| servers.lines().filter(|line| line.starts_with(what)).count();
    // Six ClusterIPs, a load balancer's address, three node ports at three node addresses.
    let virtual_servers = 6 + 1 + 3 * 3;
    report.claim(
        "each address and port of a Service is a virtual server",
        count("-A ") == virtual_servers,
    );
    report.claim(
        "web has its three pods behind 10.99.13.178:80",
        count("-a -t 10.99.13.178:80 -r 10.244.") == 3,
    );
    report.claim(
        "ExternalName and headless Services program nothing: mysql's pod is behind one virtual server",
        servers.matches("-r 10.244.1.21:3306").count() == 1,
    );

    report.heading("The Services' addresses are on kube-ipvs0, a link that is down and answers no ARP");
    report.show(cluster.node(), "ip address show kube-ipvs0")?;
    let addresses = cluster.expect_addresses(&[
        "10.99.13.178/32",
        "10.103.132.104/32",
        "10.99.30.80/32",
        "10.99.30.90/32",
        "10.99.30.33/32",
        "10.99.44.10/32",
        "203.0.113.10/32",
    ]);
    report.outcome(
        "one address for each ClusterIP and for the load balancer",
        addresses,
    );

    report.heading("One nftables table knows whose new flows are to be masqueraded");
    report.show(cluster.node(), "nft list map ip kube-proxy services")?;
    report.show(cluster.node(), "nft list chain ip kube-proxy cluster-ip")?;
    report.show(cluster.node(), "nft list chain ip kube-proxy postrouting")?;

    report.heading("Requests from a pod are spread over the pods, which see the pod's own address");
    let answers = visitor.client().ask(Tcp, at("10.99.13.178:80")?, 6)?;
    report.answers(
        "visitor -> 10.99.13.178:80",
        &answers,
        &["web-1", "web-2", "web-3"],
        "10.244.0.99",
    );
    let answers = visitor.client().ask(Tcp, at("10.103.132.104:3306")?, 2)?;
    report.answers(
        "visitor -> 10.103.132.104:3306",
        &answers,
        &["mysql-0"],
        "10.244.0.99",
    );

    report.heading("Requests from outside come by node ports and load balancers, and are masqueraded");
    for (node, port, names) in [
        (NODE, 30080, &["web-1", "web-2"][..]),
        (NODE_2, 30080, &["web-1", "web-2"]),
        (NODE, 30033, &["admin-1"]),
    ] {
        let answers = cluster.client().ask(Tcp, (node, port).into(), 4)?;
        report.answers(&format!("client -> {node}:{port}"), &answers, names, BRIDGE);
    }
    let answers = cluster.client().ask(Tcp, at("203.0.113.10:8080")?, 4)?;
    report.claim(
        &format!("client -> 203.0.113.10:8080: {answers}"),
        answers.names().as_deref() == Some(&["web-1", "web-3"]),
    );

    report.heading("Session affinity: a client that comes back meets the same pod");
    let answers = cluster.client().ask(Tcp, (NODE, 30090).into(), 6)?;
    report.claim(
        &format!("client -> {NODE}:30090: {answers}"),
        answers.names().is_some_and(|names| names.len() == 1),
    );
    report.show(cluster.node(), &format!("ipvsadm -Ln -t {NODE}:30090"))?;

    report.heading("A pod dies, another is born with a new address: the traffic follows");
    drop(web_1);
    let _web_4 = cluster.node().pod("web-4", 14, http)?;
    let web = manifests.join("web.yaml");
    let text = fs::read_to_string(&web).map_err(|source| read(&web, source))?;
    let changed = Instant::now();
    cluster.apply("web", &[text.replace("10.244.0.11", "10.244.0.14")])?;
    let arrival = cluster.expect_server("-a -t 10.99.13.178:80 -r 10.244.0.14:80 -m -w 1");
    let seconds = changed.elapsed().as_secs_f32();
    report.outcome(
        &format!("the kernel has the new pod {seconds:.1} s after the manifest changed"),
        arrival,
    );
    report.show(cluster.node(), "ipvsadm -Ln -t 10.99.13.178:80")?;
    let answers = visitor.client().ask(Tcp, at("10.99.13.178:80")?, 6)?;
    report.answers(
        "visitor -> 10.99.13.178:80",
        &answers,
        &["web-2", "web-3", "web-4"],
        "10.244.0.99",
    );

    report.heading("A Service is deleted: everything of it is gone");
    cluster.delete("web")?;
    let gone = cluster.expect_no_trace("10.99.13.178");
    report.outcome(
        "no virtual server, no address, no set element has 10.99.13.178",
        gone,
    );
    let answers = visitor.client().ask(Tcp, at("10.103.132.104:3306")?, 2)?;
    report.answers(
        "the others still serve: visitor -> 10.103.132.104:3306",
        &answers,
        &["mysql-0"],
        "10.244.0.99",
    );

    let good = report.conclude();
    if keep {
        let manifests = cluster.manifests();
        println!(
            "\nA shell on the node. Manifests are in {}; `ip netns exec client curl {NODE}:30080` asks from outside;\n\
             `exit` ends it all.",
            manifests.display()
        );
        cluster
            .node()
            .namespace
            .interact(Command::new("bash").current_dir(&manifests))?;
    }
    Ok(good)
}

fn at(text: &str) -> Result<std::net::SocketAddr> {
    text.parse()
        .map_err(|_| Error::Unavailable(format!("{text} is no address and port")))
}

fn read(path: &Path, source: std::io::Error) -> Error {
    Error::Io {
        action: format!("read {}", path.display()),
        source,
    }
}
