//! Short ways to write the objects of a test.

use crate::topology::Pod;

/// A Service of the namespace `default`; `spec` in YAML's flow style, without the braces.
#[must_use]
pub fn service(name: &str, spec: &str) -> String {
    format!(
        "---\n\
         apiVersion: v1\n\
         kind: Service\n\
         metadata: {{name: {name}, namespace: default}}\n\
         spec: {{{spec}}}\n"
    )
}

/// An EndpointSlice of IPv4 addresses; `ports` in YAML's flow style, without the brackets.
#[must_use]
pub fn slice(name: &str, service: &str, ports: &str, endpoints: &[Endpoint<'_>]) -> String {
    slice_of("IPv4", name, service, ports, endpoints)
}

/// The same of IPv6 addresses.
#[must_use]
pub fn slice_v6(name: &str, service: &str, ports: &str, endpoints: &[Endpoint<'_>]) -> String {
    slice_of("IPv6", name, service, ports, endpoints)
}

fn slice_of(family: &str, name: &str, service: &str, ports: &str, endpoints: &[Endpoint<'_>]) -> String {
    let mut text = format!(
        "---\n\
         apiVersion: discovery.k8s.io/v1\n\
         kind: EndpointSlice\n\
         metadata: {{name: {name}, namespace: default, labels: {{kubernetes.io/service-name: {service}}}}}\n\
         addressType: {family}\n\
         ports: [{ports}]\n\
         endpoints:\n"
    );
    for Endpoint { pod, conditions } in endpoints {
        let address = match family {
            "IPv4" => pod.ipv4.to_string(),
            _ => pod.ipv6.to_string(),
        };
        let node = &pod.host;
        text +=
            &format!("- {{addresses: [\"{address}\"], nodeName: {node}, conditions: {{{conditions}}}}}\n");
    }
    text
}

/// A pod behind a Service.
#[derive(Debug, Clone, Copy)]
pub struct Endpoint<'a> {
    pod: &'a Pod,
    conditions: &'a str,
}

impl<'a> Endpoint<'a> {
    /// The same in another condition, in YAML's flow style: `ready: false, serving: true`.
    #[must_use]
    pub fn but(self, conditions: &'a str) -> Self {
        Self { conditions, ..self }
    }
}

/// A pod that is ready.
impl<'a> From<&'a Pod> for Endpoint<'a> {
    fn from(pod: &'a Pod) -> Self {
        let conditions = "ready: true, serving: true, terminating: false";
        Self { pod, conditions }
    }
}
