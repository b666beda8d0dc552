// Denied statements in every order node-postgres has; one JSON line each. usage: deny_node.js HOST PORT WAY
//
// Run as a role that lacks the privilege and as an agent whose policy denies it, the lines must be equal.

"use strict";

const { pipeline } = require("node:stream/promises");
const { Readable, Writable } = require("node:stream");
const { Client } = require("pg");
const Cursor = require("pg-cursor");
const { from: copyFrom, to: copyTo } = require("pg-copy-streams");

const DENIED = "DELETE FROM vault.ledger";
const READ = "SELECT n FROM vault.ledger";
const NOTE = "INSERT INTO journal VALUES (1, 'noted')";
const ROWS = "SELECT n FROM generate_series(1, 5) AS n";
const [host, port, way] = process.argv.slice(2);

async function connected() {
  const client = new Client({ host, port: Number(port), user: "shop_clerk", database: "shop" });
  const { connection } = client;
  connection.on("readyForQuery", (message) => (client.status = message.status));
  // A query fails before the ReadyForQuery behind its error has come.
  connection.on("errorMessage", () => {
    client.failed = new Promise((answered) => connection.once("readyForQuery", answered));
  });
  await client.connect();
  return client;
}

/** What a program that uses node-postgres sees. */
class Seen {
  constructor(client) {
    this.client = client;
    this.words = [];
    this.messages = [];
  }

  async of(what) {
    try {
      const result = await what();
      this.words.push(`${shown(result)} ${this.client.status}`);
    } catch (error) {
      if (error.code === "42501") this.messages.push(error.message);
      const { status } = await this.client.failed;
      this.words.push(`${error.constructor.name} ${error.severity} ${error.code} ${status}`);
    }
  }

  async run(text, values) {
    await this.of(() => this.client.query(text, values));
  }
}

function shown(result) {
  if (Array.isArray(result)) return result.map(shown).join(" ");
  if (result && result.rows) return `${result.command} ${JSON.stringify(result.rows)}`;
  return String(result);
}

async function simple(seen) {
  await seen.run(DENIED);
}

async function read(seen) {
  await seen.run(READ);
}

async function multi_first(seen) {
  await seen.run(`${DENIED}; ${NOTE}`);
}

async function multi_middle(seen) {
  await seen.run(`${NOTE}; ${DENIED}; ${NOTE}`);
}

async function multi_last(seen) {
  await seen.run(`${NOTE}; ${DENIED}`);
}

async function at_parse(seen) {
  await seen.run(`${DENIED} WHERE n = $1`, [1]);
}

async function at_parse_of_a_name(seen) {
  const query = () => seen.client.query({ name: "s", text: `${READ} WHERE n = $1`, values: [1] });
  await seen.of(query);
  await seen.of(query);
}

// Natively a DELETE is refused when it is executed; the gateway decides there by what is bound.
const AT_EXECUTE = {
  directly: { text: "DELETE FROM orders WHERE id = $1", values: [1] },
  "by parameter": { text: "INSERT INTO journal SELECT 1, $1", values: ["contraband"] },
};

async function at_execute(seen) {
  await seen.of(() => seen.client.query(AT_EXECUTE[way]));
  await seen.run("BEGIN");
  await seen.of(() => seen.client.query(AT_EXECUTE[way]));
  await seen.run("SELECT 'too early'");
  await seen.run("ROLLBACK");
}

async function in_a_transaction(seen) {
  await seen.run("BEGIN");
  await seen.run(NOTE);
  await seen.run(`${DENIED} WHERE n = $1`, [1]);
  await seen.run("SELECT 'too early'");
  await seen.run("COMMIT");
}

async function with_savepoints(seen) {
  await seen.run("BEGIN");
  await seen.run(NOTE);
  await seen.run("SAVEPOINT here");
  await seen.run(NOTE);
  await seen.run(DENIED);
  await seen.run("ROLLBACK TO here");
  await seen.run(`${DENIED} WHERE n = $1`, [1]);
  await seen.run("ROLLBACK TO here");
  await seen.run(NOTE);
  await seen.run("COMMIT");
}

/** All at once; node-postgres sends each when the one before is answered. */
async function queued(seen, ...statements) {
  const all = statements.map((text) => seen.client.query(text));
  for (const one of all) one.catch(() => {});
  for (const one of all) await seen.of(() => one);
}

async function queued_first(seen) {
  await queued(seen, DENIED, NOTE, NOTE);
}

async function queued_middle(seen) {
  await queued(seen, NOTE, { text: `${DENIED} WHERE n = $1`, values: [1] }, NOTE);
}

async function queued_last(seen) {
  await queued(seen, NOTE, NOTE, DENIED);
}

async function in_a_portal(seen) {
  const cursor = seen.client.query(new Cursor(READ));
  await seen.of(() => cursor.read(2));
}

async function beside_a_suspended_portal(seen) {
  await seen.run("BEGIN");
  const cursor = seen.client.query(new Cursor(ROWS));
  await seen.of(async () => JSON.stringify(await cursor.read(2)));
  const denied = seen.client.query(DENIED);
  denied.catch(() => {});
  await cursor.close();
  await seen.of(() => denied);
  await seen.run("ROLLBACK");
}

async function copied_in(seen, sql, data) {
  await seen.of(() => pipeline(Readable.from([data]), seen.client.query(copyFrom(sql))));
}

async function copy_in(seen) {
  await copied_in(seen, "COPY vault.ledger FROM STDIN", "6\n");
}

async function copy_out(seen) {
  const nowhere = new Writable({ write: (chunk, encoding, done) => done() });
  await seen.of(() => pipeline(seen.client.query(copyTo("COPY vault.ledger TO STDOUT")), nowhere));
}

async function copy_in_a_transaction(seen) {
  await seen.run("BEGIN");
  await seen.run(NOTE);
  await copied_in(seen, "COPY vault.ledger FROM STDIN", "6\n");
  await seen.run("COMMIT");
}

async function copy_and_delete(seen) {
  await copied_in(seen, `COPY journal FROM STDIN; ${DENIED}`, "1\tcopied\n");
}

async function prepared_in_sql(seen) {
  await seen.run(`PREPARE s AS ${DENIED}`);
  await seen.run("EXECUTE s");
}

const ORDERS = [
  simple,
  read,
  multi_first,
  multi_middle,
  multi_last,
  at_parse,
  at_parse_of_a_name,
  at_execute,
  in_a_transaction,
  with_savepoints,
  queued_first,
  queued_middle,
  queued_last,
  in_a_portal,
  beside_a_suspended_portal,
  copy_in,
  copy_out,
  copy_in_a_transaction,
  copy_and_delete,
  prepared_in_sql,
];

async function rows() {
  const client = await connected();
  const counts = [];
  for (const table of ["journal", "orders"]) {
    counts.push(Number((await client.query(`SELECT count(*) FROM ${table}`)).rows[0].count));
  }
  await client.end();
  return counts;
}

const signed = (number) => (number < 0 ? String(number) : `+${number}`);

async function main() {
  for (const order of ORDERS) {
    const before = await rows();
    const client = await connected();
    const seen = new Seen(client);
    await order(seen);
    await seen.run("SELECT 'next' AS is");
    await seen.run("SELECT $1::text AS is", ["next"]);
    await client.end();
    const after = await rows();
    seen.words.push(`journal ${signed(after[0] - before[0])}, orders ${signed(after[1] - before[1])}`);
    console.log(JSON.stringify({ order: order.name, seen: seen.words, messages: seen.messages }));
  }
}

main();
