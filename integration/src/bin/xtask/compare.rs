//! `cargo xtask compare`: ours beside upstream's, on the same objects.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Arg, ArgMatches, Command, value_parser};
use integration::go::{Go, Program};
use integration::observe::{self, Observation};
use integration::proxiers::{Proxier, UPSTREAM};
use integration::{ApiServer, Error, Guest, Lab, Result, cargo, uplink};

use crate::lines::Lines;

/// The time that a guest has for all proxiers and steps.
const LIMIT: Duration = Duration::from_secs(30 * 60);

pub(crate) fn command() -> Command {
    Command::new("compare")
        .about("Show what ours and upstream's kube-proxy, in modes ipvs and nftables, make of the same objects")
        .after_help(
            "Ours is to be equal to one of upstream's modes in every probe; where it is not, the command fails.\n\
             Services are to name their addresses and node ports. Endpoints are pods of the node (10.244.0.N,\n\
             fd00:10:244::N) or of a second one (10.244.1.N, fd00:10:244:1::N).",
        )
        .arg(
            Arg::new("objects")
                .value_name("FILE")
                .num_args(1..)
                .required(true)
                .value_parser(value_parser!(PathBuf))
                .help("Objects in YAML; each further file is applied once all have settled on those before it"),
        )
}

pub(crate) fn run(arguments: &ArgMatches) -> Result<u8> {
    let go = Go::find()?;
    let upstream = go.build(&Lab::open()?, Program::KubeProxy)?;
    let mut server = ApiServer::start(&go)?;
    let mut guest = Guest::prepare(None)?
        .limit(LIMIT)
        .copy(
            cargo::program("kube-proxy", "kube-proxy")?,
            "/usr/local/bin/kube-proxy",
        )
        .copy(upstream, Path::new("/usr/local/bin").join(UPSTREAM))
        .copy(
            cargo::program("integration", "observe")?,
            "/usr/local/bin/observe",
        );
    let mut command = vec!["observe".to_owned()];
    for (number, file) in arguments
        .get_many::<PathBuf>("objects")
        .unwrap_or_default()
        .enumerate()
    {
        let place = format!("/root/{number}.yaml");
        guest = guest.copy(file, &place);
        command.push(place);
    }
    let mut output = Lines::default();
    let status = uplink::run(&mut server, guest, &command, &mut output)?;
    if status != 0 {
        return Ok(status);
    }
    let mut steps: BTreeMap<usize, BTreeMap<Proxier, Observation>> = BTreeMap::new();
    for line in &output.objects {
        let seen = observe::parse(line)?;
        steps.entry(seen.step).or_default().insert(seen.proxier, seen);
    }
    let mut report = String::new();
    let mut unlike = 0;
    for (step, seen) in &steps {
        let [Some(ours), Some(ipvs), Some(nftables)] = Proxier::ALL.map(|proxier| seen.get(&proxier)) else {
            return Err(Error::Unavailable(format!("step {step}: a proxier told nothing")));
        };
        report += &format!("== step {step}\n");
        report += &differences("ipvsadm -Sn", &ipvs.servers, &ours.servers);
        report += &differences("kube-ipvs0", &ipvs.addresses, &ours.addresses);
        let (table, differing) = probes(ours, ipvs, nftables);
        report += &table;
        unlike += differing;
    }
    report += &format!("{unlike} probes are like neither of upstream's modes\n");
    io::stdout()
        .write_all(report.as_bytes())
        .map_err(|source| Error::Io {
            action: "write the report".into(),
            source,
        })?;
    Ok(u8::from(unlike > 0))
}

/// The lines that only one of both has.
fn differences(what: &str, upstream: &BTreeSet<String>, ours: &BTreeSet<String>) -> String {
    let only_upstream = upstream.difference(ours).map(|line| format!("  - {line}\n"));
    let only_ours = ours.difference(upstream).map(|line| format!("  + {line}\n"));
    let lines: String = only_upstream.chain(only_ours).collect();
    if lines.is_empty() {
        return format!("{what}: {} lines, equal to upstream's mode ipvs\n", ours.len());
    }
    format!("{what}: upstream's mode ipvs alone (-), ours alone (+)\n{lines}")
}

/// The probes' answers, and how many of ours are like neither of the others.
fn probes(ours: &Observation, ipvs: &Observation, nftables: &Observation) -> (String, usize) {
    let mut table = String::new();
    let mut unlike = 0;
    for (probe, answer) in &ours.probes {
        let [of_ipvs, of_nftables] =
            [ipvs, nftables].map(|seen| seen.probes.get(probe).map_or("", String::as_str));
        let like = match (answer == of_ipvs, answer == of_nftables) {
            (true, true) => "as both",
            (true, false) => "as ipvs",
            (false, true) => "as nftables",
            (false, false) => "UNLIKE",
        };
        table += &format!("{like:12} {:28} {:10} {answer}\n", probe.target, probe.client);
        if answer != of_ipvs {
            table += &format!("{:52} ipvs: {of_ipvs}\n", "");
        }
        if answer != of_nftables {
            table += &format!("{:52} nftables: {of_nftables}\n", "");
        }
        unlike += usize::from(like == "UNLIKE");
    }
    (table, unlike)
}
