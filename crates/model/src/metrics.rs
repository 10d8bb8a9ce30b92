//! Counters of a container's cgroup, free of the wire. Absent is kept apart
//! from zero: a controller or file that is not there is `None`, and so is a
//! limit that is not set. Units are the kernel's: bytes, nanoseconds on v1,
//! microseconds on v2.

/// What `Stats` answers.
#[derive(Debug, Clone, PartialEq)]
pub enum Metrics {
    /// cgroup v1 and hybrid hosts.
    V1(Box<V1>),
    /// The unified hierarchy.
    V2(Box<V2>),
}

impl Metrics {
    /// Processes killed by the OOM killer so far, if the kernel counts them.
    pub fn oom_kills(&self) -> Option<u64> {
        match self {
            Metrics::V1(v1) => v1.oom_control.as_ref().and_then(|c| c.oom_kill),
            Metrics::V2(v2) => v2.memory_events.as_ref().map(|e| e.oom_kill),
        }
    }
}

/// `io.containerd.cgroups.v1.Metrics`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct V1 {
    /// One entry a page size.
    pub hugetlb: Vec<HugeTlb>,
    /// `pids.*`
    pub pids: Option<Pids>,
    /// `cpuacct.*`
    pub cpu_usage: Option<CpuUsage>,
    /// `cpu.stat`
    pub throttling: Option<Throttling>,
    /// `memory.*`
    pub memory: Option<MemoryV1>,
    /// `blkio.*`
    pub blkio: Option<BlkIo>,
    /// `rdma.*`
    pub rdma: Option<Rdma>,
    /// `memory.oom_control`
    pub oom_control: Option<OomControl>,
}

/// `io.containerd.cgroups.v2.Metrics`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct V2 {
    /// `pids.*`
    pub pids: Option<Pids>,
    /// `cpu.stat`, `cpu.pressure`
    pub cpu: Option<CpuV2>,
    /// `memory.*`
    pub memory: Option<MemoryV2>,
    /// `memory.events`
    pub memory_events: Option<MemoryEvents>,
    /// `rdma.*`
    pub rdma: Option<Rdma>,
    /// `io.stat`, `io.pressure`
    pub io: Option<Io>,
    /// One entry a page size.
    pub hugetlb: Vec<HugeTlb>,
}

/// Processes and threads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pids {
    /// How many.
    pub current: u64,
    /// How many are allowed; `None` without a limit.
    pub limit: Option<u64>,
}

/// Huge pages of one size.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HugeTlb {
    /// Page size as in the file names: `2MB`.
    pub pagesize: String,
    /// Bytes in use.
    pub usage: u64,
    /// v1: the highest usage. v2: the limit, `None` without one.
    pub max: Option<u64>,
    /// Refused allocations.
    pub failcnt: u64,
}

/// CPU time, nanoseconds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CpuUsage {
    /// All of it.
    pub total: u64,
    /// In the kernel.
    pub kernel: u64,
    /// In user code.
    pub user: u64,
    /// `total` by CPU.
    pub per_cpu: Vec<u64>,
}

/// Times the CPU quota stopped the container.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Throttling {
    /// Enforcement periods.
    pub periods: u64,
    /// Periods in which it was stopped.
    pub throttled_periods: u64,
    /// Nanoseconds stopped.
    pub throttled_time: u64,
}

/// One of v1's four memory counters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryEntry {
    /// Limit in bytes, as the kernel writes it (a huge number for none).
    pub limit: u64,
    /// Bytes in use.
    pub usage: u64,
    /// Highest use, bytes.
    pub max: u64,
    /// Times the limit was hit.
    pub failcnt: u64,
}

/// One half of `memory.stat` of v1: of the cgroup itself, or (`total_`) of its
/// subtree.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "each field has the kernel's own name")]
pub struct MemoryStatV1 {
    pub cache: u64,
    pub rss: u64,
    pub rss_huge: u64,
    pub mapped_file: u64,
    pub dirty: u64,
    pub writeback: u64,
    pub pgpgin: u64,
    pub pgpgout: u64,
    pub pgfault: u64,
    pub pgmajfault: u64,
    pub inactive_anon: u64,
    pub active_anon: u64,
    pub inactive_file: u64,
    pub active_file: u64,
    pub unevictable: u64,
}

/// Memory on v1.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MemoryV1 {
    /// The cgroup itself.
    pub own: MemoryStatV1,
    /// With everything below it.
    pub total: MemoryStatV1,
    /// `hierarchical_memory_limit`
    pub hierarchical_memory_limit: u64,
    /// `hierarchical_memsw_limit`; absent without swap accounting.
    pub hierarchical_swap_limit: Option<u64>,
    /// `memory.*_in_bytes`
    pub usage: Option<MemoryEntry>,
    /// `memory.memsw.*`
    pub swap: Option<MemoryEntry>,
    /// `memory.kmem.*`
    pub kernel: Option<MemoryEntry>,
    /// `memory.kmem.tcp.*`
    pub kernel_tcp: Option<MemoryEntry>,
}

