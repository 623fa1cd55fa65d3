//! Each layer on its own, without a kernel: store, plan, diff, and what is known of the kernel afterwards.
//!
//! `cargo bench -p proxier --bench layers` measures them, `... -- 100000` with so many Services of ten endpoints;
//! `cargo test` sees that they run.

#![allow(clippy::unwrap_used, reason = "a benchmark")]
#![allow(missing_docs, reason = "a program")]

mod common;

use std::{
    collections::HashSet,
    hint::black_box,
    time::{Duration, Instant},
};

use ipvs::Family;
use proxier::{
    Applied, Config, Planner,
    model::Change,
    step::{Key, Step},
};

use self::common::{NODE, cluster, slice};

const ENDPOINTS: usize = 10;

/// What is measured: so many Services, so often.
struct Size {
    services: usize,
    runs: usize,
}

fn main() {
    // Cargo says `--bench` when it is to be measured.
    let measured = std::env::args().any(|argument| argument == "--bench");
    let asked = std::env::args().find_map(|argument| argument.parse().ok());
    let size = Size {
        services: asked.unwrap_or(if measured { 10_000 } else { 10 }),
        runs: if measured { 5 } else { 1 },
    };
    println!("{} x {ENDPOINTS}, medians of {}", size.services, size.runs);
    let mut layers = Layers::default();
    for _ in 0..size.runs {
        layers.run(size.services);
    }
    layers.print(size.services);
}

/// The times of each layer.
#[derive(Default)]
struct Layers {
    store: Vec<Duration>,
    plan: Vec<Duration>,
    diff: Vec<Duration>,
    record: Vec<Duration>,
    verify: Vec<Duration>,
    change: Vec<Duration>,
    /// With everything of the last run, in KiB.
    resident: usize,
}

impl Layers {
    fn run(&mut self, services: usize) {
        let mut planner = Planner::new(Config::new(NODE), vec![Family::Inet, Family::Inet6], []);
        let changes: Vec<_> = cluster(services, ENDPOINTS).collect();
        timed(&mut self.store, || {
            changes.into_iter().for_each(|change| planner.take(change));
        });
        planner.take(Change::Synced);

        let mut applied = Applied::default();
        let planned = timed(&mut self.plan, || planner.plan_next(usize::MAX));
        let steps = timed(&mut self.diff, || diff(&planner, &applied, planned.keys));
        timed(&mut self.record, || record(&mut applied, &steps));
        assert_eq!(
            steps.len(),
            services * (ENDPOINTS + 4) + services * ENDPOINTS / 100
        );

        let keys: HashSet<_> = planner.wanted().keys().collect();
        let nothing = timed(&mut self.verify, || diff(&planner, &applied, keys));
        assert_eq!(nothing, []);

        let changed = slice(services / 2, ENDPOINTS, 1);
        let steps = timed(&mut self.change, || {
            planner.take(Change::EndpointSlice(changed));
            let planned = planner.plan_next(usize::MAX);
            let steps = diff(&planner, &applied, planned.keys);
            record(&mut applied, &steps);
            steps.len()
        });
        assert!(steps >= 2 * ENDPOINTS);
        self.resident = resident();
    }

    fn print(mut self, services: usize) {
        for (layer, times) in [
            ("store: all Services and slices", &mut self.store),
            ("plan: all Services", &mut self.plan),
            ("diff: all from nothing", &mut self.diff),
            ("applied: all steps done", &mut self.record),
            ("diff: nothing to do", &mut self.verify),
        ] {
            let median = median(times);
            let each = median.as_secs_f64() * 1e6 / services as f64;
            println!("{layer:32} {median:>10.2?} {each:>8.2} us a Service");
        }
        println!(
            "{:32} {:>10.2?}",
            "one slice changes, all layers",
            median(&mut self.change)
        );
        println!("{:32} {:>7} KiB", "resident memory", self.resident);
    }
}

fn diff(planner: &Planner, applied: &Applied, keys: HashSet<Key>) -> Vec<Step> {
    planner.steps_from(applied, keys, &HashSet::new())
}

fn record(applied: &mut Applied, steps: &[Step]) {
    steps.iter().for_each(|step| applied.record(&step.operation));
}

fn timed<T>(times: &mut Vec<Duration>, work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let done = black_box(work());
    times.push(start.elapsed());
    done
}

/// `VmRSS`
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let words = line.and_then(|line| line.split_whitespace().next());
    words.and_then(|word| word.parse().ok()).unwrap_or_default()
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort();
    times.get(times.len() / 2).copied().unwrap_or_default()
}
