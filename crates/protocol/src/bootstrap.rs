//! What containerd writes to `start`'s stdin, and how it wants the answer.
//!
//! Owns telling bootstrap parameters (containerd ≥ 2.3) from bare options
//! (older ones) and from nothing: one can be read as the other, so parameters
//! count only if they name the container of the command line. It never guesses
//! by an environment variable or a version.

use std::io::Read;

use containerd_shim_protos::bootstrap_api::{BootstrapParams, BootstrapResult};
use protobuf::{Message, well_known_types::any::Any};
use vigil_model::{Namespace, Options, TaskId};

use crate::{
    Error,
    address::Address,
    error::shown,
    options::{self, Told},
};

/// Longest stdin, in bytes; Go stops there too.
pub const STDIN_MAX: u64 = 10 << 20;

/// The version of the Task API announced to containerd: `start` and `delete`
/// for each container, and a real on-close callback.
const TASK_API: i32 = 2;

/// Everything stdin said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stdin {
    /// The runtime's options.
    pub options: Options,
    /// Sentences for the operator, for the log and never for stderr.
    pub warnings: Vec<String>,
    /// The parameters, if containerd sent them.
    pub params: Option<Params>,
}

/// Bootstrap parameters of containerd ≥ 2.3, without what argv says too.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Params {
    /// containerd's level: −8 trace, −4 debug, 0 info, 4 warn, 8 error.
    pub log_level: i32,
    /// containerd's version.
    pub containerd_version: String,
    /// The events socket, a path.
    pub ttrpc_address: String,
    /// The gRPC socket.
    pub grpc_address: String,
    /// Where the socket is to lie, instead of the default.
    pub socket_dir: Option<String>,
}

/// Reads stdin to its end, but no more than [`STDIN_MAX`].
///
/// Blocks until containerd closes its end, which it does before it waits for
/// the answer; a person at a terminal ends it with ^D.
pub fn read(from: impl Read) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    from.take(STDIN_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(|source| Error::StdinRead { source })?;
    if bytes.len() as u64 > STDIN_MAX {
        return Err(Error::StdinTooLong { limit: STDIN_MAX });
    }
    Ok(bytes)
}

/// Understands the stdin of `start` for the container of the command line.
pub fn understand(bytes: &[u8], namespace: &Namespace, id: &TaskId) -> Result<Stdin, Error> {
    if bytes.is_empty() {
        return Ok(Stdin::default());
    }
    if let Ok(params) = BootstrapParams::parse_from_bytes(bytes) {
        if params.instance_id == id.as_str() && params.namespace == namespace.as_str() {
            return parameters(params);
        }
        // An `Any` has two fields; whoever fills a third did not send one.
        let more = !params.containerd_version.is_empty()
            || !params.containerd_ttrpc_address.is_empty()
            || !params.containerd_grpc_address.is_empty()
            || !params.containerd_binary.is_empty()
            || !params.extensions.is_empty();
        if more {
            return Err(Error::StdinForAnother {
                instance: shown(&params.instance_id),
                namespace: shown(&params.namespace),
            });
        }
    }
    let Told { options, warnings } = options::decode(&bare(bytes)?)?;
    Ok(Stdin {
        options,
        warnings,
        params: None,
    })
}

/// stdin as one `Any`.
pub(crate) fn bare(bytes: &[u8]) -> Result<Any, Error> {
    match Any::parse_from_bytes(bytes) {
        Ok(any) if !any.type_url.is_empty() => Ok(any),
        Ok(_) | Err(_) => Err(Error::StdinGarbage {
            length: bytes.len(),
        }),
    }
}

fn parameters(params: BootstrapParams) -> Result<Stdin, Error> {
    let mut stdin = Stdin::default();
    let mut unused = Vec::new();
    let mut found = false;
    for extension in &params.extensions {
        let Some(any) = extension.value.as_ref() else {
            continue;
        };
        if !found && options::carries_options(&any.type_url) {
            found = true;
            let told = options::decode(any)?;
            stdin.options = told.options;
            stdin.warnings = told.warnings;
        } else {
            unused.push(shown(options::type_name(&any.type_url)));
        }
    }
    if !unused.is_empty() {
        stdin.warnings.push(format!(
            "bootstrap extensions not used: {}",
            shown(&unused.join(", "))
        ));
    }
    stdin.params = Some(Params {
        log_level: params.log_level.value(),
        containerd_version: params.containerd_version,
        ttrpc_address: params.containerd_ttrpc_address,
        grpc_address: params.containerd_grpc_address,
        socket_dir: params.socket_dir.filter(|dir| !dir.is_empty()),
    });
    Ok(stdin)
}

