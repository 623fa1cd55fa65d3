//! `cargo xtask conformance`: ours beside upstream's kube-proxy, on the same objects.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use integration::conformance::{
    Event, Observation, RecordedStep, Recording, Scenario, Verdict, judge, parse, report,
};
use integration::go::{Go, Program};
use integration::proxiers::{Proxier, UPSTREAM};
use integration::{ApiServer, Error, Guest, Lab, Result, cargo, uplink};

use crate::lines::Lines;

/// The time that a guest has. Upstream needs minutes for a scenario, ours seconds.
const LIMIT: Duration = Duration::from_secs(4 * 60 * 60);

pub(crate) fn command() -> Command {
    Command::new("conformance")
        .about("Compare ours with upstream's kube-proxy in modes ipvs and nftables, on scenarios")
        .after_help(
            "Upstream's answers are kept beside the scenarios, so that only ours has to run. It is to be like one of\n\
             upstream's modes in every probe, or better as the scenario says; where it is not, the command fails.\n\
             docs/conformance.md is the outcome for people.",
        )
        .arg(
            Arg::new("record")
                .long("record")
                .action(ArgAction::SetTrue)
                .help("First run upstream's kube-proxy on those of which nothing is recorded, or of another text"),
        )
        .arg(
            Arg::new("write-report")
                .long("write-report")
                .action(ArgAction::SetTrue)
                .conflicts_with("scenarios")
                .help("Write docs/conformance.md"),
        )
        .arg(
            Arg::new("jobs")
                .long("jobs")
                .short('j')
                .value_name("NUMBER")
                .value_parser(value_parser!(u8).range(1..))
                .default_value("1")
                .help("Share the scenarios among so many guests"),
        )
        .arg(
            Arg::new("scenarios")
                .value_name("SCENARIO")
                .num_args(0..)
                .help("Topics (kinds), scenarios (kinds/external-ip) or files; all scenarios when none is given"),
        )
}

pub(crate) fn run(arguments: &ArgMatches) -> Result<u8> {
    let selected = arguments.get_many::<String>("scenarios").unwrap_or_default();
    let selected: Vec<_> = selected.cloned().collect();
    let jobs = arguments.get_one::<u8>("jobs").copied().unwrap_or(1).into();
    let scenarios = Scenario::read_all(&selected)?;
    let lab = Laboratory::open(jobs)?;
    if arguments.get_flag("record") {
        lab.record(&scenarios)?;
    }
    let (outcomes, faults) = lab.compare(&scenarios)?;
    if arguments.get_flag("write-report") {
        fs::write(report_file(), lab.report(&outcomes))
            .map_err(|source| io_error("write the report", source))?;
    }
    let probes: usize = outcomes
        .iter()
        .flat_map(|(_, verdicts)| verdicts)
        .map(|verdict| verdict.probes.len())
        .sum();
    println!("{} scenarios, {probes} probes, {faults} faults", scenarios.len());
    Ok(u8::from(faults > 0))
}

/// Compares ours with what is recorded of upstream's in all scenarios. Gives how many were followed to their end, and
/// how many faults there are.
pub(crate) fn all() -> Result<(usize, usize)> {
    let scenarios = Scenario::read_all(&[])?;
    let lab = Laboratory::open(2)?;
    let (outcomes, faults) = lab.compare(&scenarios)?;
    Ok((outcomes.len(), faults))
}

fn report_file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/conformance.md")
}

/// The scenarios that were followed to their end, and what became of each step.
type Outcomes<'a> = Vec<(&'a Scenario, Vec<Verdict>)>;

/// What guests are made of.
struct Laboratory {
    go: Go,
    version: String,
    jobs: usize,
}

impl Laboratory {
    fn open(jobs: usize) -> Result<Self> {
        let go = Go::find()?;
        let version = go.version(Program::KubeProxy).to_owned();
        Ok(Self { go, version, jobs })
    }

    /// The report for people.
    fn report(&self, outcomes: &Outcomes<'_>) -> String {
        let outcomes: Vec<_> = outcomes
            .iter()
            .map(|(scenario, verdicts)| (*scenario, verdicts.as_slice()))
            .collect();
        report(&self.version, &outcomes)
    }

    /// What is recorded of this text of a scenario and of this version of upstream's.
    fn recording(&self, scenario: &Scenario) -> Result<Option<Recording>> {
        let recording = Recording::read(scenario)?;
        Ok(recording.filter(|recording| recording.upstream == self.version))
    }

    /// Records upstream's answers to the scenarios that have none yet. Each is written as soon as it is complete.
    fn record(&self, scenarios: &[Scenario]) -> Result<()> {
        let mut missing = Vec::new();
        for scenario in scenarios {
            if self.recording(scenario)?.is_none() {
                missing.push(scenario);
            }
        }
        let seen: Mutex<BTreeMap<(String, usize, Proxier), Observation>> = Mutex::default();
        let failures = self.follow(true, &missing, &|observation| {
            let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
            let name = observation.scenario.clone();
            seen.insert((name.clone(), observation.step, observation.proxier), observation);
            let Some(scenario) = missing.iter().find(|scenario| scenario.name == name) else {
                return Ok(());
            };
            let steps: Option<Vec<_>> = (0..scenario.steps.len())
                .map(|step| {
                    let [ipvs, nftables] =
                        Proxier::UPSTREAM.map(|proxier| seen.get(&(name.clone(), step, proxier)));
                    Some(RecordedStep::new(ipvs?, nftables?))
                })
                .collect();
            let Some(steps) = steps else { return Ok(()) };
            let recording = Recording {
                upstream: self.version.clone(),
                scenario: scenario.fingerprint(),
                steps,
            };
            recording.write(scenario)
        })?;
        for failure in failures {
            eprintln!("{failure}");
        }
        Ok(())
    }

