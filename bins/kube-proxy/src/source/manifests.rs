//! Services from a directory of manifests, watched live.
//!
//! A file that is written, renamed, replaced or removed is noticed at once, also when the directory is a
//! mounted ConfigMap, whose files change by the swap of a symbolic link.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    ffi::{OsStr, OsString},
    fmt,
    fs::{self, Metadata},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use proxier::model::{Change, ObjectName};
use tracing::{error, info, warn};

use super::{
    documents::{self, Document},
    report,
    sink::Sink,
};
use crate::{objects::Object, watch::Watch};

/// Sends what the manifests in `directory` say, then [`Change::Synced`], then what changes, until nobody
/// listens any more.
///
/// # Errors
///
/// Fails if the directory cannot be read at the start. If that happens later, what was sent last stays in
/// force until the directory is back.
pub(crate) async fn run(directory: PathBuf, node_name: &str, sink: Sink) -> io::Result<()> {
    let send = |changes: Vec<Change>| changes.into_iter().all(|change| sink.send(change));
    let mut watch = Watch::new();
    let mut manifests = Manifests::new(directory, node_name);
    watch.set(&manifests.directory);
    let mut listening = send(manifests.scan()?) && send(vec![Change::Synced]);
    let mut readable = true;
    while listening {
        watch.changed().await;
        // Watched before it is read, so that no change falls in between.
        watch.set(&manifests.directory);
        let scanned = manifests.scan();
        if readable != scanned.is_ok() {
            readable = scanned.is_ok();
            let directory = manifests.directory.display();
            match &scanned {
                Ok(_) => info!("{directory} can be read again"),
                Err(error) => error!("{directory} cannot be read, so all stays as it was: {error}"),
            }
        }
        listening = send(scanned.unwrap_or_default()) && !sink.is_closed();
    }
    Ok(())
}

/// What the directory said when it was last read.
struct Manifests {
    directory: PathBuf,
    node_name: String,
    files: BTreeMap<OsString, File>,
    /// What the proxier has been told.
    sent: Objects,
    /// Which file's object is not used because which other file has it too.
    overruled: BTreeSet<(OsString, OsString, Key)>,
}

type Objects = BTreeMap<Key, Change>;

struct File {
    version: Option<Version>,
    objects: Objects,
}

/// What tells one content of a file from another without reading it.
#[derive(PartialEq, Eq)]
struct Version {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Node,
    Service(ObjectName),
    EndpointSlice(ObjectName),
}

impl Manifests {
    fn new(directory: PathBuf, node_name: &str) -> Self {
        Self {
            directory,
            node_name: node_name.to_owned(),
            files: BTreeMap::new(),
            sent: Objects::new(),
            overruled: BTreeSet::new(),
        }
    }

