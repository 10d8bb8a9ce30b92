//! `-info`: what this runtime is, asked by containerd ≥ 2.0.
//!
//! Owns the question on stdin and the answer on stdout. It runs nothing: the
//! features come from whoever ran `runc features`.

use containerd_shim_protos::types::introspection::{RuntimeInfo, RuntimeVersion};
use protobuf::{Message, MessageField, well_known_types::any::Any};
use vigil_model::Options;

use crate::{
    Error, bootstrap,
    options::{self, Told},
};

/// The type of the features; its value is JSON.
const FEATURES: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";

/// What was asked: the options that choose the runtime to ask about.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Question {
    /// The options, defaults if there were none.
    pub options: Options,
    /// Sentences for the operator.
    pub warnings: Vec<String>,
    /// The options as they came, for the answer.
    echo: Option<Any>,
}

/// Understands the stdin of `-info`: an options `Any` or nothing.
pub fn question(stdin: &[u8]) -> Result<Question, Error> {
    if stdin.is_empty() {
        return Ok(Question::default());
    }
    let any = bootstrap::bare(stdin)?;
    let Told { options, warnings } = options::decode(&any)?;
    Ok(Question {
        options,
        warnings,
        echo: Some(any),
    })
}

/// The bytes for stdout. `name` is the runtime's type, `features` the JSON of
/// `runc features`, `None` if it has no such command.
pub fn answer(
    question: Question,
    name: &str,
    version: &str,
    revision: &str,
    features: Option<Vec<u8>>,
) -> Result<Vec<u8>, Error> {
    RuntimeInfo {
        name: name.to_owned(),
        version: MessageField::some(RuntimeVersion {
            version: version.to_owned(),
            revision: revision.to_owned(),
            ..RuntimeVersion::default()
        }),
        options: question.echo.into(),
        features: features
            .map(|value| Any {
                type_url: FEATURES.to_owned(),
                value,
                ..Any::default()
            })
            .into(),
        ..RuntimeInfo::default()
    }
    .write_to_bytes()
    .map_err(|source| Error::Encode {
        message: "RuntimeInfo",
        source,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;

    #[test]
    fn without_options_and_features() {
        let bytes = answer(question(b"").unwrap(), "io.x.v2", "1.0", "r", None).unwrap();
        assert_eq!(bytes, b"\x0a\x07io.x.v2\x12\x08\x0a\x031.0\x12\x01r");
    }

    #[test]
    fn options_are_echoed_and_features_passed_on() {
        let stdin = b"\x0a\x1acontainerd.runc.v1.Options\x12\x06\x32\x04crun";
        let asked = question(stdin).unwrap();
        assert_eq!(asked.options.binary_name, "crun");
        let bytes = answer(asked, "n", "v", "", Some(b"{}".to_vec())).unwrap();
        let mut wanted = b"\x0a\x01n\x12\x03\x0a\x01v\x1a\x24".to_vec();
        wanted.extend_from_slice(stdin);
        wanted.extend_from_slice(b"\x22\x49\x0a\x43");
        wanted.extend_from_slice(FEATURES.as_bytes());
        wanted.extend_from_slice(b"\x12\x02{}");
        assert_eq!(bytes, wanted);
    }

    #[test]
    fn bad_stdin_is_refused() {
        assert!(matches!(question(b"\xff"), Err(Error::StdinGarbage { .. })));
        assert!(matches!(
            question(b"\x0a\x03foo"),
            Err(Error::OptionsType { .. })
        ));
    }
}
