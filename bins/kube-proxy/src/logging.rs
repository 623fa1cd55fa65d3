//! The log, in klog's formats.
//!
//! Text: `I1121 02:22:44.028733    1041 run.rs:64] "text" key="value"`, or without quotation marks where a line has
//! no keys. JSON: one object a line, with `ts`, `caller`, `msg`, `v` and the keys. Both go to standard error.
//!
//! Errors, warnings and what tracing calls info are always logged; its debug from verbosity 2 on, its trace from 4 on.

use std::{
    fmt::{self, Write as _},
    io::{self, Write},
    path::Path,
    sync::atomic::{AtomicU32, Ordering},
};

use jiff::Timestamp;
use serde_json::Value;
use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    layer::{Context, Layer, SubscriberExt},
    util::SubscriberInitExt,
};

use crate::configuration::{Logging, VModule};

/// How much is logged, but for files that have a verbosity of their own.
static VERBOSITY: AtomicU32 = AtomicU32::new(0);

/// Starts logging.
pub(crate) fn start(settings: &Logging) {
    set_verbosity(settings.verbosity);
    tracing_subscriber::registry().with(Log::new(settings)).init();
}

/// Changes how much is logged.
pub(crate) fn set_verbosity(verbosity: u32) {
    VERBOSITY.store(verbosity, Ordering::Relaxed);
    tracing::callsite::rebuild_interest_cache();
}

struct Log {
    json: bool,
    /// What is no error goes to standard output.
    split: bool,
    vmodule: Vec<VModule>,
    write: fn(&[u8], Stream),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stream {
    Out,
    Error,
}

impl Log {
    fn new(settings: &Logging) -> Self {
        let json = settings.format == "json";
        let options = &settings.options;
        Self {
            json,
            split: if json { &options.json } else { &options.text }.split_stream,
            vmodule: settings.vmodule.clone(),
            write,
        }
    }

    fn line(&self, metadata: &Metadata<'_>, text: &Text) -> Result<String, fmt::Error> {
        let mut line = String::new();
        let (file, number) = (
            metadata.file().unwrap_or_default(),
            metadata.line().unwrap_or_default(),
        );
        let now = Timestamp::now();
        if self.json {
            let microseconds = now.as_microsecond();
            write!(
                line,
                "{{\"ts\":{}.{:03}",
                microseconds / 1000,
                microseconds % 1000
            )?;
            let caller = format!("{}:{number}", last_components(file, 2));
            write!(
                line,
                ",\"caller\":{},\"msg\":{}",
                Value::from(caller),
                Value::from(&*text.message)
            )?;
            if *metadata.level() != Level::ERROR {
                write!(line, ",\"v\":{}", verbosity_of(metadata))?;
            }
            for (key, value) in &text.fields {
                write!(line, ",{}:{value}", Value::from(*key))?;
            }
            line.push('}');
        } else {
            let severity = match *metadata.level() {
                Level::ERROR => 'E',
                Level::WARN => 'W',
                _ => 'I',
            };
            let time = now.strftime("%m%d %H:%M:%S%.6f");
            let file = last_components(file, 1);
            write!(
                line,
                "{severity}{time} {:>7} {file}:{number}] ",
                std::process::id()
            )?;
            if text.fields.is_empty() {
                line.push_str(&text.message);
            } else {
                write!(line, "{:?}", text.message)?;
            }
            for (key, value) in &text.fields {
                match value {
                    Value::String(value) => write!(line, " {key}={value:?}")?,
                    value => write!(line, " {key}={value}")?,
                }
            }
        }
        line.push('\n');
        Ok(line)
    }
}

impl<S: Subscriber> Layer<S> for Log {
    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        let file = metadata.file().unwrap_or_default();
        let stem = Path::new(file).file_stem().unwrap_or_default().to_string_lossy();
        let own = self.vmodule.iter().find(|item| fits(&item.file_pattern, &stem));
        let verbosity = own.map_or_else(|| VERBOSITY.load(Ordering::Relaxed), |item| item.verbosity);
        metadata.is_event() && verbosity_of(metadata) <= verbosity
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut text = Text::default();
        event.record(&mut text);
        let stream = match *event.metadata().level() {
            Level::ERROR | Level::WARN => Stream::Error,
            _ if self.split => Stream::Out,
            _ => Stream::Error,
        };
        if let Ok(line) = self.line(event.metadata(), &text) {
            (self.write)(line.as_bytes(), stream);
        }
    }
}

