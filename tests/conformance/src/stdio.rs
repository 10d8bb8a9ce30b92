//! stdin, stdout, stderr: fifos, terminals, loggers, files, and how each ends.
//!
//! Every byte is counted by the suite's own reader.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Instant;

use anyhow::{Result, ensure};
use containerd_shim_protos::api::Status;
use vigil_lab::bundle::Stdio;
use vigil_lab::poll::sharp;
use vigil_lab::{FifoReader, Kit, Spec, by, until};

use crate::behaviour::{in_status, not_done};

crate::behaviours! {
    "§4 stdout and stderr go to their own fifos." streams_are_separate;
    "§4 stdin reaches the container; EOF needs CloseIO and the client's end." stdin_until_close;
    "§4 A client that detaches does not cause EOF on stdin." detached_client_is_no_eof;
    "§4 A burst before the exit arrives whole." burst_arrives_whole;
    "§4, DESIGN §7 The reader sees EOF soon after the exit, with no Delete sent." eof_after_exit_without_delete;
    "§4 All streams empty: /dev/null." empty_streams;
    "§4 stdout alone may be a fifo only together with stderr: `open \"\"` fails." lone_stdout;
    "§4 file:///p: created with parents, appended to, both streams." file_uri;
    "§4 binary://: arguments, environment, fds 3 to 5, end at EOF." binary_uri;
    "§4 An unknown scheme is an error." unknown_scheme;
    "§4 Both ends held: a reader that vanishes causes neither SIGPIPE nor EOF; data waits." reader_may_come_back;
    "§4 Terminal: it is one, output via stdout, stderr unused." terminal_output;
    "§4 Terminal: ResizePty sets its size." terminal_resize;
    "§4 Terminal: input and exit code." terminal_input;
    "§3.4 ResizePty: no console = silent success." resize_without_terminal;
    "§4 Background children delay Delete up to the drain timeout, not for ever." background_child_holds_output;
    "Issue 9, B2: a background child of an exec is heard after its exit, and is no EOF before it ends." background_child_is_heard;
    "Issue 9, B2: Delete of an exec waits for its background child." background_child_is_heard_until_delete;
    "Issue 9, B2: CRI's drain: a background child that says nothing is a writer, until it ends." silent_child_is_a_writer;
    "Issue 9, B4: what runc says when it fails is not the container's output." failed_create_says_nothing;
    "Issue 9, B4: what runc says when it fails is not the exec's output." failed_exec_says_nothing;
    "Issue 9, B5: the reason at the end of a long message is told." long_reason_is_told;
}

fn streams_are_separate(kit: &Kit) -> Result<()> {
    let c = kit.running(&Spec::sh("echo to out; echo to err >&2"))?;
    c.exit_status()?;
    let err = c
        .stderr
        .as_ref()
        .map(|e| e.to_end(by(5.0)))
        .transpose()?
        .unwrap_or_default_bytes();
    ensure!(c.out()?.to_end(by(5.0))?.0 == b"to out\n");
    ensure!(err == b"to err\n", "{}", String::from_utf8_lossy(&err));
    Ok(())
}

/// The bytes of an optional stream.
trait Bytes {
    fn unwrap_or_default_bytes(self) -> Vec<u8>;
}

impl Bytes for Option<(Vec<u8>, Instant)> {
    fn unwrap_or_default_bytes(self) -> Vec<u8> {
        self.map(|(bytes, _)| bytes).unwrap_or_default()
    }
}

fn stdin_until_close(kit: &Kit) -> Result<()> {
    let c = kit.created_with(&Spec::sh("cat; echo end"), Stdio::All)?;
    c.start()?;
    let mut stdin = c.stdin()?;
    stdin.write("one\n")?;
    c.out()?.expect("one\n", by(5.0))?;
    stdin.write("two\n")?;
    c.task().close_io(&c.id, "")?;
    // The client's end is still open: no EOF yet, and what was written arrives.
    c.out()?.expect("two\n", by(5.0))?;
    drop(stdin);
    c.out()?.expect("end\n", by(5.0))?;
    ensure!(c.exit_status()? == 0);
    Ok(())
}

fn detached_client_is_no_eof(kit: &Kit) -> Result<()> {
    let c = kit.created_with(
        &Spec::sh("while read line; do echo got $line; done; exit 9"),
        Stdio::All,
    )?;
    c.start()?;
    for word in ["one", "two"] {
        c.stdin()?.write(&format!("{word}\n"))?;
        c.out()?.expect(&format!("got {word}\n"), by(5.0))?;
        // The writer is closed here.
    }
    in_status(&c, "", Status::RUNNING)?;
    c.task().close_io(&c.id, "")?;
    ensure!(c.exit_status()? == 9);
    Ok(())
}

