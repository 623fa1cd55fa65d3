//! Durations as Go writes them: `30s`, `1m30s`, `1.5h`.

use std::{fmt, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A duration of the configuration, which is text there. It is written as Go writes it: `1h0m0s`, `1.5ms`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct GoDuration(pub(crate) Duration);

impl fmt::Display for GoDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seconds, nanoseconds) = (self.0.as_secs(), self.0.subsec_nanos());
        if seconds == 0 {
            return match nanoseconds {
                0 => f.write_str("0s"),
                1..1_000 => write!(f, "{nanoseconds}ns"),
                1_000..1_000_000 => write!(
                    f,
                    "{}\u{b5}s",
                    Decimal(nanoseconds / 1_000, nanoseconds % 1_000, 3)
                ),
                _ => write!(
                    f,
                    "{}ms",
                    Decimal(nanoseconds / 1_000_000, nanoseconds % 1_000_000, 6)
                ),
            };
        }
        let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
        if hours > 0 {
            write!(f, "{hours}h")?;
        }
        if hours > 0 || minutes > 0 {
            write!(f, "{minutes}m")?;
        }
        write!(f, "{}s", Decimal(seconds % 60, nanoseconds, 9))
    }
}

/// A whole part, and a fraction of so many digits, of which the last zeros are not written.
struct Decimal<T>(T, u32, usize);

impl<T: fmt::Display> fmt::Display for Decimal<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(whole, fraction, digits) = self;
        write!(f, "{whole}")?;
        if *fraction == 0 {
            return Ok(());
        }
        let fraction = format!("{fraction:0digits$}");
        write!(f, ".{}", fraction.trim_end_matches('0'))
    }
}

impl Serialize for GoDuration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for GoDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse(&text)
            .map(Self)
            .map_err(|reason| de::Error::custom(format_args!("{text:?}: {reason}")))
    }
}

/// Why a text is not a duration that a setting can take.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InvalidDuration {
    #[error("not a duration such as 30s, 1m30s or 1.5h")]
    Syntax,
    #[error("a number without a unit; write for example 30s")]
    MissingUnit,
    #[error("unknown unit {0:?}; the units are h, m, s, ms, us and ns")]
    UnknownUnit(String),
    #[error("must not be negative")]
    Negative,
    #[error("longer than 292 years")]
    TooLong,
}

/// Reads a duration by the grammar of Go's `time.ParseDuration`: numbers with a unit each, one after another,
/// and a plain `0`.
///
/// Go's durations end at 2^63 nanoseconds, and so do these. No setting of ours takes a negative one.
pub(crate) fn parse(text: &str) -> Result<Duration, InvalidDuration> {
    let (negative, unsigned) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let nanoseconds = if unsigned == "0" {
        0
    } else {
        nanoseconds(unsigned)?
    };
    if negative && nanoseconds > 0 {
        return Err(InvalidDuration::Negative);
    }
    Ok(Duration::from_nanos(nanoseconds))
}

fn nanoseconds(text: &str) -> Result<u64, InvalidDuration> {
    if text.is_empty() {
        return Err(InvalidDuration::Syntax);
    }
    let mut total: u64 = 0;
    let mut rest = text;
    while !rest.is_empty() {
        let (number, after) = split_at_first(rest, |c| c != '.' && !c.is_ascii_digit());
        let (unit, after) = split_at_first(after, |c| c == '.' || c.is_ascii_digit());
        rest = after;

        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return Err(InvalidDuration::Syntax);
        }
        let unit = match unit {
            "" => return Err(InvalidDuration::MissingUnit),
            "ns" => 1,
            // The micro sign and the Greek letter mu look the same; Go takes both.
            "us" | "\u{b5}s" | "\u{3bc}s" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60 * 1_000_000_000,
            "h" => 3600 * 1_000_000_000,
            other => return Err(InvalidDuration::UnknownUnit(other.to_owned())),
        };
        total = scaled(whole, fraction, unit)
            .and_then(|part| total.checked_add(part))
            .filter(|total| *total <= i64::MAX.unsigned_abs())
            .ok_or(InvalidDuration::TooLong)?;
    }
    Ok(total)
}

/// `whole.fraction` times `unit`, rounded down.
fn scaled(whole: &str, fraction: &str, unit: u64) -> Option<u64> {
    let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    // An hour has 13 decimal digits of nanoseconds: those after the 18th count for nothing.
    let fraction = fraction.get(..18).unwrap_or(fraction);
    let part = if fraction.is_empty() {
        0
    } else {
        let digits = u32::try_from(fraction.len()).ok()?;
        u128::from(unit) * fraction.parse::<u128>().ok()? / 10u128.pow(digits)
    };
    whole.checked_mul(unit)?.checked_add(u64::try_from(part).ok()?)
}

fn split_at_first(text: &str, stop: impl Fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(stop).unwrap_or(text.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_go_reads_them() {
        for (text, nanoseconds) in [
            ("0", 0),
            ("-0s", 0),
            ("30s", 30_000_000_000),
            ("+5m", 300_000_000_000),
            ("1h2m3s4ms5us6ns", 3_723_004_005_006),
            ("1.5h", 5_400_000_000_000),
            (".5s", 500_000_000),
            ("1.s", 1_000_000_000),
            ("0.3333333333333333333h", 1_199_999_999_999),
            ("3\u{b5}s", 3_000),
            ("3\u{3bc}s", 3_000),
            ("9223372036854775807ns", i64::MAX.unsigned_abs()),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_nanos(nanoseconds)), "{text}");
        }
    }

    #[test]
    fn durations_are_written_as_go_writes_them() {
        for (nanoseconds, text) in [
            (0, "0s"),
            (1, "1ns"),
            (1_100, "1.1\u{b5}s"),
            (2_200_000, "2.2ms"),
            (999_999_999, "999.999999ms"),
            (1_000_000_000, "1s"),
            (1_500_000_000, "1.5s"),
            (60_000_000_000, "1m0s"),
            (3_600_000_000_000, "1h0m0s"),
            (86_400_000_000_000, "24h0m0s"),
            (3_723_004_005_006, "1h2m3.004005006s"),
            (i64::MAX.unsigned_abs(), "2562047h47m16.854775807s"),
        ] {
            let duration = Duration::from_nanos(nanoseconds);
            assert_eq!(GoDuration(duration).to_string(), text);
            assert_eq!(parse(text), Ok(duration), "{text}");
        }
    }

    #[test]
    fn what_is_no_duration_says_why() {
        for (text, error) in [
            ("", InvalidDuration::Syntax),
            ("-", InvalidDuration::Syntax),
            ("s", InvalidDuration::Syntax),
            (".s", InvalidDuration::Syntax),
            ("1.2.3s", InvalidDuration::Syntax),
            ("30", InvalidDuration::MissingUnit),
            ("1m30", InvalidDuration::MissingUnit),
            ("3d", InvalidDuration::UnknownUnit("d".to_owned())),
            ("3 s", InvalidDuration::UnknownUnit(" s".to_owned())),
            ("-1s", InvalidDuration::Negative),
            ("9223372036854775808ns", InvalidDuration::TooLong),
            ("999999999999999999999h", InvalidDuration::TooLong),
            ("2562048h", InvalidDuration::TooLong),
        ] {
            assert_eq!(parse(text), Err(error), "{text}");
        }
    }
}
