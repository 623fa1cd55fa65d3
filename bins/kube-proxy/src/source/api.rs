//! Services from an API server.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    sync::Arc,
    time::{Duration, Instant},
};

use backon::ExponentialBuilder;
use futures_util::{
    FutureExt, StreamExt,
    stream::{BoxStream, FuturesUnordered},
};
use kube::{
    Api, Client, ResourceExt,
    runtime::{
        WatchStreamExt,
        watcher::{self, Event, ExponentialBackoff, InitialListStrategy, watcher},
    },
};
use proxier::model::{Change, ObjectName};
use tokio::{sync::watch, task::yield_now, time};
use tracing::{debug, info, warn};

use super::{report, sink::Sink};
use crate::{
    health::Health,
    objects::{EndpointSlice, HEADLESS, Node, Object, SERVICE_PROXY_NAME, Service},
};

/// How long the Node object is waited for, as upstream does, before Services are programmed without it.
const NODE_PATIENCE: Duration = Duration::from_secs(30);
/// An API server that cannot be reached is asked again after this time, then after twice the last time, up to
/// [`RETRY_MAX`], each up to twice as long by chance, so that not all nodes come at once. A node is to know soon that it
/// is back.
const RETRY_MIN: Duration = Duration::from_millis(800);
const RETRY_MAX: Duration = Duration::from_secs(8);
/// How often the log repeats that something cannot be watched.
const REPEAT_WARNING: Duration = Duration::from_secs(60);

/// How many events of a kind are taken in before those who have to do with them have their turn: the stream of a list may
/// have thousands ready, and `default/kubernetes` would wait for all of them once more (B2).
const EVENTS_AT_ONCE: usize = 64;

/// Sends what the API server says of Services, EndpointSlices and our Node, with [`Change::Synced`] once it has
/// said all, until nobody listens any more. An API server that cannot be reached is asked again and again.
pub(crate) async fn run(client: Client, node_name: &str, health: &Arc<Health>, sink: Sink) {
    let all = watcher::Config::default().timeout(timeout_seconds());
    let services = all
        .clone()
        .labels(&format!("!{SERVICE_PROXY_NAME}"))
        .fields("spec.clusterIP!=None");
    let slices = all.clone().labels(&format!("!{HEADLESS}"));
    let node = all.fields(&format!("metadata.name={node_name}"));

    let services = Watch::<Service>::new(client.clone(), services, health.clone(), sink.clone());
    let slices = Watch::<EndpointSlice>::new(client.clone(), slices, health.clone(), sink.clone());
    let node = Watch::<Node>::new(client, node, health.clone(), sink.clone());
    let lists = [services.progress.subscribe(), slices.progress.subscribe()];
    let node_appears = reaches(node.progress.subscribe(), |progress| progress.objects > 0);
    let announce = async {
        for list in lists {
            reaches(list, |progress| progress.listed).await;
        }
        if time::timeout(NODE_PATIENCE, node_appears).await.is_err() {
            warn!("the API server has no Node {node_name:?} (see --hostname-override); going on without");
        }
        info!("caches are synced");
        sink.send(Change::Synced);
    };
    // Unlike `join!`, this polls only who was woken: most events are of slices.
    let watches: FuturesUnordered<_> = [
        services.run().boxed(),
        slices.run().boxed(),
        node.run().boxed(),
        announce.boxed(),
    ]
    .into_iter()
    .collect();
    tokio::select! {
        () = watches.collect() => {}
        () = sink.closed() => {}
    }
}

/// Waits until a watch has come so far.
async fn reaches(mut progress: watch::Receiver<Progress>, condition: fn(&Progress) -> bool) {
    // Fails if the watch has ended, which none does before we do.
    _ = progress.wait_for(condition).await;
}

/// How long the API server may keep a watch: not the same for all nodes, lest they all come back together.
fn timeout_seconds() -> u32 {
    let random = RandomState::new().hash_one(()) % 60;
    290 - u32::try_from(random).unwrap_or_default()
}

/// How far a watch has come.
#[derive(Clone, Copy, Default)]
struct Progress {
    /// The first list was complete.
    listed: bool,
    /// How many objects there are.
    objects: usize,
}

