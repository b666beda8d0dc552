// What a program on node-postgres sees of every kind of thing that it can ask for: one line for each.
//
// usage: node matrix_node.js HOST PORT, as the server's superuser in a database of its own. Prints `ok NAME: VALUE` or
// `FAILED NAME: ERROR`; nothing in it depends on when or where it ran.

'use strict';

const { createHash } = require('crypto');
const { Readable } = require('stream');
const { pipeline } = require('stream/promises');
const { inspect } = require('util');
const pg = require('pg');
const Cursor = require('pg-cursor');
const copy = require('pg-copy-streams');

const [host, port] = process.argv.slice(2);
const settings = (more = {}) => ({ host, port: Number(port), user: 'postgres', database: 'postgres', ...more });

const SETUP = `
    CREATE SCHEMA matrix_node; SET search_path = matrix_node;
    CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
    CREATE TYPE pair AS (number int, word text);
    CREATE DOMAIN positive AS int CHECK (VALUE > 0);
    CREATE TABLE item (id int PRIMARY KEY, word text NOT NULL, price numeric(8, 2) CHECK (price >= 0), seen timestamptz);
    INSERT INTO item SELECT n, 'word ' || n, n * 1.5, '2024-02-29 12:00:00+00'::timestamptz + n * interval '1 hour'
        FROM generate_series(1, 50) AS n;
    CREATE TABLE part (id int PRIMARY KEY, item int REFERENCES item);
    CREATE FUNCTION tell() RETURNS void LANGUAGE plpgsql AS
        $$ BEGIN RAISE NOTICE 'told %', 7 USING DETAIL = 'why', HINT = 'how'; RAISE WARNING 'and told'; END $$;
`;

// Each a name, a function, and whether it leaves the connection as it found it.
const CHECKS = [];
const check = (name, run) => CHECKS.push([name, run, false]);
const clean = (name, run) => CHECKS.push([name, run, true]);
const md5 = (data) => createHash('md5').update(data).digest('hex');
const pause = (time) => new Promise((resolve) => setTimeout(resolve, time));

const FIELDS =
  'severity code detail hint position internalPosition internalQuery where schema table column dataType constraint routine';

function diagnostics(error) {
  const seen = [error.message];
  for (const field of FIELDS.split(' ')) {
    if (error[field] !== undefined) seen.push(`${field}=${error[field]}`);
  }
  return seen;
}

async function refused(promise, usable) {
  try {
    return ['not refused', (await promise).rows];
  } catch (error) {
    const seen = diagnostics(error);
    return usable ? [seen, (await usable.query("SELECT 'usable' AS still")).rows[0].still] : seen;
  }
}

const described = (result) => result.fields.map((field) => [field.name, field.dataTypeID < 16384 ? field.dataTypeID : 'own', field.format]);

// ------------------------------------------------------------------------------------------------------ values out