/// `memory.oom_control`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OomControl {
    /// 1: the killer is off and the container waits instead.
    pub oom_kill_disable: u64,
    /// 1: it waits now.
    pub under_oom: u64,
    /// Processes killed; counted since Linux 4.13.
    pub oom_kill: Option<u64>,
}

/// One counter of one device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BlkIoEntry {
    /// `Read`, `Write` …; empty where the file has one value a device.
    pub op: String,
    /// `/dev/…`, empty if the kernel does not list it.
    pub device: String,
    /// Major number.
    pub major: u64,
    /// Minor number.
    pub minor: u64,
    /// Bytes, operations, nanoseconds or sectors, as the file says.
    pub value: u64,
}

/// Block I/O on v1.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "each field has the kernel's own name")]
pub struct BlkIo {
    pub service_bytes: Vec<BlkIoEntry>,
    pub serviced: Vec<BlkIoEntry>,
    pub queued: Vec<BlkIoEntry>,
    pub service_time: Vec<BlkIoEntry>,
    pub wait_time: Vec<BlkIoEntry>,
    pub merged: Vec<BlkIoEntry>,
    pub time: Vec<BlkIoEntry>,
    pub sectors: Vec<BlkIoEntry>,
}

/// RDMA handles of one device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RdmaEntry {
    /// Its name.
    pub device: String,
    /// Handles; `None` without a limit.
    pub hca_handles: Option<u32>,
    /// Objects; `None` without a limit.
    pub hca_objects: Option<u32>,
}

/// RDMA use and limits.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rdma {
    /// `rdma.current`
    pub current: Vec<RdmaEntry>,
    /// `rdma.max`
    pub limit: Vec<RdmaEntry>,
}

/// One line of a pressure file.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Pressure {
    /// Percent of the last 10 s.
    pub avg10: f64,
    /// Percent of the last 60 s.
    pub avg60: f64,
    /// Percent of the last 300 s.
    pub avg300: f64,
    /// Microseconds in all.
    pub total: u64,
}

/// A pressure file.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Pressures {
    /// Some tasks waited.
    pub some: Option<Pressure>,
    /// All tasks waited.
    pub full: Option<Pressure>,
}

/// CPU on v2, microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[expect(missing_docs, reason = "each field has the kernel's own name")]
pub struct CpuV2 {
    pub usage_usec: u64,
    pub user_usec: u64,
    pub system_usec: u64,
    pub nr_periods: u64,
    pub nr_throttled: u64,
    pub throttled_usec: u64,
    pub nr_bursts: u64,
    pub burst_usec: u64,
    /// `cpu.pressure`
    pub psi: Option<Pressures>,
}

/// `memory.stat` of v2.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "each field has the kernel's own name")]
pub struct MemoryStatV2 {
    pub anon: u64,
    pub file: u64,
    pub kernel_stack: u64,
    pub slab: u64,
    pub sock: u64,
    pub shmem: u64,
    pub file_mapped: u64,
    pub file_dirty: u64,
    pub file_writeback: u64,
    pub anon_thp: u64,
    pub inactive_anon: u64,
    pub active_anon: u64,
    pub inactive_file: u64,
    pub active_file: u64,
    pub unevictable: u64,
    pub slab_reclaimable: u64,
    pub slab_unreclaimable: u64,
    pub pgfault: u64,
    pub pgmajfault: u64,
    pub workingset_refault: u64,
    pub workingset_activate: u64,
    pub workingset_nodereclaim: u64,
    pub pgrefill: u64,
    pub pgscan: u64,
    pub pgsteal: u64,
    pub pgactivate: u64,
    pub pgdeactivate: u64,
    pub pglazyfree: u64,
    pub pglazyfreed: u64,
    pub thp_fault_alloc: u64,
    pub thp_collapse_alloc: u64,
}

/// One of v2's two memory counters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryUse {
    /// Bytes in use.
    pub usage: u64,
    /// Limit in bytes; `None` without one.
    pub limit: Option<u64>,
    /// Highest use in bytes; counted since Linux 5.19 (swap: 6.5).
    pub max: Option<u64>,
}

/// Memory on v2.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct MemoryV2 {
    /// `memory.stat`
    pub stat: MemoryStatV2,
    /// `memory.current` and its kin.
    pub memory: Option<MemoryUse>,
    /// `memory.swap.current` and its kin.
    pub swap: Option<MemoryUse>,
    /// `memory.pressure`
    pub psi: Option<Pressures>,
}

/// `memory.events`: of the cgroup and everything below it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "each field has the kernel's own name")]
pub struct MemoryEvents {
    pub low: u64,
    pub high: u64,
    pub max: u64,
    pub oom: u64,
    pub oom_kill: u64,
    pub oom_group_kill: u64,
}

/// I/O of one device on v2.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "each field has the kernel's own name")]
pub struct IoEntry {
    pub major: u64,
    pub minor: u64,
    pub rbytes: u64,
    pub wbytes: u64,
    pub rios: u64,
    pub wios: u64,
}

/// I/O on v2.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Io {
    /// `io.stat`
    pub usage: Vec<IoEntry>,
    /// `io.pressure`
    pub psi: Option<Pressures>,
}
