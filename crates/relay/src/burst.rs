//! When memory freed after much was held is worth giving back: once, when
//! little of it is held any more. Frees nothing itself.

/// Bytes held together that are worth a clean-up afterwards.
const MUCH: usize = 16 << 10;
/// It is over when one part of so many is left.
const PART: usize = 8;

/// The most that was held since the last clean-up, and may lie freed in the heap.
#[derive(Debug, Default)]
pub(crate) struct Burst(usize);

impl Burst {
    /// Looks at the bytes that are held; `true` once after a burst.
    pub(crate) fn is_over(&mut self, held: usize) -> bool {
        self.0 = self.0.max(held);
        let over = self.0 > MUCH && held <= self.0 / PART;
        if over {
            self.0 = held;
        }
        over
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_over_once_when_little_is_left() {
        let mut burst = Burst::default();
        for (held, over) in [
            (0, false),
            (MUCH, false),
            (1, false),
            (MUCH + PART, false),
            (MUCH / PART + 2, false),
            (MUCH / PART, true),
            (0, false),
            (MUCH * 100, false),
            (0, true),
        ] {
            assert_eq!(burst.is_over(held), over, "{held}");
        }
    }
}
