//! `cargo xtask bench`: what ours costs beside upstream's, on the same objects, in one boot.

mod document;
mod flows;
mod picture;
mod row;

use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use integration::bench::{Course, FirstSync, FlowCosts, Flows, Limit, Line, Load, Memory, Outcome, Task};
use integration::go::{Go, Program};
use integration::kernel::Series;
use integration::proxiers::{KUBE_ROUTER, Proxier, UPSTREAM};
use integration::qemu::Accelerator;
use integration::{ApiServer, Error, Guest, Lab, Result, cargo, uplink};

use self::row::{Row, Target};
use crate::lines::Lines;
use crate::package;

/// The time that a guest has for all of it.
const LIMIT: Duration = Duration::from_secs(3 * 60 * 60);

/// How long upstream's mode ipvs may take for its first synchronisation, in seconds.
const PATIENCE: u64 = 20 * 60;

pub(crate) fn command() -> Command {
    Command::new("bench")
        .about("Measure ours beside upstream's kube-proxy, in modes ipvs and nftables, on the same objects")
        .after_help(
            "Only ratios mean anything: the guest's processor is emulated where there is no KVM. The exit status\n\
             says whether everything could be measured, not whether the targets are met; what could be is printed.",
        )
        .arg(
            Arg::new("quick")
                .long("quick")
                .action(ArgAction::SetTrue)
                .help("Fewer sizes and repetitions: some minutes"),
        )
        .arg(
            Arg::new("json")
                .long("json")
                .action(ArgAction::SetTrue)
                .help("Print one JSON object a row instead of the table"),
        )
        .arg(
            Arg::new("write")
                .long("write")
                .action(ArgAction::SetTrue)
                .help("Keep the figures in docs/benchmarks.md and docs/benchmarks.svg"),
        )
        .arg(crate::kernel_argument())
        .arg(
            Arg::new("services")
                .long("services")
                .value_name("COUNT")
                .value_parser(value_parser!(usize))
                .help("Run with this many Services of 10 endpoints only, to see that everything works"),
        )
}

pub(crate) fn run(arguments: &ArgMatches) -> Result<u8> {
    let mut plan = match arguments.get_one("services") {
        Some(services) => Plan {
            limit: [*services, 10, 2],
            tasks: trial(*services),
        },
        None if arguments.get_flag("quick") => Plan {
            limit: [10_000, 10, 2],
            tasks: quick(),
        },
        None => Plan {
            limit: [10_000, 10, 8],
            tasks: full(),
        },
    };
    let go = Go::find()?;
    let lab = Lab::open()?;
    let upstream = go.build(&lab, Program::KubeProxy)?;
    let kube_router = match go.build(&lab, Program::KubeRouter) {
        Ok(kube_router) => Some(kube_router),
        // Some module proxies do not have it.
        Err(error) => {
            eprintln!("lab: measuring WITHOUT kube-router: {error}");
            plan.leave_out(Proxier::KubeRouter);
            None
        }
    };
    let ours = package::native()?;
    let proxiers = Programs {
        ours: &ours,
        upstream: &upstream,
        kube_router: kube_router.as_deref(),
    };
    let measured = measure(&plan, &go, proxiers, arguments.get_one("kernel").copied())?;
    let mut rows = compare(&measured.outcomes);
    rows.extend(flows::rows(&measured.flows));
    rows.extend(measured.limits.iter().filter_map(held_against));
    rows.push(binary_size(&ours, &upstream)?);
    if arguments.get_flag("write") && measured.failure.is_none() {
        let router = kube_router.as_ref().map_or_else(String::new, |_| {
            format!("; kube-router {}", go.version(Program::KubeRouter))
        });
        let figures = format!(
            "{}; guest: Linux {}, {}; kube-proxy {}{router}\n\n{}\n![cost against size](benchmarks.svg)\n",
            document::machine(),
            measured.kernel,
            measured.accelerator,
            go.version(Program::KubeProxy),
            row::table(&rows)
        );
        document::write(&figures, &picture::draw(&measured.outcomes))?;
    }
    let text = if arguments.get_flag("json") {
        rows.iter()
            .map(|row| serde_json::to_string(row).unwrap_or_default() + "\n")
            .collect()
    } else {
        row::table(&rows)
    };
    io::stdout()
        .write_all(text.as_bytes())
        .map_err(|source| Error::Io {
            action: "write the table".into(),
            source,
        })?;
    measured.failure.map_or(Ok(0), Err)
}

