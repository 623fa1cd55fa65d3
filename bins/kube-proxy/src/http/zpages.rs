//! Pages that people read as text and programs as versioned JSON: `/statusz` and `/flagz`.

use hyper::{
    HeaderMap, StatusCode,
    header::{ACCEPT, HeaderName, HeaderValue},
};
use serde::Serialize;

use super::{JSON, Response, respond, text};

const GROUP: &str = "config.k8s.io";
const WARNING: HeaderName = HeaderName::from_static("warning");

/// A page.
pub(super) struct Page<T> {
    /// The API's name for it.
    pub(super) kind: &'static str,
    pub(super) text: String,
    pub(super) fields: T,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Object<T> {
    kind: &'static str,
    api_version: String,
    metadata: Metadata,
    #[serde(flatten)]
    fields: T,
}

#[derive(Serialize)]
struct Metadata {
    name: &'static str,
}

/// What a client accepts.
#[derive(Debug, PartialEq, Eq)]
enum Form {
    Text,
    Json { version: &'static str },
}

impl<T: Serialize> Page<T> {
    /// The page in the form that the client asks for, which is text if it does not say.
    pub(super) fn answer(self, headers: &HeaderMap) -> Response {
        let accept = headers
            .get(ACCEPT)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default();
        match form(accept, self.kind) {
            Some(Form::Text) => {
                let title = format!(
                    "\nkube-proxy {}\nWarning: This page is for people; its text may change at any time.\n\n",
                    self.kind.to_lowercase()
                );
                text(StatusCode::OK, title + &self.text)
            }
            Some(Form::Json { version }) => self.json(version),
            None => text(
                StatusCode::NOT_ACCEPTABLE,
                format!(
                    "there are text/plain and application/json;g={GROUP};v=v1beta1;as={}\n",
                    self.kind
                ),
            ),
        }
    }

    fn json(self, version: &str) -> Response {
        let object = Object {
            kind: self.kind,
            api_version: format!("{GROUP}/{version}"),
            metadata: Metadata { name: "kube-proxy" },
            fields: self.fields,
        };
        let mut response = match serde_json::to_string(&object) {
            Ok(body) => respond(StatusCode::OK, JSON, body + "\n"),
            Err(error) => return text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        };
        if version == "v1alpha1" {
            let deprecated =
                HeaderValue::from_static("299 - \"v1alpha1 of this page is deprecated; ask for v1beta1\"");
            response.headers_mut().insert(WARNING, deprecated);
        }
        response
    }
}

/// The first form that is both accepted and there to be had.
fn form(accept: &str, kind: &str) -> Option<Form> {
    if accept.trim().is_empty() {
        return Some(Form::Text);
    }
    accept.split(',').find_map(|range| {
        let mut parts = range.split(';').map(str::trim);
        let media_type = parts.next()?;
        let parameters: Vec<_> = parts.filter_map(|part| part.split_once('=')).collect();
        let parameter = |name| {
            parameters
                .iter()
                .find(|(key, _)| *key == name)
                .map(|(_, value)| *value)
        };
        match media_type {
            "*/*" | "text/*" | "text/plain" => Some(Form::Text),
            "application/json" | "application/*"
                if parameter("g") == Some(GROUP) && parameter("as") == Some(kind) =>
            {
                let version = ["v1beta1", "v1alpha1"]
                    .into_iter()
                    .find(|version| parameter("v") == Some(version))?;
                Some(Form::Json { version })
            }
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_is_what_the_client_accepts() {
        for (accept, expected) in [
            ("", Some(Form::Text)),
            ("*/*", Some(Form::Text)),
            ("text/plain; charset=utf-8", Some(Form::Text)),
            ("application/json", None),
            ("application/json, text/plain", Some(Form::Text)),
            (
                "application/json;g=config.k8s.io;v=v1beta1;as=Statusz, text/plain",
                Some(Form::Json { version: "v1beta1" }),
            ),
            (
                "application/json; as=Statusz; v=v1alpha1; g=config.k8s.io",
                Some(Form::Json { version: "v1alpha1" }),
            ),
            ("application/json;g=config.k8s.io;v=v1;as=Statusz", None),
            ("application/json;g=config.k8s.io;v=v1beta1;as=Flagz", None),
            ("application/vnd.kubernetes.protobuf", None),
            (";;=,,", None),
        ] {
            assert_eq!(form(accept, "Statusz"), expected, "{accept}");
        }
    }
}
