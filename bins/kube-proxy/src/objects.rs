//! The parts of Kubernetes objects that matter here, and their way into the proxier's model.
//!
//! Everything else, such as managed fields, is skipped while decoding. Each type is read from both of the API's encodings:
//! from JSON, as manifests are, by the names of its fields, and from Protocol Buffers by their numbers, which are those of
//! `generated.proto` in k8s.io/api. What is an `int32` there is an `int64` here, for which the encoding is the same,
//! because manifests may have other numbers. A field that an API server leaves out in JSON may come empty in Protocol
//! Buffers.
//!
//! What an API server fills in by default may be missing, because manifests come without one. A value that cannot be used
//! costs the part of the object that it belongs to, and is told as a [`Problem`].

use std::{collections::BTreeMap, fmt, net::IpAddr, num::NonZeroU16, sync::Arc, time::SystemTime};

use ipnet::IpNet;
use jiff::Timestamp;
use prost::Message;
use proxier::model::{self, Change, Conditions, Hints, ObjectName, Protocol, SourceRanges, TrafficPolicy};
use serde::{Deserialize, Deserializer, de::DeserializeOwned};

use crate::{
    address::{parse_cidr, parse_ip},
    annotations,
};

/// Names the Service of a slice.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Says that another proxy has the Service.
pub(crate) const SERVICE_PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
/// Marks slices and Services that want no virtual servers.
pub(crate) const HEADLESS: &str = "service.kubernetes.io/headless";
/// The taint of a node that the cluster's autoscaler is about to remove.
const GOING: &str = "ToBeDeletedByClusterAutoscaler";
const ZONE: &str = "topology.kubernetes.io/zone";

/// The API's default for `spec.sessionAffinityConfig.clientIP.timeoutSeconds`.
const AFFINITY_SECONDS: u32 = 3 * 60 * 60;

/// What is read in both of the API's encodings.
pub(crate) trait Decode: DeserializeOwned + Message + Default + fmt::Debug {}

impl<T: DeserializeOwned + Message + Default + fmt::Debug> Decode for T {}

/// An object that sources read.
pub(crate) trait Object: Decode + 'static {
    /// The path of the API's group and version.
    const API: &str;
    const KIND: &str;
    /// What the path calls objects of the kind.
    const PLURAL: &str;

    fn metadata(&self) -> &Metadata;
    fn metadata_mut(&mut self) -> &mut Metadata;

    /// What the object tells the proxier.
    fn convert(&self) -> Converted;

    /// What the proxier is told when the object of this name is gone.
    fn gone(name: ObjectName) -> Option<Change>;

    /// Whether the node should be sent new connections, if the object says.
    fn is_eligible(&self) -> Option<bool> {
        None
    }
}

/// What an object has come to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Converted {
    pub(crate) name: ObjectName,
    /// Nothing if the object has not even a name.
    pub(crate) change: Option<Change>,
    pub(crate) problems: Vec<Problem>,
}

impl Converted {
    /// Of an object that is as good as gone where `change` makes nothing of it, and nothing at all without a name.
    fn of_named<O: Object>(
        object: &O,
        change: impl FnOnce(ObjectName, &mut Problems) -> Option<Change>,
    ) -> Self {
        let (name, mut problems) = (object.metadata().object_name(), Problems::default());
        for (field, part) in [
            ("metadata.namespace", &name.namespace),
            ("metadata.name", &name.name),
        ] {
            if part.is_empty() {
                problems.add(field.to_owned(), Reason::Missing);
            }
        }
        let has_name = problems.0.is_empty();
        let change = has_name.then(|| change(name.clone(), &mut problems).or_else(|| O::gone(name.clone())));
        Self {
            name,
            change: change.flatten(),
            problems: problems.0,
        }
    }
}

/// A field of an object that cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub(crate) struct Problem {
    field: String,
    reason: Reason,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Reason {
    #[error("is missing")]
    Missing,
    #[error("{0:?} is not an IP address")]
    NotAnAddress(String),
    #[error("{0} cannot be the address of a Service")]
    NotAServiceAddress(IpAddr),
    #[error("{0} is not of the slice's address type")]
    WrongFamily(IpAddr),
    #[error("{0} is a second address of its family")]
    SecondOfFamily(IpAddr),
    #[error("{0:?} is not a CIDR")]
    NotACidr(String),
    #[error("{0} is not a port number, 1 to 65535")]
    NotAPort(i64),
    #[error("{0:?} is none of TCP, UDP, SCTP")]
    UnknownProtocol(String),
    #[error("{0} is not within 1 to 86400 seconds; {AFFINITY_SECONDS} is taken")]
    BadTimeout(i64),
    #[error("{0:?} is not known; {1} is taken")]
    UnknownChoice(String, &'static str),
    #[error("{0:?} is neither IPv4 nor IPv6")]
    UnknownAddressType(String),
}

/// The fields of `metadata` that are of use.
#[derive(Clone, PartialEq, Deserialize, Message)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Metadata {
    #[prost(string, optional, tag = "1")]
    pub(crate) name: Option<String>,
    #[prost(string, optional, tag = "3")]
    pub(crate) namespace: Option<String>,
    #[prost(string, optional, tag = "6")]
    pub(crate) resource_version: Option<String>,
    #[prost(message, optional, tag = "8")]
    creation_timestamp: Option<Time>,
    #[prost(message, optional, tag = "9")]
    deletion_timestamp: Option<Time>,
    #[serde(deserialize_with = "or_default")]
    #[prost(btree_map = "string, string", tag = "11")]
    pub(crate) labels: BTreeMap<String, String>,
    #[serde(deserialize_with = "annotations::known")]
    #[prost(btree_map = "string, string", tag = "12")]
    pub(crate) annotations: BTreeMap<String, String>,
}

