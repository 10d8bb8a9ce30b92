//! What the operator configured, out of whichever message carried it.
//!
//! Owns the four types of options containerd's clients send and the keys of
//! the TOML form. A key it does not know is a warning that names it; a value
//! of the wrong type, or a type it does not know, is an error that names it.
//! Nothing is guessed.

use std::{fs::File, io::Read, path::Path};

use protobuf::well_known_types::any::Any;
use vigil_model::{Options, request::Checkpoint};

use crate::{
    Error,
    error::shown,
    wire::{Fields, Value},
};

/// containerd's options for runc, bare or behind any prefix.
const RUNC: &str = "containerd.runc.v1.Options";
/// The generic carrier of TOML.
const GENERIC: &str = "runtimeoptions.v1.Options";
/// The same under the name it had in CRI.
const GENERIC_OLD: &str = "cri.runtimeoptions.v1.Options";
/// What 1.x clients send for a runtime that is not called runc.
const LEGACY: &str = "containerd.linux.runc.CreateOptions";
/// Options of a Checkpoint request.
const CHECKPOINT: &str = "containerd.runc.v1.CheckpointOptions";
/// The same from 1.x clients.
const CHECKPOINT_LEGACY: &str = "containerd.linux.runc.CheckpointOptions";

/// Longest file of options that is read, in bytes.
const FILE_MAX: u64 = 1 << 20;

/// Options with what is to be said about them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Told {
    /// The options.
    pub options: Options,
    /// Sentences for the operator.
    pub warnings: Vec<String>,
}

/// The name of a message: what follows the last `/` of its type URL.
pub(crate) fn type_name(url: &str) -> &str {
    url.rsplit_once('/').map_or(url, |(_, name)| name)
}

/// Whether an `Any` of this type carries runtime options.
pub(crate) fn carries_options(url: &str) -> bool {
    matches!(type_name(url), RUNC | GENERIC | GENERIC_OLD | LEGACY)
}

/// Decodes runtime options. `config_path` makes it read that file.
///
/// An `Any` without a type and without a value is what Go sends for *none*.
pub(crate) fn decode(any: &Any) -> Result<Told, Error> {
    match type_name(&any.type_url) {
        RUNC => runc(&any.value).map(Told::quiet),
        LEGACY => legacy(&any.value).map(Told::quiet),
        GENERIC | GENERIC_OLD => generic(&any.value),
        "" if any.value.is_empty() => Ok(Told::default()),
        name => Err(Error::OptionsType { name: shown(name) }),
    }
}

impl Told {
    fn quiet(options: Options) -> Self {
        Self {
            options,
            warnings: Vec::new(),
        }
    }
}

fn runc(bytes: &[u8]) -> Result<Options, Error> {
    let mut options = Options::default();
    let mut fields = Fields::new(RUNC, bytes);
    while let Some((number, value)) = fields.next()? {
        match number {
            1 => options.no_pivot_root = fields.switch(value)?,
            2 => options.no_new_keyring = fields.switch(value)?,
            3 => options.shim_cgroup = fields.text(value)?,
            4 => options.io_uid = fields.number(value)?,
            5 => options.io_gid = fields.number(value)?,
            6 => options.binary_name = fields.text(value)?,
            7 => options.root = fields.text(value)?,
            8 => options.criu_path = fields.text(value)?,
            // proto3 does not write `false`: it is the same as not said.
            9 => options.systemd_cgroup = fields.switch(value)?.then_some(true),
            10 => options.criu_image_path = fields.text(value)?,
            11 => options.criu_work_path = fields.text(value)?,
            _ => {}
        }
    }
    Ok(options)
}

/// The options of the v1 runtime: what has a counterpart is taken, the
/// checkpoint's own fields (2 to 7) say nothing about a create.
fn legacy(bytes: &[u8]) -> Result<Options, Error> {
    let mut options = Options::default();
    let mut fields = Fields::new(LEGACY, bytes);
    while let Some((number, value)) = fields.next()? {
        match number {
            1 => options.no_pivot_root = fields.switch(value)?,
            8 => options.no_new_keyring = fields.switch(value)?,
            9 => options.shim_cgroup = fields.text(value)?,
            10 => options.io_uid = fields.number(value)?,
            11 => options.io_gid = fields.number(value)?,
            12 => options.criu_work_path = fields.text(value)?,
            13 => options.criu_image_path = fields.text(value)?,
            _ => {}
        }
    }
    Ok(options)
}

fn generic(bytes: &[u8]) -> Result<Told, Error> {
    let mut path = String::new();
    let mut body = String::new();
    let mut fields = Fields::new(GENERIC, bytes);
    while let Some((number, value)) = fields.next()? {
        match number {
            2 => path = fields.text(value)?,
            3 => body = fields.text(value)?,
            _ => {}
        }
    }
    // The body counts only without a path (the rule stands in containerd's api.proto).
    if path.is_empty() {
        return toml("config_body", &body);
    }
    toml(&path, &read(Path::new(&path))?)
}

/// Reads a file of options; never more than [`FILE_MAX`], never a fifo.
fn read(path: &Path) -> Result<String, Error> {
    let failed = |source| Error::OptionsRead {
        path: path.to_owned(),
        source,
    };
    let unfit = |says| Error::OptionsFile {
        path: path.to_owned(),
        says,
    };
    if !path.is_absolute() {
        return Err(unfit("its path is not absolute"));
    }
    // Asked before it is opened: opening a fifo would wait for a writer.
    if !std::fs::metadata(path).map_err(failed)?.is_file() {
        return Err(unfit("it is not a regular file"));
    }
    let mut body = Vec::new();
    File::open(path)
        .and_then(|file| file.take(FILE_MAX + 1).read_to_end(&mut body))
        .map_err(failed)?;
    if body.len() as u64 > FILE_MAX {
        return Err(unfit("it is longer than 1 MiB"));
    }
    String::from_utf8(body).map_err(|_| unfit("it is not UTF-8"))
}