impl Stdin {
    /// The bytes for `start`'s stdout: the plain address, which every
    /// containerd without bootstrap parameters takes, or a `BootstrapResult`
    /// for one that sent them.
    pub fn reply(&self, address: &Address) -> Result<Vec<u8>, Error> {
        if self.params.is_none() {
            return Ok(address.uri().into_bytes());
        }
        BootstrapResult {
            version: TASK_API,
            address: address.uri(),
            protocol: "ttrpc".to_owned(),
            ..BootstrapResult::default()
        }
        .write_to_bytes()
        .map_err(|source| Error::Encode {
            message: "BootstrapResult",
            source,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use std::io::{self, Cursor};

    use proptest::prelude::*;

    use super::*;

    fn understood(bytes: &[u8]) -> Result<Stdin, Error> {
        understand(
            bytes,
            &Namespace::new("k8s.io").unwrap(),
            &TaskId::new("abc").unwrap(),
        )
    }

    fn address() -> Address {
        Address::given("/run/containerd/s/x").unwrap()
    }

    /// Field `number` as a string or message of at most 127 bytes.
    fn field(number: u8, value: &[u8]) -> Vec<u8> {
        let mut bytes = vec![number << 3 | 2, u8::try_from(value.len()).unwrap()];
        bytes.extend_from_slice(value);
        bytes
    }

    fn packed(url: &str, value: &[u8]) -> Vec<u8> {
        [field(1, url.as_bytes()), field(2, value)].concat()
    }

    fn params(id: &str, namespace: &str) -> Vec<u8> {
        [
            field(1, id.as_bytes()),
            field(2, namespace.as_bytes()),
            // log_level: DEBUG, −4 as a varint of ten bytes.
            b"\x18\xfc\xff\xff\xff\xff\xff\xff\xff\xff\x01".to_vec(),
            field(4, b"v2.3.0"),
            field(5, b"/run/c.sock.ttrpc"),
            field(6, b"/run/c.sock"),
            field(7, b"/usr/bin/containerd"),
            field(8, &field(1, &packed("foo.Bar", b""))),
            field(
                8,
                &field(1, &packed("containerd.runc.v1.Options", &field(7, b"/r"))),
            ),
            field(9, b"/run/s"),
        ]
        .concat()
    }

    #[test]
    fn nothing_is_answered_plainly() {
        let stdin = understood(b"").unwrap();
        assert_eq!(stdin, Stdin::default());
        assert_eq!(
            stdin.reply(&address()).unwrap(),
            b"unix:///run/containerd/s/x"
        );
    }

    #[test]
    fn bare_options_are_answered_plainly() {
        let stdin = understood(&packed("containerd.runc.v1.Options", &field(6, b"crun"))).unwrap();
        assert_eq!(stdin.options.binary_name, "crun");
        assert_eq!(stdin.params, None);
        assert_eq!(
            stdin.reply(&address()).unwrap(),
            b"unix:///run/containerd/s/x"
        );
    }

    #[test]
    fn parameters_are_answered_in_kind() {
        let stdin = understood(&params("abc", "k8s.io")).unwrap();
        assert_eq!(stdin.options.root, "/r");
        assert_eq!(stdin.warnings.len(), 1);
        assert!(stdin.warnings[0].contains("foo.Bar"));
        assert_eq!(
            stdin.params,
            Some(Params {
                log_level: -4,
                containerd_version: "v2.3.0".to_owned(),
                ttrpc_address: "/run/c.sock.ttrpc".to_owned(),
                grpc_address: "/run/c.sock".to_owned(),
                socket_dir: Some("/run/s".to_owned()),
            })
        );
        // version 2, the address, "ttrpc".
        let mut wanted = b"\x08\x02\x12\x1a".to_vec();
        wanted.extend_from_slice(b"unix:///run/containerd/s/x\x1a\x05ttrpc");
        assert_eq!(stdin.reply(&address()).unwrap(), wanted);
    }

    #[test]
    fn parameters_for_another_are_refused() {
        for (id, namespace) in [("other", "k8s.io"), ("abc", "default")] {
            assert!(matches!(
                understood(&params(id, namespace)),
                Err(Error::StdinForAnother { instance, .. }) if instance == id
            ));
        }
        // The least that containerd could send: only what an `Any` has too.
        let least = [field(1, b"abc"), field(2, b"k8s.io")].concat();
        assert!(understood(&least).unwrap().params.is_some());
        // Options whose type is no id: an `Any`, and an unknown one.
        let like = [field(1, b"other"), field(2, b"k8s.io")].concat();
        assert!(matches!(
            understood(&like),
            Err(Error::OptionsType { name }) if name == "other"
        ));
    }

    #[test]
    fn bad_options_are_refused() {
        for bytes in [
            packed("foo.Bar", b""),
            packed("containerd.runc.v1.Options", b"\x0a\x01a"),
        ] {
            assert!(understood(&bytes).is_err());
        }
        let inside = [
            field(1, b"abc"),
            field(2, b"k8s.io"),
            field(
                8,
                &field(1, &packed("containerd.runc.v1.Options", b"\x0a\x01a")),
            ),
        ]
        .concat();
        assert!(matches!(
            understood(&inside),
            Err(Error::OptionsDecode { .. })
        ));
    }

    #[test]
    fn garbage_is_named() {
        for bytes in [
            &b"\xff\xff\xff"[..],
            b"hello world\n",
            b"\x00",
            b"\x12\x01a",
        ] {
            assert!(
                matches!(understood(bytes), Err(Error::StdinGarbage { length }) if length == bytes.len()),
                "{bytes:?}"
            );
        }
    }

    #[test]
    fn reading_is_bounded() {
        assert_eq!(read(Cursor::new(b"abc")).unwrap(), b"abc");
        assert!(read(io::repeat(0).take(STDIN_MAX)).is_ok());
        assert!(matches!(
            read(io::repeat(0).take(11 << 20)),
            Err(Error::StdinTooLong { .. })
        ));
        assert!(matches!(
            read(io::repeat(0)),
            Err(Error::StdinTooLong { .. })
        ));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..96)) {
            let _ = understood(&bytes);
        }

        #[test]
        fn cut_parameters_never_pass_for_options(at in 0_usize..200) {
            let whole = params("abc", "k8s.io");
            let cut = &whole[..at.min(whole.len())];
            if let Ok(stdin) = understood(cut) {
                prop_assert!(cut.is_empty() || stdin.params.is_some());
            }
        }
    }
}
