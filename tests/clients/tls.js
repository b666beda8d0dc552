// node-postgres with and without TLS. usage: node tls.js HOST PORT; PGSSLROOTCERT names the authority to trust.

'use strict';

const fs = require('fs');
const pg = require('pg');

const [host, port] = process.argv.slice(2);
const CASES = {
  'without TLS': () => false,
  'with TLS, unverified': () => ({ rejectUnauthorized: false }),
  'with TLS, verified': () => ({ ca: fs.readFileSync(process.env.PGSSLROOTCERT, 'utf8') }),
};

async function main() {
  for (const [name, ssl] of Object.entries(CASES)) {
    try {
      const client = new pg.Client({ host, port: Number(port), user: 'postgres', database: 'postgres', ssl: ssl() });
      await client.connect();
      const { rows } = await client.query('SELECT $1::int + 1 AS n', [41]);
      console.log(`ok node-postgres ${name}: ${rows[0].n}, encrypted ${Boolean(client.connection.stream.encrypted)}`);
      await client.end();
    } catch (error) {
      console.log(`FAILED node-postgres ${name}: ${error.message}`);
    }
  }
}

main();
