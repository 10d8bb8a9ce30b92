//! The JSON of an exec's process: passed through as it came, but for
//! `terminal`, where the request outranks the document. Fields this project
//! has never heard of stay in it.

use serde_json::Value;

use crate::{Error, Result};

/// `raw` with `terminal` set as asked.
pub fn process_document(raw: &[u8], terminal: bool) -> Result<Vec<u8>> {
    let malformed = |problem: String| Error::Malformed {
        path: "process of the exec".into(),
        problem,
    };
    let mut value: Value = serde_json::from_slice(raw).map_err(|e| malformed(e.to_string()))?;
    let Value::Object(fields) = &mut value else {
        return Err(malformed("not a JSON object".into()));
    };
    fields.insert("terminal".into(), Value::Bool(terminal));
    serde_json::to_vec(&value).map_err(|e| malformed(e.to_string()))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn only_the_terminal_changes() {
        let raw = br#"{"terminal":true,"args":["a"],"new":{"x":[1,18446744073709551615,-1.5]},"cwd":"/"}"#;
        let patched: Value =
            serde_json::from_slice(&process_document(raw, false).unwrap()).unwrap();
        let mut expected: Value = serde_json::from_slice(raw).unwrap();
        expected["terminal"] = Value::Bool(false);
        assert_eq!(patched, expected);
        let added = process_document(b"{}", true).unwrap();
        assert_eq!(added, br#"{"terminal":true}"#);
    }

    #[test]
    fn what_is_no_object_is_an_error() {
        for bad in [&b""[..], b"[]", b"{", b"null", b"\xff"] {
            assert!(matches!(
                process_document(bad, true),
                Err(Error::Malformed { .. })
            ));
        }
    }
}
