//! Counters to the wire: the messages CRI and Prometheus read. What is absent
//! stays an absent message; what has no limit becomes the value containerd's
//! own encoders use for it. Decides nothing and reads nothing.

use containerd_shim_protos::cgroups::metrics as v1;
use containerd_shim_protos::cgroups_v2::metrics as v2;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message, MessageField, Result};
use vigil_model::metrics as m;
use vigil_model::metrics::Metrics;

/// Bare type name of the v1 message (no `type.googleapis.com/` prefix, as
/// containerd registers it).
pub const V1_TYPE: &str = "io.containerd.cgroups.v1.Metrics";
/// Bare type name of the v2 message.
pub const V2_TYPE: &str = "io.containerd.cgroups.v2.Metrics";

/// `StatsResponse.stats`.
pub fn encode(metrics: &Metrics) -> Result<Any> {
    let (type_url, value) = match metrics {
        Metrics::V1(it) => (V1_TYPE, v1_message(it).write_to_bytes()?),
        Metrics::V2(it) => (V2_TYPE, v2_message(it).write_to_bytes()?),
    };
    Ok(Any {
        type_url: type_url.to_owned(),
        value,
        ..Any::default()
    })
}

fn field<A, B>(from: Option<&A>, make: impl FnOnce(&A) -> B) -> MessageField<B> {
    from.map(make).into()
}

fn v1_message(it: &m::V1) -> v1::Metrics {
    let cpu = (it.cpu_usage.is_some() || it.throttling.is_some()).then(|| v1::CPUStat {
        usage: field(it.cpu_usage.as_ref(), |u| v1::CPUUsage {
            total: u.total,
            kernel: u.kernel,
            user: u.user,
            per_cpu: u.per_cpu.clone(),
            ..v1::CPUUsage::default()
        }),
        throttling: field(it.throttling.as_ref(), |t| v1::Throttle {
            periods: t.periods,
            throttled_periods: t.throttled_periods,
            throttled_time: t.throttled_time,
            ..v1::Throttle::default()
        }),
        ..v1::CPUStat::default()
    });
    v1::Metrics {
        hugetlb: it.hugetlb.iter().map(v1_hugetlb).collect(),
        // 0 is how v1 says "no limit".
        pids: field(it.pids.as_ref(), |p| v1::PidsStat {
            current: p.current,
            limit: p.limit.unwrap_or(0),
            ..v1::PidsStat::default()
        }),
        cpu: cpu.into(),
        memory: field(it.memory.as_ref(), v1_memory),
        blkio: field(it.blkio.as_ref(), v1_blkio),
        rdma: field(it.rdma.as_ref(), |r| v1::RdmaStat {
            current: r.current.iter().map(v1_rdma).collect(),
            limit: r.limit.iter().map(v1_rdma).collect(),
            ..v1::RdmaStat::default()
        }),
        memory_oom_control: field(it.oom_control.as_ref(), |o| v1::MemoryOomControl {
            oom_kill_disable: o.oom_kill_disable,
            under_oom: o.under_oom,
            oom_kill: o.oom_kill.unwrap_or(0),
            ..v1::MemoryOomControl::default()
        }),
        ..v1::Metrics::default()
    }
}

fn v1_hugetlb(it: &m::HugeTlb) -> v1::HugetlbStat {
    v1::HugetlbStat {
        usage: it.usage,
        max: it.max.unwrap_or(0),
        failcnt: it.failcnt,
        pagesize: it.pagesize.clone(),
        ..v1::HugetlbStat::default()
    }
}

fn v1_memory(it: &m::MemoryV1) -> v1::MemoryStat {
    let entry = |e: &m::MemoryEntry| v1::MemoryEntry {
        limit: e.limit,
        usage: e.usage,
        max: e.max,
        failcnt: e.failcnt,
        ..v1::MemoryEntry::default()
    };
    let (own, total) = (&it.own, &it.total);
    v1::MemoryStat {
        cache: own.cache,
        rss: own.rss,
        rss_huge: own.rss_huge,
        mapped_file: own.mapped_file,
        dirty: own.dirty,
        writeback: own.writeback,
        pg_pg_in: own.pgpgin,
        pg_pg_out: own.pgpgout,
        pg_fault: own.pgfault,
        pg_maj_fault: own.pgmajfault,
        inactive_anon: own.inactive_anon,
        active_anon: own.active_anon,
        inactive_file: own.inactive_file,
        active_file: own.active_file,
        unevictable: own.unevictable,
        hierarchical_memory_limit: it.hierarchical_memory_limit,
        hierarchical_swap_limit: it.hierarchical_swap_limit.unwrap_or(0),
        total_cache: total.cache,
        total_rss: total.rss,
        total_rss_huge: total.rss_huge,
        total_mapped_file: total.mapped_file,
        total_dirty: total.dirty,
        total_writeback: total.writeback,
        total_pg_pg_in: total.pgpgin,
        total_pg_pg_out: total.pgpgout,
        total_pg_fault: total.pgfault,
        total_pg_maj_fault: total.pgmajfault,
        total_inactive_anon: total.inactive_anon,
        total_active_anon: total.active_anon,
        total_inactive_file: total.inactive_file,
        total_active_file: total.active_file,
        total_unevictable: total.unevictable,
        usage: field(it.usage.as_ref(), entry),
        swap: field(it.swap.as_ref(), entry),
        kernel: field(it.kernel.as_ref(), entry),
        kernel_tcp: field(it.kernel_tcp.as_ref(), entry),
        ..v1::MemoryStat::default()
    }
}

