//! Services from an API server.

use std::{
    collections::HashMap,
    error, fmt,
    hash::{BuildHasher, RandomState},
    io,
    marker::PhantomData,
    sync::Arc,
    time::{Duration, Instant},
};

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use futures_util::{FutureExt, StreamExt, TryStreamExt, stream::FuturesUnordered};
use http_body_util::BodyExt;
use hyper::{Response, header::ACCEPT};
use kube::{
    Client,
    client::Body,
    core::{
        Request,
        params::{ListParams, WatchParams},
    },
};
use proxier::model::{Change, ObjectName};
use tokio::{sync::watch, task::yield_now, time};
use tokio_util::{codec::FramedRead, io::StreamReader};
use tracing::{debug, info, warn};

use super::{
    encoding::{self, ACCEPTED, Bookmark, Encoding, Event, Events, List, Status},
    report,
    sink::Sink,
};
use crate::{
    annotations::INITIAL_EVENTS_END,
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
/// How many objects a page of a list has.
const PAGE: u32 = 500;
/// The API server ends each watch after minutes. One that ends before this time without an event has failed.
const VERY_SHORT: Duration = Duration::from_secs(1);

/// Sends what the API server says of Services, EndpointSlices and our Node, with [`Change::Synced`] once it has
/// said all, until nobody listens any more. An API server that cannot be reached is asked again and again.
pub(crate) async fn run(client: Client, node_name: &str, health: &Arc<Health>, sink: Sink) {
    let all = WatchParams::default().timeout(timeout_seconds());
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

/// Why objects cannot be followed.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("the API server answers {} {}", .0.code, .0.message)]
    Answer(Status),
    /// The same, in the midst of a watch.
    #[error("the API server answers {} {}", .0.code, .0.message)]
    Event(Status),
    #[error("{}", Bottom(.0))]
    Request(#[from] kube::Error),
    #[error("{}", Bottom(.0))]
    Read(#[from] io::Error),
    #[error("the API server's answer cannot be read: {0}")]
    Decode(#[from] encoding::Error),
    #[error("the API server ends the watch at once")]
    VeryShort,
    #[error("the API server ends the list before its end")]
    Incomplete,
}

impl Error {
    /// Whether the API server does not know the version any more from which it was to go on (410), or not yet, as one
    /// that was restored from a backup (504).
    fn is_of_version(&self) -> bool {
        matches!(self, Self::Answer(status) | Self::Event(status) if matches!(status.code, 410 | 504))
    }

    /// Whether the API server is one that cannot stream lists, or that we may only list from.
    fn is_of_streams(&self) -> bool {
        matches!(self, Self::Answer(status) if matches!(status.code, 400 | 403 | 422))
    }
}

/// What is at the bottom of an error.
struct Bottom<'a>(&'a dyn error::Error);

impl fmt::Display for Bottom<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut cause = self.0;
        while let Some(source) = cause.source() {
            cause = source;
        }
        fmt::Display::fmt(cause, f)
    }
}

/// Follows all objects of one kind.
struct Watch<K> {
    client: Client,
    request: Request,
    /// Which objects: without initial events, as one that goes on.
    params: WatchParams,
    /// Whether the API server sends lists as the first events of a watch: the least work for both sides.
    streams: bool,
    /// `resourceVersion` from which to go on; none while there is no complete list.
    version: Option<String>,
    health: Arc<Health>,
    sink: Sink,
    /// The objects that were sent, and whether the list that is being received has them too.
    known: HashMap<ObjectName, bool>,
    progress: watch::Sender<Progress>,
    trouble: Trouble,
    kind: PhantomData<K>,
}

impl<K: Object> Watch<K> {
    fn new(client: Client, params: WatchParams, health: Arc<Health>, sink: Sink) -> Self {
        Self {
            client,
            request: Request::new(format!("{}/{}", K::API, K::PLURAL)),
            params,
            streams: true,
            version: None,
            health,
            sink,
            known: HashMap::new(),
            progress: watch::Sender::default(),
            trouble: Trouble::default(),
            kind: PhantomData,
        }
    }

    async fn run(mut self) {
        loop {
            match self.follow().await {
                Ok(()) => {}
                Err(error) if self.version.is_none() && self.streams && error.is_of_streams() => {
                    debug!("listing {} without a stream: {error}", K::PLURAL);
                    self.streams = false;
                }
                Err(error) => {
                    if error.is_of_version() && self.version.take().is_some() {
                        debug!("listing {} anew: {error}", K::PLURAL);
                    } else {
                        self.trouble.report(K::PLURAL, &error);
                    }
                    time::sleep(self.trouble.pause()).await;
                }
            }
        }
    }

    /// Follows one watch to its end, with a list before it if there is none yet.
    async fn follow(&mut self) -> Result<(), Error> {
        if self.version.is_none() && !self.streams {
            self.list().await?;
        }
        let listing = self.version.is_none();
        let params = WatchParams {
            send_initial_events: listing,
            ..self.params.clone()
        };
        let request = self
            .request
            .watch(&params, self.version.as_deref().unwrap_or("0"));
        let (encoding, body) = self.ask(request).await?;
        if listing {
            self.begin_list();
        }
        let begin = Instant::now();
        let mut taken = 0_usize;
        let body = body.into_data_stream().map_err(io::Error::other);
        let mut events = FramedRead::new(StreamReader::new(body), Events::new(encoding));
        while let Some(event) = events.next().await {
            match event {
                Ok(event) => match encoding.event(event) {
                    Ok(event) => self.take(event)?,
                    // It would be the same the next time.
                    Err(error) => warn!("an event of {} is left out: {error}", K::PLURAL),
                },
                // As some end a watch that has come to its time.
                Err(error) if is_cut_off(&error) => break,
                Err(error) => return Err(error.into()),
            }
            taken += 1;
            if taken.is_multiple_of(EVENTS_AT_ONCE) {
                yield_now().await;
            }
        }
        if self.version.is_none() {
            Err(Error::Incomplete)
        } else if taken == 0 && begin.elapsed() < VERY_SHORT {
            Err(Error::VeryShort)
        } else {
            Ok(())
        }
    }

    async fn list(&mut self) -> Result<(), Error> {
        let mut params = ListParams {
            label_selector: self.params.label_selector.clone(),
            field_selector: self.params.field_selector.clone(),
            limit: Some(PAGE),
            ..ListParams::default()
        };
        self.begin_list();
        loop {
            let (encoding, body) = self.ask(self.request.list(&params)).await?;
            let page: List<K> = encoding.object(body.collect().await?.to_bytes())?;
            self.trouble.is_over(K::PLURAL);
            for objects in page.items.chunks(EVENTS_AT_ONCE) {
                objects.iter().for_each(|object| self.apply(object));
                yield_now().await;
            }
            let List { metadata, .. } = page;
            if metadata.continue_.is_empty() {
                self.end_list();
                self.version = metadata.resource_version;
                return self.version.is_some().then_some(()).ok_or(Error::Incomplete);
            }
            params.continue_token = Some(metadata.continue_);
        }
    }

    async fn ask(
        &self,
        request: Result<hyper::Request<Vec<u8>>, kube::core::request::Error>,
    ) -> Result<(Encoding, Body), Error> {
        let mut request = request.map_err(kube::Error::BuildRequest)?;
        request.headers_mut().insert(ACCEPT, ACCEPTED);
        let response = self.client.send(request.map(Body::from)).await?;
        let encoding = Encoding::of(response.headers());
        if response.status().is_success() {
            Ok((encoding, response.into_body()))
        } else {
            Err(Error::Answer(refusal(encoding, response).await?))
        }
    }

    fn begin_list(&mut self) {
        self.known.values_mut().for_each(|listed| *listed = false);
    }

    fn end_list(&mut self) {
        let gone: Vec<_> = self.known.extract_if(|_, listed| !*listed).collect();
        gone.into_iter().for_each(|(name, _)| self.send(K::gone(name)));
        self.note_objects();
        self.progress.send_modify(|progress| progress.listed = true);
    }

    fn take(&mut self, event: Event<K>) -> Result<(), Error> {
        let (version, ends_list) = match event {
            Event::Added(mut object) => {
                self.apply(&object);
                (object.metadata_mut().resource_version.take(), false)
            }
            Event::Deleted(mut object) => {
                let name = object.metadata().object_name();
                self.known.remove(&name);
                self.note_objects();
                self.send(K::gone(name));
                (object.metadata_mut().resource_version.take(), false)
            }
            Event::Bookmark(Bookmark { metadata }) => {
                let ends_list = metadata.annotations.contains_key(INITIAL_EVENTS_END);
                (metadata.resource_version, ends_list)
            }
            Event::Error(status) => return Err(Error::Event(status)),
        };
        self.trouble.is_over(K::PLURAL);
        if ends_list {
            self.end_list();
        }
        // Those of the first events are no place to go on from: they come in no order.
        if ends_list || self.version.is_some() {
            self.version = version.or(self.version.take());
        }
        Ok(())
    }

    fn apply(&mut self, object: &K) {
        if let Some(eligible) = object.is_eligible() {
            self.health.set_node_eligible(eligible);
        }
        let converted = object.convert();
        report(K::KIND, &converted.name, &converted.problems);
        self.known.insert(converted.name, true);
        self.note_objects();
        self.send(converted.change);
    }

    fn note_objects(&self) {
        self.progress.send_if_modified(|progress| {
            let known = std::mem::replace(&mut progress.objects, self.known.len());
            known != progress.objects
        });
    }

    fn send(&self, change: Option<Change>) {
        if let Some(change) = change {
            // Whoever watches for the end of the sink stops us.
            self.sink.send(change);
        }
    }
}

/// What an API server, or a proxy before it, says in the place of objects.
async fn refusal(encoding: Encoding, response: Response<Body>) -> Result<Status, Error> {
    let code = response.status().as_u16().into();
    let body = response.into_body().collect().await?.to_bytes();
    let status = encoding.object(body.clone()).ok();
    let message = status
        .map(|status: Status| status.message)
        .filter(|message| !message.is_empty())
        .unwrap_or_else(|| String::from_utf8_lossy(&body).into_owned());
    Ok(Status { message, code })
}

/// Whether the other end has gone in the midst of an answer, without a word.
fn is_cut_off(error: &io::Error) -> bool {
    let mut cause = error
        .get_ref()
        .map(|error| error as &(dyn error::Error + 'static));
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<io::Error>()
            && error.kind() == io::ErrorKind::UnexpectedEof
        {
            return true;
        }
        cause = error.source();
    }
    false
}

/// Says at sensible intervals that something cannot be watched, and how long to wait with the next attempt.
#[derive(Default)]
struct Trouble {
    reported: Option<Instant>,
    pauses: Option<ExponentialBackoff>,
}

impl Trouble {
    fn report(&mut self, plural: &str, error: &Error) {
        if self.reported.is_none_or(|at| at.elapsed() >= REPEAT_WARNING) {
            self.reported = Some(Instant::now());
            warn!("cannot watch {plural}, trying again: {error}");
        }
    }

    fn pause(&mut self) -> Duration {
        let backoff = ExponentialBuilder::default()
            .with_min_delay(RETRY_MIN)
            .with_max_delay(RETRY_MAX)
            .with_jitter()
            .without_max_times();
        let pauses = self.pauses.get_or_insert_with(|| backoff.build());
        pauses.next().unwrap_or(RETRY_MAX)
    }

    fn is_over(&mut self, plural: &str) {
        self.pauses = None;
        if self.reported.take().is_some() {
            info!("watching {plural} again");
        }
    }
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
        /// A list.
        List(Value),
        /// A status, and a reason.
        Refusal(u16),
        /// A status, and what says no reason.
        Bare(u16, &'static str),
        /// Events, and then silence.
        Events(Vec<(&'static str, Value)>),
        /// Events, and then the end.
        Ended(Vec<(&'static str, Value)>),
    }

    /// Runs the source for `node-1` against an API server that answers by the path and query of a request.
    async fn changes(answer: impl Fn(&str) -> Answer + Send + Sync + 'static) -> UnboundedReceiver<Change> {
        changes_in(Encoding::Protobuf, answer).await
    }

    async fn changes_in(
        encoding: Encoding,
        answer: impl Fn(&str) -> Answer + Send + Sync + 'static,
    ) -> UnboundedReceiver<Change> {
        let health = Arc::new(Health::new(Duration::from_secs(30)));
        changes_and(health, encoding, answer).await
    }

    async fn changes_and(
        health: Arc<Health>,
        encoding: Encoding,
        answer: impl Fn(&str) -> Answer + Send + Sync + 'static,
    ) -> UnboundedReceiver<Change> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let answer = Arc::new(answer);
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let answer = answer.clone();
                tokio::spawn(async move { _ = serve(stream, encoding, &*answer).await });
            }
        });
        let metrics = Arc::new(Metrics::new().unwrap());
        let client = client::connect(None, Some(&url), metrics, || ()).await.unwrap();
        let (sink, changes) = Sink::plain();
        tokio::spawn(async move { run(client, "node-1", &health, sink).await });
        changes
    }

    async fn serve(
        stream: TcpStream,
        encoding: Encoding,
        answer: &(dyn Fn(&str) -> Answer + Send + Sync),
    ) -> std::io::Result<()> {
        let mut stream = BufReader::new(stream);
        let mut request = String::new();
        while !request.ends_with("\r\n\r\n") {
            if stream.read_line(&mut request).await? == 0 {
                return Ok(());
            }
        }
        assert!(
            request.contains("\r\naccept: application/vnd.kubernetes.protobuf, application/json\r\n"),
            "{request}"
        );
        let target = request.split(' ').nth(1).unwrap_or_default();
        let (list, event) = match target {
            _ if target.contains("/services?") => writers::<Service>(),
            _ if target.contains("/endpointslices?") => writers::<EndpointSlice>(),
            _ => writers::<Node>(),
        };
        let head = |status| {
            let content_type = encoding.content_type();
            format!("HTTP/1.1 {status} x\r\nContent-Type: {content_type}\r\nConnection: close\r\n\r\n")
        };
        let all = |events: Vec<(&str, Value)>| {
            let events = events.iter();
            events
                .flat_map(|(kind, object)| event(encoding, kind, object))
                .collect()
        };
        let (status, body, ends) = match answer(target) {
            Answer::List(objects) => (200, list(encoding, &objects), true),
            Answer::Refusal(code) => (code, encoding.write::<Status>(&status(code)), true),
            Answer::Bare(code, body) => (code, body.into(), true),
            Answer::Events(events) => (200, all(events), false),
            Answer::Ended(events) => (200, all(events), true),
        };
        stream.write_all(head(status).as_bytes()).await?;
        stream.write_all(&body).await?;
        stream.flush().await?;
        if !ends {
            std::future::pending::<()>().await;
        }
        Ok(())
    }

    type Writers = (
        fn(Encoding, &Value) -> Vec<u8>,
        fn(Encoding, &str, &Value) -> Vec<u8>,
    );

    fn writers<K: Object>() -> Writers {
        (Encoding::write::<List<K>>, Encoding::write_event::<K>)
    }

    /// What ends the initial events of a watch.
    fn end_of_list() -> (&'static str, Value) {
        (
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
        let added = objects.into_iter().map(|object| ("ADDED", object));
        Answer::Events(added.chain([end_of_list()]).collect())
    }

    fn list_of(objects: Value) -> Answer {
        Answer::List(json!({ "metadata": { "resourceVersion": "8" }, "items": objects }))
    }

    fn status(code: u16) -> Value {
        json!({ "kind": "Status", "status": "Failure", "message": "no", "reason": "x", "code": code })
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
        for encoding in [Encoding::Protobuf, Encoding::Json] {
            let mut changes = changes_in(encoding, |target| {
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
                        ("ADDED", service("a", 80)),
                        ("ADDED", service("bad", 0)),
                        ("ADDED", json!({ "metadata": { "resourceVersion": "5" } })),
                        end_of_list(),
                        ("MODIFIED", service("a", 81)),
                        ("DELETED", service("a", 81)),
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
    }

    #[tokio::test]
    async fn an_api_server_that_cannot_stream_lists_is_asked_for_lists() {
        for code in [400, 403, 422] {
            let mut changes = changes(move |target| {
                let objects = match target {
                    _ if target.contains("sendInitialEvents") => return Answer::Refusal(code),
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

    /// F6: an API server that has forgotten our resource version, or was restored to a state before it, is asked for
    /// everything, and what it does not have any more is gone.
    #[tokio::test]
    async fn what_a_new_list_lacks_is_gone() {
        for code in [410, 504] {
            let lists = AtomicU32::new(0);
            let mut changes = changes(move |target| {
                if !target.contains("/services?") {
                    return stream_of([node()]);
                }
                if lists.fetch_add(1, Ordering::Relaxed) > 0 {
                    return stream_of([service("b", 80)]);
                }
                Answer::Events(vec![
                    ("ADDED", service("a", 80)),
                    ("ADDED", service("b", 80)),
                    end_of_list(),
                    ("ERROR", status(code)),
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
    }

    /// With the version from which to go on refused at once, before there is a watch, as with an event of it.
    #[tokio::test]
    async fn a_version_that_is_refused_is_not_asked_for_again() {
        let mut changes = changes(move |target| {
            if !target.contains("/services?") {
                return stream_of([node()]);
            }
            if target.contains("resourceVersion=9") {
                return Answer::Refusal(410);
            }
            Answer::Ended(vec![("ADDED", service("a", 80)), end_of_list()])
        })
        .await;
        assert_eq!(
            first_list(&mut changes).await.last().unwrap(),
            "ns/a with 1 ports"
        );
        assert_eq!(next(&mut changes).await, "ns/a with 1 ports");
    }

    #[tokio::test]
    async fn a_list_may_have_pages() {
        let mut changes = changes(move |target| {
            let page = |name: &str, next: &str| {
                Answer::List(json!({
                    "metadata": { "resourceVersion": "8", "continue": next },
                    "items": [service(name, 80)],
                }))
            };
            match target {
                _ if !target.contains("/services?") => stream_of([node()]),
                _ if target.contains("sendInitialEvents") => Answer::Refusal(400),
                _ if target.contains("watch=true") => {
                    assert!(target.contains("resourceVersion=8"), "{target}");
                    Answer::Events(vec![])
                }
                _ if target.contains("continue=second") => page("b", ""),
                _ => {
                    assert!(target.contains("limit=500"), "{target}");
                    page("a", "second")
                }
            }
        })
        .await;
        assert_eq!(
            first_list(&mut changes).await,
            ["node", "ns/a with 1 ports", "ns/b with 1 ports"]
        );
    }

    #[tokio::test]
    async fn an_api_server_that_ends_each_watch_at_once_is_not_asked_all_the_time() {
        let asked = Arc::new(AtomicU32::new(0));
        let count = asked.clone();
        let mut changes = changes(move |target| match target {
            _ if !target.contains("/services?") => stream_of([node()]),
            _ if target.contains("sendInitialEvents") => Answer::Ended(vec![end_of_list()]),
            _ => {
                count.fetch_add(1, Ordering::Relaxed);
                Answer::Ended(vec![])
            }
        })
        .await;
        assert_eq!(first_list(&mut changes).await, ["node"]);
        time::sleep(RETRY_MIN / 2).await;
        assert_eq!(asked.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn an_event_that_cannot_be_read_costs_no_other() {
        let mut changes = changes_in(Encoding::Json, |target| match target {
            _ if target.contains("/services?") => stream_of([json!({ "spec": 5 }), service("a", 80)]),
            _ => stream_of([node()]),
        })
        .await;
        assert_eq!(first_list(&mut changes).await, ["node", "ns/a with 1 ports"]);
    }

    /// The status of HTTP counts, also from a proxy that knows nothing of the API's.
    #[tokio::test]
    async fn a_refusal_may_have_any_body() {
        for (encoding, body) in [
            (Encoding::Json, r#"{"error": "no"}"#),
            (Encoding::Json, "<html>"),
            (Encoding::Protobuf, "no"),
        ] {
            let mut changes = changes_in(encoding, move |target| match target {
                _ if !target.contains("/services?") => stream_of([node()]),
                _ if target.contains("sendInitialEvents") => Answer::Bare(403, body),
                _ if target.contains("watch=true") => Answer::Events(vec![]),
                _ => list_of(json!([service("a", 80)])),
            })
            .await;
            assert_eq!(
                first_list(&mut changes).await,
                ["node", "ns/a with 1 ports"],
                "{body}"
            );
        }
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
                0 => Answer::Refusal(500),
                1 => Answer::Ended(vec![("ADDED", service("a", 80))]),
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
            (vec![("ADDED", node())], true),
            (vec![("ADDED", with(json!({}), tainted))], false),
            (vec![("ADDED", with(going, json!({})))], false),
            (vec![("ADDED", node()), ("DELETED", node())], true),
        ] {
            let health = Arc::new(Health::new(Duration::from_secs(30)));
            let said = format!("{events:?}");
            let mut changes = changes_and(health.clone(), Encoding::Protobuf, move |target| {
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
