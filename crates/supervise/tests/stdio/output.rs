//! Output: every byte arrives, the end comes when it should and not before,
//! and a client that reads slowly, late or never holds nobody up.

use std::io::Read;
use std::time::{Duration, Instant};

use vigil_model::Stdio;

use crate::support::*;

const SOON: Duration = Duration::from_secs(10);

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

#[test]
fn a_burst_before_the_exit_arrives_whole_and_its_end_soon_after() {
    run(async {
        let expected = numbers(300_000);
        let mut worst = Duration::ZERO;
        // A thousand of them: VIGIL_BURSTS=1000.
        let rounds = std::env::var("VIGIL_BURSTS").map_or(25, |n| n.parse().unwrap());
        for round in 0..rounds {
            let place = Place::new();
            let client = Client::reading(place.fifo("out"));
            let (fds, mut streams) = place.open(&place.out()).await;
            let mut process = Process::spawn(sh("seq 1 300000"), fds);
            streams.started().await.unwrap();
            assert!(process.ended().await.success());
            let exited = Instant::now();
            streams.process_gone().await;
            let read = client.read().await;
            assert_eq!(read.bytes.len(), expected.len(), "round {round}");
            assert!(read.bytes == expected, "round {round}: bytes changed");
            worst = worst.max(read.at.saturating_duration_since(exited));
            assert!(place.keeper.kinds().is_empty());
            streams.close_all(Duration::ZERO).await;
        }
        assert!(worst < SOON, "end of file {worst:?} after the exit");
    });
}

#[test]
fn both_outputs_go_their_own_way_and_an_empty_one_nowhere() {
    run(async {
        let place = Place::new();
        let stdio = Stdio {
            stderr: place.fifo("err"),
            ..place.out()
        };
        let out = Client::reading(place.fifo("out"));
        let err = Client::reading(place.fifo("err"));
        let (fds, mut streams) = place.open(&stdio).await;
        let mut process = Process::spawn(sh("seq 1 9000; seq 1 8000 >&2"), fds);
        streams.started().await.unwrap();
        process.ended().await;
        streams.process_gone().await;
        assert!(out.read().await.bytes == numbers(9000));
        assert!(err.read().await.bytes == numbers(8000));

        let place = Place::new();
        let (fds, mut streams) = place.open(&Stdio::default()).await;
        let mut process = Process::spawn(sh("seq 1 90000; seq 1 80000 >&2; cat"), fds);
        streams.started().await.unwrap();
        assert!(process.ended().await.success());
        streams.process_gone().await;
        assert_eq!(place.keeper.0.lock().unwrap().calls, 0);
    });
}

#[test]
fn the_exit_is_told_after_its_output_was_read() {
    run(async {
        for _ in 0..20 {
            let mut place = Place::new();
            // On a busy machine its moments are long; how long one is waited for is another test's.
            place.patience.read = LONG;
            place.patience.stalled = LONG;
            place.patience.told = LONG;
            let (fds, mut streams) = place.open(&place.out()).await;
            // A client that takes a moment between two reads.
            let mut file = reader(place.fifo("out"));
            let (tx, rx) = std::sync::mpsc::channel();
            let client = std::thread::spawn(move || {
                let mut buffer = [0; 8192];
                loop {
                    let count = file.read(&mut buffer).unwrap();
                    if count == 0 {
                        return;
                    }
                    tx.send(count).unwrap();
                    std::thread::sleep(ms(1));
                }
            });
            let mut process = Process::spawn(sh("seq 1 20000"), fds);
            streams.started().await.unwrap();
            process.ended().await;
            streams.process_gone().await;
            // At this moment, not later: ctr stops reading now.
            let read: usize = rx.try_iter().sum();
            assert!(
                read >= numbers(20_000).len() - 8192,
                "told after {read} bytes"
            );
            poll_until("the client", || client.is_finished()).await;
        }
    });
}

#[test]
fn a_client_that_does_not_read_holds_nothing_up_and_gets_all_later() {
    run(async {
        let place = Place::new();
        let (fds, mut streams) = place.open(&place.out()).await;
        let mut process = Process::spawn(sh("seq 1 18000"), fds);
        streams.started().await.unwrap();
        // The pipe and the fifo hold it together.
        assert!(process.ended().await.success());
        let exited = Instant::now();
        streams.process_gone().await;
        let told = exited.elapsed();
        assert!(told >= ms(80) && told < SOON, "told after {told:?}");
        tokio::time::sleep(ms(300)).await;
        let client = Client::reading(place.fifo("out"));
        assert!(client.read().await.bytes == numbers(18_000));
        assert!(place.keeper.kinds().is_empty());
    });
}

