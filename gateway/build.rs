//! Puts the kernel programs where `intercept::guard` embeds them from. They are built apart, by
//! `cargo xtask build-ebpf`: they need another compiler.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::exit;
use std::time::SystemTime;

fn main() {
    // Asked at run time: two checkouts may share one target folder, and with it this program.
    let Some(manifest) = env::var_os("CARGO_MANIFEST_DIR") else {
        return stop("cargo did not set CARGO_MANIFEST_DIR");
    };
    let workspace = Path::new(&manifest).join("..");
    let target = match env::var_os("CARGO_TARGET_DIR") {
        Some(folder) => workspace.join(folder),
        None => workspace.join("target"),
    };
    let object = target.join("bpf/sluice-ebpf.o");
    let sources = workspace.join("gateway-ebpf/src");
    println!("cargo::rerun-if-env-changed=CARGO_TARGET_DIR");
    println!("cargo::rerun-if-changed={}", object.display());
    println!("cargo::rerun-if-changed={}", sources.display());

    let Some(out) = env::var_os("OUT_DIR").map(PathBuf::from) else {
        return stop("cargo did not set OUT_DIR");
    };
    if !object.exists() {
        return stop("the BPF object is missing: run `cargo xtask build`");
    }
    if newest(&sources) > modified(&object) {
        println!(
            "cargo::warning=the BPF object is older than its sources: run `cargo xtask build`"
        );
    }
    if let Err(error) = fs::copy(&object, out.join("sluice-ebpf.o")) {
        stop(&format!("copying {}: {error}", object.display()));
    }
}

fn stop(why: &str) {
    println!("cargo::error={why}");
    exit(1);
}

fn newest(folder: &Path) -> Option<SystemTime> {
    let entries = fs::read_dir(folder).ok()?.flatten();
    entries
        .map(|entry| {
            if entry.path().is_dir() {
                newest(&entry.path())
            } else {
                modified(&entry.path())
            }
        })
        .max()
        .flatten()
}

fn modified(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).ok()?.modified().ok()
}
