//! The objects in a file of manifests: YAML or JSON, one or more documents, lists among them.

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;
use serde_saphyr::Spanned;

use crate::{
    objects::{EndpointSlice, Node, Service},
    yaml,
};

/// An object that is of use here.
#[derive(Debug)]
pub(super) enum Document {
    Service(Service),
    EndpointSlice(EndpointSlice),
    Node(Node),
}

/// A document that cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("document {document}, line {line}: {message}")]
pub(super) struct Error {
    /// Counted from 1, like kubectl's users count.
    document: usize,
    /// Line of the file, counted from 1.
    line: u64,
    message: String,
}

/// What says of which kind a document is.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Header {
    api_version: Option<String>,
    kind: Option<String>,
}

#[derive(Deserialize)]
struct List {
    items: Option<Vec<Spanned<Value>>>,
}

enum Kind {
    Service,
    EndpointSlice,
    Node,
    List,
    Other,
}

impl Header {
    fn kind(&self) -> Result<Kind, &'static str> {
        match (self.api_version.as_deref(), self.kind.as_deref()) {
            (Some("v1"), Some("Service")) => Ok(Kind::Service),
            (Some("discovery.k8s.io/v1"), Some("EndpointSlice")) => Ok(Kind::EndpointSlice),
            (Some("v1"), Some("Node")) => Ok(Kind::Node),
            (Some("v1"), Some("List")) => Ok(Kind::List),
            (Some(_), Some(_)) => Ok(Kind::Other),
            _ => Err("apiVersion or kind is missing"),
        }
    }
}

/// Reads every document of a file, each for itself: one that is broken costs no other. Kinds that are of no
/// use here are left out.
pub(super) fn read(text: &str) -> Vec<Result<Document, Error>> {
    let mut results = Vec::new();
    for (index, (line, text)) in yaml::documents(text).enumerate() {
        let fail = |(line_in_document, message): (u64, String)| Error {
            document: index + 1,
            line: line + line_in_document.saturating_sub(1),
            message,
        };
        match read_one(text) {
            Ok(documents) => results.extend(documents.into_iter().map(|document| document.map_err(fail))),
            Err(error) => results.push(Err(fail(error))),
        }
    }
    results
}

/// What went wrong, and at which line of the document.
type Failure = (u64, String);

fn read_one(text: &str) -> Result<Vec<Result<Document, Failure>>, Failure> {
    let kind = yaml::<Header>(text)?
        .kind()
        .map_err(|message| (1, message.to_owned()))?;
    let document = match kind {
        Kind::Service => Document::Service(yaml(text)?),
        Kind::EndpointSlice => Document::EndpointSlice(yaml(text)?),
        Kind::Node => Document::Node(yaml(text)?),
        Kind::List => {
            let items = yaml::<List>(text)?.items.unwrap_or_default();
            return Ok(items
                .into_iter()
                .filter_map(|item| item_of_list(item).transpose())
                .collect());
        }
        Kind::Other => return Ok(Vec::new()),
    };
    Ok(vec![Ok(document)])
}

fn item_of_list(item: Spanned<Value>) -> Result<Option<Document>, Failure> {
    let line = item.referenced.line();
    let value = item.value;
    let fail = |error: serde_json::Error| (line, error.to_string());
    let kind = Header::deserialize(&value)
        .map_err(fail)?
        .kind()
        .map_err(|message| (line, message.to_owned()))?;
    Ok(match kind {
        Kind::Service => Some(Document::Service(serde_json::from_value(value).map_err(fail)?)),
        Kind::EndpointSlice => Some(Document::EndpointSlice(
            serde_json::from_value(value).map_err(fail)?,
        )),
        Kind::Node => Some(Document::Node(serde_json::from_value(value).map_err(fail)?)),
        Kind::List => return Err((line, "a list in a list is not supported".to_owned())),
        Kind::Other => None,
    })
}

