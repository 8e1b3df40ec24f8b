//! The client as a program for clients/conformance.

use std::collections::HashMap;
use std::io::{Write as _, stdout};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use redis::aio::ConnectionLike;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines, Stdin, stdin};
use tokio::sync::oneshot;
use unstale_cache::{Cache, Settings};

type Loads = Arc<Mutex<HashMap<u64, oneshot::Sender<Value>>>>;

fn say(event: &Value) {
    let mut out = stdout().lock();
    writeln!(out, "{event}").expect("the suite reads");
    out.flush().expect("the suite reads");
}

/// Answers the suite until it ends.
async fn serve<C: ConnectionLike + Clone + Send + Sync + 'static>(cache: Cache<C>, mut lines: Lines<BufReader<Stdin>>) {
    say(&json!({"event": "ready"}));
    let loads = Loads::default();
    while let Some(line) = lines.next_line().await.expect("the suite writes") {
        let words: Value = serde_json::from_str(&line).expect("JSON");
        let id = words["id"].as_u64().unwrap_or_default();
        if words["do"] == "get" {
            let key = words["key"].as_str().unwrap_or_default().to_owned();
            tokio::spawn(get(cache.clone(), Arc::clone(&loads), id, key));
        } else if let Some(answer) = loads.lock().expect("not poisoned").remove(&id) {
            let _ = answer.send(words);
        }
    }
}

async fn get<C: ConnectionLike + Clone + Send + Sync + 'static>(cache: Cache<C>, loads: Loads, id: u64, key: String) {
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

#[tokio::main]
async fn main() {
    let mut lines = BufReader::new(stdin()).lines();
    let line = lines.next_line().await.expect("the suite writes").expect("it opens");
    let words: Value = serde_json::from_str(&line).expect("JSON");
    let url = words["redis"].as_str().expect("a URL");
    let seconds = |name: &str| Duration::from_secs_f64(words[name].as_f64().expect("seconds"));
    let (ttl, lease, wait) = (seconds("ttl"), seconds("lease"), seconds("wait"));
    let early = words["early"].as_f64().expect("a number");
    let settings = Settings { ttl, lease, wait, early, ..Settings::default() };
    if words["cluster"] == true {
        let client = redis::cluster::ClusterClient::new(vec![url]).expect("a URL");
        serve(Cache::new(client.get_async_connection().await.expect("Redis answers"), settings), lines).await;
    } else {
        let client = redis::Client::open(url).expect("a URL");
        serve(Cache::new(client.get_connection_manager().await.expect("Redis answers"), settings), lines).await;
    }
}
