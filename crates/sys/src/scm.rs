//! Local socketpairs and descriptors sent over them. What arrives is owned
//! the moment it arrives: close-on-exec, and closed again if the message was
//! cut. Never raises SIGPIPE, never blocks on the pairs made here.

use std::io::{IoSlice, IoSliceMut};
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, socketpair};

use crate::{Errno, Result, fd};

/// Bytes looked at first. On the stack, so no more than a page.
const CHUNK: usize = 4096;
/// Most descriptors one message may carry here (the kernel allows 253).
pub const FDS_MAX: usize = 16;

// Room for one SCM_RIGHTS header and its descriptors, aligned for cmsghdr.
const CONTROL_WORDS: usize = 16;
const FD_BYTES: u32 = 4 * 16;
const _: () = assert!(FD_BYTES as usize == FDS_MAX * size_of::<RawFd>());
// SAFETY: CMSG_SPACE only computes with its argument.
const _: () = assert!(unsafe { libc::CMSG_SPACE(FD_BYTES) } as usize <= CONTROL_WORDS * 8);

fn pair(kind: SockType) -> Result<(OwnedFd, OwnedFd)> {
    socketpair(
        AddressFamily::Unix,
        kind,
        None,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
    )
}

/// Two ends that keep the bounds of messages; close-on-exec, non-blocking.
pub fn pair_seqpacket() -> Result<(OwnedFd, OwnedFd)> {
    pair(SockType::SeqPacket)
}

/// Two ends of a byte stream; close-on-exec, non-blocking.
pub fn pair_stream() -> Result<(OwnedFd, OwnedFd)> {
    pair(SockType::Stream)
}

