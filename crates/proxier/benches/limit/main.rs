//! The proxier beside the kernel's limit: the same netlink messages, encoded beforehand and sent in the largest
//! batches that the kernel takes.
//!
//! It needs root and IPVS, and runs each repetition in a network namespace of its own; `cargo xtask bench` runs it in
//! a guest. Its arguments are numbers: Services, endpoints of each, repetitions. It prints a line of JSON for each
//! comparison, with the times of both in seconds.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a benchmark"
)]
#![allow(missing_docs, reason = "a program")]

#[path = "../common/mod.rs"]
mod common;
mod tape;

use std::{
    pin::Pin,
    sync::{Barrier, mpsc},
    time::Duration,
};

use dlmalloc::GlobalDlmalloc;
use ipvs::Handle;
use proxier::{
    Config, Reconciler,
    kernel::linux::Linux,
    model::Change,
    report::{Occasion, Report, Sync},
};
use rustix::{
    thread::UnshareFlags,
    time::{ClockId, clock_gettime},
};
use tokio::{
    sync::mpsc::{UnboundedSender, unbounded_channel},
    time::{sleep, timeout},
};
use tracing_subscriber::layer::SubscriberExt;

use self::{
    common::{NODE, cluster, slice},
    tape::{Recorder, Replay, Sent},
};

/// The program's.
#[global_allocator]
static ALLOCATOR: GlobalDlmalloc = GlobalDlmalloc;

/// Far enough that a verification happens when one is asked for, and at no other time.
const SYNC_PERIOD: Duration = Duration::from_secs(24 * 60 * 60);

/// Long enough for everything that is pending to be done.
const MOMENT: Duration = Duration::from_millis(20);

/// How many endpoints a burst replaces, among how many Services, and how many bursts there are in a repetition: one takes
/// so little time that few would tell nothing.
const BURST: usize = 1000;
const BURST_SERVICES: usize = 1000;
const BURSTS: usize = 6;

/// How many Services there are beside many, to see whether a change depends on their number.
const FEW: usize = 100;

/// How many single changes are timed in a repetition.
const CHANGES: usize = 50;

fn main() {
    let numbers: Vec<usize> = std::env::args()
        .filter_map(|argument| argument.parse().ok())
        .collect();
    let &[services, endpoints, repetitions] = numbers.as_slice() else {
        eprintln!("limit: Services, endpoints of each and repetitions are needed");
        return;
    };
    let recorder: &'static Recorder = Box::leak(Box::default());
    tracing::subscriber::set_global_default(tracing_subscriber::registry().with(recorder)).unwrap();
    let bench = Bench {
        recorder,
        services,
        endpoints,
    };
    let bursts = Bench {
        services: services.min(BURST_SERVICES),
        ..bench
    };
    // Also the warm-up: modules are loaded.
    let (tapes, burst_tapes) = (bench.record(), bursts.record_burst());
    let mut runs = Runs::default();
    for _ in 0..repetitions {
        bench.run(&tapes, &mut runs);
        for _ in 0..BURSTS {
            bursts.run_burst(&burst_tapes, &mut runs);
        }
    }
    let print = |what: &str, services: usize, ours: &[f64], theirs: &[f64]| {
        let size = format!("{services} x {endpoints}");
        println!("{{\"what\":\"{what}\",\"size\":\"{size}\",\"ours\":{ours:?},\"theirs\":{theirs:?}}}");
    };
    let Runs { ours, replay, .. } = &runs;
    print("first sync", services, &ours.first_sync, &replay.first_sync);
    print("burst", bursts.services, &ours.burst, &replay.burst);
    print("verification", services, &ours.verification, &replay.verification);
    print("change", services, &runs.many, &runs.few);
}

#[derive(Clone, Copy)]
struct Bench {
    recorder: &'static Recorder,
    services: usize,
    endpoints: usize,
}

/// What the proxier sent for its first synchronisation, and then for something else.
struct Tapes {
    first_sync: Vec<Sent>,
    then: Vec<Sent>,
}

#[derive(Default)]
struct Runs {
    ours: Times,
    replay: Times,
    /// A change with all Services, and with a few.
    many: Vec<f64>,
    few: Vec<f64>,
}

#[derive(Default)]
struct Times {
    first_sync: Vec<f64>,
    burst: Vec<f64>,
    verification: Vec<f64>,
}

