// The client as a program for clients/conformance: `conform.js ioredis | node-redis [buffers]`.
import { createInterface } from "node:readline";
import { Redis } from "ioredis";
import { createClient } from "redis";
import { Cache } from "../index.js";

const [library, buffers] = process.argv.slice(2);
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

async function open({ redis, ttl, lease, wait, early }) {
  const client = library === "ioredis" ? new Redis(redis) : createClient({ url: redis });
  client.on("error", () => {});
  if (library !== "ioredis") await client.connect();
  const decode = buffers && ((payload) => JSON.parse(payload.toString()));
  cache = new Cache(client, { ttl, lease, wait, early, timeout: 0.5, ...(buffers && { buffers: true, decode }) });
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