const OUT = {
  bool: 'true, false, NULL::bool',
  int2: '32767::int2, (-32768)::int2',
  int4: '2147483647, -2147483648',
  int8: '9223372036854775807, -9223372036854775808',
  oid: '4294967295::oid',
  float4: "1.5::float4, 'nan'::float4, '-inf'::float4",
  float8: "1e308::float8, 'nan'::float8, 'inf'::float8, 5e-324::float8",
  numeric: "12345.678900::numeric, 'nan'::numeric, 0::numeric(6,3), 1e-20::numeric",
  text: "'', 'ä€😀', md5('x')",
  varchar: "'abc'::varchar(5), 'abc'::char(6), 'n'::name",
  bytea: "'\\x00ff10'::bytea, ''::bytea",
  date: "'2024-02-29'::date, '0001-01-01'::date",
  time: "'13:14:15.123456'::time, '13:14:15+02'::timetz",
  timestamp: "'2024-02-29 13:14:15.5'::timestamp",
  timestamptz: "'2024-02-29 13:14:15.123456+05:30'::timestamptz, 'infinity'::timestamptz",
  interval: "'1 month 1 day 02:03:04.5'::interval",
  json: `'{"a": [1, null, "ä"]}'::json`,
  jsonb: `'{"b": {"c": 1.50}}'::jsonb, 'null'::jsonb`,
  uuid: "'c2f0e1a4-0000-4000-8000-000000000001'::uuid",
  inet: "'10.0.0.1/8'::inet, '::1'::inet, '10.0.0.0/8'::cidr, '08:00:2b:01:02:03'::macaddr",
  arrays: "ARRAY[1, NULL, 3], ARRAY['a', NULL, 'b,\"c'], ARRAY[[1, 2], [3, 4]], '{}'::int[]",
  ranges: "int4range(1, 5), '[2024-01-01,)'::daterange, 'empty'::int8range, numrange(NULL, 1.5)",
  multiranges: "'{[1,3),[5,9)}'::int4multirange",
  enum: "'happy'::mood, ARRAY['sad', 'ok']::mood[]",
  composite: "ROW(1, 'x')::pair, ROW(NULL, NULL)::pair",
  record: "ROW(1, 'x'::text, NULL::int)",
  domain: '5::positive',
  geometry: "'(1,2)'::point, '((0,0),(1,1))'::box, '<(0,0),1>'::circle",
  bits: "B'101', '1010'::varbit",
  'money and xml': "12.34::money, '<a/>'::xml",
  nothing: 'NULL, NULL::text, NULL::bytea, NULL::int[]',
};

for (const [name, expressions] of Object.entries(OUT)) {
  for (const binary of [false, true]) {
    clean(`${binary ? 'binary' : 'text'} out ${name}`, async (client) => {
      const result = await client.query({ text: `SELECT ${expressions}`, rowMode: 'array', binary, values: [] });
      return [described(result), result.rows];
    });
  }
}

// ------------------------------------------------------------------------------------------------------- values in

const IN = {
  bool: ['bool', true],
  integer: ['int4', -(2 ** 31)],
  bigint: ['int8', 2n ** 62n],
  float: ['float8', 1.1],
  nan: ['float8', NaN],
  infinity: ['float8', -Infinity],
  numeric: ['numeric', '-12345.678900'],
  'numeric nan': ['numeric', 'NaN'],
  text: ['text', "ä€😀'\\"],
  'empty text': ['text', ''],
  bytes: ['bytea', Buffer.from([0, 255, 39, 92])],
  'no bytes': ['bytea', Buffer.alloc(0)],
  date: ['timestamptz', new Date(Date.UTC(2024, 1, 29, 1, 2, 3, 456))],
  interval: ['interval', '-3 days 5 seconds'],
  uuid: ['uuid', 'c2f0e1a4-0000-4000-8000-000000000001'],
  address: ['inet', '10.0.0.1/8'],
  integers: ['int[]', [1, null, 3]],
  texts: ['text[]', ['a', null, 'b,"c\\']],
  nested: ['int[]', [[1, 2], [3, 4]]],
  'empty list': ['int[]', []],
  json: ['json', { a: [1, null] }],
  jsonb: ['jsonb', { a: 'ä' }],
  range: ['int4range', '[1,5)'],
  enum: ['mood', 'ok'],
  composite: ['pair', '(5,"a ""quoted"", word")'],
  null: ['int', null],
  undefined: ['text', undefined],
  megabyte: ['bytea', Buffer.alloc(1 << 20, 7)],
};

for (const [name, [kind, value]] of Object.entries(IN)) {
  clean(`in ${name}`, async (client) => {
    const text = `SELECT $1::${kind} AS back, md5($1::${kind}::text) AS digest, $1::${kind} IS NULL AS missing`;
    const row = (await client.query(text, [value])).rows[0];
    if (Buffer.isBuffer(row.back) && row.back.length > 100) row.back = md5(row.back);
    return row;
  });
}

// ------------------------------------------------------------------------------------------------------ statements

check('simple query', async (client) => {
  const result = await client.query('SELECT id, word AS w, price, id + 1 FROM item ORDER BY id LIMIT 2');
  return [result.command, result.rowCount, result.rows, result.fields.map((f) => [f.name, f.columnID, f.dataTypeID, f.dataTypeSize, f.dataTypeModifier])];
});