/// What is done in a boot.
struct Plan {
    /// Services, endpoints of each, and repetitions of what is held against the kernel's limit.
    limit: [usize; 3],
    tasks: Vec<Task>,
}

impl Plan {
    fn leave_out(&mut self, proxier: Proxier) {
        self.tasks.retain(|task| match task {
            Task::Course(course) => course.proxier != proxier,
            Task::Flows(flows) => !flows.proxiers.contains(&proxier),
        });
    }
}

/// The proxiers' programs.
#[derive(Clone, Copy)]
struct Programs<'a> {
    ours: &'a Path,
    upstream: &'a Path,
    kube_router: Option<&'a Path>,
}

/// What came of it.
struct Measured {
    kernel: String,
    accelerator: String,
    outcomes: Vec<Outcome>,
    flows: Vec<FlowCosts>,
    limits: Vec<Limit>,
    /// Why there is no more.
    failure: Option<Error>,
}

impl Measured {
    fn add(&mut self, outcome: Outcome) {
        let key = |outcome: &Outcome| (outcome.course.proxier, outcome.course.load);
        let mut earlier = self.outcomes.iter_mut();
        match earlier.find(|earlier| key(earlier) == key(&outcome)) {
            Some(earlier) => earlier.add(outcome),
            None => self.outcomes.push(outcome),
        }
    }
}

/// Does it, in one boot.
fn measure(plan: &Plan, go: &Go, proxiers: Programs<'_>, series: Option<Series>) -> Result<Measured> {
    let limit = cargo::benchmark("proxier", "limit")?;
    let driver = cargo::program("integration", "bench")?;
    let mut server = ApiServer::start(go)?;
    let programs = Path::new("/usr/local/bin");
    let mut guest = Guest::prepare(series)?
        .limit(LIMIT)
        .copy(proxiers.ours, programs.join("kube-proxy"))
        .copy(proxiers.upstream, programs.join(UPSTREAM))
        .copy(limit, programs.join("limit"))
        .copy(driver, programs.join("bench"));
    if let Some(kube_router) = proxiers.kube_router {
        guest = guest.copy(kube_router, programs.join(KUBE_ROUTER));
    }
    let mut measured = Measured {
        kernel: guest.kernel().release().to_owned(),
        accelerator: Accelerator::choose(&Lab::open()?, guest.kernel())?.to_string(),
        outcomes: Vec::new(),
        flows: Vec::new(),
        limits: Vec::new(),
        failure: None,
    };
    let [services, endpoints, repetitions] = plan.limit;
    let script = format!("limit {services} {endpoints} {repetitions} && bench \"$@\"");
    let command = ["sh", "-c", &script, "sh"].map(str::to_owned).into_iter();
    let tasks = plan.tasks.iter().flat_map(serde_json::to_string);
    let command: Vec<_> = command.chain(tasks).collect();
    let mut output = Lines::new(|line| {
        match Line::parse(line)? {
            Line::Outcome(outcome) => {
                eprintln!("lab: measured {}, {}", outcome.course.proxier, size(&outcome));
                measured.add(outcome);
            }
            Line::Flows(costs) => {
                eprintln!("lab: measured packets among {} Services", costs.load.services);
                measured.flows.push(costs);
            }
            Line::Limit(limit) => measured.limits.push(limit),
        }
        Ok(())
    });
    let ended = uplink::run(&mut server, guest, &command, &mut output);
    measured.failure = match ended {
        Ok(0) => None,
        Ok(status) => Some(Error::Unavailable(format!(
            "the measurements ended with status {status}"
        ))),
        Err(error) => Some(error),
    };
    Ok(measured)
}

