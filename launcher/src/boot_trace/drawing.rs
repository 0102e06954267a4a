//! The drawing of a start.

use std::fmt::Write as _;

use super::axis::Axis;
use super::{RUNNING, Timeline};

/// Width of the bars, pixels.
const WIDTH: f64 = 900.0;
/// Space for names at the left.
const LEFT: f64 = 220.0;
/// Space for times at the right of the last bar.
const RIGHT: f64 = 190.0;
/// Height of a step's row.
const ROW: f64 = 18.0;
/// Space above a part: its title, and two lines where breaks of the axis say how long they are.
const HEAD: f64 = 3.0 * ROW;

/// A step: from the end of the one before in the same process, to its own end.
struct Row<'a> {
    process: &'static str,
    step: &'a str,
    from: u64,
    at: u64,
}

/// Two parts, each with an axis of its own, for a guest takes a thousand times as long as podvisor: up to the guest's
/// first instruction, and from there. One row a step, which says when it was done and how long it took.
pub(super) fn draw(timelines: &[Timeline<'_>]) -> String {
    let times = || timelines.iter().flat_map(|timeline| timeline.marks);
    let start = times().map(|mark| mark.at_ns).min().unwrap_or(0);
    let running = times().find(|mark| mark.step == RUNNING);
    let running = running.map_or(u64::MAX, |mark| mark.at_ns);
    let mut rows: Vec<_> = timelines
        .iter()
        .flat_map(|timeline| rows(timeline, start, running))
        .collect();
    let (until, mut from): (Vec<_>, Vec<_>) = rows.drain(..).partition(|row| row.at <= running);
    from.sort_by_key(|row| row.at);
    let parts = [
        ("podvisor, to the guest's first instruction", until),
        ("the guest", from),
    ];
    let parts = parts.iter().filter(|(_, rows)| !rows.is_empty());
    let (mut svg, mut y) = (String::new(), 0.0);
    for (title, rows) in parts {
        y = draw_part(&mut svg, y, title, rows, start);
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{}\" height=\"{}\" \
         font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n{svg}</svg>\n",
        LEFT + WIDTH + RIGHT,
        y + ROW / 2.0,
    )
}

/// The guest's first step begins where podvisor's last one ends.
fn rows<'a>(
    timeline: &Timeline<'a>,
    start: u64,
    running: u64,
) -> impl Iterator<Item = Row<'a>> + use<'a> {
    let process = timeline.process;
    let first = timeline.marks.first().map_or(start, |mark| mark.at_ns);
    let mut end = first.min(running);
    timeline.marks.iter().map(move |mark| Row {
        process,
        step: &mark.step,
        from: std::mem::replace(&mut end, mark.at_ns),
        at: mark.at_ns,
    })
}

/// Draws one part from `top` on and says where it ends. Labels last: nothing is drawn over them. Writing to a String
/// cannot fail, and steps are our own words, without markup.
fn draw_part(svg: &mut String, top: f64, title: &str, rows: &[Row<'_>], start: u64) -> f64 {
    let times = rows.iter().flat_map(|row| [row.from, row.at]);
    let axis = Axis::new(times.collect(), WIDTH);
    let bottom = top + HEAD + rows.len() as f64 * ROW;
    let mut labels = format!(
        "<text x=\"4\" y=\"{:.1}\" font-weight=\"bold\">{title}</text>\n",
        top + ROW - 4.0
    );
    let mut y = top + HEAD;
    for row in rows {
        let color = match row.process {
            "vm" => "#c60",
            "guest" => "#283",
            _ => "#06c",
        };
        let x = LEFT + axis.place(row.from);
        let length = (LEFT + axis.place(row.at) - x).max(1.0);
        let _ = writeln!(
            svg,
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{length:.1}\" height=\"12\" fill=\"{color}\"/>"
        );
        let _ = writeln!(
            labels,
            "<text x=\"4\" y=\"{base:.1}\">{}: {}</text>\
             <text x=\"{:.1}\" y=\"{base:.1}\">{} (+{})</text>",
            row.process,
            row.step,
            x + length + 4.0,
            milliseconds(row.at - start),
            milliseconds(row.at - row.from),
            base = y + 10.0,
        );
        y += ROW;
    }
    draw_breaks(svg, &axis, top + ROW, bottom);
    let _ = writeln!(
        svg,
        "<g paint-order=\"stroke\" stroke=\"#fff\" stroke-width=\"3\">\n{labels}</g>"
    );
    bottom
}

/// A white gap through all rows, with its real length above; neighbours are written on two lines.
fn draw_breaks(svg: &mut String, axis: &Axis, top: f64, bottom: f64) {
    let first_row = top + 2.0 * ROW;
    for (index, gap) in axis.breaks.iter().enumerate() {
        let x = LEFT + gap.place;
        let line = top + ROW * (1 + index % 2) as f64 - 4.0;
        let _ = writeln!(
            svg,
            "<path d=\"M{x:.1} {first_row} V{bottom}\" stroke=\"#fff\" stroke-width=\"6\"/>\
             <path d=\"M{left:.1} {first_row} V{bottom} M{right:.1} {first_row} V{bottom}\" stroke=\"#888\" \
             stroke-dasharray=\"4 3\" fill=\"none\"/>\
             <text x=\"{x:.1}\" y=\"{line:.1}\" text-anchor=\"middle\">{} not drawn to scale</text>",
            milliseconds(gap.ns),
            left = x - 3.0,
            right = x + 3.0,
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

    fn drawn(launcher: &[Mark], vm: &[Mark], guest: &[Mark]) -> String {
        let timelines = [("launcher", launcher), ("vm", vm), ("guest", guest)];
        draw(&timelines.map(|(process, marks)| Timeline { process, marks }))
    }

    #[test]
    fn a_drawing_has_a_row_for_each_step() {
        let launcher = [mark("start", 1_000_000), mark("plan", 2_000_000)];
        let vm = [mark("start", 1_500_000), mark("jail", 3_500_000)];
        let svg = drawn(&launcher, &vm, &[]);
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
        let svg = drawn(&launcher, &[mark("start", 500_000)], &[]);
        assert!(svg.contains(">1000.00 ms not drawn to scale<"), "{svg}");
    }

    /// Seconds of a guest leave podvisor's milliseconds to be seen, and the guest's are drawn to scale, too.
    #[test]
    fn a_guest_has_an_axis_of_its_own() {
        const SECOND: u64 = 1_000_000_000;
        let vm = [
            mark("start", 0),
            mark(RUNNING, 2_000_000),
            mark("first exit", 2 * SECOND + 2_000_000),
        ];
        let guest = [mark("kernel", SECOND), mark("init", 4 * SECOND)];
        let svg = drawn(&[mark("plan", 1_000_000)], &vm, &guest);
        let place = |text: &str| svg.find(text).unwrap_or_else(|| panic!("{text}: {svg}"));
        assert!(place("vm: running") < place(">the guest<"));
        assert!(place("guest: kernel") < place("vm: first exit"));
        assert!(place("vm: first exit") < place("guest: init"));
        // From the first instruction on.
        place(">1000.00 ms (+998.00 ms)<");
        assert!(!svg.contains("not drawn to scale"));
    }
}
