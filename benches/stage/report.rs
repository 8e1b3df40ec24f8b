//! What a bench found: printed as it comes, and kept as Markdown in `benches/results/`.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

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
