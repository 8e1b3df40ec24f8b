// What the suite cannot see of the driver: contexts that were lost.
import assert from "node:assert/strict";
import { test } from "node:test";
import { createKeyv } from "../keyv.js";

// A Redis of four commands.
function redis() {
  const keys = new Map();
  return {
    keys,
    async call(command, ...words) {
      const [key, value] = words;
      if (command === "GET") return keys.get(key) ?? null;
      if (command === "UNLINK") return keys.delete(key) ? 1 : 0;
      if (command === "PTTL") return 1e6;
      assert.equal(command, "SET");
      const there = keys.get(key) ?? null;
      if (words.includes("NX") && there !== null) return there;
      if (words.includes("IFEQ") && there !== words[words.indexOf("IFEQ") + 1]) return null;
      keys.set(key, value);
      return words.includes("NX") ? null : "OK";
    },
  };
}

test("sets after gets that ran side by side are fills", async () => {
  const server = redis();
  const keyv = createKeyv(server);
  await Promise.all([keyv.get("a"), keyv.get("b")]);
  server.keys.delete("a");
  await keyv.set("a", "old");
  await keyv.set("b", "new");
  assert.equal(server.keys.get("a"), undefined);
  assert.equal(await keyv.get("b"), "new");
  assert.equal(keyv.counters.unleased, 0);
});

test("of two tasks each fills under its own lease", async () => {
  const server = redis();
  const keyv = createKeyv(server);
  let release;
  const held = new Promise((resolve) => (release = resolve));
  const slow = (async () => {
    await keyv.get("k");
    await held;
    await keyv.set("k", "old");
  })();
  await new Promise(setImmediate);
  server.keys.delete("k");
  const fast = (async () => {
    await keyv.get("k");
    release();
    await slow;
    assert.match(server.keys.get("k"), /^unstale:lease:/, "the older fill is refused");
    await keyv.set("k", "new");
  })();
  await fast;
  assert.equal(await keyv.get("k"), "new");
});

test("a set without a miss is written and counted, or refused", async () => {
  const server = redis();
  const keyv = createKeyv(server);
  await keyv.set("k", 1);
  assert.equal(await keyv.get("k"), 1);
  assert.equal(keyv.counters.unleased, 1);
  const strict = createKeyv(server, { strict: true });
  await strict.set("other", 1);
  assert.equal(server.keys.has("other"), false);
});
