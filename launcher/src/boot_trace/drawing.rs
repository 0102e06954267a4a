//! The drawing of a start.

use std::fmt::Write as _;

use super::Timeline;
use super::axis::Axis;

/// Width of the bars, pixels.
const WIDTH: f64 = 900.0;
/// Space for names at the left.
const LEFT: f64 = 220.0;
/// Space for times at the right of the last bar.
const RIGHT: f64 = 160.0;
/// Height of a step's row.
const ROW: f64 = 18.0;
/// Space at the top, where breaks of the axis say how long they are.
const TOP: f64 = 2.0 * ROW;

/// One row a step: a bar from the end of the step before in the same process, to its own end. Each row
/// says when its step was done and how long it took.
pub(super) fn draw(timelines: &[Timeline<'_>]) -> String {
    let times = || timelines.iter().flat_map(|timeline| timeline.marks);
    let start = times().map(|mark| mark.at_ns).min().unwrap_or(0);
    let axis = Axis::new(times().map(|mark| mark.at_ns).collect(), WIDTH);
    let (width, height) = (
        LEFT + WIDTH + RIGHT,
        TOP + (times().count() as f64 + 0.5) * ROW,
    );
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n"
    );
    // Labels last: nothing is drawn over them. Writing to a String cannot fail, and steps are our own words,
    // without markup.
    let mut labels = String::new();
    let mut y = TOP;
    for timeline in timelines {
        let color = match timeline.process {
            "vm" => "#c60",
            _ => "#06c",
        };
        let mut from = timeline.marks.first().map_or(start, |mark| mark.at_ns);
        for mark in timeline.marks {
            let x = LEFT + axis.place(from);
            let length = (LEFT + axis.place(mark.at_ns) - x).max(1.0);
            let _ = writeln!(
                svg,
                "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{length:.1}\" height=\"12\" fill=\"{color}\"/>"
            );
            let _ = writeln!(
                labels,
                "<text x=\"4\" y=\"{base:.1}\">{}: {}</text>\
                 <text x=\"{:.1}\" y=\"{base:.1}\">{} (+{})</text>",
                timeline.process,
                mark.step,
                x + length + 4.0,
                milliseconds(mark.at_ns - start),
                milliseconds(mark.at_ns - from),
                base = y + 10.0,
            );
            from = mark.at_ns;
            y += ROW;
        }
    }
    draw_breaks(&mut svg, &axis, height);
    let _ = writeln!(
        svg,
        "<g paint-order=\"stroke\" stroke=\"#fff\" stroke-width=\"3\">\n{labels}</g>\n</svg>"
    );
    svg
}

/// A white gap through all rows, with its real length above; neighbours are written on two lines.
fn draw_breaks(svg: &mut String, axis: &Axis, height: f64) {
    for (index, gap) in axis.breaks.iter().enumerate() {
        let x = LEFT + gap.place;
        let line = ROW * (1 + index % 2) as f64 - 4.0;
        let _ = writeln!(
            svg,
            "<path d=\"M{:.1} {TOP} L{:.1} {height}\" stroke=\"#fff\" stroke-width=\"6\"/>\
             <path d=\"M{:.1} {TOP} L{:.1} {height} M{:.1} {TOP} L{:.1} {height}\" stroke=\"#888\" \
             stroke-dasharray=\"4 3\" fill=\"none\"/>\
             <text x=\"{x:.1}\" y=\"{line:.1}\" text-anchor=\"middle\">{} not drawn to scale</text>",
            x,
            x,
            x - 3.0,
            x - 3.0,
            x + 3.0,
            x + 3.0,
            milliseconds(gap.ns),
        );
    }
}

fn milliseconds(ns: u64) -> String {
    format!("{:.2} ms", ns as f64 / 1e6)
}

#[cfg(test)]
mod tests {
    use vmm::trace::Mark;

    use super::*;

    fn mark(step: &str, at_ns: u64) -> Mark {
        Mark {
            step: step.to_owned(),
            at_ns,
        }
    }

    fn drawn(launcher: &[Mark], vm: &[Mark]) -> String {
        let timelines = [("launcher", launcher), ("vm", vm)];
        draw(&timelines.map(|(process, marks)| Timeline { process, marks }))
    }

    #[test]
    fn a_drawing_has_a_row_for_each_step() {
        let launcher = [mark("start", 1_000_000), mark("plan", 2_000_000)];
        let vm = [mark("start", 1_500_000), mark("jail", 3_500_000)];
        let svg = drawn(&launcher, &vm);
        assert_eq!(svg.matches("height=\"12\"").count(), 4);
        assert!(svg.contains("launcher: plan") && svg.contains("vm: jail"));
        assert!(svg.contains(">2.50 ms (+2.00 ms)<"), "the jail: {svg}");
        assert!(!svg.contains("not drawn to scale"));
        assert!(draw(&[]).ends_with("</svg>\n"));
    }

    #[test]
    fn a_step_of_a_second_is_broken() {
        let launcher = [
            mark("start", 0),
            mark("plan", 1_000_000),
            mark("image", 1_001_000_000),
        ];
        let svg = drawn(&launcher, &[mark("start", 500_000)]);
        assert!(svg.contains(">1000.00 ms not drawn to scale<"), "{svg}");
    }
}