check('tags', async (client) => {
  const seen = [];
  for (const text of [
    "INSERT INTO item VALUES (100, 'x', 1, NULL), (101, 'y', 1, NULL)", 'UPDATE item SET price = 2 WHERE id >= 100',
    'DELETE FROM item WHERE id >= 100 RETURNING id', 'SELECT 1 WHERE false', 'CREATE TEMP TABLE c AS SELECT 1', 'TRUNCATE c', 'BEGIN', 'ROLLBACK',
  ]) {
    const result = await client.query(text);
    seen.push([result.command, result.rowCount, result.rows.length]);
  }
  return seen;
});

check('empty query', async (client) => {
  const one = await client.query('');
  const other = await client.query({ text: '', values: [] });
  return [one.command, one.rows, other.command, (await client.query('SELECT 1 AS n')).rows];
});

check('several statements', async (client) => {
  const results = await client.query("SELECT 1 AS a; SELECT 'two' AS b WHERE false; INSERT INTO part VALUES (1, 1); DELETE FROM part");
  return results.map((result) => [result.command, result.rowCount, result.rows]);
});

check('several statements with an error', async (client) => {
  const seen = await refused(client.query('INSERT INTO part VALUES (2, 2); SELECT 1/0; INSERT INTO part VALUES (3, 3)'), client);
  return [seen, (await client.query('SELECT count(*) FROM part')).rows];
});

check('several statements with parameters', (client) => refused(client.query('SELECT $1::int; SELECT 2', [1]), client));

check('named statement', async (client) => {
  const seen = [];
  for (let n = 1; n < 6; n += 1) {
    seen.push((await client.query({ name: 'by-id', text: 'SELECT word FROM item WHERE id = $1', values: [n], rowMode: 'array' })).rows[0][0]);
  }
  const known = await client.query('SELECT name, parameter_types::text AS types FROM pg_prepared_statements');
  return [seen, known.rows];
});

check('named statement that fails', async (client) => {
  const broken = { name: 'broken', text: 'SELECT nothing FROM item', values: [] };
  return [await refused(client.query(broken), client), await refused(client.query(broken), client)];
});

check('named statement after its table changed', async (client) => {
  await client.query('CREATE TABLE changing (a int); INSERT INTO changing VALUES (1)');
  const statement = { name: 'changing', text: 'SELECT * FROM changing' };
  const seen = [(await client.query(statement)).rows];
  await client.query("ALTER TABLE changing ADD b text DEFAULT 'new'");
  seen.push(await refused(client.query(statement), client));
  await client.query('DROP TABLE changing');
  return seen;
});

check('statement prepared in SQL', async (client) => {
  await client.query('PREPARE by_id (int) AS SELECT word FROM item WHERE id = $1');
  const seen = [(await client.query('EXECUTE by_id(3)')).rows];
  await client.query('DEALLOCATE by_id');
  return [...seen, await refused(client.query('EXECUTE by_id(3)'), client)];
});

check('many parameters', async (client) => {
  const numbers = Array.from({ length: 5000 }, (_, n) => n);
  const marks = numbers.map((n) => `$${n + 1}::int`).join(', ');
  return (await client.query(`SELECT sum(n) FROM unnest(ARRAY[${marks}]) AS n`, numbers)).rows;
});

check('queued queries', async (client) => {
  const results = await Promise.all(Array.from({ length: 50 }, (_, n) => client.query('SELECT $1::int * 2 AS n', [n])));
  return results.map((result) => result.rows[0].n);
});

check('queued queries with an error among them', async (client) => {
  const texts = ['SELECT 1 AS n', 'SELECT 1/0 AS n', 'SELECT 3 AS n'];
  const settled = await Promise.allSettled(texts.map((text) => client.query(text)));
  return settled.map((one) => (one.status === 'fulfilled' ? one.value.rows : one.reason.message));
});

check('limited rows', async (client) => {
  const result = await client.query({ text: 'SELECT n FROM generate_series(1, 25) AS n', rows: 10, values: [], rowMode: 'array' });
  return [result.rows.length, result.command, result.rowCount];
});

