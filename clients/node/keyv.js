// Keyv and cache-manager over Redis with leases, for applications that keep their reads as they are. A `get` that finds nothing
// takes a lease, which is remembered for the asynchronous context and the key; the `set` that follows is a fill, and is refused
// if the key was deleted in between. A `set` that no miss came before is written as it is, or refused with `strict`.
import { AsyncLocalStorage } from "node:async_hooks";
import { Keyv as Keyv5 } from "keyv";
import { LENGTH, Protocol, isLease } from "./protocol.js";

// A miss that no `set` followed is forgotten after this long. Until then a late `set` is refused.
const REMEMBERED_MS = 60_000;
const FOR_EVER_SECONDS = 10 * 365 * 86400;

// Maps of key to miss, never changed once another call can see them: a task sees its own misses and those of before.
const context = new AsyncLocalStorage();

class Store extends Protocol {
  constructor(redis, { strict = false, clear, ...options }) {
    super(redis, { jitter: 0, wait: 0.2, ...options });
    Object.assign(this, { strict, clearAll: clear });
    this.counters.unleased = 0;
    // All misses that no `set` followed yet, oldest first, by key: for a `set` whose context has not seen its miss, as after
    // `Promise.all([keyv.get(a), keyv.get(b)])`.
    this.outstanding = new Map();
    this.all = new Set();
  }

  // Called before Keyv's first `await`, so that the caller's later `set` sees it.
  enter(keys) {
    const now = performance.now();
    const misses = new Map();
    for (const [key, miss] of context.getStore() ?? []) {
      const open = miss.lease || !miss.over; // an answered miss stays: its own `set` may still come
      if (open && now - miss.at < REMEMBERED_MS) misses.set(key, miss);
    }
    // Which name the store will be asked for is known only below: Keyv prefixes it.
    const asked = { at: now, store: this, keys, over: false };
    misses.set(asked, asked);
    context.enterWith(misses);
    return asked;
  }

  remember(key, lease, early) {
    const miss = { key, at: performance.now(), lease, early, store: this, over: false };
    const earlier = context.getStore()?.get(key);
    if (earlier?.store === this) this.forget(earlier);
    context.getStore()?.set(key, miss);
    this.all.add(miss);
    const same = this.outstanding.get(key);
    if (same) same.push(miss);
    else this.outstanding.set(key, [miss]);
    for (const oldest of this.all) {
      if (miss.at - oldest.at < REMEMBERED_MS) break;
      this.forget(oldest);
    }
  }

  forget(miss) {
    miss.over = true;
    this.all.delete(miss);
    const others = (this.outstanding.get(miss.key) ?? []).filter((other) => other !== miss);
    if (others.length > 0) this.outstanding.set(miss.key, others);
    else this.outstanding.delete(miss.key);
  }

  // The miss that a `set` answers. Of several that are not of this context, one that may not store: nobody knows whose it is.
  recall(key) {
    let miss = context.getStore()?.get(key);
    if (miss?.store === this) {
      context.getStore().delete(key);
      if (miss.over) miss.lease = undefined; // another task's `set` has answered it
    } else {
      const same = this.outstanding.get(key) ?? [];
      if (same.length > 1) for (const other of same) other.lease = undefined;
      miss = same[0];
    }
    if (miss) this.forget(miss);
    return miss;
  }

  async get(key) {
    let answer = {};
    try {
      answer = await this.find(key);
    } catch {
      this.failed();
    }
    if (answer.found === undefined) this.remember(key, answer.lease, answer.early);
    return answer.found;
  }

  async set(key, value, ttlMs) {
    const seconds = ttlMs ? ttlMs / 1000 : FOR_EVER_SECONDS;
    const miss = this.recall(key);
    if (miss) {
      this.took(performance.now() - miss.at);
      if (!miss.lease || isLease(value)) {
        this.counters.refused += 1;
        return false;
      }
      return this.fill(key, miss.lease, value, seconds, miss.early).catch(() => this.failed() && false);
    }
    this.counters[this.strict ? "refused" : "unleased"] += 1;
    if (this.strict) return false;
    await this.ask(["SET", key, value, "PX", Math.ceil(seconds * 1000)]);
    return true;
  }

  async delete(key) {
    return (await this.ask(["UNLINK", key]))[0] > 0;
  }

  async has(key) {
    const [reply] = await this.ask(["GET", key]);
    return reply !== null && (!isLease(reply) || reply.length > LENGTH);
  }

  async clear() {
    if (!this.clearAll) throw new Error("clear() is not provided: give createKeyv a function `clear` that deletes your keys");
    await this.clearAll();
  }
}

// A Keyv of the application's own version. How long a value lives is Redis' business alone: with an expiry in the value, too, the
// clocks of two machines would make misses that have no lease.
export function createKeyv(redis, { namespace, Keyv = Keyv5, ...options } = {}) {
  const store = new Store(redis, options);
  const stringify = ({ value }) => JSON.stringify({ value });
  const keyv = new Keyv({
    store,
    namespace,
    serialize: stringify,
    deserialize: JSON.parse,
    serialization: { stringify, parse: JSON.parse },
  });
  for (const name of ["get", "getRaw", "getMany", "getManyRaw"]) {
    const method = keyv[name]?.bind(keyv);
    if (!method) continue;
    keyv[name] = (keys, ...rest) => {
      const asked = store.enter(keys);
      return method(keys, ...rest).finally(() => (asked.over = true));
    };
  }
  keyv.counters = store.counters;
  return keyv;
}
