//! The page at `/`: the document as HTML, with its style and its script, and nothing from
//! elsewhere.
//!
//! Must hold: every text goes through `Text`, which escapes it for a person's eye and for HTML;
//! there is no attribute `style` or `on...`, so that [`CONTENT_SECURITY_POLICY`] lets nothing run
//! but this style and this script. What matters is there without it.

use std::fmt::{self, Display, Write as _};
use std::sync::LazyLock;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use sha2::{Digest as _, Sha256};

use super::{Findings, Gap, OpenGap, Redis, SPAN_SECONDS, Status, Times, Watch, Watches, format};
use crate::finding::{Finding, Severity};
use crate::visible;

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// What the page may do: its own style and script, by their hashes, and to ask where it came from.
pub static CONTENT_SECURITY_POLICY: LazyLock<String> = LazyLock::new(|| {
    let hash = |text: &str| format!("'sha256-{}'", BASE64_STANDARD.encode(Sha256::digest(text)));
    format!(
        "default-src 'none'; style-src {}; script-src {}; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        hash(STYLE),
        hash(SCRIPT)
    )
});

/// A text of whomever, as HTML.
struct Text<'a>(&'a str);

impl Display for Text<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in visible::line(self.0).chars() {
            match c {
                '&' => formatter.write_str("&amp;")?,
                '<' => formatter.write_str("&lt;")?,
                '>' => formatter.write_str("&gt;")?,
                '"' => formatter.write_str("&quot;")?,
                '\'' => formatter.write_str("&#39;")?,
                c => formatter.write_char(c)?,
            }
        }
        Ok(())
    }
}

/// The whole page.
#[must_use]
pub fn page(status: &Status) -> String {
    let mut html = String::with_capacity(32 << 10);
    let (mark, title) = if status.ready { ("●", "ready") } else { ("○", "not ready") };
    let _ = write!(
        html,
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{mark} {instance}: {title}</title>\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <noscript><meta http-equiv=\"refresh\" content=\"10\"></noscript><style>{STYLE}</style></head>\
         <body data-state=\"{}{}\"><header><h1>unstale</h1><p>instance <b>{instance}</b></p><p class=\"soft\">{}</p></header><main>",
        status.ready,
        Text(&status.state),
        Text(&status.version),
        instance = Text(&status.instance),
    );
    ready(&mut html, status);
    cards(&mut html, status);
    chart(&mut html, &status.freshness);
    findings(&mut html, status.findings.as_ref());
    watches(&mut html, &status.watches);
    gaps(&mut html, status.gap.as_ref(), status.gaps.as_deref());
    redis(&mut html, &status.redis);
    let _ = writeln!(html, "</main><script>{SCRIPT}</script></body></html>");
    html
}

fn ready(html: &mut String, status: &Status) {
    let (class, words) = if status.ready { ("good", "ready") } else { ("bad", "not ready") };
    let _ = write!(
        html,
        "<section id=\"ready\" data-part class=\"banner {class}\" role=\"status\"><p><b>{words}</b>"
    );
    if let Some(why_not) = &status.why_not {
        let _ = write!(html, ": {}", Text(why_not));
    }
    let _ = write!(
        html,
        "</p><p class=\"soft\">{}; PostgreSQL at {}; up for {}; as of <time>{}</time></p>\
         <p id=\"away\" class=\"bad\"><b>The listener does not answer.</b> What is below was so before.</p></section>",
        Text(&status.state),
        Text(&status.postgres.place),
        format::seconds(status.uptime_seconds),
        Text(&status.at),
    );
}

