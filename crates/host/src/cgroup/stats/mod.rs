//! Counters of the container's cgroup into the model's structs. A file that is
//! not there leaves its part `None`; a file that cannot be read is an error,
//! never a zero. Reads through the held descriptors only, so that a path that
//! means another cgroup by now is never measured.

mod v1;
mod v2;

use std::fs::File;

use vigil_model::metrics::{Metrics, Rdma, RdmaEntry};

use super::{Cgroup, Mode, tree};
use crate::Result;

/// Reads the counters now; `None` if the cgroup is gone. The caller keeps the
/// last answer for a container that has just ended.
pub fn stats(cgroup: &Cgroup) -> Result<Option<Metrics>> {
    match cgroup.mode {
        Mode::V1 => v1::read(cgroup).map(|it| it.map(|v1| Metrics::V1(Box::new(v1)))),
        Mode::Unified => v2::read(cgroup).map(|it| it.map(|v2| Metrics::V2(Box::new(v2)))),
    }
}

/// A file with one number.
fn number(dir: &File, file: &str) -> Result<Option<u64>> {
    Ok(tree::read(dir, file)?.and_then(|text| text.trim().parse().ok()))
}

/// A file with one number or `max`; `None` without a limit, also where there is
/// no such file.
fn limit(dir: &File, file: &str) -> Result<Option<u64>> {
    number(dir, file)
}

/// A file of `key number` lines as a look-up in which a missing key is zero,
/// as the kernel leaves out what it does not count.
struct Keys(String);

impl Keys {
    fn read(dir: &File, file: &str) -> Result<Option<Self>> {
        Ok(tree::read(dir, file)?.map(Keys))
    }

    fn get(&self, key: &str) -> u64 {
        self.find(key).unwrap_or(0)
    }

    fn find(&self, key: &str) -> Option<u64> {
        tree::value_of(&self.0, key)
    }
}

/// `rdma.current` and `rdma.max`.
fn rdma(dir: &File) -> Result<Option<Rdma>> {
    let Some(current) = tree::read(dir, "rdma.current")? else {
        return Ok(None);
    };
    let limit = tree::read(dir, "rdma.max")?.unwrap_or_default();
    Ok(Some(Rdma {
        current: rdma_lines(&current),
        limit: rdma_lines(&limit),
    }))
}

/// `mlx4_0 hca_handle=2 hca_object=2000`, or `=max`.
fn rdma_lines(text: &str) -> Vec<RdmaEntry> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_ascii_whitespace();
            let mut entry = RdmaEntry {
                device: words.next()?.to_owned(),
                ..RdmaEntry::default()
            };
            for (key, value) in words.filter_map(|word| word.split_once('=')) {
                match key {
                    "hca_handle" => entry.hca_handles = value.parse().ok(),
                    "hca_object" => entry.hca_objects = value.parse().ok(),
                    _ => {}
                }
            }
            Some(entry)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rdma_without_a_limit_is_not_zero() {
        let lines = rdma_lines("mlx4_0 hca_handle=2 hca_object=max\n\nocrdma1 hca_handle=max\n");
        assert_eq!(lines.len(), 2);
        assert_eq!(
            (lines[0].hca_handles, lines[0].hca_objects),
            (Some(2), None)
        );
        assert_eq!(lines[1].device, "ocrdma1");
    }
}