/// Follows all objects of one kind.
struct Watch<K> {
    api: Api<K>,
    config: watcher::Config,
    health: Arc<Health>,
    sink: Sink,
    /// The objects that were sent, and whether the list that is being received has them too.
    known: HashMap<ObjectName, bool>,
    progress: watch::Sender<Progress>,
    trouble: Trouble,
}

impl<K: Object> Watch<K> {
    /// `config` says which objects.
    fn new(client: Client, config: watcher::Config, health: Arc<Health>, sink: Sink) -> Self {
        Self {
            api: Api::all(client),
            // The least work for both sides: objects come one by one, as if they had just changed.
            config: config.streaming_lists(),
            health,
            sink,
            known: HashMap::new(),
            progress: watch::Sender::default(),
            trouble: Trouble::default(),
        }
    }

    async fn run(mut self) {
        let mut events = self.events();
        let mut taken = 0_usize;
        while let Some(event) = events.next().await {
            taken += 1;
            if taken.is_multiple_of(EVENTS_AT_ONCE) {
                yield_now().await;
            }
            match event {
                Ok(event) => self.take(event),
                Err(error) if self.is_refused(&error) => {
                    debug!("listing {} without a stream: {}", K::plural(&()), reason(&error));
                    self.config.initial_list_strategy = InitialListStrategy::ListWatch;
                    events = self.events();
                }
                Err(error) => self.trouble.report(&K::plural(&()), &error),
            }
        }
    }

    fn events(&self) -> BoxStream<'static, watcher::Result<Event<K>>> {
        let backoff = ExponentialBuilder::default()
            .with_min_delay(RETRY_MIN)
            .with_max_delay(RETRY_MAX)
            .with_jitter()
            .without_max_times();
        watcher(self.api.clone(), self.config.clone())
            .backoff(ExponentialBackoff::from(backoff))
            .boxed()
    }

    /// Whether the API server is one that cannot stream lists, or that we may only list from.
    fn is_refused(&self, error: &watcher::Error) -> bool {
        self.config.initial_list_strategy == InitialListStrategy::StreamingList
            && matches!(
                error,
                watcher::Error::WatchStartFailed(kube::Error::Api(status)) if matches!(status.code, 400 | 403 | 422)
            )
    }

    fn take(&mut self, event: Event<K>) {
        if !matches!(event, Event::Init) {
            self.trouble.is_over(&K::plural(&()));
        }
        match event {
            Event::Init => self.known.values_mut().for_each(|listed| *listed = false),
            Event::InitApply(object) | Event::Apply(object) => self.apply(&object),
            Event::Delete(object) => {
                let name = name(&object);
                self.known.remove(&name);
                self.send(K::gone(name));
            }
            Event::InitDone => {
                let gone: Vec<_> = self.known.extract_if(|_, listed| !*listed).collect();
                gone.into_iter().for_each(|(name, _)| self.send(K::gone(name)));
                self.progress.send_modify(|progress| progress.listed = true);
            }
        }
        self.progress.send_if_modified(|progress| {
            let known = std::mem::replace(&mut progress.objects, self.known.len());
            known != progress.objects
        });
    }

    fn apply(&mut self, object: &K) {
        if let Some(eligible) = object.is_eligible() {
            self.health.set_node_eligible(eligible);
        }
        let (name, converted) = (name(object), object.convert());
        report(&K::kind(&()), &name, &converted.problems);
        self.known.insert(name, true);
        self.send(converted.change);
    }

    fn send(&self, change: Option<Change>) {
        if let Some(change) = change {
            // Whoever watches for the end of the sink stops us.
            self.sink.send(change);
        }
    }
}

fn name<K: Object>(object: &K) -> ObjectName {
    ObjectName::new(object.namespace().unwrap_or_default(), object.name_any())
}

/// Says at sensible intervals that something cannot be watched.
#[derive(Default)]
struct Trouble {
    reported: Option<Instant>,
}

impl Trouble {
    fn report(&mut self, plural: &str, error: &watcher::Error) {
        // The API server has forgotten what we know: the watcher lists anew.
        if matches!(error, watcher::Error::WatchError(status) if status.code == 410) {
            return debug!("listing {plural} anew: {}", reason(error));
        }
        if self.reported.is_none_or(|at| at.elapsed() >= REPEAT_WARNING) {
            self.reported = Some(Instant::now());
            warn!("cannot watch {plural}, trying again: {}", reason(error));
        }
    }

