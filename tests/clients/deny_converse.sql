SELECT id, title, price FROM products ORDER BY id;
SELECT id, card_number FROM customers ORDER BY id \; SELECT 'second' \; SELECT NULL, '';
DELETE FROM vault.ledger;
DELETE FROM vault.ledger \; SELECT 'in one' \; SELECT 'string';
BEGIN;
INSERT INTO journal VALUES (1, 'undone');
DELETE FROM vault.ledger;
SELECT 'too early';
ROLLBACK;
DO $$ BEGIN RAISE NOTICE 'noticed %', 1; END $$;
SELECT 1 / (stock - stock) FROM products;
SELECT no_such_column FROM products;
SELECT id, title FROM products \gdesc
COPY products (id, title) TO STDOUT;
SELECT * FROM accounts ORDER BY id;
COPY accounts TO STDOUT;
COPY accounts (note, pan) TO STDOUT (FORMAT csv, HEADER);
LISTEN cut;
NOTIFY cut, 'heard';
BEGIN;
COPY journal FROM STDIN;
1	copied
2	\N
\.
DECLARE k CURSOR FOR SELECT n FROM generate_series(1, 5) AS n;
FETCH 2 FROM k;
FETCH ALL FROM k;
ROLLBACK;
SET application_name = 'cut';
-- nothing
;
SELECT 'ä€😀', repeat('x', 200);
