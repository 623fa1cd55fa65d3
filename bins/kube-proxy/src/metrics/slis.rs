//! `/metrics/slis`: how often the program was asked whether it is there, and said yes.

use prometheus::{CounterVec, Encoder, Gauge, GaugeVec, Opts, Registry, Result, TextEncoder};

/// Service level indicators, apart from the other metrics.
pub(crate) struct Slis {
    registry: Registry,
    result: GaugeVec,
    results: CounterVec,
}

impl Slis {
    /// For a process that was started then; seconds since the Unix epoch.
    ///
    /// # Errors
    ///
    /// Fails if two metrics have the same name, or one a bad name.
    pub(crate) fn new(process_start: f64) -> Result<Self> {
        let result = GaugeVec::new(
            Opts::new(
                "kubernetes_healthcheck",
                "[STABLE] The last result of a health check: 1 is good.",
            ),
            &["name", "type"],
        )?;
        let results = CounterVec::new(
            Opts::new(
                "kubernetes_healthchecks_total",
                "[STABLE] Results of health checks.",
            ),
            &["name", "type", "status"],
        )?;
        let start = Gauge::new(
            "process_start_time_seconds",
            "[ALPHA] When the process was started, in seconds since the Unix epoch.",
        )?;
        start.set(process_start);
        let registry = Registry::new();
        registry.register(Box::new(result.clone()))?;
        registry.register(Box::new(results.clone()))?;
        registry.register(Box::new(start))?;
        Ok(Self {
            registry,
            result,
            results,
        })
    }

    /// Somebody has asked, and the answer is yes.
    pub(crate) fn count_ping(&self) {
        self.result.with_label_values(&["ping", "healthz"]).set(1.);
        self.results
            .with_label_values(&["ping", "healthz", "success"])
            .inc();
    }

    /// Forgets who has asked.
    pub(crate) fn reset(&self) {
        self.result.reset();
        self.results.reset();
    }

    /// The metrics in Prometheus' text format.
    ///
    /// # Errors
    ///
    /// Fails if a metric family has no metrics, which none has.
    pub(crate) fn render(&self) -> Result<Vec<u8>> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }
}
