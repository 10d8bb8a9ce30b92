//! The same with runc itself: its console, its pipes.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Command, Stdio as To};
use std::time::{Duration, Instant};

use vigil_host::stdio::ChildFds;
use vigil_model::Stdio;
use vigil_supervise::stdio::Size;

use crate::support::*;

struct Container<'p> {
    place: &'p Place,
    id: String,
    pidfd: Option<OwnedFd>,
}

impl<'p> Container<'p> {
    fn new(place: &'p Place, terminal: bool, script: &str) -> Container<'p> {
        let id = place
            .dir
            .path()
            .file_name()
            .unwrap()
            .to_str()
            .unwrap()
            .trim_matches('.');
        let container = Container {
            place,
            id: format!("vigil-{id}"),
            pidfd: None,
        };
        let bin = container.bundle().join("rootfs/bin");
        std::fs::create_dir_all(&bin).unwrap();
        std::fs::copy("/bin/busybox", bin.join("busybox")).unwrap();
        let spec = serde_json::json!({
            "ociVersion": "1.0.2",
            "process": {
                "terminal": terminal,
                "user": { "uid": 0, "gid": 0 },
                "args": ["/bin/busybox", "sh", "-c", script],
                "cwd": "/",
            },
            "root": { "path": "rootfs" },
            "mounts": [
                { "destination": "/proc", "type": "proc", "source": "proc" },
                { "destination": "/dev", "type": "tmpfs", "source": "tmpfs" },
                { "destination": "/dev/pts", "type": "devpts", "source": "devpts",
                  "options": ["newinstance", "ptmxmode=0666", "mode=0620"] },
            ],
            "linux": {
                "cgroupsPath": format!("/vigil-test/{}", container.id),
                "namespaces": [{ "type": "pid" }, { "type": "mount" }, { "type": "ipc" }],
            },
        });
        std::fs::write(container.bundle().join("config.json"), spec.to_string()).unwrap();
        container
    }

    fn bundle(&self) -> PathBuf {
        self.place.path("bundle")
    }

    fn runc(&self) -> Command {
        let mut runc = Command::new("runc");
        runc.arg("--root").arg(self.place.path("state"));
        runc
    }

    fn create(&mut self, fds: ChildFds, console: Option<&std::path::Path>) {
        let pid_file = self.place.path("pid");
        let mut runc = self.runc();
        runc.arg("create")
            .arg("--bundle")
            .arg(self.bundle())
            .arg("--pid-file")
            .arg(&pid_file);
        if let Some(console) = console {
            runc.arg("--console-socket").arg(console);
        }
        runc.arg(&self.id)
            .stdin(fds.stdin)
            .stdout(fds.stdout)
            .stderr(fds.stderr);
        assert!(runc.status().unwrap().success());
        let pid = std::fs::read_to_string(pid_file).unwrap().parse().unwrap();
        self.pidfd = Some(vigil_sys::pidfd::open(pid).unwrap());
    }

    fn start(&self) {
        assert!(
            self.runc()
                .args(["start", &self.id])
                .status()
                .unwrap()
                .success()
        );
    }

    async fn ended(&self) {
        let pidfd = self.pidfd.as_ref().unwrap().as_fd();
        poll_until("init's end", || vigil_sys::pidfd::is_dead(pidfd).unwrap()).await;
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        let _ = self
            .runc()
            .args(["delete", "--force", &self.id])
            .stderr(To::null())
            .status();
        // The parent is shared with tests that may be running.
        for controller in std::fs::read_dir("/sys/fs/cgroup")
            .into_iter()
            .flatten()
            .flatten()
        {
            let _ = std::fs::remove_dir(controller.path().join("vigil-test"));
        }
    }
}

#[test]
fn a_container_with_a_terminal() {
    run(async {
        let place = Place::new();
        let stdio = Stdio {
            stdin: place.fifo("in"),
            terminal: true,
            ..place.out()
        };
        let (fds, mut streams) = place.open(&stdio).await;
        let mut container = Container::new(
            &place,
            true,
            "busybox() { /bin/busybox $@; }; \
             busybox stty size; read line; echo got $line; exit 5",
        );
        container.create(fds, streams.console_socket());
        streams.started().await.unwrap();
        streams
            .resize(Size {
                width: 91,
                height: 19,
            })
            .unwrap();
        let client = Client::reading(place.fifo("out"));
        container.start();
        let mut keys = std::fs::OpenOptions::new()
            .write(true)
            .open(place.path("in"))
            .unwrap();
        std::io::Write::write_all(&mut keys, b"hello\n").unwrap();
        container.ended().await;
        let exited = Instant::now();
        streams.process_gone().await;
        let read = client.read().await;
        let text = String::from_utf8(read.bytes).unwrap();
        assert!(
            text.contains("19 91\r\n") && text.contains("got hello\r\n"),
            "{text:?}"
        );
        assert!(read.at.saturating_duration_since(exited) < Duration::from_secs(10));
        streams.close_all(Duration::ZERO).await;
        assert!(place.keeper.kinds().is_empty());
    });
}

#[test]
fn a_container_with_pipes_whose_output_comes_before_anybody_listens() {
    run(async {
        let place = Place::new();
        let stdio = Stdio {
            stdin: place.fifo("in"),
            stderr: place.fifo("err"),
            ..place.out()
        };
        let (fds, mut streams) = place.open(&stdio).await;
        let mut container = Container::new(&place, false, "/bin/busybox seq 1 15000; echo oh >&2");
        container.create(fds, None);
        streams.started().await.unwrap();
        container.start();
        container.ended().await;
        let exited = Instant::now();
        streams.process_gone().await;
        assert!(exited.elapsed() < Duration::from_secs(10));
        let out = Client::reading(place.path("out"));
        let err = Client::reading(place.path("err"));
        assert!(out.read().await.bytes == numbers(15_000));
        assert_eq!(err.read().await.bytes, b"oh\n");
        assert!(place.keeper.kinds().is_empty());
    });
}