const fn load(services: usize) -> Load {
    Load {
        services,
        endpoints: 10,
    }
}

const fn course(proxier: Proxier, services: usize) -> Course {
    Course {
        proxier,
        load: load(services),
        starts: 1,
        changes: 0,
        idle: 0,
        patience: PATIENCE,
    }
}

/// Mode ipvs takes too long to program more than a few Services; the number of its iptables rules is constant.
fn flows(services: usize, proxiers: &[Proxier], rounds: usize) -> Task {
    Task::Flows(Flows {
        load: load(services),
        proxiers: proxiers.to_vec(),
        rounds,
        patience: PATIENCE,
    })
}

/// A little of everything.
fn trial(services: usize) -> Vec<Task> {
    let short = |proxier| Course {
        starts: 2,
        changes: 3,
        idle: 30,
        ..course(proxier, services)
    };
    let courses = Proxier::ALL.map(|proxier| Task::Course(short(proxier)));
    let kube_router = Course {
        idle: 0,
        ..short(Proxier::KubeRouter)
    };
    [
        courses.to_vec(),
        vec![Task::Course(kube_router), flows(services, &Proxier::ALL, 3)],
    ]
    .concat()
}

/// Ours before, between and after its peers, because the speed of an emulated processor changes with time.
fn in_turns(ours: Course, peers: &[Course]) -> Vec<Task> {
    let mut courses = vec![ours];
    courses.extend(peers.iter().flat_map(|peer| [*peer, ours]));
    courses.into_iter().map(Task::Course).collect()
}

fn quick() -> Vec<Task> {
    use Proxier::{KubeRouter, Ours, UpstreamIpvs, UpstreamNftables};
    let small = in_turns(
        Course {
            starts: 2,
            changes: 20,
            ..course(Ours, 200)
        },
        &[
            Course {
                changes: 4,
                ..course(UpstreamIpvs, 200)
            },
            Course {
                changes: 4,
                ..course(UpstreamNftables, 200)
            },
        ],
    );
    let large = in_turns(
        Course {
            changes: 15,
            ..course(Ours, 1000)
        },
        &[
            Course {
                changes: 4,
                ..course(UpstreamNftables, 1000)
            },
            // It does not come to an end, but has its objects.
            Course {
                patience: 15,
                ..course(UpstreamIpvs, 1000)
            },
        ],
    );
    [
        vec![flows(10, &Proxier::ALL, 40)],
        small,
        vec![Task::Course(course(KubeRouter, 200))],
        large,
        vec![flows(1000, &[Ours, UpstreamNftables], 40)],
    ]
    .concat()
}

fn full() -> Vec<Task> {
    use Proxier::{KubeRouter, Ours, UpstreamIpvs, UpstreamNftables};
    let ours = |services| Course {
        starts: 2,
        changes: 35,
        ..course(Ours, services)
    };
    let idle = |course| Course { idle: 600, ..course };
    let small = in_turns(
        ours(200),
        &[
            idle(Course {
                starts: 5,
                changes: 20,
                ..course(UpstreamIpvs, 200)
            }),
            Course {
                starts: 5,
                changes: 20,
                ..course(KubeRouter, 200)
            },
            Course {
                starts: 5,
                changes: 20,
                ..course(UpstreamNftables, 200)
            },
        ],
    );
    let large = in_turns(
        ours(1000),
        &[
            Course {
                starts: 5,
                changes: 20,
                ..course(UpstreamNftables, 1000)
            },
            course(UpstreamIpvs, 1000),
        ],
    );
    let largest = in_turns(
        Course {
            starts: 3,
            changes: 50,
            ..course(Ours, 10_000)
        },
        &[Course {
            changes: 5,
            ..course(UpstreamNftables, 10_000)
        }],
    );
    let smallest = Course {
        starts: 5,
        changes: 100,
        ..course(Ours, 100)
    };
    // Objects only become more.
    [
        vec![flows(10, &Proxier::ALL, 120), Task::Course(smallest)],
        small,
        large,
        vec![flows(1000, &[Ours, UpstreamNftables], 120)],
        largest,
        vec![
            Task::Course(idle(Course {
                starts: 0,
                ..course(Ours, 10_000)
            })),
            flows(10_000, &[Ours, UpstreamNftables], 120),
        ],
    ]
    .concat()
}

