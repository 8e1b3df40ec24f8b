// The client as a program for clients/conformance: `conform.js ioredis | node-redis [buffers | keyv | keyv6 |
// cache-manager]`.
import { createInterface } from "node:readline";
import { Cluster, Redis } from "ioredis";
import { createClient, createCluster } from "redis";
import { createCache } from "cache-manager";
import { Keyv as Keyv6 } from "keyv6";
import { Cache } from "../index.js";
import { createKeyv } from "../keyv.js";

const [library, kind] = process.argv.slice(2);
const say = (words) => process.stdout.write(JSON.stringify(words) + "\n");
const loads = new Map();
let cache;

const load = (id) =>
  new Promise((resolve, reject) => {
    loads.set(id, { resolve, reject });
    say({ event: "load", id });
  });

async function get({ id, key }) {
  try {
    say({ event: "got", id, value: await cache.getOrSet(key, () => load(id)) });
  } catch (error) {
    if (error !== "failed") throw error;
    say({ event: "failed", id });
  }
}

// An application's code: nothing here knows of leases. Neither library stores null or undefined as a value.
const reads = (keyv, ttl) => async (key, load) => {
  let cached = await keyv.get(key);
  if (cached === undefined) {
    cached = { row: await load() };
    await keyv.set(key, cached, ttl * 1000);
  }
  return cached.row;
};

async function open({ redis, cluster, ttl, lease, wait, early }) {
  let client;
  if (library === "ioredis") client = cluster ? new Cluster([redis]) : new Redis(redis);
  else client = cluster ? createCluster({ rootNodes: [{ url: redis }] }) : createClient({ url: redis });
  client.on("error", () => {});
  if (library !== "ioredis") await client.connect();
  const options = { ttl, lease, wait, early, timeout: 0.5 };
  if (kind === "keyv") cache = { getOrSet: reads(createKeyv(client, options), ttl) };
  else if (kind === "keyv6") cache = { getOrSet: reads(createKeyv(client, { ...options, Keyv: Keyv6 }), ttl) };
  else if (kind === "cache-manager") cache = { getOrSet: reads(createCache({ stores: [createKeyv(client, options)] }), ttl) };
  else if (kind === "buffers") cache = new Cache(client, { ...options, buffers: true, decode: (bytes) => JSON.parse(bytes.toString()) });
  else cache = new Cache(client, options);
  say({ event: "ready" });
}

createInterface({ input: process.stdin })
  .on("line", (line) => {
    const words = JSON.parse(line);
    if (words.do === "open") open(words);
    else if (words.do === "get") get(words);
    else if (words.do === "loaded") loads.get(words.id).resolve(words.value);
    else loads.get(words.id).reject("failed");
  })
  .on("close", () => process.exit());
