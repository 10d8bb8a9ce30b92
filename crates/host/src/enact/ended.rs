//! What is told of a container's end, as a line for where the journal cannot keep it.

use serde::{Deserialize, Serialize};
use vigil_model::Exit;

/// Init's pid and end, as told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// Its pid; 0 if nobody knows.
    pub pid: u32,
    /// How it ended.
    pub exit: Exit,
}

/// `life` tells one life of a bundle from the next.
#[derive(Serialize, Deserialize)]
struct Kept(Option<u64>, u32, Exit);

impl Ended {
    /// Of this life.
    pub fn line(&self, life: Option<u64>) -> serde_json::Result<String> {
        serde_json::to_string(&Kept(life, self.pid, self.exit))
    }

    /// Anything but a whole one of this life is none.
    pub fn parse(line: &str, life: Option<u64>) -> Option<Self> {
        let Kept(told_of, pid, exit) = serde_json::from_str(line).ok()?;
        (told_of == life).then_some(Self { pid, exit })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use vigil_model::{Moment, Status};

    #[test]
    fn a_line_comes_back_for_its_own_life_only() {
        let ended = Ended {
            pid: 7,
            exit: Exit {
                status: Status::Exited(3),
                at: Moment { secs: 5, nanos: 6 },
            },
        };
        let line = ended.line(Some(1)).unwrap();
        assert_eq!(Ended::parse(&line, Some(1)), Some(ended));
        for other in [None, Some(2)] {
            assert_eq!(Ended::parse(&line, other), None);
        }
        assert_eq!(Ended::parse(&line[..line.len() - 1], Some(1)), None);
    }
}