/// Sends bytes, and with the first of them at most [`FDS_MAX`] descriptors
/// (`EINVAL` if there are more). On a stream fewer bytes than given may go.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<usize> {
    if fds.len() > FDS_MAX {
        return Err(Errno::EINVAL);
    }
    let iov = [IoSlice::new(bytes)];
    let mut control = [0u64; CONTROL_WORDS];
    // SAFETY: an all-zero msghdr is valid: no address, no buffers, no flags.
    let mut message: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    message.msg_iov = iov.as_ptr().cast::<libc::iovec>().cast_mut();
    message.msg_iovlen = 1;
    if !fds.is_empty() {
        let len = u32::try_from(size_of_val(fds)).map_err(|_| Errno::EINVAL)?;
        message.msg_control = control.as_mut_ptr().cast();
        // SAFETY: `control` is aligned and holds CMSG_SPACE(len) bytes (asserted
        // above for the most descriptors), so the first header and its data lie
        // in it; BorrowedFd is one RawFd by its documented representation.
        #[allow(clippy::cast_possible_truncation, reason = "other libcs have u32 here")]
        unsafe {
            message.msg_controllen = libc::CMSG_SPACE(len) as _;
            let header = libc::CMSG_FIRSTHDR(&raw const message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(len) as _;
            std::ptr::copy_nonoverlapping(
                fds.as_ptr().cast::<u8>(),
                libc::CMSG_DATA(header),
                len as usize,
            );
        }
    }
    loop {
        // SAFETY: every pointer in `message` is to a local that lives until the
        // end of this function, with the lengths set beside them.
        let sent =
            unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL) };
        match Errno::result(sent) {
            Ok(sent) => return Ok(sent.unsigned_abs()),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// What of these bytes goes now, without descriptors; `None`: nothing, or there are none. A
/// peer that is gone shows at the next read, so an error means "not now".
pub fn send_now(socket: BorrowedFd<'_>, bytes: &[u8]) -> Option<usize> {
    (!bytes.is_empty()).then(|| send(socket, bytes, &[]).ok())?
}

/// Receives one message (or what a stream has) into `bytes`, and appends the
/// descriptors that came with it to `fds`; 0 is the end. `EMSGSIZE`: a message
/// was longer than `bytes`. `ENOBUFS`: more than [`FDS_MAX`] descriptors were
/// sent, or this process may open no more. Then nothing is appended and what
/// came is closed.
pub fn recv(socket: BorrowedFd<'_>, bytes: &mut [u8], fds: &mut Vec<OwnedFd>) -> Result<usize> {
    receive(socket, bytes, fds, 0)
}

/// The same, and leaves the message where it is: who reads next gets it too,
/// with descriptors of its own.
pub fn recv_copy(
    socket: BorrowedFd<'_>,
    bytes: &mut [u8],
    fds: &mut Vec<OwnedFd>,
) -> Result<usize> {
    receive(socket, bytes, fds, libc::MSG_PEEK)
}

fn receive(
    socket: BorrowedFd<'_>,
    bytes: &mut [u8],
    fds: &mut Vec<OwnedFd>,
    how: libc::c_int,
) -> Result<usize> {
    let mut iov = [IoSliceMut::new(bytes)];
    let mut control = [0u64; CONTROL_WORDS];
    // SAFETY: as in `send`.
    let mut message: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    message.msg_iov = iov.as_mut_ptr().cast();
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    // Not all of `control`: padding at the end would make room for one more.
    // SAFETY: CMSG_SPACE only computes with its argument.
    #[allow(clippy::cast_possible_truncation, reason = "other libcs have u32 here")]
    let room = unsafe { libc::CMSG_SPACE(FD_BYTES) as _ };
    let count = loop {
        message.msg_controllen = room;
        // SAFETY: every pointer in `message` is to a local buffer that lives
        // until the end of this function, with the lengths set beside them.
        let got = unsafe {
            let how = how | libc::MSG_CMSG_CLOEXEC;
            libc::recvmsg(socket.as_raw_fd(), &raw mut message, how)
        };
        match Errno::result(got) {
            Ok(got) => break got.unsigned_abs(),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    };
    let before = fds.len();
    // SAFETY: the kernel wrote well-formed headers into `control` and set
    // msg_controllen to what it wrote; the CMSG macros stay within that. Each
    // descriptor in an SCM_RIGHTS block is new in this process and nobody
    // else's, so owning it here is right.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(&raw const message);
        while let Some(block) = header.as_ref() {
            if block.cmsg_level == libc::SOL_SOCKET && block.cmsg_type == libc::SCM_RIGHTS {
                let data = libc::CMSG_DATA(header);
                #[allow(clippy::unnecessary_cast, reason = "other libcs have u32 here")]
                let len = (block.cmsg_len as usize).saturating_sub(libc::CMSG_LEN(0) as usize);
                for n in 0..len / size_of::<RawFd>() {
                    let mut number = [0; size_of::<RawFd>()];
                    data.add(n * number.len())
                        .copy_to_nonoverlapping(number.as_mut_ptr(), number.len());
                    fds.push(OwnedFd::from_raw_fd(RawFd::from_ne_bytes(number)));
                }
            }
            header = libc::CMSG_NXTHDR(&raw const message, header);
        }
    }
    for (flag, errno) in [
        (libc::MSG_CTRUNC, Errno::ENOBUFS),
        (libc::MSG_TRUNC, Errno::EMSGSIZE),
    ] {
        if message.msg_flags & flag != 0 {
            fds.truncate(before);
            return Err(errno);
        }
    }
    Ok(count)
}

/// What a stream has next, left where it is; `None`: nothing there now, empty:
/// the end, however it came. `takes` says of how it begins how much is wanted:
/// if all of that has come, it is that and no more, however long; else some of it.
pub fn look_now(socket: BorrowedFd<'_>, takes: impl Fn(&[u8]) -> usize) -> Option<Vec<u8>> {
    match look(socket, takes) {
        Err(Errno::EAGAIN | Errno::ENOMEM | Errno::ENOBUFS) => None,
        answer => Some(answer.unwrap_or_default()),
    }
}

fn look(socket: BorrowedFd<'_>, takes: impl Fn(&[u8]) -> usize) -> Result<Vec<u8>> {
    let mut chunk = [0; CHUNK];
    let count = peek_bytes(socket, &mut chunk)?;
    let mut seen = chunk[..count].to_vec();
    let takes = takes(&seen);
    if takes > seen.len() && fd::readable_bytes(socket)? >= takes {
        seen.resize(takes, 0);
        let count = peek_bytes(socket, &mut seen)?;
        seen.truncate(count);
    }
    seen.truncate(takes);
    Ok(seen)
}

fn peek_bytes(socket: BorrowedFd<'_>, bytes: &mut [u8]) -> Result<usize> {
    loop {
        match nix::sys::socket::recv(socket.as_raw_fd(), bytes, MsgFlags::MSG_PEEK) {
            Err(Errno::EINTR) => {}
            answer => return answer,
        }
    }
}

/// Reads what a stream has; 0 is the end. Descriptors sent along are dropped
/// by the kernel.
pub fn read(socket: BorrowedFd<'_>, bytes: &mut [u8]) -> Result<usize> {
    loop {
        match nix::unistd::read(socket, bytes) {
            Err(Errno::EINTR) => {}
            answer => return answer,
        }
    }
}

/// Reads a stream once; `None`: nothing there now, 0: the end, however it came (a
/// peer that died with bytes unread gives ECONNRESET for it).
pub fn read_now(socket: BorrowedFd<'_>, bytes: &mut [u8]) -> Option<usize> {
    match read(socket, bytes) {
        Err(Errno::EAGAIN | Errno::ENOMEM | Errno::ENOBUFS) => None,
        answer => Some(answer.unwrap_or(0)),
    }
}

/// What can be read at once, without waiting, as text, a few hundred bytes of
/// it at most. Empty if there is nothing.
pub fn read_words(fd: BorrowedFd<'_>) -> String {
    let mut bytes = [0; 300];
    let there = fd::wait_readable(fd, Duration::ZERO) == Ok(true);
    let count = if there { read(fd, &mut bytes) } else { Ok(0) };
    String::from_utf8_lossy(&bytes[..count.unwrap_or(0)]).into_owned()
}

/// Writes to anything; fewer bytes than given may go. A pipe without reader raises SIGPIPE,
/// as with write(2).
pub fn write(fd: BorrowedFd<'_>, bytes: &[u8]) -> Result<usize> {
    loop {
        match nix::unistd::write(fd, bytes) {
            Err(Errno::EINTR) => {}
            answer => return answer,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn descriptors_arrive_open_and_close_on_exec() {
        let (a, b) = pair_seqpacket().unwrap();
        let (reader, writer) = nix::unistd::pipe().unwrap();
        assert_eq!(send(a.as_fd(), b"hello", &[writer.as_fd()]), Ok(5));
        drop(writer);
        let (mut bytes, mut fds) = ([0; 16], Vec::new());
        assert_eq!(recv(b.as_fd(), &mut bytes, &mut fds), Ok(5));
        assert_eq!(&bytes[..5], b"hello");
        let flags = nix::fcntl::fcntl(&fds[0], nix::fcntl::FcntlArg::F_GETFD).unwrap();
        assert_eq!(flags & libc::FD_CLOEXEC, libc::FD_CLOEXEC);
        nix::unistd::write(&fds[0], b"x").unwrap();
        drop(fds);
        let mut got = [0; 4];
        assert_eq!(nix::unistd::read(&reader, &mut got), Ok(1));
        assert_eq!(
            nix::unistd::read(&reader, &mut got),
            Ok(0),
            "all ends closed"
        );
    }

    #[test]
    fn what_is_copied_is_still_there() {
        let (a, b) = pair_stream().unwrap();
        let (reader, writer) = nix::unistd::pipe().unwrap();
        send(a.as_fd(), b"hi", &[writer.as_fd()]).unwrap();
        drop((a, writer));
        let mut fds = Vec::new();
        for _ in 0..2 {
            assert_eq!(recv_copy(b.as_fd(), &mut [0; 4], &mut fds), Ok(2));
        }
        assert_eq!(recv(b.as_fd(), &mut [0; 4], &mut fds), Ok(2));
        assert_eq!(fds.len(), 3);
        for fd in fds {
            nix::unistd::write(fd, b"x").unwrap();
        }
        assert_eq!(nix::unistd::read(&reader, &mut [0; 4]), Ok(3));
    }

    #[test]
    fn what_is_cut_is_an_error_and_closed() {
        let (a, b) = pair_seqpacket().unwrap();
        let (reader, writer) = nix::unistd::pipe().unwrap();
        send(a.as_fd(), b"too long", &[writer.as_fd()]).unwrap();
        drop(writer);
        let mut fds = Vec::new();
        assert_eq!(recv(b.as_fd(), &mut [0; 4], &mut fds), Err(Errno::EMSGSIZE));
        assert!(fds.is_empty());
        assert_eq!(nix::unistd::read(&reader, &mut [0; 4]), Ok(0), "closed");
    }

    #[test]
    fn too_many_descriptors_are_an_error_and_closed() {
        let (a, b) = pair_seqpacket().unwrap();
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let many = [writer.as_fd(); FDS_MAX + 1];
        assert_eq!(send(a.as_fd(), b"x", &many), Err(Errno::EINVAL));
        // Past our own check, as a stranger could.
        nix::sys::socket::sendmsg::<()>(
            a.as_raw_fd(),
            &[IoSlice::new(b"x")],
            &[nix::sys::socket::ControlMessage::ScmRights(
                &many.map(|fd| fd.as_raw_fd()),
            )],
            nix::sys::socket::MsgFlags::empty(),
            None,
        )
        .unwrap();
        drop(writer);
        let mut fds = Vec::new();
        assert_eq!(recv(b.as_fd(), &mut [0; 4], &mut fds), Err(Errno::ENOBUFS));
        assert!(fds.is_empty());
        assert_eq!(nix::unistd::read(&reader, &mut [0; 4]), Ok(0), "closed");
    }

    #[test]
    fn what_is_looked_at_stays_and_is_no_more_than_is_wanted() {
        let (a, b) = pair_stream().unwrap();
        assert_eq!(look_now(b.as_fd(), |_| 1), None);
        send(a.as_fd(), &[7; 3000], &[]).unwrap();
        send(a.as_fd(), &[8; 3000], &[]).unwrap();
        for wanted in [1, 4000, 4096, 5000, 6000] {
            let seen = look_now(b.as_fd(), |ahead| {
                assert_eq!(ahead.len(), CHUNK);
                wanted
            });
            let seen = seen.unwrap();
            assert_eq!(seen.len(), wanted);
            assert!(seen.iter().take(3000).all(|byte| *byte == 7));
            assert!(seen.iter().skip(3000).all(|byte| *byte == 8));
        }
        let some = look_now(b.as_fd(), |_| 6001).unwrap();
        assert_eq!(some.len(), CHUNK, "not all has come");
        let mut all = [0; 6000];
        assert_eq!(read(b.as_fd(), &mut all), Ok(6000));
        drop(a);
        assert_eq!(look_now(b.as_fd(), |_| 1), Some(Vec::new()));
    }

    #[test]
    fn sixteen_fit_and_a_dead_peer_is_epipe_not_a_signal() {
        let (a, b) = pair_seqpacket().unwrap();
        let many = [a.as_fd(); FDS_MAX];
        send(a.as_fd(), b"x", &many).unwrap();
        let mut fds = Vec::new();
        assert_eq!(recv(b.as_fd(), &mut [0; 4], &mut fds), Ok(1));
        assert_eq!(fds.len(), FDS_MAX);
        fds.clear();
        assert_eq!(recv(b.as_fd(), &mut [0; 4], &mut fds), Err(Errno::EAGAIN));
        drop(b);
        assert_eq!(send(a.as_fd(), b"x", &[]), Err(Errno::EPIPE));
    }
}
