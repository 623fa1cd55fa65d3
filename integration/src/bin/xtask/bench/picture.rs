//! The cost against the size, as a picture.

use std::collections::BTreeSet;
use std::fmt::Write;

use super::row::median;
use integration::bench::{FirstSync, Outcome};
use integration::proxiers::Proxier;

const WIDTH: f64 = 360.0;
const HEIGHT: f64 = 260.0;
const MARGIN: f64 = 50.0;

/// The exponents of ten at both ends of the axes: Services, and seconds.
const SERVICES: (f64, f64) = (1.5, 4.5);
const SECONDS: (f64, f64) = (-3.0, 3.5);

/// What a panel shows: a title, and the values of an outcome.
type Panel = (&'static str, fn(&Outcome) -> Vec<f64>);

const PANELS: [Panel; 2] = [
    ("first sync, from caches synced", |outcome| {
        let value = |sync: &FirstSync| sync.from_caches;
        outcome.first_syncs.iter().map(value).collect()
    }),
    ("one endpoint changes", |outcome| outcome.changes.clone()),
];

/// Those that were measured.
fn proxiers(outcomes: &[Outcome]) -> BTreeSet<Proxier> {
    outcomes.iter().map(|outcome| outcome.course.proxier).collect()
}

/// Draws the medians of all outcomes.
pub(crate) fn draw(outcomes: &[Outcome]) -> String {
    let mut svg = String::new();
    let (width, height) = (2.0 * (WIDTH + MARGIN) + MARGIN, HEIGHT + 2.0 * MARGIN + 20.0);
    line(
        &mut svg,
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
             font-family=\"sans-serif\" font-size=\"11\">"
        ),
    );
    line(
        &mut svg,
        "<rect width=\"100%\" height=\"100%\" fill=\"white\"/>".to_owned(),
    );
    for (index, panel) in PANELS.iter().enumerate() {
        let left = MARGIN + index as f64 * (WIDTH + MARGIN);
        line(&mut svg, format!("<g transform=\"translate({left},{MARGIN})\">"));
        axes(&mut svg, panel.0);
        for proxier in proxiers(outcomes) {
            series(&mut svg, proxier, outcomes, panel.1);
        }
        line(&mut svg, "</g>".to_owned());
    }
    for (index, proxier) in proxiers(outcomes).into_iter().enumerate() {
        let (left, top) = (MARGIN + index as f64 * 160.0, height - 12.0);
        let colour = colour(proxier);
        line(
            &mut svg,
            format!("<text x=\"{left}\" y=\"{top}\" fill=\"{colour}\">\u{25cf} {proxier}</text>"),
        );
    }
    line(&mut svg, "</svg>".to_owned());
    svg
}

fn axes(svg: &mut String, title: &str) {
    line(
        svg,
        format!(
            "<text y=\"-14\" font-size=\"13\">{title}</text><rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"none\" stroke=\"gray\"/>"
        ),
    );
    for exponent in [2, 3, 4] {
        let (x, services) = (x(10f64.powi(exponent)), 10u32.pow(exponent.unsigned_abs()));
        let bottom = HEIGHT + 16.0;
        line(
            svg,
            format!(
                "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y2=\"{HEIGHT}\" stroke=\"lightgray\"/>\
                 <text x=\"{x:.1}\" y=\"{bottom}\" text-anchor=\"middle\">{services}</text>"
            ),
        );
    }
    for (exponent, seconds) in [
        (-3, "1 ms"),
        (-2, "10 ms"),
        (-1, "0.1 s"),
        (0, "1 s"),
        (1, "10 s"),
        (2, "100 s"),
        (3, "1000 s"),
    ] {
        let y = y(10f64.powi(exponent));
        line(
            svg,
            format!(
                "<line x2=\"{WIDTH}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"lightgray\"/>\
                 <text x=\"-4\" y=\"{y:.1}\" text-anchor=\"end\">{seconds}</text>"
            ),
        );
    }
    let (middle, bottom) = (WIDTH / 2.0, HEIGHT + 32.0);
    line(
        svg,
        format!(
            "<text x=\"{middle}\" y=\"{bottom}\" text-anchor=\"middle\">Services of ten endpoints</text>"
        ),
    );
}

fn series(svg: &mut String, proxier: Proxier, outcomes: &[Outcome], values: fn(&Outcome) -> Vec<f64>) {
    let of_proxier = outcomes
        .iter()
        .filter(|outcome| outcome.course.proxier == proxier);
    let mut points: Vec<_> = of_proxier
        .filter_map(|outcome| {
            let services = outcome.course.load.services;
            Some((services, median(&values(outcome))?))
        })
        .collect();
    points.sort_by_key(|(services, _)| *services);
    let colour = colour(proxier);
    let places: Vec<_> = points
        .iter()
        .map(|(services, seconds)| (x(*services as f64), y(*seconds)))
        .collect();
    let path: Vec<_> = places.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    line(
        svg,
        format!(
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
            path.join(" ")
        ),
    );
    for (x, y) in places {
        line(
            svg,
            format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\" fill=\"{colour}\"/>"),
        );
    }
}

fn colour(proxier: Proxier) -> &'static str {
    match proxier {
        Proxier::Ours => "#1b6ca8",
        Proxier::UpstreamIpvs => "#c0392b",
        Proxier::UpstreamNftables => "#7d6608",
        Proxier::KubeRouter => "#1e8449",
    }
}

fn x(services: f64) -> f64 {
    WIDTH * part(services, SERVICES)
}

fn y(seconds: f64) -> f64 {
    HEIGHT * (1.0 - part(seconds, SECONDS))
}

/// Where a value is on a logarithmic axis, from 0 to 1.
fn part(value: f64, (low, high): (f64, f64)) -> f64 {
    ((value.log10() - low) / (high - low)).clamp(0.0, 1.0)
}

fn line(svg: &mut String, text: String) {
    // A string takes everything.
    let _ = writeln!(svg, "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn larger_is_further_right_and_slower_is_higher() {
        assert!(x(10_000.0) > x(100.0));
        assert!(y(10.0) < y(0.01));
        assert_eq!(part(0.0, SECONDS), 0.0, "nothing leaves the picture");
    }
}
