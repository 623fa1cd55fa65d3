//! `cargo xtask test`: every test there is, and a table of how it went.

use std::fmt;
use std::io::{self, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use clap::{Arg, ArgAction, ArgGroup, ArgMatches, value_parser};
use integration::cargo::{self, TestProgram, Workspace};
use integration::go::{Go, Program};
use integration::kernel::Series;
use integration::{ApiServer, Error, Guest, Lab, Result, uplink};

use crate::conformance;

/// The time that a guest has for all in-kernel tests. It is slow under emulation.
const LIMIT: Duration = Duration::from_secs(20 * 60);

/// The test program that needs more than a kernel.
const API_SERVER_TESTS: &str = "integration-apiserver";

/// The test program that needs upstream's kube-proxy, and no kernel.
const UPSTREAM_TESTS: &str = "kube-proxy-upstream";

/// Runs all test programs of a directory, and fails if one does.
const RUN_ALL: &str = "status=0
for test in /root/tests/*; do
    echo \"     Running ${test##*/}\"
    \"$test\" --ignored --test-threads=1 \"$@\" || status=1
done
exit $status";

pub(crate) fn command() -> clap::Command {
    clap::Command::new("test")
        .about("Run every test: on the host, in the kernels of guests, and with a real API server")
        .arg(
            Arg::new("kernel")
                .long("kernel")
                .value_name("SERIES")
                .action(ArgAction::Append)
                .value_parser(value_parser!(Series))
                .help("Run the in-kernel tests only, on this kernel: 6.1 or 6.12; repeatable"),
        )
        .arg(
            Arg::new("api-server")
                .long("api-server")
                .action(ArgAction::SetTrue)
                .help("Run the tests with a real API server only"),
        )
        .arg(
            Arg::new("upstream")
                .long("upstream")
                .action(ArgAction::SetTrue)
                .help("Run the tests of the command line beside upstream's kube-proxy only"),
        )
        .group(
            ArgGroup::new("selection")
                .args(["kernel", "api-server", "upstream"])
                .multiple(true),
        )
        .arg(
            Arg::new("filter")
                .value_name("FILTER")
                .num_args(0..)
                .last(true)
                .requires("selection")
                .help("Arguments for the tests that were asked for, such as a part of a test's name"),
        )
}

pub(crate) fn run(arguments: &ArgMatches) -> Result<u8> {
    let mut table = Table::default();
    if arguments.contains_id("kernel") || arguments.get_flag("api-server") || arguments.get_flag("upstream") {
        let filter = arguments.get_many::<String>("filter").unwrap_or_default();
        let filter: Vec<_> = filter.cloned().collect();
        let workspace = Workspace::build()?;
        for series in arguments.get_many::<Series>("kernel").unwrap_or_default() {
            table.add(in_kernel(*series, &workspace, &filter));
        }
        if arguments.get_flag("upstream") {
            table.add(beside_upstream(&workspace, &filter));
        }
        if arguments.get_flag("api-server") {
            table.add(with_api_server(&workspace, &filter));
        }
    } else {
        table.add(component("fmt", &["fmt", "--all", "--check"]));
        table.add(component(
            "clippy",
            &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"],
        ));
        let workspace = Workspace::build()?;
        table.add(on_host());
        table.add(beside_upstream(&workspace, &[]));
        for series in Series::ALL {
            table.add(in_kernel(series, &workspace, &[]));
        }
        table.add(with_api_server(&workspace, &[]));
        table.add(conformance());
    }
    println!("\n{table}");
    let skipped_in_ci =
        std::env::var_os("CI").is_some() && table.has(|outcome| matches!(outcome, Outcome::Skipped(_)));
    if skipped_in_ci {
        println!("In CI a part that is skipped is a failure.");
    }
    let failed = skipped_in_ci || table.has(|outcome| matches!(outcome, Outcome::Failed));
    Ok(failed.into())
}

/// How a part of the tests went.
struct Part {
    name: String,
    counts: Counts,
    outcome: Outcome,
    time: Duration,
}

