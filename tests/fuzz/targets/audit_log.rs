//! The log is verified after somebody may have edited it: never a panic, and never a verdict "ok" on a log
//! that stops being ok when its first byte changes.

#![no_main]

use decoders::audit::chain::verify;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    match verify(input) {
        Ok(_) if !input.is_empty() => {
            let mut edited = input.to_vec();
            edited[0] ^= 1;
            assert!(verify(&edited).is_err());
        }
        Ok(_) => {}
        Err(broken) => drop(broken.to_string()),
    }
});
