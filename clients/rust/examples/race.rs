//! Readers in Rust, for clients/race: `race KIND MODE`.

use std::io::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use std::{env, fs, process};

use redis::AsyncTypedCommands as _;
use redis::aio::ConnectionManager;
use redis::cluster_async::ClusterConnection;
use serde::{Deserialize, Serialize};
use tokio::time::sleep;
use unstale_cache::{Cache, Settings};

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Row {
    id: i32,
    version: i32,
    text: String,
}

fn number(name: &str, otherwise: f64) -> f64 {
    env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock")
}

#[derive(Clone)]
enum Reads {
    Plain(ConnectionManager, Duration),
    Client(Cache<ConnectionManager>),
    Cluster(Cache<ClusterConnection>),
}

impl Reads {
    async fn open(kind: &str) -> Self {
        let url = env::var("REDIS_URL").expect("REDIS_URL");
        let ttl = Duration::from_secs_f64(number("RACE_TTL", 3600.0));
        let settings = Settings { ttl, wait: Duration::from_secs(4), ..Settings::default() };
        if env::var("RACE_CLUSTER").is_ok() {
            let client = redis::cluster::ClusterClient::new(vec![url]).expect("a URL");
            return Self::Cluster(Cache::new(client.get_async_connection().await.expect("Redis answers"), settings));
        }
        let client = redis::Client::open(url).expect("a URL");
        let connection = client.get_connection_manager().await.expect("Redis answers");
        match kind {
            "plain" => Self::Plain(connection, ttl),
            _ => Self::Client(Cache::new(connection, settings)),
        }
    }

    async fn get_or_set(&self, key: &str, load: impl AsyncFnOnce() -> Result<Row, String>) -> Result<Row, String> {
        match self {
            Self::Client(cache) => cache.get_or_set(key, load).await,
            Self::Cluster(cache) => cache.get_or_set(key, load).await,
            Self::Plain(connection, ttl) => {
                let mut connection = connection.clone();
                if let Some(found) = connection.get(key).await.map_err(|error| error.to_string())? {
                    return serde_json::from_str(&found).map_err(|error| error.to_string());
                }
                let row = load().await?;
                let text = serde_json::to_string(&row).map_err(|error| error.to_string())?;
                connection.set_ex(key, text, ttl.as_secs().max(1)).await.map_err(|error| error.to_string())?;
                Ok(row)
            }
        }
    }
}

fn row(id: i32, version: i32) -> Row {
    Row { id, version, text: "x".repeat(100) }
}

