//! Runs each proxier in turn on the same objects, and tells what became of them.
//!
//! `cargo xtask compare` runs it in a guest. Its arguments are texts of objects, applied one after another; after
//! each it writes an [`Observation`](integration::observe::Observation) on a line.

use std::fs;
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Instant;

use integration::observe::{observe, pods};
use integration::proxiers::Proxier;
use integration::topology::{CLIENT, CLIENT_V6};
use integration::{Cluster, Error, Result, Uplink, api};

/// Upstream waits for half a minute for the object of its node.
const NODE: &str = "
apiVersion: v1
kind: Node
metadata: {name: node, labels: {topology.kubernetes.io/zone: a}}
status:
  addresses: [{type: InternalIP, address: 192.168.10.2}, {type: InternalIP, address: \"fd01::2\"}]
";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("observe: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let steps = std::env::args().skip(1).map(|file| {
        fs::read_to_string(&file).map_err(|source| Error::Io {
            action: format!("read {file}"),
            source,
        })
    });
    let steps: Vec<_> = steps.collect::<Result<_>>()?;
    for proxier in Proxier::ALL {
        follow(proxier, &steps)?;
    }
    Ok(())
}

/// Takes one proxier through all steps, in a cluster of its own.
fn follow(proxier: Proxier, steps: &[String]) -> Result<()> {
    let mut cluster = Cluster::new()?;
    let uplink = Uplink::open(&cluster.node().namespace)?;
    let pods = pods(&cluster, &api::endpoint_slices(&steps.join("\n---\n"))?)?;
    uplink.client().apply(NODE)?;
    let log = cluster.new_log();
    // What a network plugin and whoever set up the machine would have done.
    let node = &cluster.node().namespace;
    node.shell("modprobe br_netfilter")?;
    node.sysctl("net.ipv4.ip_forward=1\nnet.ipv6.conf.all.forwarding=1")?;
    node.ip(&format!(
        "route add default via {CLIENT}\nroute add default via {CLIENT_V6}"
    ))?;
    let mut running = None;
    for (number, step) in steps.iter().enumerate() {
        uplink.client().apply(step)?;
        let running = match &mut running {
            Some(running) => running,
            none => none.insert(proxier.start(node, &log)?),
        };
        let start = Instant::now();
        proxier.settle(node, running)?;
        let settled = start.elapsed().as_secs();
        let seen = observe(proxier, number, &cluster, &pods, &uplink.client().services()?)?;
        let line = serde_json::to_string(&seen).unwrap_or_default();
        writeln!(io::stdout(), "{line}").map_err(|source| Error::Io {
            action: "write".into(),
            source,
        })?;
        let probed = start.elapsed().as_secs() - settled;
        eprintln!("lab: step {number}, {proxier}: settled in {settled} s, probed in {probed} s");
    }
    Ok(())
}
