//! A fuzz target for each decoder: any bytes are taken without a panic, in bounded memory,
//! and what was understood is written and understood again as the same.
//!
//! `make fuzz` gives them to libFuzzer, with coverage; `make test` gives them their seeds and
//! some thousand changes of each.

mod seeds;
mod targets;

pub use seeds::seeds;

/// A target: its name, and what takes the bytes.
pub type Target = (&'static str, fn(&[u8]));

/// Every decoder of bytes that somebody else wrote, or may have.
pub const TARGETS: [Target; 10] = [
    ("frame", vigil_relay::fuzz_one),
    ("control", targets::control),
    ("journal", targets::journal),
    ("exits", targets::exits),
    ("pair", targets::pair),
    ("takeovers", targets::takeovers),
    ("estate", targets::estate),
    ("bootstrap", targets::bootstrap),
    ("options", targets::options),
    ("flags", targets::flags),
];

#[cfg(test)]
mod tests {
    use super::*;

    /// xorshift: the same changes every time.
    struct Dice(u64);

    impl Dice {
        fn next(&mut self, below: usize) -> usize {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            usize::try_from(self.0 >> 33).unwrap_or(0) % below.max(1)
        }
    }

    /// Changes, cuts, doubles.
    fn changed(seed: &[u8], dice: &mut Dice) -> Vec<u8> {
        let mut bytes = seed.to_vec();
        for _ in 0..=dice.next(4) {
            let at = dice.next(bytes.len());
            match dice.next(5) {
                0 => bytes.truncate(at),
                1 if at < bytes.len() => bytes[at] ^= 1 << dice.next(8),
                2 if at < bytes.len() => bytes[at] = u8::try_from(dice.next(256)).unwrap_or(0),
                3 => bytes.insert(at, u8::try_from(dice.next(256)).unwrap_or(0)),
                _ => {
                    let piece = bytes[at..bytes.len().min(at + 16)].to_vec();
                    bytes.splice(at..at, piece);
                }
            }
        }
        bytes
    }

    #[test]
    fn every_decoder_takes_its_seeds_and_what_comes_of_them() {
        for (name, target) in TARGETS {
            let seeds = seeds(name);
            assert!(seeds.len() > 1, "{name} has no seeds");
            let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
            for seed in &seeds {
                target(seed);
                for _ in 0..500 {
                    target(&changed(seed, &mut dice));
                }
            }
        }
    }
}
