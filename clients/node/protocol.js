// The protocol of docs/readers.md: what is asked of Redis, and what its answers mean. A failure of Redis rejects here, and
// whoever calls goes to the database.
import { randomBytes } from "node:crypto";

export const PREFIX = "unstale:lease:";
// A lease is this long; one that carries the previous value goes on with `=` and the value.
export const LENGTH = PREFIX.length + 32;

const TAKE_EARLY = `local v = redis.call('get', KEYS[1])
if v and string.sub(v, 1, 14) ~= 'unstale:lease:' then
  return redis.call('set', KEYS[1], ARGV[1] .. '=' .. v, 'keepttl')
end`;
const FILL = `if redis.call('getrange', KEYS[1], 0, 45) == ARGV[1] then
  return redis.call('set', KEYS[1], ARGV[2], 'px', ARGV[3])
end`;
const GIVE_UP = `local v = redis.call('get', KEYS[1])
if v and string.sub(v, 1, 46) == ARGV[1] then
  if #v == 46 then return redis.call('del', KEYS[1]) end
  return redis.call('set', KEYS[1], string.sub(v, 48), 'keepttl')
end`;

// One hit in so many asks for the key's remaining time along with its value: a hot key has hits enough.
const SAMPLE = 16;
// How long a load is believed to take before this process has seen one.
const FIRST_GUESS_MS = 50;

const millis = (seconds) => Math.max(1, Math.floor(seconds * 1000));
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const patience = (ms) => new Promise((resolve) => setTimeout(resolve, ms).unref());
const unknown = (error) => /syntax/i.test(error?.message ?? "");

export const isLease = (reply) =>
  (typeof reply === "string" ? reply : reply.toString("latin1", 0, PREFIX.length)).startsWith(PREFIX);

// ioredis and node-redis, single servers and clusters, as one function: (key, ...words) => reply.
function commands(client, buffers) {
  if (typeof client.call === "function") {
    const call = buffers ? client.callBuffer : client.call;
    return (key, ...words) => call.apply(client, words.map((word) => (typeof word === "number" ? String(word) : word)));
  }
  const mapped = buffers ? client.withTypeMapping({ 36: Buffer }) : client; // 36 is `$`, a bulk string
  const text = (words) => words.map((word) => (typeof word === "number" ? String(word) : word));
  if (Array.isArray(client.masters)) return (key, ...words) => mapped.sendCommand(key, false, text(words));
  return (key, ...words) => mapped.sendCommand(text(words));
}

export class Protocol {
  counters = { hits: 0, misses: 0, waits: 0, timeouts: 0, early: 0, fills: 0, refused: 0, errors: 0 };
  // This process' loads by lease: its other readers wait for them without asking Redis again and again.
  loading = new Map();
  setNxGet = true; // until the server says that it knows no such thing
  setIfeq = true;
  loadMs = FIRST_GUESS_MS;

  constructor(redis, options = {}) {
    const { ttl = 3600, lease = 5, wait = 1, jitter = 0.1, negativeTtl, early = 1, timeout = 1, buffers = false } = options;
    Object.assign(this, { ttl, lease, wait, jitter, negativeTtl, early, timeout });
    this.command = commands(redis, buffers);
  }

  newLease() {
    // Never one for two fills: the first could store what it loaded before a delete under the second's lease.
    return PREFIX + randomBytes(16).toString("hex");
  }

  // Both clients wait for a server that is away: a read must not.
  async ask(...commands) {
    let timer;
    const late = new Promise((_, reject) => {
      timer = setTimeout(() => reject(new Error("Redis does not answer")), this.timeout * 1000);
    });
    try {
      return await Promise.race([Promise.all(commands.map((words) => this.command(words.key ?? words[1], ...words))), late]);
    } finally {
      clearTimeout(timer);
    }
  }

