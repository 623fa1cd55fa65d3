//! The log on standard error, in klog's line format: `I1121 02:22:44.028733    1041 main.rs:64] text key=value`.

use std::fmt;

use tracing::{Event, Level, Subscriber, level_filters::LevelFilter};
use tracing_subscriber::{
    filter::Targets,
    fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter, format::Writer},
    layer::SubscriberExt,
    registry::LookupSpan,
    util::SubscriberInitExt,
};

/// Starts logging at a verbosity as of klog's `-v`.
pub(crate) fn start(verbosity: i32) {
    subscriber(verbosity, std::io::stderr).init();
}

fn subscriber<W>(verbosity: i32, writer: W) -> impl Subscriber + Send + Sync
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let ours = match verbosity {
        ..4 => LevelFilter::INFO,
        4..6 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    // What libraries have to say is for who looks for it: their errors come back to us, and we report them.
    let libraries = if verbosity < 6 {
        LevelFilter::OFF
    } else {
        LevelFilter::DEBUG
    };
    let levels = Targets::new()
        .with_default(libraries)
        .with_targets(["kube_proxy", "proxier", "ipvs", "netlink_batch"].map(|target| (target, ours)));
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(writer)
        .event_format(Klog);
    tracing_subscriber::registry().with(lines).with(levels)
}

struct Klog;

impl<S, N> FormatEvent<S, N> for Klog
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut line: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let metadata = event.metadata();
        let severity = match *metadata.level() {
            Level::ERROR => 'E',
            Level::WARN => 'W',
            _ => 'I',
        };
        let now = jiff::Timestamp::now().strftime("%m%d %H:%M:%S%.6f");
        let file = metadata
            .file()
            .unwrap_or_default()
            .rsplit('/')
            .next()
            .unwrap_or_default();
        write!(
            line,
            "{severity}{now} {:>7} {file}:{}] ",
            std::process::id(),
            metadata.line().unwrap_or_default()
        )?;
        context.format_fields(line.by_ref(), event)?;
        writeln!(line)
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Read, sync::Arc};

    use tracing::{debug, info, warn};

    use super::*;

    #[test]
    fn lines_have_klog_s_format() {
        let (mut log, writer) = std::io::pipe().unwrap();
        let line = line!() + 2;
        tracing::subscriber::with_default(subscriber(3, Arc::new(writer)), || {
            info!(addresses = 2, "a text");
            debug!("more than -v=3 asks for");
            warn!(target: "kube_client", "not ours");
        });
        let mut text = String::new();
        log.read_to_string(&mut text).unwrap();
        let (header, text) = text.split_once("] ").unwrap();
        assert_eq!(text, "a text addresses=2\n");
        let (time, place) = header.split_at("I1121 02:22:44.028733".len());
        assert_eq!(place, format!(" {:>7} logging.rs:{line}", std::process::id()));
        let shape = time.replace(|c: char| c.is_ascii_digit(), "0");
        assert_eq!(shape, "I0000 00:00:00.000000");
    }
}
