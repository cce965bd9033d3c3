//! Plots as SVG. The drawing stretches to whatever room there is; what is written beside it does not.
//!
//! Lines differ by their dashes and areas by their lightness, not by colour alone. The drawing is an
//! image with a sentence for its text, and the numbers stand in a table of the page.

use std::fmt::Write as _;

use maud::{Markup, html};

use super::words;
use crate::{
    clock::Timestamp,
    observe::trend::{Range, Step},
};

/// One line or area.
pub(super) struct Series {
    pub(super) name: &'static str,
    /// Its look in the style: `a` to `d`.
    pub(super) look: &'static str,
    /// Of each step; none where nothing is known.
    pub(super) values: Vec<Option<f64>>,
}

impl Series {
    /// Of each step that has a value.
    pub(super) fn of(
        name: &'static str,
        look: &'static str,
        steps: &[Step],
        value: impl Fn(&Step) -> Option<f64>,
    ) -> Self {
        Self { name, look, values: steps.iter().map(value).collect() }
    }
}

/// What its values are, which decides how they are written and where the scale ends.
#[derive(Clone, Copy)]
pub(super) enum Unit {
    /// Things that one counts.
    Count,
    /// Things a minute.
    Rate,
    Seconds,
}

impl Unit {
    pub(super) fn words(self, value: f64) -> String {
        match self {
            Self::Count => words::number(value.round() as u64),
            Self::Rate if value > 0.0 && value < 9.95 => format!("{value:.1}").replace(".0", ""),
            Self::Rate => words::number(value.round() as u64),
            Self::Seconds => words::duration(value),
        }
    }

    /// The end of the scale, such that its half is a round number, too.
    fn top(self, greatest: f64) -> f64 {
        const TIMES: [f64; 22] = [
            0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 4.0, 10.0, 20.0, 60.0, 120.0, 240.0, 600.0, 1_200.0,
            3_600.0, 7_200.0, 14_400.0, 43_200.0, 86_400.0, 172_800.0,
        ];
        let decimal = |least: f64| {
            let mut unit = least;
            loop {
                if let Some(top) = [2.0, 4.0, 10.0].map(|n| n * unit).into_iter().find(|top| *top >= greatest)
                {
                    return top;
                }
                unit *= 10.0;
            }
        };
        match self {
            _ if !greatest.is_finite() => 1.0,
            Self::Count | Self::Rate => decimal(1.0),
            Self::Seconds => TIMES
                .into_iter()
                .find(|top| *top >= greatest)
                .unwrap_or_else(|| (greatest / 172_800.0).ceil() * 172_800.0),
        }
    }
}

/// A plot with its title, a sentence and a key.
pub(super) struct Plot<'a> {
    pub(super) title: &'a str,
    pub(super) says: &'a str,
    pub(super) unit: Unit,
    /// Areas that lie on each other, the first at the bottom; else lines.
    pub(super) stacked: bool,
    pub(super) range: Range,
    pub(super) steps: &'a [Step],
    pub(super) series: &'a [Series],
}