// --------------------------------------------------------------------------------------------------------- cursors

check('cursor', async (client) => {
  const cursor = client.query(new Cursor('SELECT n FROM generate_series(1, $1::int) AS n', [25]));
  const seen = [];
  for (;;) {
    const rows = await cursor.read(10);
    seen.push(rows.map((row) => row.n));
    if (rows.length === 0) break;
  }
  return [seen, (await client.query('SELECT 1 AS n')).rows];
});

check('cursor closed early', async (client) => {
  const cursor = client.query(new Cursor('SELECT n FROM generate_series(1, 100000) AS n'));
  const rows = await cursor.read(3);
  await cursor.close();
  return [rows, (await client.query('SELECT 1 AS n')).rows];
});

check('cursor with an error', async (client) => {
  const cursor = client.query(new Cursor('SELECT 10 / (5 - n) AS q FROM generate_series(1, 10) AS n'));
  const rows = await cursor.read(3);
  let seen;
  try {
    await cursor.read(3);
  } catch (error) {
    seen = diagnostics(error);
  }
  return [rows, seen, (await client.query('SELECT 1 AS n')).rows];
});

check('cursor declared in SQL', async (client) => {
  await client.query('BEGIN; DECLARE c SCROLL CURSOR FOR SELECT id FROM item ORDER BY id');
  const seen = [];
  for (const text of ['FETCH 2 FROM c', 'FETCH LAST FROM c', 'MOVE BACKWARD 5 FROM c', 'FETCH c', 'CLOSE c', 'COMMIT']) {
    const result = await client.query({ text, rowMode: 'array' });
    seen.push([result.command, result.rowCount, result.rows]);
  }
  return seen;
});

// ---------------------------------------------------------------------------------------------------------- errors

const ERRORS = {
  syntax: 'SELEC 1',
  division: 'SELECT 1/0',
  column: 'SELECT nothing FROM item',
  table: 'SELECT * FROM nowhere',
  function: "SELECT nofunction(1, 'x')",
  cast: "SELECT 'x'::int",
  'not null': 'INSERT INTO item VALUES (900, NULL)',
  unique: "INSERT INTO item VALUES (1, 'again')",
  'check constraint': "INSERT INTO item VALUES (901, 'x', -1)",
  'foreign key': 'INSERT INTO part VALUES (1, 99999)',
  domain: 'SELECT (-1)::positive',
  enum: "SELECT 'angry'::mood",
  'internal query': "DO $$ BEGIN EXECUTE 'SELECT nothing FROM item'; END $$",
};

for (const [name, text] of Object.entries(ERRORS)) {
  clean(`simple error ${name}`, (client) => refused(client.query(text), client));
  clean(`extended error ${name}`, (client) => refused(client.query({ text, values: [], queryMode: 'extended' }), client));
}

check('error of a value', (client) => refused(client.query('SELECT $1::int', ['x']), client));
check('error of a count', (client) => refused(client.query('SELECT $1::int, $2::int', [1]), client));

check('notices', async (client) => {
  const heard = [];
  client.on('notice', (notice) => heard.push([notice.message, notice.severity, notice.code, notice.detail, notice.hint, notice.where]));
  await client.query('SELECT tell()');
  await client.query('SELECT tell() WHERE $1', [true]);
  return heard;
});

// ---------------------------------------------------------------------------------------------------- transactions

check('transaction that fails', async (client) => {
  const seen = [];
  for (const text of ['BEGIN', 'INSERT INTO part VALUES (1, 1)', 'SELECT 1/0', 'SELECT 1', 'COMMIT', 'SELECT count(*) FROM part']) {
    try {
      const result = await client.query(text);
      seen.push([result.command, result.rows]);
    } catch (error) {
      seen.push(error.code);
    }
  }
  return seen;
});

