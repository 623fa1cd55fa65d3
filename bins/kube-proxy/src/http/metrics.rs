//! The metrics server: `/metrics`, and what the program tells of itself.

use std::{collections::BTreeMap, str, sync::Arc};

use hyper::{
    Method, StatusCode,
    header::{HeaderName, HeaderValue},
};
use jiff::Timestamp;
use serde::Serialize;

use super::{Handler, JSON, Request, Response, not_found, respond, text, zpages::Page};
use crate::metrics::{self, Metrics, slis::Slis};

const METRICS_TEXT: HeaderValue = HeaderValue::from_static(metrics::CONTENT_TYPE);
const PROCESS_START: HeaderName = HeaderName::from_static("process-start-time-unix");

/// What `/statusz` lists.
const PATHS: [&str; 5] = ["/configz", "/flagz", "/healthz", "/metrics", "/proxyMode"];

/// What the program can tell of itself.
pub(crate) struct About {
    pub(crate) metrics: Arc<Metrics>,
    /// The configuration in effect, for `/configz`.
    pub(crate) configuration: serde_json::Value,
    /// Every flag and its value, for `/flagz`, if that is served.
    pub(crate) flags: Option<BTreeMap<String, String>>,
    /// Whether `/statusz` is served.
    pub(crate) status: bool,
    /// Whether `/debug` is served.
    pub(crate) profiling: bool,
    /// The release of Kubernetes that we stand in for, without the `v`.
    pub(crate) version: &'static str,
    /// Changes the log's verbosity.
    pub(crate) set_verbosity: fn(u32),
}

/// Fields of `/statusz`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    start_time: String,
    uptime_seconds: i64,
    /// A field that clients expect. There is no Go.
    go_version: &'static str,
    binary_version: &'static str,
    emulation_version: &'static str,
    paths: [&'static str; 5],
}

/// Fields of `/flagz`.
#[derive(Serialize)]
struct Flags<'a> {
    flags: &'a BTreeMap<String, String>,
}

/// # Errors
///
/// Fails if the server's own metrics cannot be made.
pub(crate) fn handler(about: About) -> prometheus::Result<Handler> {
    let slis = Slis::new(about.metrics.process_start())?;
    Ok(Arc::new(move |request| about.answer(request, &slis)))
}

impl About {
    fn answer(&self, request: &Request, slis: &Slis) -> Response {
        match request.uri().path() {
            "/metrics" => self.metrics(self.metrics.render()),
            "/metrics/slis" if request.method() == Method::DELETE => {
                slis.reset();
                text(StatusCode::OK, "metrics reset\n")
            }
            "/metrics/slis" => self.metrics(slis.render()),
            "/proxyMode" => text(StatusCode::OK, "ipvs"),
            "/healthz" => {
                slis.count_ping();
                let verbose = request.uri().query().is_some_and(is_verbose);
                let body = if verbose {
                    "[+]ping ok\nhealthz check passed\n"
                } else {
                    "ok"
                };
                text(StatusCode::OK, body)
            }
            "/healthz/ping" => text(StatusCode::OK, "ok"),
            "/configz" => respond(StatusCode::OK, JSON, self.configuration.to_string()),
            "/statusz" if self.status => self.status().answer(request.headers()),
            "/flagz" => match &self.flags {
                Some(flags) => flag_page(flags).answer(request.headers()),
                None => not_found(),
            },
            path if self.profiling && path.starts_with("/debug/") => self.debug(request),
            _ => not_found(),
        }
    }

    fn metrics(&self, rendered: prometheus::Result<Vec<u8>>) -> Response {
        match rendered {
            Ok(body) => {
                let mut response = respond(StatusCode::OK, METRICS_TEXT, body);
                let start = HeaderValue::try_from(self.metrics.process_start().to_string());
                if let Ok(start) = start {
                    response.headers_mut().insert(PROCESS_START, start);
                }
                response
            }
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        }
    }

