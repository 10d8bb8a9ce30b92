//! What containerd hears, and in which order.

use anyhow::{Result, ensure};
use vigil_lab::kit::Container;
use vigil_lab::{Event, Fact, Kit, Spec, by};

use crate::behaviour::in_status;

crate::behaviours! {
    "§3.6 Required order: create → start → exit → delete." order_of_init;
    "§3.6 Required order: exec-added → exec-started → exit; none for an exec's Delete." order_of_exec;
    "§3.5.3 All exec exits before init's." exec_exits_before_init;
    "§3.6 TaskCreate: container_id, bundle, rootfs, io, pid." create_event_is_complete;
    "§3.6 TaskExit: id, pid, status, and the time Wait says." exit_event_agrees_with_wait;
    "§3.6 TaskDelete: pid, status, time." delete_event_agrees;
    "§3.6 Timestamp, namespace and topic are mandatory." envelopes_are_complete;
    "§3.6 /tasks/paused and /tasks/resumed." pause_events;
    "§3.6 Events of a kill in the created state." events_of_killed_created;
    "§3.6 OOM: one /tasks/oom when the kernel kills for memory." oom_event;
    "§3.6 containerd may be down when the shim works: requests do not wait for the sink." sink_gone;
    "§3.6 Reconnect when the connection was closed: later events arrive." sink_returns;
    "§3.5 The order holds for early exits too." order_of_early_exit;
}

fn ended(kit: &Kit, script: &str) -> Result<Container> {
    let c = kit.running(&Spec::sh(script))?;
    c.exit_status()?;
    c.task().delete(&c.id, "")?;
    kit.sink.expect("delete", by(5.0))?;
    Ok(c)
}

fn order_of_init(kit: &Kit) -> Result<()> {
    ended(kit, "sleep 0.05; exit 3")?;
    let story = kit.sink.story();
    ensure!(story == ["create", "start", "exit", "delete"], "{story:?}");
    Ok(())
}

fn order_of_early_exit(kit: &Kit) -> Result<()> {
    ended(kit, "exit 3")?;
    let story = kit.sink.story();
    ensure!(story == ["create", "start", "exit", "delete"], "{story:?}");
    Ok(())
}

fn order_of_exec(kit: &Kit) -> Result<()> {
    let c = kit.running(&Spec::sleeper())?;
    kit.exec(&c, "e1", &Spec::sh("exit 4"))?;
    c.task().start(&c.id, "e1")?;
    c.task().wait(&c.id, "e1")?;
    c.task().delete(&c.id, "e1")?;
    c.task().kill(&c.id, "", 9, false)?;
    c.exit_status()?;
    kit.sink.expect("exit", by(5.0))?;
    let story = kit.sink.story();
    ensure!(
        story
            == [
                "create",
                "start",
                "exec-added e1",
                "exec-started e1",
                "exit e1",
                "exit"
            ],
        "{story:?}"
    );
    Ok(())
}

fn exec_exits_before_init(kit: &Kit) -> Result<()> {
    let c = kit.running(&Spec::sleeper())?;
    for id in ["e1", "e2", "e3"] {
        kit.exec(&c, id, &Spec::args(&["sleep", "1000"]))?;
        c.task().start(&c.id, id)?;
    }
    c.task().kill(&c.id, "", 9, false)?;
    c.exit_status()?;
    kit.sink.expect("exit", by(5.0))?;
    let story = kit.sink.story();
    ensure!(
        story.last().is_some_and(|l| l == "exit"),
        "init's exit is not the last: {story:?}"
    );
    ensure!(
        story.iter().filter(|s| s.starts_with("exit e")).count() == 3,
        "{story:?}"
    );
    Ok(())
}

fn create_event_is_complete(kit: &Kit) -> Result<()> {
    let c = kit.created(&Spec::sleeper())?;
    let event = kit.sink.expect("create", by(5.0))?;
    let Fact::Create(e) = event.fact else {
        anyhow::bail!("{event:?}")
    };
    ensure!(
        e.container_id == c.id && e.pid == c.pid && e.bundle == c.bundle.dir.to_string_lossy(),
        "{e:?}"
    );
    let io = e.io.unwrap_or_default();
    ensure!(
        [&io.stdin, &io.stdout, &io.stderr] == c.bundle.stdio.each_ref() && !io.terminal,
        "{io:?}"
    );
    ensure!(e.rootfs == c.bundle.rootfs, "{:?}", e.rootfs);
    Ok(())
}

