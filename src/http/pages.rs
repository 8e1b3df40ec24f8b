//! `/` and `/status.json`: how the listener is, for people and their programs.
//!
//! Must hold: whatever is asked for, and however often, the document is made and written at most
//! twice a second, because the listener's thread does it. Nothing here changes anything, so that
//! whose page asks does not matter; nobody's page may show it or read it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderName, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::time::Instant;

use crate::status::{Status, page};
use crate::visible;

/// Makes the document.
pub type Shown = Arc<dyn Fn() -> Status + Send + Sync>;

/// Whoever asks within this time after another gets what that one got.
const FRESH: Duration = Duration::from_millis(500);

/// The document, as it was written last.
#[derive(Clone)]
struct Written {
    shown: Shown,
    last: Arc<Mutex<Option<Last>>>,
}

struct Last {
    at: Instant,
    json: Arc<str>,
    page: Arc<str>,
}

pub(super) fn router(shown: Shown) -> Router {
    let written = Written { shown, last: Arc::default() };
    Router::new().route("/", get(html)).route("/status.json", get(json)).with_state(written)
}

impl Written {
    fn now<T>(&self, part: impl FnOnce(&Last) -> T) -> T {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner); // at worst it is written again
        match &mut *last {
            Some(last) if last.at.elapsed() < FRESH => part(last),
            last => part(last.insert(self.write())),
        }
    }

    fn write(&self) -> Last {
        let status = (self.shown)();
        let json = serde_json::to_string(&status).unwrap_or_default() + "\n"; // it has no keys but texts, and no writer that fails
        Last {
            at: Instant::now(),
            json: visible::json(&json).into(),
            page: page::page(&status).into(),
        }
    }
}

/// Neither kept, nor guessed at, nor shown within or read by somebody else's page.
const HEADERS: [(HeaderName, &str); 4] = [
    (header::CACHE_CONTROL, "no-store"),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];

async fn html(State(written): State<Written>) -> impl IntoResponse {
    let kind = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, &page::CONTENT_SECURITY_POLICY),
    ];
    (HEADERS, kind, written.now(|last| last.page.to_string()))
}

async fn json(State(written): State<Written>) -> impl IntoResponse {
    (
        HEADERS,
        [(header::CONTENT_TYPE, "application/json")],
        written.now(|last| last.json.to_string()),
    )
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::status::tests::hostile;

    #[tokio::test(start_paused = true)]
    async fn it_is_written_twice_a_second_however_often_it_is_asked_for() {
        let made = Arc::new(AtomicU64::new(0));
        let counter = made.clone();
        let shown: Shown = Arc::new(move || {
            counter.fetch_add(1, Ordering::Relaxed);
            hostile()
        });
        let written = Written { shown, last: Arc::default() };
        for _ in 0..1_000 {
            assert!(!written.now(|last| last.json.is_empty() || last.page.is_empty()));
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        assert_eq!(made.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn texts_of_others_are_exact_in_json_and_change_no_terminal() {
        let written = Written { shown: Arc::new(hostile), last: Arc::default() }.write();
        assert!(
            !written.json.trim_end().contains(char::is_control)
                && !written.json.contains('\u{202e}'),
            "{}",
            written.json
        );
        assert_eq!(serde_json::from_str::<Status>(&written.json).expect("JSON"), hostile());
    }
}