#[test]
fn last_words_wait_for_a_client_that_comes_late_to_a_fifo_without_a_name() {
    run(async {
        let place = Place::new();
        let (fds, mut streams) = place.open(&place.out()).await;
        let mut idle = reader(place.fifo("out"));
        std::fs::remove_file(place.fifo("out")).unwrap();
        let mut process = Process::spawn(sh("echo last words"), fds);
        streams.started().await.unwrap();
        process.ended().await;
        streams.process_gone().await;
        assert_idle(2).await;
        assert_eq!(place.keeper.kinds().len(), 2, "held as long as unread");
        let mut some = [0; 4];
        idle.read_exact(&mut some).unwrap();
        tokio::time::sleep(ms(50)).await;
        assert_eq!(
            place.keeper.kinds().len(),
            2,
            "held as long as anything is unread"
        );
        let client = Client::of(idle);
        assert_eq!(client.read().await.bytes, b" words\n");
        poll_until("the release", || place.keeper.kinds().is_empty()).await;
    });
}

#[test]
fn delete_closes_what_nobody_reads() {
    run(async {
        let place = Place::new();
        let (fds, mut streams) = place.open(&place.out()).await;
        let mut process = Process::spawn(sh("seq 1 18000"), fds);
        streams.started().await.unwrap();
        process.ended().await;
        streams.process_gone().await;
        let begun = Instant::now();
        streams.close_all(ms(200)).await;
        assert!(begun.elapsed() < SOON);
        assert!(place.keeper.kinds().is_empty());
        // Nothing holds the fifo any more.
        let errno = vigil_sys::fifo::open_writer(&place.path("out")).unwrap_err();
        assert_eq!(errno, vigil_sys::Errno::ENXIO);
    });
}

#[test]
fn delete_gives_a_slow_client_time_for_what_is_still_in_the_pipe() {
    run(async {
        let place = Place::new();
        let (fds, mut streams) = place.open(&place.out()).await;
        let file = reader(place.fifo("out"));
        let mut process = Process::spawn(sh("seq 1 18000"), fds);
        streams.started().await.unwrap();
        process.ended().await;
        streams.process_gone().await;
        let closing = tokio::spawn(streams.close_all(Duration::from_secs(10)));
        tokio::time::sleep(ms(50)).await;
        let client = Client::of(file);
        assert!(client.read().await.bytes == numbers(18_000));
        closing.await.unwrap();
    });
}

#[test]
fn a_stopped_client_blocks_the_process_and_then_gets_every_byte() {
    run(async {
        let place = Place::new();
        let (fds, mut streams) = place.open(&place.out()).await;
        let file = reader(place.fifo("out"));
        let mut process = Process::spawn(sh("seq 1 300000"), fds);
        streams.started().await.unwrap();
        let path = place.path("out");
        let probe = vigil_sys::fifo::open_reader(&path).unwrap();
        let full = || vigil_sys::fd::readable_bytes(&probe).unwrap() > 30_000;
        poll_until("the fifo to fill", full).await;
        tokio::time::sleep(ms(50)).await;
        // Half full, nobody reading, the process blocked: we sleep.
        assert_idle(2).await;
        assert!(process.running());
        drop(probe);
        let client = Client::of(file);
        assert!(process.ended().await.success());
        streams.process_gone().await;
        assert!(client.read().await.bytes == numbers(300_000));
    });
}

#[test]
fn a_client_that_goes_and_another_that_comes_lose_nothing_between_them() {
    run(async {
        let place = Place::new();
        let (fds, mut streams) = place.open(&place.out()).await;
        let mut process = Process::spawn(sh("seq 1 300000"), fds);
        streams.started().await.unwrap();
        let mut all = Vec::new();
        for _ in 0..40 {
            let mut file = reader(place.fifo("out"));
            let mut some = [0; 5000];
            let (file, count) = {
                let reading = std::thread::spawn(move || {
                    let count = file.read(&mut some).unwrap();
                    (file, some[..count].to_vec())
                });
                poll_until("some bytes", || reading.is_finished()).await;
                reading.join().unwrap()
            };
            all.extend(count);
            drop(file);
        }
        let client = Client::reading(place.fifo("out"));
        assert!(process.ended().await.success(), "no SIGPIPE");
        streams.process_gone().await;
        all.extend(client.read().await.bytes);
        assert!(all == numbers(300_000));
    });
}

/// Issue 9, B2: it lost its pipe after a second of silence and died of SIGPIPE.
#[test]
fn a_process_left_behind_does_not_delay_the_exit_and_is_heard_until_it_ends() {
    run(async {
        let mut place = Place::new();
        place.patience.silence = ms(50);
        place.patience.drain = ms(100);
        let client = Client::reading(place.fifo("out"));
        let (fds, mut streams) = place.open(&place.out()).await;
        // It speaks when it is told to, long after both times.
        let go = place.path("go");
        let late = format!(
            "(until [ -e {} ]; do sleep 0.01; done; echo late; echo later) & echo hi",
            go.display()
        );
        let mut process = Process::spawn(sh(&late), fds);
        streams.started().await.unwrap();
        process.ended().await;
        streams.process_gone().await;
        tokio::time::sleep(ms(500)).await;
        assert!(!client.ended(), "an end while somebody may write");
        assert_eq!(place.keeper.kinds().len(), 2, "another shim could go on");
        assert_idle(2).await;
        std::fs::write(go, "").unwrap();
        assert_eq!(client.read().await.bytes, b"hi\nlate\nlater\n");
        poll_until("the release", || place.keeper.kinds().is_empty()).await;
        assert!(streams.left_behind().is_none());
    });
}

