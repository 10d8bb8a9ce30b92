//! libFuzzer's program for all targets: `VIGIL_FUZZ` names the one it is for.
#![no_main]

use std::sync::OnceLock;

static TARGET: OnceLock<fn(&[u8])> = OnceLock::new();

fn target() -> fn(&[u8]) {
    *TARGET.get_or_init(|| {
        let name = std::env::var("VIGIL_FUZZ").unwrap_or_default();
        let known = vigil_fuzz::TARGETS.iter().find(|(n, _)| *n == name);
        known.map_or_else(
            || {
                eprintln!("VIGIL_FUZZ names no target: {name:?}");
                std::process::exit(2)
            },
            |(_, target)| *target,
        )
    })
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| target()(data));
