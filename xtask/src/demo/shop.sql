-- A small shop. The demo and the integration tests put it behind the gateway.
-- The card numbers are the well-known test numbers of the card schemes: they pass the Luhn check and belong to nobody.

CREATE TABLE customers (
    id          integer PRIMARY KEY,
    name        text NOT NULL,
    email       text NOT NULL UNIQUE,
    card_number text NOT NULL
);

CREATE TABLE products (
    id    integer PRIMARY KEY,
    title text NOT NULL,
    price numeric(8, 2) NOT NULL,
    stock integer NOT NULL
);

CREATE TABLE orders (
    id          integer PRIMARY KEY,
    customer_id integer NOT NULL REFERENCES customers (id),
    product_id  integer NOT NULL REFERENCES products (id),
    quantity    integer NOT NULL,
    placed_at   timestamptz NOT NULL
);

INSERT INTO customers VALUES
    (1, 'Ada Lindqvist',   'ada.lindqvist@example.com',   '4111111111111111'),
    (2, 'Benoît Carlier',  'benoit.carlier@example.com',  '5500005555555559'),
    (3, 'Chidi Okafor',    'chidi.okafor@example.com',    '4012888888881881'),
    (4, 'Dana Weiss',      'dana.weiss@example.com',      '378282246310005'),
    (5, 'Eun-ji Park',     'eunji.park@example.com',      '6011111111111117');

INSERT INTO products VALUES
    (1, 'Espresso cup',    9.50, 120),
    (2, 'Filter papers',   4.20, 800),
    (3, 'Hand grinder',   89.00,  14),
    (4, 'Gooseneck kettle', 64.90, 22);

INSERT INTO orders
SELECT n, 1 + n % 5, 1 + n % 4, 1 + n % 3, timestamptz '2025-01-02 09:00:00+00' + n * interval '7 hours'
FROM generate_series(1, 40) AS n;
