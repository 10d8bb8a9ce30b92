//! Where things are on a node, each of which the operator may move: bundles
//! below containerd's state directory, runc's state, Vigil's keepsakes. Finds
//! bundles; decides nothing about them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use clap::Args;
use vigil_host::chain;
use vigil_host::enact::RUN;
use vigil_journal::{Owner, names};
use vigil_model::{Namespace, TaskId};
use vigil_sys::fd::NO_LINK_NO_WAIT;

use crate::{Code, Exit, processes};

/// Below a state directory, where bundles are.
pub const TASKS: &str = "io.containerd.runtime.v2.task";

/// containerd's state directory unless its configuration says otherwise.
const STATE: &str = "/run/containerd";

/// runc's state unless a container's options say otherwise.
const RUNC_ROOT: &str = "/run/containerd/runc";

/// The places of a node.
#[derive(Debug, Args)]
pub struct Node {
    /// containerd's state directory.
    #[arg(
        long,
        value_name = "DIR",
        default_value = STATE,
        env = "VIGIL_CONTAINERD_STATE"
    )]
    pub state: PathBuf,
    /// Where what outlives a container is kept.
    #[command(flatten)]
    pub kept: Kept,
    /// runc's state, for a task whose journal cannot be read.
    #[arg(
        long,
        value_name = "DIR",
        default_value = RUNC_ROOT,
        env = "VIGIL_RUNC_ROOT"
    )]
    pub runc_root: PathBuf,
}

/// Where tombstones and history are.
#[derive(Debug, Args)]
pub struct Kept {
    /// Where Vigil keeps tombstones and history.
    #[arg(long, value_name = "DIR", default_value = RUN, env = "VIGIL_RUN")]
    pub run: PathBuf,
}

/// One bundle, by its place.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Found {
    /// containerd namespace.
    pub namespace: Namespace,
    /// Id of the container.
    pub id: TaskId,
    /// The bundle.
    pub bundle: PathBuf,
    /// Where it is to be, if its pair lives and somebody has moved it away.
    pub moved_from: Option<PathBuf>,
}

/// Every bundle of a node.
#[derive(Debug, Default)]
pub struct Bundles {
    /// Those with a file of Vigil's in them, by namespace and id.
    pub ours: Vec<Found>,
    /// How many have none: other runtimes', or all that was ours is lost.
    pub others: usize,
    /// What could not be looked at.
    pub notes: Vec<String>,
    /// What has no business there, and does no harm.
    pub strange: Vec<String>,
}

impl Node {
    /// Where bundles are, by namespace and id.
    pub fn tasks(&self) -> PathBuf {
        self.state.join(TASKS)
    }

    /// How another call of this tool is told the same places; empty if they are the usual ones.
    pub fn flags(&self) -> String {
        let given = [
            ("state", &self.state, STATE),
            ("run", &self.kept.run, RUN),
            ("runc-root", &self.runc_root, RUNC_ROOT),
        ];
        let mut flags = String::new();
        for (name, is, usual) in given {
            if is != Path::new(usual) {
                // Writing to a String cannot fail.
                let _ = write!(flags, " --{name} {}", is.display());
            }
        }
        flags
    }

    /// Living pairs of other state directories, for who may have meant them: if this one is the
    /// usual one, or if nothing was found in it.
    pub fn abroad(&self, only: Option<&Namespace>, nothing: bool) -> Result<Vec<String>> {
        if self.state != Path::new(STATE) && !nothing {
            return Ok(Vec::new());
        }
        let mut states = BTreeMap::new();
        for one in processes::abroad(self)? {
            if only.is_none_or(|only| *only == one.namespace) {
                *states.entry(one.state).or_insert(0) += 1;
            }
        }
        let note = |(state, pairs): (PathBuf, usize)| {
            let state = state.display();
            match pairs {
                1 => format!("1 pair lives whose bundle is below {state}: see --state {state}"),
                _ => format!(
                    "{pairs} pairs live whose bundles are below {state}: see --state {state}"
                ),
            }
        };
        Ok(states.into_iter().map(note).collect())
    }

    /// Where else the id is that is not where it was looked for.
    pub fn instead(&self, name: &Name) -> Result<Instead> {
        let mut said = String::new();
        let id = name.container.as_str();
        let only = name.namespace()?;
        if let Some(only) = &only {
            let mut others = Vec::new();
            for (namespace, dir) in children(&self.tasks())? {
                if namespace != only.as_str() && !id.contains('/') && is_dir(&dir.join(id))? {
                    others.push(namespace);
                }
            }
            // Writing to a String cannot fail.
            let _ = write!(said, " in namespace {only}");
            if !others.is_empty() {
                let _ = write!(said, ", but one in {}", others.join(", "));
            }
        }
        let mut abroad = processes::abroad(self)?;
        abroad.retain(|one| one.id.as_str() == id);
        abroad.retain(|one| only.as_ref().is_none_or(|only| *only == one.namespace));
        let lives = !abroad.is_empty();
        for one in abroad {
            let (namespace, state) = (&one.namespace, one.state.display());
            let _ = write!(
                said,
                "; {namespace}/{id} lives, and its bundle is below {state}: see --state {state}"
            );
        }
        Ok(Instead { said, lives })
    }