async fn race(reads: Reads, tasks: usize) {
    let keys = number("RACE_KEYS", 50.0) as i32;
    let log = format!("{}.{}", env::var("RACE_LOG").expect("RACE_LOG"), process::id());
    let log = Arc::new(Mutex::new(std::io::BufWriter::new(fs::File::create(log).expect("a log"))));
    let readers = (0..tasks).map(|_| {
        let (reads, log) = (reads.clone(), Arc::clone(&log));
        tokio::spawn(async move {
            let url = env::var("DATABASE_URL").expect("DATABASE_URL");
            let (database, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await.expect("PostgreSQL answers");
            tokio::spawn(connection);
            loop {
                let id = rand::random_range(0..keys);
                let begun = now().as_nanos();
                let load = async || {
                    let found = database.query_one("select version from items where id = $1", &[&id]).await;
                    let version = found.map_err(|error| error.to_string())?.get(0);
                    let millis = if rand::random::<f64>() < 0.9 { 20.0 } else { 200.0 };
                    sleep(Duration::from_secs_f64(rand::random::<f64>() * millis / 1000.0)).await;
                    Ok(row(id, version))
                };
                match reads.get_or_set(&format!("item:{id}"), load).await {
                    Ok(row) => writeln!(log.lock().expect("not poisoned"), "{begun} {id} {}", row.version).expect("written"),
                    Err(_) => sleep(Duration::from_millis(10)).await,
                }
            }
        })
    });
    let _readers: Vec<_> = readers.collect();
    std::future::pending::<()>().await;
}

async fn cold(reads: Reads, tasks: usize) {
    let loads = Arc::new(AtomicU64::new(0));
    sleep(Duration::from_secs_f64((number("RACE_START", 0.0) - now().as_secs_f64()).max(0.0))).await;
    let readers = (0..tasks).map(|_| {
        let (reads, loads) = (reads.clone(), Arc::clone(&loads));
        tokio::spawn(async move {
            let load = async || {
                loads.fetch_add(1, Ordering::Relaxed);
                sleep(Duration::from_millis(100)).await;
                Ok(row(1, 1))
            };
            reads.get_or_set("cold", load).await.expect("it is loaded")
        })
    });
    for reader in readers.collect::<Vec<_>>() {
        reader.await.expect("it ends");
    }
    println!(r#"{{"loads": {}}}"#, loads.load(Ordering::Relaxed));
}

async fn hot(reads: Reads, tasks: usize) {
    let (loads, took) = (Arc::new(AtomicU64::new(0)), Arc::new(Mutex::new(Vec::new())));
    let end = Instant::now() + Duration::from_secs_f64(number("RACE_SECONDS", 10.0));
    let load = async |loads: &AtomicU64| {
        loads.fetch_add(1, Ordering::Relaxed);
        sleep(Duration::from_millis(20)).await;
        Ok(row(1, 1))
    };
    reads.get_or_set("hot", async || load(&loads).await).await.expect("it is loaded");
    loads.store(0, Ordering::Relaxed);
    let readers = (0..tasks).map(|_| {
        let (reads, loads, took) = (reads.clone(), Arc::clone(&loads), Arc::clone(&took));
        tokio::spawn(async move {
            sleep(Duration::from_secs_f64(rand::random())).await;
            while Instant::now() < end {
                let begun = Instant::now();
                reads.get_or_set("hot", async || load(&loads).await).await.expect("it is loaded");
                took.lock().expect("not poisoned").push(begun.elapsed());
                sleep(Duration::from_secs_f64(0.1 + rand::random::<f64>() * 0.2)).await;
            }
        })
    });
    for reader in readers.collect::<Vec<_>>() {
        reader.await.expect("it ends");
    }
    let mut took = took.lock().expect("not poisoned");
    took.sort();
    let at = |percent: usize| took[took.len() * percent / 100].as_secs_f64() * 1000.0;
    let (reads, loads) = (took.len(), loads.load(Ordering::Relaxed));
    println!(r#"{{"reads": {reads}, "loads": {loads}, "p50_ms": {}, "p99_ms": {}}}"#, at(50), at(99));
}

async fn bench(kinds: &str) {
    let mut rounds = Vec::new();
    for kind in kinds.split(',') {
        rounds.push((kind, Reads::open(kind).await, Vec::new(), Vec::new()));
    }
    for turn in 0..8 {
        for (_, reads, hits, misses) in &mut rounds {
            for miss in [false, true] {
                let (count, salt) = (if miss { 1500_u32 } else { 5000 }, rand::random::<u32>());
                let begun = Instant::now();
                for i in 0..count {
                    let key = if miss { format!("bench:{i}:{salt}") } else { "bench".to_owned() };
                    reads.get_or_set(&key, async || Ok(row(1, 1))).await.expect("it is loaded");
                }
                if turn > 0 {
                    (if miss { &mut *misses } else { &mut *hits }).push(begun.elapsed() / count);
                }
            }
        }
    }
    for (kind, _, mut hits, mut misses) in rounds {
        hits.sort();
        misses.sort();
        let micros = |times: &[Duration]| times[times.len() / 2].as_nanos() as f64 / 1000.0;
        println!(r#"{{"kind": "{kind}", "hit_us": {:.1}, "miss_us": {:.1}}}"#, micros(&hits), micros(&misses));
    }
}

#[tokio::main]
async fn main() {
    let words: Vec<String> = env::args().collect();
    let (kind, mode) = (words[1].as_str(), words[2].as_str());
    let tasks = number("RACE_TASKS", 8.0) as usize;
    match mode {
        "bench" => bench(kind).await,
        "race" => race(Reads::open(kind).await, tasks).await,
        "cold" => cold(Reads::open(kind).await, tasks).await,
        _ => hot(Reads::open(kind).await, tasks).await,
    }
}
