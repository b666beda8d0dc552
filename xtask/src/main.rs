//! Developer tasks. One match, one file per task.

use std::process::ExitCode;

mod apt;
mod bench;
mod build;
mod build_ebpf;
mod ci;
mod demo;
mod kernels;
mod lint;
mod packages;
mod test;
mod toolchain;

const USAGE: &str = "\
usage: cargo xtask TASK

  build        build the kernel programs and the sluice binary
  build-ebpf   build the kernel programs alone
  demo         install what is missing, build, and show the whole path [--keep, --end]
  test         every test, privileged ones included (root) [bypass: the attacks alone, as a table;
               big: gigabytes, and what they take of the gateway's memory;
               clients: every client, through the gateway and directly;
               denials: denied statements, in every client and message order, as a table;
               pg-suites: PostgreSQL's own suites, through the gateway and directly]
  lint         formatting and clippy, host and kernel code
  bench        speed, against the server itself and a plain hop, as medians; makes docs/performance.md
               [quick: under 5 minutes; --with-peers: installs pgbouncer and HAProxy to compare with;
               part PART…: some of it; profile: a flame graph; micro: single steps;
               gate: against the committed baseline; report: the page again, from the last run]
  kernels      load the kernel programs into other kernels, in QEMU [VERSION…]
  ci           what the gate runs [--fuzz: each fuzz target for 60 s; --fuzz=SECONDS TARGET…]
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (task, rest) = match arguments.split_first() {
        Some((task, rest)) => (task.as_str(), rest),
        None => ("", &[][..]),
    };
    let outcome = match task {
        "build" => build::run(rest),
        "build-ebpf" => build_ebpf::run(rest),
        "demo" => demo::run(rest),
        "test" => test::run(rest),
        "lint" => lint::run(rest),
        "bench" => bench::run(rest),
        "kernels" => kernels::run(rest),
        "ci" => ci::run(rest),
        _ => {
            eprint!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
