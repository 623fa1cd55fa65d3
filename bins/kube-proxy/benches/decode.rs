//! The API's objects decoded, as the API server sends them: with managed fields, and other fields that nobody here
//! reads.
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

use k8s_openapi::api::{core, discovery};
use proxier::model::Change;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use self::objects::{EndpointSlice, Object, Service};

#[path = "../src/address.rs"]
mod address;
#[path = "../src/annotations.rs"]
mod annotations;
#[path = "../src/duration.rs"]
mod duration;
#[path = "../src/objects.rs"]
mod objects;

const ENDPOINTS: usize = 10;

fn main() {
    // Cargo says `--bench` when it is to be measured.
    let measured = std::env::args().any(|argument| argument == "--bench");
    let times = if measured { 10_000 } else { 1 };
    let (service, slice) = (service(), slice());
    assert!(matches!(decoded::<Service>(&service), Some(Change::Service(_))));
    let endpoints = decoded::<EndpointSlice>(&slice).map(|change| match change {
        Change::EndpointSlice(slice) => slice.endpoints.len(),
        _ => 0,
    });
    assert_eq!(endpoints, Some(ENDPOINTS));

    println!("each, the median of {times}");
    print("a Service", &service, times, decoded::<Service>);
    print(
        "a slice of ten endpoints",
        &slice,
        times,
        decoded::<EndpointSlice>,
    );
    print(
        "a Service, all fields",
        &service,
        times,
        whole::<core::v1::Service>,
    );
    let every_field = whole::<discovery::v1::EndpointSlice>;
    print("a slice of ten endpoints, all fields", &slice, times, every_field);
}

/// The way from bytes to what the proxier takes.
fn decoded<T: Object>(json: &[u8]) -> Option<Change> {
    let object: T = serde_json::from_slice(json).unwrap();
    object.convert().change
}

fn whole<T: DeserializeOwned>(json: &[u8]) -> T {
    serde_json::from_slice(json).unwrap()
}

fn print<T>(what: &str, json: &[u8], times: usize, decode: fn(&[u8]) -> T) {
    let time = |_| {
        let start = Instant::now();
        black_box(decode(black_box(json)));
        start.elapsed()
    };
    let mut elapsed: Vec<Duration> = (0..times).map(time).collect();
    elapsed.sort();
    let median = elapsed.get(times / 2).unwrap();
    println!("{what:40} {:>6} bytes {median:>10.2?}", json.len());
}

fn service() -> Vec<u8> {
    let fields = json!({
        "f:metadata": {"f:labels": {".": {}, "f:app": {}}},
        "f:spec": {
            "f:internalTrafficPolicy": {},
            "f:ports": {
                ".": {},
                "k:{\"port\":80,\"protocol\":\"TCP\"}": {
                    ".": {}, "f:name": {}, "f:port": {}, "f:protocol": {}, "f:targetPort": {},
                },
            },
            "f:selector": {},
            "f:sessionAffinity": {},
            "f:type": {},
        },
    });
    let service = json!({
        "kind": "Service",
        "apiVersion": "v1",
        "metadata": {
            "name": "web",
            "namespace": "shop",
            "uid": "5f4a6c0e-2a53-4b8e-9d3c-0a4b8f4f7a11",
            "resourceVersion": "81234",
            "creationTimestamp": "2026-03-01T09:00:00Z",
            "labels": {"app": "web", "app.kubernetes.io/managed-by": "Helm"},
            "annotations": {"meta.helm.sh/release-name": "shop", "meta.helm.sh/release-namespace": "shop"},
            "managedFields": managed("helm", &fields),
        },
        "spec": {
            "ports": [{"name": "http", "protocol": "TCP", "port": 80, "targetPort": 8080}],
            "selector": {"app": "web"},
            "clusterIP": "10.96.14.7",
            "clusterIPs": ["10.96.14.7"],
            "type": "ClusterIP",
            "sessionAffinity": "None",
            "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack",
            "internalTrafficPolicy": "Cluster",
        },
        "status": {"loadBalancer": {}},
    });
    serde_json::to_vec(&service).unwrap()
}

fn slice() -> Vec<u8> {
    let endpoint = |number: usize| {
        json!({
            "addresses": [format!("10.244.{number}.23")],
            "conditions": {"ready": true, "serving": true, "terminating": false},
            "targetRef": {
                "kind": "Pod",
                "namespace": "shop",
                "name": format!("web-7c5ddbdf54-x{number}k2p"),
                "uid": format!("0d7f1a52-93b1-4f0e-8f57-6f1f2a0c9e0{number}"),
            },
            "nodeName": format!("worker-{number}.example.internal"),
            "zone": "eu-central-1a",
        })
    };
    let fields = json!({
        "f:addressType": {},
        "f:endpoints": {},
        "f:metadata": {
            "f:annotations": {".": {}, "f:endpoints.kubernetes.io/last-change-trigger-time": {}},
            "f:generateName": {},
            "f:labels": {
                ".": {},
                "f:app": {},
                "f:endpointslice.kubernetes.io/managed-by": {},
                "f:kubernetes.io/service-name": {},
            },
            "f:ownerReferences": {".": {}, "k:{\"uid\":\"5f4a6c0e-2a53-4b8e-9d3c-0a4b8f4f7a11\"}": {}},
        },
        "f:ports": {},
    });
    let slice = json!({
        "kind": "EndpointSlice",
        "apiVersion": "discovery.k8s.io/v1",
        "metadata": {
            "name": "web-8xq2m",
            "generateName": "web-",
            "namespace": "shop",
            "uid": "c1f8f7b5-86b5-4d16-8a52-77a1c7d9a6de",
            "resourceVersion": "93817",
            "generation": 17,
            "creationTimestamp": "2026-03-01T09:00:00Z",
            "labels": {
                "app": "web",
                "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
                "kubernetes.io/service-name": "web",
            },
            "annotations": {"endpoints.kubernetes.io/last-change-trigger-time": "2026-03-01T10:00:00Z"},
            "ownerReferences": [{
                "apiVersion": "v1",
                "kind": "Service",
                "name": "web",
                "uid": "5f4a6c0e-2a53-4b8e-9d3c-0a4b8f4f7a11",
                "controller": true,
                "blockOwnerDeletion": true,
            }],
            "managedFields": managed("kube-controller-manager", &fields),
        },
        "addressType": "IPv4",
        "endpoints": (0..ENDPOINTS).map(endpoint).collect::<Vec<_>>(),
        "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
    });
    serde_json::to_vec(&slice).unwrap()
}

fn managed(by: &str, fields: &Value) -> Value {
    json!([{
        "manager": by,
        "operation": "Update",
        "apiVersion": "v1",
        "time": "2026-03-01T10:00:00Z",
        "fieldsType": "FieldsV1",
        "fieldsV1": fields,
    }])
}