/// A point in time, in seconds since 1970; RFC 3339 in JSON.
#[derive(Clone, Copy, PartialEq, Message)]
struct Time {
    #[prost(int64, tag = "1")]
    seconds: i64,
}

/// A core/v1 `Service`.
#[derive(Clone, PartialEq, Deserialize, Message)]
#[serde(default)]
pub(crate) struct Service {
    #[serde(deserialize_with = "or_default")]
    #[prost(message, required, tag = "1")]
    pub(crate) metadata: Metadata,
    #[prost(message, optional, tag = "2")]
    spec: Option<ServiceSpec>,
    #[prost(message, optional, tag = "3")]
    status: Option<ServiceStatus>,
}

#[derive(Clone, PartialEq, Deserialize, Message)]
#[serde(default, rename_all = "camelCase")]
struct ServiceSpec {
    #[serde(deserialize_with = "or_default")]
    #[prost(message, repeated, tag = "1")]
    ports: Vec<ServicePort>,
    #[serde(rename = "clusterIP")]
    #[prost(string, optional, tag = "3")]
    cluster_ip: Option<String>,
    #[serde(rename = "type")]
    #[prost(string, optional, tag = "4")]
    type_: Option<String>,
    #[serde(rename = "externalIPs", deserialize_with = "or_default")]
    #[prost(string, repeated, tag = "5")]
    external_ips: Vec<String>,
    #[prost(string, optional, tag = "7")]
    session_affinity: Option<String>,
    #[serde(deserialize_with = "or_default")]
    #[prost(string, repeated, tag = "9")]
    load_balancer_source_ranges: Vec<String>,
    #[prost(string, optional, tag = "11")]
    external_traffic_policy: Option<String>,
    #[prost(int64, optional, tag = "12")]
    health_check_node_port: Option<i64>,
    #[prost(message, optional, tag = "14")]
    session_affinity_config: Option<SessionAffinityConfig>,
    #[serde(rename = "clusterIPs", deserialize_with = "or_default")]
    #[prost(string, repeated, tag = "18")]
    cluster_ips: Vec<String>,
    #[prost(string, optional, tag = "22")]
    internal_traffic_policy: Option<String>,
}

#[derive(Clone, PartialEq, Deserialize, Message)]
#[serde(rename_all = "camelCase")]
struct ServicePort {
    #[prost(string, optional, tag = "1")]
    name: Option<String>,
    #[prost(string, optional, tag = "2")]
    protocol: Option<String>,
    #[prost(int64, tag = "3")]
    port: i64,
    #[prost(int64, optional, tag = "5")]
    node_port: Option<i64>,
}

#[derive(Clone, Copy, PartialEq, Deserialize, Message)]
struct SessionAffinityConfig {
    #[serde(rename = "clientIP")]
    #[prost(message, optional, tag = "1")]
    client_ip: Option<ClientIpConfig>,
}

#[derive(Clone, Copy, PartialEq, Deserialize, Message)]
#[serde(rename_all = "camelCase")]
struct ClientIpConfig {
    #[prost(int64, optional, tag = "1")]
    timeout_seconds: Option<i64>,
}

#[derive(Clone, PartialEq, Deserialize, Message)]
#[serde(rename_all = "camelCase")]
struct ServiceStatus {
    #[prost(message, optional, tag = "1")]
    load_balancer: Option<LoadBalancerStatus>,
}

#[derive(Clone, PartialEq, Deserialize, Message)]
struct LoadBalancerStatus {
    #[serde(default, deserialize_with = "or_default")]
    #[prost(message, repeated, tag = "1")]
    ingress: Vec<LoadBalancerIngress>,
}

#[derive(Clone, PartialEq, Deserialize, Message)]
#[serde(rename_all = "camelCase")]
struct LoadBalancerIngress {
    #[prost(string, optional, tag = "1")]
    ip: Option<String>,
    #[prost(string, optional, tag = "3")]
    ip_mode: Option<String>,
}

/// A discovery.k8s.io/v1 `EndpointSlice`.
#[derive(Clone, PartialEq, Deserialize, Message)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct EndpointSlice {
    #[serde(deserialize_with = "or_default")]
    #[prost(message, required, tag = "1")]
    pub(crate) metadata: Metadata,
    #[serde(deserialize_with = "or_default")]
    #[prost(message, repeated, tag = "2")]
    endpoints: Vec<Endpoint>,
    #[serde(deserialize_with = "or_default")]
    #[prost(message, repeated, tag = "3")]
    ports: Vec<EndpointPort>,
    #[prost(string, optional, tag = "4")]
    address_type: Option<String>,
}

#[derive(Clone, PartialEq, Deserialize, Message)]
struct EndpointPort {
    #[prost(string, optional, tag = "1")]
    name: Option<String>,
    #[prost(string, optional, tag = "2")]
    protocol: Option<String>,
    #[prost(int64, optional, tag = "3")]
    port: Option<i64>,
}

#[derive(Clone, PartialEq, Deserialize, Message)]
#[serde(default, rename_all = "camelCase")]
struct Endpoint {
    #[serde(deserialize_with = "or_default")]
    #[prost(string, repeated, tag = "1")]
    addresses: Vec<String>,
    #[prost(message, optional, tag = "2")]
    conditions: Option<EndpointConditions>,
    #[prost(string, optional, tag = "6")]
    node_name: Option<String>,
    #[prost(message, optional, tag = "8")]
    hints: Option<EndpointHints>,
}

#[derive(Clone, Copy, PartialEq, Deserialize, Message)]
struct EndpointConditions {
    #[prost(bool, optional, tag = "1")]
    ready: Option<bool>,
    #[prost(bool, optional, tag = "2")]
    serving: Option<bool>,
    #[prost(bool, optional, tag = "3")]
    terminating: Option<bool>,
}

