//! What the proxier tells of its work, for whoever makes metrics, health answers and events of it.
//!
//! A [`Reconciler`](crate::Reconciler) hands each [`Report`] to a function of the embedder's.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    net::IpAddr,
    num::NonZeroU16,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use ipvs::{Family, ServiceKey};

use crate::{
    accounting::{Counters, ServicePortName},
    kernel::{Failure, netfilter::foreign::ForeignDrop},
    model::ObjectName,
    step::{Driver, Key},
};

/// Who takes reports. It is called on the reconciler's thread in the midst of the work, some of it before the kernel has a
/// change: what takes long, or wakes another thread up, is better done for few kinds of reports.
pub(crate) struct Observer(Box<dyn FnMut(Report) + Send>);

impl Observer {
    pub(crate) fn new(take: impl FnMut(Report) + Send + 'static) -> Self {
        Self(Box::new(take))
    }

    pub(crate) fn tell(&mut self, report: Report) {
        self.0(report);
    }
}

impl fmt::Debug for Observer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Observer").finish_non_exhaustive()
    }
}

/// Something that the proxier has done or found.
#[derive(Clone, Debug)]
pub enum Report {
    /// Changes wait to be programmed, and before none did. They do until a [`Sync`] that leaves none
    /// [`pending`](Sync::pending).
    Queued {
        /// When the first of them came.
        at: Instant,
    },
    /// The kernel was brought in step with what is wanted, as far as that was possible.
    Sync(Sync),
    /// The kernel's state could not be read, so nothing was compared with it.
    Unreadable(Failure),
    /// What is to be told of this Service is now this. Services of which nothing is have the default.
    Service(ObjectName, ServiceStatus),
    /// An object cannot be programmed, for a new reason. It is tried again with back-off.
    Failing {
        /// The object.
        key: Key,
        /// The Service that has it; `None` for what Services share.
        service: Option<ObjectName>,
        /// What the kernel says.
        reason: String,
    },
    /// An object that was [`Failing`](Self::Failing) is not any more.
    Recovered(Key),
    /// Other programs' packet filters drop this now of what Services need, and before they dropped something else.
    ForeignDrops(Vec<ForeignDrop>),
    /// What the ports of Services have carried by now, if [`Config::service_metrics`](crate::Config::service_metrics)
    /// asks for it. A port that is not among them any more is gone.
    Carried(HashMap<ServicePortName, Counters>),
    /// The connection tracking table was searched for UDP flows to endpoints that are gone (A5).
    Conntrack {
        /// Whose table.
        family: Family,
        /// How long that took.
        duration: Duration,
        /// How many were deleted.
        deleted: usize,
    },
}

/// One time that operations were carried out, or might have been.
#[derive(Clone, Debug)]
pub struct Sync {
    /// The occasion.
    pub occasion: Occasion,
    /// The address families that the kernel has.
    pub families: Vec<Family>,
    /// When it began.
    pub started: Instant,
    /// How long it took, reading and planning included.
    pub duration: Duration,
    /// How many Services were planned.
    pub services: usize,
    /// What each driver was asked for, in that order. A driver may come twice.
    pub work: Vec<Work>,
    /// When the causes of the endpoints' changes that are programmed now came about
    /// ([`EndpointSlice::last_change_trigger`](crate::model::EndpointSlice::last_change_trigger)), with the family of
    /// the slice's endpoints. Empty if an object failed.
    pub triggers: Vec<(Family, SystemTime)>,
    /// The node's addresses that answer on node ports.
    pub node_port_addresses: BTreeSet<IpAddr>,
    /// Whether more Services wait to be planned.
    pub pending: bool,
    /// Whether all that exists has been programmed once.
    pub complete: bool,
    /// What there is now.
    pub totals: Totals,
}

/// Why the kernel was brought in step with what is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Occasion {
    /// Objects have changed, or the node's facts.
    Change,
    /// The kernel has been read: what there was to do, others had undone.
    Verification,
    /// What had failed was tried again.
    Retry,
    /// Real servers have drained.
    Drain,
}

impl fmt::Display for Occasion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Change => "a change",
            Self::Verification => "a verification",
            Self::Retry => "a failure",
            Self::Drain => "draining",
        })
    }
}

/// The operations that a driver was asked for at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Work {
    /// The driver.
    pub driver: Driver,
    /// How many operations.
    pub operations: usize,
    /// How many of them the kernel did not do.
    pub failures: usize,
    /// How long the kernel took for all.
    pub duration: Duration,
}

/// Numbers of objects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Kernel objects that Services want, counted as [`Key`]s.
    pub wanted: usize,
    /// Those that could not be programmed.
    pub failing: usize,
    /// Real servers that end the connections that they have.
    pub draining: usize,
}

/// What is to be told of a Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceStatus {
    /// What a load balancer that asks for it is told.
    pub health_check: Option<HealthCheck>,
    /// The traffic whose policy is Local and that has endpoints, but none on this node.
    pub without_local_endpoints: BTreeSet<(Traffic, Family)>,
    /// Why the Service does not get all that it asks for.
    pub problems: BTreeSet<Problem>,
}

/// A Service's answer to load balancers: type LoadBalancer with `externalTrafficPolicy: Local`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// `spec.healthCheckNodePort`
    pub port: NonZeroU16,
    /// How many different addresses the ready endpoints on this node have, over all ports, in each address family
    /// in which the Service has a ClusterIP.
    pub local_endpoints: BTreeMap<Family, usize>,
}

/// Which clients a traffic policy is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Traffic {
    /// Those of the ClusterIP: `internalTrafficPolicy`.
    Internal,
    /// Those of all other addresses: `externalTrafficPolicy`.
    External,
}

/// Something that a Service asks for and does not get.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Problem {
    /// An older Service has the address, protocol and port (Q25).
    Conflict {
        /// What both want.
        server: ServiceKey,
        /// Who has it.
        winner: ObjectName,
    },
    /// `spec.loadBalancerSourceRanges` has no valid range for a family, so nobody of it is admitted (Q16).
    NobodyAdmitted {
        /// The family of the load-balancer address.
        family: Family,
    },
    /// An annotation has a value that makes no sense, as the sentence says; it is ignored.
    InvalidAnnotation(Arc<str>),
    /// An external or load-balancer address is not programmed (C4).
    RefusedAddress {
        /// The address.
        address: IpAddr,
        /// Why.
        reason: Refusal,
    },
}

/// Why an external or load-balancer address is not programmed (C4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Refusal {
    /// An API server has the address: nodes would not reach it any more.
    ApiServer,
    /// It is outside of `--ipvs-external-cidrs`.
    NotAllowed,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Conflict { server, winner } => {
                write!(f, "{server} belongs to the older Service {winner}")
            }
            Self::NobodyAdmitted { family } => write!(
                f,
                "loadBalancerSourceRanges has no valid {family} range: no {family} client is admitted"
            ),
            Self::InvalidAnnotation(sentence) => f.write_str(sentence),
            Self::RefusedAddress { address, reason } => {
                write!(f, "{address} is not served: ")?;
                f.write_str(match reason {
                    Refusal::ApiServer => "it is the address of an API server",
                    Refusal::NotAllowed => "it is outside of --ipvs-external-cidrs",
                })
            }
        }
    }
}