fn write(line: &[u8], stream: Stream) {
    // There is nowhere to complain.
    _ = match stream {
        Stream::Out => io::stdout().lock().write_all(line),
        Stream::Error => io::stderr().lock().write_all(line),
    };
}

/// From which verbosity on an event is logged.
fn verbosity_of(metadata: &Metadata<'_>) -> u32 {
    let ours = ["kube_proxy", "proxier", "ipvs", "netlink_batch"]
        .iter()
        .any(|name| metadata.target().split("::").next() == Some(name));
    // What libraries have to say is for who looks for it: their errors come back to us, and we report them.
    match (*metadata.level(), ours) {
        (Level::TRACE, true) => 4,
        (Level::DEBUG, true) => 2,
        (_, true) => 0,
        (Level::TRACE, false) => 8,
        (_, false) => 6,
    }
}

/// An event's message and fields.
#[derive(Default)]
struct Text {
    message: String,
    fields: Vec<(&'static str, Value)>,
}

impl Text {
    fn add(&mut self, field: &Field, value: Value) {
        match (field.name(), value) {
            ("message", Value::String(text)) => self.message = text,
            ("message", value) => self.message = value.to_string(),
            (name, value) => self.fields.push((name, value)),
        }
    }
}

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(field, format!("{value:?}").into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.add(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, value.into());
    }
}

fn last_components(path: &str, count: usize) -> &str {
    let start = path
        .rmatch_indices('/')
        .nth(count - 1)
        .map_or(0, |(slash, _)| slash + 1);
    path.get(start..).unwrap_or(path)
}