#[derive(Clone, PartialEq, Deserialize, Message)]
#[serde(default, rename_all = "camelCase")]
struct EndpointHints {
    #[serde(deserialize_with = "or_default")]
    #[prost(message, repeated, tag = "1")]
    for_zones: Vec<Name>,
    #[serde(deserialize_with = "or_default")]
    #[prost(message, repeated, tag = "2")]
    for_nodes: Vec<Name>,
}

#[derive(Clone, PartialEq, Deserialize, Message)]
struct Name {
    #[prost(string, tag = "1")]
    name: String,
}

/// A core/v1 `Node`.
#[derive(Clone, PartialEq, Deserialize, Message)]
#[serde(default)]
pub(crate) struct Node {
    #[serde(deserialize_with = "or_default")]
    #[prost(message, required, tag = "1")]
    pub(crate) metadata: Metadata,
    #[prost(message, optional, tag = "2")]
    spec: Option<NodeSpec>,
    #[prost(message, optional, tag = "3")]
    status: Option<NodeStatus>,
}

#[derive(Clone, PartialEq, Deserialize, Message)]
#[serde(default)]
struct NodeSpec {
    #[serde(rename = "podCIDR")]
    #[prost(string, optional, tag = "1")]
    pod_cidr: Option<String>,
    #[serde(deserialize_with = "or_default")]
    #[prost(message, repeated, tag = "5")]
    taints: Vec<Taint>,
    #[serde(rename = "podCIDRs", deserialize_with = "or_default")]
    #[prost(string, repeated, tag = "7")]
    pod_cidrs: Vec<String>,
}

#[derive(Clone, PartialEq, Deserialize, Message)]
struct Taint {
    #[prost(string, tag = "1")]
    key: String,
}

#[derive(Clone, PartialEq, Deserialize, Message)]
struct NodeStatus {
    #[serde(default, deserialize_with = "or_default")]
    #[prost(message, repeated, tag = "5")]
    addresses: Vec<NodeAddress>,
}

#[derive(Clone, PartialEq, Deserialize, Message)]
struct NodeAddress {
    #[serde(rename = "type")]
    #[prost(string, tag = "1")]
    type_: String,
    #[prost(string, tag = "2")]
    address: String,
}

impl Metadata {
    /// Empty where a part is missing.
    pub(crate) fn object_name(&self) -> ObjectName {
        let part = |part: &Option<String>| part.as_deref().unwrap_or_default().into();
        ObjectName {
            namespace: part(&self.namespace),
            name: part(&self.name),
        }
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let time = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time::deserialize(deserializer)?;
        Ok(Self {
            seconds: time.0.as_second(),
        })
    }
}

/// What may be null, which says as much as nothing.
pub(crate) fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

impl Object for Service {
    const API: &str = "/api/v1";
    const KIND: &str = "Service";
    const PLURAL: &str = "services";

    fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    fn metadata_mut(&mut self) -> &mut Metadata {
        &mut self.metadata
    }

    fn convert(&self) -> Converted {
        Converted::of_named(self, |name, problems| {
            if self.is_for_others() {
                return None;
            }
            self.model(name, problems).map(Change::Service)
        })
    }

    fn gone(name: ObjectName) -> Option<Change> {
        Some(Change::ServiceGone(name))
    }
}

impl Service {
    /// Whether the Service asks us for nothing: its clients resolve it by DNS, or another proxy has it.
    fn is_for_others(&self) -> bool {
        let spec = self.spec.as_ref();
        label(&self.metadata, SERVICE_PROXY_NAME).is_some()
            || spec.and_then(|spec| spec.type_.as_deref()) == Some("ExternalName")
            || spec.and_then(|spec| spec.cluster_ip.as_deref()) == Some("None")
    }

    fn model(&self, name: ObjectName, problems: &mut Problems) -> Option<model::Service> {
        let default = ServiceSpec::default();
        let spec = self.spec.as_ref().unwrap_or(&default);
        let cluster_ips = spec.cluster_ips(problems);
        if cluster_ips.is_empty() {
            return None;
        }
        let external_traffic_policy = traffic_policy(
            "spec.externalTrafficPolicy",
            &spec.external_traffic_policy,
            problems,
        );
        let has_health_check =
            spec.type_.as_deref() == Some("LoadBalancer") && external_traffic_policy == TrafficPolicy::Local;
        Some(model::Service {
            name,
            created: self
                .metadata
                .creation_timestamp
                .as_ref()
                .map_or(0, |time| time.seconds),
            cluster_ips,
            external_ips: spec.external_ips(problems),
            load_balancer_ips: self.load_balancer_ips(problems),
            source_ranges: spec.source_ranges(problems),
            ports: spec.ports(problems),
            session_affinity: spec.affinity_seconds(problems),
            internal_traffic_policy: traffic_policy(
                "spec.internalTrafficPolicy",
                &spec.internal_traffic_policy,
                problems,
            ),
            external_traffic_policy,
            health_check_node_port: spec
                .health_check_node_port
                .filter(|port| has_health_check && *port != 0)
                .and_then(|port| problems.port(port, || "spec.healthCheckNodePort".into())),
            overrides: annotations::overrides(&self.metadata.annotations),
        })
    }

    fn load_balancer_ips(&self, problems: &mut Problems) -> Vec<IpAddr> {
        let status = self
            .status
            .as_ref()
            .and_then(|status| status.load_balancer.as_ref());
        let ingress = status.map(|status| status.ingress.as_slice()).unwrap_or_default();
        ingress
            .iter()
            .enumerate()
            // With ipMode Proxy the load balancer is to see the traffic, also that from inside.
            .filter(|(_, ingress)| !matches!(ingress.ip_mode.as_deref(), Some(mode) if mode != "VIP"))
            .filter_map(|(index, ingress)| {
                let ip = ingress.ip.as_deref().filter(|ip| !ip.is_empty())?;
                problems.service_address(ip, || format!("status.loadBalancer.ingress[{index}].ip"))
            })
            .collect()
    }
}

