//! Each layer on its own, without a kernel: store, plan, diff, operations as messages, what is known of the kernel
//! afterwards, and its listings read.
//!
//! `cargo bench -p proxier --bench layers` measures them, `... -- 100000` with so many Services of ten endpoints;
//! `cargo test` sees that they run.

#![allow(clippy::unwrap_used, reason = "a benchmark")]
#![allow(missing_docs, reason = "a program")]

mod common;

use std::{
    collections::HashSet,
    hint::black_box,
    net::IpAddr,
    time::{Duration, Instant},
};

use ipvs::{Command, Destination, Family, sockopt, wire::ListedService};
use netlink_packet_core::{
    NetlinkDeserializable, NetlinkHeader, NetlinkMessage, NetlinkPayload, NetlinkSerializable,
};
use netlink_packet_generic::GenlMessage;
use proxier::{
    Applied, Config, Planner,
    kernel::{Observed, link, netfilter},
    model::Change,
    step::{Key, Operation, Step},
};

use self::common::{NODE, cluster, slice};

const ENDPOINTS: usize = 10;

const RTM_NEWADDR: u16 = 20;

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
    encode: Vec<Duration>,
    decode: Vec<Duration>,
    record: Vec<Duration>,
    observe: Vec<Duration>,
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
        timed(&mut self.encode, || encode(&steps));
        let listings = Listings::of(&steps);
        let read = timed(&mut self.decode, || listings.read());
        assert_eq!(read, steps.len());

        let observed = observed(&applied);
        let seen = timed(&mut self.observe, || Applied::new(observed, &[]));
        assert!(seen == applied);
        let out_of_step = timed(&mut self.verify, || out_of_step(&planner, &seen));
        assert_eq!(out_of_step, []);

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
            ("encode: all steps", &mut self.encode),
            ("decode: listings of all", &mut self.decode),
            ("applied: all steps done", &mut self.record),
            ("applied: all has been read", &mut self.observe),
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

fn diff(planner: &Planner, applied: &Applied, keys: Vec<Key>) -> Vec<Step> {
    planner.steps_from(applied, keys, &HashSet::new())
}

fn record(applied: &mut Applied, steps: &[Step]) {
    applied.record(steps.iter().map(|step| &step.operation));
}

/// The kernel's state, as it is read from the kernel.
fn observed(applied: &Applied) -> Observed {
    let servers = applied.servers();
    Observed {
        servers: servers
            .map(|(service, real_servers)| (*service, real_servers.copied().collect()))
            .collect(),
        addresses: applied.addresses().collect(),
        elements: applied.all_elements().copied().collect(),
        ..Observed::default()
    }
}

fn out_of_step(planner: &Planner, applied: &Applied) -> Vec<Key> {
    let drained = HashSet::new();
    let keys = planner.wanted().keys();
    keys.filter(|key| !planner.is_in_step(*key, applied, &drained))
        .collect()
}

/// The operations as messages, in one buffer.
fn encode(steps: &[Step]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for step in steps {
        match &step.operation {
            Operation::Ipvs(command) => append(&mut bytes, GenlMessage::from_payload(command)),
            Operation::Netfilter(update) => append(&mut bytes, *update),
            Operation::Link(update) => append(&mut bytes, on_link(*update)),
            Operation::SourcePorts(_) => {}
        }
    }
    bytes
}

fn append(bytes: &mut Vec<u8>, message: impl NetlinkSerializable) {
    let mut message = NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::InnerMessage(message));
    let (start, length) = (bytes.len(), message.buffer_len());
    message.header.length = u32::try_from(length).unwrap();
    bytes.resize(start + length.next_multiple_of(4), 0);
    message.serialize(bytes.get_mut(start..).unwrap());
}

const fn on_link(update: link::Update) -> link::Request {
    link::Request { update, link: 7 }
}

/// What the kernel would list: the attributes are those of the messages that made it.
#[derive(Default)]
struct Listings {
    services: Vec<Vec<u8>>,
    /// Of each service.
    destinations: Vec<Vec<u8>>,
    elements: Vec<Vec<u8>>,
    addresses: Vec<Vec<u8>>,
}

impl Listings {
    fn of(steps: &[Step]) -> Self {
        let mut listings = Self::default();
        for step in steps {
            match &step.operation {
                Operation::Ipvs(command @ Command::NewService(_)) => {
                    listings
                        .services
                        .push(payload(GenlMessage::from_payload(command)));
                    listings.destinations.push(Vec::new());
                }
                Operation::Ipvs(Command::NewDestination(_, destination)) => {
                    let answer = listings.destinations.last_mut().unwrap();
                    answer.extend(entry(destination));
                }
                Operation::Ipvs(_) => {}
                Operation::Netfilter(update) => listings.elements.push(payload(*update)),
                Operation::Link(update) => listings.addresses.push(payload(on_link(*update))),
                Operation::SourcePorts(_) => {}
            }
        }
        listings
    }

    /// Returns how many objects there are.
    fn read(&self) -> usize {
        let services = read::<GenlMessage<ListedService>>(&self.services, 0);
        let destinations = self.destinations.iter().map(|answer| sockopt::parse(answer));
        let destinations: usize = destinations.map(|parsed| black_box(parsed).len()).sum();
        let elements = read::<netfilter::Elements>(&self.elements, 0);
        let addresses = read::<link::Told>(&self.addresses, RTM_NEWADDR);
        services.len() + destinations + elements.len() + addresses.len()
    }
}

/// What follows the message's header.
fn payload(message: impl NetlinkSerializable) -> Vec<u8> {
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

fn read<T: NetlinkDeserializable>(messages: &[Vec<u8>], message_type: u16) -> Vec<T> {
    let mut header = NetlinkHeader::default();
    header.message_type = message_type;
    let read = messages.iter().map(|message| T::deserialize(&header, message));
    read.collect::<Result<_, _>>().ok().unwrap()
}

/// How the kernel answers to `IP_VS_SO_GET_DESTS` (`struct ip_vs_dest_entry`).
fn entry(destination: &Destination) -> [u8; 96] {
    let mut entry = [0; 96];
    let IpAddr::V4(address) = destination.address else {
        return entry;
    };
    entry[..4].copy_from_slice(&address.octets());
    entry[4..6].copy_from_slice(&destination.port.to_be_bytes());
    entry[12..16].copy_from_slice(&destination.weight.to_ne_bytes());
    entry
}

/// Never inlined, so that a profile has a function for each layer.
#[inline(never)]
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