/// Whether a name fits a pattern, in which `*` stands for anything and `?` for one character.
fn fits(pattern: &str, name: &str) -> bool {
    let mut pattern = pattern.chars();
    match pattern.next() {
        None => name.is_empty(),
        Some('*') => {
            let rest = pattern.as_str();
            let mut ends = name.char_indices().map(|(at, _)| at).chain([name.len()]);
            ends.any(|at| name.get(at..).is_some_and(|end| fits(rest, end)))
        }
        Some(wanted) => {
            let mut name = name.chars();
            let found = name.next();
            found.is_some_and(|found| wanted == '?' || wanted == found)
                && fits(pattern.as_str(), name.as_str())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use tracing::{debug, error, info, trace, warn};

    use super::*;

    thread_local! {
        static LOGGED: RefCell<Vec<(String, Stream)>> = const { RefCell::new(Vec::new()) };
    }

    /// The lines that a log with these settings has.
    fn logged(settings: &Logging, events: impl FnOnce()) -> Vec<(String, Stream)> {
        let log = Log {
            write: |line, stream| {
                let line = String::from_utf8(line.to_vec()).unwrap();
                LOGGED.with_borrow_mut(|lines| lines.push((line, stream)));
            },
            ..Log::new(settings)
        };
        tracing::subscriber::with_default(tracing_subscriber::registry().with(log), events);
        LOGGED.take()
    }

    /// The verbosity of this file alone: the other is for the whole process.
    fn at(verbosity: u32) -> Logging {
        let file_pattern = "log*".to_owned();
        Logging {
            vmodule: vec![VModule {
                file_pattern,
                verbosity,
            }],
            ..Logging::default()
        }
    }

    #[test]
    fn lines_have_klog_s_format() {
        let place = line!() + 2;
        let lines = logged(&at(0), || {
            info!("a \"text\"");
            error!(err = %"no \"such\" thing\nat all", addresses = 2, "command failed");
            warn!("take care");
        });
        let texts: Vec<&str> = lines
            .iter()
            .map(|(line, _)| line.split_once("] ").unwrap().1)
            .collect();
        assert_eq!(
            texts,
            [
                "a \"text\"\n",
                "\"command failed\" err=\"no \\\"such\\\" thing\\nat all\" addresses=2\n",
                "take care\n",
            ]
        );
        let severities: String = lines.iter().filter_map(|(line, _)| line.chars().next()).collect();
        assert_eq!(severities, "IEW");
        let (header, _) = lines[0].0.split_once("] ").unwrap();
        let (time, caller) = header.split_at("I1121 02:22:44.028733".len());
        assert_eq!(caller, format!(" {:>7} logging.rs:{place}", std::process::id()));
        let shape = time.replace(|c: char| c.is_ascii_digit(), "0");
        assert_eq!(shape, "I0000 00:00:00.000000");
    }

    #[test]
    fn json_has_klog_s_keys() {
        let settings = Logging {
            format: "json".to_owned(),
            ..at(2)
        };
        let lines = logged(&settings, || {
            debug!(services = 2, changed = true, node = "a", "synced");
            error!(err = %"no", "command failed");
        });
        let objects: Vec<Value> = lines
            .iter()
            .map(|(line, _)| serde_json::from_str(line).unwrap())
            .collect();
        let first = &objects[0];
        assert!(first["ts"].as_f64().unwrap() > 1e12, "{first}");
        assert!(
            first["caller"].as_str().unwrap().starts_with("src/logging.rs:"),
            "{first}"
        );
        assert!(
            lines[0]
                .0
                .ends_with(",\"msg\":\"synced\",\"v\":2,\"services\":2,\"changed\":true,\"node\":\"a\"}\n")
        );
        assert!(
            lines[1]
                .0
                .ends_with(",\"msg\":\"command failed\",\"err\":\"no\"}\n")
        );
    }

    #[test]
    fn verbosity_decides() {
        let messages = |settings: &Logging| -> Vec<String> {
            let lines = logged(settings, || {
                info!("0");
                debug!("2");
                trace!("4");
                warn!(target: "kube_client::client", "6");
                trace!(target: "hyper", "8");
            });
            let text = |(line, _): &(String, _)| line.split_once("] ").unwrap().1.trim_end().to_owned();
            lines.iter().map(text).collect()
        };
        assert_eq!(messages(&at(0)), ["0"]);
        assert_eq!(messages(&at(1)), ["0"]);
        assert_eq!(messages(&at(2)), ["0", "2"]);
        assert_eq!(messages(&at(5)), ["0", "2", "4"]);
        assert_eq!(messages(&at(6)), ["0", "2", "4", "6"]);
        assert_eq!(messages(&at(8)), ["0", "2", "4", "6", "8"]);
    }

    #[test]
    fn split_streams_part_errors_from_the_rest() {
        let mut settings = at(0);
        settings.options.text.split_stream = true;
        let lines = logged(&settings, || {
            info!("");
            error!("");
        });
        let streams: Vec<Stream> = lines.into_iter().map(|(_, stream)| stream).collect();
        assert_eq!(streams, [Stream::Out, Stream::Error]);
    }

    #[test]
    fn patterns_fit_names() {
        for (pattern, name, expected) in [
            ("run", "run", true),
            ("run", "runs", false),
            ("r?n", "run", true),
            ("?", "", false),
            ("*", "", true),
            ("re*er", "reconciler", true),
            ("*l*k*n*", "link", false),
            ("*nk", "link", true),
        ] {
            assert_eq!(fits(pattern, name), expected, "{pattern} {name}");
        }
    }
}
