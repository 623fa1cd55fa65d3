//! What Services ask for by annotation.
//!
//! | annotation | value | meaning |
//! |---|---|---|
//! | `ipvs-proxier/scheduler` | a scheduler of the kernel, such as `lc` | in place of `--ipvs-scheduler` |
//! | `kube-router.io/service.scheduler` | the same | the same, where the first is not given |
//! | `ipvs-proxier/scheduler-flags` | `sh-fallback`, `sh-port`, `mh-fallback`, `mh-port`, with commas between | the scheduler's flags |
//! | `ipvs-proxier/one-packet` | `true` or `false` | schedule every UDP datagram by itself (E15) |
//! | `ipvs-proxier/drain-timeout` | a duration, such as `30s` | in place of `--ipvs-drain-timeout` |
//! | `ipvs-proxier/weights` | `10.244.1.7=5,10.244.2.0/24=0`, weights 0 to 65535 | weights of endpoints by address |
//! | `ipvs-proxier/excluded-nodes` | `*`, or names of nodes with commas between | nodes that do not program the Service (D11) |
//!
//! A value that makes no sense is reported, and the Service is programmed as if it were not there.

use std::{collections::BTreeMap, fmt};

use ipnet::IpNet;
use ipvs::{Scheduler, ServiceFlags};
use proxier::model::{Nodes, Overrides};
use serde::{
    Deserializer,
    de::{IgnoredAny, MapAccess, Visitor},
};

use crate::{
    address::{parse_cidr, parse_ip},
    duration,
};

const SCHEDULER: &str = "ipvs-proxier/scheduler";
const KUBE_ROUTER_SCHEDULER: &str = "kube-router.io/service.scheduler";
const SCHEDULER_FLAGS: &str = "ipvs-proxier/scheduler-flags";
const ONE_PACKET: &str = "ipvs-proxier/one-packet";
const DRAIN_TIMEOUT: &str = "ipvs-proxier/drain-timeout";
const WEIGHTS: &str = "ipvs-proxier/weights";
const EXCLUDED_NODES: &str = "ipvs-proxier/excluded-nodes";

/// Of EndpointSlices: when what made the endpoints change came about, in the form of RFC 3339.
pub(crate) const LAST_CHANGE_TRIGGER: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// Of the bookmark with which the initial events of a watch end.
pub(crate) const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";

const KNOWN: [&str; 9] = [
    SCHEDULER,
    KUBE_ROUTER_SCHEDULER,
    SCHEDULER_FLAGS,
    ONE_PACKET,
    DRAIN_TIMEOUT,
    WEIGHTS,
    EXCLUDED_NODES,
    LAST_CHANGE_TRIGGER,
    INITIAL_EVENTS_END,
];

/// The kernel's schedulers. A name that it does not know would cost the Service its virtual servers.
const SCHEDULERS: [&str; 14] = [
    "rr", "wrr", "lc", "wlc", "lblc", "lblcr", "dh", "sh", "sed", "nq", "fo", "ovf", "mh", "twos",
];

/// The kernel's largest weight (`IP_VS_MAX_WEIGHT` is larger; Maglev hashing counts in 16 bits).
const MAX_WEIGHT: u32 = 65535;

/// Decodes an object's annotations without those that nobody here reads, most of which are long.
pub(crate) fn known<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<String, String>, D::Error> {
    struct KnownOnly;

    impl<'de> Visitor<'de> for KnownOnly {
        type Value = BTreeMap<String, String>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("annotations")
        }

        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(BTreeMap::new())
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut known = BTreeMap::new();
            while let Some(key) = map.next_key::<String>()? {
                if KNOWN.contains(&key.as_str()) {
                    known.insert(key, map.next_value()?);
                } else {
                    map.next_value::<IgnoredAny>()?;
                }
            }
            Ok(known)
        }
    }

    deserializer.deserialize_any(KnownOnly)
}

/// What a Service's annotations ask for; nothing if they ask for nothing.
pub(crate) fn overrides(annotations: &BTreeMap<String, String>) -> Option<Box<Overrides>> {
    let mut overrides = Overrides::default();
    let mut set = |name: &str, expected, parse: fn(&str, &mut Overrides) -> Option<()>| {
        let value = annotations.get(name)?.trim();
        if parse(value, &mut overrides).is_none() {
            let sentence =
                format!("metadata.annotations[{name}]: {value:?} is not {expected}; it is ignored");
            overrides.invalid.push(sentence.into());
        }
        Some(())
    };
    const A_SCHEDULER: &str = "a scheduler of the kernel, such as rr, lc or mh";
    let chosen = set(SCHEDULER, A_SCHEDULER, parse_scheduler);
    if chosen.is_none() {
        set(KUBE_ROUTER_SCHEDULER, A_SCHEDULER, parse_scheduler);
    }
    set(
        SCHEDULER_FLAGS,
        "a list of sh-fallback, sh-port, mh-fallback and mh-port",
        parse_flags,
    );
    set(ONE_PACKET, "true or false", |text, overrides| {
        overrides.one_packet = text.parse().ok()?;
        Some(())
    });
    set(DRAIN_TIMEOUT, "a duration such as 30s", |text, overrides| {
        overrides.drain_timeout = Some(duration::parse(text).ok()?);
        Some(())
    });
    set(
        WEIGHTS,
        "a list of ADDRESS=WEIGHT or CIDR=WEIGHT with weights 0 to 65535",
        |text, overrides| {
            overrides.weights = items(text).map(parse_weight).collect::<Option<_>>()?;
            Some(())
        },
    );
    set(
        EXCLUDED_NODES,
        "* or a list of nodes' names",
        |text, overrides| {
            overrides.excluded_nodes = match text {
                "*" => Nodes::All,
                names => Nodes::Named(items(names).map(Into::into).collect()),
            };
            Some(())
        },
    );
    (overrides != Overrides::default()).then(|| Box::new(overrides))
}

