/** Times are seconds. */
export interface Options<P extends string | Buffer = string> {
  /** How long a value lives, shortened by up to `jitter` of it. Default 3600. */
  ttl?: number;
  /** How long a load may take before another reader loads, too. Default 5. */
  lease?: number;
  /** How long a reader waits for another's load before it asks the database and stores nothing. Default 1. */
  wait?: number;
  /** Default 0.1. */
  jitter?: number;
  /** For loads that give null or undefined; `ttl` if absent. */
  negativeTtl?: number;
  /** XFetch's beta: how eagerly a value is loaded before it expires. 0 turns it off. Default 1. */
  early?: number;
  /** How long Redis may take to answer before a read goes to the database. Default 1. */
  timeout?: number;
  /** Hand Buffers to `decode` instead of strings. Default false. */
  buffers?: boolean;
  encode?: (value: any) => string | Buffer;
  decode?: (payload: P) => any;
}

export interface Counters {
  hits: number;
  /** Nothing was there, and this reader took the lease. */
  misses: number;
  /** Another reader was loading ... */
  waits: number;
  /** ... and did not finish within `wait`: this reader asked the database and stored nothing. */
  timeouts: number;
  /** Loads that began before the value expired. */
  early: number;
  fills: number;
  /** Loaded, but the key was deleted meanwhile, or the lease ran out: nothing was stored. */
  refused: number;
  /** Of Redis, or of decoding: the read went to the database. */
  errors: number;
}

export class Cache {
  /** `redis`: a client of ioredis or node-redis, of a single server or of a cluster. */
  constructor(redis: object, options?: Options<any>);
  readonly counters: Readonly<Counters>;
  /** The cached value, or what `load` gives. `load` must read the database after it is called. */
  getOrSet<T>(key: string, load: () => Promise<T> | T, options?: { ttl?: number }): Promise<T>;
}