    fn status(&self) -> Page<Status> {
        let now = Timestamp::now();
        let start = Timestamp::from_second(self.metrics.process_start() as i64).unwrap_or(now);
        let status = Status {
            start_time: start.to_string(),
            uptime_seconds: now.as_second() - start.as_second(),
            go_version: "",
            binary_version: self.version,
            emulation_version: self.version,
            paths: PATHS,
        };
        Page {
            kind: "Statusz",
            text: format!(
                "Started: {}\nUp: {} s\nBinary version: {} (kube-proxy for IPVS {})\nEmulation version: {}\nPaths: {}\n",
                status.start_time,
                status.uptime_seconds,
                self.version,
                env!("CARGO_PKG_VERSION"),
                self.version,
                PATHS.join(" "),
            ),
            fields: status,
        }
    }

    fn debug(&self, request: &Request) -> Response {
        match (request.uri().path(), request.method()) {
            ("/debug/flags", _) => text(StatusCode::OK, "v\n"),
            ("/debug/flags/v", &Method::PUT) => {
                let value = str::from_utf8(request.body()).unwrap_or_default().trim();
                match value.parse() {
                    Ok(verbosity) => {
                        (self.set_verbosity)(verbosity);
                        text(
                            StatusCode::OK,
                            format!("successfully set klog.logging.verbosity to {value}"),
                        )
                    }
                    Err(error) => text(
                        StatusCode::BAD_REQUEST,
                        format!("{value:?} is no verbosity: {error}\n"),
                    ),
                }
            }
            ("/debug/flags/v", _) => text(StatusCode::NOT_ACCEPTABLE, "the verbosity is set with PUT\n"),
            _ => text(
                StatusCode::NOT_FOUND,
                "there are no Go profiles, because there is no Go; perf and strace work on this process\n",
            ),
        }
    }
}

fn is_verbose(query: &str) -> bool {
    query
        .split('&')
        .any(|pair| pair == "verbose" || pair.starts_with("verbose="))
}

