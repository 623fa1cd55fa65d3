//! What the tests do with an API server: apply and delete objects that are given as YAML.

use std::net::IpAddr;

use futures_util::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::events::v1::Event;
use kube::Resource;
use kube::api::{
    Api, ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams, TypeMeta,
};
use kube::config::{Config, KubeConfigOptions, Kubeconfig};
use kube::core::GroupVersionKind;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::runtime::{Builder, Runtime};

use crate::error::{Context, Error, Result};

/// The name of the Service that the server makes itself.
const OWN: &str = "kubernetes";

/// How many objects are made at once, where there are many.
const CONCURRENT: usize = 32;

/// A client of one API server. Its calls block.
pub struct Client {
    runtime: Runtime,
    client: kube::Client,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}

impl Client {
    /// A client of the server that a kubeconfig describes.
    ///
    /// # Errors
    /// The kubeconfig cannot be used.
    pub fn new(kubeconfig: &str) -> Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = runtime.context(|| "start a client".into())?;
        let client = runtime.block_on(async {
            let kubeconfig = Kubeconfig::from_yaml(kubeconfig).api("read a kubeconfig")?;
            let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
            kube::Client::try_from(config.api("read a kubeconfig")?).api("read a kubeconfig")
        })?;
        Ok(Self { runtime, client })
    }

    /// Creates or changes the objects of a YAML text, so that they are as it says. A `status` is merged into the
    /// object's own, as the controllers of a whole cluster would set it.
    ///
    /// # Errors
    /// The text does not parse, or the server refuses an object; those before it are applied.
    pub fn apply(&self, yaml: &str) -> Result<()> {
        self.apply_objects(&objects(yaml)?)
    }

    /// Creates or changes objects, as [`apply`](Self::apply) does.
    ///
    /// # Errors
    /// The server refuses an object; those before it are applied.
    pub fn apply_objects(&self, objects: &[DynamicObject]) -> Result<()> {
        let parameters = PatchParams::apply("lab").force();
        for mut object in objects.iter().cloned() {
            let (api, name) = self.named(&object)?;
            let status = object.data.as_object_mut().and_then(|data| data.remove("status"));
            let applied = self.runtime.block_on(async {
                api.patch(&name, &parameters, &Patch::Apply(&object)).await?;
                if let Some(status) = status {
                    let patch = Patch::Merge(json!({ "status": status }));
                    api.patch_status(&name, &PatchParams::default(), &patch).await?;
                }
                Ok::<_, kube::Error>(())
            });
            applied.api(format!("apply {name}"))?;
        }
        Ok(())
    }

    /// Makes many objects, which must not be there yet.
    ///
    /// # Errors
    /// The server refuses one.
    pub fn create_all(&self, objects: impl IntoIterator<Item = DynamicObject>) -> Result<()> {
        let create = |object: DynamicObject| async move {
            let (api, name) = self.named(&object)?;
            let created = api.create(&PostParams::default(), &object).await;
            created.map(drop).api(format!("create {name}"))
        };
        let all = stream::iter(objects).map(create).buffer_unordered(CONCURRENT);
        self.runtime.block_on(all.try_collect())
    }

    /// Replaces the address of a slice's first endpoint.
    ///
    /// # Errors
    /// There is no such slice.
    pub fn replace_endpoint(&self, slice: &str, address: IpAddr) -> Result<()> {
        let slices = Api::<EndpointSlice>::namespaced(self.client.clone(), "default");
        let replaced = self.runtime.block_on(async {
            let mut found = slices.get(slice).await?;
            if let Some(endpoint) = found.endpoints.iter_mut().flatten().next() {
                endpoint.addresses = vec![address.to_string()];
            }
            slices.replace(slice, &PostParams::default(), &found).await
        });
        replaced.map(drop).api(format!("replace {slice}"))
    }

    /// Deletes the objects of a YAML text, of which only the kinds and the names matter here.
    ///
    /// # Errors
    /// The text does not parse, or the server has no such object.
    pub fn delete(&self, yaml: &str) -> Result<()> {
        self.delete_objects(&objects(yaml)?)
    }

    /// Deletes objects, of which only the kinds and the names matter here.
    ///
    /// # Errors
    /// The server has no such object; those before it are deleted.
    pub fn delete_objects(&self, objects: &[DynamicObject]) -> Result<()> {
        objects.iter().try_for_each(|object| self.delete_one(object))
    }

    /// A token of a ServiceAccount, which is good for as long as a Secret exists, both in the namespace `default`.
    ///
    /// # Errors
    /// There is no such ServiceAccount or Secret.
    pub fn token(&self, account: &str, secret: &str) -> Result<String> {
        let action = || format!("ask for a token of {account}");
        let request = json!({"spec": {
            "audiences": [],
            "boundObjectRef": {"kind": "Secret", "apiVersion": "v1", "name": secret},
        }});
        let path = format!("/api/v1/namespaces/default/serviceaccounts/{account}/token");
        let request = http::Request::post(path).body(request.to_string().into_bytes());
        let answer = self
            .runtime
            .block_on(self.client.request::<Value>(request.api(action())?));
        let answer = answer.api(action())?;
        let token = answer.pointer("/status/token").and_then(Value::as_str);
        token.map(str::to_owned).ok_or("no token").api(action())
    }

    /// All events.
    ///
    /// # Errors
    /// The server refuses.
    pub fn events(&self) -> Result<Vec<Event>> {
        self.list("list every event")
    }

    /// All Services.
    ///
    /// # Errors
    /// The server refuses.
    pub fn services(&self) -> Result<Vec<Service>> {
        self.list("list every Service")
    }

    fn list<K>(&self, action: &str) -> Result<Vec<K>>
    where
        K: Resource<DynamicType = ()> + DeserializeOwned + Clone + std::fmt::Debug,
    {
        let all = Api::<K>::all(self.client.clone());
        let found = self.runtime.block_on(all.list(&ListParams::default()));
        Ok(found.api(action)?.items)
    }

    /// Deletes all Services but the server's own, all EndpointSlices and all Nodes.
    ///
    /// # Errors
    /// The server refuses.
    pub fn clear(&self) -> Result<()> {
        let own = |object: &DynamicObject| object.metadata.name.as_deref() == Some(OWN);
        for (version, kind) in [
            ("v1", "Service"),
            ("discovery.k8s.io/v1", "EndpointSlice"),
            ("v1", "Node"),
        ] {
            let types = TypeMeta {
                api_version: version.into(),
                kind: kind.into(),
            };
            let resource = ApiResource::from_gvk(&GroupVersionKind::try_from(&types).api("find a kind")?);
            let all = Api::<DynamicObject>::all_with(self.client.clone(), &resource);
            let found = self.runtime.block_on(all.list(&ListParams::default()));
            for mut object in found
                .api(format!("list every {kind}"))?
                .into_iter()
                .filter(|object| !own(object))
            {
                // The items of a list do not say what they are.
                object.types = Some(types.clone());
                self.delete_one(&object)?;
            }
        }
        Ok(())
    }

    fn delete_one(&self, object: &DynamicObject) -> Result<()> {
        let (api, name) = self.named(object)?;
        let deleted = self.runtime.block_on(api.delete(&name, &DeleteParams::default()));
        deleted.map(drop).api(format!("delete {name}"))
    }

    /// # Errors
    /// Some part of the server is not ready, or it has not made its own Service yet.
    pub(crate) fn ready(&self) -> Result<()> {
        let ready = http::Request::get("/readyz")
            .body(Vec::new())
            .api("ask for readiness")?;
        self.runtime
            .block_on(self.client.request_text(ready))
            .api("ask for readiness")?;
        for own in objects("{apiVersion: v1, kind: Service, metadata: {name: kubernetes}}")? {
            let (api, name) = self.named(&own)?;
            self.runtime
                .block_on(api.get(&name))
                .api("find the server's own Service")?;
        }
        Ok(())
    }

    /// The place of an object in the API, and its name there.
    fn named(&self, object: &DynamicObject) -> Result<(Api<DynamicObject>, String)> {
        let kind = object.types.as_ref().ok_or("no kind").api("read an object")?;
        let kind = GroupVersionKind::try_from(kind).api("read an object")?;
        let name = object
            .metadata
            .name
            .clone()
            .ok_or("no name")
            .api("read an object")?;
        let resource = ApiResource::from_gvk(&kind);
        let client = self.client.clone();
        let api = match (kind.kind.as_str(), &object.metadata.namespace) {
            ("Node" | "Namespace" | "ClusterRoleBinding", _) => Api::all_with(client, &resource),
            (_, Some(namespace)) => Api::namespaced_with(client, namespace, &resource),
            (_, None) => Api::namespaced_with(client, "default", &resource),
        };
        Ok((api, name))
    }
}

/// An object of any kind, from its JSON.
pub(crate) fn object(json: Value) -> Result<DynamicObject> {
    serde_json::from_value(json).api("read an object")
}

/// The objects of a YAML text with one document or more.
fn objects(yaml: &str) -> Result<Vec<DynamicObject>> {
    serde_saphyr::from_multiple(yaml).api("read objects")
}

/// Gives an error of the API or of its objects the action that failed.
trait Explain<T> {
    fn api(self, action: impl Into<String>) -> Result<T>;
}

impl<T, E: Into<Box<dyn std::error::Error + Send + Sync>>> Explain<T> for std::result::Result<T, E> {
    fn api(self, action: impl Into<String>) -> Result<T> {
        self.map_err(|source| Error::Api {
            action: action.into(),
            source: source.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_read_one_by_one() {
        let two = "kind: Service\napiVersion: v1\nmetadata: {name: a}\n---\nkind: Node\napiVersion: v1\nmetadata: {name: b}\n";
        let names: Vec<_> = objects(two)
            .unwrap()
            .into_iter()
            .map(|object| object.metadata.name)
            .collect();
        assert_eq!(names, [Some("a".into()), Some("b".into())]);
        assert!(objects("kind: [").is_err());
    }
}