    /// Looks for bundles, in one namespace or in all.
    pub fn bundles(&self, only: Option<&Namespace>) -> Result<Bundles> {
        let mut bundles = Bundles::default();
        // A state directory that is not there is a typing error; one without
        // tasks is a node without tasks.
        fs::metadata(&self.state)
            .with_context(|| format!("cannot look at {}", self.state.display()))?;
        for (namespace, dir) in children(&self.tasks())? {
            let Ok(namespace) = Namespace::new(namespace) else {
                bundles
                    .strange
                    .push(format!("{} is no namespace", dir.display()));
                continue;
            };
            if only.is_some_and(|only| *only != namespace) {
                continue;
            }
            for (id, bundle) in children(&dir)? {
                let Ok(id) = TaskId::new(id) else {
                    bundles
                        .strange
                        .push(format!("{} is no bundle", bundle.display()));
                    continue;
                };
                match is_ours(&bundle) {
                    Ok(true) => {
                        let found = Found {
                            namespace: namespace.clone(),
                            id,
                            bundle,
                            moved_from: None,
                        };
                        found.may_be_read()?;
                        bundles.ours.push(found);
                    }
                    Ok(false) => bundles.others += 1,
                    Err(e) if e.kind() == ErrorKind::PermissionDenied => {
                        return Err(hidden(e, &bundle));
                    }
                    Err(e) => bundles
                        .notes
                        .push(format!("cannot look into {}: {e}", bundle.display())),
                }
            }
        }
        processes::may_be_seen()?;
        // One that was moved has another's name, or is not there at all.
        let mut moved = processes::moved(self)?;
        moved.retain(|found| only.is_none_or(|only| *only == found.namespace));
        let is_moved = |found: &Found| {
            let real = fs::canonicalize(&found.bundle);
            real.is_ok_and(|real| moved.iter().any(|moved| moved.bundle == real))
        };
        bundles.ours.retain(|found| !is_moved(found));
        bundles.ours.extend(moved);
        bundles.ours.sort();
        Ok(bundles)
    }

    /// The bundle that is meant; `None` if there is none.
    pub fn find(&self, name: &Name) -> Result<Option<Found>> {
        if name.container.contains('/') {
            let path = Path::new(&name.container);
            let real = fs::canonicalize(path).ok();
            let mut moved = processes::moved(self)?.into_iter();
            let moved = moved.find(|moved| Some(&moved.bundle) == real.as_ref());
            let found = moved.map_or_else(|| Found::at(path), Ok)?;
            found.may_be_read()?;
            return Ok(Some(found));
        }
        let id = TaskId::new(name.container.as_str()).map_err(|e| {
            anyhow::Error::new(e)
                .context(format!("{:?} names no container", name.container))
                .context(Exit(Code::Usage))
        })?;
        fs::metadata(&self.state)
            .with_context(|| format!("cannot look at {}", self.state.display()))?;
        let only = name.namespace()?;
        let namespaces = match only.clone() {
            Some(namespace) => vec![namespace],
            None => children(&self.tasks())?
                .into_iter()
                .filter_map(|(namespace, _)| Namespace::new(namespace).ok())
                .collect(),
        };
        let mut found = Vec::new();
        for namespace in namespaces {
            let bundle = self.tasks().join(namespace.as_str()).join(id.as_str());
            // What may not be seen is not missing.
            if is_dir(&bundle)? {
                let id = id.clone();
                found.push(Found {
                    namespace,
                    id,
                    bundle,
                    moved_from: None,
                });
            }
        }
        if found.is_empty() {
            // Where that cannot be seen, nobody can say that there is none.
            processes::may_be_seen()?;
            found = processes::moved(self)?;
            found.retain(|at| at.id == id && only.as_ref().is_none_or(|n| *n == at.namespace));
        }
        if found.len() > 1 {
            let all: Vec<&str> = found.iter().map(|f| f.namespace.as_str()).collect();
            return Err(anyhow!("say which with --namespace")
                .context(format!("{id} is in the namespaces {}", all.join(", ")))
                .context(Exit(Code::Usage)));
        }
        let found = found.pop();
        found.iter().try_for_each(Found::may_be_read)?;
        Ok(found)
    }
}

