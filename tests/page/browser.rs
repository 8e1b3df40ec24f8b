//! The page in headless Chromium: `./dev page` installs it. Without it these tests say so, and are
//! skipped.
//!
//! Chromium is shown a page that the library writes, by a server of ours that then answers with
//! other documents, so that what the script does is seen in what becomes of the page.
//! `target/page/` has the screenshots, for people.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use unstale::scratch::guard::Guard;
use unstale::status::{Status, page};

use super::{HOSTILE, document};
use crate::support::wait::until;
use crate::support::world::World;

fn chromium() -> Option<&'static str> {
    let is_there = |name: &&str| {
        Command::new(name)
            .arg("--version")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok()
    };
    let found = ["chromium", "chromium-browser", "google-chrome"].into_iter().find(is_there);
    if found.is_none() {
        eprintln!("skipped: there is no chromium; `./dev page` installs it");
    }
    found
}

/// Runs it to its end. Returns what it prints, and what it logs.
fn browse(chromium: &str, url: &str, options: &[&str]) -> (String, String) {
    let profile = Guard::new().expect("a directory");
    let output = Command::new("timeout")
        .args([
            "120",
            chromium,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--no-first-run",
            "--enable-logging=stderr",
        ])
        .arg(format!("--user-data-dir={}", profile.directory().display()))
        .args(options)
        .arg(url)
        .output()
        .expect("it runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}", text(&output.stderr));
    (text(&output.stdout), text(&output.stderr))
}

/// Answers `/` with the page of `first`, later that of `then`, with the policy of the real one; and
/// `/status.json` with `then`, or not at all.
fn serve(first: &Status, then: Option<&Status>) -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let pages = Arc::new([page::page(first), page::page(then.unwrap_or(first))]);
    let json = then.map(|then| serde_json::to_string(then).expect("JSON"));
    std::thread::spawn(move || {
        let mut asked = 0;
        for mut stream in listener.incoming().map_while(Result::ok) {
            let mut request = String::new();
            let mut reader = BufReader::new(stream.try_clone().expect("a socket"));
            while reader.read_line(&mut request).is_ok_and(|read| read > 2) {}
            let (kind, body) = if request.starts_with("GET / ") {
                asked += 1;
                ("text/html; charset=utf-8", &pages[usize::from(asked > 1)])
            } else {
                let Some(json) = &json else { continue };
                ("application/json", json)
            };
            let policy = page::CONTENT_SECURITY_POLICY.as_str();
            let length = body.len();
            let head = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Security-Policy: {policy}\r\n\
                 Content-Length: {length}\r\nConnection: close"
            );
            let _ = write!(stream, "{head}\r\n\r\n{body}"); // a client that has gone is no fault
        }
    });
    port
}

/// A real one, and the same with texts that mean harm in every place.
async fn documents() -> (Status, Status) {
    let world = World::new().await;
    world.users(30).await;
    world.execute("create table visits (id int); select unstale.watch('visits', array['visits:{id}'], delivery => 'log')").await;
    let mut daemon = world.daemon().impatient().in_one_session().start();
    daemon.ready().await;
    world.execute("update users set name = 'x', updated_at = clock_timestamp()").await;
    let whole = until("all of it is there", async || {
        let shown = document(&daemon);
        let is_there = shown["watches"]["list"][0]["changes"] == 30
            && shown["gaps"][0]["lasted_seconds"].is_number();
        (is_there
            && shown["findings"].is_object()
            && shown["freshness"]["samples"].as_array()?.len() > 20)
            .then_some(shown)
    })
    .await;
    let calm: Status = serde_json::from_value(whole).expect("a document");
    let mut hostile = calm.clone();
    (hostile.ready, hostile.why_not) = (false, Some(HOSTILE.to_owned()));
    hostile.state = "catching up".to_owned();
    hostile.instance = HOSTILE.to_owned();
    hostile.watches.list[0].table = HOSTILE.to_owned();
    hostile.watches.list[0].keys.push(HOSTILE.repeat(3));
    hostile.freshness.samples = vec![(150.0, 0.01)];
    hostile.freshness.p50_seconds = Some(0.0123);
    let finding = unstale::finding::Finding::error(
        HOSTILE,
        HOSTILE,
        format!("select unstale.watch('{HOSTILE}');"),
    );
    hostile.findings.as_mut().expect("they are known").list = vec![finding.clone(), finding];
    (calm, hostile)
}

#[tokio::test]
async fn the_script_keeps_the_page_as_the_document_says_and_nothing_else_runs() {
    let Some(chromium) = chromium() else { return };
    let (calm, hostile) = documents().await;
    let url = format!("http://127.0.0.1:{}/", serve(&calm, Some(&hostile)));
    let (dom, log) = browse(chromium, &url, &["--virtual-time-budget=5000", "--dump-dom"]);
    assert!(
        dom.contains("d=\"M150.0 60.0h0\"") && dom.contains("<span id=\"p50\">12 ms</span>"),
        "the chart:\n{dom}\n{log}"
    );
    assert!(
        dom.contains("<b>not ready</b>") && dom.contains("&lt;script&gt;document.title"),
        "the rest:\n{dom}\n{log}"
    );
    assert!(
        dom.contains("<title>○ &lt;script&gt;document.title"),
        "it says so in the title, and nobody's script ran:\n{dom}"
    );
    for complaint in ["Refused to", "violates", "Uncaught"] {
        assert!(!log.contains(complaint), "{log}");
    }
}

#[tokio::test]
async fn a_listener_that_does_not_answer_any_more_is_said() {
    let Some(chromium) = chromium() else { return };
    let (calm, _) = documents().await;
    let url = format!("http://127.0.0.1:{}/", serve(&calm, None));
    let (dom, log) = browse(chromium, &url, &["--virtual-time-budget=5000", "--dump-dom"]);
    assert!(
        dom.contains("class=\"away\"") && dom.contains("The listener does not answer."),
        "{dom}\n{log}"
    );
}

#[tokio::test]
async fn it_is_drawn_light_and_dark_and_for_a_phone() {
    let Some(chromium) = chromium() else { return };
    let (calm, hostile) = documents().await;
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("target").join("page");
    std::fs::create_dir_all(&folder).expect("a folder");
    let draw = |name: &str, status: &Status, size: &str, scheme: u8| -> (PathBuf, Vec<u8>) {
        let path = folder.join(format!("{name}.png"));
        let _ = std::fs::remove_file(&path); // of an earlier run
        let url = format!("http://127.0.0.1:{}/", serve(status, Some(status)));
        let options = [
            format!("--screenshot={}", path.display()),
            format!("--window-size={size}"),
            format!("--blink-settings=preferredColorScheme={scheme}"),
        ];
        browse(chromium, &url, &options.each_ref().map(String::as_str));
        let picture = std::fs::read(&path).expect("a screenshot");
        (path, picture)
    };
    let pictures = [
        draw("light", &calm, "1000,1100", 1),
        draw("dark", &calm, "1000,1100", 0),
        draw("phone", &hostile, "360,2000", 1),
        draw("phone-dark", &hostile, "360,2000", 0),
    ];
    for (path, picture) in &pictures {
        assert!(picture.starts_with(b"\x89PNG") && picture.len() > 10_000, "{}", path.display());
    }
    assert!(pictures[0].1 != pictures[1].1 && pictures[2].1 != pictures[3].1, "dark is not light");
}
