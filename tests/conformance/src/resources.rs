//! Stats, Update, Pids, Checkpoint: the container's cgroup through the shim.

use std::fs;

use anyhow::{Context, Result, ensure};
use containerd_shim_protos::cgroups::metrics::Metrics as V1;
use containerd_shim_protos::cgroups_v2::metrics::Metrics as V2;
use containerd_shim_protos::protobuf::Message;
use serde_json::json;
use vigil_lab::{Kit, Spec, by, until};

use crate::behaviour::not_done;

crate::behaviours! {
    "§3.4 Stats: Any with the bare name of the v1 or v2 Metrics." stats_type;
    "§3.4 Stats: the values are the cgroup's." stats_values;
    "§3.4 Update: resources = JSON LinuxResources; the limit is in force." update_memory_limit;
    "§3.3 created: Update ✓." update_of_created;
    "§3.3 stopped: Update ✗." update_of_stopped_refused;
    "§3.4 Update with something that is no LinuxResources is an error." update_with_garbage;
    "§3.4 Pids: all pids of the cgroup." pids_lists_everyone;
    "§3.3 created: Checkpoint ✗." checkpoint_of_created_refused;
}

pub(crate) struct Seen {
    pub(crate) pids: u64,
    pub(crate) pids_limit: u64,
    memory: u64,
    cpu: u64,
}

pub(crate) fn stats(container: &vigil_lab::kit::Container) -> Result<Seen> {
    let any = container.task().stats(&container.id)?;
    match any.type_url.as_str() {
        "io.containerd.cgroups.v1.Metrics" => {
            let m = V1::parse_from_bytes(&any.value)?;
            let memory = m.memory.usage.usage;
            Ok(Seen {
                pids: m.pids.current,
                pids_limit: m.pids.limit,
                memory,
                cpu: m.cpu.usage.total,
            })
        }
        "io.containerd.cgroups.v2.Metrics" => {
            let m = V2::parse_from_bytes(&any.value)?;
            Ok(Seen {
                pids: m.pids.current,
                pids_limit: m.pids.limit,
                memory: m.memory.usage,
                cpu: m.cpu.usage_usec,
            })
        }
        other => anyhow::bail!("type {other:?}"),
    }
}

fn stats_type(kit: &Kit) -> Result<()> {
    let c = kit.running(&Spec::sleeper())?;
    stats(&c).map(drop)
}

fn stats_values(kit: &Kit) -> Result<()> {
    let c = kit.running(&Spec::sh(
        "n=0; while :; do n=$((n+1)); done & while :; do sleep 1000; done",
    ))?;
    // sh, its busy child, its sleep.
    let first = until("three processes in stats", by(5.0), || {
        stats(&c).ok().filter(|s| s.pids == 3)
    })?;
    ensure!(
        first.memory > 4096 && first.memory < 64 << 20,
        "memory {}",
        first.memory
    );
    until("cpu time to grow", by(5.0), || {
        stats(&c).ok().filter(|s| s.cpu > first.cpu)
    })
    .map(drop)
}

/// The memory limit as the kernel has it.
fn limit(kit: &Kit, id: &str) -> Result<u64> {
    let mark = kit.scratch.mark();
    let v1 = format!("/sys/fs/cgroup/memory/{mark}/{id}/memory.limit_in_bytes");
    let v2 = format!("/sys/fs/cgroup/{mark}/{id}/memory.max");
    let text = fs::read_to_string(&v1)
        .or_else(|_| fs::read_to_string(&v2))
        .with_context(|| format!("{v1}, {v2}"))?;
    Ok(text.trim().parse()?)
}

fn update_memory_limit(kit: &Kit) -> Result<()> {
    let c = kit.running(&Spec {
        memory: Some(64 << 20),
        ..Spec::sleeper()
    })?;
    ensure!(limit(kit, &c.id)? == 64 << 20);
    c.task().update(
        &c.id,
        &json!({"memory": {"limit": 48 << 20, "swap": 48 << 20}}),
    )?;
    ensure!(limit(kit, &c.id)? == 48 << 20, "{}", limit(kit, &c.id)?);
    Ok(())
}

fn update_of_created(kit: &Kit) -> Result<()> {
    let c = kit.created(&Spec {
        memory: Some(64 << 20),
        ..Spec::sleeper()
    })?;
    c.task().update(
        &c.id,
        &json!({"memory": {"limit": 32 << 20, "swap": 32 << 20}}),
    )?;
    ensure!(limit(kit, &c.id)? == 32 << 20, "{}", limit(kit, &c.id)?);
    Ok(())
}

fn update_of_stopped_refused(kit: &Kit) -> Result<()> {
    let c = kit.running(&Spec::sh("exit 0"))?;
    c.exit_status()?;
    not_done(
        c.task()
            .update(&c.id, &json!({"memory": {"limit": 32 << 20}})),
        "Update when stopped",
    )
}

fn update_with_garbage(kit: &Kit) -> Result<()> {
    let c = kit.running(&Spec::sleeper())?;
    not_done(
        c.task().update(&c.id, &json!("a string")),
        "Update with a string",
    )?;
    not_done(
        c.task()
            .update(&c.id, &json!({"memory": {"limit": "much"}})),
        "Update with a wrong member",
    )
}

fn pids_lists_everyone(kit: &Kit) -> Result<()> {
    let c = kit.running(&Spec::sh("sleep 1000 & sleep 1000 & wait"))?;
    let pids = until("three pids", by(5.0), || {
        let pids = c.task().pids(&c.id).ok()?.processes;
        (pids.len() == 3).then_some(pids)
    })?;
    ensure!(
        pids.iter().any(|p| p.pid == c.pid),
        "no init {} in {pids:?}",
        c.pid
    );
    Ok(())
}

fn checkpoint_of_created_refused(kit: &Kit) -> Result<()> {
    let c = kit.created(&Spec::sleeper())?;
    let path = kit.scratch.path("checkpoint");
    not_done(
        c.task().checkpoint(&c.id, &path.to_string_lossy()),
        "Checkpoint when created",
    )
}
