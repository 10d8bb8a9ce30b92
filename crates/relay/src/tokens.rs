//! Which number an event carries that is of a connection: each has two, its
//! own and its pair's, above those of everything else that is waited for.

/// The listening socket.
pub const LISTENER: u64 = 0;
/// Signals.
pub const SIGNALS: u64 = 1;
/// The control socket.
pub const CONTROL: u64 = 2;
/// First token that belongs to a connection.
const FIRST: u64 = 16;
/// First that belongs to a process that is no child: above those of all connections.
const ENDS: u64 = 1 << 40;

/// The token of the process that is registered there.
pub fn token_of_end(pin: u32) -> u64 {
    ENDS + u64::from(pin)
}

/// The registered process a token means.
pub fn end_of(token: u64) -> Option<u32> {
    u32::try_from(token.checked_sub(ENDS)?).ok()
}

/// Its own token; its pair's is the next.
pub fn token_of(number: u32) -> u64 {
    FIRST + u64::from(number) * 2
}

/// The connection a token means, and whether its pair is meant.
pub fn owner_of(token: u64) -> Option<(u32, bool)> {
    let place = token.checked_sub(FIRST).filter(|_| token < ENDS)?;
    Some((u32::try_from(place / 2).ok()?, place % 2 == 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_token_means_one_end_of_one_connection() {
        for number in [0, 1, 77, u32::MAX] {
            assert_eq!(owner_of(token_of(number)), Some((number, false)));
            assert_eq!(owner_of(token_of(number) + 1), Some((number, true)));
        }
        assert_eq!(owner_of(FIRST - 1), None);
        assert_eq!(owner_of(ENDS), None);
        for pin in [0, 1015, u32::MAX] {
            assert_eq!(end_of(token_of_end(pin)), Some(pin));
            assert_eq!(owner_of(token_of_end(pin)), None);
        }
        assert_eq!(end_of(token_of(u32::MAX) + 1), None);
    }
}
