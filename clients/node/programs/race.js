// Readers in Node, for clients/race: `race.js KIND MODE`.
import { createWriteStream } from "node:fs";
import { createCache } from "cache-manager";
import { Cluster, Redis } from "ioredis";
import pg from "pg";
import { createClient, createCluster } from "redis";
import { Cache } from "../index.js";
import { createKeyv } from "../keyv.js";

const [kind, mode] = process.argv.slice(2);
const { DATABASE_URL, REDIS_URL, RACE_CLUSTER, RACE_LOG } = process.env;
const number = (name, otherwise) => Number(process.env[name] ?? otherwise);
const [TASKS, KEYS, TTL] = [number("RACE_TASKS", 8), number("RACE_KEYS", 50), number("RACE_TTL", 3600)];
const LEASE_SECONDS = 5;
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const report = (words) => console.log(JSON.stringify(words));

// Cache-aside as everybody writes it.
class Plain {
  constructor(redis) {
    this.redis = redis;
  }
  async getOrSet(key, load) {
    const found = await this.redis.get(key);
    if (found !== null) return JSON.parse(found);
    const value = await load();
    if (this.redis.call) await this.redis.set(key, JSON.stringify(value), "EX", Math.max(1, TTL));
    else await this.redis.set(key, JSON.stringify(value), { EX: Math.max(1, TTL) });
    return value;
  }
}

async function opened(kind) {
  let redis;
  if (kind.includes("node-redis")) redis = RACE_CLUSTER ? createCluster({ rootNodes: [{ url: REDIS_URL }] }) : createClient({ url: REDIS_URL });
  else redis = RACE_CLUSTER ? new Cluster([REDIS_URL]) : new Redis(REDIS_URL);
  redis.on("error", () => {});
  if (redis.connect && kind.includes("node-redis")) await redis.connect();
  const options = { ttl: TTL, lease: LEASE_SECONDS, wait: 4, timeout: 4 };
  if (kind.startsWith("plain")) return new Plain(redis);
  if (kind.startsWith("keyv")) {
    const keyv = createKeyv(redis, options);
    return {
      async getOrSet(key, load) {
        let value = await keyv.get(key);
        if (value === undefined) {
          value = await load();
          await keyv.set(key, value, TTL * 1000);
        }
        return value;
      },
      counters: keyv.counters,
    };
  }
  if (kind.startsWith("cache-manager")) {
    const keyv = createKeyv(redis, options);
    const manager = createCache({ stores: [keyv] });
    return { getOrSet: (key, load) => manager.wrap(key, load, TTL * 1000), counters: keyv.counters };
  }
  return new Cache(redis, options);
}

const pause = () => sleep(Math.random() < 0.9 ? Math.random() * 20 : Math.random() * 200);

async function race(cache) {
  const log = createWriteStream(`${RACE_LOG}.${process.pid}`);
  const read = async () => {
    const database = new pg.Client(DATABASE_URL);
    await database.connect();
    for (;;) {
      const id = Math.floor(Math.random() * KEYS);
      const begun = `${Date.now()}000000`;
      try {
        const value = await cache.getOrSet(`item:${id}`, async () => {
          const { rows } = await database.query({ name: "q", text: "select version from items where id = $1", values: [id] });
          await pause();
          return { id, version: rows[0].version, text: "x".repeat(100) };
        });
        log.write(`${begun} ${id} ${value.version}\n`);
      } catch (error) {
        if (!(cache instanceof Plain)) throw error;
        await sleep(10);
      }
    }
  };
  setInterval(() => cache.counters?.unleased && process.stderr.write(`unleased: ${cache.counters.unleased}\n`), 5000);
  await Promise.all(Array.from({ length: TASKS }, read));
}

async function cold(cache) {
  let loads = 0;
  await sleep(Math.max(0, number("RACE_START") * 1000 - Date.now()));
  const load = async () => {
    loads += 1;
    await sleep(100);
    return { id: 1 };
  };
  await Promise.all(Array.from({ length: TASKS }, () => cache.getOrSet("cold", load)));
  report({ loads });
}

async function hot(cache) {
  let loads = 0;
  const took = [];
  const load = async () => {
    loads += 1;
    await sleep(20);
    return { id: 1 };
  };
  await cache.getOrSet("hot", load);
  loads = 0;
  const end = performance.now() + number("RACE_SECONDS") * 1000;
  const read = async () => {
    await sleep(Math.random() * 1000);
    while (performance.now() < end) {
      const begun = performance.now();
      await cache.getOrSet("hot", load);
      took.push(performance.now() - begun);
      await sleep(100 + Math.random() * 200);
    }
  };
  await Promise.all(Array.from({ length: TASKS }, read));
  took.sort((a, b) => a - b);
  const at = (share) => took[Math.floor(took.length * share)];
  report({ reads: took.length, loads, p50_ms: at(0.5), p99_ms: at(0.99) });
}

async function bench(kinds) {
  const caches = new Map();
  for (const kind of kinds) caches.set(kind, { cache: await opened(kind), hits: [], misses: [] });
  const value = { id: 1, text: "x".repeat(100) };
  const median = (times) => Math.round(times.sort((a, b) => a - b)[times.length >> 1] * 10) / 10;
  for (let turn = 0; turn < 8; turn += 1) {
    for (const { cache, hits, misses } of caches.values()) {
      for (const [times, count, miss] of [[hits, 5000, 0], [misses, 1500, Math.random()]]) {
        const begun = performance.now();
        for (let i = 0; i < count; i += 1) await cache.getOrSet(miss ? `bench:${i}:${miss}` : "bench", async () => value);
        if (turn) times.push(((performance.now() - begun) / count) * 1000);
      }
    }
  }
  for (const [kind, { hits, misses }] of caches) report({ kind, hit_us: median(hits), miss_us: median(misses) });
}

if (mode === "bench") await bench(kind.split(","));
else await { race, cold, hot }[mode](await opened(kind));
process.exit();
