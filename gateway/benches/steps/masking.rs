//! Rows with and without masked columns, and the transforms.

use bytes::BytesMut;
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput};
use gateway::policy::masking::{Takes, Transform};
use gateway::protocol::postgres::{Message, Sender, decode};
use gateway::session::mask::{Delivery, MaskedColumn, Plan};

use super::samples;

const STREAM: usize = 256 << 10;

pub fn bench(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("transform, one value");
    for (name, transform) in [
        ("redact", Transform::Redact),
        ("keep_last(4)", Transform::KeepLast(4)),
    ] {
        for size in [16, 1_000, 100_000] {
            let value = vec![b'7'; size];
            group.throughput(Throughput::Bytes(size as u64));
            group.bench_function(BenchmarkId::new(name, size), |bencher| {
                bencher.iter(|| transform.apply(&value, Takes::Text));
            });
        }
    }
    group.finish();
    let mut group = criterion.benchmark_group("delivery of 256 KiB of rows");
    for columns in [1, 6, 100, 1_600] {
        let rows = messages(samples::stream(&samples::row(columns, 16), STREAM));
        let bytes: usize = rows.iter().map(|row| row.bytes().len()).sum();
        group.throughput(Throughput::Bytes(bytes as u64));
        for masked in [0, 1, 3] {
            if masked > columns {
                continue;
            }
            let plan = plan(columns, masked);
            let name = format!("{masked} masked, columns");
            group.bench_function(BenchmarkId::new(name, columns), |bencher| {
                bencher.iter_batched(
                    || rows.clone(),
                    |rows| deliver(&rows, &plan),
                    BatchSize::LargeInput,
                );
            });
        }
    }
    group.finish();
}

fn deliver(rows: &[Message], plan: &Plan) -> usize {
    let mut delivery = Delivery::default();
    for row in rows {
        match plan.changes_nothing() {
            true => delivery.unchanged(row),
            false => {
                let masked = delivery.row(row, plan);
                masked.unwrap_or_else(|error| panic!("{error}"));
            }
        }
    }
    delivery.len()
}

fn messages(mut stream: BytesMut) -> Vec<Message> {
    let mut messages = Vec::new();
    while let Ok(Some(message)) = decode(&mut stream, Sender::Backend, 1 << 30) {
        messages.push(message);
    }
    messages
}

/// The first columns are masked.
fn plan(columns: u16, masked: u16) -> Plan {
    Plan::new(&samples::description(columns), |field| {
        let column = u16::try_from(field.attribute).ok()?;
        (column < masked).then(|| MaskedColumn {
            name: String::from_utf8_lossy(&field.name).into_owned(),
            transform: Transform::KeepLast(4),
            text_like: true,
        })
    })
}