fn v1_blkio(it: &m::BlkIo) -> v1::BlkIOStat {
    let list = |entries: &[m::BlkIoEntry]| -> Vec<v1::BlkIOEntry> {
        entries
            .iter()
            .map(|e| v1::BlkIOEntry {
                op: e.op.clone(),
                device: e.device.clone(),
                major: e.major,
                minor: e.minor,
                value: e.value,
                ..v1::BlkIOEntry::default()
            })
            .collect()
    };
    v1::BlkIOStat {
        io_service_bytes_recursive: list(&it.service_bytes),
        io_serviced_recursive: list(&it.serviced),
        io_queued_recursive: list(&it.queued),
        io_service_time_recursive: list(&it.service_time),
        io_wait_time_recursive: list(&it.wait_time),
        io_merged_recursive: list(&it.merged),
        io_time_recursive: list(&it.time),
        sectors_recursive: list(&it.sectors),
        ..v1::BlkIOStat::default()
    }
}

fn v1_rdma(it: &m::RdmaEntry) -> v1::RdmaEntry {
    v1::RdmaEntry {
        device: it.device.clone(),
        hca_handles: it.hca_handles.unwrap_or(u32::MAX),
        hca_objects: it.hca_objects.unwrap_or(u32::MAX),
        ..v1::RdmaEntry::default()
    }
}

/// v2 says "no limit" with the largest number.
fn limit(value: Option<u64>) -> u64 {
    value.unwrap_or(u64::MAX)
}

fn v2_message(it: &m::V2) -> v2::Metrics {
    v2::Metrics {
        pids: field(it.pids.as_ref(), |p| v2::PidsStat {
            current: p.current,
            limit: limit(p.limit),
            ..v2::PidsStat::default()
        }),
        cpu: field(it.cpu.as_ref(), |c| v2::CPUStat {
            usage_usec: c.usage_usec,
            user_usec: c.user_usec,
            system_usec: c.system_usec,
            nr_periods: c.nr_periods,
            nr_throttled: c.nr_throttled,
            throttled_usec: c.throttled_usec,
            psi: field(c.psi.as_ref(), pressures),
            nr_bursts: c.nr_bursts,
            burst_usec: c.burst_usec,
            ..v2::CPUStat::default()
        }),
        memory: field(it.memory.as_ref(), v2_memory),
        rdma: field(it.rdma.as_ref(), |r| v2::RdmaStat {
            current: r.current.iter().map(v2_rdma).collect(),
            limit: r.limit.iter().map(v2_rdma).collect(),
            ..v2::RdmaStat::default()
        }),
        io: field(it.io.as_ref(), |io| v2::IOStat {
            usage: io.usage.iter().map(v2_io).collect(),
            psi: field(io.psi.as_ref(), pressures),
            ..v2::IOStat::default()
        }),
        hugetlb: it
            .hugetlb
            .iter()
            .map(|h| v2::HugeTlbStat {
                current: h.usage,
                max: limit(h.max),
                pagesize: h.pagesize.clone(),
                failcnt: h.failcnt,
                ..v2::HugeTlbStat::default()
            })
            .collect(),
        memory_events: field(it.memory_events.as_ref(), |e| v2::MemoryEvents {
            low: e.low,
            high: e.high,
            max: e.max,
            oom: e.oom,
            oom_kill: e.oom_kill,
            oom_group_kill: e.oom_group_kill,
            ..v2::MemoryEvents::default()
        }),
        ..v2::Metrics::default()
    }
}

fn pressures(it: &m::Pressures) -> v2::PSIStats {
    let line = |p: &m::Pressure| v2::PSIData {
        avg10: p.avg10,
        avg60: p.avg60,
        avg300: p.avg300,
        total: p.total,
        ..v2::PSIData::default()
    };
    v2::PSIStats {
        some: field(it.some.as_ref(), line),
        full: field(it.full.as_ref(), line),
        ..v2::PSIStats::default()
    }
}

