//! What the reaper holds between two shims although neither had deposited it.

use std::os::unix::net::UnixStream;
use std::time::Duration;

use vigil_sys::{fd, fifo};

use super::{Pair, until};

/// A shim that dies before it has opened, or deposited, a client's fifo shows the client
/// no end: the reaper holds both ends of what it was told the name of.
pub(super) fn a_name_that_is_deposited_guards_its_fifo() {
    let pair = Pair::serving();
    let mut client = pair.client();
    let path = pair.path("fifo");
    fifo::make(&path, 0o600).unwrap();
    let reader = fifo::open_reader(&path).unwrap();
    let guard = format!("guard 5 {}", path.display());
    assert_eq!(client.call(&guard), "Ok(0)");
    // What the shim does next, and does not live to deposit.
    drop(fifo::open_both_ends(&path).unwrap());
    let stream = client.ask("die after word");
    assert_eq!(client.answer(stream).as_deref(), Some(&b"word"[..]));
    assert_eq!(client.call("echo x"), "x", "another serves");
    let hung_up = || {
        let mut watch = [fd::Watch::reading(&reader)];
        fd::poll(&mut watch, Duration::ZERO).unwrap();
        watch[0].hung_up()
    };
    assert!(!hung_up(), "the client has seen an end");
    assert_eq!(client.call("ended 5"), "Ok(0)");
    until("the end is the end", hung_up);
}

/// A shim that dies between accepting and receiving loses nothing that was sent to it.
pub(super) fn who_calls_on_a_listener_is_held() {
    let pair = Pair::serving();
    let mut client = pair.client();
    let path = pair.path("pty.sock");
    let listen = format!("listen 5 {}", path.display());
    assert_eq!(client.call(&listen), "Ok(0)");
    assert_eq!(client.call("accept 5 6"), "Ok(0), 0 given", "nobody called");
    assert_eq!(client.call("accept 4 6"), "Ok(0), 0 given", "no listener");
    let caller = UnixStream::connect(&path).unwrap();
    assert_eq!(client.call("accept 5 6"), "Ok(1), 1 given");
    let stream = client.ask("die after word");
    assert_eq!(client.answer(stream).as_deref(), Some(&b"word"[..]));
    assert_eq!(client.call("echo x"), "x", "another serves");
    let hung_up = || {
        let mut watch = [fd::Watch::reading(&caller)];
        fd::poll(&mut watch, Duration::ZERO).unwrap();
        watch[0].hung_up()
    };
    assert!(!hung_up(), "the connection died with the shim");
    assert_eq!(client.call("ended 6"), "Ok(0)");
    until("the connection to end", hung_up);
}