    /// Reads what is new in the directory, and says what that changes.
    fn scan(&mut self) -> io::Result<Vec<Change>> {
        let mut found = BTreeMap::new();
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            if is_manifest(&entry.file_name()) {
                match fs::metadata(entry.path()) {
                    Ok(metadata) if !metadata.is_file() => {}
                    Ok(metadata) => _ = found.insert(entry.file_name(), Some(Version::of(&metadata))),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    // Reading it will say why.
                    Err(_) => _ = found.insert(entry.file_name(), None),
                }
            }
        }
        self.files.retain(|name, _| found.contains_key(name));
        for (name, version) in found {
            if self.files.get(&name).is_none_or(|file| file.version != version) {
                let before = self
                    .files
                    .remove(&name)
                    .map(|file| file.objects)
                    .unwrap_or_default();
                let objects = self.read(&name, before);
                self.files.insert(name, File { version, objects });
            }
        }
        Ok(self.differences())
    }

    /// The objects of a file. Where it is broken, those that it had `before` and has no more stay.
    fn read(&self, name: &OsStr, before: Objects) -> Objects {
        let path = self.directory.join(name);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) => {
                error!("{}: {error}; its objects stay as they were", path.display());
                return before;
            }
        };
        let mut objects = Objects::new();
        let mut broken = false;
        for document in documents::read(&text) {
            match document {
                Ok(document) => {
                    let Some((key, change)) = self.object(document, &path) else {
                        continue;
                    };
                    match objects.entry(key) {
                        Entry::Vacant(place) => _ = place.insert(change),
                        Entry::Occupied(first) => {
                            let key = first.key();
                            warn!("{}: {key} is there twice; the first one is used", path.display());
                        }
                    }
                }
                Err(error) => {
                    broken = true;
                    error!("{}: {error}", path.display());
                }
            }
        }
        if broken {
            for (key, change) in before {
                objects.entry(key).or_insert(change);
            }
        }
        objects
    }

    fn object(&self, document: Document, path: &Path) -> Option<(Key, Change)> {
        match document {
            Document::Service(mut service) => {
                let (name, change) = convert(&mut service, path)?;
                Some((Key::Service(name), change))
            }
            Document::EndpointSlice(mut slice) => {
                let (name, change) = convert(&mut slice, path)?;
                Some((Key::EndpointSlice(name), change))
            }
            Document::Node(mut node) if node.metadata.name.as_ref() == Some(&self.node_name) => {
                Some((Key::Node, convert(&mut node, path)?.1))
            }
            Document::Node(_) => None,
        }
    }

    /// What has changed since the last time. Of two files that have an object of one name, the first in the
    /// order of names has its way.
    fn differences(&mut self) -> Vec<Change> {
        let mut wanted: BTreeMap<&Key, (&OsString, &Change)> = BTreeMap::new();
        let mut overruled = BTreeSet::new();
        for (name, file) in &self.files {
            for (key, change) in &file.objects {
                let (winner, _) = wanted.entry(key).or_insert((name, change));
                if *winner != name {
                    overruled.insert((name.clone(), (*winner).clone(), key.clone()));
                }
            }
        }
        for (loser, winner, key) in overruled.difference(&self.overruled) {
            warn!(
                "{}: {key} is not used, because {} has it too",
                loser.display(),
                winner.display()
            );
        }
        self.overruled = overruled;

        let mut changes = Vec::new();
        for (key, (_, change)) in &wanted {
            if self.sent.get(key) != Some(change) {
                changes.push((*change).clone());
                self.sent.insert((*key).clone(), (*change).clone());
            }
        }
        self.sent.retain(|key, _| {
            let stays = wanted.contains_key(key);
            if !stays {
                changes.extend(key.gone());
            }
            stays
        });
        changes
    }
}

/// The object's name and what it says, in the namespace that kubectl would choose if it names none.
fn convert<O: Object>(object: &mut O, path: &Path) -> Option<(ObjectName, Change)> {
    let namespace = &mut object.metadata_mut().namespace;
    namespace.get_or_insert_with(|| "default".to_owned());
    let converted = object.convert();
    report(
        &format!("{}: {}", path.display(), O::KIND),
        &converted.name,
        &converted.problems,
    );
    Some((converted.name, converted.change?))
}

fn is_manifest(file_name: &OsStr) -> bool {
    let extension = Path::new(file_name).extension().unwrap_or_default();
    !file_name.as_encoded_bytes().starts_with(b".")
        && ["yaml", "yml", "json"].iter().any(|known| extension == *known)
}

impl Version {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

impl Key {
    fn gone(&self) -> Option<Change> {
        match self {
            Self::Node => None,
            Self::Service(name) => Some(Change::ServiceGone(name.clone())),
            Self::EndpointSlice(name) => Some(Change::EndpointSliceGone(name.clone())),
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node => f.write_str("the Node"),
            Self::Service(name) => write!(f, "Service {name}"),
            Self::EndpointSlice(name) => write!(f, "EndpointSlice {name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        os::unix::fs::symlink,
        sync::atomic::{AtomicU32, Ordering},
    };

    use tokio::{sync::mpsc::UnboundedReceiver, time};

    use super::*;
    use crate::watch::{RESCAN, SETTLE};

    /// A directory that is gone with the test.
    struct Directory(PathBuf);

    impl Directory {
        fn new() -> Self {
            static NUMBER: AtomicU32 = AtomicU32::new(0);
            let name = format!(
                "manifests-{}-{}",
                std::process::id(),
                NUMBER.fetch_add(1, Ordering::Relaxed)
            );
            let path = std::env::temp_dir().join(name);
            fs::create_dir(&path).unwrap();
            Self(path)
        }

        fn write(&self, name: &str, text: &str) {
            fs::write(self.0.join(name), text).unwrap();
        }

        fn remove(&self, name: &str) {
            fs::remove_file(self.0.join(name)).unwrap();
        }

        fn rename(&self, from: &str, to: &str) {
            fs::rename(self.0.join(from), self.0.join(to)).unwrap();
        }

        fn manifests(&self) -> Manifests {
            Manifests::new(self.0.clone(), "node-1")
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            _ = fs::remove_dir_all(&self.0);
        }
    }

    fn service(name: &str, ip: &str) -> String {
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{clusterIP: {ip}, ports: [{{port: 80}}]}}\n"
        )
    }

