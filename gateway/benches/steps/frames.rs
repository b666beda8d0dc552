//! Cutting a stream into messages.

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput};
use gateway::protocol::postgres::{Decoder, Sender};

use super::samples;

const STREAM: usize = 1 << 20;

pub fn bench(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("frame decode, 1 MiB of DataRows");
    for columns in [1, 6, 100, 1_600] {
        let stream = samples::stream(&samples::row(columns, 16), STREAM);
        group.throughput(Throughput::Bytes(stream.len() as u64));
        group.bench_function(BenchmarkId::new("columns", columns), |bencher| {
            bencher.iter_batched(
                || stream.clone(),
                |mut buffer| {
                    let mut decoder = Decoder::new(Sender::Backend, 1 << 30);
                    let mut messages = 0u32;
                    while let Ok(Some(_)) = decoder.next(&mut buffer, |_| true) {
                        messages += 1;
                    }
                    messages
                },
                BatchSize::LargeInput,
            );
        });
    }
    group.finish();
}
