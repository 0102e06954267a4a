//! The drawing of many starts: a dot a run, so that what is rare is seen, too.

use std::fmt::Write;

use super::summary::Series;

/// Width of the part with the dots, pixels.
const WIDTH: f64 = 700.0;
/// Space for names at the left, and for the median at the right.
const LEFT: f64 = 320.0;
const RIGHT: f64 = 110.0;
/// Height of a row.
const ROW: f64 = 22.0;
/// Space for the axis.
const TOP: f64 = 30.0;

/// One row a series, over a logarithmic axis: a first instruction is a thousandth of a boot.
pub(super) fn draw(all: &[Series]) -> String {
    let times = || all.iter().flat_map(|series| &series.runs_ms).copied();
    // Whole powers of ten around all times.
    let least = times().fold(f64::INFINITY, f64::min).max(1e-3);
    let most = times().fold(least, f64::max);
    let first = if least.is_finite() { least } else { 1.0 }.log10().floor();
    let last = if most.is_finite() { most } else { 1.0 }
        .log10()
        .ceil()
        .max(first + 1.0);
    let place = |ms: f64| {
        let part = (ms.max(1e-3).log10() - first) / (last - first);
        LEFT + part.clamp(0.0, 1.0) * WIDTH
    };
    let height = TOP + (all.len() as f64 + 0.5) * ROW;
    // Writing to a String cannot fail.
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n",
        LEFT + WIDTH + RIGHT
    );
    let mut power = first;
    while power <= last {
        let (x, ms) = (place(10_f64.powf(power)), 10_f64.powf(power));
        let _ = writeln!(
            svg,
            "<path d=\"M{x:.1} {TOP} V{height}\" stroke=\"#ddd\"/>\
             <text x=\"{x:.1}\" y=\"18\" text-anchor=\"middle\">{ms} ms</text>"
        );
        power += 1.0;
    }
    for (row, series) in all.iter().enumerate() {
        let y = TOP + (row as f64 + 0.5) * ROW;
        let median = series.median_ms;
        for ms in &series.runs_ms {
            let _ = writeln!(
                svg,
                "<circle cx=\"{:.1}\" cy=\"{y}\" r=\"3\" fill=\"#06c\" fill-opacity=\"0.4\"/>",
                place(*ms)
            );
        }
        let _ = writeln!(
            svg,
            "<path d=\"M{x:.1} {} v12\" stroke=\"#c60\" stroke-width=\"2\"/>\
             <text x=\"4\" y=\"{base}\">{}: {}</text>\
             <text x=\"{}\" y=\"{base}\">{median:.2} ms</text>",
            y - 6.0,
            escaped(&series.program),
            escaped(&series.step),
            LEFT + WIDTH + 8.0,
            x = place(median),
            base = y + 4.0,
        );
    }
    svg + "</svg>\n"
}

/// Text that is the user's, in XML.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_drawing_has_a_dot_for_each_run() {
        let mut all = Vec::new();
        for ms in [2, 3, 40] {
            Series::add(&mut all, "a<b & c", "x", Duration::from_millis(ms));
        }
        all.iter_mut().for_each(Series::summarise);
        let svg = draw(&all);
        assert_eq!(svg.matches("<circle").count(), 3);
        assert!(svg.contains(">1 ms<") && svg.contains(">100 ms<"), "{svg}");
        assert!(svg.contains("a&lt;b &amp; c: x") && svg.contains(">3.00 ms<"));
        assert!(draw(&[]).ends_with("</svg>\n"));
    }
}
