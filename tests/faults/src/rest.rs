//! What is left of a container while its pair lives on.

use anyhow::{Result, ensure};
use vigil_lab::{Kit, Residue, by, until};

/// Nothing of the container is on the host but its bundle, its pair and the pair's socket.
pub fn nothing_but_the_pair(kit: &Kit, id: &str) -> Result<()> {
    nothing_but_the_pair_by(kit, id, 5.0)
}

/// The same, waited for so many seconds.
pub fn nothing_but_the_pair_by(kit: &Kit, id: &str, seconds: f64) -> Result<()> {
    let mark = kit.scratch.mark();
    let name = format!("{mark}/{id}");
    let rootfs = format!("{name}/rootfs");
    let mut left = Vec::new();
    let clean = until("", by(seconds), || {
        left = Residue::marked(mark)
            .lines()
            .filter(|line| match line.split_once(' ') {
                Some(("mount", point)) => point.contains(&rootfs),
                Some(("process", rest)) => {
                    !rest.contains("containerd-shim")
                        && (rest.ends_with(&name) || rest.contains(&format!("{name}/")))
                }
                Some(("cgroup", path)) => {
                    path.ends_with(&name) || path.contains(&format!("{name}/"))
                }
                Some(("file", path)) => path.ends_with(&name),
                _ => false,
            })
            .map(str::to_owned)
            .collect();
        left.is_empty().then_some(())
    });
    ensure!(clean.is_ok(), "left of {id}:\n    {}", left.join("\n    "));
    Ok(())
}