    /// Runs ours and shows the faults. Gives what is to be said of each scenario, and how many faults there are.
    fn compare<'a>(&self, scenarios: &'a [Scenario]) -> Result<(Outcomes<'a>, usize)> {
        let mut faults = Vec::new();
        let mut recorded = BTreeMap::new();
        for scenario in scenarios {
            match self.recording(scenario)? {
                Some(recording) => drop(recorded.insert(&scenario.name, recording)),
                None => faults.push(format!(
                    "{}: nothing is recorded of this text of it; --record does",
                    scenario.name
                )),
            }
        }
        let verdicts: Mutex<BTreeMap<(String, usize), Verdict>> = Mutex::default();
        let ready: Vec<_> = scenarios
            .iter()
            .filter(|scenario| recorded.contains_key(&scenario.name))
            .collect();
        let failures = self.follow(false, &ready, &|observation| {
            let found = scenarios
                .iter()
                .find(|scenario| scenario.name == observation.scenario);
            let step = recorded
                .get(&observation.scenario)
                .and_then(|recording| recording.steps.get(observation.step));
            if let (Some(scenario), Some(step)) = (found, step) {
                let verdict = judge(scenario, observation.step, &observation, step);
                let mut verdicts = verdicts.lock().unwrap_or_else(PoisonError::into_inner);
                verdicts.insert((observation.scenario, observation.step), verdict);
            }
            Ok(())
        })?;
        faults.extend(failures);
        let mut verdicts = verdicts.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut outcomes = Vec::new();
        for scenario in ready {
            let of_step = |number| verdicts.remove(&(scenario.name.clone(), number));
            let of_steps: Vec<_> = (0..scenario.steps.len()).map_while(of_step).collect();
            for (step, verdict) in scenario.steps.iter().zip(&of_steps) {
                let place = format!("{}: {}", scenario.name, step.name);
                faults.extend(verdict.faults.iter().map(|fault| format!("{place}: {fault}")));
            }
            if of_steps.len() == scenario.steps.len() {
                outcomes.push((scenario, of_steps));
            }
        }
        for fault in &faults {
            eprintln!("{fault}");
        }
        Ok((outcomes, faults.len()))
    }

    /// Takes upstream's modes, or ours, through scenarios, and gives those that could not be followed to their end.
    fn follow(
        &self,
        upstream: bool,
        scenarios: &[&Scenario],
        see: &(dyn Fn(Observation) -> Result<()> + Sync),
    ) -> Result<Vec<String>> {
        let mut sorted = scenarios.to_vec();
        // Proxiers run on from one scenario to the next with the same flags.
        sorted.sort_by_key(|scenario| &scenario.flags);
        let share = sorted.len().div_ceil(self.jobs).max(1);
        let failures = Mutex::default();
        let run = |scenarios: &[&Scenario]| self.in_guest(upstream, scenarios, see, &failures);
        std::thread::scope(|scope| {
            let guests: Vec<_> = sorted
                .chunks(share)
                .map(|share| scope.spawn(|| run(share)))
                .collect();
            let joined = guests.into_iter().map(|guest| guest.join());
            joined
                .map(|ended| ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                .fold(Ok(()), Result::and)
        })?;
        Ok(failures.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    fn in_guest(
        &self,
        upstream: bool,
        scenarios: &[&Scenario],
        see: &(dyn Fn(Observation) -> Result<()> + Sync),
        failures: &Mutex<Vec<String>>,
    ) -> Result<()> {
        let programs = Path::new("/usr/local/bin");
        let mut guest = Guest::prepare(None)?.limit(LIMIT).copy(
            cargo::program("integration", "observe")?,
            programs.join("observe"),
        );
        let mut command = vec!["observe".to_owned()];
        if upstream {
            let program = self.go.build(&Lab::open()?, Program::KubeProxy)?;
            guest = guest.copy(program, programs.join(UPSTREAM));
            command.push("--upstream".into());
        } else {
            guest = guest.copy(
                cargo::program("kube-proxy", "kube-proxy")?,
                programs.join("kube-proxy"),
            );
        }
        for scenario in scenarios {
            let files = [scenario.file.clone(), scenario.recorded()];
            let files = files.into_iter().filter(|file| file.exists());
            guest = files.fold(guest, |guest, file| guest.copy(&file, &file));
            command.push(scenario.file.display().to_string());
        }
        let mut server = ApiServer::start(&self.go)?;
        let mut output = Lines::new(|line| match parse(line)? {
            Event::Observed(observation) => {
                let Observation {
                    proxier,
                    scenario,
                    step,
                    took: (settled, probed),
                    ..
                } = &observation;
                eprintln!(
                    "{proxier}: {scenario}, step {step}: settled in {settled} ms, probed in {probed} ms"
                );
                see(observation)
            }
            Event::Failed {
                proxier,
                scenario,
                error,
            } => {
                let failure = format!("{scenario}: {proxier}: {error}");
                eprintln!("{failure}");
                failures
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(failure);
                Ok(())
            }
        });
        match uplink::run(&mut server, guest, &command, &mut output)? {
            0 => Ok(()),
            status => Err(Error::Unavailable(format!(
                "the guest's program ended with status {status}"
            ))),
        }
    }
}

fn io_error(action: &str, source: io::Error) -> Error {
    Error::Io {
        action: action.into(),
        source,
    }
}
