//! A comparison: what was measured of ours, and of what it is compared with.

use std::fmt;

use serde::Serialize;

/// A line of the table.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Row {
    /// What was measured, with its unit.
    pub(crate) what: String,
    /// With what ours is compared.
    pub(crate) peer: String,
    /// The median of ours.
    pub(crate) ours: Option<f64>,
    /// The median of the peer's.
    pub(crate) theirs: Option<f64>,
    /// One by the other, as the target has it.
    pub(crate) ratio: Option<f64>,
    /// What the ratio is to be.
    pub(crate) target: Target,
    /// Whether it is. Nothing where there is no target, or something could not be measured.
    pub(crate) met: Option<bool>,
    /// How many values there are of ours, and of the peer's.
    pub(crate) runs: [usize; 2],
    /// The least and the greatest value of ours, and of the peer's.
    pub(crate) spread: [Option<[f64; 2]>; 2],
}

/// What a ratio is to be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Target {
    /// The peer's value by ours is to be at least this: so many times faster, or smaller.
    Times(f64),
    /// Our value by the peer's is to be at most this.
    Within(f64),
    /// Our value is to be at most this, whatever the peer's is.
    AtMost(f64),
    /// No ratio is asked for; the peer's value by ours is told.
    None,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Times(times) => write!(f, "theirs/ours >= {times}"),
            Self::Within(times) => write!(f, "ours/theirs <= {times}"),
            Self::AtMost(limit) => write!(f, "ours <= {limit}"),
            Self::None => f.write_str("-"),
        }
    }
}

impl Serialize for Target {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Target {
    /// One value by the other.
    fn ratio(self, ours: f64, theirs: f64) -> f64 {
        match self {
            Self::Times(_) | Self::AtMost(_) | Self::None => theirs / ours,
            Self::Within(_) => ours / theirs,
        }
    }

    fn is_met(self, ours: Option<f64>, ratio: Option<f64>) -> Option<bool> {
        match self {
            Self::Times(times) => ratio.map(|ratio| ratio >= times),
            Self::Within(times) => ratio.map(|ratio| ratio <= times),
            Self::AtMost(limit) => ours.map(|ours| ours <= limit),
            Self::None => None,
        }
    }
}

impl Row {
    /// Compares what was measured. Without values of one side there is no ratio.
    pub(crate) fn new(
        what: impl Into<String>,
        peer: impl Into<String>,
        ours: &[f64],
        theirs: &[f64],
        target: Target,
    ) -> Self {
        Self::of(what, peer, ours, theirs, median, target)
    }

    /// The same of values that were measured in turns: the ratio is the median of all turns'. In a turn an emulated
    /// processor has one speed, as a rule.
    pub(crate) fn in_turns(
        what: impl Into<String>,
        peer: impl Into<String>,
        ours: &[f64],
        theirs: &[f64],
        target: Target,
    ) -> Self {
        let turns = std::iter::zip(ours, theirs);
        let ratios: Vec<_> = turns.map(|(ours, theirs)| target.ratio(*ours, *theirs)).collect();
        let row = Self::new(what, peer, ours, theirs, target);
        let ratio = median(&ratios);
        Self {
            ratio,
            met: target.is_met(row.ours, ratio),
            ..row
        }
    }

    /// The same of the 99th percentiles.
    pub(crate) fn worst(
        what: impl Into<String>,
        peer: impl Into<String>,
        ours: &[f64],
        theirs: &[f64],
        target: Target,
    ) -> Self {
        Self::of(what, peer, ours, theirs, |values| quantile(values, 0.99), target)
    }

