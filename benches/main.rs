//! `./dev bench NAME ...`: what the documentation claims, measured. Without a name, all of it. One
//! binary, because linking six of them takes longer than most of them run.

mod drain;
mod growth;
mod latency;
mod stage;
mod sweep;
mod watches;
mod writers;

use anyhow::bail;

type Measure = fn() -> anyhow::Result<()>;

/// By name.
const BENCHES: [(&str, Measure); 6] = [
    ("writers", writers::measure),
    ("latency", latency::measure),
    ("drain", drain::measure),
    ("sweep", sweep::measure),
    ("watches", watches::measure),
    ("growth", growth::measure),
];

fn main() -> anyhow::Result<()> {
    let asked: Vec<String> =
        std::env::args().skip(1).filter(|argument| argument != "--bench").collect(); // cargo's own
    if let Some(unknown) = asked.iter().find(|name| BENCHES.iter().all(|(known, _)| known != name))
    {
        bail!("there is no bench {unknown}, but {}", BENCHES.map(|(name, _)| name).join(", "));
    }
    for (_, measure) in BENCHES
        .iter()
        .filter(|(name, _)| asked.is_empty() || asked.iter().any(|asked| asked == name))
    {
        measure()?;
    }
    Ok(())
}
