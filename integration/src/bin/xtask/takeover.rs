//! `cargo xtask takeover`: what clients notice when one kube-proxy takes the place of another.

use std::path::Path;
use std::time::Duration;

use clap::{ArgMatches, Command};
use integration::go::{Go, Program};
use integration::proxiers::UPSTREAM;
use integration::takeover::{Mode, Outcome};
use integration::{ApiServer, Error, Guest, Lab, Result, cargo, uplink};

use crate::lines::Lines;

/// The time that a guest has for all cases.
const LIMIT: Duration = Duration::from_secs(40 * 60);

pub(crate) fn command() -> Command {
    Command::new("takeover")
        .about("Measure what clients notice when ours takes the place of upstream's kube-proxy, and the way back")
        .after_help(
            "Four clients open 50 connections a second in all and hold 20, while one kube-proxy is killed and another\n\
             started. The command fails if a change to ours, or back to upstream's mode ipvs, ends a connection, or if one\n\
             cannot be opened during a change to ours.",
        )
}

pub(crate) fn run(_: &ArgMatches) -> Result<u8> {
    let go = Go::find()?;
    let upstream = go.build(&Lab::open()?, Program::KubeProxy)?;
    let mut server = ApiServer::start(&go)?;
    let guest = Guest::prepare(None)?
        .limit(LIMIT)
        .copy(
            cargo::program("kube-proxy", "kube-proxy")?,
            "/usr/local/bin/kube-proxy",
        )
        .copy(upstream, Path::new("/usr/local/bin").join(UPSTREAM))
        .copy(
            cargo::program("integration", "takeover")?,
            "/usr/local/bin/takeover",
        );
    let mut outcomes: Vec<Outcome> = Vec::new();
    let mut lines = Lines::new(|line| {
        let outcome =
            serde_json::from_str(line).map_err(|error| Error::Unavailable(format!("{line}: {error}")))?;
        outcomes.push(outcome);
        Ok(())
    });
    let status = uplink::run(&mut server, guest, &["takeover".to_owned()], &mut lines)?;
    println!("| from | to | FORWARD | opened | failed | held | lost | time |");
    println!("|---|---|---|---|---|---|---|---|");
    let mut bad = status != 0;
    for outcome in &outcomes {
        let Outcome {
            case,
            asked,
            failures,
            held,
            lived,
            took_ms,
            left,
        } = outcome;
        let policy = if case.forward_drop { "DROP" } else { "ACCEPT" };
        println!(
            "| {} | {} | {policy} | {asked} | {} | {held} | {} | {:.1} s |",
            case.from,
            case.to,
            failures.len(),
            held - lived,
            *took_ms as f64 / 1000.0
        );
        // Upstream removes our tables when it starts, and programs its own later.
        let way_back = (case.from, case.to) == (Mode::Ours, Mode::Ipvs);
        bad |= case.to == Mode::Ours && !failures.is_empty();
        bad |= (case.to == Mode::Ours || way_back) && lived < held;
        if !left.is_empty() {
            println!("left after a clean-up: {}", left.join("; "));
            bad = true;
        }
    }
    Ok(bad.into())
}