    fn of(
        what: impl Into<String>,
        peer: impl Into<String>,
        our_values: &[f64],
        their_values: &[f64],
        of_all: impl Fn(&[f64]) -> Option<f64>,
        target: Target,
    ) -> Self {
        let (ours, theirs) = (of_all(our_values), of_all(their_values));
        let ratio = ours.zip(theirs).map(|(ours, theirs)| target.ratio(ours, theirs));
        Self {
            what: what.into(),
            peer: peer.into(),
            ours,
            theirs,
            ratio,
            target,
            met: target.is_met(ours, ratio),
            runs: [our_values.len(), their_values.len()],
            spread: [range(our_values), range(their_values)],
        }
    }
}

/// The middle one, or what lies between both that are.
pub(crate) fn median(values: &[f64]) -> Option<f64> {
    let sorted = sorted(values);
    let upper = sorted.get(sorted.len() / 2)?;
    let lower = sorted.get((sorted.len() - 1) / 2)?;
    Some(f64::midpoint(*lower, *upper))
}

/// The value below which this part of the values lies, or the nearest to it.
fn quantile(values: &[f64], part: f64) -> Option<f64> {
    let sorted = sorted(values);
    let last = sorted.len().checked_sub(1)?;
    let index = (part * last as f64).round() as usize;
    sorted.get(index).copied()
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

fn range(values: &[f64]) -> Option<[f64; 2]> {
    Some([
        values.iter().copied().min_by(f64::total_cmp)?,
        values.iter().copied().max_by(f64::total_cmp)?,
    ])
}

/// All rows, in Markdown.
pub(crate) fn table(rows: &[Row]) -> String {
    let mut cells = vec![
        [
            "what", "peer", "ours", "theirs", "ratio", "target", "met", "runs", "spread",
        ]
        .map(str::to_owned)
        .to_vec(),
    ];
    cells.extend(rows.iter().map(Row::cells));
    let widths: Vec<_> = (0..9)
        .map(|column| {
            let lengths = cells
                .iter()
                .filter_map(|row| row.get(column))
                .map(|cell| cell.len());
            lengths.max().unwrap_or_default()
        })
        .collect();
    let rule = widths.iter().map(|width| "-".repeat(*width)).collect();
    cells.insert(1, rule);
    cells
        .iter()
        .map(|row| {
            let padded: Vec<_> = std::iter::zip(row, &widths)
                .map(|(cell, width)| format!("{cell:width$}"))
                .collect();
            format!("| {} |\n", padded.join(" | "))
        })
        .collect()
}

impl Row {
    fn cells(&self) -> Vec<String> {
        let number = |value: Option<f64>| value.map_or("-".to_owned(), significant);
        let [ours, theirs] = self
            .spread
            .map(|range| range.map_or("-".to_owned(), |[low, high]| between(low, high)));
        vec![
            self.what.clone(),
            self.peer.clone(),
            number(self.ours),
            number(self.theirs),
            number(self.ratio),
            self.target.to_string(),
            match self.met {
                Some(true) => "yes",
                Some(false) => "NO",
                None => "-",
            }
            .to_owned(),
            format!("{}, {}", self.runs[0], self.runs[1]),
            format!("{ours}, {theirs}"),
        ]
    }
}

fn between(low: f64, high: f64) -> String {
    let (low, high) = (significant(low), significant(high));
    if low == high {
        low
    } else {
        format!("{low} to {high}")
    }
}

/// Three digits, as more are noise.
fn significant(value: f64) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    let digits = 2 - value.abs().log10().floor() as i32;
    format!("{value:.*}", usize::try_from(digits).unwrap_or_default().min(9))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_is_the_medians_and_held_against_the_target() {
        let faster = Row::new("x [s]", "y", &[3.0, 1.0, 2.0], &[240.0], Target::Times(120.0));
        assert_eq!(
            (faster.ours, faster.ratio, faster.met),
            (Some(2.0), Some(120.0), Some(true))
        );
        assert_eq!(faster.spread, [Some([1.0, 3.0]), Some([240.0, 240.0])]);
        let slower = Row::new("x [s]", "y", &[3.0], &[240.0], Target::Times(120.0));
        assert_eq!(slower.met, Some(false));
        let few = Row::new("x [s]", "y", &[4.0, 2.0], &[], Target::Times(2.0));
        assert_eq!(few.ours, Some(3.0), "no more the upper one than the lower one");
        let close = Row::new("x [s]", "y", &[1.3], &[1.0], Target::Within(1.25));
        assert_eq!(close.met, Some(false));
        let missing = Row::new("x [s]", "y", &[1.3], &[], Target::Times(2.0));
        assert_eq!((missing.ratio, missing.met), (None, None));
        let alone = Row::new("x [s]", "-", &[0.2, 0.1, 0.1], &[], Target::AtMost(0.15));
        assert_eq!((alone.ratio, alone.met), (None, Some(true)));
    }

    #[test]
    fn of_turns_the_ratio_is_that_of_most() {
        // The machine was slow in the second turn, and in a half of the third.
        let row = Row::in_turns(
            "x [s]",
            "y",
            &[1.0, 3.0, 1.0],
            &[1.0, 3.0, 3.0],
            Target::Within(1.1),
        );
        assert_eq!((row.ours, row.theirs), (Some(1.0), Some(3.0)));
        assert_eq!((row.ratio, row.met), (Some(1.0), Some(true)));
    }

    #[test]
    fn numbers_have_three_digits() {
        let texts = [0.0, 0.001234, 1.0, 12.345, 1234.0].map(significant);
        assert_eq!(texts, ["0", "0.00123", "1.00", "12.3", "1234"]);
    }

    #[test]
    fn the_worst_is_the_99th_percentile() {
        let values: Vec<_> = (1..=1000).map(f64::from).collect();
        assert_eq!(quantile(&values, 0.99), Some(990.0));
        assert_eq!(quantile(&values[..3], 0.99), Some(3.0));
    }
}
