//! The document as lines for a terminal: `unstale status`.

use std::fmt::{Display, Write as _};

use super::{Findings, Gap, OpenGap, Status, Watch, format};
use crate::finding::{Finding, Severity};
use crate::visible::line;

/// The same as the page, without the chart.
#[must_use]
pub fn text(status: &Status) -> String {
    let mut text = String::new();
    let ready = match &status.why_not {
        Some(why_not) => format!("not ready: {}", line(why_not)),
        None => "ready".to_owned(),
    };
    let shown = |seconds: Option<f64>| seconds.map_or_else(|| "-".to_owned(), format::seconds);
    field(
        &mut text,
        "instance",
        format_args!(
            "{}, unstale {}, up for {}",
            line(&status.instance),
            line(&status.version),
            format::seconds(status.uptime_seconds)
        ),
    );
    field(&mut text, "state", format_args!("{} ({})", ready, line(&status.state)));
    field(&mut text, "postgres", line(&status.postgres.place));
    redis(&mut text, status);
    let (fresh, delivery) = (&status.freshness, &status.delivery);
    field(
        &mut text,
        "commit to gone",
        format_args!("{}, p99 {}", shown(fresh.p50_seconds), shown(fresh.p99_seconds)),
    );
    field(
        &mut text,
        "arrival to gone",
        format_args!("{}, p99 {}", shown(delivery.p50_seconds), shown(delivery.p99_seconds)),
    );
    let watermark = status.watermark.at.as_deref().unwrap_or("-");
    field(
        &mut text,
        "watermark",
        format_args!("{}, {} behind", line(watermark), shown(status.watermark.age_seconds)),
    );
    let waiting = &status.waiting;
    let (keys, patterns, size) = (waiting.keys, waiting.patterns, format::bytes(waiting.bytes));
    field(
        &mut text,
        "waiting",
        format_args!(
            "{keys} keys, {patterns} patterns, {size}; {} commands on their way, {} tried again",
            waiting.commands, waiting.retries
        ),
    );
    field(&mut text, "to be repeated", format_args!("{} keys", waiting.repeats));
    watches(&mut text, status);
    gaps(&mut text, status);
    findings(&mut text, status.findings.as_ref());
    text
}

fn field(text: &mut String, name: &str, value: impl Display) {
    let _ = writeln!(text, "{name:<16} {value}");
}

fn redis(text: &mut String, status: &Status) {
    for (n, server) in status.redis.servers.iter().enumerate() {
        let name = if n == 0 { "redis" } else { "" };
        let kind = if status.redis.kind == "server" {
            String::new()
        } else {
            format!(" ({})", line(&status.redis.kind))
        };
        let state = match (server.answers, &server.why_not) {
            (true, _) => "answers".to_owned(),
            (false, None) => "does not answer".to_owned(),
            (false, Some(why_not)) => format!("does not answer: {}", line(why_not)),
        };
        field(
            text,
            name,
            format_args!(
                "{}{kind} {state}",
                line(server.address.as_deref().unwrap_or("the primary"))
            ),
        );
    }
    and_more(text, status.redis.more, "servers");
}

fn watches(text: &mut String, status: &Status) {
    let _ = writeln!(text, "\nwatches          {}", status.watches.count);
    for Watch {
        table,
        keys,
        delivery,
        guarantee,
        sweepable,
        changes,
        changes_per_second,
        deleted,
        deleted_per_second,
        nines,
    } in &status.watches.list
    {
        let guarantee = guarantee
            .as_ref()
            .map_or_else(String::new, |guarantee| format!(", {}", line(guarantee)));
        let sweep = if *sweepable { "" } else { ", no sweep" };
        let nines =
            nines.map_or_else(String::new, |nines| format!("; right: {}", format::nines(nines)));
        let _ = writeln!(
            text,
            "  {} ({}{guarantee}{sweep})\n    {changes} changes, {}/s; {deleted} keys, {}/s{nines}",
            line(table),
            line(delivery),
            format::rate(*changes_per_second),
            format::rate(*deleted_per_second)
        );
        let keys: Vec<_> = keys.iter().map(|key| line(key)).collect();
        let _ = writeln!(text, "    {}", keys.join("  "));
    }
    and_more(text, status.watches.more, "watches");
}

fn gaps(text: &mut String, status: &Status) {
    if let Some(OpenGap { cause, lasted_seconds, swept, logged, keys }) = &status.gap {
        let lasted = format::seconds(*lasted_seconds);
        let _ = writeln!(
            text,
            "\nopen gap         {}, for {lasted}: {swept} rows swept, {logged} of the log, {keys} keys so far",
            line(cause)
        );
    }
    let Some(gaps) = &status.gaps else {
        let _ = writeln!(text, "\ngaps             the ledger was not read yet");
        return;
    };
    let _ = writeln!(
        text,
        "\ngaps             {}",
        if gaps.is_empty() { "none" } else { "the last of the ledger" }
    );
    for Gap { cause, opened_at, lasted_seconds, swept, logged, keys } in gaps {
        let lasted = lasted_seconds.map_or_else(|| "open".to_owned(), format::seconds);
        let _ = writeln!(
            text,
            "  {}  {:<9} {lasted:>7}  {swept} swept, {logged} logged, {keys} keys",
            line(opened_at),
            line(cause)
        );
    }
}

fn findings(text: &mut String, findings: Option<&Findings>) {
    let Some(Findings { list, more, .. }) = findings else {
        let _ = writeln!(
            text,
            "\nfindings         the database was not asked yet, or could not be: see `unstale check`"
        );
        return;
    };
    let _ = writeln!(
        text,
        "\nfindings         {}",
        if list.is_empty() { "none" } else { "of the database" }
    );
    for Finding { severity, about, finding, remedy } in list {
        let word = match severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
            Severity::Ok => "ok",
        };
        let _ = writeln!(text, "  {word:<8} {}: {}", line(about), line(finding));
        let _ = writeln!(
            text,
            "           {}",
            line(remedy.as_deref().unwrap_or("# `unstale check` has the remedy"))
        );
    }
    and_more(text, *more, "findings");
}

fn and_more(text: &mut String, more: u64, what: &str) {
    if more > 0 {
        let _ = writeln!(text, "  and {} more {what}", format::number(more));
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::hostile;
    use super::*;

    #[test]
    fn it_says_everything_and_nothing_acts_on_the_terminal() {
        let text = text(&hostile());
        assert!(
            !text.replace('\n', "").contains(char::is_control) && !text.contains('\u{202e}'),
            "{text}"
        );
        for part in [
            "not ready: <script>",
            "p99 2.0 s",
            "2026-01-31T09:59:49Z, 11 s behind",
            "1234 keys, 2 patterns, 45 kB; 3 commands",
            "99.9 % of",
            "200 ms  4 swept",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
    }
}
