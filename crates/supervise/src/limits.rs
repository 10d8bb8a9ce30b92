//! How long this shim waits for others: for runc's verbs and for somebody to
//! need it at all. The defaults are the contract; an operator with slow hooks
//! and a test with little time change single ones through the environment. A
//! value that cannot be used is named in a warning and never guessed.

use std::time::Duration;

use vigil_host::runc::Deadlines;

/// Longest time that may be asked for, in milliseconds: a day.
const MOST_MS: u64 = 86_400_000;

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// For each verb of runc.
    pub runc: Deadlines,
    /// After this a pair without Create and without connection leaves.
    pub idle: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            runc: Deadlines::default(),
            idle: Duration::from_mins(1),
        }
    }
}

impl Limits {
    /// The defaults, changed by `VIGIL_DEADLINE_CREATE_MS` (and `_START_`,
    /// `_EXEC_`, `_DELETE_`, `_UPDATE_`, `_CHECKPOINT_`, `_RESTORE_`) and by
    /// `VIGIL_IDLE_MS`: milliseconds from 1 to a day. Beside them what is to
    /// be warned of, a sentence each.
    pub fn given(variable: impl Fn(&str) -> Option<String>) -> (Self, Vec<String>) {
        let mut limits = Self::default();
        let mut warnings = Vec::new();
        let runc = &mut limits.runc;
        for (name, limit) in [
            ("VIGIL_DEADLINE_CREATE_MS", &mut runc.create),
            ("VIGIL_DEADLINE_START_MS", &mut runc.start),
            ("VIGIL_DEADLINE_EXEC_MS", &mut runc.exec),
            ("VIGIL_DEADLINE_DELETE_MS", &mut runc.delete),
            ("VIGIL_DEADLINE_UPDATE_MS", &mut runc.update),
            ("VIGIL_DEADLINE_CHECKPOINT_MS", &mut runc.checkpoint),
            ("VIGIL_DEADLINE_RESTORE_MS", &mut runc.restore),
            ("VIGIL_IDLE_MS", &mut limits.idle),
        ] {
            let Some(text) = variable(name) else {
                continue;
            };
            match text.parse() {
                Ok(ms @ 1..=MOST_MS) => *limit = Duration::from_millis(ms),
                Ok(_) | Err(_) => warnings.push(format!(
                    "{name} is not a number of milliseconds from 1 to {MOST_MS}: ignored"
                )),
            }
        }
        (limits, warnings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn single_ones_are_changed_and_nonsense_is_named() {
        let (limits, warnings) = Limits::given(|name| match name {
            "VIGIL_DEADLINE_CREATE_MS" => Some("300".to_owned()),
            "VIGIL_DEADLINE_EXEC_MS" => Some("0".to_owned()),
            "VIGIL_IDLE_MS" => Some("soon".to_owned()),
            _ => None,
        });
        assert_eq!(limits.runc.create, Duration::from_millis(300));
        let create = limits.runc.create;
        let rest = Limits {
            runc: Deadlines {
                create,
                ..Deadlines::default()
            },
            ..Limits::default()
        };
        assert_eq!(limits, rest);
        assert_eq!(warnings.len(), 2);
        assert!(warnings[0].starts_with("VIGIL_DEADLINE_EXEC_MS "));
        assert!(warnings[1].starts_with("VIGIL_IDLE_MS "));
    }
}
