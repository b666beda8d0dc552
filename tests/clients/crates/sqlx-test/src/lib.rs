//! What the tests of sqlx expect of a crate that is not published: connections to `DATABASE_URL`, and macros that
//! make a test of a type and its values.

use std::env;

use sqlx::pool::PoolOptions;
use sqlx::{Connection, Database, Pool};

pub fn setup_if_needed() {
    let _ = dotenvy::dotenv();
}

pub async fn new<DB: Database>() -> anyhow::Result<DB::Connection> {
    setup_if_needed();
    Ok(DB::Connection::connect(&env::var("DATABASE_URL")?).await?)
}

pub async fn pool<DB: Database>() -> anyhow::Result<Pool<DB>> {
    setup_if_needed();
    let options = PoolOptions::<DB>::new().max_connections(5);
    let options = options.test_before_acquire(true);
    Ok(options.connect(&env::var("DATABASE_URL")?).await?)
}

/// The value comes back in text and in binary, and goes out in binary.
#[macro_export]
macro_rules! test_type {
    ($name:ident<$ty:ty>($db:ident, $($text:literal == $value:expr),+ $(,)?)) => {
        $crate::test_prepared_type!($name<$ty>($db, $($text == $value),+));
        $crate::test_unprepared_type!($name<$ty>($db, $($text == $value),+));
    };
    ($name:ident($db:ident, $($text:literal == $value:expr),+ $(,)?)) => {
        $crate::test_type!($name<$name>($db, $($text == $value),+));
    };
    // Geometric values have no order, so that `IS NOT DISTINCT FROM` knows nothing of them.
    ($name:ident<$ty:ty>($db:ident, $($text:literal ~= $value:expr),+ $(,)?)) => {
        $crate::test_type!($name<$ty>($db, "SELECT ({0} ~= $1)::int4, {0}, $2", $($text == $value),+));
    };
    // sqlx does not read the text of an array of boxes, whose delimiter is a semicolon.
    ($name:ident<$ty:ty>($db:ident, $($text:literal @= $value:expr),+ $(,)?)) => {
        $crate::test_prepared_type!($name<$ty>($db, "SELECT (array_to_string({0}, ' ') = array_to_string($1, ' '))::int4, {0}, $2", $($text == $value),+));
    };
    ($name:ident<$ty:ty>($db:ident, $sql:literal, $($text:literal == $value:expr),+ $(,)?)) => {
        $crate::test_prepared_type!($name<$ty>($db, $sql, $($text == $value),+));
        $crate::test_unprepared_type!($name<$ty>($db, $($text == $value),+));
    };
}

/// The value comes back in binary only.
#[macro_export]
macro_rules! test_decode_type {
    ($name:ident<$ty:ty>($db:ident, $($text:literal == $value:expr),+ $(,)?)) => {
        paste::item! {
            #[tokio::test]
            async fn [< test_prepared_decode_type_ $name >]() -> anyhow::Result<()> {
                use sqlx::Row;
                let mut connection = $crate::new::<$db>().await?;
                $(
                    let row = sqlx::query(concat!("SELECT ", $text)).fetch_one(&mut connection).await?;
                    let seen: $ty = row.try_get(0)?;
                    assert_eq!($value, seen);
                )+
                Ok(())
            }
        }
        $crate::test_unprepared_type!($name<$ty>($db, $($text == $value),+));
    };
    ($name:ident($db:ident, $($text:literal == $value:expr),+ $(,)?)) => {
        $crate::test_decode_type!($name<$name>($db, $($text == $value),+));
    };
}

/// As a simple query.
#[macro_export]
macro_rules! test_unprepared_type {
    ($name:ident<$ty:ty>($db:ident, $($text:literal == $value:expr),+ $(,)?)) => {
        paste::item! {
            #[tokio::test]
            async fn [< test_unprepared_type_ $name >]() -> anyhow::Result<()> {
                use sqlx::prelude::*;
                use futures_util::TryStreamExt;
                let mut connection = $crate::new::<$db>().await?;
                $(
                    let statement = sqlx::AssertSqlSafe(format!("SELECT {}", $text));
                    let mut rows = connection.fetch(sqlx::raw_sql(statement));
                    let row = rows.try_next().await?.expect("a row");
                    let seen = row.try_get::<$ty, _>(0)?;
                    assert_eq!($value, seen);
                    drop(rows);
                )+
                Ok(())
            }
        }
    };
}

/// As a parameter, compared by the server, and back.
#[macro_export]
macro_rules! test_prepared_type {
    ($name:ident<$ty:ty>($db:ident, $($text:literal == $value:expr),+ $(,)?)) => {
        $crate::test_prepared_type!($name<$ty>($db, "SELECT ({0} IS NOT DISTINCT FROM $1)::int4, {0}, $2", $($text == $value),+));
    };
    ($name:ident($db:ident, $($text:literal == $value:expr),+ $(,)?)) => {
        $crate::test_prepared_type!($name<$name>($db, $($text == $value),+));
    };
    ($name:ident<$ty:ty>($db:ident, $sql:literal, $($text:literal == $value:expr),+ $(,)?)) => {
        paste::item! {
            #[tokio::test]
            async fn [< test_prepared_type_ $name >]() -> anyhow::Result<()> {
                use sqlx::Row;
                let mut connection = $crate::new::<$db>().await?;
                $(
                    let statement = sqlx::AssertSqlSafe(format!($sql, $text));
                    let row = sqlx::query(statement)
                        .bind($value)
                        .bind($value)
                        .fetch_one(&mut connection)
                        .await?;
                    let equal: i32 = row.try_get(0)?;
                    assert!(equal != 0, "the server has another value than {:?} for {}", $value, $text);
                    let seen: $ty = row.try_get(1)?;
                    assert_eq!($value, seen);
                    let seen: $ty = row.try_get(2)?;
                    assert_eq!($value, seen);
                )+
                Ok(())
            }
        }
    };
}
