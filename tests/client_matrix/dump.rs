//! pg_dump and pg_restore of a database of one gigabyte.

use std::fs::{self, File};
use std::path::Path;
use std::process::Stdio;

use sha2::{Digest as _, Sha256};

use super::sheet::{Run, Test, compare, of_program};
use super::way::{Place, Way};

/// Rows just below the size from which the server would compress them, of text that does not compress well.
const FILL: &str = "
CREATE TABLE big (id int PRIMARY KEY, word text, pad text, seen timestamptz);
INSERT INTO big SELECT n, md5(n::text),
    (SELECT string_agg(md5((n * 31 + m)::text), '') FROM generate_series(1, 58) AS m), '2024-02-29'::timestamptz + n * interval '1 s'
    FROM generate_series(1, ROWS) AS n;
CREATE INDEX ON big (word);
CREATE VIEW few AS SELECT id, word FROM big WHERE id < 10;
CREATE FUNCTION twice(n int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT n * 2';
CREATE TABLE small (id serial PRIMARY KEY, doubled int GENERATED ALWAYS AS (id * 2) STORED, word text CHECK (word <> 'never'));
INSERT INTO small (word) SELECT 'word ' || n FROM generate_series(1, 1000) AS n;
COMMENT ON TABLE small IS 'it''s small';
SELECT lo_from_bytea(424242, decode(repeat('00ff', 100000), 'hex'));
";

/// What must be the same in the restored database.
const CONTENT: &str = "
SELECT count(*), sum(id), md5(string_agg(md5(b::text), '' ORDER BY id)) FROM big AS b;
SELECT count(*), sum(doubled), max(word) FROM small;
SELECT * FROM few ORDER BY id;
SELECT twice(21), length(lo_get(424242)), obj_description('small'::regclass);
SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1;
SELECT nextval('small_id_seq');
";

/// Newer releases put a random word into their output, so that what a dump says to psql cannot be forged.
const PLAIN: &str = r"set -o pipefail; pg_dump source | sed -E '/^\\(un)?restrict /d'";

const GIGABYTE: &str = "500000";

#[test]
#[ignore = "takes minutes and gigabytes of disk: cargo xtask test clients"]
fn a_gigabyte() {
    super::crates::fetched();
    compare("pg_dump and pg_restore, 1 GB", &[], |way, place| {
        dumped_and_restored(way, place, GIGABYTE)
    });
}

#[test]
fn a_little() {
    compare("pg_dump and pg_restore", &[], |way, place| {
        dumped_and_restored(way, place, "2000")
    });
}

fn dumped_and_restored(way: &Way, place: &Place, rows: &str) -> Run {
    let mut run = Run::new();
    way.admin("CREATE DATABASE source");
    way.admin("CREATE DATABASE restored");
    way.admin_in("source", &FILL.replace("ROWS", rows));
    let archive = place.output().join("archive");
    let archive = archive.display().to_string();

    let dumped = place.output().join("dump.sql");
    let plain = stored(way, &["bash", "-c", PLAIN], &dumped);
    run.insert("pg_dump, plain".to_owned(), plain);
    let _ = fs::remove_file(&dumped);

    let size = way.admin("SELECT pg_database_size('source') > 1000000000");
    let big = Test {
        passed: true,
        saw: format!("more than a gigabyte: {size}"),
    };
    run.insert("the database".to_owned(), big);

    let words = [
        "pg_dump",
        "--format=custom",
        "--compress=1",
        "--file",
        &archive,
        "source",
    ];
    let custom = way.run(&words);
    run.extend([of_program(
        "pg_dump, custom",
        &custom,
        custom.stderr.clone(),
    )]);
    let before = way.admin_in("source", CONTENT);
    way.admin("DROP DATABASE source WITH (FORCE)");

    let restore = way.run(&[
        "pg_restore",
        "--exit-on-error",
        "--dbname=restored",
        &archive,
    ]);
    run.extend([of_program("pg_restore", &restore, restore.stderr.clone())]);
    let after = way.admin_in("restored", CONTENT);
    let passed = before == after;
    run.insert("what was restored".to_owned(), Test { passed, saw: after });
    run
}

/// Runs a program with its output in a file, and answers the file's digest.
#[track_caller]
fn stored(way: &Way, words: &[&str], into: &Path) -> Test {
    let file = File::create(into).expect("the folder is ours");
    let mut command = way.command(words);
    let status = command.stdin(Stdio::null()).stdout(file).status();
    let passed = status.expect("the program starts").success();
    let mut digest = Sha256::new();
    let mut reader = File::open(into).expect("it was written");
    let size = std::io::copy(&mut reader, &mut Digesting(&mut digest)).expect("it is readable");
    let saw = format!("{size} bytes, SHA-256 {}", hex::encode(digest.finalize()));
    Test { passed, saw }
}

struct Digesting<'a>(&'a mut Sha256);

impl std::io::Write for Digesting<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
