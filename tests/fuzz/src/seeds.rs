//! What each target begins with: the bytes of every version ever shipped, and what
//! containerd sends.

use containerd_shim_protos::bootstrap_api::BootstrapParams;
use protobuf::Message;
use protobuf::well_known_types::any::Any;
use vigil_relay::estate::Estate;

/// The container of the seeds.
pub const ID: &str = "c1";
/// And its namespace.
pub const NAMESPACE: &str = "ns";

/// Journals that were written once.
pub const JOURNALS: [&[u8]; 8] = [
    include_bytes!("../../journals/v2/clean"),
    include_bytes!("../../journals/v2/compacted"),
    include_bytes!("../../journals/v2/torn"),
    include_bytes!("../../journals/v2/bad-middle"),
    include_bytes!("../../journals/v1/clean"),
    include_bytes!("../../journals/v1/compacted"),
    include_bytes!("../../journals/v1/torn"),
    include_bytes!("../../journals/v1/bad-middle"),
];
/// Exit records that were written once.
pub const EXITS: &[u8] = include_bytes!("../../journals/v2/exits");
/// Those of the version before.
const EXITS_1: &[u8] = include_bytes!("../../journals/v1/exits");

/// A `runtimeoptions.v1.Options` with `toml` as its body.
pub fn generic(toml: &[u8]) -> Vec<u8> {
    let mut bytes = vec![3 << 3 | 2];
    let mut length = toml.len();
    while length >= 0x80 {
        bytes.push(u8::try_from(length & 0x7f).unwrap_or(0) | 0x80);
        length >>= 7;
    }
    bytes.push(u8::try_from(length).unwrap_or(0));
    bytes.extend(toml);
    bytes
}

/// `bytes` behind the byte that chooses.
fn chosen(kind: u8, bytes: &[u8]) -> Vec<u8> {
    [&[kind], bytes].concat()
}

/// Without its last line, which is the sum of the rest, and padding.
fn unsummed(file: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(file);
    let body = text.split("\nsum ").next().unwrap_or_default();
    format!("{body}\n").into_bytes()
}

fn control() -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for text in [
        include_str!("../../../crates/relay/fixtures/control-1"),
        include_str!("../../../crates/relay/fixtures/control-2"),
        include_str!("../../../crates/relay/fixtures/control-3"),
    ] {
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let hex = line.split("  ").next().unwrap_or_default().as_bytes();
            let digit = |at: usize| char::from(hex[at]).to_digit(16).unwrap_or(0);
            let byte = |at: usize| u8::try_from(digit(at) << 4 | digit(at + 1)).unwrap_or(0);
            all.push((0..hex.len() / 2).map(|at| byte(at * 2)).collect());
        }
    }
    all
}

/// Of each version, and one of which little is left.
fn estate() -> Vec<Vec<u8>> {
    let whole = include_bytes!("../../../crates/relay/fixtures/estate-1");
    let mut all = vec![whole.to_vec()];
    if let Ok(mut little) = Estate::decode(whole) {
        little.conns.clear();
        little.slots.clear();
        little.shim = None;
        all.push(little.encode());
    }
    all
}

fn journal() -> Vec<Vec<u8>> {
    let mut all = vec![vec![2, 40, 0, 1], vec![3, 0, 1, 0, 200, 0, 7]];
    for file in JOURNALS {
        all.push(chosen(0, file));
        if let Ok(found) = vigil_journal::scan(file) {
            all.extend(found.records.iter().map(|r| chosen(1, &r.payload)));
        }
    }
    all
}

fn bootstrap() -> Vec<Vec<u8>> {
    let options = Any {
        type_url: "containerd.runc.v1.Options".to_owned(),
        value: vec![0x18, 1, 0x32, 4, b'r', b'u', b'n', b'c'],
        ..Any::default()
    };
    let params = BootstrapParams {
        instance_id: ID.to_owned(),
        namespace: NAMESPACE.to_owned(),
        containerd_version: "2.3.0".to_owned(),
        containerd_ttrpc_address: "/run/containerd/containerd.sock.ttrpc".to_owned(),
        ..BootstrapParams::default()
    };
    let written = [options.write_to_bytes(), params.write_to_bytes()];
    written.into_iter().flatten().collect()
}

fn options() -> Vec<Vec<u8>> {
    let toml = "BinaryName = \"crun\"\nSystemdCgroup = true\nIoUid = 7\nOdd = 1\n";
    vec![
        vec![0, 0x18, 1, 0x32, 4, b'r', b'u', b'n', b'c'],
        vec![1, 0x18, 1],
        chosen(2, &generic(toml.as_bytes())),
        chosen(3, toml.as_bytes()),
    ]
}

fn flags() -> Vec<Vec<u8>> {
    let address = "-address\0/run/containerd/containerd.sock";
    [
        format!("-namespace\0ns\0-id\0c1\0{address}\0start"),
        format!("-namespace\0ns\0-id\0c1\0{address}\0-bundle\0/run/b\0-debug\0delete"),
        "-info".to_owned(),
        "--v\0--id=c\0--\0start".to_owned(),
    ]
    .map(String::into_bytes)
    .to_vec()
}

fn frame() -> Vec<Vec<u8>> {
    // A request in two pieces, its echo, a death: see `vigil_relay::fuzz_one`.
    let request = [0, 0, 0, 4, 0, 0, 0, 1, 1, 0, b'a', b'b', b'c', b'd'];
    let mut life = vec![14 << 3];
    life.extend(request);
    life.extend([4, 31 << 3 | 6, 7]);
    let mut cut = vec![6 << 3];
    cut.extend(&request[..6]);
    cut.push(7);
    cut.push(8 << 3);
    cut.extend(&request[6..]);
    vec![life, cut]
}

/// The seeds of a target.
#[must_use]
pub fn seeds(target: &str) -> Vec<Vec<u8>> {
    let pairs: [&[u8]; 2] = [
        include_bytes!("../../journals/v1/pair"),
        include_bytes!("../../journals/v2/pair"),
    ];
    let takeovers: [&[u8]; 2] = [
        include_bytes!("../../journals/v1/takeovers"),
        include_bytes!("../../journals/v2/takeovers"),
    ];
    let both = |files: [&[u8]; 2]| {
        let each = files.map(|file| [chosen(0, file), chosen(1, &unsummed(file))]);
        each.into_iter().flatten().collect()
    };
    match target {
        "frame" => frame(),
        "control" => control(),
        "journal" => journal(),
        "exits" => vec![
            chosen(0, EXITS),
            chosen(0, EXITS_1),
            vec![1, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8],
        ],
        "pair" => both(pairs),
        "takeovers" => both(takeovers),
        "estate" => estate(),
        "bootstrap" => bootstrap(),
        "options" => options(),
        "flags" => flags(),
        _ => Vec::new(),
    }
}
