//! Scenarios: objects, and what is done to them, each in a file of its own.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{DynamicObject, TypeMeta};
use serde::{Deserialize, Serialize};

use crate::error::{Context, Error, Result};

/// The end of the name of a file of recorded answers.
pub(super) const RECORDED: &str = ".upstream.yaml";

/// A scenario, as its file has it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// Its topic and its name, `kinds/external-ip`; the file's path for one outside the tree.
    #[serde(skip)]
    pub name: String,
    /// The file.
    #[serde(skip)]
    pub file: PathBuf,
    /// Why it exists, in a sentence or two.
    pub why: String,
    /// The requirements and defects that it is about.
    #[serde(default)]
    pub ids: Vec<String>,
    /// Flags that every proxier gets besides the usual ones.
    #[serde(default)]
    pub flags: Vec<String>,
    /// Upstream's kube-proxy keeps something of it, which must not show in the next scenario.
    #[serde(default)]
    pub alone: bool,
    /// What happens, in order.
    pub steps: Vec<Step>,
}

/// One change of a cluster: its commands first, then what is deleted, then what is applied.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// What a reader of the report is told.
    #[serde(skip_serializing)]
    pub name: String,
    /// Objects to create or change, so that they are as given here; a `status` is set as a controller would.
    #[serde(default)]
    pub apply: Vec<DynamicObject>,
    /// Objects to delete, `KIND/NAME` or `KIND/NAMESPACE/NAME`.
    #[serde(default)]
    pub delete: Vec<Reference>,
    /// Shell commands to run in the node's namespace.
    #[serde(default)]
    pub node: Vec<String>,
    /// Where ours is, and has to be, like neither of upstream's modes.
    #[serde(default, skip_serializing)]
    pub better: Vec<Better>,
}

/// An outcome that ours alone has.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Better {
    /// The probe, such as `TCP 203.0.113.1:80 from visitor`, with one client or several (`from visitor, node`);
    /// or `servers` or `addresses`.
    pub probe: String,
    /// The answer, exactly; of `servers` and `addresses` the lines that ours has more (`+`) or less (`-`).
    pub ours: String,
    /// Why users want it so.
    pub why: String,
}

/// The name of an object: `service/web` or `service/other/web`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Reference {
    kind: String,
    namespace: String,
    name: String,
}

/// The address families that a scenario's objects have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Families {
    Ipv4,
    Both,
}

/// The kinds that scenarios name, in lower case, with their API's version.
const KINDS: [(&str, &str, &str); 4] = [
    ("service", "v1", "Service"),
    ("endpointslice", "discovery.k8s.io/v1", "EndpointSlice"),
    ("node", "v1", "Node"),
    ("namespace", "v1", "Namespace"),
];

impl TryFrom<String> for Reference {
    type Error = String;

    fn try_from(text: String) -> std::result::Result<Self, String> {
        let words: Vec<_> = text.split('/').collect();
        let (kind, namespace, name) = match words.as_slice() {
            [kind, name] => (*kind, "default", *name),
            [kind, namespace, name] => (*kind, *namespace, *name),
            _ => return Err(format!("{text} is neither KIND/NAME nor KIND/NAMESPACE/NAME")),
        };
        if !KINDS.iter().any(|(known, ..)| *known == kind) {
            return Err(format!("{text}: no scenario deletes a {kind}"));
        }
        Ok(Self {
            kind: kind.to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        })
    }
}

impl From<Reference> for String {
    fn from(reference: Reference) -> Self {
        format!("{}/{}/{}", reference.kind, reference.namespace, reference.name)
    }
}

impl Reference {
    fn of(object: &DynamicObject) -> Option<Self> {
        let kind = object.types.as_ref()?.kind.to_lowercase();
        Some(Self {
            kind,
            namespace: object
                .metadata
                .namespace
                .clone()
                .unwrap_or_else(|| "default".into()),
            name: object.metadata.name.clone()?,
        })
    }

    /// An object of this name, of which only the name matters.
    pub(super) fn object(&self) -> DynamicObject {
        let kind = KINDS.iter().find(|(kind, ..)| *kind == self.kind);
        let types = kind.map(|(_, version, kind)| TypeMeta {
            api_version: (*version).to_owned(),
            kind: (*kind).to_owned(),
        });
        let mut object = DynamicObject {
            types,
            metadata: Default::default(),
            data: serde_json::Value::Null,
        };
        object.metadata.name = Some(self.name.clone());
        object.metadata.namespace = Some(self.namespace.clone());
        object
    }

