//! When memory freed after much was held is worth giving back: once, when
//! nobody holds much any more. Frees nothing itself.

/// Bytes held for one connection that are worth a clean-up afterwards, which
/// is when each holds no more than a few pending requests.
const MUCH: usize = 16 << 10;
const QUIET: usize = 2 << 10;

/// Whether much was held, and may lie freed in the heap.
#[derive(Debug, Default)]
pub struct Burst(bool);

impl Burst {
    /// Looks at the bytes each connection holds; `true` once after a burst.
    pub fn is_over(&mut self, held: impl Iterator<Item = usize>) -> bool {
        let most = held.max().unwrap_or(0);
        let over = self.0 && most <= QUIET;
        self.0 = (self.0 || most > MUCH) && !over;
        over
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_over_once_when_all_are_quiet() {
        let mut burst = Burst::default();
        for (held, over) in [
            (vec![], false),
            (vec![0, MUCH], false),
            (vec![0, 1], false),
            (vec![MUCH + 1, 0], false),
            (vec![QUIET + 1, 0], false),
            (vec![QUIET, 0], true),
            (vec![0, 0], false),
            (vec![MUCH * 100], false),
            (vec![], true),
        ] {
            assert_eq!(burst.is_over(held.iter().copied()), over, "{held:?}");
        }
    }
}