impl Bench {
    /// Then a verification.
    fn record(&self) -> Tapes {
        in_namespace(|| async {
            let (mut proxier, first_sync) = self.record_first_sync().await;
            self.recorder.start();
            proxier.verification().await;
            let then = self.recorder.stop();
            Tapes { first_sync, then }
        })
    }

    /// Then a burst.
    fn record_burst(&self) -> Tapes {
        in_namespace(|| async {
            let (mut proxier, first_sync) = self.record_first_sync().await;
            self.recorder.start();
            proxier.send_burst(self.endpoints);
            proxier.programming().await;
            let then = self.recorder.stop();
            Tapes { first_sync, then }
        })
    }

    async fn record_first_sync(&self) -> (Proxier, Vec<Sent>) {
        let mut proxier = Proxier::start(self.services, self.endpoints).await;
        self.recorder.start();
        proxier.first_sync().await;
        (proxier, self.recorder.stop())
    }

    /// The proxier and the same messages at the same time, on one processor whose speed changes: each in a namespace of its
    /// own, of which both are there until the end, because all share the kernel's tables.
    fn run(
        &self,
        tapes: &Tapes,
        Runs {
            ours,
            replay,
            many,
            few,
        }: &mut Runs,
    ) {
        let both = &Barrier::new(2);
        let replaying = || async move {
            Linux::prepare(&config()).await.unwrap();
            let first_sync = Replay::batches(&tapes.first_sync);
            let verification = Replay::as_sent(&tapes.then);
            both.wait();
            replay.first_sync.push(processor_time(|| first_sync.write()));
            both.wait();
            replay.verification.push(processor_time(|| {
                verification.read();
                std::fs::read("/proc/thread-self/net/ip_vs").unwrap();
            }));
            both.wait();
        };
        std::thread::scope(|scope| {
            let (ask, asked) = mpsc::channel();
            let (tell, told) = mpsc::channel();
            let among_few = || async move {
                let mut proxier = Proxier::start(self.services.min(FEW), self.endpoints).await;
                proxier.first_sync().await;
                tell.send(None).unwrap();
                for number in asked {
                    let time = proxier.change(number, self.endpoints).await;
                    tell.send(Some(time)).unwrap();
                }
            };
            scope.spawn(|| in_namespace(among_few));
            told.recv().unwrap();
            scope.spawn(|| in_namespace(replaying));
            in_namespace(move || async move {
                let mut proxier = Proxier::start(self.services, self.endpoints).await;
                both.wait();
                ours.first_sync.push(proxier.first_sync().await);
                let (mut among_many, mut among_few) = (Vec::new(), Vec::new());
                // In turns, for the same reason.
                for number in 0..CHANGES {
                    among_many.push(proxier.change(number, self.endpoints).await);
                    ask.send(number).unwrap();
                    among_few.extend(told.recv().unwrap());
                }
                many.push(median(among_many));
                few.push(median(among_few));
                ours.verification.push(proxier.verification().await);
                both.wait();
                both.wait();
            });
        });
    }

    /// Both at the same time, too.
    fn run_burst(&self, tapes: &Tapes, Runs { ours, replay, .. }: &mut Runs) {
        let both = &Barrier::new(2);
        let replaying = || async move {
            Linux::prepare(&config()).await.unwrap();
            Replay::batches(&tapes.first_sync).write();
            let burst = Replay::batches(&tapes.then);
            sleep(MOMENT).await;
            both.wait();
            replay.burst.push(processor_time(|| burst.write()));
            both.wait();
        };
        std::thread::scope(|scope| {
            scope.spawn(|| in_namespace(replaying));
            in_namespace(|| async move {
                let mut proxier = Proxier::start(self.services, self.endpoints).await;
                proxier.first_sync().await;
                proxier.pass(MOMENT).await;
                proxier.send_burst(self.endpoints);
                both.wait();
                ours.burst.push(proxier.programming().await);
                both.wait();
            });
        });
    }
}

/// A proxier at work.
struct Proxier {
    run: Pin<Box<dyn Future<Output = ()>>>,
    changes: UnboundedSender<Change>,
    syncs: mpsc::Receiver<Sync>,
}