impl ServiceSpec {
    fn cluster_ips(&self, problems: &mut Problems) -> Vec<IpAddr> {
        let texts = match self.cluster_ips.as_slice() {
            [] => self.cluster_ip.as_slice(),
            texts => texts,
        };
        let mut ips: Vec<IpAddr> = Vec::new();
        for (index, text) in texts.iter().enumerate().filter(|(_, text)| !text.is_empty()) {
            let field = || format!("spec.clusterIPs[{index}]");
            let Some(ip) = problems.service_address(text, field) else {
                continue;
            };
            if ips.iter().any(|other| other.is_ipv4() == ip.is_ipv4()) {
                problems.add(field(), Reason::SecondOfFamily(ip));
            } else {
                ips.push(ip);
            }
        }
        // An API server would have allocated one.
        if texts.iter().all(String::is_empty) {
            problems.add("spec.clusterIP".to_owned(), Reason::Missing);
        }
        ips
    }

    fn external_ips(&self, problems: &mut Problems) -> Vec<IpAddr> {
        let texts = self.external_ips.iter().enumerate();
        texts
            .filter(|(_, text)| !text.trim().is_empty())
            .filter_map(|(index, text)| {
                problems.service_address(text, || format!("spec.externalIPs[{index}]"))
            })
            .collect()
    }

    fn source_ranges(&self, problems: &mut Problems) -> SourceRanges {
        match self.load_balancer_source_ranges.as_slice() {
            [] => SourceRanges::Any,
            texts => SourceRanges::Only(problems.cidrs("spec.loadBalancerSourceRanges", texts)),
        }
    }

    fn ports(&self, problems: &mut Problems) -> Vec<model::ServicePort> {
        let ports = self.ports.iter().enumerate();
        ports
            .filter_map(|(index, port)| {
                let field = |name: &str| format!("spec.ports[{index}].{name}");
                Some(model::ServicePort {
                    name: port.name.as_deref().unwrap_or_default().into(),
                    protocol: problems.protocol(port.protocol.as_deref(), || field("protocol"))?,
                    port: problems.port(port.port, || field("port"))?,
                    node_port: port
                        .node_port
                        .filter(|port| *port != 0)
                        .and_then(|port| problems.port(port, || field("nodePort"))),
                })
            })
            .collect()
    }

    fn affinity_seconds(&self, problems: &mut Problems) -> Option<u32> {
        match self.session_affinity.as_deref() {
            None | Some("" | "None") => return None,
            Some("ClientIP") => {}
            Some(other) => {
                problems.add(
                    "spec.sessionAffinity".into(),
                    Reason::UnknownChoice(other.to_owned(), "None"),
                );
                return None;
            }
        }
        let config = self
            .session_affinity_config
            .as_ref()
            .and_then(|config| config.client_ip.as_ref());
        let Some(seconds) = config.and_then(|config| config.timeout_seconds) else {
            return Some(AFFINITY_SECONDS);
        };
        let valid = u32::try_from(seconds)
            .ok()
            .filter(|seconds| (1..=86400).contains(seconds));
        if valid.is_none() {
            let field = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
            problems.add(field.into(), Reason::BadTimeout(seconds));
        }
        valid.or(Some(AFFINITY_SECONDS))
    }
}

impl Object for EndpointSlice {
    const API: &str = "/apis/discovery.k8s.io/v1";
    const KIND: &str = "EndpointSlice";
    const PLURAL: &str = "endpointslices";

    fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    fn metadata_mut(&mut self) -> &mut Metadata {
        &mut self.metadata
    }

    fn convert(&self) -> Converted {
        Converted::of_named(self, |name, problems| {
            self.model(name, problems).map(Change::EndpointSlice)
        })
    }

    fn gone(name: ObjectName) -> Option<Change> {
        Some(Change::EndpointSliceGone(name))
    }
}

impl EndpointSlice {
    fn model(&self, name: ObjectName, problems: &mut Problems) -> Option<model::EndpointSlice> {
        if label(&self.metadata, HEADLESS).is_some() {
            return None;
        }
        let Some(service) = label(&self.metadata, SERVICE_NAME).filter(|name| !name.is_empty()) else {
            problems.add(format!("metadata.labels[{SERVICE_NAME}]"), Reason::Missing);
            return None;
        };
        let is_ipv4 = match self.address_type.as_deref() {
            Some("IPv4") => true,
            Some("IPv6") => false,
            None => {
                problems.add("addressType".to_owned(), Reason::Missing);
                return None;
            }
            Some(other) => {
                problems.add(
                    "addressType".to_owned(),
                    Reason::UnknownAddressType(other.to_owned()),
                );
                return None;
            }
        };
        Some(model::EndpointSlice {
            name,
            service: service.into(),
            ports: self.ports(problems),
            endpoints: self.endpoints(is_ipv4, problems),
            last_change_trigger: self.last_change_trigger(),
        })
    }

    /// Nobody depends on it, so what cannot be read is not there.
    fn last_change_trigger(&self) -> Option<SystemTime> {
        let time: Timestamp = self
            .metadata
            .annotations
            .get(annotations::LAST_CHANGE_TRIGGER)?
            .parse()
            .ok()?;
        Some(time.into())
    }

    fn ports(&self, problems: &mut Problems) -> Vec<model::EndpointPort> {
        let ports = self.ports.iter().enumerate();
        ports
            .filter_map(|(index, port)| {
                let field = |name: &str| format!("ports[{index}].{name}");
                let number = port.port.or_else(|| {
                    problems.add(field("port"), Reason::Missing);
                    None
                })?;
                Some(model::EndpointPort {
                    name: port.name.as_deref().unwrap_or_default().into(),
                    protocol: problems.protocol(port.protocol.as_deref(), || field("protocol"))?,
                    port: problems.port(number, || field("port"))?,
                })
            })
            .collect()
    }