fn cards(html: &mut String, status: &Status) {
    let waiting = &status.waiting;
    let age = status.watermark.age_seconds.map_or_else(|| "–".to_owned(), format::seconds);
    let _ = write!(
        html,
        "<div class=\"cards\" id=\"cards\" data-part><section><h2>Watermark</h2><b>{age}</b>\
         <p class=\"soft\">behind PostgreSQL's clock: <time>{}</time></p></section>",
        Text(status.watermark.at.as_deref().unwrap_or("not known yet")),
    );
    let delivered =
        |percentile: Option<f64>| percentile.map_or_else(|| "–".to_owned(), format::seconds);
    let Times { p50_seconds, p99_seconds, .. } = &status.delivery;
    let _ = write!(
        html,
        "<section><h2>Changes</h2><b>{}</b><p class=\"soft\">from arrival to key gone, the median; p99 {}</p></section>",
        delivered(*p50_seconds),
        delivered(*p99_seconds)
    );
    let _ = write!(
        html,
        "<section><h2>Waiting for Redis</h2><b>{} keys</b>\
         <p class=\"soft\">{} patterns, {}; {} commands on their way, {} tried again</p></section>\
         <section><h2>To be repeated</h2><b>{} keys</b><p class=\"soft\">are deleted, and will be once more</p></section></div>",
        format::number(waiting.keys),
        format::number(waiting.patterns),
        format::bytes(waiting.bytes),
        format::number(waiting.commands),
        format::number(waiting.retries),
        format::number(waiting.repeats),
    );
}

/// x is time, y the logarithm from 0.1 ms to 10 s. The script draws the same.
fn chart(html: &mut String, times: &Times) {
    let shown =
        |percentile: Option<f64>| percentile.map_or_else(|| "–".to_owned(), format::seconds);
    let (p50, p99) = (shown(times.p50_seconds), shown(times.p99_seconds));
    let _ = write!(
        html,
        "<section><h2>Commit to key gone: <span id=\"p50\">{p50}</span>, p99 <span id=\"p99\">{p99}</span></h2><div class=\"chart\">\
         <ol aria-hidden=\"true\"><li>10 s</li><li>1 s</li><li>100 ms</li><li>10 ms</li><li>1 ms</li><li>0.1 ms</li></ol>\
         <svg viewBox=\"0 0 300 100\" preserveAspectRatio=\"none\" role=\"img\" aria-label=\"Of each heartbeat of the last \
         five minutes, how long it took from its commit until Redis had deleted everything before it\">\
         <path class=\"grid\" d=\"M0 0h300M0 20h300M0 40h300M0 60h300M0 80h300M0 100h300\"/><path class=\"dots\" id=\"dots\" d=\""
    );
    for (age, seconds) in times.samples.iter().filter(|(age, _)| *age <= SPAN_SECONDS) {
        let _ = write!(
            html,
            "M{:.1} {:.1}h0",
            SPAN_SECONDS - age,
            20.0 * (1.0 - seconds.clamp(1e-4, 10.0).log10())
        );
    }
    let _ = write!(
        html,
        "\"/></svg></div><p class=\"ends soft\"><span>5 minutes ago</span><span>now</span></p></section>"
    );
}

fn findings(html: &mut String, findings: Option<&Findings>) {
    let _ = write!(html, "<section id=\"findings\" data-part><h2>Findings</h2>");
    match findings {
        None => {
            let _ = write!(
                html,
                "<p class=\"soft\">The database was not asked yet, or could not be: <code>unstale check</code> says why.</p>"
            );
        }
        Some(Findings { list, .. }) if list.is_empty() => {
            let _ = write!(html, "<p class=\"soft\">None: the database is as it should be.</p>");
        }
        Some(Findings { list, more, .. }) => {
            let _ = write!(html, "<ul>");
            for Finding { severity, about, finding, remedy } in list {
                let (class, word) = match severity {
                    Severity::Error => ("bad", "error"),
                    Severity::Warning => ("warn", "warning"),
                    Severity::Ok => ("good", "ok"),
                };
                let _ = write!(
                    html,
                    "<li><b class=\"{class}\">{word}</b> <b>{}</b>: {}",
                    Text(about),
                    Text(finding)
                );
                let _ = match remedy {
                    Some(remedy) => write!(html, "<pre><code>{}</code></pre></li>", Text(remedy)),
                    None => write!(
                        html,
                        " <span class=\"soft\">(<code>unstale check</code> has the remedy)</span></li>"
                    ),
                };
            }
            let _ = write!(html, "</ul>");
            and_more(html, *more, "unstale check prints all of them");
        }
    }
    let _ = write!(html, "</section>");
}

