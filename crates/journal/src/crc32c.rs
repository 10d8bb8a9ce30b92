//! CRC-32C (Castagnoli), a byte at a time from a table of 1 KiB. What is
//! summed here is a few KiB in a process's life. The hardware instruction
//! would first have to be asked for, and in a virtual machine each CPUID is a
//! trap: asking cost 10 µs a question, fifteen questions a process.

/// The polynomial, its lowest power first.
const POLYNOMIAL: u32 = 0x82f6_3b78;

const TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0_u32;
    while byte < 256 {
        let mut rest = byte;
        let mut bit = 0;
        while bit < 8 {
            rest = rest >> 1 ^ if rest & 1 == 1 { POLYNOMIAL } else { 0 };
            bit += 1;
        }
        table[byte as usize] = rest;
        byte += 1;
    }
    table
};

/// The sum of these bytes.
pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    crc32c_append(0, bytes)
}

/// The sum of what `sum` is the sum of and of these bytes after it.
pub(crate) fn crc32c_append(sum: u32, bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!sum, |rest, byte| {
        let [low, ..] = rest.to_le_bytes();
        rest >> 8 ^ TABLE[usize::from(low ^ byte)]
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_vectors_hold() {
        // RFC 3720, B.4, and the customary check value.
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        let up: [u8; 32] = std::array::from_fn(|i| u8::try_from(i).unwrap());
        assert_eq!(crc32c(&up), 0x46dd_794e);
        assert_eq!(crc32c(b""), 0);
    }

    #[test]
    fn a_sum_can_be_continued_anywhere() {
        let bytes = b"continued";
        for at in 0..=bytes.len() {
            let (head, tail) = bytes.split_at(at);
            assert_eq!(crc32c_append(crc32c(head), tail), crc32c(bytes));
        }
    }
}