    /// Whether a cluster without this object is as good as new.
    pub(super) fn passes(&self) -> bool {
        ["service", "endpointslice"].contains(&self.kind.as_str())
    }
}

/// The objects that there are after a step.
#[derive(Debug, Clone, Default)]
pub(super) struct State {
    objects: BTreeMap<Reference, DynamicObject>,
}

impl State {
    fn after(&self, step: &Step) -> Self {
        let mut objects = self.objects.clone();
        for deleted in &step.delete {
            objects.remove(deleted);
        }
        objects.extend(
            step.apply
                .iter()
                .filter_map(|object| Some((Reference::of(object)?, object.clone()))),
        );
        Self { objects }
    }

    pub(super) fn references(&self) -> impl Iterator<Item = &Reference> {
        self.objects.keys()
    }

    pub(super) fn services(&self) -> Vec<Service> {
        self.typed("service")
    }

    pub(super) fn slices(&self) -> Vec<EndpointSlice> {
        self.typed("endpointslice")
    }

    fn typed<T: serde::de::DeserializeOwned>(&self, kind: &str) -> Vec<T> {
        let of_kind = self
            .objects
            .iter()
            .filter(|(reference, _)| reference.kind == kind);
        // What does not parse was found when the scenario was read.
        of_kind.filter_map(|(_, object)| parse(object).ok()).collect()
    }
}

fn parse<T: serde::de::DeserializeOwned>(
    object: &DynamicObject,
) -> std::result::Result<T, serde_json::Error> {
    serde_json::from_value(serde_json::to_value(object)?)
}

impl Scenario {
    /// Whether IPVS picks pods by a hash.
    pub(super) fn hashes(&self) -> bool {
        let mut schedulers = self
            .flags
            .iter()
            .filter_map(|flag| flag.strip_prefix("--ipvs-scheduler="));
        schedulers.any(|scheduler| ["sh", "dh", "mh"].contains(&scheduler))
    }

    /// Reads one file.
    ///
    /// # Errors
    /// It cannot be read, or is no scenario.
    pub fn read(file: &Path) -> Result<Self> {
        let text = fs::read_to_string(file).path("read", file)?;
        let mut scenario: Self =
            serde_saphyr::from_str(&text).map_err(|error| wrong(file, &error.to_string()))?;
        let topic = file.parent().filter(|topic| topic.parent() == Some(&root()));
        let stem = file.file_stem().unwrap_or_default().to_string_lossy();
        scenario.name = match topic.and_then(Path::file_name) {
            Some(topic) => format!("{}/{stem}", topic.to_string_lossy()),
            None => file.with_extension("").display().to_string(),
        };
        scenario.file = file.to_owned();
        scenario.check().map_err(|error| wrong(file, &error))?;
        Ok(scenario)
    }

    /// Reads the scenarios of the tree, or those of these topics (`kinds`), names (`kinds/external-ip`) and files.
    ///
    /// # Errors
    /// There is none of such a name, or one is not as it should be.
    pub fn read_all(selected: &[String]) -> Result<Vec<Self>> {
        let mut files = Vec::new();
        if selected.is_empty() {
            for topic in list(&root())?.iter().filter(|topic| topic.is_dir()) {
                files.extend(in_topic(topic)?);
            }
        }
        for name in selected {
            let (topic, file) = (root().join(name), root().join(format!("{name}.yaml")));
            if topic.is_dir() {
                files.extend(in_topic(&topic)?);
            } else if file.is_file() {
                files.push(file);
            } else {
                files.push(fs::canonicalize(name).path("find the scenario", Path::new(name))?);
            }
        }
        files.iter().map(|file| Self::read(file)).collect()
    }

    /// The topic in the tree, if it has one.
    #[must_use]
    pub fn topic(&self) -> &str {
        self.name.split_once('/').map_or("", |(topic, _)| topic)
    }

    /// The file of upstream's recorded answers.
    #[must_use]
    pub fn recorded(&self) -> PathBuf {
        let stem = self.file.file_stem().unwrap_or_default().to_string_lossy();
        self.file.with_file_name(format!("{stem}{RECORDED}"))
    }

