import { isLease, Protocol } from "./protocol.js";

// One for each kind of value, over a client of ioredis or node-redis, of a single server or of a cluster. Times are seconds.
export class Cache extends Protocol {
  constructor(redis, { encode = (value) => JSON.stringify(value ?? null), decode = JSON.parse, ...options } = {}) {
    super(redis, options);
    Object.assign(this, { encode, decode });
  }

  // The cached value, or what `load` gives. `load` must read the database after it is called.
  async getOrSet(key, load, { ttl } = {}) {
    let found;
    try {
      const answer = await this.find(key);
      if (answer.lease) return await this.loadAndFill(key, answer, load, ttl);
      found = answer.found;
      if (found !== undefined) return this.decode(found);
    } catch (error) {
      if (error instanceof LoadFailed) throw error.cause;
      this.failed();
    }
    return load();
  }

  async loadAndFill(key, { lease, early }, load, ttl) {
    let finished;
    this.loading.set(lease, new Promise((resolve) => (finished = resolve)));
    try {
      const begun = performance.now();
      let value, payload;
      try {
        value = await load();
        payload = this.encode(value);
      } catch (error) {
        await this.giveUp(key, lease);
        throw new LoadFailed("the caller's", { cause: error });
      }
      this.took(performance.now() - begun);
      if (isLease(payload)) {
        this.counters.refused += 1; // readers would wait for it
        await this.giveUp(key, lease);
        return value;
      }
      const seconds = ttl ?? ((value ?? null) === null ? this.negativeTtl : undefined) ?? this.ttl;
      if (await this.fill(key, lease, payload, seconds, early).catch(() => this.failed() && false)) finished(payload);
      return value;
    } finally {
      this.loading.delete(lease);
      finished(undefined);
    }
  }
}

class LoadFailed extends Error {}
