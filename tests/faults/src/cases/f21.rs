//! F21: many processes at a time that the runtime has to hear of. (The storm of orphans is
//! F01's.)

use anyhow::{Context, Result, anyhow, ensure};
use vigil_lab::{Kit, Spec, by};

use crate::cases;
use crate::rest::{another_connection, nothing_but_the_pair, one_exit, signal_init};
use crate::watch::Watch;
use crate::world::times;

cases! {
    Kit All f21_seventy_execs "Seventy execs by a dozen clients at once: every word and status, and State meanwhile" alone;
}

fn f21_seventy_execs(kit: &Kit) -> Result<()> {
    let container = kit.running(&Spec::sleeper())?;
    let watch = Watch::start(&container)?;
    let each = u32::try_from(times(6, 40))?;
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..12_u32)
            .map(|thread| {
                let container = &container;
                scope.spawn(move || -> Result<()> {
                    let task = another_connection(container)?.patient(60.0);
                    for number in 0..each {
                        let name = format!("e{thread}x{number}");
                        let status = (thread * 7 + number) % 100;
                        let script = format!("echo {name} says so; exit {status}");
                        let exec = kit.exec(container, &name, &Spec::sh(&script))?;
                        task.start(&container.id, &name)
                            .with_context(|| name.clone())?;
                        let ended = task.wait(&container.id, &name)?;
                        ensure!(ended.exit_status == status, "{name}: {ended:?}");
                        exec.stdout.expect(&format!("{name} says so\n"), by(10.0))?;
                        let gone = task.delete(&container.id, &name)?;
                        ensure!(gone.exit_status == status, "{name}: {gone:?}");
                    }
                    Ok(())
                })
            })
            .collect();
        for thread in threads {
            thread.join().map_err(|_| anyhow!("it panicked"))??;
        }
        Ok::<_, anyhow::Error>(())
    })?;
    let seen = watch.end()?;
    ensure!(seen.failed.is_empty(), "State failed: {}", seen.failed[0]);
    signal_init(&container, 9)?;
    one_exit(kit, &container, 137)?;
    let story = kit.sink.story();
    let count = |what: &str| story.iter().filter(|s| s.starts_with(what)).count();
    let all = usize::try_from(each * 12)?;
    ensure!(
        count("exec-added ") == all && count("exec-started ") == all && count("exit e") == all,
        "{} added, {} started, {} ended of {all}",
        count("exec-added "),
        count("exec-started "),
        count("exit e")
    );
    nothing_but_the_pair(kit, &container.id)
}