  // null if the lease is ours now, else what is there. A retry by the client library finds our own.
  async take(key, lease) {
    const ms = millis(this.lease);
    const ours = (reply) => reply === null || String(reply) === lease;
    if (this.setNxGet) {
      try {
        const [reply] = await this.ask(["SET", key, lease, "NX", "GET", "PX", ms]);
        return ours(reply) ? null : reply;
      } catch (error) {
        if (!unknown(error)) throw error; // Redis 6.2
        this.setNxGet = false;
      }
    }
    for (;;) {
      const [taken, reply] = await this.ask(["SET", key, lease, "NX", "PX", ms], ["GET", key]);
      if (taken !== null || String(reply) === lease) return null;
      if (reply !== null) return reply; // else it was deleted between the two
    }
  }

  // Whether it was stored: only if the key has held this lease all the time.
  async fill(key, lease, payload, ttl, early = false) {
    const ms = millis(ttl * (1 - this.jitter * Math.random()));
    let stored;
    if (this.setIfeq && !early) {
      try {
        [stored] = await this.ask(["SET", key, payload, "IFEQ", lease, "PX", ms]);
      } catch (error) {
        if (!unknown(error)) throw error; // before Redis 8.4, Valkey 8.1
        this.setIfeq = false;
      }
    }
    if (stored === undefined) [stored] = await this.ask(this.script(FILL, key, lease, payload, ms));
    this.counters[stored === null ? "refused" : "fills"] += 1;
    return stored !== null;
  }

  // It expires by itself if this fails.
  async giveUp(key, lease) {
    await this.ask(this.script(GIVE_UP, key, lease)).catch(() => this.failed());
  }

  failed() {
    this.counters.errors += 1;
    return [null];
  }

  script(text, key, ...words) {
    const command = ["EVAL", text, 1, key, ...words];
    return Object.assign(command, { key });
  }

  // The value or lease, and the lease of a load that should begin before the value expires.
  async look(key) {
    if (!this.early || Math.random() * SAMPLE >= 1) return [(await this.ask(["GET", key]))[0], null];
    const [reply, leftMs] = await this.ask(["GET", key], ["PTTL", key]);
    // XFetch (Vattani et al. 2015), for a reader of which one hit in SAMPLE draws.
    const drawn = this.loadMs * this.early * (Math.log(SAMPLE) - Math.log(1 - Math.random()));
    const ahead = Math.min(drawn, this.ttl * 100); // a tenth of it: a load as slow as the ttl is long would never end
    if (reply === null || isLease(reply) || leftMs < 0 || leftMs > ahead) return [reply, null];
    const lease = this.newLease();
    const [taken] = await this.ask(this.script(TAKE_EARLY, key, lease)).catch(() => this.failed());
    return [reply, taken === null ? null : lease];
  }

  // { lease, early } to fill under, or { found }, or {} after waiting for too long.
  async find(key) {
    let [reply, lease] = await this.look(key);
    if (lease) {
      this.counters.early += 1;
      return { lease, early: true };
    }
    let deadline;
    for (let pause = 2; ; reply = (await this.ask(["GET", key]))[0]) {
      if (reply === null) {
        lease = this.newLease();
        reply = await this.take(key, lease);
        if (reply === null) {
          this.counters.misses += 1;
          return { lease, early: false };
        }
      }
      const fresh = !isLease(reply);
      if (fresh || reply.length > LENGTH) {
        this.counters.hits += 1;
        return { found: fresh ? reply : reply.slice(LENGTH + 1) };
      }
      const now = performance.now();
      if (deadline === undefined) {
        this.counters.waits += 1;
        deadline = now + this.wait * 1000;
      }
      if (now >= deadline) {
        this.counters.timeouts += 1;
        return {};
      }
      const load = this.loading.get(String(reply));
      if (load) {
        const payload = await Promise.race([load, patience(deadline - now)]);
        if (payload !== undefined) return { found: payload };
      } else {
        await sleep(Math.min(pause * (0.5 + Math.random()), deadline - now));
        pause = Math.min(pause * 1.5, 50);
      }
    }
  }

  took(ms) {
    this.loadMs += 0.2 * (ms - this.loadMs);
  }
}
