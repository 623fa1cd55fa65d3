//! What the proxier knows of a cluster: typed, compact copies of the fields that decide what is programmed.
//!
//! A source (an API watch, a directory of manifests, another agent) turns its objects into these types and
//! sends them as [`Change`]s. What cannot be valid cannot be expressed: ports are non-zero, addresses are
//! parsed, protocols are the three that IPVS forwards. A source reports and drops the object, or the part of
//! it, that does not fit.

use std::{
    fmt,
    net::IpAddr,
    num::NonZeroU16,
    sync::Arc,
    time::{Duration, SystemTime},
};

use ipnet::IpNet;
pub use ipvs::Protocol;
use ipvs::{Scheduler, ServiceFlags};

/// A namespaced object's name. Cheap to clone; sorts by namespace, then name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectName {
    /// `metadata.namespace`
    pub namespace: Arc<str>,
    /// `metadata.name`
    pub name: Arc<str>,
}

impl ObjectName {
    /// Names the object `namespace/name`.
    pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }

    /// `default/kubernetes`, the API server's own Service, which others need first (B2).
    pub fn kubernetes_api() -> Self {
        Self::new("default", "kubernetes")
    }

    /// Whether this is [`default/kubernetes`](Self::kubernetes_api).
    pub fn is_kubernetes_api(&self) -> bool {
        &*self.namespace == "default" && &*self.name == "kubernetes"
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A core/v1 `Service` that wants virtual servers.
///
/// Headless Services, Services of type ExternalName and those of another `service-proxy-name` have none: a
/// source sends [`Change::ServiceGone`] for them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Namespace and name.
    pub name: ObjectName,
    /// `metadata.creationTimestamp`, seconds since the Unix epoch: of two Services that claim one address,
    /// protocol and port the older wins.
    pub created: i64,
    /// `spec.clusterIPs`, at most one of each address family.
    pub cluster_ips: Vec<IpAddr>,
    /// `spec.externalIPs`.
    pub external_ips: Vec<IpAddr>,
    /// `status.loadBalancer.ingress[].ip` of `ipMode` VIP (or none).
    pub load_balancer_ips: Vec<IpAddr>,
    /// `spec.loadBalancerSourceRanges`: which clients may use the load-balancer addresses.
    pub source_ranges: SourceRanges,
    /// `spec.ports`.
    pub ports: Vec<ServicePort>,
    /// `spec.sessionAffinityConfig.clientIP.timeoutSeconds` where `spec.sessionAffinity` is ClientIP; seconds.
    pub session_affinity: Option<u32>,
    /// `spec.internalTrafficPolicy`: which endpoints clients of the ClusterIP reach.
    pub internal_traffic_policy: TrafficPolicy,
    /// `spec.externalTrafficPolicy`: which endpoints clients of all other addresses reach.
    pub external_traffic_policy: TrafficPolicy,
    /// `spec.healthCheckNodePort` where it applies (type LoadBalancer, external policy Local).
    pub health_check_node_port: Option<NonZeroU16>,
    /// What the Service asks for beyond its spec; most Services ask for nothing.
    pub overrides: Option<Box<Overrides>>,
}

/// What a Service decides for itself where else the operator's settings hold: its annotations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// The scheduler of its virtual servers.
    pub scheduler: Option<Scheduler>,
    /// The scheduler's flags (`IPVS_SVC_ATTR_FLAGS`), in place of those that we choose.
    pub scheduler_flags: Option<ServiceFlags>,
    /// Schedule every UDP datagram by itself (`IP_VS_SVC_F_ONEPACKET`). Other protocols do not have it.
    pub one_packet: bool,
    /// How long a TCP real server may keep its last connections after it stopped to be wanted.
    pub drain_timeout: Option<Duration>,
    /// The weights of endpoints by their addresses: the longest prefix counts, and without one the weight is 1.
    /// Weight 0 is for maintenance: the endpoint keeps the connections that it has, and gets no new ones.
    pub weights: Vec<(IpNet, u32)>,
    /// The nodes on which the Service is not programmed, because something else has its addresses there (D11).
    pub excluded_nodes: Nodes,
    /// What it asks for and what cannot be made sense of, each in a sentence; the rest holds.
    pub invalid: Vec<Arc<str>>,
}

impl Overrides {
    /// The weight of the endpoint at `address`.
    pub fn weight(&self, address: IpAddr) -> u32 {
        let matching = self
            .weights
            .iter()
            .filter(|(prefix, _)| prefix.contains(&address));
        matching
            .max_by_key(|(prefix, _)| prefix.prefix_len())
            .map_or(1, |(_, weight)| *weight)
    }
}

