//! Policies and what is known of the schema, put together.

use criterion::{BatchSize, BenchmarkId, Criterion};
use gateway::policy::{Operation, evaluate};
use gateway::session::decide::Derived;
use gateway::sql;
use gateway::sql::strings::Strings;

use super::samples;

pub fn bench(criterion: &mut Criterion) {
    let judge = samples::judge();
    let mut group = criterion.benchmark_group("decision");
    group.bench_function("connect", |bencher| {
        bencher.iter(|| judge.connect("app", false));
    });
    let facts = sql::analyse(samples::SELECT, &[]);
    group.bench_function("policies alone, one SELECT", |bencher| {
        let operation = Operation::Sql {
            target: "shop",
            database: "shop",
            statement: &facts.statements[0],
            parameters: &[],
        };
        bencher.iter(|| evaluate(&judge.policies, &judge.principal, &operation));
    });
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.unwrap_or_else(|error| panic!("{error}"));
    let derived = Derived::default();
    for size in [57, 1_000, 100_000] {
        let text = match size {
            57 => samples::SELECT.to_owned(),
            _ => samples::statement(size),
        };
        group.bench_function(BenchmarkId::new("ruling, bytes", size), |bencher| {
            bencher.iter_batched(
                || {
                    let read = judge.read(text.as_bytes(), Strings::Standard);
                    let read = runtime.block_on(read);
                    read.unwrap_or_else(|denied| panic!("{denied:?}"))
                },
                |analysed| judge.rule(text.as_bytes(), analysed, &derived),
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}
