//! Counters of a container's cgroup, free of the wire. Absent is kept apart
//! from zero: a controller that is not there is `None`.

/// What `Stats` answers.
#[derive(Debug, Clone, PartialEq)]
pub enum Metrics {
    /// cgroup v1 and hybrid hosts.
    V1(Box<V1>),
    /// The unified hierarchy.
    V2(Box<V2>),
}

/// `io.containerd.cgroups.v1.Metrics`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct V1 {}

/// `io.containerd.cgroups.v2.Metrics`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct V2 {}