    fn summary(change: &Change) -> String {
        match change {
            Change::Service(service) => format!("{} at {}", service.name, service.cluster_ips[0]),
            Change::ServiceGone(name) => format!("{name} gone"),
            Change::EndpointSlice(slice) => format!("slice {}", slice.name),
            Change::EndpointSliceGone(name) => format!("slice {name} gone"),
            Change::Node(node) => format!("node at {}", node.addresses[0]),
            Change::Synced => "synced".to_owned(),
        }
    }

    fn scan(manifests: &mut Manifests) -> Vec<String> {
        manifests.scan().unwrap().iter().map(summary).collect()
    }

    #[test]
    fn every_manifest_is_read_and_nothing_else() {
        let directory = Directory::new();
        directory.write(
            "a.yaml",
            &format!("{}{}", service("a", "10.0.0.1"), service("b", "10.0.0.2")),
        );
        directory.write("c.yml", &service("c", "10.0.0.3"));
        directory.write("d.json", r#"{"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-1"}, "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]}}"#);
        directory.write(
            "e.json",
            r#"{"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-2"}}"#,
        );
        directory.write(
            "f.yaml",
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: f, namespace: ns, labels: {kubernetes.io/service-name: f}}\naddressType: IPv4",
        );
        directory.write(".hidden.yaml", &service("hidden", "10.0.0.4"));
        directory.write("a.yaml~", &service("backup", "10.0.0.5"));
        directory.write("README", "not: [a manifest");
        fs::create_dir(directory.0.join("directory.yaml")).unwrap();
        symlink("nowhere", directory.0.join("dangling.yaml")).unwrap();
        let mut manifests = directory.manifests();
        assert_eq!(
            scan(&mut manifests),
            [
                "node at 192.0.2.1",
                "default/a at 10.0.0.1",
                "default/b at 10.0.0.2",
                "default/c at 10.0.0.3",
                "slice ns/f",
            ]
        );
    }

    #[test]
    fn only_differences_are_sent() {
        let directory = Directory::new();
        directory.write(
            "a.yaml",
            &format!("{}{}", service("a", "10.0.0.1"), service("b", "10.0.0.2")),
        );
        directory.write("c.yaml", &service("c", "10.0.0.3"));
        let mut manifests = directory.manifests();
        assert_eq!(scan(&mut manifests).len(), 3);
        assert_eq!(scan(&mut manifests), [""; 0], "nothing has changed");

        directory.write(
            "a.yaml",
            &format!("{}{}", service("a", "10.0.0.1"), service("b", "10.0.0.22")),
        );
        assert_eq!(scan(&mut manifests), ["default/b at 10.0.0.22"]);

        directory.rename("a.yaml", "z.yaml");
        assert_eq!(
            scan(&mut manifests),
            [""; 0],
            "the same objects under another name"
        );

        directory.write("z.yaml", &service("a", "10.0.0.1"));
        assert_eq!(scan(&mut manifests), ["default/b gone"]);

        directory.write("new", &service("c", "10.0.0.33"));
        directory.rename("new", "c.yaml");
        assert_eq!(scan(&mut manifests), ["default/c at 10.0.0.33"]);

        directory.remove("c.yaml");
        assert_eq!(scan(&mut manifests), ["default/c gone"]);
    }

    #[test]
    fn a_broken_file_keeps_what_it_had_and_costs_no_other() {
        let directory = Directory::new();
        directory.write(
            "a.yaml",
            &format!("{}{}", service("a", "10.0.0.1"), service("b", "10.0.0.2")),
        );
        directory.write("c.yaml", &service("c", "10.0.0.3"));
        let mut manifests = directory.manifests();
        scan(&mut manifests);

        directory.write("a.yaml", &format!("{}---\nspec: [\n", service("a", "10.0.0.11")));
        directory.write("c.yaml", &service("c", "10.0.0.33"));
        assert_eq!(
            scan(&mut manifests),
            ["default/a at 10.0.0.11", "default/c at 10.0.0.33"]
        );

        fs::write(directory.0.join("a.yaml"), b"\xff\xfe").unwrap();
        assert_eq!(scan(&mut manifests), [""; 0]);

        directory.write("a.yaml", &service("a", "10.0.0.1"));
        assert_eq!(scan(&mut manifests), ["default/a at 10.0.0.1", "default/b gone"]);
    }