fn yaml<T: DeserializeOwned>(text: &str) -> Result<T, Failure> {
    yaml::read(text).map_err(|error| (error.line, error.message))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::Metadata;

    /// The kinds that were read, or the errors.
    fn summary(text: &str) -> Vec<String> {
        let name = |metadata: &Metadata| metadata.name.clone().unwrap_or_default();
        read(text)
            .into_iter()
            .map(|result| match result {
                Ok(Document::Service(object)) => format!("Service {}", name(&object.metadata)),
                Ok(Document::EndpointSlice(object)) => format!("EndpointSlice {}", name(&object.metadata)),
                Ok(Document::Node(object)) => format!("Node {}", name(&object.metadata)),
                Err(error) => error.to_string(),
            })
            .collect()
    }

    #[test]
    fn every_document_of_every_kind_is_found() {
        let text = "\
# A comment before the first document.
apiVersion: v1
kind: Service
metadata: {name: a}
--- # and one beside a separator
apiVersion: apps/v1
kind: Deployment
---
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: b}
addressType: IPv4
endpoints: null
ports:
---
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Node, metadata: {name: c}}
- {apiVersion: v1, kind: ConfigMap, metadata: {name: d}}
- {apiVersion: v1, kind: Service, metadata: {name: e}}
---
apiVersion: serving.knative.dev/v1
kind: Service
";
        assert_eq!(
            summary(text),
            ["Service a", "EndpointSlice b", "Node c", "Service e"]
        );
        assert_eq!(
            summary(&text.replace('\n', "\r\n")),
            ["Service a", "EndpointSlice b", "Node c", "Service e"]
        );
    }

    #[test]
    fn json_is_read_too() {
        let text =
            "{\n\t\"apiVersion\": \"v1\",\n\t\"kind\": \"Service\",\n\t\"metadata\": {\"name\": \"a\"}\n}\n";
        assert_eq!(summary(text), ["Service a"]);
    }

    #[test]
    fn nothing_makes_no_document() {
        for text in [
            "",
            "\n",
            "\u{feff}",
            "---",
            "---\n# nothing\n---\n",
            "%YAML 1.2\n",
        ] {
            assert_eq!(summary(text), [""; 0], "{text:?}");
        }
    }

    #[test]
    fn an_error_names_document_and_line_and_costs_that_document_only() {
        let service = "apiVersion: v1\nkind: Service\nmetadata:\n  name: a\n";
        for (broken, error) in [
            ("a: [", "document 2, line 6: unclosed bracket '['"),
            ("hello", "document 2, line 6: expected mapping start"),
            (
                "metadata: {name: b}",
                "document 2, line 5: apiVersion or kind is missing",
            ),
            (
                "kind: Service",
                "document 2, line 5: apiVersion or kind is missing",
            ),
            (
                "apiVersion: v1\nkind: Service\nspec:\n  ports:\n  - port: http",
                "document 2, line 10: this field cannot have such a value: `- port: http`",
            ),
            (
                "apiVersion: v1\nkind: Service\nmetadata:\n  name: b\n   labels: {}",
                "document 2, line 10: ",
            ),
            (
                "apiVersion: v1\nkind: List\nitems:\n- kind: x\n- apiVersion: v1\n  kind: Service\n  spec: 1",
                "document 2, line 9: apiVersion or kind is missing",
            ),
            (
                "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Service\n  spec: 1",
                "document 2, line 9: invalid type: integer `1`, expected struct ServiceSpec",
            ),
        ] {
            let summary = summary(&format!("{service}---\n{broken}\n---\n{service}"));
            let [first, error_found, .., last] = summary.as_slice() else {
                panic!("{summary:?}")
            };
            assert_eq!([first, last], ["Service a"; 2], "{broken}");
            assert!(error_found.starts_with(error), "{broken}: {error_found}");
            assert!(
                !error_found.contains('\n') && !error_found.contains(" at line "),
                "{error_found}"
            );
        }
    }
}