check('savepoints', async (client) => {
  const seen = [];
  for (const text of [
    'BEGIN', 'INSERT INTO part VALUES (1, 1)', 'SAVEPOINT s', 'INSERT INTO part VALUES (1, 1)', 'ROLLBACK TO s', 'INSERT INTO part VALUES (2, 2)',
    'RELEASE s', 'SELECT count(*) FROM part', 'ROLLBACK', 'SELECT count(*) FROM part',
  ]) {
    try {
      const result = await client.query({ text, values: [] });
      seen.push([result.command, result.rows]);
    } catch (error) {
      seen.push(error.code);
    }
  }
  return seen;
});

check('statement timeout', async (client) => {
  await client.query("SET statement_timeout = '50ms'");
  return refused(client.query('SELECT pg_sleep(90)'), client);
});

// ------------------------------------------------------------------------------------------------------------ copy

async function bytesOf(stream) {
  const blocks = [];
  for await (const block of stream) blocks.push(block);
  return Buffer.concat(blocks);
}

for (const form of ['', '(FORMAT csv)', "(FORMAT csv, HEADER, DELIMITER ';', NULL 'none')", '(FORMAT binary)']) {
  check(`copy ${form || 'text'}`, async (client) => {
    await client.query(`CREATE TEMP TABLE copied (id int, word text); CREATE TEMP TABLE back (LIKE copied);
      INSERT INTO copied VALUES (1, 'plain'), (2, NULL), (3, E'tab\\tnew\\nline\\\\'), (4, 'ä€😀'), (5, '')`);
    const data = await bytesOf(client.query(copy.to(`COPY copied TO STDOUT ${form}`)));
    const into = client.query(copy.from(`COPY back FROM STDIN ${form}`));
    await pipeline(Readable.from([data.subarray(0, 30), data.subarray(30)]), into);
    const same = await client.query('SELECT (SELECT array_agg(c::text) FROM copied c) = (SELECT array_agg(b::text) FROM back b) AS same');
    return [data.toString('latin1'), into.rowCount, same.rows];
  });
}

check('copy much', async (client) => {
  await client.query('CREATE TEMP TABLE much (n int, pad text)');
  const lines = function* () {
    for (let n = 0; n < 5000; n += 1) yield `${n}\t${'padding '.repeat(4)}\n`;
  };
  const into = client.query(copy.from('COPY much FROM STDIN'));
  await pipeline(Readable.from(lines()), into);
  const data = await bytesOf(client.query(copy.to('COPY (SELECT * FROM much ORDER BY n) TO STDOUT')));
  return [into.rowCount, data.length, md5(data)];
});

check('copy refused by the server', async (client) => {
  try {
    await pipeline(Readable.from(['1\tx\n']), client.query(copy.from('COPY part FROM STDIN')));
  } catch (error) {
    return [diagnostics(error), (await client.query('SELECT count(*) FROM part')).rows];
  }
  return 'not refused';
});

check('copy refused by the client', async (client) => {
  const into = client.query(copy.from('COPY part FROM STDIN'));
  into.on('error', () => {});
  into.write('1\t1\n');
  into.destroy(new Error('changed my mind'));
  return (await client.query('SELECT count(*) FROM part')).rows;
});

// ---------------------------------------------------------------------------------------------------- asynchronous

check('notifications', async (client) => {
  const heard = [];
  client.on('notification', (one) => heard.push([one.channel, one.payload.slice(0, 3), one.payload.length, one.processId === client.processID]));
  await client.query('LISTEN news');
  const other = new pg.Client(settings());
  await other.connect();
  await other.query("NOTIFY news, 'one'");
  await other.query("SELECT pg_notify('news', 'ä' || repeat('x', 7000))");
  await other.end();
  await client.query('NOTIFY news');
  for (let n = 0; n < 400 && heard.length < 3; n += 1) await pause(50);
  return heard;
});

check('cancel', async (client) => {
  const other = new pg.Client(settings());
  await other.connect();
  const sleeps = refused(client.query('SELECT pg_sleep(90)'), client);
  for (let n = 0; n < 400; n += 1) {
    const running = await other.query("SELECT pid FROM pg_stat_activity WHERE state = 'active' AND query = 'SELECT pg_sleep(90)'");
    if (running.rows.length > 0) break;
    await pause(50);
  }
  await other.query('SELECT pg_cancel_backend($1)', [client.processID]);
  await other.end();
  return sleeps;
});