fn v2_memory(it: &m::MemoryV2) -> v2::MemoryStat {
    let stat = &it.stat;
    let memory = it.memory.unwrap_or_default();
    // Without swap accounting there is no swap to limit: zeros, as the Go
    // encoder says it.
    let swap = it.swap.unwrap_or(m::MemoryUse {
        limit: Some(0),
        ..m::MemoryUse::default()
    });
    v2::MemoryStat {
        anon: stat.anon,
        file: stat.file,
        kernel_stack: stat.kernel_stack,
        slab: stat.slab,
        sock: stat.sock,
        shmem: stat.shmem,
        file_mapped: stat.file_mapped,
        file_dirty: stat.file_dirty,
        file_writeback: stat.file_writeback,
        anon_thp: stat.anon_thp,
        inactive_anon: stat.inactive_anon,
        active_anon: stat.active_anon,
        inactive_file: stat.inactive_file,
        active_file: stat.active_file,
        unevictable: stat.unevictable,
        slab_reclaimable: stat.slab_reclaimable,
        slab_unreclaimable: stat.slab_unreclaimable,
        pgfault: stat.pgfault,
        pgmajfault: stat.pgmajfault,
        workingset_refault: stat.workingset_refault,
        workingset_activate: stat.workingset_activate,
        workingset_nodereclaim: stat.workingset_nodereclaim,
        pgrefill: stat.pgrefill,
        pgscan: stat.pgscan,
        pgsteal: stat.pgsteal,
        pgactivate: stat.pgactivate,
        pgdeactivate: stat.pgdeactivate,
        pglazyfree: stat.pglazyfree,
        pglazyfreed: stat.pglazyfreed,
        thp_fault_alloc: stat.thp_fault_alloc,
        thp_collapse_alloc: stat.thp_collapse_alloc,
        usage: memory.usage,
        usage_limit: limit(memory.limit),
        swap_usage: swap.usage,
        swap_limit: limit(swap.limit),
        max_usage: memory.max.unwrap_or(0),
        swap_max_usage: swap.max.unwrap_or(0),
        psi: field(it.psi.as_ref(), pressures),
        ..v2::MemoryStat::default()
    }
}

fn v2_rdma(it: &m::RdmaEntry) -> v2::RdmaEntry {
    v2::RdmaEntry {
        device: it.device.clone(),
        hca_handles: it.hca_handles.unwrap_or(u32::MAX),
        hca_objects: it.hca_objects.unwrap_or(u32::MAX),
        ..v2::RdmaEntry::default()
    }
}

fn v2_io(it: &m::IoEntry) -> v2::IOEntry {
    v2::IOEntry {
        major: it.major,
        minor: it.minor,
        rbytes: it.rbytes,
        wbytes: it.wbytes,
        rios: it.rios,
        wios: it.wios,
        ..v2::IOEntry::default()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn absent_controllers_stay_absent_on_the_wire() {
        for (metrics, name) in [
            (Metrics::V1(Box::default()), V1_TYPE),
            (Metrics::V2(Box::default()), V2_TYPE),
        ] {
            let any = encode(&metrics).unwrap();
            assert_eq!(any.type_url, name);
            assert!(any.value.is_empty(), "{:?}", any.value);
        }
    }

    #[test]
    fn a_counter_arrives_under_its_own_name() {
        let it = m::V2 {
            memory_events: Some(m::MemoryEvents {
                oom_kill: 3,
                ..m::MemoryEvents::default()
            }),
            memory: Some(m::MemoryV2 {
                memory: Some(m::MemoryUse {
                    usage: 11,
                    limit: None,
                    max: Some(12),
                }),
                ..m::MemoryV2::default()
            }),
            pids: Some(m::Pids {
                current: 2,
                limit: Some(9),
            }),
            ..m::V2::default()
        };
        let any = encode(&Metrics::V2(Box::new(it))).unwrap();
        let back = v2::Metrics::parse_from_bytes(&any.value).unwrap();
        assert_eq!(back.memory_events.oom_kill, 3);
        assert_eq!(back.memory.usage, 11);
        assert_eq!(back.memory.usage_limit, u64::MAX);
        assert_eq!(back.memory.max_usage, 12);
        assert_eq!(back.memory.swap_limit, 0);
        assert_eq!((back.pids.current, back.pids.limit), (2, 9));
        assert!(back.cpu.is_none() && back.io.is_none());

        let it = m::V1 {
            cpu_usage: Some(m::CpuUsage {
                total: 5,
                per_cpu: vec![2, 3],
                ..m::CpuUsage::default()
            }),
            oom_control: Some(m::OomControl {
                oom_kill: Some(1),
                ..m::OomControl::default()
            }),
            ..m::V1::default()
        };
        let any = encode(&Metrics::V1(Box::new(it))).unwrap();
        let back = v1::Metrics::parse_from_bytes(&any.value).unwrap();
        assert_eq!(back.cpu.usage.total, 5);
        assert_eq!(back.cpu.usage.per_cpu, [2, 3]);
        assert!(back.cpu.throttling.is_none());
        assert_eq!(back.memory_oom_control.oom_kill, 1);
    }
}