fn watches(html: &mut String, watches: &Watches) {
    let _ = write!(
        html,
        "<section id=\"watches\" data-part><h2>Watches ({})</h2>",
        format::number(watches.count)
    );
    if watches.list.is_empty() {
        let _ = write!(
            html,
            "<p class=\"soft\">No table is watched, or the watches were not read yet.</p></section>"
        );
        return;
    }
    let with_nines = watches.list.iter().any(|watch| watch.nines.is_some());
    let _ = write!(
        html,
        "<table><thead><tr><th>table and keys<th>delivery<th class=\"n\">changes/s<th class=\"n\">keys/s\
         <th class=\"n\">changes<th class=\"n\">deleted{}</tr></thead><tbody>",
        if with_nines { "<th class=\"n\">right" } else { "" }
    );
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
    } in &watches.list
    {
        let _ = write!(html, "<tr><td><b>{}</b>", Text(table));
        for key in keys {
            let _ = write!(html, " <code class=\"soft\">{}</code>", Text(key));
        }
        let _ = write!(html, "<td data-of=\"delivery\">{}", Text(delivery));
        if let Some(guarantee) = guarantee {
            let _ = write!(html, ", {}", Text(guarantee));
        }
        if !sweepable {
            let _ = write!(html, ", <span class=\"soft\">no sweep</span>");
        }
        let _ = write!(
            html,
            "<td class=\"n\" data-of=\"changes/s\">{}<td class=\"n\" data-of=\"keys/s\">{}\
             <td class=\"n\" data-of=\"changes\">{}<td class=\"n\" data-of=\"deleted\">{}",
            format::rate(*changes_per_second),
            format::rate(*deleted_per_second),
            format::number(*changes),
            format::number(*deleted),
        );
        if with_nines {
            let nines = nines.map_or_else(|| "–".to_owned(), format::nines);
            let _ = write!(html, "<td class=\"n\" data-of=\"right\">{nines}");
        }
        let _ = write!(html, "</tr>");
    }
    let _ = write!(html, "</tbody></table>");
    and_more(html, watches.more, "these are the busiest; /metrics has them all");
    let _ = write!(html, "</section>");
}

fn gaps(html: &mut String, open: Option<&OpenGap>, gaps: Option<&[Gap]>) {
    let _ = write!(html, "<section id=\"gaps\" data-part><h2>Gaps</h2>");
    if let Some(OpenGap { cause, lasted_seconds, swept, logged, keys }) = open {
        let _ = write!(
            html,
            "<p class=\"bad\">One is open ({}) since {}: {} rows swept, {} of the log read, {} keys deleted so far.</p>",
            Text(cause),
            format::seconds(*lasted_seconds),
            format::number(*swept),
            format::number(*logged),
            format::number(*keys),
        );
    }
    let _ = match gaps {
        None => write!(html, "<p class=\"soft\">The ledger was not read yet.</p></section>"),
        Some([]) => write!(html, "<p class=\"soft\">The ledger has none.</p></section>"),
        Some(gaps) => {
            let _ = write!(
                html,
                "<table><thead><tr><th>opened<th>cause<th class=\"n\">lasted<th class=\"n\">swept\
                 <th class=\"n\">logged<th class=\"n\">keys</tr></thead><tbody>"
            );
            for Gap { cause, opened_at, lasted_seconds, swept, logged, keys } in gaps {
                let lasted = lasted_seconds.map_or_else(|| "open".to_owned(), format::seconds);
                let _ = write!(
                    html,
                    "<tr><td><time>{}</time><td data-of=\"cause\">{}<td class=\"n\" data-of=\"lasted\">{lasted}\
                     <td class=\"n\" data-of=\"swept\">{}\
                     <td class=\"n\" data-of=\"logged\">{}<td class=\"n\" data-of=\"keys\">{}</tr>",
                    Text(opened_at),
                    Text(cause),
                    format::number(*swept),
                    format::number(*logged),
                    format::number(*keys),
                );
            }
            write!(html, "</tbody></table></section>")
        }
    };
}

