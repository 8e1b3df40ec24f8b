//! What a bench found: printed as it comes, and kept as Markdown and as SVG in `benches/results/`.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

/// Colours of the series, in order.
const COLOURS: [&str; 6] = ["#8b949e", "#1f6feb", "#2da44e", "#bf8700", "#cf222e", "#8250df"];

/// A Markdown file in the making.
pub(crate) struct Report {
    name: &'static str,
    text: String,
}

impl Report {
    /// `name` is the file's.
    pub(crate) fn new(name: &'static str, title: &str) -> Self {
        let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
        let mut report = Self { name, text: String::new() };
        report.say(&format!(
            "# {title}\n\nOne machine with {cores} cores for everything: servers, load, listener. Written by `./dev bench {name}`."
        ));
        report
    }

    /// A paragraph.
    pub(crate) fn say(&mut self, text: &str) {
        println!("{text}\n");
        let _ = writeln!(self.text, "{text}\n"); // to a String
    }

    /// A table; the first row names the columns.
    pub(crate) fn table(&mut self, rows: &[Vec<String>]) {
        let mut text = String::new();
        for (i, row) in rows.iter().enumerate() {
            let _ = writeln!(text, "| {} |", row.join(" | "));
            if i == 0 {
                let _ = writeln!(text, "|{}", "---|".repeat(row.len()));
            }
        }
        self.say(text.trim_end());
    }

    /// Bars in groups: each group has a label and a value for each series. Values are shown above the bars.
    pub(crate) fn plot(&mut self, file: &str, title: &str, series: &[&str], groups: &[(String, Vec<f64>)]) -> anyhow::Result<()> {
        let highest = groups.iter().flat_map(|(_, values)| values).fold(f64::MIN_POSITIVE, |a, b| a.max(*b));
        let (bar, gap, top, height) = (46, 28, 60, 200);
        let group = bar * series.len() + gap;
        let width = group * groups.len() + gap;
        let mut svg = format!(
            "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {}' font-family='sans-serif' font-size='11'>\n\
             <rect width='100%' height='100%' fill='white'/>\n<text x='{gap}' y='20' font-size='14'>{title}</text>\n",
            top + height + 30
        );
        let mut x = gap;
        for (name, colour) in series.iter().zip(COLOURS) {
            let _ = writeln!(svg, "<rect x='{x}' y='30' width='10' height='10' fill='{colour}'/><text x='{}' y='39'>{name}</text>", x + 14);
            x += 24 + 7 * name.len();
        }
        for (i, (label, values)) in groups.iter().enumerate() {
            let left = gap + i * group;
            for (j, (value, colour)) in values.iter().zip(COLOURS).enumerate() {
                let tall = (value / highest * height as f64).max(1.0);
                let (x, y) = (left + j * bar, (top + height) as f64 - tall);
                let _ = writeln!(
                    svg,
                    "<rect x='{x}' y='{y:.1}' width='{}' height='{tall:.1}' fill='{colour}'/>\
                     <text x='{}' y='{:.1}' text-anchor='middle' font-size='10'>{}</text>",
                    bar - 4,
                    x + bar / 2 - 2,
                    y - 3.0,
                    short(*value)
                );
            }
            let middle = left + bar * series.len() / 2;
            let _ = writeln!(svg, "<text x='{middle}' y='{}' text-anchor='middle'>{label}</text>", top + height + 16);
        }
        svg.push_str("</svg>\n");
        fs::write(directory()?.join(file), svg)?;
        self.say(&format!("![{title}]({file})"));
        Ok(())
    }

    /// Lines over a common axis: each has a name and its points.
    #[allow(dead_code, reason = "one bench draws them")]
    pub(crate) fn lines(&mut self, file: &str, title: &str, lines: &[(&str, Vec<(f64, f64)>)]) -> anyhow::Result<()> {
        let (left, top, width, height) = (50.0, 60.0, 600.0, 200.0);
        let furthest = |of: fn(&(f64, f64)) -> f64| lines.iter().flat_map(|(_, points)| points).map(of).fold(f64::MIN_POSITIVE, f64::max);
        let (last, highest) = (furthest(|point| point.0), furthest(|point| point.1));
        let mut svg = format!(
            "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {} {}' font-family='sans-serif' font-size='11'>\n\
             <rect width='100%' height='100%' fill='white'/>\n<text x='{left}' y='20' font-size='14'>{title}</text>\n\
             <path d='M{left},{top} v{height} h{width}' fill='none' stroke='black'/>\n\
             <text x='{}' y='{top}' text-anchor='end'>{}</text><text x='{}' y='{}' text-anchor='end'>{}</text>\n",
            left + width + 20.0,
            top + height + 30.0,
            left - 4.0,
            short(highest),
            left + width,
            top + height + 16.0,
            short(last)
        );
        let mut x = left;
        for ((name, points), colour) in lines.iter().zip(&COLOURS[1..]) {
            let _ =
                writeln!(svg, "<rect x='{x}' y='30' width='10' height='10' fill='{colour}'/><text x='{}' y='39'>{name}</text>", x + 14.0);
            x += 30.0 + 7.0 * name.len() as f64;
            let mut path = String::new();
            for (at, value) in points {
                let _ = write!(path, " {:.1},{:.1}", left + at / last * width, top + height - value / highest * height);
            }
            let _ = writeln!(svg, "<polyline points='{}' fill='none' stroke='{colour}' stroke-width='1.5'/>", path.trim_start());
        }
        svg.push_str("</svg>\n");
        fs::write(directory()?.join(file), svg)?;
        self.say(&format!("![{title}]({file})"));
        Ok(())
    }

    /// Writes the file.
    pub(crate) fn save(self) -> anyhow::Result<()> {
        let path = directory()?.join(self.name).with_extension("md");
        fs::write(&path, self.text.trim_end().to_owned() + "\n")?;
        println!("written to benches/results/{}.md", self.name);
        Ok(())
    }
}

fn directory() -> anyhow::Result<PathBuf> {
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("benches/results");
    fs::create_dir_all(&directory)?;
    Ok(directory)
}

fn short(value: f64) -> String {
    match value {
        10_000.0.. => format!("{:.1}k", value / 1000.0),
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// The middle one.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// The sample that `share` of all are not above.
pub(crate) fn percentile(samples: &mut [Duration], share: f64) -> Duration {
    samples.sort();
    samples.get(((samples.len().max(1) - 1) as f64 * share) as usize).copied().unwrap_or_default()
}