/// Some of the cluster's nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Nodes {
    /// Every node.
    All,
    /// Those of these names.
    Named(Vec<Arc<str>>),
}

impl Nodes {
    /// Whether the node `name` is among them.
    pub fn contains(&self, name: &str) -> bool {
        match self {
            Self::All => true,
            Self::Named(names) => names.iter().any(|named| **named == *name),
        }
    }
}

impl Default for Nodes {
    fn default() -> Self {
        Self::Named(Vec::new())
    }
}

/// One of a Service's `spec.ports`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// `name`; empty where the Service has a single, unnamed port. Endpoint ports are matched by it.
    pub name: Arc<str>,
    /// `protocol`
    pub protocol: Protocol,
    /// `port`: what clients of the Service's addresses connect to.
    pub port: NonZeroU16,
    /// `nodePort`: the same on the node's own addresses.
    pub node_port: Option<NonZeroU16>,
}

/// Which endpoints a Service's clients may reach.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TrafficPolicy {
    /// Every endpoint of the cluster.
    #[default]
    Cluster,
    /// Those on this node only.
    Local,
}

/// Which clients may use a Service's load-balancer addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum SourceRanges {
    /// No ranges were given.
    #[default]
    Any,
    /// Ranges were given, and these of them are valid. None at all admits nobody.
    Only(Vec<IpNet>),
}

/// A discovery.k8s.io/v1 `EndpointSlice` of address type IPv4 or IPv6.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    /// Namespace and name of the slice itself.
    pub name: ObjectName,
    /// The label `kubernetes.io/service-name`: the Service, in the same namespace, that it belongs to.
    pub service: Arc<str>,
    /// `ports`, those with a name and a number.
    pub ports: Vec<EndpointPort>,
    /// `endpoints`
    pub endpoints: Vec<Endpoint>,
    /// The annotation `endpoints.kubernetes.io/last-change-trigger-time`: when what made the endpoints change came
    /// about. It decides nothing; how long the change took to be programmed is told by it.
    pub last_change_trigger: Option<SystemTime>,
}

impl EndpointSlice {
    /// The Service that owns the slice.
    pub fn service_name(&self) -> ObjectName {
        ObjectName {
            namespace: self.name.namespace.clone(),
            name: self.service.clone(),
        }
    }
}

/// One of a slice's `ports`: every endpoint of the slice listens on each of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointPort {
    /// `name`, equal to the Service port's.
    pub name: Arc<str>,
    /// `protocol`, equal to the Service port's.
    pub protocol: Protocol,
    /// `port`
    pub port: NonZeroU16,
}

/// One of a slice's `endpoints`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// `addresses[0]`; the API promises that further ones are equivalent, and nobody uses them.
    pub address: IpAddr,
    /// `nodeName`
    pub node: Option<Arc<str>>,
    /// `conditions`
    pub conditions: Conditions,
    /// `hints`; most clusters have none.
    pub hints: Option<Box<Hints>>,
}

/// An endpoint's `conditions`, with the API's defaults for absent ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conditions {
    /// `ready`; absent means true.
    pub ready: bool,
    /// `serving`: ready, or it would be if it were not terminating; absent means true.
    pub serving: bool,
    /// `terminating`; absent means false.
    pub terminating: bool,
}

impl Default for Conditions {
    fn default() -> Self {
        Self {
            ready: true,
            serving: true,
            terminating: false,
        }
    }
}

/// An endpoint's `hints`: for whose clients it is meant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hints {
    /// `forZones[].name`
    pub zones: Vec<Arc<str>>,
    /// `forNodes[].name`
    pub nodes: Vec<Arc<str>>,
}

/// What the core/v1 `Node` object says of the node that we run on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// `status.addresses`: InternalIPs first, then ExternalIPs.
    pub addresses: Vec<IpAddr>,
    /// The label `topology.kubernetes.io/zone`.
    pub zone: Option<Arc<str>>,
    /// `spec.podCIDRs`
    pub pod_cidrs: Vec<IpNet>,
}

/// What a source tells the proxier. Objects are sent whole; a later one replaces an earlier one of its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The Service is there, or has changed.
    Service(Service),
    /// The Service is gone, or wants no virtual servers any more.
    ServiceGone(ObjectName),
    /// The slice is there, or has changed.
    EndpointSlice(EndpointSlice),
    /// The slice is gone, or is of no use any more.
    EndpointSliceGone(ObjectName),
    /// Our node's object is there, or has changed.
    Node(Node),
    /// The source has sent all that exists. Before, a kernel that held anything of ours at the start stays as it is; one
    /// that held nothing gets Services that have endpoints, and no addresses but ClusterIPs, once our [`Node`] has come
    /// (I6, C4).
    Synced,
}