/// The proxier beside the kernel's limit.
fn held_against(limit: &Limit) -> Option<Row> {
    let (what, peer, target) = match limit.what.as_str() {
        "first sync" => (
            "plan, diff and apply of everything [s]",
            "the same messages",
            1.25,
        ),
        "burst" => ("1000 endpoints change [s]", "the same messages", 1.5),
        "verification" => ("verification, nothing changed [s]", "the same dumps", 1.3),
        "change" => ("one endpoint changes, in process [s]", "among 100 Services", 1.2),
        _ => return None,
    };
    let what = format!("{what}, {}", limit.size);
    Some(Row::in_turns(
        what,
        peer,
        &limit.ours,
        &limit.theirs,
        Target::Within(target),
    ))
}

/// What there is to be said about these outcomes.
fn compare(outcomes: &[Outcome]) -> Vec<Row> {
    let of = |proxier, services| {
        outcomes
            .iter()
            .find(|outcome| outcome.course.proxier == proxier && outcome.course.load.services == services)
    };
    let mut rows = Vec::new();
    for theirs in outcomes {
        let (peer, load) = (theirs.course.proxier, theirs.course.load);
        let Some(ours) = of(Proxier::Ours, load.services).filter(|_| peer != Proxier::Ours) else {
            continue;
        };
        rows.extend(pair(ours, theirs));
    }
    let all_of = |proxier| {
        outcomes
            .iter()
            .filter(move |outcome| outcome.course.proxier == proxier)
    };
    all_of(Proxier::Ours).for_each(|ours| rows.extend(alone(ours)));
    let most = all_of(Proxier::Ours).max_by_key(|ours| ours.course.load.services);
    let larger = most.filter(|ours| ours.course.load.services > 1000);
    rows.extend(larger.zip(of(Proxier::UpstreamIpvs, 1000)).map(|(ours, theirs)| {
        let what = "resident memory [MiB]";
        beside_fewer(ours, theirs, what, resident, Target::Within(1.0))
    }));
    let watched = all_of(Proxier::UpstreamIpvs).find(|outcome| outcome.idle.is_some());
    rows.extend(most.zip(watched).map(|(ours, theirs)| {
        let idle = |outcome: &Outcome| outcome.idle.into_iter().collect();
        beside_fewer(
            ours,
            theirs,
            "processor time when idle [s/s]",
            idle,
            Target::Times(100.0),
        )
    }));
    rows
}

/// What is asked of ours, whatever upstream does.
fn alone(ours: &Outcome) -> Vec<Row> {
    let size = size(ours);
    let first_server = |sync: &FirstSync| sync.first_server;
    let first_servers: Vec<_> = ours.first_syncs.iter().filter_map(first_server).collect();
    vec![
        Row::new(
            format!("first virtual server from caches synced [s], {size}"),
            "-",
            &first_servers,
            &[],
            Target::AtMost(0.1),
        ),
        Row::new(
            format!("peak memory [MiB], {size}"),
            "ours, resident",
            &peak(ours),
            &resident(ours),
            Target::Within(1.5),
        ),
    ]
}

/// Ours beside a peer, which may have fewer Services.
fn beside_fewer(
    ours: &Outcome,
    theirs: &Outcome,
    what: &str,
    values: fn(&Outcome) -> Vec<f64>,
    target: Target,
) -> Row {
    let mut sizes = size(ours);
    if theirs.course.load != ours.course.load {
        sizes += &format!(", theirs {}", size(theirs));
    }
    let peer = theirs.course.proxier.to_string();
    Row::new(
        format!("{what}, {sizes}"),
        peer,
        &values(ours),
        &values(theirs),
        target,
    )
}