fn flag_page(flags: &BTreeMap<String, String>) -> Page<Flags<'_>> {
    Page {
        kind: "Flagz",
        text: flags
            .iter()
            .map(|(name, value)| format!("{name}:{value}\n"))
            .collect(),
        fields: Flags { flags },
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use http_body_util::BodyExt;
    use hyper::body::Bytes;
    use serde_json::{Value, json};

    use super::*;

    static VERBOSITY: AtomicU32 = AtomicU32::new(0);

    fn about() -> About {
        About {
            metrics: Arc::new(Metrics::new().unwrap()),
            configuration: json!({ "kubeproxy.config.k8s.io": { "mode": "ipvs" } }),
            flags: Some([("v".to_owned(), "2".to_owned())].into()),
            status: true,
            profiling: false,
            version: "1.2.3",
            set_verbosity: |verbosity| VERBOSITY.store(verbosity, Ordering::Relaxed),
        }
    }

    /// Status, content type and body of an answer.
    async fn ask(
        handler: &Handler,
        method: &str,
        path: &str,
        accept: &str,
        body: &'static str,
    ) -> (u16, String, String) {
        let request = hyper::Request::builder()
            .method(method)
            .uri(path)
            .header("Accept", accept)
            .body(Bytes::from(body))
            .unwrap();
        let response = handler(&request);
        let header = |name: &str| response.headers()[name].to_str().unwrap().to_owned();
        let (status, content_type) = (response.status().as_u16(), header("content-type"));
        assert_eq!(header("x-content-type-options"), "nosniff");
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, content_type, String::from_utf8(body.to_vec()).unwrap())
    }

    async fn get(handler: &Handler, path: &str) -> (u16, String) {
        let (status, _, body) = ask(handler, "GET", path, "", "").await;
        (status, body)
    }

    #[tokio::test]
    async fn pages_answer_as_upstream_s() {
        let handler = handler(about()).unwrap();
        for (path, status, body) in [
            ("/proxyMode", 200, "ipvs"),
            ("/healthz", 200, "ok"),
            ("/healthz/ping", 200, "ok"),
            ("/healthz?verbose", 200, "[+]ping ok\nhealthz check passed\n"),
            (
                "/healthz?verbose=true&x",
                200,
                "[+]ping ok\nhealthz check passed\n",
            ),
            (
                "/configz",
                200,
                "{\"kubeproxy.config.k8s.io\":{\"mode\":\"ipvs\"}}",
            ),
            ("/", 404, "404 page not found\n"),
            ("/livez", 404, "404 page not found\n"),
            ("/debug/flags/v", 404, "404 page not found\n"),
        ] {
            assert_eq!(get(&handler, path).await, (status, body.to_owned()), "{path}");
        }
        let (_, content_type, text) =
            ask(&handler, "POST", "/metrics", "application/openmetrics-text", "").await;
        assert_eq!(content_type, "text/plain; version=0.0.4; charset=utf-8");
        assert!(
            text.contains("# TYPE process_start_time_seconds gauge\n"),
            "{text}"
        );
    }

    #[tokio::test]
    async fn slis_count_health_checks_until_they_are_reset() {
        let handler = handler(about()).unwrap();
        get(&handler, "/healthz").await;
        let (_, text) = get(&handler, "/metrics/slis").await;
        for line in [
            "kubernetes_healthcheck{name=\"ping\",type=\"healthz\"} 1\n",
            "kubernetes_healthchecks_total{name=\"ping\",status=\"success\",type=\"healthz\"} 1\n",
        ] {
            assert!(text.contains(line), "{text}");
        }
        let (_, _, body) = ask(&handler, "DELETE", "/metrics/slis", "", "").await;
        assert_eq!(body, "metrics reset\n");
        assert!(!get(&handler, "/metrics/slis").await.1.contains("ping"));
    }

    #[tokio::test]
    async fn status_and_flags_are_text_or_json() {
        let handler = handler(about()).unwrap();
        let (status, text) = get(&handler, "/flagz").await;
        assert!(
            status == 200 && text.starts_with("\nkube-proxy flagz\n") && text.ends_with("\nv:2\n"),
            "{text}"
        );
        let accept = "application/json;g=config.k8s.io;v=v1beta1;as=";
        let json = async |path, kind: &str| {
            let (status, content_type, body) =
                ask(&handler, "GET", path, &format!("{accept}{kind}"), "").await;
            assert_eq!((status, content_type.as_str()), (200, "application/json"));
            serde_json::from_str::<Value>(&body).unwrap()
        };
        let flags = json("/flagz", "Flagz").await;
        assert_eq!(
            flags,
            json!({
                "kind": "Flagz", "apiVersion": "config.k8s.io/v1beta1", "metadata": { "name": "kube-proxy" },
                "flags": { "v": "2" },
            })
        );
        let status = json("/statusz", "Statusz").await;
        assert_eq!(status["binaryVersion"], "1.2.3");
        assert_eq!(status["paths"], json!(PATHS));
        assert_eq!(
            ask(&handler, "GET", "/statusz", "application/json", "").await.0,
            406
        );
    }

    #[tokio::test]
    async fn the_verbosity_is_set_if_profiling_is_on() {
        let handler = handler(About {
            profiling: true,
            ..about()
        })
        .unwrap();
        let (status, _, body) = ask(&handler, "PUT", "/debug/flags/v", "", "4").await;
        assert_eq!(
            (status, body.as_str()),
            (200, "successfully set klog.logging.verbosity to 4")
        );
        assert_eq!(VERBOSITY.load(Ordering::Relaxed), 4);
        assert_eq!(ask(&handler, "PUT", "/debug/flags/v", "", "x").await.0, 400);
        assert_eq!(get(&handler, "/debug/flags/v").await.0, 406);
        assert_eq!(get(&handler, "/debug/pprof/heap").await.0, 404);
    }
}
