//! The API's objects decoded, as API servers send them: with managed fields, and other fields that nobody here reads.
//!
//! `cargo bench -p kube-proxy --bench decode` measures it, beside all fields decoded; `cargo test` sees that it runs.

#![allow(clippy::unwrap_used, reason = "a benchmark")]
#![allow(
    dead_code,
    unused_imports,
    reason = "modules of the program, with their tests"
)]

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use hyper::body::Bytes;
use k8s_openapi::api::{core, discovery};
use proxier::model::Change;
use serde::de::DeserializeOwned;

use self::{
    encoding::Encoding,
    objects::{EndpointSlice, Object, Service},
};

#[path = "../src/address.rs"]
mod address;
#[path = "../src/annotations.rs"]
mod annotations;
#[path = "../src/duration.rs"]
mod duration;
#[path = "../src/source/encoding.rs"]
mod encoding;
#[path = "../src/objects.rs"]
mod objects;

const SERVICE: [&[u8]; 2] = [
    include_bytes!("../testdata/service.pb"),
    include_bytes!("../testdata/service.json"),
];
const SLICE: [&[u8]; 2] = [
    include_bytes!("../testdata/slice.pb"),
    include_bytes!("../testdata/slice.json"),
];

fn main() {
    // Cargo says `--bench` when it is to be measured.
    let measured = std::env::args().any(|argument| argument == "--bench");
    let times = if measured { 10_000 } else { 1 };

    println!("each, the median of {times}");
    for (encoding, service, slice) in [
        (Encoding::Protobuf, SERVICE[0], SLICE[0]),
        (Encoding::Json, SERVICE[1], SLICE[1]),
    ] {
        print(&format!("a Service, {encoding:?}"), service, times, |bytes| {
            let change = decoded::<Service>(encoding, bytes);
            assert!(matches!(change, Some(Change::Service(_))));
            change
        });
        print(
            &format!("a slice of ten endpoints, {encoding:?}"),
            slice,
            times,
            |bytes| {
                let change = decoded::<EndpointSlice>(encoding, bytes);
                assert!(matches!(&change, Some(Change::EndpointSlice(slice)) if slice.endpoints.len() == 10));
                change
            },
        );
    }
    print(
        "a Service, Json, all fields",
        SERVICE[1],
        times,
        whole::<core::v1::Service>,
    );
    let every_field = whole::<discovery::v1::EndpointSlice>;
    print(
        "a slice of ten endpoints, Json, all fields",
        SLICE[1],
        times,
        every_field,
    );
}

/// The way from bytes to what the proxier takes.
fn decoded<T: Object>(encoding: Encoding, bytes: &'static [u8]) -> Option<Change> {
    let object: T = encoding.object(Bytes::from_static(bytes)).unwrap();
    object.convert().change
}

fn whole<T: DeserializeOwned>(json: &[u8]) -> T {
    serde_json::from_slice(json).unwrap()
}

fn print<T>(what: &str, bytes: &'static [u8], times: usize, decode: impl Fn(&'static [u8]) -> T) {
    let time = |_| {
        let start = Instant::now();
        black_box(decode(black_box(bytes)));
        start.elapsed()
    };
    let mut elapsed: Vec<Duration> = (0..times).map(time).collect();
    elapsed.sort();
    let median = elapsed.get(times / 2).unwrap();
    println!("{what:44} {:>6} bytes {median:>10.2?}", bytes.len());
}