    fn endpoints(&self, is_ipv4: bool, problems: &mut Problems) -> Vec<model::Endpoint> {
        let endpoints = self.endpoints.iter().enumerate();
        endpoints
            .filter_map(|(index, endpoint)| {
                let field = || format!("endpoints[{index}].addresses[0]");
                let Some(text) = endpoint.addresses.first() else {
                    problems.add(field(), Reason::Missing);
                    return None;
                };
                let address = problems.address(text, field)?;
                if address.is_ipv4() != is_ipv4 {
                    problems.add(field(), Reason::WrongFamily(address));
                    return None;
                }
                Some(model::Endpoint {
                    address,
                    node: endpoint.node_name.as_deref().map(Arc::from),
                    conditions: endpoint
                        .conditions
                        .as_ref()
                        .map(EndpointConditions::model)
                        .unwrap_or_default(),
                    hints: endpoint.hints.as_ref().and_then(EndpointHints::model),
                })
            })
            .collect()
    }
}

impl EndpointConditions {
    fn model(&self) -> Conditions {
        let absent = Conditions::default();
        Conditions {
            ready: self.ready.unwrap_or(absent.ready),
            serving: self.serving.unwrap_or(absent.serving),
            terminating: self.terminating.unwrap_or(absent.terminating),
        }
    }
}

impl EndpointHints {
    fn model(&self) -> Option<Box<Hints>> {
        let names = |list: &[Name]| list.iter().map(|item| item.name.as_str().into()).collect();
        let hints = Hints {
            zones: names(&self.for_zones),
            nodes: names(&self.for_nodes),
        };
        (hints != Hints::default()).then(|| Box::new(hints))
    }
}

impl Object for Node {
    const API: &str = "/api/v1";
    const KIND: &str = "Node";
    const PLURAL: &str = "nodes";

    fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    fn metadata_mut(&mut self) -> &mut Metadata {
        &mut self.metadata
    }

    fn convert(&self) -> Converted {
        let mut problems = Problems::default();
        let node = model::Node {
            addresses: self.addresses(&mut problems),
            zone: label(&self.metadata, ZONE).map(Arc::from),
            pod_cidrs: self.pod_cidrs(&mut problems),
        };
        Converted {
            name: self.metadata.object_name(),
            change: Some(Change::Node(node)),
            problems: problems.0,
        }
    }

    /// A node whose object is gone for a while still runs what it runs.
    fn gone(_: ObjectName) -> Option<Change> {
        None
    }

    fn is_eligible(&self) -> Option<bool> {
        let taints = self
            .spec
            .as_ref()
            .map(|spec| spec.taints.as_slice())
            .unwrap_or_default();
        let is_going =
            self.metadata.deletion_timestamp.is_some() || taints.iter().any(|taint| taint.key == GOING);
        Some(!is_going)
    }
}

impl Node {
    fn addresses(&self, problems: &mut Problems) -> Vec<IpAddr> {
        let addresses = self
            .status
            .as_ref()
            .map(|status| status.addresses.as_slice())
            .unwrap_or_default();
        let mut ips = Vec::new();
        for wanted in ["InternalIP", "ExternalIP"] {
            for (index, address) in addresses
                .iter()
                .enumerate()
                .filter(|(_, address)| address.type_ == wanted)
            {
                ips.extend(
                    problems.address(&address.address, || format!("status.addresses[{index}].address")),
                );
            }
        }
        ips
    }