fn redis(html: &mut String, redis: &Redis) {
    let title = match redis.kind.as_str() {
        "cluster" => "Redis Cluster",
        "sentinel" => "Redis, by Sentinel",
        _ => "Redis",
    };
    let _ = write!(html, "<section id=\"redis\" data-part><h2>{title}</h2><ul>");
    for server in &redis.servers {
        let address = server.address.as_deref().unwrap_or("the primary");
        let (class, words) =
            if server.answers { ("good", "answers") } else { ("bad", "does not answer") };
        let _ = write!(html, "<li><code>{}</code> <b class=\"{class}\">{words}</b>", Text(address));
        if let Some(why_not) = &server.why_not {
            let _ = write!(html, ": {}", Text(why_not));
        }
        let _ = write!(html, "</li>");
    }
    let _ = write!(html, "</ul>");
    and_more(html, redis.more, "those that do not answer come first");
    let _ = write!(html, "</section>");
}

fn and_more(html: &mut String, more: u64, where_they_are: &str) {
    if more > 0 {
        let _ = write!(
            html,
            "<p class=\"soft\">and {} more ({where_they_are})</p>",
            format::number(more)
        );
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{hostile, watch};
    use super::*;

    #[test]
    fn nothing_that_others_wrote_becomes_markup() {
        let page = page(&hostile());
        let ours = page.replace(SCRIPT, "").replace(STYLE, "");
        assert_eq!(ours.matches("<script>").count(), 1, "our own");
        assert!(
            !ours.contains("alert(1)</script>")
                && ours.contains("&lt;script&gt;alert(1)&lt;/script&gt;"),
            "{ours}"
        );
        assert!(
            !ours.contains('\u{1b}') && !ours.contains('\u{202e}') && ours.contains(r"\u{202e}\n")
        );
        let texts = ours.matches("&lt;script&gt;").count();
        assert_eq!(texts, ours.matches("onload=&#39;x&#39; &amp;").count(), "quotes, too");
        assert!(texts >= 16, "each text is shown: {texts}");
    }

    #[test]
    fn the_policy_lets_run_what_the_page_has_and_nothing_on_it_needs_more() {
        let page = page(&hostile());
        let between = |open: &str, close: &str| {
            page.split_once(open)
                .and_then(|(_, rest)| rest.split_once(close))
                .expect("it is there")
                .0
        };
        for (kind, text) in [
            ("style-src", between("<style>", "</style>")),
            ("script-src", between("<script>", "</script>")),
        ] {
            let hash = BASE64_STANDARD.encode(Sha256::digest(text));
            assert!(
                CONTENT_SECURITY_POLICY.contains(&format!("{kind} 'sha256-{hash}';")),
                "{kind}"
            );
        }
        let markup = page.replace(SCRIPT, "").replace(STYLE, "");
        for forbidden in
            [" style=", " src=", "<link", "<img", "href=", "http://", "https://", "<iframe", "url("]
        {
            assert!(!markup.contains(forbidden), "{forbidden}");
        }
        assert!(
            !SCRIPT.contains("innerHTML =")
                && !SCRIPT.contains("eval")
                && !STYLE.contains("url(")
                && !STYLE.contains("@import")
        );
    }

    #[test]
    fn nines_have_a_column_once_one_is_known() {
        let mut status = hostile();
        status.watches.list.push(watch("b", 0.0));
        status.watches.list[1].nines = None;
        assert!(
            page(&status).contains("<td class=\"n\" data-of=\"right\">99.9 % of 1\u{202f}000")
                && page(&status).contains("data-of=\"right\">–")
        );
        status.watches.list[0].nines = None;
        assert!(!page(&status).contains("data-of=\"right\""));
    }
}
