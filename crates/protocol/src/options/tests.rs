//! Tables of options: every key, every type, every wrong one.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use proptest::prelude::*;

use super::*;

fn packed(url: &str, value: &[u8]) -> Any {
    Any {
        type_url: url.to_owned(),
        value: value.to_vec(),
        ..Any::default()
    }
}

fn body(text: &str) -> Any {
    let mut value = vec![0x1a];
    let mut length = text.len();
    while length >= 0x80 {
        value.push(u8::try_from(length & 0x7f).unwrap() | 0x80);
        length >>= 7;
    }
    value.push(u8::try_from(length).unwrap());
    value.extend_from_slice(text.as_bytes());
    packed("runtimeoptions.v1.Options", &value)
}

fn path(text: &str) -> Any {
    let mut value = vec![0x12, u8::try_from(text.len()).unwrap()];
    value.extend_from_slice(text.as_bytes());
    packed("runtimeoptions.v1.Options", &value)
}

#[test]
fn runcs_own_under_any_prefix() {
    let bytes = b"\x08\x01\x10\x01\x1a\x03/sc\x20\xe8\x07\x28\xe9\x07\x32\x04crun\x3a\x02/r\
        \x42\x02/c\x48\x01\x52\x02/i\x5a\x02/w\x62\x03u:a\x68\x03";
    let wanted = Options {
        binary_name: "crun".to_owned(),
        root: "/r".to_owned(),
        systemd_cgroup: Some(true),
        no_pivot_root: true,
        no_new_keyring: true,
        shim_cgroup: "/sc".to_owned(),
        io_uid: 1000,
        io_gid: 1001,
        criu_path: "/c".to_owned(),
        criu_image_path: "/i".to_owned(),
        criu_work_path: "/w".to_owned(),
    };
    for url in [
        "containerd.runc.v1.Options",
        "type.googleapis.com/containerd.runc.v1.Options",
        "types.containerd.io/x/containerd.runc.v1.Options",
    ] {
        let told = decode(&packed(url, bytes)).unwrap();
        assert_eq!(told, Told::quiet(wanted.clone()), "{url}");
    }
}

#[test]
fn nothing_is_the_default() {
    for none in [
        packed("", b""),
        packed("containerd.runc.v1.Options", b""),
        packed("containerd.runc.v1.Options", b"\x48\x00"),
        packed("runtimeoptions.v1.Options", b""),
        packed("runtimeoptions.v1.Options", b"\x0a\x01t"),
        packed("containerd.linux.runc.CreateOptions", b"\x10\x01\x32\x01a"),
        body("# only a comment\n"),
    ] {
        assert_eq!(decode(&none).unwrap(), Told::default(), "{none:?}");
    }
}

#[test]
fn the_legacy_form() {
    let told = decode(&packed(
        "containerd.linux.runc.CreateOptions",
        b"\x08\x01\x40\x01\x4a\x03/sc\x50\x07\x58\x08\x62\x02/w\x6a\x02/i",
    ))
    .unwrap();
    assert_eq!(
        told.options,
        Options {
            no_pivot_root: true,
            no_new_keyring: true,
            shim_cgroup: "/sc".to_owned(),
            io_uid: 7,
            io_gid: 8,
            criu_work_path: "/w".to_owned(),
            criu_image_path: "/i".to_owned(),
            ..Options::default()
        }
    );
}

#[test]
fn toml_with_every_key() {
    let text = "BinaryName = \"/usr/bin/crun\"\nRoot = \"/r\"\nSystemdCgroup = false\n\
        NoPivotRoot = true\nNoNewKeyring = true\nShimCgroup = \"/sc\"\nIoUid = 1000\n\
        IoGid = 4294967295\nCriuPath = \"/c\"\nCriuImagePath = \"/i\"\nCriuWorkPath = \"/w\"\n";
    let wanted = Options {
        binary_name: "/usr/bin/crun".to_owned(),
        root: "/r".to_owned(),
        systemd_cgroup: Some(false),
        no_pivot_root: true,
        no_new_keyring: true,
        shim_cgroup: "/sc".to_owned(),
        io_uid: 1000,
        io_gid: u32::MAX,
        criu_path: "/c".to_owned(),
        criu_image_path: "/i".to_owned(),
        criu_work_path: "/w".to_owned(),
    };
    assert_eq!(decode(&body(text)).unwrap(), Told::quiet(wanted));
}

#[test]
fn unknown_keys_are_warned_of_by_name() {
    let told = decode(&body("Root = \"/r\"\nColour = 3\n[Nested]\nx = 1\n")).unwrap();
    assert_eq!(told.options.root, "/r");
    assert_eq!(told.warnings.len(), 1);
    assert!(told.warnings[0].contains("Colour"), "{told:?}");
    assert!(told.warnings[0].contains("Nested"), "{told:?}");
}

