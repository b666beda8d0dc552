//! What a statement's text says it would do.

use criterion::{BenchmarkId, Criterion, Throughput};
use gateway::policy::masking::{MaskRule, Transform};
use gateway::sql;
use gateway::sql::strings::Strings;

use super::samples;

/// The analysis itself, on a thread with room to nest; and as a session asks for it, the second time and later.
pub fn bench(criterion: &mut Criterion) {
    let sizes = [57, 100, 1_000, 10_000, 100_000, 1_000_000];
    let masks = [MaskRule {
        schema: "public".to_owned(),
        table: "customers".to_owned(),
        column: "email".to_owned(),
        transform: Transform::Redact,
    }];
    let mut group = criterion.benchmark_group("facts, new");
    for size in sizes {
        let text = text(size);
        group.throughput(Throughput::Bytes(text.len() as u64));
        group.bench_function(BenchmarkId::new("bytes", size), |bencher| {
            bencher.iter(|| sql::analyse(&text, &masks));
        });
    }
    group.finish();
    let judge = samples::judge();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.unwrap_or_else(|error| panic!("{error}"));
    let mut group = criterion.benchmark_group("facts, asked for again");
    for size in sizes {
        let text = text(size);
        group.throughput(Throughput::Bytes(text.len() as u64));
        group.bench_function(BenchmarkId::new("bytes", size), |bencher| {
            bencher.iter(|| runtime.block_on(judge.read(text.as_bytes(), Strings::Standard)));
        });
    }
    group.finish();
}

fn text(size: usize) -> String {
    match size {
        57 => samples::SELECT.to_owned(),
        _ => samples::statement(size),
    }
}