check('terminated', async (client) => {
  const other = new pg.Client(settings());
  await other.connect();
  const ended = new Promise((resolve) => client.once('error', resolve));
  const { rows } = await other.query('SELECT pg_terminate_backend($1)', [client.processID]);
  await other.end();
  return [rows, diagnostics(await ended)];
});

check('pool', async () => {
  const pool = new pg.Pool(settings({ max: 4 }));
  const results = await Promise.all(Array.from({ length: 30 }, (_, n) => pool.query('SELECT word FROM matrix_node.item WHERE id = $1', [n + 1])));
  await pool.end();
  return results.map((result) => result.rows[0].word);
});

// --------------------------------------------------------------------------------------------------------- session

check('parameters reported', async () => {
  const client = new pg.Client(settings());
  const reported = {};
  client.connection.on('parameterStatus', (message) => {
    reported[message.parameterName] = message.parameterValue;
  });
  await client.connect();
  await client.query("SET TimeZone = 'Asia/Tokyo'; SET application_name = 'matrix'");
  await client.end();
  return Object.entries(reported).sort();
});

check('start-up settings', async () => {
  const client = new pg.Client(settings({ statement_timeout: 12345, application_name: 'from the start', options: '-c jit=off -c lock_timeout=7000' }));
  await client.connect();
  const seen = await client.query("SELECT current_setting('statement_timeout') AS a, current_setting('application_name') AS b, current_setting('jit') AS c");
  await client.end();
  return seen.rows;
});

check('query timeout of the client', async () => {
  const client = new pg.Client(settings({ query_timeout: 200 }));
  client.on('error', () => {});
  await client.connect();
  const seen = await refused(client.query('SELECT pg_sleep(5)'));
  client.connection.stream.destroy();
  return seen;
});

check('wrong database', async () => {
  const client = new pg.Client(settings({ database: 'no_such_database' }));
  client.on('error', () => {});
  return refused(client.connect());
});

check('large value', async (client) => {
  const { text } = (await client.query("SELECT repeat('0123456789', 300000) AS text")).rows[0];
  return [text.length, (await client.query('SELECT md5($1)', [text])).rows];
});

check('large result', async (client) => {
  const { rows } = await client.query('SELECT n, md5(n::text), NULL::int AS nothing FROM generate_series(1, 20000) AS n');
  return [rows.length, rows[19999], rows.reduce((sum, row) => sum + row.n, 0)];
});

check('wide result', async (client) => {
  const columns = Array.from({ length: 1600 }, (_, n) => `${n} AS c${n}`).join(', ');
  const { rows } = await client.query({ text: `SELECT ${columns}`, rowMode: 'array' });
  return [rows[0].length, rows[0].reduce((sum, n) => sum + n, 0)];
});

// ------------------------------------------------------------------------------------------------------------ main

const shown = (value) => inspect(value, { depth: 6, breakLength: Infinity, compact: true, maxArrayLength: 60, maxStringLength: 2000 }).replace(/\n/g, ' ');

async function connect() {
  const client = new pg.Client(settings());
  client.on('error', () => {});
  await client.connect();
  await client.query('SET search_path = matrix_node');
  return client;
}

async function run(name, check, client) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error('no end within 60 s')), 60000);
  });
  try {
    console.log(`ok ${name}: ${shown(await Promise.race([check(client), late]))}`);
  } catch (error) {
    console.log(`FAILED ${name}: ${shown(error.message)}`);
  }
  clearTimeout(timer);
}

async function main() {
  const first = new pg.Client(settings());
  await first.connect();
  await first.query(SETUP);
  await first.end();
  const shared = await connect();
  for (const [name, check, clean] of CHECKS) {
    const client = clean ? shared : await connect();
    await run(name, check, client);
    // Not `end`: where a check leaves a query behind, that would wait for it.
    if (!clean) client.connection.stream.destroy();
  }
  shared.connection.stream.destroy();
}

main();
