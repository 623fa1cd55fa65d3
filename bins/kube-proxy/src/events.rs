//! Events: what happens here that those who look at the cluster's objects should know.

use std::{
    fmt::Display,
    hash::{BuildHasher, DefaultHasher, Hash, Hasher, RandomState},
    time::Duration,
};

use k8s_openapi::{
    api::{
        core::v1::{ObjectReference, Service},
        events::v1,
    },
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use kube::{
    Api, Client, Error,
    api::{ListParams, PostParams},
};
use proxier::{model::ObjectName, report::Problem};
use tokio::{
    sync::mpsc::{self, Receiver, Sender},
    time,
};
use tracing::debug;

/// How many events may wait to be posted. Further ones are lost.
const WAITING: usize = 64;
/// The least time between two events.
const INTERVAL: Duration = Duration::from_secs(1);
/// How long a note may be; the API server refuses longer ones.
const NOTE_BYTES: usize = 1024;
/// How long the last one may take.
const LAST: Duration = Duration::from_secs(3);
/// Within this time the nodes tell, in no order, what they all see.
const SPREAD_MILLISECONDS: u64 = 10_000;

const CONTROLLER: &str = "kube-proxy";

/// Something that has happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    regarding: Regarding,
    severity: Severity,
    reason: &'static str,
    action: &'static str,
    note: String,
}

/// Whom an event is about.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Regarding {
    Node(String),
    Service(ObjectName),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Severity {
    Normal,
    /// Concerns the node that reports it.
    Warning,
    /// Every node sees the same, and the first to say so says it for all.
    SharedWarning,
}

impl Event {
    /// We have started.
    pub(crate) fn starting(node: &str) -> Self {
        Self {
            regarding: Regarding::Node(node.to_owned()),
            severity: Severity::Normal,
            reason: "Starting",
            action: "StartKubeProxy",
            note: String::new(),
        }
    }

    /// We cannot start, or not go on.
    pub(crate) fn failed(node: &str, reason: &'static str, error: &impl Display) -> Self {
        Self {
            regarding: Regarding::Node(node.to_owned()),
            severity: Severity::Warning,
            reason,
            action: "StartKubeProxy",
            note: error.to_string(),
        }
    }

    /// Load balancers that ask whether this node has endpoints of the Service get no answer.
    pub(crate) fn failed_health_check(
        node: &str,
        service: &ObjectName,
        port: u16,
        error: &impl Display,
    ) -> Self {
        Self {
            regarding: Regarding::Service(service.clone()),
            severity: Severity::Warning,
            reason: "FailedToStartServiceHealthcheck",
            action: "Listen",
            note: format!(
                "node {node} failed to start healthcheck {:?} on port {port}: {error}",
                service.to_string()
            ),
        }
    }

    /// A Service does not get what it asks for.
    pub(crate) fn problem(service: &ObjectName, problem: &Problem) -> Self {
        Self {
            regarding: Regarding::Service(service.clone()),
            severity: Severity::SharedWarning,
            reason: match problem {
                Problem::Conflict { .. } => "AddressConflict",
                Problem::NobodyAdmitted { .. } => "InvalidSourceRanges",
                Problem::InvalidAnnotation(_) => "InvalidAnnotation",
                Problem::RefusedAddress { .. } => "AddressRefused",
            },
            action: "ProgramService",
            note: problem.to_string(),
        }
    }
}

/// Takes events. Whoever has one to tell is never held up.
#[derive(Clone, Debug)]
pub(crate) struct Events(Sender<Event>);

impl Events {
    /// Where to tell them, and where they come out.
    pub(crate) fn channel() -> (Self, Receiver<Event>) {
        let (sender, receiver) = mpsc::channel(WAITING);
        (Self(sender), receiver)
    }

    /// Tells an event, unless nobody posts any or too many wait.
    pub(crate) fn send(&self, event: Event) {
        if let Err(error) = self.0.try_send(event) {
            debug!("an event is lost: {error}");
        }
    }
}

/// Posts an event at once, before we end. If the API server does not take it soon it is lost.
pub(crate) async fn post_last(event: Event, client: &Client, hostname: &str) {
    match time::timeout(LAST, event.post(client, hostname)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!("cannot post the event {}: {error}", event.reason),
        Err(_) => debug!("the event {} takes too long", event.reason),
    }
}

/// Posts events to the API server, from the host `hostname`, until nobody can tell any more. One that the API
/// server does not take is lost.
pub(crate) async fn post(mut events: Receiver<Event>, client: Client, hostname: &str) {
    while let Some(event) = events.recv().await {
        if event.severity == Severity::SharedWarning {
            let random = RandomState::new().hash_one(()) % SPREAD_MILLISECONDS;
            time::sleep(Duration::from_millis(random)).await;
        }
        match event.post(&client, hostname).await {
            Ok(()) => {}
            // Another node was first.
            Err(Error::Api(status)) if status.code == 409 => {}
            Err(error) => debug!("cannot post the event {} ({}): {error}", event.reason, event.note),
        }
        time::sleep(INTERVAL).await;
    }
}

impl Event {
    async fn post(&self, client: &Client, hostname: &str) -> Result<(), Error> {
        let regarding = self.regarding.reference(client).await?;
        let event = self.object(regarding, hostname, Timestamp::now());
        let namespace = event.metadata.namespace.clone().unwrap_or_default();
        let api = Api::<v1::Event>::namespaced(client.clone(), &namespace);
        api.create(&PostParams::default(), &event).await?;
        Ok(())
    }