/// Go's shim waits ten seconds in Delete for who holds a pipe; clients read until
/// Delete is answered.
#[test]
fn delete_waits_for_a_process_left_behind_and_not_for_ever() {
    run(async {
        let mut place = Place::new();
        place.patience.drain = LONG;
        let client = Client::reading(place.fifo("out"));
        let (fds, mut streams) = place.open(&place.out()).await;
        let mut process = Process::spawn(sh("(sleep 0.3; echo late) & echo hi"), fds);
        streams.started().await.unwrap();
        process.ended().await;
        streams.process_gone().await;
        streams
            .left_behind()
            .expect("somebody holds the pipe")
            .await;
        streams.close_all(Duration::ZERO).await;
        assert_eq!(client.read().await.bytes, b"hi\nlate\n");

        place.patience.drain = ms(100);
        let client = Client::reading(place.fifo("out"));
        let (fds, mut streams) = place.open(&place.out()).await;
        let mut process = Process::spawn(sh("sleep 60 & echo hi"), fds);
        streams.started().await.unwrap();
        process.ended().await;
        streams.process_gone().await;
        streams
            .left_behind()
            .expect("somebody holds the pipe")
            .await;
        assert_eq!(client.read().await.bytes, b"hi\n");
        streams.close_all(Duration::ZERO).await;
        assert!(place.keeper.kinds().is_empty());
    });
}

#[test]
fn a_talkative_process_left_behind_does_not_delay_the_exit_and_ends_with_delete() {
    run(async {
        let mut place = Place::new();
        place.patience.drain = ms(300);
        let client = Client::reading(place.fifo("out"));
        let (fds, mut streams) = place.open(&place.out()).await;
        let talk = "(while echo on and on; do usleep 20000; done) & echo hi";
        let mut process = Process::spawn(sh(talk), fds);
        streams.started().await.unwrap();
        process.ended().await;
        streams.process_gone().await;
        streams
            .left_behind()
            .expect("somebody holds the pipe")
            .await;
        streams.close_all(Duration::ZERO).await;
        assert!(client.read().await.bytes.ends_with(b"on and on\n"));
    });
}

#[test]
fn closing_stdout_while_running_is_an_end_for_the_client() {
    run(async {
        let place = Place::new();
        let client = Client::reading(place.fifo("out"));
        let (fds, mut streams) = place.open(&place.out()).await;
        let mut process = Process::spawn(sh("echo bye; exec >&-; sleep 60"), fds);
        streams.started().await.unwrap();
        assert_eq!(client.read().await.bytes, b"bye\n");
        assert!(process.running());
        process.signal(9);
        process.ended().await;
        streams.process_gone().await;
    });
}

#[test]
fn a_running_process_that_says_nothing_costs_nothing() {
    run(async {
        let place = Place::new();
        let stdio = Stdio {
            stdin: place.fifo("in"),
            stderr: place.fifo("err"),
            ..place.out()
        };
        let (fds, mut streams) = place.open(&stdio).await;
        let mut file = reader(place.fifo("out"));
        let mut process = Process::spawn(sh("echo hi; sleep 60"), fds);
        streams.started().await.unwrap();
        let reading = std::thread::spawn(move || file.read(&mut [0; 9]).map(|n| (n, file)));
        poll_until("the greeting", || reading.is_finished()).await;
        let _file = reading.join().unwrap().unwrap();
        tokio::time::sleep(ms(50)).await;
        assert_idle(2).await;
        process.signal(9);
        process.ended().await;
        streams.process_gone().await;
        poll_until("the release", || place.keeper.kinds().is_empty()).await;
    });
}

#[test]
fn runc_failing_leaves_nothing_and_ends_the_client() {
    run(async {
        let place = Place::new();
        let (fds, streams) = place.open(&place.out()).await;
        let client = Client::of(reader(place.fifo("out")));
        drop(fds);
        let told = streams.process_gone();
        streams.close_all(Duration::ZERO).await;
        told.await;
        assert!(client.read().await.bytes.is_empty());
        assert!(place.keeper.kinds().is_empty());
    });
}

#[test]
fn a_file_takes_both_outputs_without_us() {
    run(async {
        let place = Place::new();
        let log = place.path("logs/c.log");
        let stdout = format!("file://{}", log.display());
        let stdio = Stdio {
            stderr: stdout.clone(),
            stdout,
            ..Stdio::default()
        };
        for _ in 0..2 {
            let (fds, mut streams) = place.open(&stdio).await;
            let mut process = Process::spawn(sh("seq 1 50000; echo end >&2"), fds);
            streams.started().await.unwrap();
            process.ended().await;
            streams.process_gone().await;
            streams.close_all(Duration::ZERO).await;
        }
        let once = [numbers(50_000), b"end\n".to_vec()].concat();
        assert!(std::fs::read(&log).unwrap() == [once.clone(), once].concat());
        assert_eq!(place.keeper.0.lock().unwrap().calls, 0);
    });
}
