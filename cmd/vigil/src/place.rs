//! Where a container's files are: its bundle below containerd's state
//! directory, or wherever the operator says.

use std::path::PathBuf;

use clap::Args;

/// Which container.
#[derive(Debug, Args)]
pub struct Place {
    /// Id of the container, or path of its bundle.
    pub container: String,
    /// containerd namespace.
    #[arg(short, long, default_value = "default", env = "CONTAINERD_NAMESPACE")]
    pub namespace: String,
    /// containerd's state directory.
    #[arg(
        long,
        default_value = "/run/containerd",
        env = "VIGIL_CONTAINERD_STATE"
    )]
    pub state: PathBuf,
}

impl Place {
    /// The bundle directory.
    pub fn bundle(&self) -> PathBuf {
        if self.container.contains('/') {
            return PathBuf::from(&self.container);
        }
        self.state
            .join("io.containerd.runtime.v2.task")
            .join(&self.namespace)
            .join(&self.container)
    }
}

/// Whether the reader of our output went away, which is no failure.
pub fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<std::io::Error>()
            .is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
    })
}
