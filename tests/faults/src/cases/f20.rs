//! F20: what init leaves behind has to be killed, and that may hang. Exits are told all
//! the same, of this container and of its neighbours.

use std::fs;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use vigil_lab::bundle::Stdio;
use vigil_lab::kit::Container;
use vigil_lab::{GENEROUS, Kit, Spec, by, until};

use crate::cases;
use crate::rest::{configure, create, freezer, members, nothing_but_the_pair, one_exit};
use crate::world::{running_under, scripted, unified};

cases! {
    Kit All f20_kill_all_hangs "runc kill --all hangs when init ends (host pid namespace): its exit is told, the rest is gone";
    Kit All f20_frozen_below "A frozen cgroup below when init ends: told in a few seconds, the rest is gone";
    Kit All f20_pod_of_five "Five in one pid namespace, kill --all hangs in one: the others' exits are told at once";
    Kit All f20_execs_queue_up "Forty execs end while kill --all hangs: every exit is told, before init's";
}

const ENDS: &str = "sleep 1001 & while ! [ -e /tmp/end ]; do sleep 0.02; done; exit 6";

fn end(container: &Container) -> Result<()> {
    fs::write(format!("/proc/{}/root/tmp/end", container.pid), "").context("telling it to end")
}

fn host(script: &str) -> Spec {
    Spec {
        own_pids: false,
        ..Spec::sh(script)
    }
}

fn ended(kit: &Kit, container: &Container, status: u32) -> Result<()> {
    let at = Instant::now();
    let waited = container.task().patient(20.0).wait(&container.id, "")?;
    ensure!(waited.exit_status == status, "{waited:?}");
    ensure!(at.elapsed() < GENEROUS, "Wait took {:?}", at.elapsed());
    one_exit(kit, container, status)?;
    let left = members(kit, &container.id);
    ensure!(left.is_empty(), "live on: {left:?}");
    nothing_but_the_pair(kit, &container.id)
}

fn hanging(kit: &Kit) -> Result<protobuf::well_known_types::any::Any> {
    let body = "[ \"$verb\" = kill ] && { trap '' TERM; while :; do sleep 0.2; done; }";
    Ok(scripted(kit, "hangs", body)?.1)
}

fn f20_kill_all_hangs(kit: &Kit) -> Result<()> {
    let container = running_under(kit, &host(ENDS), &hanging(kit)?)?;
    until("the child", by(5.0), || {
        (members(kit, &container.id).len() > 1).then_some(())
    })?;
    end(&container)?;
    ended(kit, &container, 6)
}

fn f20_frozen_below(kit: &Kit) -> Result<()> {
    let container = kit.running(&host(ENDS))?;
    let child = until("the child", by(5.0), || {
        let all = members(kit, &container.id);
        all.iter()
            .find(|p| p.cmdline == "sleep 1001")
            .map(|p| p.pid)
    })?;
    let below = freezer(kit, &container.id).join("below");
    fs::create_dir(&below)?;
    fs::write(below.join("cgroup.procs"), child.to_string())?;
    let (file, word) = if unified() {
        ("cgroup.freeze", "1")
    } else {
        ("freezer.state", "FROZEN")
    };
    fs::write(below.join(file), word)?;
    end(&container)?;
    ended(kit, &container, 6)
}

fn f20_pod_of_five(kit: &Kit) -> Result<()> {
    let pause = kit.running(&Spec::sleeper())?;
    let options = hanging(kit)?;
    let mut pod = Vec::new();
    for _ in 0..4 {
        let mut container = kit.prepared(&host(ENDS), Stdio::Output)?;
        configure(&container, |config| {
            if let Some(namespaces) = config["linux"]["namespaces"].as_array_mut() {
                namespaces
                    .push(json!({ "type": "pid", "path": format!("/proc/{}/ns/pid", pause.pid) }));
            }
        })?;
        create(&mut container, Some(&options))?;
        container.start()?;
        pod.push(container);
    }
    for container in &pod {
        end(container)?;
    }
    for container in &pod {
        ended(kit, container, 6)?;
    }
    let others = members(kit, &pause.id);
    ensure!(!others.is_empty(), "the first of the pod was hurt");
    Ok(())
}

fn f20_execs_queue_up(kit: &Kit) -> Result<()> {
    let container = running_under(kit, &host(ENDS), &hanging(kit)?)?;
    let script = "while ! [ -e /tmp/end ]; do sleep 0.05; done; exit 3";
    let names: Vec<String> = (0..40).map(|n| format!("e{n}")).collect();
    for name in &names {
        kit.exec(&container, name, &Spec::sh(script))?;
        container.task().start(&container.id, name)?;
    }
    end(&container)?;
    ended(kit, &container, 6)?;
    let story = kit.sink.story();
    let init = story.iter().position(|s| s == "exit");
    for name in &names {
        let own = format!("exit {name}");
        let at = story.iter().position(|s| *s == own);
        ensure!(at.is_some() && at < init, "{own}: {story:?}");
    }
    Ok(())
}