impl Plot<'_> {
    pub(super) fn draw(&self) -> Markup {
        let steps = self.steps.len();
        let greatest = (0..steps).map(|i| self.height(i)).fold(0.0, f64::max);
        let top = self.unit.top(greatest);
        let paths = if self.stacked { self.areas(top) } else { self.lines(top) };
        let class = if self.stacked { "areas" } else { "lines" };
        html! {
            figure.plot {
                figcaption {
                    h3 { (self.title) }
                    p.says { (self.says) }
                }
                div.field {
                    div.scale aria-hidden="true" {
                        @for value in [top, top / 2.0, 0.0] { span { (self.unit.words(value)) } }
                    }
                    svg class=(class) viewBox={ "0 0 " (steps) " 100" } preserveAspectRatio="none" role="img"
                        aria-label={ (self.title) ". " (self.says) } {
                        path.grid d={ "M0 0H" (steps) "M0 50H" (steps) "M0 100H" (steps) } {}
                        @for (series, path) in self.series.iter().zip(&paths) { path class=(series.look) d=(path) {} }
                        @for (i, step) in self.steps.iter().enumerate() {
                            @if step.point.is_some() {
                                rect.hit x=(i) width="1" height="100" { title { (self.told(i)) } }
                            }
                        }
                    }
                    div.times aria-hidden="true" {
                        @for i in [0, steps / 2] {
                            span { (self.steps.get(i).map(|step| clock(step.at, self.range)).unwrap_or_default()) }
                        }
                        span { "now" }
                    }
                }
                ul.key { @for series in self.series {
                    li {
                        svg class=(class) viewBox="0 0 20 10" aria-hidden="true" focusable="false" {
                            @if self.stacked { path class=(series.look) d="M0 0h20v10h-20Z" {} }
                            @else { path class=(series.look) d="M0 5h20" {} }
                        }
                        (series.name)
                    }
                } }
            }
        }
    }

    fn height(&self, i: usize) -> f64 {
        let values = self.series.iter().filter_map(|series| series.values[i]);
        if self.stacked { values.sum() } else { values.fold(0.0, f64::max) }
    }

    fn told(&self, i: usize) -> String {
        let mut told = clock(self.steps[i].at, self.range);
        for series in self.series {
            if let Some(value) = series.values[i] {
                let _ = write!(told, "\n{} {}", series.name, self.unit.words(value));
            }
        }
        told
    }

    fn areas(&self, top: f64) -> Vec<String> {
        let mut below = vec![0.0; self.steps.len()];
        let area = |series: &Series| {
            let mut path = String::new();
            for (i, value) in series.values.iter().enumerate() {
                let Some(value) = value.filter(|value| *value > 0.0) else { continue };
                let (low, high) = (y(below[i], top), y(below[i] + value, top));
                below[i] += value;
                let _ = write!(path, "M{i} {low:.1}V{high:.1}H{}V{low:.1}Z", i + 1);
            }
            path
        };
        self.series.iter().map(area).collect()
    }

    fn lines(&self, top: f64) -> Vec<String> {
        let line = |series: &Series| {
            let mut path = String::new();
            let mut before = None;
            for (i, value) in series.values.iter().enumerate() {
                if let Some(value) = value {
                    let y = y(*value, top);
                    let _ = match before {
                        Some(()) => write!(path, "L{i}.5 {y:.1}"),
                        // One alone is a dash.
                        None if series.values.get(i + 1).is_none_or(Option::is_none) => {
                            write!(path, "M{i} {y:.1}h1")
                        }
                        None => write!(path, "M{i}.5 {y:.1}"),
                    };
                }
                before = value.map(|_| ());
            }
            path
        };
        self.series.iter().map(line).collect()
    }
}

fn y(value: f64, top: f64) -> f64 {
    100.0 - 100.0 * (value / top).clamp(0.0, 1.0)
}

/// A step's begin, as precise as its range.
pub(super) fn clock(at: Timestamp, range: Range) -> String {
    let text = at.to_string();
    let part = |from: usize, to: usize| text.get(from..to).unwrap_or_default();
    match range {
        Range::Hour | Range::Day => part(11, 16).to_owned(),
        Range::Week | Range::Month => format!("{} {}", part(5, 10), part(11, 16)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::trend::Point;

    #[test]
    fn scales_end_at_round_numbers() {
        assert_eq!(
            [0.0, 1.0, 3.0, 5.0, 11.0, 201.0].map(|n| Unit::Count.top(n)),
            [2.0, 2.0, 4.0, 10.0, 20.0, 400.0]
        );
        assert_eq!([0.003, 45.0, 5e6].map(|n| Unit::Seconds.top(n)), [0.01, 60.0, 5_011_200.0]);
        assert_eq!(Unit::Rate.words(0.25), "0.2");
        assert_eq!(Unit::Rate.words(2.0), "2");
    }

    #[test]
    fn gaps_stay_gaps_and_areas_lie_on_each_other() {
        let point = Some(Point::default());
        let steps: Vec<Step> =
            (0..4).map(|i| Step { at: Timestamp(i * 60_000), minutes: 1.0, point }).collect();
        let series = |name, look, values| Series { name, look, values };
        let of = |stacked, series| {
            let plot = Plot {
                title: "T",
                says: "S",
                unit: Unit::Count,
                stacked,
                range: Range::Hour,
                steps: &steps,
                series,
            };
            if stacked { plot.areas(10.0) } else { plot.lines(10.0) }
        };
        let some = |values: [f64; 4]| values.map(|v| (v >= 0.0).then_some(v)).to_vec();
        let two =
            [series("a", "a", some([5.0, -1.0, 0.0, 2.0])), series("b", "b", some([5.0, -1.0, 1.0, 1.0]))];
        assert_eq!(
            of(true, &two),
            [
                "M0 100.0V50.0H1V100.0ZM3 100.0V80.0H4V100.0Z",
                "M0 50.0V0.0H1V50.0ZM2 100.0V90.0H3V100.0ZM3 80.0V70.0H4V80.0Z"
            ]
        );
        assert_eq!(of(false, &two)[0], "M0 50.0h1M2.5 100.0L3.5 80.0");
    }
}