fn size(outcome: &Outcome) -> String {
    let load = outcome.course.load;
    format!("{} x {}", load.services, load.endpoints)
}

/// In MiB.
fn resident(outcome: &Outcome) -> Vec<f64> {
    mebibytes(outcome, |memory| memory.resident)
}

/// In MiB.
fn peak(outcome: &Outcome) -> Vec<f64> {
    mebibytes(outcome, |memory| memory.peak)
}

fn mebibytes(outcome: &Outcome, value: fn(&Memory) -> u64) -> Vec<f64> {
    let kibibytes = outcome.memory.iter().map(value);
    kibibytes.map(|kibibytes| kibibytes as f64 / 1024.0).collect()
}

/// Ours and a peer's, on the same objects.
fn pair(ours: &Outcome, theirs: &Outcome) -> Vec<Row> {
    use Proxier::{KubeRouter, UpstreamIpvs, UpstreamNftables};
    let (peer, load) = (theirs.course.proxier, theirs.course.load);
    let size = size(theirs);
    let name = peer.to_string();
    let synced = |outcome: &Outcome, value: fn(&FirstSync) -> f64| -> Vec<f64> {
        outcome.first_syncs.iter().map(value).collect()
    };
    let target = |peer: Proxier, of_ipvs: Target, of_nftables: Target| match peer {
        UpstreamIpvs => of_ipvs,
        UpstreamNftables => of_nftables,
        KubeRouter | Proxier::Ours => Target::None,
    };
    let (from_caches, from_start, change, memory) = match load.services {
        200 if peer == KubeRouter => (Target::Times(5.0), Target::None, Target::None, Target::None),
        200 => (
            target(peer, Target::Times(120.0), Target::Times(7.0)),
            target(peer, Target::Times(25.0), Target::Times(5.0)),
            target(peer, Target::Times(500.0), Target::None),
            Target::None,
        ),
        1000 => (
            target(peer, Target::Times(300.0), Target::Times(5.0)),
            Target::None,
            target(peer, Target::None, Target::Times(250.0)),
            target(peer, Target::Times(6.0), Target::None),
        ),
        _ => (Target::None, Target::None, Target::None, Target::None),
    };
    let mut rows = Vec::new();
    let mut add = |what: &str, ours: &[f64], theirs: &[f64], target| {
        if !theirs.is_empty() {
            rows.push(Row::new(format!("{what}, {size}"), &name, ours, theirs, target));
        }
    };
    for (what, value, target) in [
        (
            "first sync from caches synced [s]",
            (|sync| sync.from_caches) as fn(&FirstSync) -> f64,
            from_caches,
        ),
        (
            "first sync from process start [s]",
            |sync| sync.from_start,
            from_start,
        ),
    ] {
        add(what, &synced(ours, value), &synced(theirs, value), target);
    }
    add(
        "resident memory [MiB]",
        &resident(ours),
        &resident(theirs),
        memory,
    );
    add("peak memory [MiB]", &peak(ours), &peak(theirs), Target::None);
    if !theirs.changes.is_empty() {
        let what = |which: &str| format!("one endpoint changes, {which} [s], {size}");
        rows.push(Row::new(
            what("median"),
            &name,
            &ours.changes,
            &theirs.changes,
            change,
        ));
        rows.push(Row::worst(
            what("p99"),
            &name,
            &ours.changes,
            &theirs.changes,
            change,
        ));
    }
    rows
}

fn binary_size(ours: &Path, upstream: &Path) -> Result<Row> {
    let megabytes = |path: &Path| {
        let metadata = std::fs::metadata(path).map_err(|source| Error::Io {
            action: format!("find {}", path.display()),
            source,
        });
        Ok::<_, Error>(metadata?.len() as f64 / 1e6)
    };
    let what = "size of the binary [MB]";
    Ok(Row::new(
        what,
        "upstream",
        &[megabytes(ours)?],
        &[megabytes(upstream)?],
        Target::AtMost(15.0),
    ))
}
