import type { Keyv } from "keyv";
import type { Counters, Options } from "./index.js";

export interface KeyvOptions extends Omit<Options, "ttl" | "negativeTtl" | "encode" | "decode" | "buffers"> {
  namespace?: string;
  /** The application's Keyv, if it is not the one that this package finds. Versions 5 and 6. */
  Keyv?: new (...options: any[]) => any;
  /** Refuse a `set` that no miss came before. Default false: it is written as it is. */
  strict?: boolean;
  /** What `clear()` does; without it `clear()` fails. */
  clear?: () => Promise<void>;
}

/** A Keyv over a client of ioredis or node-redis, for itself or for cache-manager's `stores`. */
export function createKeyv(
  redis: object,
  options?: KeyvOptions,
): Keyv & { readonly counters: Readonly<Counters & { /** Written by `set` without a miss before. */ unleased: number }> };