enum Outcome {
    Passed,
    Failed,
    /// It could not run here, which is a failure in CI.
    Skipped(String),
    /// The toolchain has no such check, and need not have it.
    Absent(String),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Passed => f.write_str("ok"),
            Self::Failed => f.write_str("FAILED"),
            Self::Skipped(why) => write!(f, "SKIPPED: {why}"),
            Self::Absent(remedy) => write!(f, "not installed: {remedy}"),
        }
    }
}

/// The tests of one part.
#[derive(Default, Clone, Copy)]
struct Counts {
    passed: usize,
    failed: usize,
}

impl Part {
    /// Runs a part, which gives its tests and whether all is well.
    fn run(name: String, work: impl FnOnce() -> Result<(Counts, bool)>) -> Self {
        println!("\n== {name}");
        let start = Instant::now();
        let (counts, outcome) = match work() {
            Ok((counts, true)) => (counts, Outcome::Passed),
            Ok((counts, false)) => (counts, Outcome::Failed),
            Err(error) => {
                eprintln!("xtask: {name}: {error}");
                (Counts::default(), Outcome::Failed)
            }
        };
        Self {
            name,
            counts,
            outcome,
            time: start.elapsed(),
        }
    }

    /// A part that did not run.
    fn without(name: String, outcome: Outcome) -> Self {
        println!("\n== {name}\n{outcome}");
        Self {
            name,
            counts: Counts::default(),
            outcome,
            time: Duration::ZERO,
        }
    }
}