fn exit_event_agrees_with_wait(kit: &Kit) -> Result<()> {
    let c = kit.running(&Spec::sh("exit 77"))?;
    let waited = c.task().wait(&c.id, "")?;
    let event = kit.sink.expect("exit", by(5.0))?;
    let Fact::Exit(e) = event.fact else {
        anyhow::bail!("{event:?}")
    };
    ensure!(
        e.container_id == c.id && e.id == c.id && e.pid == c.pid && e.exit_status == 77,
        "{e:?}"
    );
    ensure!(e.exited_at == waited.exited_at, "{e:?} after {waited:?}");
    Ok(())
}

fn delete_event_agrees(kit: &Kit) -> Result<()> {
    let c = ended(kit, "exit 78")?;
    let event = kit.sink.expect("delete", by(5.0))?;
    let Fact::Delete(e) = event.fact else {
        anyhow::bail!("{event:?}")
    };
    ensure!(
        e.container_id == c.id && e.pid == c.pid && e.exit_status == 78,
        "{e:?}"
    );
    ensure!(e.exited_at.as_ref().is_some_and(|t| t.seconds > 0), "{e:?}");
    Ok(())
}

fn envelopes_are_complete(kit: &Kit) -> Result<()> {
    ended(kit, "exit 0")?;
    for Event {
        topic,
        namespace,
        timestamp,
        fact,
    } in kit.sink.all()
    {
        ensure!(
            namespace == kit.scratch.mark(),
            "{topic}: namespace {namespace}"
        );
        ensure!(
            timestamp.is_some_and(|t| t.seconds > 0),
            "{topic}: no timestamp"
        );
        ensure!(
            topic.starts_with("/tasks/") && !matches!(fact, Fact::Other(_)),
            "{topic}: {fact:?}"
        );
    }
    Ok(())
}

fn pause_events(kit: &Kit) -> Result<()> {
    let c = kit.running(&Spec::sleeper())?;
    c.task().pause(&c.id)?;
    c.task().resume(&c.id)?;
    kit.sink.expect("resumed", by(5.0))?;
    let story = kit.sink.story();
    ensure!(
        story == ["create", "start", "paused", "resumed"],
        "{story:?}"
    );
    Ok(())
}

fn events_of_killed_created(kit: &Kit) -> Result<()> {
    let c = kit.created(&Spec::sleeper())?;
    c.task().kill(&c.id, "", 9, false)?;
    c.exit_status()?;
    kit.sink.expect("exit", by(5.0))?;
    let story = kit.sink.story();
    ensure!(story == ["create", "exit"], "{story:?}");
    Ok(())
}

fn oom_event(kit: &Kit) -> Result<()> {
    // An exec'd child grows until the kernel ends it; sh stays to be killed afterwards.
    let spec = Spec {
        memory: Some(16 << 20),
        ..Spec::sh(
            "trap : TERM; head -c 200m /dev/zero | tail >/dev/null; echo $?; while :; do sleep 0.1; done",
        )
    };
    let c = kit.running(&spec)?;
    let event = kit.sink.expect("oom", by(15.0))?;
    ensure!(
        matches!(event.fact, Fact::Oom(ref e) if e.container_id == c.id),
        "{event:?}"
    );
    // The kernel may choose sh as well; then there is nothing left to kill.
    let _ = c.task().kill(&c.id, "", 9, true);
    c.exit_status().map(drop)
}

fn sink_gone(kit: &Kit) -> Result<()> {
    kit.sink.refuse();
    let c = kit.running(&Spec::sh("sleep 0.1; exit 5"))?;
    in_status(&c, "", containerd_shim_protos::api::Status::RUNNING)?;
    ensure!(c.task().patient(3.0).wait(&c.id, "")?.exit_status == 5);
    ensure!(c.task().patient(5.0).delete(&c.id, "")?.exit_status == 5);
    Ok(())
}

fn sink_returns(kit: &Kit) -> Result<()> {
    let c = kit.running(&Spec::sleeper())?;
    kit.sink.expect("start", by(5.0))?;
    kit.sink.hang_up();
    c.task().pause(&c.id)?;
    kit.sink.expect("paused", by(12.0))?;
    kit.sink.hang_up();
    c.task().resume(&c.id)?;
    kit.sink.expect("resumed", by(12.0)).map(drop)
}