/// Where else a container is.
#[derive(Debug)]
pub struct Instead {
    said: String,
    /// Whether a pair of it lives below another state directory.
    pub lives: bool,
}

impl std::fmt::Display for Instead {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.said)
    }
}

/// Which container.
#[derive(Debug, Args)]
pub struct Name {
    /// Id of the container, or path of its bundle.
    pub container: String,
    /// containerd namespace; without it, wherever the id is.
    #[arg(short, long, value_name = "NAME", env = "CONTAINERD_NAMESPACE")]
    pub namespace: Option<String>,
}

impl Name {
    /// The namespace, checked.
    pub fn namespace(&self) -> Result<Option<Namespace>> {
        self.namespace.as_deref().map(namespace).transpose()
    }
}

/// A namespace the operator gave.
pub fn namespace(text: &str) -> Result<Namespace> {
    Namespace::new(text).map_err(|e| {
        anyhow::Error::new(e)
            .context(format!("{text:?} names no namespace"))
            .context(Exit(Code::Usage))
    })
}

impl Found {
    /// Whose the files in it are to be.
    pub fn owner(&self) -> Owner {
        Owner::of_bundle(&self.bundle, self.namespace.as_str(), self.id.as_str())
    }

    /// An error if this user may not read what is recorded there: whatever were told would be
    /// a guess.
    fn may_be_read(&self) -> Result<()> {
        for name in [names::LOCK, names::JOURNAL, names::PAIR, names::EXITS] {
            let path = self.bundle.join(name);
            let opened = fs::File::options()
                .read(true)
                .custom_flags(NO_LINK_NO_WAIT)
                .open(&path);
            match opened {
                Err(e) if e.kind() == ErrorKind::PermissionDenied => return Err(hidden(e, &path)),
                Ok(_) | Err(_) => {}
            }
        }
        Ok(())
    }

    /// A bundle by its path, whose last two names are namespace and id.
    pub fn at(bundle: &Path) -> Result<Self> {
        let bundle = fs::canonicalize(bundle).map_err(|e| {
            if e.kind() == ErrorKind::PermissionDenied {
                return hidden(e, bundle);
            }
            let code = match e.kind() {
                ErrorKind::NotFound => Code::Nothing,
                _ => Code::Failed,
            };
            anyhow::Error::new(e)
                .context(format!("cannot look at {}", bundle.display()))
                .context(Exit(code))
        })?;
        let name = |path: Option<&Path>| {
            let name = path.and_then(Path::file_name);
            name.map(|name| name.to_string_lossy().into_owned())
                .unwrap_or_default()
        };
        let said = || {
            format!(
                "{} is no bundle, which ends in NAMESPACE/ID",
                bundle.display()
            )
        };
        Ok(Self {
            namespace: Namespace::new(name(bundle.parent())).with_context(said)?,
            id: TaskId::new(name(Some(&bundle))).with_context(said)?,
            bundle,
            moved_from: None,
        })
    }
}

/// An error if one of these is that this user may not read something.
pub fn all_may_be_read<'a>(errors: impl Iterator<Item = &'a vigil_host::Error>) -> Result<()> {
    for error in errors {
        if let vigil_host::Error::File { source, .. } = error
            && source.kind() == ErrorKind::PermissionDenied
        {
            return Err(anyhow!("{}; root can read it", chain(error)));
        }
    }
    Ok(())
}

/// What this user may not read.
fn hidden(error: std::io::Error, path: &Path) -> anyhow::Error {
    anyhow::Error::new(error).context(format!("cannot read {}; root can", path.display()))
}

/// Whether a directory is there; what may not be seen is an error.
fn is_dir(path: &Path) -> Result<bool> {
    match fs::metadata(path) {
        Ok(there) => Ok(there.is_dir()),
        Err(e) if e.kind() == ErrorKind::PermissionDenied => Err(hidden(e, path)),
        Err(_) => Ok(false),
    }
}

/// Whether any file of Vigil's is in it.
pub fn is_ours(bundle: &Path) -> std::io::Result<bool> {
    for name in [names::LOCK, names::JOURNAL, names::PAIR, names::EXITS] {
        match fs::symlink_metadata(bundle.join(name)) {
            Ok(_) => return Ok(true),
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
    }
    Ok(false)
}

/// The directories in a directory, by name; none if it is not there.
fn children(dir: &Path) -> Result<Vec<(String, PathBuf)>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) if e.kind() == ErrorKind::PermissionDenied => return Err(hidden(e, dir)),
        Err(e) => return Err(e).with_context(|| format!("cannot list {}", dir.display())),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.with_context(|| format!("cannot list {}", dir.display()))?;
        // containerd moves a bundle to a name with a dot before it removes it.
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with('.') && is_dir(&entry.path())? {
            found.push((name, entry.path()));
        }
    }
    found.sort();
    Ok(found)
}