fn items(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|item| !item.is_empty())
}

fn parse_scheduler(text: &str, overrides: &mut Overrides) -> Option<()> {
    let known = SCHEDULERS.contains(&text).then_some(text)?;
    overrides.scheduler = Some(known.parse::<Scheduler>().ok()?);
    Some(())
}

fn parse_flags(text: &str, overrides: &mut Overrides) -> Option<()> {
    let flag = |name| {
        Some(match name {
            "sh-fallback" => ServiceFlags::SH_FALLBACK,
            "sh-port" => ServiceFlags::SH_PORT,
            "mh-fallback" => ServiceFlags::MH_FALLBACK,
            "mh-port" => ServiceFlags::MH_PORT,
            _ => return None,
        })
    };
    let flags = items(text).try_fold(ServiceFlags::default(), |flags, name| Some(flags | flag(name)?))?;
    overrides.scheduler_flags = Some(flags);
    Some(())
}

fn parse_weight(text: &str) -> Option<(IpNet, u32)> {
    let (prefix, weight) = text.split_once('=')?;
    let prefix = prefix.trim();
    let prefix = parse_cidr(prefix).or_else(|| parse_ip(prefix).map(IpNet::from))?;
    let weight = weight
        .trim()
        .parse()
        .ok()
        .filter(|weight| *weight <= MAX_WEIGHT)?;
    Some((prefix, weight))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// What the annotations come to.
    fn read(annotations: &[(&str, &str)]) -> Overrides {
        let annotations = annotations
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        overrides(&annotations)
            .map(|overrides| *overrides)
            .unwrap_or_default()
    }

    #[test]
    fn each_annotation_reaches_the_override_behind_it() {
        let overrides = read(&[
            (SCHEDULER, "sh"),
            (KUBE_ROUTER_SCHEDULER, "lc"),
            (SCHEDULER_FLAGS, "sh-port, sh-fallback"),
            (ONE_PACKET, "true"),
            (DRAIN_TIMEOUT, "1m30s"),
            (WEIGHTS, "10.244.1.7=5, 10.244.2.0/24=0,fd00::7=2"),
            (EXCLUDED_NODES, "node-1,node-2"),
        ]);
        let expected = Overrides {
            scheduler: Some(Scheduler::SOURCE_HASH),
            scheduler_flags: Some(ServiceFlags::SH_PORT | ServiceFlags::SH_FALLBACK),
            one_packet: true,
            drain_timeout: Some(Duration::from_secs(90)),
            weights: vec![
                ("10.244.1.7/32".parse().unwrap(), 5),
                ("10.244.2.0/24".parse().unwrap(), 0),
                ("fd00::7/128".parse().unwrap(), 2),
            ],
            excluded_nodes: Nodes::Named(vec!["node-1".into(), "node-2".into()]),
            invalid: Vec::new(),
        };
        assert_eq!(overrides, expected);
        assert_eq!(read(&[(EXCLUDED_NODES, "*")]).excluded_nodes, Nodes::All);
    }

    #[test]
    fn kube_router_s_scheduler_is_understood() {
        let overrides = read(&[(KUBE_ROUTER_SCHEDULER, "lc")]);
        let expected = Overrides {
            scheduler: Some(Scheduler::LEAST_CONNECTION),
            ..Overrides::default()
        };
        assert_eq!(overrides, expected);
    }

    #[test]
    fn what_cannot_be_used_is_reported_and_ignored() {
        for (name, value) in [
            (SCHEDULER, "fastest"),
            (KUBE_ROUTER_SCHEDULER, ""),
            (SCHEDULER_FLAGS, "sh-port,mh"),
            (ONE_PACKET, "yes"),
            (DRAIN_TIMEOUT, "30"),
            (WEIGHTS, "10.244.1.7=65536"),
            (WEIGHTS, "10.244.1.7"),
            (WEIGHTS, "web-1=3"),
        ] {
            let mut overrides = read(&[(name, value)]);
            let invalid = std::mem::take(&mut overrides.invalid);
            assert_eq!(overrides, Overrides::default(), "{name}={value}");
            let [sentence] = &invalid[..] else {
                panic!("{name}={value}: {invalid:?}")
            };
            let beginning = format!("metadata.annotations[{name}]: {value:?} is not ");
            assert!(sentence.starts_with(&beginning), "{sentence}");
        }
    }

    #[test]
    fn other_annotations_are_not_kept() {
        let text = r#"{"example.com/long": "x", "ipvs-proxier/scheduler": "lc", "example.com/odd": 1}"#;
        let kept = |text| known(&mut serde_json::Deserializer::from_str(text)).unwrap();
        assert_eq!(kept(text).into_keys().collect::<Vec<_>>(), [SCHEDULER]);
        assert!(kept("null").is_empty());
    }
}
