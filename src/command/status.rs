//! `unstale status`: what the status page shows, in a terminal, from a running listener's
//! `/status.json`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use axum::body::{Body, to_bytes};
use axum::http::{Request, StatusCode, Uri, header};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::cli;
use crate::config::Config;
use crate::status::{SCHEMA, Status, terminal};
use crate::visible;

/// For the connection and the answer. A listener answers within milliseconds.
const PATIENCE: Duration = Duration::from_secs(5);
/// No document of a listener is as large (src/status.rs).
const MOST_BYTES: usize = 2 << 20;

/// Prints it.
///
/// # Errors
/// If no listener answers, or something else does.
pub async fn run(config: &Config, args: &cli::Status) -> anyhow::Result<()> {
    let url = match (&args.url, config.http.listen) {
        (Some(url), _) => url.clone(),
        (None, Some(address)) => format!("http://{}/", reachable(address)),
        (None, None) => bail!(
            "http.listen is not set, so that no listener of this configuration answers; set it, \
             as in UNSTALE_HTTP__LISTEN=127.0.0.1:9464, or name one with --url"
        ),
    };
    let (authority, path) = parts(&url)?;
    let asked = timeout(PATIENCE, ask(&authority, &path))
        .await
        .unwrap_or_else(|_| Err(anyhow!("no answer within {PATIENCE:?}")));
    let document = asked.with_context(|| {
        let listener = visible::line(&authority);
        format!("no listener answers at {listener}; start it (`unstale run`) with http.listen = \"{listener}\", or name another with --url")
    })?;
    let document = String::from_utf8(document)
        .context("/status.json is not UTF-8; is it a listener that answers?")?;
    let value: Value = serde_json::from_str(&document)
        .context("/status.json is not JSON; is it a listener that answers?")?;
    let schema = value["schema"].as_u64();
    if schema != Some(SCHEMA.into()) {
        let found = schema.map_or_else(|| "none".to_owned(), |schema| schema.to_string());
        bail!(
            "the listener's status has schema {found}, and this program reads {SCHEMA}; use the `unstale` of the listener's version"
        );
    }
    if args.json {
        return super::print(visible::json(&format!("{value:#}\n")).as_bytes());
    }
    let status: Status = serde_json::from_value(value)
        .context("/status.json lacks something; is it a listener that answers?")?;
    super::print(terminal::text(&status).as_bytes())
}

/// Where a listener that answers everywhere answers here.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// Host with port, and the path of the document. What is wrong with a URL is said without it: it
/// may hold a password.
fn parts(url: &str) -> anyhow::Result<(String, String)> {
    let wrong = "--url: write it as in http://127.0.0.1:9464/; there is neither TLS nor a password";
    let uri: Uri = url.parse().map_err(|_| anyhow!(wrong))?;
    let authority = uri.authority().filter(|authority| !authority.as_str().contains('@'));
    let (Some("http"), Some(authority), None) = (uri.scheme_str(), authority, uri.query()) else {
        bail!(wrong)
    };
    let path = uri.path().trim_end_matches("status.json").trim_end_matches('/');
    let port = uri.port_u16().unwrap_or(80);
    Ok((format!("{}:{port}", authority.host()), format!("{path}/status.json")))
}

async fn ask(authority: &str, path: &str) -> anyhow::Result<Vec<u8>> {
    let stream = TcpStream::connect(authority).await?;
    let (mut sender, connection) = http1::handshake::<_, Body>(TokioIo::new(stream)).await?;
    let asking = async {
        let request = Request::get(path)
            .header(header::HOST, authority)
            .header(header::CONNECTION, "close")
            .body(Body::empty())?;
        let answer = sender.send_request(request).await?;
        match answer.status() {
            StatusCode::OK => {
                Ok(to_bytes(Body::new(answer.into_body()), MOST_BYTES).await?.to_vec())
            }
            StatusCode::NOT_FOUND => {
                bail!("it has no /status.json: it is older than this program, or no listener")
            }
            status => bail!("it answered {status}"),
        }
    };
    tokio::pin!(asking);
    tokio::select! {
        biased;
        answer = &mut asking => answer,
        ended = connection => {
            ended?;
            asking.await // what it has sent is there
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_may_lack_what_follows_from_it_and_must_not_have_a_password() {
        let read = |url| parts(url).ok();
        let read_as = |authority: &str, path: &str| Some((authority.to_owned(), path.to_owned()));
        assert_eq!(read("http://127.0.0.1:9464"), read_as("127.0.0.1:9464", "/status.json"));
        assert_eq!(read("http://h/"), read_as("h:80", "/status.json"));
        assert_eq!(read("http://[::1]:9464/status.json"), read_as("[::1]:9464", "/status.json"));
        assert_eq!(read("http://h:1/listeners/eu1/"), read_as("h:1", "/listeners/eu1/status.json"));
        for url in [
            "https://h:1/",
            "h:1",
            "http://u:hunter2@h:1/",
            "http://h:1/?x=hunter2",
            "http://",
            "\u{1b}[31m",
        ] {
            let error = parts(url).expect_err(url).to_string();
            assert!(
                error.contains("as in http://127.0.0.1:9464/") && !error.contains("hunter2"),
                "{error}"
            );
        }
    }

    #[test]
    fn a_listener_that_answers_everywhere_is_asked_here() {
        let here = |address: &str| reachable(address.parse().expect("an address")).to_string();
        assert_eq!(
            [here("0.0.0.0:1"), here("[::]:1"), here("10.0.0.1:1")],
            ["127.0.0.1:1", "[::1]:1", "10.0.0.1:1"]
        );
    }
}
