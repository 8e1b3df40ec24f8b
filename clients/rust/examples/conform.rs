//! The client as a program for clients/conformance.

use std::collections::HashMap;
use std::io::{Write as _, stdout};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader, stdin};
use tokio::sync::oneshot;
use unstale_cache::{Cache, Settings};

type Loads = Arc<Mutex<HashMap<u64, oneshot::Sender<Value>>>>;

fn say(event: &Value) {
    let mut out = stdout().lock();
    writeln!(out, "{event}").expect("the suite reads");
    out.flush().expect("the suite reads");
}

async fn get(cache: Cache<Reconnecting>, loads: Loads, id: u64, key: String) {
    let load = async || {
        let (answer, answered) = oneshot::channel();
        loads.lock().expect("not poisoned").insert(id, answer);
        say(&json!({"event": "load", "id": id}));
        let words = answered.await.expect("the suite answers");
        words.get("value").cloned().ok_or("failed")
    };
    match cache.get_or_set(&key, load).await {
        Ok(value) => say(&json!({"event": "got", "id": id, "value": value})),
        Err(_) => say(&json!({"event": "failed", "id": id})),
    }
}

type Reconnecting = redis::aio::ConnectionManager;

async fn open(words: &Value) -> Cache<Reconnecting> {
    let client = redis::Client::open(words["redis"].as_str().expect("a URL")).expect("a URL");
    let _: MultiplexedConnection = client.get_multiplexed_async_connection().await.expect("Redis answers");
    let seconds = |name: &str| Duration::from_secs_f64(words[name].as_f64().expect("seconds"));
    let (ttl, lease, wait) = (seconds("ttl"), seconds("lease"), seconds("wait"));
    let early = words["early"].as_f64().expect("a number");
    let connection = client.get_connection_manager().await.expect("Redis answers");
    Cache::new(connection, Settings { ttl, lease, wait, early, ..Settings::default() })
}

#[tokio::main]
async fn main() {
    let (loads, mut cache) = (Loads::default(), None);
    let mut lines = BufReader::new(stdin()).lines();
    while let Some(line) = lines.next_line().await.expect("the suite writes") {
        let words: Value = serde_json::from_str(&line).expect("JSON");
        let id = words["id"].as_u64().unwrap_or_default();
        match (words["do"].as_str(), &cache) {
            (Some("open"), _) => {
                cache = Some(open(&words).await);
                say(&json!({"event": "ready"}));
            }
            (Some("get"), Some(cache)) => {
                tokio::spawn(get(cache.clone(), Arc::clone(&loads), id, words["key"].as_str().unwrap_or_default().to_owned()));
            }
            _ => {
                if let Some(answer) = loads.lock().expect("not poisoned").remove(&id) {
                    let _ = answer.send(words);
                }
            }
        }
    }
}