fn burst_arrives_whole(kit: &Kit) -> Result<()> {
    const SIZE: usize = 2 << 20;
    for _ in 0..3 {
        let c = kit.running(&Spec::sh(&format!("head -c {SIZE} /dev/zero")))?;
        ensure!(c.exit_status()? == 0);
        c.task().delete(&c.id, "")?;
        let (bytes, _) = c.out()?.to_end(by(10.0))?;
        ensure!(bytes.len() == SIZE, "{} of {SIZE} bytes", bytes.len());
    }
    Ok(())
}

fn eof_after_exit_without_delete(kit: &Kit) -> Result<()> {
    let c = kit.running(&Spec::sh("echo bye; sleep 0.1"))?;
    c.exit_status()?;
    // Nobody has asked for Delete, and it ends.
    let (bytes, _) = c.out()?.to_end(by(5.0))?;
    ensure!(bytes == b"bye\n");
    Ok(())
}

fn empty_streams(kit: &Kit) -> Result<()> {
    let c = kit.created_with(
        &Spec::sh("echo nowhere; echo nowhere >&2; cat; exit 2"),
        Stdio::Empty,
    )?;
    c.start()?;
    let status = c.exit_status()?;
    ensure!(status == 2, "exit status {status}");
    Ok(())
}

fn lone_stdout(kit: &Kit) -> Result<()> {
    let mut c = kit.prepared(&Spec::sh("echo alone; exit 3"), Stdio::Output)?;
    c.bundle.stdio[2].clear();
    not_done(
        c.task().create(&c.bundle.create_request()),
        "Create with an empty stderr",
    )
}

fn file_uri(kit: &Kit) -> Result<()> {
    let log = kit.scratch.path("logs/deep/c.log");
    for round in 1..=2 {
        let mut c = kit.prepared(&Spec::sh("echo to out; echo to err >&2"), Stdio::Empty)?;
        let uri = format!("file://{}", log.display());
        c.bundle.stdio = [String::new(), uri.clone(), uri];
        c.task().create(&c.bundle.create_request())?;
        c.start()?;
        c.exit_status()?;
        c.task().delete(&c.id, "")?;
        let text = fs::read_to_string(&log)?;
        ensure!(
            text.matches("to out\n").count() == round && text.matches("to err\n").count() == round,
            "{text:?}"
        );
    }
    Ok(())
}

fn binary_uri(kit: &Kit) -> Result<()> {
    let (logger, log) = (kit.scratch.path("logger"), kit.scratch.path("logged"));
    // No PATH in its environment, by contract; SIGTERM may come before EOF; the last line is written only at EOF of both.
    let script = format!(
        "#!/bin/sh\nexec >>{log} 2>&1\ntrap '' TERM\necho \"args $*\"\necho \"id $CONTAINER_ID ns $CONTAINER_NAMESPACE\"\n\
         printf 1 >&5\nexec 5>&-\n/bin/cat <&3\n/bin/cat <&4\necho logger ends\n",
        log = log.display()
    );
    fs::write(&logger, script)?;
    fs::set_permissions(&logger, fs::Permissions::from_mode(0o755))?;
    let mut c = kit.prepared(&Spec::sh("echo to out; echo to err >&2"), Stdio::Empty)?;
    let uri = format!("binary://{}?key=value", logger.display());
    c.bundle.stdio = [String::new(), uri.clone(), uri];
    c.task().create(&c.bundle.create_request())?;
    c.start()?;
    c.exit_status()?;
    c.task().delete(&c.id, "")?;
    let text = || fs::read_to_string(&log).unwrap_or_default();
    until("the logger to end", by(5.0), || {
        text().contains("logger ends\n").then_some(())
    })
    .map_err(|e| e.context(format!("logged {:?}", text())))?;
    let text = text();
    let owner = format!("id {} ns {}\n", c.id, kit.scratch.mark());
    for part in ["args key value\n", owner.as_str(), "to out\n", "to err\n"] {
        ensure!(text.contains(part), "no {part:?} in {text:?}");
    }
    Ok(())
}

