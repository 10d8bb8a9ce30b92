//! What `start` and `delete` are given: bytes on stdin, ids, bundles. Whatever is wrong
//! is named on stderr with exit 1, and nothing is left of the attempt.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt;

use anyhow::{Context, Result, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use protobuf::Message;
use vigil_hostile::{Pair, Trace, toml_options, trial};
use vigil_lab::bundle::Stdio;
use vigil_lab::process::alive;
use vigil_lab::shim::{Caller, Ran};
use vigil_lab::task::any;
use vigil_lab::{Bundle, Kit, Shim, Spec, by, until};

fn no_stdio(kit: &Kit) -> Result<Bundle> {
    kit.bundle(&Spec::args(&["true"]), Stdio::Empty)
}

/// Exit 1, one line, each of these words in it.
fn failed(ran: &Ran, says: &[&str]) -> Result<()> {
    let text = String::from_utf8_lossy(&[&ran.stdout[..], &ran.stderr[..]].concat()).into_owned();
    ensure!(ran.status.code() == Some(1), "{}: {text}", ran.status);
    ensure!(text.trim_end().lines().count() == 1, "not one line: {text}");
    ensure!(text.len() < 1000, "{} bytes of message", text.len());
    for part in says {
        ensure!(text.contains(part), "{part:?} is not named in: {text}");
    }
    Ok(())
}

/// `start` with these bytes fails so, leaves nothing, and works with the right ones.
fn bad_stdin(kit: &Kit, bytes: &[u8], says: &[&str]) -> Result<()> {
    let bundle = no_stdio(kit)?;
    let before = Trace::of(kit.scratch.mark(), &bundle.dir);
    let ran = kit.caller.run_start_with(&bundle.id, &bundle.dir, bytes)?;
    failed(&ran, says)?;
    before.expect_back()?;
    kit.shim(&bundle).context("start, again").map(drop)
}

#[test]
fn garbage_on_stdin() {
    trial(20, |kit| {
        bad_stdin(kit, b"\xff\xfe\x00garbage", &["10 bytes on stdin"])?;
        bad_stdin(kit, b"unix:///not/options", &["bytes on stdin"])
    });
}

#[test]
fn eleven_mebibytes_on_stdin() {
    trial(20, |kit| {
        bad_stdin(
            kit,
            &vec![b'x'; 11 << 20],
            &["stdin is longer than 10485760 bytes"],
        )
    });
}

#[test]
fn options_nobody_knows_or_of_the_wrong_type() {
    trial(20, |kit| {
        let unknown = any("example.org/Unheard", vec![8, 1]).write_to_bytes()?;
        bad_stdin(kit, &unknown, &["Unheard"])?;
        let wrong = toml_options("SystemdCgroup = \"yes\"").write_to_bytes()?;
        bad_stdin(
            kit,
            &wrong,
            &["SystemdCgroup", "must be a boolean", "config_body"],
        )?;
        let torn = toml_options("BinaryName = [").write_to_bytes()?;
        bad_stdin(kit, &torn, &["config_body", "not TOML"])?;
        let group = toml_options("ShimCgroup = \"/no/such/group\"").write_to_bytes()?;
        bad_stdin(kit, &group, &["/no/such/group"])
    });
}

#[test]
fn ids_that_would_climb_out_of_their_place() {
    trial(30, |kit| {
        let bundle = no_stdio(kit)?;
        let before = Trace::of(kit.scratch.mark(), &bundle.dir);
        let long = "x".repeat(77);
        for id in [
            "a/b",
            "..",
            "../a",
            ".",
            "",
            "a b",
            "-a",
            "a\nb",
            "é",
            long.as_str(),
        ] {
            let ran = kit.caller.run_start(id, &bundle.dir)?;
            failed(&ran, &["-id"]).with_context(|| format!("start with id {id:?}"))?;
            let shown = if id == long { "77" } else { id };
            let text = String::from_utf8_lossy(&ran.stdout).into_owned();
            ensure!(
                id == "a\nb" || text.contains(shown),
                "{shown:?} is not named in: {text}"
            );
            let deleted = kit.caller.delete(id, &bundle.dir)?;
            failed(&deleted.ran, &["-id"]).with_context(|| format!("delete of id {id:?}"))?;
            ensure!(
                deleted.ran.stdout.is_empty(),
                "something on delete's stdout"
            );
        }
        before.expect_back()
    });
}

#[test]
fn seventy_six_characters_are_an_id() {
    trial(20, |kit| {
        let bundle = no_stdio(kit)?;
        let id = "y".repeat(76);
        let caller = &kit.caller;
        let ran = caller.run_start(&id, &bundle.dir)?;
        let shim = Shim::connect(caller, &bundle, ran)?;
        let state = shim.task.state(&id, "");
        vigil_hostile::refused(state, 5, &["not created"])?;
        shim.task.shutdown(&id)?;
        caller.delete(&id, &bundle.dir)?.ok().map(drop)
    });
}

#[test]
fn a_bundle_that_cannot_be_written() {
    trial(20, |kit| {
        let bundle = no_stdio(kit)?;
        mount(
            None::<&str>,
            &bundle.dir,
            Some("tmpfs"),
            MsFlags::MS_RDONLY,
            None::<&str>,
        )?;
        let before = Trace::of(kit.scratch.mark(), &bundle.dir);
        let ran = kit.caller.run_start(&bundle.id, &bundle.dir)?;
        let path = bundle.dir.display().to_string();
        failed(&ran, &[path.as_str(), "Read-only file system"])?;
        before.expect_back()?;
        umount2(&bundle.dir, MntFlags::empty())?;
        kit.shim(&bundle).context("start, again").map(drop)
    });
}

#[test]
fn a_bundle_without_room() {
    trial(20, |kit| {
        let bundle = no_stdio(kit)?;
        // Room for a file of one page; the journal wants more, and says so at the start.
        mount(
            None::<&str>,
            &bundle.dir,
            Some("tmpfs"),
            MsFlags::empty(),
            Some("size=4k"),
        )?;
        fs::write(bundle.dir.join("config.json"), "{}")?;
        let before = Trace::of(kit.scratch.mark(), &bundle.dir);
        let ran = kit.caller.run_start(&bundle.id, &bundle.dir)?;
        let path = bundle.dir.display().to_string();
        failed(&ran, &[path.as_str(), "No space left on device"])?;
        before.expect_back()?;
        umount2(&bundle.dir, MntFlags::empty())?;
        kit.shim(&bundle).context("start, again").map(drop)
    });
}

#[test]
fn a_bundle_that_is_gone() {
    trial(20, |kit| {
        let bundle = no_stdio(kit)?;
        let gone = kit.scratch.path("state/gone");
        fs::create_dir(&gone)?;
        let before = Trace::of(kit.scratch.mark(), &bundle.dir);
        // Its directory is removed between containerd's fork and our first look.
        let wrapper = kit.scratch.path("containerd-shim-in-nowhere");
        let script = format!(
            "#!/bin/sh\nrmdir {}\nexec {} \"$@\"\n",
            gone.display(),
            kit.caller.binary.display()
        );
        fs::write(&wrapper, script)?;
        fs::set_permissions(&wrapper, PermissionsExt::from_mode(0o755))?;
        let caller = Caller {
            binary: wrapper,
            ..kit.caller.clone()
        };
        let ran = caller.run_start("gone", &gone)?;
        failed(&ran, &["bundle"])?;
        before.expect_back()
    });
}

#[test]
fn a_directory_where_a_file_should_be() {
    trial(20, |kit| {
        for name in ["lock", "exits", "address", "pair", "journal"] {
            let bundle = no_stdio(kit)?;
            fs::create_dir(bundle.dir.join(name))?;
            let before = Trace::of(kit.scratch.mark(), &bundle.dir);
            let ran = kit.caller.run_start(&bundle.id, &bundle.dir)?;
            // It is set aside; but the lock and the address of a socket are nobody's to replace.
            if !["lock", "address"].contains(&name) {
                ensure!(ran.status.success(), "{name}: {:?}", ran.status);
                kit.adopt(Shim::connect(&kit.caller, &bundle, ran)?)?;
                continue;
            }
            failed(&ran, &[bundle.dir.join(name).to_str().unwrap()])?;
            before
                .expect_back()
                .with_context(|| format!("{name} is a directory"))?;
        }
        Ok(())
    });
}

#[test]
fn nothing_of_its_output_is_inherited() {
    trial(20, |kit| {
        let bundle = no_stdio(kit)?;
        // The shell passes on its stdout three times over; who keeps one keeps the pipe open.
        let mut caller = kit.caller.clone();
        let wrapper = kit.scratch.path("containerd-shim-passing-on");
        let script = format!(
            "#!/bin/sh\nexec 7>&1 9>&2\nexec {} \"$@\"\n",
            caller.binary.display()
        );
        fs::write(&wrapper, script)?;
        fs::set_permissions(&wrapper, PermissionsExt::from_mode(0o755))?;
        caller.binary = wrapper;
        // `run_start` reads to the end of the output: that it returns is what is tested.
        let ran = caller.run_start(&bundle.id, &bundle.dir)?;
        ensure!(ran.took.as_secs() < 3, "end of output after {:?}", ran.took);
        let shim = kit.adopt(Shim::connect(&kit.caller, &bundle, ran)?)?;
        let pair = Pair::of(&shim)?;
        for pid in [pair.reaper, pair.shim] {
            for fd in 0..3 {
                let target = fs::read_link(format!("/proc/{pid}/fd/{fd}"))?;
                let target = target.to_string_lossy().into_owned();
                ensure!(!target.starts_with("pipe:"), "fd {fd} of {pid} is {target}");
            }
        }
        Ok(())
    });
}

/// A process' name is its own to choose: a container whose every process called itself as
/// shims are called was taken for none, and its pair, when it did not answer, for idle.
#[test]
fn a_container_that_calls_itself_a_shim_is_seen() {
    trial(60, |kit| {
        // A script's name is its process'.
        let script = "mkfifo /tmp/f && printf '#!/bin/sh\\nread never <>/tmp/f\\n' >/tmp/containerd-shim && \
            chmod +x /tmp/containerd-shim && exec /tmp/containerd-shim";
        let container = kit.running(&Spec::sh(script))?;
        let pid = i32::try_from(container.pid)?;
        until("it to take the name", by(10.0), || {
            let comm = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
            (comm.trim() == "containerd-shim").then_some(())
        })?;
        let pair = Pair::of(&container.shim)?;
        for process in [pair.reaper, pair.shim] {
            pair.signal(process, nix::libc::SIGSTOP)?;
        }
        let ran = kit.caller.run_start(&container.id, &container.bundle.dir)?;
        let said = String::from_utf8_lossy(&ran.stderr).into_owned();
        ensure!(
            alive(pair.reaper) && alive(pid),
            "was made to leave: {said}"
        );
        for process in [pair.shim, pair.reaper] {
            pair.signal(process, nix::libc::SIGCONT)?;
        }
        ensure!(!ran.status.success(), "another pair was made");
        ensure!(alive(pid), "the container was ended");
        ensure!(alive(pair.reaper), "its pair was made to leave");
        Ok(())
    });
}
