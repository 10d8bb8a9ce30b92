//! One stream that a container or an exec speaks on: what it must have said so far, byte for
//! byte, and what was heard.

use std::path::Path;

use anyhow::{Result, ensure};
use vigil_lab::{FifoReader, by, until};

/// Long: a shim may die and another take over, on a loaded machine.
const PATIENCE: f64 = 20.0;

/// See the module.
#[derive(Debug)]
pub struct Voice {
    name: String,
    reader: FifoReader,
    due: String,
    /// And perhaps this.
    maybe: String,
}

impl Voice {
    /// Of the fifo at `path`, opened before anybody writes there.
    pub fn of(name: &str, path: &Path) -> Result<Self> {
        Ok(Self {
            name: name.to_owned(),
            reader: FifoReader::open(path)?,
            due: String::new(),
            maybe: String::new(),
        })
    }

    /// It shall say this, too.
    pub fn owes(&mut self, text: &str) {
        self.due.push_str(text);
    }

    /// It may say this as its last words, or not: nobody knows.
    pub fn may_owe(&mut self, text: &str) {
        self.maybe.push_str(text);
    }

    /// Why what was heard is wrong; `Ok(true)` if it is all.
    fn whole(&self, heard: &[u8]) -> Result<bool> {
        let more = format!("{}{}", self.due, self.maybe);
        let due = if heard.len() > self.due.len() {
            &more
        } else {
            &self.due
        };
        compare(&self.name, heard, due.as_bytes())
    }

    /// Waits until all of it was heard, and nothing else.
    pub fn heard(&self) -> Result<()> {
        let mut wrong = None;
        let heard = until("", by(PATIENCE), || {
            match self.whole(&self.reader.so_far()) {
                Ok(whole) => whole.then_some(()),
                Err(error) => {
                    wrong = Some(error);
                    Some(())
                }
            }
        });
        if let Some(wrong) = wrong {
            return Err(wrong);
        }
        ensure!(
            heard.is_ok(),
            "{}: {} of {} bytes came",
            self.name,
            self.reader.so_far().len(),
            self.due.len()
        );
        Ok(())
    }

    /// What was heard up to now.
    #[must_use]
    pub fn so_far(&self) -> String {
        String::from_utf8_lossy(&self.reader.so_far()).into_owned()
    }

    /// Waits for its end; all of it must have come by then.
    pub fn over(self) -> Result<()> {
        let (heard, _) = self.reader.to_end(by(PATIENCE))?;
        let whole = self.whole(&heard)?;
        ensure!(
            whole,
            "{}: ended after {} of {} bytes",
            self.name,
            heard.len(),
            self.due.len()
        );
        Ok(())
    }
}

/// Whether all of `due` was heard; an error as soon as something else was.
fn compare(name: &str, heard: &[u8], due: &[u8]) -> Result<bool> {
    let same = heard.iter().zip(due).take_while(|(a, b)| a == b).count();
    if same < heard.len() {
        let text = |bytes: &[u8]| {
            let (from, to) = (same.saturating_sub(20), bytes.len().min(same + 40));
            String::from_utf8_lossy(&bytes[from.min(to)..to]).into_owned()
        };
        anyhow::bail!(
            "{name}: from byte {same} on: {:?} instead of {:?}",
            text(heard),
            text(due)
        );
    }
    Ok(heard.len() == due.len())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::compare;

    #[test]
    fn a_missing_and_a_doubled_byte_are_seen() {
        assert!(compare("v", b"1\n2\n", b"1\n2\n").unwrap());
        assert!(!compare("v", b"1\n2", b"1\n2\n").unwrap());
        for wrong in [&b"1\n\n"[..], b"1\n2\n2\n", b"2\n", b"1\n2\n\n"] {
            assert!(compare("v", wrong, b"1\n2\n").is_err(), "{wrong:?}");
        }
    }
}
