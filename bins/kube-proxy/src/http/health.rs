//! `/healthz` and `/livez`: should new connections come to this node, and does the proxier work.

use std::sync::Arc;

use hyper::StatusCode;

use super::{Handler, JSON, Response, not_found, respond};
use crate::{health::Health, metrics::Metrics};

/// Answers any method, as upstream does.
pub(crate) fn handler(health: Arc<Health>, metrics: Arc<Metrics>) -> Handler {
    Arc::new(move |request| match request.uri().path() {
        "/healthz" => answer(&health, true, |code| metrics.count_healthz(code)),
        "/livez" => answer(&health, false, |code| metrics.count_livez(code)),
        _ => not_found(),
    })
}

fn answer(health: &Health, with_node: bool, count: impl FnOnce(StatusCode)) -> Response {
    let report = health.report(with_node);
    let status = if report.is_good() {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    count(status);
    match serde_json::to_string(&report) {
        Ok(body) => respond(status, JSON, body),
        Err(error) => super::text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use hyper::body::Bytes;

    use super::*;

    #[test]
    fn e9_healthz_is_about_the_node_and_livez_is_not() {
        let health = Arc::new(Health::new(Duration::from_secs(30)));
        let metrics = Arc::new(Metrics::new().unwrap());
        let handler = handler(health.clone(), metrics.clone());
        let codes = || {
            ["/healthz", "/livez", "/healthz/x", "/"].map(|path| {
                let request = hyper::Request::post(path).body(Bytes::new()).unwrap();
                handler(&request).status().as_u16()
            })
        };
        assert_eq!(codes(), [503, 503, 404, 404]);
        health.note_synced();
        assert_eq!(codes(), [503, 200, 404, 404]);
        health.set_node_eligible(true);
        assert_eq!(codes(), [200, 200, 404, 404]);
        let text = String::from_utf8(metrics.render().unwrap()).unwrap();
        for line in [
            "kubeproxy_proxy_healthz_total{code=\"200\"} 1",
            "kubeproxy_proxy_healthz_total{code=\"503\"} 2",
            "kubeproxy_proxy_livez_total{code=\"503\"} 1",
        ] {
            assert!(text.lines().any(|other| other == line), "{line} in\n{text}");
        }
    }
}