/// Decodes the TOML form. The keys are the Go names, exactly.
fn toml(origin: &str, text: &str) -> Result<Told, Error> {
    let table: toml::Table = toml::from_str(text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start);
        let before = text.get(..at).unwrap_or_default();
        Error::OptionsToml {
            origin: shown(origin),
            line: before.matches('\n').count() + 1,
            says: shown(&error.message().replace('\n', ", ")),
        }
    })?;
    let mut options = Options::default();
    let mut unknown = Vec::new();
    for (key, value) in table {
        let entry = Entry {
            origin,
            value: &value,
        };
        match key.as_str() {
            "BinaryName" => options.binary_name = entry.text("BinaryName")?,
            "Root" => options.root = entry.text("Root")?,
            "SystemdCgroup" => options.systemd_cgroup = Some(entry.switch("SystemdCgroup")?),
            "NoPivotRoot" => options.no_pivot_root = entry.switch("NoPivotRoot")?,
            "NoNewKeyring" => options.no_new_keyring = entry.switch("NoNewKeyring")?,
            "ShimCgroup" => options.shim_cgroup = entry.text("ShimCgroup")?,
            "IoUid" => options.io_uid = entry.number("IoUid")?,
            "IoGid" => options.io_gid = entry.number("IoGid")?,
            "CriuPath" => options.criu_path = entry.text("CriuPath")?,
            "CriuImagePath" => options.criu_image_path = entry.text("CriuImagePath")?,
            "CriuWorkPath" => options.criu_work_path = entry.text("CriuWorkPath")?,
            _ => unknown.push(shown(&key)),
        }
    }
    let mut told = Told::quiet(options);
    if !unknown.is_empty() {
        told.warnings.push(format!(
            "runtime options of {}: unknown and ignored: {}",
            shown(origin),
            shown(&unknown.join(", "))
        ));
    }
    Ok(told)
}

struct Entry<'a> {
    origin: &'a str,
    value: &'a toml::Value,
}

impl Entry<'_> {
    fn text(&self, key: &'static str) -> Result<String, Error> {
        match self.value {
            toml::Value::String(text) => Ok(text.clone()),
            _ => Err(self.wrong(key, "a string")),
        }
    }

    fn switch(&self, key: &'static str) -> Result<bool, Error> {
        match self.value {
            toml::Value::Boolean(switch) => Ok(*switch),
            _ => Err(self.wrong(key, "a boolean")),
        }
    }

    fn number(&self, key: &'static str) -> Result<u32, Error> {
        let wanted = "an integer from 0 to 4294967295";
        match self.value {
            toml::Value::Integer(number) => {
                u32::try_from(*number).map_err(|_| self.wrong(key, wanted))
            }
            _ => Err(self.wrong(key, wanted)),
        }
    }

    fn wrong(&self, key: &'static str, wanted: &'static str) -> Error {
        Error::OptionsKey {
            origin: shown(self.origin),
            key,
            wanted,
            found: match self.value {
                toml::Value::String(_) => "a string",
                toml::Value::Integer(_) => "an integer",
                toml::Value::Float(_) => "a float",
                toml::Value::Boolean(_) => "a boolean",
                toml::Value::Datetime(_) => "a date",
                toml::Value::Array(_) => "an array",
                toml::Value::Table(_) => "a table",
            },
        }
    }
}

/// Decodes the options of a Checkpoint request; none are the defaults.
pub(crate) fn checkpoint(path: String, any: Option<&Any>) -> Result<Checkpoint, Error> {
    let mut checkpoint = Checkpoint {
        path,
        ..Checkpoint::default()
    };
    let Some(any) = any else {
        return Ok(checkpoint);
    };
    let (name, image, work) = match type_name(&any.type_url) {
        CHECKPOINT => (CHECKPOINT, 8, 9),
        CHECKPOINT_LEGACY => (CHECKPOINT_LEGACY, 9, 8),
        "" if any.value.is_empty() => return Ok(checkpoint),
        name => return Err(Error::OptionsType { name: shown(name) }),
    };
    let mut fields = Fields::new(name, &any.value);
    while let Some((number, value)) = fields.next()? {
        match number {
            1 => checkpoint.exit = fields.switch(value)?,
            2 => checkpoint.open_tcp = fields.switch(value)?,
            3 => checkpoint.external_unix_sockets = fields.switch(value)?,
            4 => checkpoint.terminal = fields.switch(value)?,
            5 => checkpoint.file_locks = fields.switch(value)?,
            6 => checkpoint.empty_namespaces.push(fields.text(value)?),
            10 if name == CHECKPOINT => checkpoint.parent_path = fields.text(value)?,
            _ if number == image => image_path(&mut checkpoint, &fields, value)?,
            _ if number == work => checkpoint.work_path = fields.text(value)?,
            _ => {}
        }
    }
    Ok(checkpoint)
}

/// containerd moves the image path into the request; a client that talks to
/// the shim directly may leave it in the options.
fn image_path(
    checkpoint: &mut Checkpoint,
    fields: &Fields<'_>,
    value: Value<'_>,
) -> Result<(), Error> {
    let path = fields.text(value)?;
    if checkpoint.path.is_empty() {
        checkpoint.path = path;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