fn unknown_scheme(kit: &Kit) -> Result<()> {
    let mut c = kit.prepared(&Spec::sh("exit 0"), Stdio::Empty)?;
    c.bundle.stdio[1] = "gopher://hole".into();
    c.bundle.stdio[2] = "gopher://hole".into();
    not_done(
        c.task().create(&c.bundle.create_request()),
        "Create with gopher://",
    )
}

fn reader_may_come_back(kit: &Kit) -> Result<()> {
    let mut c = kit.created_with(
        &Spec::sh("while read n; do echo line $n; done; echo end; exit 5"),
        Stdio::All,
    )?;
    c.start()?;
    let mut stdin = c.stdin()?;
    stdin.write("1\n")?;
    c.out()?.expect("line 1\n", by(5.0))?;
    c.stdout = None;
    stdin.write("2\n")?;
    stdin.write("3\n")?;
    c.task().close_io(&c.id, "")?;
    drop(stdin);
    // Nobody reads and the container still ends by itself: no SIGPIPE.
    let path = c.bundle.stdio[1].clone();
    let again = FifoReader::open(path.as_ref())?;
    again.expect("line 2\nline 3\nend\n", by(5.0))?;
    ensure!(c.exit_status()? == 5);
    Ok(())
}

fn terminal_output(kit: &Kit) -> Result<()> {
    let c = kit.created_with(
        &Spec::sh("tty; echo to err >&2; exit 6").on_terminal(),
        Stdio::All,
    )?;
    c.start()?;
    ensure!(c.task().state(&c.id, "")?.terminal);
    c.out()?.expect("/dev/pts/", by(5.0))?;
    c.out()?.expect("to err\r\n", by(5.0))?;
    ensure!(c.exit_status()? == 6);
    Ok(())
}

fn terminal_resize(kit: &Kit) -> Result<()> {
    let c = kit.created_with(
        &Spec::sh("echo ready; read x; stty size").on_terminal(),
        Stdio::All,
    )?;
    c.start()?;
    c.out()?.expect("ready", by(5.0))?;
    c.task().resize(&c.id, "", 123, 45)?;
    c.stdin()?.write("\n")?;
    c.out()?.expect("45 123", by(5.0))
}

fn terminal_input(kit: &Kit) -> Result<()> {
    let c = kit.created_with(&Spec::args(&["sh"]).on_terminal(), Stdio::All)?;
    c.start()?;
    let mut stdin = c.stdin()?;
    stdin.write("echo $((6*7))\n")?;
    c.out()?.expect("42\r\n", by(5.0))?;
    stdin.write("exit 12\n")?;
    ensure!(c.exit_status()? == 12);
    c.task().delete(&c.id, "")?;
    Ok(())
}

fn resize_without_terminal(kit: &Kit) -> Result<()> {
    let c = kit.running(&Spec::sleeper())?;
    c.task().resize(&c.id, "", 80, 25)?;
    Ok(())
}

fn background_child_holds_output(kit: &Kit) -> Result<()> {
    let c = kit.running(&Spec::sleeper())?;
    // Leaves a child of the container behind that keeps the exec's pipes open.
    let e = kit.exec(&c, "e1", &Spec::sh("sleep 1000 & echo started"))?;
    c.task().start(&c.id, "e1")?;
    e.stdout.expect("started\n", by(5.0))?;
    ensure!(c.task().wait(&c.id, "e1")?.exit_status == 0);
    c.task().patient(12.0).delete(&c.id, "e1")?;
    in_status(&c, "", Status::RUNNING).map(drop)
}

fn background_child_is_heard(kit: &Kit) -> Result<()> {
    let c = kit.running(&Spec::sleeper())?;
    let late = "(sleep 3; echo late; sleep 1; echo later) & echo now";
    let e = kit.exec(&c, "e1", &Spec::sh(late))?;
    c.task().start(&c.id, "e1")?;
    ensure!(c.task().wait(&c.id, "e1")?.exit_status == 0);
    ensure!(
        !e.stdout.so_far().ends_with(b"late\n"),
        "the exit came late"
    );
    e.stdout.expect("now\n", by(5.0))?;
    e.stdout.expect("late\n", by(20.0))?;
    ensure!(!e.stdout.ended(), "EOF while somebody may write");
    let (bytes, _) = e.stdout.to_end(by(20.0))?;
    ensure!(
        bytes.ends_with(b"later\n"),
        "{}",
        String::from_utf8_lossy(&bytes)
    );
    c.task().delete(&c.id, "e1")?;
    in_status(&c, "", Status::RUNNING).map(drop)
}

