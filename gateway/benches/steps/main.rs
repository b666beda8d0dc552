//! What runs per statement, per message or per byte, one step at a time, against its size: cost must stay linear.
//!
//! `cargo xtask bench micro` runs all of it and makes a table; one of them alone: `cargo bench --bench steps -- facts`.

use std::time::Duration;

use criterion::Criterion;

mod decision;
mod evidence;
mod facts;
mod frames;
mod masking;
mod samples;

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .sample_size(20)
        .configure_from_args();
    frames::bench(&mut criterion);
    facts::bench(&mut criterion);
    decision::bench(&mut criterion);
    masking::bench(&mut criterion);
    evidence::bench(&mut criterion);
    criterion.final_summary();
}