    /// A number for what upstream is given: the same as long as its answers are of this scenario.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        let given = serde_json::to_string(&(&self.flags, &self.steps)).unwrap_or_default();
        // FNV-1a: the same on every machine, and short.
        let hash = given.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        format!("{hash:016x}")
    }

    /// The objects after each step.
    pub(super) fn states(&self) -> Vec<State> {
        let mut state = State::default();
        let after = |step| {
            state = state.after(step);
            state.clone()
        };
        self.steps.iter().map(after).collect()
    }

    pub(super) fn families(&self) -> Families {
        // Every other field of the objects can say it, and the fields of no object but these have two colons.
        let given = serde_json::to_string(&(&self.flags, &self.steps)).unwrap_or_default();
        if given.contains("::") || given.contains("IPv6") {
            Families::Both
        } else {
            Families::Ipv4
        }
    }

    fn check(&self) -> std::result::Result<(), String> {
        if self.steps.is_empty() {
            return Err("it has no steps".into());
        }
        for object in self.steps.iter().flat_map(|step| &step.apply) {
            let reference = Reference::of(object).ok_or("an object has no kind or no name")?;
            let wrong = |error: String| format!("{}: {error}", String::from(reference.clone()));
            match reference.kind.as_str() {
                "service" => {
                    explicit(&parse(object).map_err(|error| wrong(error.to_string()))?).map_err(wrong)?
                }
                "endpointslice" => {
                    drop(parse::<EndpointSlice>(object).map_err(|error| wrong(error.to_string()))?)
                }
                "node" | "namespace" => {}
                _ => return Err(wrong("no scenario has such objects".into())),
            }
        }
        Ok(())
    }
}

/// Whatever the API server would choose differs from run to run.
fn explicit(service: &Service) -> std::result::Result<(), String> {
    let spec = service.spec.as_ref().ok_or("it has no spec")?;
    let kind = spec.type_.as_deref().unwrap_or("ClusterIP");
    if kind == "ExternalName" {
        return Ok(());
    }
    if spec.cluster_ip.is_none() && spec.cluster_ips.is_none() {
        return Err("it names no clusterIP".into());
    }
    let node_ports = match kind {
        "NodePort" => true,
        "LoadBalancer" => spec.allocate_load_balancer_node_ports != Some(false),
        _ => false,
    };
    if node_ports && spec.ports.iter().flatten().any(|port| port.node_port.is_none()) {
        return Err("a port names no nodePort".into());
    }
    Ok(())
}

fn wrong(file: &Path, what: &str) -> Error {
    Error::Unavailable(format!("{}: {what}", file.display()))
}

/// The directory of the tree.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios")
}

fn in_topic(topic: &Path) -> Result<Vec<PathBuf>> {
    let mut files = list(topic)?;
    files.retain(|file| {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        name.ends_with(".yaml") && !name.ends_with(RECORDED)
    });
    Ok(files)
}

fn list(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir).path("read", dir)?;
    let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scenario(text: &str) -> std::result::Result<Scenario, String> {
        let scenario: Scenario = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
        scenario.check().map(|()| scenario)
    }

    const STEP: &str = "
why: it is short
steps:
- name: a Service
  apply:
  - {apiVersion: v1, kind: Service, metadata: {name: web}, spec: {clusterIP: 10.96.0.10, ports: [{port: 80}]}}
- name: it goes
  delete: [service/web]
";

    #[test]
    fn every_scenario_of_the_tree_is_one() {
        let scenarios = Scenario::read_all(&[]).unwrap();
        assert!(!scenarios.is_empty());
        assert!(scenarios.iter().all(|scenario| !scenario.topic().is_empty()));
    }

    #[test]
    fn states_follow_the_steps() {
        let states = scenario(STEP).unwrap().states();
        let services: Vec<_> = states.iter().map(|state| state.services().len()).collect();
        assert_eq!(services, [1, 0]);
    }

    #[test]
    fn recordings_outlive_changes_of_words_only() {
        let fingerprint = |text: &str| scenario(text).unwrap().fingerprint();
        let words = STEP
            .replace("it goes", "nothing is left")
            .replace("short", "brief");
        assert_eq!(fingerprint(&words), fingerprint(STEP));
        assert_ne!(fingerprint(&STEP.replace("80", "81")), fingerprint(STEP));
        assert_ne!(
            fingerprint(&format!("{STEP}flags: [--masquerade-all]\n")),
            fingerprint(STEP)
        );
    }

    #[test]
    fn what_the_server_would_choose_is_refused() {
        let error = scenario(&STEP.replace("clusterIP: 10.96.0.10,", "")).unwrap_err();
        assert!(
            error.contains("service/default/web: it names no clusterIP"),
            "{error}"
        );
        let error = scenario(&STEP.replace("spec: {", "spec: {type: NodePort, ")).unwrap_err();
        assert!(error.contains("names no nodePort"), "{error}");
        assert!(scenario(&STEP.replace("service/web", "pod/web")).is_err());
        assert!(scenario(&STEP.replace("steps:", "step:")).is_err());
    }
}