/// A check by a component of the toolchain that may not be installed.
fn component(name: &str, arguments: &[&str]) -> Part {
    let there = Command::new(cargo::cargo())
        .args([name, "--version"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    if !there.is_ok_and(|status| status.success()) {
        let missing = Outcome::Absent(format!("rustup component add {name}"));
        return Part::without(format!("cargo {name}"), missing);
    }
    Part::run(format!("cargo {name}"), || {
        let status = cargo::command(arguments).status();
        Ok((Counts::default(), succeeded(status)?))
    })
}

/// The tests that need nothing but the workspace.
fn on_host() -> Part {
    Part::run("unit and property tests".into(), || {
        let mut output = Tee::default();
        let passed = shown(&mut cargo::command(&["test", "--workspace"]), &mut output)?;
        Ok((output.counts(), passed))
    })
}

/// Runs a program, and shows what it says on its way. Gives whether all is well.
fn shown(command: &mut Command, output: &mut Tee) -> Result<bool> {
    let mut child = command.stdout(Stdio::piped()).spawn().map_err(cannot_run)?;
    if let Some(mut stdout) = child.stdout.take() {
        io::copy(&mut stdout, output).map_err(cannot_run)?;
    }
    succeeded(child.wait())
}

/// The tests of the command line beside upstream's.
fn beside_upstream(workspace: &Workspace, filter: &[String]) -> Part {
    let name = "command line beside upstream's".to_owned();
    let go = match Go::find() {
        Ok(go) => go,
        Err(missing) => return Part::without(name, Outcome::Skipped(missing.to_string())),
    };
    Part::run(name, || {
        let upstream = go.build(&Lab::open()?, Program::KubeProxy)?;
        let mut output = Tee::default();
        let mut passed = true;
        for program in workspace.tests().filter(|program| program.name == UPSTREAM_TESTS) {
            let mut command = Command::new(program.path);
            command
                .arg("--ignored")
                .args(filter)
                .env("UPSTREAM_KUBE_PROXY", &upstream);
            passed &= shown(&mut command, &mut output)?;
        }
        Ok((output.counts(), passed))
    })
}

/// The tests that need a kernel with IPVS, and root on it: those that are ignored elsewhere.
fn in_kernel(series: Series, workspace: &Workspace, filter: &[String]) -> Part {
    Part::run(format!("in-kernel tests, Linux {series}"), || {
        let mut programs = Vec::new();
        for program in workspace
            .tests()
            .filter(|program| ![API_SERVER_TESTS, UPSTREAM_TESTS].contains(&program.name.as_str()))
        {
            if program.ignored_tests()? > 0 {
                programs.push(program);
            }
        }
        let guest = guest(Some(series), workspace, programs)?;
        let mut output = Tee::default();
        let status = guest.run(&run_all(filter), &mut output)?;
        Ok((output.counts(), status == 0))
    })
}

/// A guest with kube-proxy and these tests.
fn guest(
    series: Option<Series>,
    workspace: &Workspace,
    programs: impl IntoIterator<Item = TestProgram>,
) -> Result<Guest> {
    let guest = Guest::prepare(series)?
        .limit(LIMIT)
        .copy(workspace.program("kube-proxy")?, "/usr/local/bin/kube-proxy");
    Ok(programs
        .into_iter()
        .fold(guest, |guest, TestProgram { name, path }| {
            guest.copy(path, Path::new("/root/tests").join(name))
        }))
}

fn run_all(filter: &[String]) -> Vec<String> {
    let command = ["sh", "-c", RUN_ALL, "sh"].map(str::to_owned);
    command.into_iter().chain(filter.iter().cloned()).collect()
}

/// The main job, with objects from a kube-apiserver on this machine.
fn with_api_server(workspace: &Workspace, filter: &[String]) -> Part {
    let name = "main job, kube-apiserver".to_owned();
    let go = match Go::find() {
        Ok(go) => go,
        Err(missing) => return Part::without(name, Outcome::Skipped(missing.to_string())),
    };
    Part::run(name, || {
        let programs = workspace
            .tests()
            .filter(|program| program.name == API_SERVER_TESTS);
        let guest = guest(None, workspace, programs)?;
        let mut server = ApiServer::start(&go)?;
        let mut output = Tee::default();
        let status = uplink::run(&mut server, guest, &run_all(filter), &mut output)?;
        Ok((output.counts(), status == 0))
    })
}

/// All scenarios beside what upstream's kube-proxy makes of them.
fn conformance() -> Part {
    let name = "conformance scenarios".to_owned();
    if let Err(missing) = Go::find() {
        return Part::without(name, Outcome::Skipped(missing.to_string()));
    }
    Part::run(name, || {
        let (passed, failed) = conformance::all()?;
        Ok((Counts { passed, failed }, failed == 0))
    })
}

fn succeeded(status: io::Result<std::process::ExitStatus>) -> Result<bool> {
    Ok(status.map_err(cannot_run)?.success())
}

fn cannot_run(source: io::Error) -> Error {
    Error::Io {
        action: "run cargo".into(),
        source,
    }
}

/// Shows what it is given, and keeps it to count the tests.
#[derive(Default)]
struct Tee {
    kept: Vec<u8>,
}

impl Tee {
    /// Sums up the lines `test result: ok. 3 passed; 1 failed; ...` of the test programs.
    fn counts(&self) -> Counts {
        let text = String::from_utf8_lossy(&self.kept);
        let mut counts = Counts::default();
        for line in text.lines().filter(|line| line.starts_with("test result: ")) {
            let words: Vec<_> = line.split([' ', ';']).collect();
            let before = |word| {
                let at = words.iter().position(|found| *found == word)?;
                words.get(at.checked_sub(1)?)?.parse::<usize>().ok()
            };
            counts.passed += before("passed").unwrap_or_default();
            counts.failed += before("failed").unwrap_or_default();
        }
        counts
    }
}

impl Write for Tee {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.kept.extend_from_slice(bytes);
        io::stdout().write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stdout().flush()
    }
}

#[derive(Default)]
struct Table {
    parts: Vec<Part>,
}

impl Table {
    fn add(&mut self, part: Part) {
        self.parts.push(part);
    }

    fn has(&self, outcome: impl Fn(&Outcome) -> bool) -> bool {
        self.parts.iter().any(|part| outcome(&part.outcome))
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:32} {:>7} {:>7} {:>7}  result",
            "part", "passed", "failed", "time"
        )?;
        for Part {
            name,
            counts,
            outcome,
            time,
        } in &self.parts
        {
            let Counts { passed, failed } = counts;
            write!(f, "{name:32} {passed:>7} {failed:>7} {:>5} s  ", time.as_secs())?;
            writeln!(f, "{outcome}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_all_programs_are_summed_up() {
        let kept = b"test result: ok. 3 passed; 0 failed; 1 ignored\r\n\
            test a ... ok\n\
            test result: FAILED. 1 passed; 2 failed; 0 ignored\n"
            .to_vec();
        let tee = Tee { kept };
        assert_eq!((tee.counts().passed, tee.counts().failed), (4, 2));
    }
}