    fn pod_cidrs(&self, problems: &mut Problems) -> Vec<IpNet> {
        let Some(spec) = &self.spec else { return Vec::new() };
        match spec.pod_cidrs.as_slice() {
            [] if spec.pod_cidr.as_deref() == Some("") => Vec::new(),
            [] => problems.cidrs("spec.podCIDR", spec.pod_cidr.as_slice()),
            texts => problems.cidrs("spec.podCIDRs", texts),
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Problems(pub(crate) Vec<Problem>);

impl Problems {
    pub(crate) fn add(&mut self, field: String, reason: Reason) {
        self.0.push(Problem { field, reason });
    }

    fn address(&mut self, text: &str, field: impl FnOnce() -> String) -> Option<IpAddr> {
        let address = parse_ip(text);
        if address.is_none() {
            self.add(field(), Reason::NotAnAddress(text.to_owned()));
        }
        address
    }

    /// An address that can be bound: the kernel would take others, which are everybody's or nobody's.
    fn service_address(&mut self, text: &str, field: impl Fn() -> String) -> Option<IpAddr> {
        let address = self.address(text, &field)?;
        let is_broadcast = address == IpAddr::V4(std::net::Ipv4Addr::BROADCAST);
        if address.is_unspecified() || address.is_loopback() || address.is_multicast() || is_broadcast {
            self.add(field(), Reason::NotAServiceAddress(address));
            return None;
        }
        Some(address)
    }

    fn cidrs(&mut self, field: &str, texts: &[String]) -> Vec<IpNet> {
        let mut cidrs = Vec::new();
        for (index, text) in texts.iter().enumerate() {
            match parse_cidr(text.trim()) {
                Some(cidr) => cidrs.push(cidr),
                None => self.add(format!("{field}[{index}]"), Reason::NotACidr(text.clone())),
            }
        }
        cidrs
    }

    fn port(&mut self, number: i64, field: impl FnOnce() -> String) -> Option<NonZeroU16> {
        let port = u16::try_from(number).ok().and_then(NonZeroU16::new);
        if port.is_none() {
            self.add(field(), Reason::NotAPort(number));
        }
        port
    }

    fn protocol(&mut self, text: Option<&str>, field: impl FnOnce() -> String) -> Option<Protocol> {
        match text {
            None | Some("" | "TCP") => Some(Protocol::Tcp),
            Some("UDP") => Some(Protocol::Udp),
            Some("SCTP") => Some(Protocol::Sctp),
            Some(other) => {
                self.add(field(), Reason::UnknownProtocol(other.to_owned()));
                None
            }
        }
    }
}

fn traffic_policy(field: &str, text: &Option<String>, problems: &mut Problems) -> TrafficPolicy {
    match text.as_deref() {
        None | Some("" | "Cluster") => TrafficPolicy::Cluster,
        Some("Local") => TrafficPolicy::Local,
        Some(other) => {
            problems.add(
                field.to_owned(),
                Reason::UnknownChoice(other.to_owned(), "Cluster"),
            );
            TrafficPolicy::Cluster
        }
    }
}

fn label<'a>(metadata: &'a Metadata, key: &str) -> Option<&'a str> {
    metadata.labels.get(key).map(String::as_str)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Converts an object of the metadata `{namespace: ns, name: n}`.
    fn convert<O: Object>(yaml: &str) -> (Change, Vec<String>) {
        let mut object: O = serde_saphyr::from_str(yaml).unwrap();
        object.metadata_mut().namespace = Some("ns".to_owned());
        object.metadata_mut().name = Some("n".to_owned());
        let converted = object.convert();
        (
            converted.change.unwrap(),
            converted.problems.iter().map(ToString::to_string).collect(),
        )
    }

    fn name() -> ObjectName {
        ObjectName::new("ns", "n")
    }

    fn service(yaml: &str) -> (model::Service, Vec<String>) {
        match convert::<Service>(yaml) {
            (Change::Service(service), problems) => (service, problems),
            other => panic!("{yaml}: {other:?}"),
        }
    }

    fn slice(yaml: &str) -> (model::EndpointSlice, Vec<String>) {
        let yaml = format!("metadata: {{labels: {{{SERVICE_NAME}: web}}}}\n{yaml}");
        match convert::<EndpointSlice>(&yaml) {
            (Change::EndpointSlice(slice), problems) => (slice, problems),
            other => panic!("{yaml}: {other:?}"),
        }
    }

    fn port(number: u16) -> NonZeroU16 {
        NonZeroU16::new(number).unwrap()
    }

    #[test]
    fn a_service_is_read_with_all_its_fields() {
        let (service, problems) = service(
            "
metadata:
  creationTimestamp: 2024-01-02T03:04:05Z
  annotations: {ignored: yes}
  managedFields: [{manager: ignored}]
spec:
  type: LoadBalancer
  clusterIP: 10.96.0.10
  clusterIPs: [10.96.0.10, 'fd00::a']
  externalIPs: [192.0.2.1]
  loadBalancerSourceRanges: [198.51.100.7/24]
  healthCheckNodePort: 32000
  internalTrafficPolicy: Local
  externalTrafficPolicy: Local
  sessionAffinity: ClientIP
  sessionAffinityConfig: {clientIP: {timeoutSeconds: 60}}
  ports:
  - {name: dns, protocol: UDP, port: 53, targetPort: dns, nodePort: 30053}
  - {name: sctp, protocol: SCTP, port: 9, nodePort: 0}
status:
  loadBalancer:
    ingress:
    - {ip: 203.0.113.1, ipMode: VIP}
    - {ip: 203.0.113.2, ipMode: Proxy}
    - {hostname: lb.example}
    - {ip: 'fd00::1'}
",
        );
        assert_eq!(problems, [""; 0]);
        assert_eq!(
            service,
            model::Service {
                name: name(),
                created: 1_704_164_645,
                cluster_ips: vec!["10.96.0.10".parse().unwrap(), "fd00::a".parse().unwrap()],
                external_ips: vec!["192.0.2.1".parse().unwrap()],
                load_balancer_ips: vec!["203.0.113.1".parse().unwrap(), "fd00::1".parse().unwrap()],
                source_ranges: SourceRanges::Only(vec!["198.51.100.0/24".parse().unwrap()]),
                ports: vec![
                    model::ServicePort {
                        name: "dns".into(),
                        protocol: Protocol::Udp,
                        port: port(53),
                        node_port: Some(port(30053)),
                    },
                    model::ServicePort {
                        name: "sctp".into(),
                        protocol: Protocol::Sctp,
                        port: port(9),
                        node_port: None,
                    },
                ],
                session_affinity: Some(60),
                internal_traffic_policy: TrafficPolicy::Local,
                external_traffic_policy: TrafficPolicy::Local,
                health_check_node_port: Some(port(32000)),
                overrides: None,
            }
        );
    }

    #[test]
    fn the_time_of_a_slices_trigger_is_read_if_it_is_one() {
        for (text, expected) in [
            ("'2023-11-14T22:13:20.5Z'", Some(1_700_000_000_500)),
            ("yesterday", None),
        ] {
            let yaml = format!(
                "metadata: {{name: s, labels: {{{SERVICE_NAME}: web}}, annotations: {{{}: {text}}}}}
addressType: IPv4",
                annotations::LAST_CHANGE_TRIGGER
            );
            let Change::EndpointSlice(slice) = convert::<EndpointSlice>(&yaml).0 else {
                panic!("{yaml}")
            };
            let expected = expected.map(|millis| SystemTime::UNIX_EPOCH + Duration::from_millis(millis));
            assert_eq!(slice.last_change_trigger, expected, "{text}");
        }
    }

    #[test]
    fn what_an_api_server_would_have_filled_in_may_be_missing() {
        let (service, problems) =
            service("spec: {clusterIP: 10.96.0.1, sessionAffinity: ClientIP, ports: [{port: 80}]}");
        assert_eq!(problems, [""; 0]);
        assert_eq!(service.created, 0);
        assert_eq!(service.cluster_ips, ["10.96.0.1".parse::<IpAddr>().unwrap()]);
        assert_eq!(service.session_affinity, Some(10800));
        assert_eq!(service.source_ranges, SourceRanges::Any);
        assert_eq!(service.internal_traffic_policy, TrafficPolicy::Cluster);
        assert_eq!(service.external_traffic_policy, TrafficPolicy::Cluster);
        let [only] = service.ports.as_slice() else {
            panic!("{service:?}")
        };
        assert_eq!(
            (&*only.name, only.protocol, only.port),
            ("", Protocol::Tcp, port(80))
        );
    }

    #[test]
    fn a_service_that_wants_no_virtual_servers_is_gone() {
        for yaml in [
            "spec: {clusterIP: None, ports: [{port: 80}]}",
            "spec: {type: ExternalName, externalName: a.example}",
            "spec: {type: ExternalName, clusterIP: 10.96.0.1, ports: [{port: 80}]}",
            "metadata: {labels: {service.kubernetes.io/service-proxy-name: other}}\nspec: {clusterIP: 10.96.0.1}",
        ] {
            assert_eq!(
                convert::<Service>(yaml),
                (Change::ServiceGone(name()), vec![]),
                "{yaml}"
            );
        }
        for (yaml, problem) in [
            ("spec: {ports: [{port: 80}]}", "spec.clusterIP: is missing"),
            ("spec: null", "spec.clusterIP: is missing"),
            (
                "spec: {clusterIP: a.example}",
                "spec.clusterIPs[0]: \"a.example\" is not an IP address",
            ),
        ] {
            let expected = (Change::ServiceGone(name()), vec![problem.to_owned()]);
            assert_eq!(convert::<Service>(yaml), expected, "{yaml}");
        }
    }

    #[test]
    fn the_health_check_port_counts_for_load_balancers_of_local_policy_only() {
        for (spec, expected) in [
            (
                "type: LoadBalancer, externalTrafficPolicy: Local",
                Some(port(32000)),
            ),
            ("type: LoadBalancer, externalTrafficPolicy: Cluster", None),
            ("type: NodePort, externalTrafficPolicy: Local", None),
        ] {
            let yaml = format!("spec: {{clusterIP: 10.96.0.1, healthCheckNodePort: 32000, {spec}}}");
            assert_eq!(service(&yaml).0.health_check_node_port, expected, "{spec}");
        }
    }

    #[test]
    fn a_bad_value_costs_its_part_of_a_service_only() {
        let (service, problems) = service(
            "
spec:
  clusterIP: 10.96.0.1
  clusterIPs: [10.96.0.1, 10.96.0.2, nonsense]
  externalIPs: ['', 192.0.2.1, 192.0.2.256, 224.0.0.1]
  loadBalancerSourceRanges: ['nonsense', ' 198.51.100.0/24 ']
  internalTrafficPolicy: Nearest
  externalTrafficPolicy: Nearest
  sessionAffinity: ClientIP
  sessionAffinityConfig: {clientIP: {timeoutSeconds: 86401}}
  ports:
  - {name: a, port: 0}
  - {name: b, port: 65536}
  - {name: c, port: -1}
  - {name: d, port: 80, protocol: QUIC}
  - {name: e, port: 81, nodePort: 99999999999}
status: {loadBalancer: {ingress: [{ip: nonsense}, {ip: ''}]}}
",
        );
        assert_eq!(
            problems,
            [
                "spec.clusterIPs[1]: 10.96.0.2 is a second address of its family",
                "spec.clusterIPs[2]: \"nonsense\" is not an IP address",
                "spec.externalTrafficPolicy: \"Nearest\" is not known; Cluster is taken",
                "spec.externalIPs[2]: \"192.0.2.256\" is not an IP address",
                "spec.externalIPs[3]: 224.0.0.1 cannot be the address of a Service",
                "status.loadBalancer.ingress[0].ip: \"nonsense\" is not an IP address",
                "spec.loadBalancerSourceRanges[0]: \"nonsense\" is not a CIDR",
                "spec.ports[0].port: 0 is not a port number, 1 to 65535",
                "spec.ports[1].port: 65536 is not a port number, 1 to 65535",
                "spec.ports[2].port: -1 is not a port number, 1 to 65535",
                "spec.ports[3].protocol: \"QUIC\" is none of TCP, UDP, SCTP",
                "spec.ports[4].nodePort: 99999999999 is not a port number, 1 to 65535",
                "spec.sessionAffinityConfig.clientIP.timeoutSeconds: 86401 is not within 1 to 86400 seconds; 10800 is taken",
                "spec.internalTrafficPolicy: \"Nearest\" is not known; Cluster is taken",
            ]
        );
        assert_eq!(service.cluster_ips, ["10.96.0.1".parse::<IpAddr>().unwrap()]);
        assert_eq!(service.external_ips, ["192.0.2.1".parse::<IpAddr>().unwrap()]);
        assert_eq!(service.load_balancer_ips, [] as [IpAddr; 0]);
        assert_eq!(
            service.source_ranges,
            SourceRanges::Only(vec!["198.51.100.0/24".parse().unwrap()])
        );
        assert_eq!(service.session_affinity, Some(10800));
        let [only] = service.ports.as_slice() else {
            panic!("{service:?}")
        };
        assert_eq!((&*only.name, only.port, only.node_port), ("e", port(81), None));
    }

    /// Q16: ranges that cannot be read are no licence for everyone.
    #[test]
    fn source_ranges_that_are_all_bad_admit_nobody() {
        let (service, problems) =
            service("spec: {clusterIP: 10.96.0.1, loadBalancerSourceRanges: [nonsense, 10.0.0.1]}");
        assert_eq!(service.source_ranges, SourceRanges::Only(vec![]));
        assert_eq!(problems.len(), 2);
    }

    #[test]
    fn an_object_without_a_name_tells_nothing() {
        let object: Service = serde_saphyr::from_str("spec: {clusterIP: 10.96.0.1}").unwrap();
        let converted = object.convert();
        assert_eq!(converted.change, None);
        let problems: Vec<String> = converted.problems.iter().map(ToString::to_string).collect();
        assert_eq!(
            problems,
            ["metadata.namespace: is missing", "metadata.name: is missing"]
        );
    }

    #[test]
    fn a_slice_is_read_with_all_its_fields() {
        let (slice, problems) = slice(
            "
addressType: IPv4
ports:
- {name: http, port: 8080, protocol: TCP, appProtocol: ignored}
- {port: 8081}
endpoints:
- addresses: [10.244.0.5, 10.244.0.6]
  nodeName: node-1
  zone: ignored
  conditions: {ready: false, serving: true, terminating: true}
  hints: {forZones: [{name: a}], forNodes: [{name: node-1}, {name: node-2}]}
- addresses: [10.244.1.5]
  conditions: {ready: null}
",
        );
        assert_eq!(problems, [""; 0]);
        assert_eq!((&slice.name, &*slice.service), (&name(), "web"));
        assert_eq!(
            slice.ports,
            [("http", 8080), ("", 8081)].map(|(name, number)| model::EndpointPort {
                name: name.into(),
                protocol: Protocol::Tcp,
                port: port(number),
            })
        );
        assert_eq!(
            slice.endpoints,
            [
                model::Endpoint {
                    address: "10.244.0.5".parse().unwrap(),
                    node: Some("node-1".into()),
                    conditions: Conditions {
                        ready: false,
                        serving: true,
                        terminating: true
                    },
                    hints: Some(Box::new(Hints {
                        zones: vec!["a".into()],
                        nodes: vec!["node-1".into(), "node-2".into()],
                    })),
                },
                model::Endpoint {
                    address: "10.244.1.5".parse().unwrap(),
                    node: None,
                    conditions: Conditions::default(),
                    hints: None,
                },
            ]
        );
    }

    #[test]
    fn a_bad_value_costs_its_part_of_a_slice_only() {
        let (slice, problems) = slice(
            "
addressType: IPv6
ports: [{name: a}, {name: b, port: 0}, {name: c, port: 80, protocol: QUIC}, {name: d, port: 80}]
endpoints:
- addresses: []
- {}
- addresses: [10.244.0.5]
- addresses: [nonsense]
- addresses: ['fd00::5']
",
        );
        assert_eq!(
            problems,
            [
                "ports[0].port: is missing",
                "ports[1].port: 0 is not a port number, 1 to 65535",
                "ports[2].protocol: \"QUIC\" is none of TCP, UDP, SCTP",
                "endpoints[0].addresses[0]: is missing",
                "endpoints[1].addresses[0]: is missing",
                "endpoints[2].addresses[0]: 10.244.0.5 is not of the slice's address type",
                "endpoints[3].addresses[0]: \"nonsense\" is not an IP address",
            ]
        );
        assert_eq!(
            slice.ports.iter().map(|port| &*port.name).collect::<Vec<_>>(),
            ["d"]
        );
        assert_eq!(
            slice
                .endpoints
                .iter()
                .map(|endpoint| endpoint.address.to_string())
                .collect::<Vec<_>>(),
            ["fd00::5"]
        );
    }

    #[test]
    fn a_slice_of_no_use_is_gone() {
        for (yaml, problems) in [
            (
                "metadata: {labels: {kubernetes.io/service-name: web, service.kubernetes.io/headless: ''}}",
                &[][..],
            ),
            (
                "addressType: IPv4",
                &["metadata.labels[kubernetes.io/service-name]: is missing"],
            ),
            (
                "metadata: {labels: {kubernetes.io/service-name: ''}}",
                &["metadata.labels[kubernetes.io/service-name]: is missing"],
            ),
            (
                "metadata: {labels: {kubernetes.io/service-name: web}}",
                &["addressType: is missing"],
            ),
            (
                "metadata: {labels: {kubernetes.io/service-name: web}}\naddressType: FQDN",
                &["addressType: \"FQDN\" is neither IPv4 nor IPv6"],
            ),
        ] {
            let (change, found) = convert::<EndpointSlice>(yaml);
            assert_eq!(change, Change::EndpointSliceGone(name()), "{yaml}");
            assert_eq!(found, problems, "{yaml}");
        }
    }

    #[test]
    fn a_node_lists_internal_addresses_first() {
        let (change, problems) = convert::<Node>(
            "
metadata: {labels: {topology.kubernetes.io/zone: a}}
spec: {podCIDR: 10.244.1.0/24, podCIDRs: [10.244.1.0/24, 'fd00:1::/64']}
status:
  addresses:
  - {type: ExternalIP, address: 203.0.113.5}
  - {type: Hostname, address: node-1}
  - {type: InternalIP, address: 192.0.2.5}
  - {type: InternalIP, address: nonsense}
",
        );
        assert_eq!(
            change,
            Change::Node(model::Node {
                addresses: vec!["192.0.2.5".parse().unwrap(), "203.0.113.5".parse().unwrap()],
                zone: Some("a".into()),
                pod_cidrs: vec!["10.244.1.0/24".parse().unwrap(), "fd00:1::/64".parse().unwrap()],
            })
        );
        assert_eq!(
            problems,
            ["status.addresses[3].address: \"nonsense\" is not an IP address"]
        );
        let (change, _) = convert::<Node>("spec: {podCIDR: 10.244.1.0/24}");
        let Change::Node(node) = change else {
            panic!("{change:?}")
        };
        assert_eq!(node.pod_cidrs, ["10.244.1.0/24".parse::<IpNet>().unwrap()]);
    }
}
