// Deletes the keys of what a trigger announces for each row: pg-listen and ioredis, many keys to a command.
// It survives a lost connection, as pg-listen does; what happened meanwhile is forgotten.
const createSubscriber = require("pg-listen").default;
const Redis = require("ioredis").default;
const pg = require("pg");

const redis = new Redis(process.env.REDIS_SOCKET);
const subscriber = createSubscriber({ connectionString: process.env.DATABASE_URL });
let keys = [];
let flushing = false;

async function flush() {
  flushing = true;
  while (keys.length > 0) {
    const batch = keys.splice(0, 1000);
    await redis.unlink(...batch);
  }
  flushing = false;
}

const heard = (change) => {
  for (const row of change.rows ?? [change.new, change.old]) {
    if (row) keys.push(`user:${row.id}`);
  }
  if (!flushing) {
    flushing = true;
    setImmediate(flush);
  }
};
subscriber.events.on("error", (error) => {
  console.error(error);
  process.exit(1);
});

(async () => {
  const owner = new pg.Client({ connectionString: process.env.DATABASE_URL });
  await owner.connect();
  const channel = (await owner.query("select unstale.channel() as channel")).rows[0].channel;
  await owner.end();
  subscriber.notifications.on(channel, heard);
  await subscriber.connect();
  await subscriber.listenTo(channel);
  console.log("ready");
})();