fn background_child_is_heard_until_delete(kit: &Kit) -> Result<()> {
    let c = kit.running(&Spec::sleeper())?;
    let e = kit.exec(&c, "e1", &Spec::sh("(sleep 1; echo late) & echo now"))?;
    c.task().start(&c.id, "e1")?;
    ensure!(c.task().wait(&c.id, "e1")?.exit_status == 0);
    // A client reads until this is answered and not longer.
    c.task().patient(20.0).delete(&c.id, "e1")?;
    e.stdout.expect("late\n", by(1.0))?;
    e.stdout.to_end(by(5.0))?;
    Ok(())
}

/// containerd's `TestContainerDrainExecIOAfterExit`, as the shim sees it: CRI waits for the exit
/// and then, for its drain time, for the end of the fifo. Ended at once, it would never know
/// that somebody writes yet.
fn silent_child_is_a_writer(kit: &Kit) -> Result<()> {
    let c = kit.running(&Spec::sleeper())?;
    // Its drain fails: the child outlives the time that is allowed.
    let e = kit.exec(&c, "e1", &Spec::sh("sleep 1000 &"))?;
    c.task().start(&c.id, "e1")?;
    ensure!(c.task().patient(20.0).wait(&c.id, "e1")?.exit_status == 0);
    // CRI's test allows a second.
    let early = e.stdout.to_end(sharp(1.5));
    ensure!(early.is_err(), "EOF while somebody may write");
    // CRI then deletes the exec, which nobody has to kill the child for.
    c.task().patient(20.0).delete(&c.id, "e1")?;
    e.stdout.to_end(by(10.0))?;
    // Its drain is over in time: the child ends, and nobody has to ask.
    let waits = "while ! [ -e /tmp/go ]; do sleep 0.02; done &";
    let e = kit.exec(&c, "e2", &Spec::sh(waits))?;
    c.task().start(&c.id, "e2")?;
    ensure!(c.task().patient(20.0).wait(&c.id, "e2")?.exit_status == 0);
    ensure!(!e.stdout.ended(), "EOF while somebody may write");
    fs::write(format!("/proc/{}/root/tmp/go", c.pid), "")?;
    e.stdout.to_end(by(20.0))?;
    c.task().delete(&c.id, "e2")?;
    in_status(&c, "", Status::RUNNING).map(drop)
}

/// What was said on these streams, some time after the failure; Go's show no end.
fn said(readers: &[&FifoReader]) -> Vec<u8> {
    std::thread::sleep(std::time::Duration::from_secs(1));
    readers.iter().flat_map(|reader| reader.so_far()).collect()
}

fn failed_create_says_nothing(kit: &Kit) -> Result<()> {
    let c = kit.prepared(&Spec::args(&["no-such-program"]), Stdio::Output)?;
    let Err(error) = c.task().create(&c.bundle.create_request()) else {
        anyhow::bail!("it was created")
    };
    ensure!(error.to_string().contains("no-such-program"), "{error}");
    let readers: Vec<&FifoReader> = c.stdout.iter().chain(&c.stderr).collect();
    let said = said(&readers);
    ensure!(said.is_empty(), "{}", String::from_utf8_lossy(&said));
    Ok(())
}

fn failed_exec_says_nothing(kit: &Kit) -> Result<()> {
    let c = kit.running(&Spec::sleeper())?;
    for (id, spec) in [
        ("e1", Spec::args(&["no-such-program"])),
        ("e2", Spec::args(&["no-such-program"]).on_terminal()),
    ] {
        let e = kit.exec(&c, id, &spec)?;
        ensure!(c.task().start(&c.id, id).is_err(), "it was started");
        let readers: Vec<&FifoReader> = std::iter::once(&e.stdout)
            .chain(&e.stderr)
            .map(|reader| &**reader)
            .collect();
        let said = said(&readers);
        ensure!(said.is_empty(), "{id}: {}", String::from_utf8_lossy(&said));
        c.task().delete(&c.id, id)?;
    }
    Ok(())
}

fn long_reason_is_told(kit: &Kit) -> Result<()> {
    let name = "x".repeat(10_000);
    let c = kit.prepared(&Spec::args(&[&name]), Stdio::Output)?;
    let Err(error) = c.task().create(&c.bundle.create_request()) else {
        anyhow::bail!("it was created")
    };
    let text = error.to_string();
    let end: String = text.chars().rev().take(200).collect();
    ensure!(
        text.contains("file name too long") || text.contains("executable file not found"),
        "no reason at the end: …{}",
        end.chars().rev().collect::<String>()
    );
    Ok(())
}
