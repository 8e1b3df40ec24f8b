// Each client and driver against the suite that any client can be run against.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

const path = (name) => fileURLToPath(new URL(name, import.meta.url));

async function suite(words, kind) {
  const command = [path("../../conformance/suite.py"), "--quiet", ...words, "--", "node", path("../programs/conform.js"), ...kind];
  const child = spawn("python3", command, { stdio: ["ignore", "pipe", "pipe"] });
  let said = "";
  for (const stream of [child.stdout, child.stderr]) stream.on("data", (data) => (said += data));
  const code = await new Promise((resolve) => child.on("close", resolve));
  assert.equal(code, 0, said);
}

// Clusters and second versions are left to the whole run.
const skip = "CLIENTS_QUICK" in process.env;
for (const words of [[], ["--cluster"]]) {
  for (const kind of [["ioredis"], ["node-redis"]]) {
    test(`${kind} conforms ${words}`, { skip: skip && words.length > 0 }, () => suite(words, kind));
  }
}
test("node-redis with buffers conforms", { skip }, () => suite([], ["node-redis", "buffers"]));
test("ioredis with buffers conforms", { skip }, () => suite([], ["ioredis", "buffers"]));
for (const kind of ["keyv", "keyv6", "cache-manager"]) {
  test(`${kind} conforms`, { skip: skip && kind === "keyv6" }, () => suite(["--driver"], ["ioredis", kind]));
}