impl Proxier {
    /// It has all objects, and has not been told yet that these are all.
    async fn start(services: usize, endpoints: usize) -> Self {
        let kernel = Linux::prepare(&config()).await.unwrap();
        let (told, syncs) = mpsc::channel();
        let observer = move |report| {
            if let Report::Sync(sync) = report {
                told.send(sync).unwrap();
            }
        };
        let reconciler = Reconciler::new(config(), kernel, observer).await.unwrap();
        let (changes, receiver) = unbounded_channel();
        let mut proxier = Self {
            run: Box::pin(reconciler.run(receiver)),
            changes,
            syncs,
        };
        cluster(services, endpoints).for_each(|change| proxier.send(change));
        proxier.pass(MOMENT).await;
        proxier
    }

    fn send(&self, change: Change) {
        self.changes.send(change).unwrap();
    }

    async fn pass(&mut self, time: Duration) {
        timeout(time, &mut self.run)
            .await
            .expect_err("it runs until the source hangs up");
    }

    /// Processor time of this thread, in the kernel too: plan, diff and apply of everything.
    async fn first_sync(&mut self) -> f64 {
        self.send(Change::Synced);
        let (used, _) = self.until(|sync| sync.complete).await;
        used
    }

    /// A thousand endpoints are replaced.
    fn send_burst(&self, endpoints: usize) {
        for number in 0..BURST / endpoints {
            self.send(Change::EndpointSlice(slice(number, endpoints, 1)));
        }
    }

    /// Processor time of one endpoint's replacement in this Service.
    async fn change(&mut self, number: usize, endpoints: usize) -> f64 {
        let mut changed = slice(number, endpoints, 0);
        changed.endpoints[0] = slice(number, endpoints, 1).endpoints[0].clone();
        self.send(Change::EndpointSlice(changed));
        self.programming().await
    }

    /// Processor time until all that was sent is programmed.
    async fn programming(&mut self) -> f64 {
        let (used, _) = self
            .until(|sync| sync.occasion == Occasion::Change && !sync.pending)
            .await;
        used
    }

    /// Processor time of one verification, which finds nothing to do. It is asked for by an address that comes and is gone
    /// before anyone sees it.
    async fn verification(&mut self) -> f64 {
        for action in ["add", "del"] {
            ip(&["addr", action, "192.0.2.1/32", "dev", "kube-ipvs0"]);
        }
        let (used, sync) = self.until(|sync| sync.occasion == Occasion::Verification).await;
        assert!(sync.work.is_empty(), "nothing has changed");
        used
    }

    /// Processor time until there is such a one from now on, with that.
    async fn until(&mut self, wanted: impl Fn(&Sync) -> bool) -> (f64, Sync) {
        self.syncs.try_iter().for_each(drop);
        let mut used = 0.0;
        loop {
            used += self.processor_time(MOMENT).await;
            if let Some(sync) = self.syncs.try_iter().find(&wanted) {
                return (used, sync);
            }
        }
    }

    async fn processor_time(&mut self, time: Duration) -> f64 {
        let before = thread_time();
        self.pass(time).await;
        thread_time() - before
    }
}

fn config() -> Config {
    Config {
        sync_period: SYNC_PERIOD,
        ..Config::new(NODE)
    }
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn processor_time(work: impl FnOnce()) -> f64 {
    let before = thread_time();
    work();
    thread_time() - before
}

/// What this thread has used so far of a processor, in seconds.
fn thread_time() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Runs something in a network namespace of its own, of which nothing is left then.
fn in_namespace<T: Send, F: Future<Output = T>>(work: impl FnOnce() -> F + Send) -> T {
    let inside = || {
        // SAFETY: a network namespace has nothing to do with memory or file descriptors.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.expect("root is needed");
        // Without any address of its own it would take no address for one that can be reached.
        ip(&["link", "set", "lo", "up"]);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.unwrap().block_on(async {
            let outcome = work().await;
            // The kernel has one table for all namespaces, and would clean it up at some other time.
            let mut ipvs = Handle::connect().await.unwrap();
            ipvs.execute(&ipvs::Command::Flush).await.unwrap();
            outcome
        })
    };
    std::thread::scope(|scope| scope.spawn(inside).join().unwrap())
}

fn ip(arguments: &[&str]) {
    let status = std::process::Command::new("ip").args(arguments).status();
    assert!(status.expect("ip is needed").success());
}