    #[test]
    fn of_two_files_with_one_object_the_first_has_its_way() {
        let directory = Directory::new();
        directory.write("b.yaml", &service("a", "10.0.0.2"));
        let mut manifests = directory.manifests();
        assert_eq!(scan(&mut manifests), ["default/a at 10.0.0.2"]);

        directory.write(
            "a.yaml",
            &format!("{}{}", service("a", "10.0.0.1"), service("a", "10.0.0.3")),
        );
        assert_eq!(scan(&mut manifests), ["default/a at 10.0.0.1"]);
        assert_eq!(manifests.overruled.len(), 1);

        directory.remove("a.yaml");
        assert_eq!(scan(&mut manifests), ["default/a at 10.0.0.2"]);
        assert!(manifests.overruled.is_empty());
    }

    #[test]
    fn a_service_that_turns_headless_is_gone() {
        let directory = Directory::new();
        directory.write("a.yaml", &service("a", "10.0.0.1"));
        let mut manifests = directory.manifests();
        scan(&mut manifests);
        directory.write("a.yaml", &service("a", "None"));
        assert_eq!(scan(&mut manifests), ["default/a gone"]);
    }

    /// The next changes, which must come by notification: the timed look is further away than the deadline.
    async fn next(changes: &mut UnboundedReceiver<Change>, count: usize) -> Vec<String> {
        let mut summaries = Vec::new();
        for _ in 0..count {
            let change = time::timeout(RESCAN / 2, changes.recv()).await;
            summaries.push(summary(&change.expect("a notification").unwrap()));
        }
        summaries
    }

    #[tokio::test]
    async fn changes_are_noticed_at_once() {
        let directory = Directory::new();
        directory.write("a.yaml", &service("a", "10.0.0.1"));
        let (sink, mut changes) = Sink::plain();
        let path = directory.0.clone();
        let source = tokio::spawn(async move { run(path, "node-1", sink).await });
        assert_eq!(next(&mut changes, 2).await, ["default/a at 10.0.0.1", "synced"]);

        directory.write("b.yaml", &service("b", "10.0.0.2"));
        assert_eq!(next(&mut changes, 1).await, ["default/b at 10.0.0.2"]);
        directory.write("new", &service("a", "10.0.0.3"));
        directory.rename("new", "a.yaml");
        assert_eq!(next(&mut changes, 1).await, ["default/a at 10.0.0.3"]);
        directory.remove("b.yaml");
        assert_eq!(next(&mut changes, 1).await, ["default/b gone"]);

        drop(changes);
        directory.write("c.yaml", &service("c", "10.0.0.4"));
        time::timeout(RESCAN * 2, source)
            .await
            .expect("an end when nobody listens")
            .unwrap()
            .unwrap();
    }

    /// A ConfigMap's volume: links into a directory to which a link of fixed name points.
    #[tokio::test]
    async fn a_config_map_s_swap_is_noticed() {
        let directory = Directory::new();
        for (version, ip) in [("..1", "10.0.0.1"), ("..2", "10.0.0.2")] {
            fs::create_dir(directory.0.join(version)).unwrap();
            directory.write(&format!("{version}/a.yaml"), &service("a", ip));
        }
        symlink("..1", directory.0.join("..data")).unwrap();
        symlink("..data/a.yaml", directory.0.join("a.yaml")).unwrap();
        let (sink, mut changes) = Sink::plain();
        let path = directory.0.clone();
        tokio::spawn(async move { run(path, "node-1", sink).await });
        assert_eq!(next(&mut changes, 2).await, ["default/a at 10.0.0.1", "synced"]);

        symlink("..2", directory.0.join("..data_tmp")).unwrap();
        directory.rename("..data_tmp", "..data");
        assert_eq!(next(&mut changes, 1).await, ["default/a at 10.0.0.2"]);
    }

    #[tokio::test]
    async fn a_directory_that_is_not_there_is_an_error_at_the_start_only() {
        let directory = Directory::new();
        let missing = directory.0.join("missing");
        let (sink, mut changes) = Sink::plain();
        let error = run(missing.clone(), "node-1", sink.clone()).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);

        fs::create_dir(&missing).unwrap();
        directory.write("missing/a.yaml", &service("a", "10.0.0.1"));
        let path = missing.clone();
        tokio::spawn(async move { run(path, "node-1", sink).await });
        assert_eq!(next(&mut changes, 2).await, ["default/a at 10.0.0.1", "synced"]);
        directory.rename("missing", "elsewhere");
        assert!(
            time::timeout(SETTLE * 4, changes.recv()).await.is_err(),
            "all stays as it was"
        );

        fs::create_dir(&missing).unwrap();
        directory.write("missing/a.yaml", &service("a", "10.0.0.2"));
        let change = time::timeout(RESCAN * 2, changes.recv()).await.unwrap();
        assert_eq!(
            change.as_ref().map(summary).as_deref(),
            Some("default/a at 10.0.0.2")
        );
    }
}