    fn is_over(&mut self, plural: &str) {
        if self.reported.take().is_some() {
            info!("watching {plural} again");
        }
    }
}

/// What is at the bottom of an error: what the API server said, or why it did not.
fn reason(error: &watcher::Error) -> String {
    if let watcher::Error::WatchError(status)
    | watcher::Error::InitialListFailed(kube::Error::Api(status))
    | watcher::Error::WatchStartFailed(kube::Error::Api(status))
    | watcher::Error::WatchFailed(kube::Error::Api(status)) = error
    {
        return format!("the API server answers {} {}", status.code, status.message);
    }
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use serde_json::{Value, json};
    use tokio::{
        io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
        net::{TcpListener, TcpStream},
        sync::mpsc::UnboundedReceiver,
    };

    use super::*;
    use crate::{client, metrics::Metrics};

    enum Answer {
        /// A status and a body.
        Body(u16, Value),
        /// Events, and then silence.
        Events(Vec<Value>),
    }

    /// Runs the source for `node-1` against an API server that answers by the path and query of a request.
    async fn changes(answer: impl Fn(&str) -> Answer + Send + Sync + 'static) -> UnboundedReceiver<Change> {
        let health = Arc::new(Health::new(Duration::from_secs(30)));
        changes_and(health, answer).await
    }

    async fn changes_and(
        health: Arc<Health>,
        answer: impl Fn(&str) -> Answer + Send + Sync + 'static,
    ) -> UnboundedReceiver<Change> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let answer = Arc::new(answer);
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let answer = answer.clone();
                tokio::spawn(async move { _ = serve(stream, &*answer).await });
            }
        });
        let metrics = Arc::new(Metrics::new().unwrap());
        let client = client::connect(None, Some(&url), metrics).await.unwrap();
        let (sink, changes) = Sink::plain();
        tokio::spawn(async move { run(client, "node-1", &health, sink).await });
        changes
    }

    async fn serve(
        stream: TcpStream,
        answer: &(dyn Fn(&str) -> Answer + Send + Sync),
    ) -> std::io::Result<()> {
        let mut stream = BufReader::new(stream);
        let mut request = String::new();
        stream.read_line(&mut request).await?;
        let mut header = String::new();
        while stream.read_line(&mut header).await? > 2 {
            header.clear();
        }
        let target = request.split(' ').nth(1).unwrap_or_default();
        let head = |status| {
            format!("HTTP/1.1 {status} x\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n")
        };
        match answer(target) {
            Answer::Body(status, body) => {
                stream
                    .write_all(format!("{}{body}", head(status)).as_bytes())
                    .await
            }
            Answer::Events(events) => {
                stream.write_all(head(200).as_bytes()).await?;
                for event in events {
                    stream.write_all(format!("{event}\n").as_bytes()).await?;
                }
                stream.flush().await?;
                std::future::pending().await
            }
        }
    }

    fn event(kind: &str, object: Value) -> Value {
        json!({ "type": kind, "object": object })
    }

    /// What ends the initial events of a watch.
    fn end_of_list() -> Value {
        event(
            "BOOKMARK",
            json!({ "apiVersion": "v1", "kind": "x", "metadata": { "resourceVersion": "9", "annotations": { "k8s.io/initial-events-end": "true" } } }),
        )
    }

    fn service(name: &str, port: i64) -> Value {
        json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": { "namespace": "ns", "name": name, "resourceVersion": "5", "managedFields": [{ "manager": "x" }] },
            "spec": { "clusterIP": "10.96.0.1", "ports": [{ "port": port }] },
        })
    }

    fn slice(name: &str) -> Value {
        json!({
            "metadata": {
                "namespace": "ns", "name": name, "resourceVersion": "6",
                "labels": { "kubernetes.io/service-name": "a" },
            },
            "addressType": "IPv4",
            "endpoints": null,
            "ports": null,
        })
    }

    fn node() -> Value {
        json!({ "metadata": { "name": "node-1", "resourceVersion": "7" } })
    }

    /// A list as of a watch that streams it.
    fn stream_of(objects: impl IntoIterator<Item = Value>) -> Answer {
        let added = objects.into_iter().map(|object| event("ADDED", object));
        Answer::Events(added.chain([end_of_list()]).collect())
    }

    fn list_of(objects: Value) -> Answer {
        Answer::Body(
            200,
            json!({ "metadata": { "resourceVersion": "8" }, "items": objects }),
        )
    }

    fn failure(code: u16) -> Answer {
        let status =
            json!({ "kind": "Status", "status": "Failure", "message": "no", "reason": "x", "code": code });
        Answer::Body(code, status)
    }

    async fn next(changes: &mut UnboundedReceiver<Change>) -> String {
        next_within(changes, Duration::from_secs(20)).await
    }

    async fn next_within(changes: &mut UnboundedReceiver<Change>, patience: Duration) -> String {
        let change = time::timeout(patience, changes.recv())
            .await
            .expect("a change")
            .unwrap();
        match change {
            Change::Service(service) => format!("{} with {} ports", service.name, service.ports.len()),
            Change::ServiceGone(name) => format!("{name} gone"),
            Change::EndpointSlice(slice) => format!("slice {}", slice.name),
            Change::EndpointSliceGone(name) => format!("slice {name} gone"),
            Change::Node(_) => "node".to_owned(),
            Change::Synced => "synced".to_owned(),
        }
    }

    /// All changes up to [`Change::Synced`], in alphabetical order: the watches run side by side.
    async fn first_list(changes: &mut UnboundedReceiver<Change>) -> Vec<String> {
        let mut all = Vec::new();
        loop {
            match next(changes).await.as_str() {
                "synced" => break,
                change => all.push(change.to_owned()),
            }
        }
        all.sort();
        all
    }

    #[tokio::test]
    async fn all_is_listed_by_streams_and_then_followed() {
        let mut changes = changes(|target| {
            assert!(
                target.contains("watch=true") && target.contains("sendInitialEvents=true"),
                "{target}"
            );
            if target.starts_with("/api/v1/services?") {
                assert!(
                    target.contains("labelSelector=%21service.kubernetes.io%2Fservice-proxy-name"),
                    "{target}"
                );
                assert!(
                    target.contains("fieldSelector=spec.clusterIP%21%3DNone"),
                    "{target}"
                );
                Answer::Events(vec![
                    event("ADDED", service("a", 80)),
                    event("ADDED", service("bad", 0)),
                    event("ADDED", json!({ "metadata": { "resourceVersion": "5" } })),
                    end_of_list(),
                    event("MODIFIED", service("a", 81)),
                    event("DELETED", service("a", 81)),
                ])
            } else if target.starts_with("/apis/discovery.k8s.io/v1/endpointslices?") {
                assert!(
                    target.contains("labelSelector=%21service.kubernetes.io%2Fheadless"),
                    "{target}"
                );
                stream_of([slice("a-1")])
            } else {
                assert!(target.starts_with("/api/v1/nodes?"), "{target}");
                assert!(
                    target.contains("fieldSelector=metadata.name%3Dnode-1"),
                    "{target}"
                );
                stream_of([node()])
            }
        })
        .await;
        let mut all = first_list(&mut changes).await;
        while !all.contains(&"ns/a gone".to_owned()) {
            all.push(next(&mut changes).await);
        }
        all.sort();
        // The Service of port 0 is there without that port; the one without a name costs nothing else.
        assert_eq!(
            all,
            [
                "node",
                "ns/a gone",
                "ns/a with 1 ports",
                "ns/a with 1 ports",
                "ns/bad with 0 ports",
                "slice ns/a-1"
            ]
        );
    }

    #[tokio::test]
    async fn an_api_server_that_cannot_stream_lists_is_asked_for_lists() {
        for code in [400, 403, 422] {
            let mut changes = changes(move |target| {
                let objects = match target {
                    _ if target.contains("sendInitialEvents") => return failure(code),
                    _ if target.contains("watch=true") => return Answer::Events(vec![]),
                    _ if target.contains("/services?") => json!([service("a", 80)]),
                    _ if target.contains("/endpointslices?") => json!([slice("a-1")]),
                    _ => json!([node()]),
                };
                list_of(objects)
            })
            .await;
            assert_eq!(
                first_list(&mut changes).await,
                ["node", "ns/a with 1 ports", "slice ns/a-1"],
                "{code}"
            );
        }
    }

    /// F6: an API server that has forgotten our resource version is asked for everything, and what it does not
    /// have any more is gone.
    #[tokio::test]
    async fn what_a_new_list_lacks_is_gone() {
        let lists = AtomicU32::new(0);
        let mut changes = changes(move |target| {
            if !target.contains("/services?") {
                return stream_of([node()]);
            }
            if lists.fetch_add(1, Ordering::Relaxed) > 0 {
                return stream_of([service("b", 80)]);
            }
            let expired =
                json!({ "status": "Failure", "message": "too old", "reason": "Expired", "code": 410 });
            Answer::Events(vec![
                event("ADDED", service("a", 80)),
                event("ADDED", service("b", 80)),
                end_of_list(),
                event("ERROR", expired),
            ])
        })
        .await;
        assert_eq!(
            first_list(&mut changes).await.last().unwrap(),
            "ns/b with 1 ports"
        );
        assert_eq!(next(&mut changes).await, "ns/b with 1 ports");
        assert_eq!(next(&mut changes).await, "ns/a gone");
    }

    /// A list that breaks off says nothing of what it lacks, and is begun anew.
    #[tokio::test]
    async fn a_list_that_breaks_off_does_not_count() {
        let attempts = AtomicU32::new(0);
        let mut changes = changes(move |target| {
            if !target.contains("/services?") {
                return stream_of([node()]);
            }
            match attempts.fetch_add(1, Ordering::Relaxed) {
                0 => failure(500),
                1 => Answer::Body(200, event("ADDED", service("a", 80))),
                _ => stream_of([service("b", 80)]),
            }
        })
        .await;
        let all = first_list(&mut changes).await;
        assert!(
            all.contains(&"ns/a gone".to_owned()) && all.contains(&"ns/b with 1 ports".to_owned()),
            "{all:?}"
        );
    }

    #[tokio::test]
    async fn a_node_that_does_not_appear_is_waited_for_and_then_done_without() {
        let mut changes = changes(|target| match target {
            _ if target.contains("/services?") => stream_of([service("a", 80)]),
            _ if target.contains("/endpointslices?") => stream_of([slice("a-1")]),
            _ => stream_of([]),
        })
        .await;
        let mut first = [next(&mut changes).await, next(&mut changes).await];
        first.sort();
        assert_eq!(first, ["ns/a with 1 ports", "slice ns/a-1"]);
        assert!(
            time::timeout(Duration::from_millis(100), changes.recv())
                .await
                .is_err(),
            "it is waited for"
        );
        time::pause();
        let before = time::Instant::now();
        assert_eq!(next_within(&mut changes, NODE_PATIENCE * 2).await, "synced");
        assert!(before.elapsed() <= NODE_PATIENCE);
    }

    /// A Node that is going takes no new connections; when its object is gone, nothing changes.
    #[tokio::test]
    async fn the_node_says_whether_it_is_eligible() {
        let with = |metadata: Value, spec: Value| {
            let mut node = node();
            node["spec"] = spec;
            for (key, value) in metadata.as_object().unwrap() {
                node["metadata"][key] = value.clone();
            }
            node
        };
        let tainted = json!({ "taints": [{ "key": "ToBeDeletedByClusterAutoscaler", "effect": "x" }] });
        let going = json!({ "deletionTimestamp": "2026-01-01T00:00:00Z" });
        for (events, expected) in [
            (vec![], false),
            (vec![event("ADDED", node())], true),
            (vec![event("ADDED", with(json!({}), tainted))], false),
            (vec![event("ADDED", with(going, json!({})))], false),
            (vec![event("ADDED", node()), event("DELETED", node())], true),
        ] {
            let health = Arc::new(Health::new(Duration::from_secs(30)));
            let said = format!("{events:?}");
            let mut changes = changes_and(health.clone(), move |target| {
                if target.contains("/nodes?") {
                    Answer::Events(events.clone())
                } else {
                    stream_of([])
                }
            })
            .await;
            _ = time::timeout(Duration::from_millis(300), changes.recv()).await;
            assert_eq!(health.report(true).node_eligible, Some(expected), "{said}");
        }
    }
}