    fn object(&self, regarding: ObjectReference, hostname: &str, now: Timestamp) -> v1::Event {
        let number = match self.severity {
            Severity::SharedWarning => {
                // The same for all nodes.
                let mut hasher = DefaultHasher::new();
                (self.reason, &self.note, &regarding.uid).hash(&mut hasher);
                hasher.finish().into()
            }
            Severity::Normal | Severity::Warning => now.as_nanosecond(),
        };
        let type_ = match self.severity {
            Severity::Normal => "Normal",
            Severity::Warning | Severity::SharedWarning => "Warning",
        };
        let characters = self.note.char_indices();
        let note = characters.take_while(|(at, character)| at + character.len_utf8() <= NOTE_BYTES);
        v1::Event {
            metadata: ObjectMeta {
                name: Some(format!("{}.{number:x}", self.regarding.name())),
                // Events of objects without a namespace are in this one.
                namespace: Some(
                    regarding
                        .namespace
                        .clone()
                        .unwrap_or_else(|| "default".to_owned()),
                ),
                ..ObjectMeta::default()
            },
            event_time: Some(MicroTime(now)),
            type_: Some(type_.to_owned()),
            reason: Some(self.reason.to_owned()),
            action: Some(self.action.to_owned()),
            note: Some(note.map(|(_, character)| character).collect()),
            regarding: Some(regarding),
            reporting_controller: Some(CONTROLLER.to_owned()),
            reporting_instance: Some(format!("{CONTROLLER}-{hostname}")),
            ..v1::Event::default()
        }
    }
}

impl Regarding {
    fn name(&self) -> &str {
        match self {
            Self::Node(name) => name,
            Self::Service(service) => &service.name,
        }
    }

    async fn reference(&self, client: &Client) -> Result<ObjectReference, Error> {
        let (kind, namespace, uid) = match self {
            Self::Node(_) => ("Node", None, None),
            Self::Service(service) => (
                "Service",
                Some(service.namespace.to_string()),
                uid(client, service).await?,
            ),
        };
        Ok(ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some(kind.to_owned()),
            namespace,
            name: Some(self.name().to_owned()),
            uid,
            ..ObjectReference::default()
        })
    }
}

/// By the uid `kubectl describe` finds events. We may list Services, but not get one.
async fn uid(client: &Client, service: &ObjectName) -> Result<Option<String>, Error> {
    let api = Api::<Service>::namespaced(client.clone(), &service.namespace);
    let this = ListParams::default().fields(&format!("metadata.name={}", service.name));
    let found = api.list_metadata(&this).await?;
    Ok(found
        .items
        .into_iter()
        .next()
        .and_then(|service| service.metadata.uid))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn posted(event: &Event, now: &str) -> v1::Event {
        let regarding = ObjectReference {
            namespace: match &event.regarding {
                Regarding::Node(_) => None,
                Regarding::Service(service) => Some(service.namespace.to_string()),
            },
            ..ObjectReference::default()
        };
        event.object(regarding, "host", now.parse().unwrap())
    }

    #[test]
    fn an_event_says_who_where_and_what() {
        let service = ObjectName::new("ns", "web");
        let event = Event::failed_health_check("node-1", &service, 30000, &"in use");
        let object = posted(&event, "1970-01-01T00:00:01Z");
        assert_eq!(object.metadata.name.unwrap(), "web.3b9aca00");
        assert_eq!(object.metadata.namespace.unwrap(), "ns");
        assert_eq!(object.type_.unwrap(), "Warning");
        assert_eq!(
            object.note.unwrap(),
            "node node-1 failed to start healthcheck \"ns/web\" on port 30000: in use"
        );
        assert_eq!(object.reporting_instance.unwrap(), "kube-proxy-host");
        let starting = posted(&Event::starting("node-1"), "1970-01-01T00:00:01Z");
        assert_eq!(starting.metadata.namespace.unwrap(), "default");
        assert_eq!(starting.type_.unwrap(), "Normal");
    }

    #[test]
    fn a_note_is_no_longer_than_it_may_be() {
        let said = |error: &str| {
            let failed = Event::failed("node-1", "FailedToStart", &error);
            posted(&failed, "1970-01-01T00:00:01Z").note.unwrap()
        };
        assert_eq!(said(&"x".repeat(NOTE_BYTES)).len(), NOTE_BYTES);
        assert_eq!(said(&"é".repeat(NOTE_BYTES)), "é".repeat(NOTE_BYTES / 2));
        assert_eq!(
            said(&format!("x{}", "é".repeat(NOTE_BYTES))).len(),
            NOTE_BYTES - 1
        );
    }

    #[test]
    fn what_every_node_sees_is_one_event() {
        let conflict = |of| Problem::Conflict {
            server: ipvs::ServiceKey::address("10.96.0.1:80".parse().unwrap(), ipvs::Protocol::Tcp),
            winner: ObjectName::new("ns", of),
        };
        let event = |of| Event::problem(&ObjectName::new("ns", "web"), &conflict(of));
        let name = |of, now| posted(&event(of), now).metadata.name;
        assert_eq!(
            name("a", "2026-01-01T00:00:00Z"),
            name("a", "2026-01-01T00:00:09Z")
        );
        assert_ne!(
            name("a", "2026-01-01T00:00:00Z"),
            name("b", "2026-01-01T00:00:00Z")
        );
    }

    #[tokio::test]
    async fn whoever_tells_an_event_is_never_held_up() {
        let (events, mut receiver) = Events::channel();
        for _ in 0..2 * WAITING {
            events.send(Event::starting("node-1"));
        }
        assert_eq!(receiver.recv_many(&mut Vec::new(), usize::MAX).await, WAITING);
        drop(receiver);
        events.send(Event::starting("node-1"));
    }
}