#[test]
fn wrong_types_name_key_and_type() {
    for (text, key, wanted, found) in [
        ("BinaryName = 1", "BinaryName", "a string", "an integer"),
        ("Root = true", "Root", "a string", "a boolean"),
        (
            "SystemdCgroup = \"true\"",
            "SystemdCgroup",
            "a boolean",
            "a string",
        ),
        ("NoPivotRoot = 1", "NoPivotRoot", "a boolean", "an integer"),
        ("ShimCgroup = [1]", "ShimCgroup", "a string", "an array"),
        (
            "IoUid = 1.5",
            "IoUid",
            "an integer from 0 to 4294967295",
            "a float",
        ),
        (
            "IoGid = -1",
            "IoGid",
            "an integer from 0 to 4294967295",
            "an integer",
        ),
        ("[CriuPath]\nx = 1", "CriuPath", "a string", "a table"),
        ("Root = 2020-01-01", "Root", "a string", "a date"),
    ] {
        let error = decode(&body(text)).unwrap_err();
        assert!(
            matches!(
                &error,
                Error::OptionsKey { key: k, wanted: w, found: f, .. }
                    if *k == key && *w == wanted && *f == found
            ),
            "{text}: {error:?}"
        );
        let refusal = error.refusal("Create");
        assert_eq!(refusal.kind, vigil_model::Kind::InvalidArgument);
        assert!(refusal.says.contains(key) && refusal.says.contains(found));
    }
}

#[test]
fn what_cannot_be_read_is_refused() {
    let unknown = decode(&packed("type.googleapis.com/foo.Options", b"")).unwrap_err();
    assert!(matches!(&unknown, Error::OptionsType { name } if name == "foo.Options"));
    assert!(matches!(
        decode(&packed("", b"x")),
        Err(Error::OptionsType { .. })
    ));
    assert!(matches!(
        decode(&packed("containerd.runc.v1.Options", b"\x0a\x01a")),
        Err(Error::OptionsDecode { .. })
    ));
    assert!(matches!(
        decode(&packed("containerd.runc.v1.Options", b"\x32\x02\xff\xfe")),
        Err(Error::OptionsDecode { .. })
    ));
    assert!(matches!(
        decode(&packed("runtimeoptions.v1.Options", b"\x1a\x09ab")),
        Err(Error::OptionsDecode { .. })
    ));
    let error = decode(&body("Root = \"/r\"\nBinaryName = [")).unwrap_err();
    assert!(
        matches!(error, Error::OptionsToml { line: 2, .. }),
        "{error}"
    );
    // `start`'s stderr is one line.
    assert!(!error.story().contains('\n'), "{error}");
    let not_text = packed("runtimeoptions.v1.Options", b"\x1a\x02\xff\xfe");
    assert!(matches!(
        decode(&not_text),
        Err(Error::OptionsDecode { .. })
    ));
}

#[test]
fn a_file_is_read_and_wins_over_the_body() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("o.toml");
    std::fs::write(&file, "Root = \"/from-file\"\nOdd = 1\n").unwrap();
    let name = file.to_str().unwrap();
    let mut both = path(name);
    both.value
        .extend_from_slice(&body("Root = \"/from-body\"").value);
    let told = decode(&both).unwrap();
    assert_eq!(told.options.root, "/from-file");
    assert!(told.warnings[0].contains("o.toml"), "{told:?}");

    std::fs::write(&file, b"\xff").unwrap();
    assert!(matches!(
        decode(&path(name)),
        Err(Error::OptionsFile { .. })
    ));
    std::fs::write(&file, vec![b'#'; (1 << 20) + 1]).unwrap();
    assert!(matches!(
        decode(&path(name)),
        Err(Error::OptionsFile { .. })
    ));
    std::fs::remove_file(&file).unwrap();
    assert!(matches!(
        decode(&path(name)),
        Err(Error::OptionsRead { .. })
    ));
    for unfit in [dir.path().to_str().unwrap(), "/dev/null", "relative.toml"] {
        assert!(
            matches!(decode(&path(unfit)), Err(Error::OptionsFile { .. })),
            "{unfit}"
        );
    }
}

#[test]
fn checkpoints_options() {
    let fields = b"\x08\x01\x10\x01\x18\x01\x20\x01\x28\x01\x32\x07network\x32\x03ipc\x3a\x04soft\
        \x42\x02/8\x4a\x02/9";
    let mut wanted = Checkpoint {
        path: "/p".to_owned(),
        exit: true,
        open_tcp: true,
        external_unix_sockets: true,
        terminal: true,
        file_locks: true,
        empty_namespaces: vec!["network".to_owned(), "ipc".to_owned()],
        work_path: "/9".to_owned(),
        parent_path: String::new(),
    };
    let modern = packed("containerd.runc.v1.CheckpointOptions", fields);
    assert_eq!(checkpoint("/p".to_owned(), Some(&modern)).unwrap(), wanted);
    assert_eq!(checkpoint(String::new(), Some(&modern)).unwrap().path, "/8");
    wanted.work_path = "/8".to_owned();
    let legacy = packed("x/containerd.linux.runc.CheckpointOptions", fields);
    assert_eq!(checkpoint("/p".to_owned(), Some(&legacy)).unwrap(), wanted);
    let parent = packed("containerd.runc.v1.CheckpointOptions", b"\x52\x03/pp");
    assert_eq!(
        checkpoint(String::new(), Some(&parent))
            .unwrap()
            .parent_path,
        "/pp"
    );
    assert_eq!(
        checkpoint(String::new(), None).unwrap(),
        Checkpoint::default()
    );
    assert!(matches!(
        checkpoint(
            String::new(),
            Some(&packed("containerd.runc.v1.Options", b""))
        ),
        Err(Error::OptionsType { .. })
    ));
}

proptest! {
    #[test]
    fn no_bytes_panic(value in proptest::collection::vec(any::<u8>(), 0..64)) {
        for url in [RUNC, GENERIC, LEGACY] {
            let _ = decode(&packed(url, &value));
        }
        let _ = checkpoint(String::new(), Some(&packed(CHECKPOINT, &value)));
    }
}
