//! Rules about the graph: which room may use which, and how far the async runtime reaches.
//!
//! Taken from cargo's resolved graph, so that a dependency by detour counts too.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// Crate → what it links in the shipped program (normal dependencies; not build, not dev).
pub type Graph = BTreeMap<String, BTreeSet<String>>;

/// What each room may use of the others (DESIGN §8). `cmd` is checked apart.
pub const ROOMS: [(&str, &[&str]); 9] = [
    ("vigil-model", &[]),
    ("vigil-journal", &[]),
    ("vigil-relay", &[]),
    ("vigil-sys", &[]),
    ("vigil-reconcile", &["vigil-model"]),
    ("vigil-protocol", &["vigil-model", "vigil-sys"]),
    (
        "vigil-host",
        &["vigil-sys", "vigil-reconcile", "vigil-model"],
    ),
    (
        "vigil-reaper",
        &["vigil-sys", "vigil-journal", "vigil-relay"],
    ),
    (
        "vigil-supervise",
        &[
            "vigil-host",
            "vigil-journal",
            "vigil-reconcile",
            "vigil-model",
            "vigil-relay",
            "vigil-sys",
        ],
    ),
];

/// The only packages that may have tokio among their own dependencies.
pub const ASYNC: [&str; 3] = [
    "vigil-supervise",
    "vigil-protocol",
    "containerd-shim-vigil-v2",
];

/// Cargo, by the name it gives itself to what it runs.
fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(crate::root());
    cargo
}

fn output(mut command: Command) -> Result<String> {
    let out = command
        .output()
        .with_context(|| format!("{command:?} cannot be run"))?;
    ensure!(
        out.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&out.stderr)
    );
    String::from_utf8(out.stdout).with_context(|| format!("{command:?} wrote no UTF-8"))
}

/// The triple of the platform that cargo builds for here.
pub fn platform() -> Result<String> {
    let mut version = cargo();
    version.arg("-vV");
    let text = output(version)?;
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("`cargo -vV` names no host")?.to_owned())
}

/// What cargo says of this workspace. For this platform alone, unless `everywhere`: a build
/// fetches no other platform's crates, and a machine that has only built has none of them.
/// `home` is another `CARGO_HOME`, which is asked without the network.
pub fn metadata(home: Option<&Path>, everywhere: bool) -> Result<Value> {
    let mut ask = cargo();
    ask.args(["metadata", "--format-version", "1", "--locked"]);
    if !everywhere {
        ask.args(["--filter-platform", &platform()?]);
    }
    if let Some(home) = home {
        ask.env("CARGO_HOME", home).arg("--offline");
    }
    serde_json::from_str(&output(ask)?).context("cargo metadata is no JSON")
}

/// Reads cargo's graph of this workspace.
pub fn graph() -> Result<Graph> {
    parse(&metadata(None, false)?)
}

/// Takes the normal edges out of `cargo metadata`.
pub fn parse(metadata: &Value) -> Result<Graph> {
    let packages = metadata["packages"].as_array().context("no packages")?;
    let names: BTreeMap<&str, &str> = packages
        .iter()
        .filter_map(|p| Some((p["id"].as_str()?, p["name"].as_str()?)))
        .collect();
    let mut graph = Graph::new();
    for node in metadata["resolve"]["nodes"]
        .as_array()
        .context("no resolved graph")?
    {
        let from = names
            .get(node["id"].as_str().context("no id")?)
            .context("an unknown package")?;
        let edges = graph.entry((*from).to_owned()).or_default();
        for dep in node["deps"].as_array().into_iter().flatten() {
            let normal = dep["dep_kinds"]
                .as_array()
                .is_some_and(|kinds| kinds.iter().any(|k| k["kind"].is_null()));
            if let (true, Some(to)) = (normal, dep["pkg"].as_str().and_then(|id| names.get(id))) {
                edges.insert((*to).to_owned());
            }
        }
    }
    Ok(graph)
}

/// Everything `from` links, by any way.
#[must_use]
pub fn reach(graph: &Graph, from: &str) -> BTreeSet<String> {
    let mut seen = BTreeSet::new();
    let mut todo = vec![from.to_owned()];
    while let Some(name) = todo.pop() {
        for next in graph.get(&name).into_iter().flatten() {
            if seen.insert(next.clone()) {
                todo.push(next.clone());
            }
        }
    }
    seen
}

/// Every edge that is not in the plan.
#[must_use]
pub fn violations(graph: &Graph) -> Vec<String> {
    let mut found = Vec::new();
    let ours = |name: &str| ROOMS.iter().any(|(room, _)| *room == name);
    for (room, may) in ROOMS {
        let Some(edges) = graph.get(room) else {
            found.push(format!("{room} is not in the graph"));
            continue;
        };
        for to in edges
            .iter()
            .filter(|to| ours(to) && !may.contains(&to.as_str()))
        {
            found.push(format!("{room} → {to} is no edge of the plan"));
        }
        for kernel in ["libc", "nix", "rustix"] {
            if room != "vigil-sys" && edges.contains(kernel) {
                found.push(format!("{room} uses {kernel}; only vigil-sys may"));
            }
        }
        let asynchronous = ["tokio", "ttrpc", "async-trait"]
            .iter()
            .filter(|a| reach(graph, room).contains(**a));
        if !ASYNC.contains(&room) {
            found.extend(asynchronous.map(|a| format!("{room} links {a}, by some way")));
        }
        for outside in ["anyhow", "clap"] {
            if edges.contains(outside) {
                found.push(format!("{room} uses {outside}; only cmd and tests may"));
            }
        }
    }
    let tool = reach(graph, "vigil");
    for shut in ["vigil-supervise", "vigil-reaper", "tokio", "ttrpc"] {
        if tool.contains(shut) {
            found.push(format!("the tool `vigil` links {shut}"));
        }
    }
    for test_only in [
        "vigil-lab",
        "vigil-conformance",
        "vigil-faults",
        "vigil-tidy",
        "vigil-bench",
        "vigil-soak",
        "vigil-crash",
        "vigil-fuzz",
    ] {
        let users = ["vigil", "containerd-shim-vigil-v2"]
            .iter()
            .filter(|p| reach(graph, p).contains(test_only));
        found.extend(users.map(|p| format!("{p} links {test_only}")));
    }
    found
}
