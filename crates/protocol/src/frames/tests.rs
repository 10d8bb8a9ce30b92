//! The mended stream against pieces of every size, without a kernel.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

/// Gives its pieces one by one, then the end; keeps what is written, a few
/// bytes at a time.
#[derive(Debug, Default)]
struct Pieces {
    inward: VecDeque<Vec<u8>>,
    outward: Vec<u8>,
    gulp: usize,
}

impl AsyncRead for Pieces {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(mut piece) = self.inward.pop_front() {
            let rest = piece.split_off(piece.len().min(out.remaining()));
            out.put_slice(&piece);
            if !rest.is_empty() {
                self.inward.push_front(rest);
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Pieces {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let take = bytes.len().min(self.gulp);
        self.outward.extend_from_slice(&bytes[..take]);
        Poll::Ready(Ok(take))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

fn frame(stream: u8, kind: u8, body: &[u8]) -> Vec<u8> {
    let mut frame = u32::try_from(body.len()).unwrap().to_be_bytes().to_vec();
    frame.extend_from_slice(&[0, 0, 0, stream, kind, 0]);
    frame.extend_from_slice(body);
    frame
}

fn body(service: &str, padding: usize) -> Vec<u8> {
    let mut body = vec![0x0a, u8::try_from(service.len()).unwrap()];
    body.extend_from_slice(service.as_bytes());
    body.extend_from_slice(b"\x12\x05State");
    body.resize(body.len() + padding, 0);
    body
}

/// A request as the crate sees it: with the number of its connection.
fn told(request: &[u8]) -> Vec<u8> {
    let mut body = request[MESSAGE_HEADER_LENGTH..].to_vec();
    body.extend(trailer(7));
    frame(request[7], 1, &body)
}

/// Reads `bytes`, cut into pieces of the given sizes, through a stream
/// whose reader takes `sip` bytes at a time.
fn through(bytes: &[u8], sizes: &[usize], sip: usize) -> (Vec<u8>, usize) {
    let mut pieces = Pieces::default();
    let mut rest = bytes;
    for size in sizes.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (piece, more) = rest.split_at((*size).min(rest.len()));
        pieces.inward.push_back(piece.to_vec());
        rest = more;
    }
    let traffic = Arc::new(Traffic::default());
    let mut stream = Mended::new(pieces, 7, Arc::clone(&traffic));
    let mut cx = Context::from_waker(std::task::Waker::noop());
    let mut read = Vec::new();
    let mut buffer = vec![0; sip];
    loop {
        let mut out = ReadBuf::new(&mut buffer);
        assert!(
            Pin::new(&mut stream)
                .poll_read(&mut cx, &mut out)
                .is_ready()
        );
        if out.filled().is_empty() {
            return (read, stream.open);
        }
        read.extend_from_slice(out.filled());
    }
}

#[test]
fn a_foreign_service_is_replaced_and_nothing_else() {
    let ours = frame(1, 1, &body(SERVICES[1], 0));
    let stream = frame(1, 3, b"anything");
    let odd_order = frame(5, 1, b"\x12\x05State\x0a\x03foo");
    let foreign = frame(3, 1, &body("foo.\x07Bar", 2000));
    let all = [
        ours.clone(),
        foreign,
        stream.clone(),
        odd_order.clone(),
        ours.clone(),
    ]
    .concat();
    let instead = frame(
        3,
        1,
        &[
            &b"\x0a\x17containerd.task.v2.Task\x12\x2a"[..],
            b"service foo.?Bar is not served, nor is its",
        ]
        .concat(),
    );
    let wanted = [told(&ours), instead, stream, told(&odd_order), told(&ours)].concat();
    assert_eq!(through(&all, &[4096], 4096), (wanted.clone(), 4));
    assert_eq!(through(&all, &[1], 1), (wanted, 4));
}

#[test]
fn a_request_names_its_connection_and_the_last_word_is_ours() {
    let mut claims = ttrpc::Request::new();
    claims.service = SERVICES[0].to_owned();
    for value in ["1", "2"] {
        let mut entry = ttrpc::proto::KeyValue::new();
        entry.key = CONN.to_owned();
        entry.value = value.to_owned();
        claims.metadata.push(entry);
    }
    let bytes = protobuf::Message::write_to_bytes(&claims).unwrap();
    let (read, _) = through(&frame(1, 1, &bytes), &[5], 9);
    let read: ttrpc::Request =
        protobuf::Message::parse_from_bytes(&read[MESSAGE_HEADER_LENGTH..]).unwrap();
    let mut metadata = HashMap::new();
    for entry in read.metadata {
        let of_key: &mut Vec<String> = metadata.entry(entry.key).or_default();
        of_key.push(entry.value);
    }
    assert_eq!(conn_of(&metadata), Some(7));
    assert_eq!(conn_of(&HashMap::new()), None);
}

#[test]
fn names_almost_ours_are_foreign() {
    for name in [
        "",
        "containerd.task.v2.Tas",
        "containerd.task.v2.Task2",
        "containerd.task.v4.Task",
        "Containerd.task.v2.Task",
    ] {
        assert_eq!(foreign(&body(name, 0)), Some(name.as_bytes()), "{name}");
    }
    let long = [&b"\x0a\x80\x01"[..], &[b'x'; 93]].concat();
    assert_eq!(foreign(&long), Some(&[b'x'; 93][..]));
    for name in SERVICES {
        assert_eq!(foreign(&body(name, 0)), None);
    }
    for odd in [&b""[..], b"\x12\x01a", b"\x0a"] {
        assert_eq!(foreign(odd), None, "{odd:?}");
    }
}

#[test]
fn the_longest_replacement_is_well_formed() {
    let frame = replacement([0, 0, 0, 7], &[b'n'; 200]);
    let (header, body) = frame.split_at(MESSAGE_HEADER_LENGTH);
    assert_eq!(
        header,
        [0, 0, 0, u8::try_from(body.len()).unwrap(), 0, 0, 0, 7, 1, 0]
    );
    assert!(body.len() < 0x80);
    let request: ttrpc::Request = protobuf::Message::parse_from_bytes(body).unwrap();
    assert_eq!(request.service, SERVICES[0]);
    assert!(request.method.contains(&"n".repeat(NAME_MAX)));
}

#[test]
fn answers_are_counted_when_they_are_whole() {
    let traffic = Arc::new(Traffic::default());
    let pieces = Pieces {
        inward: [frame(1, 1, &body(SERVICES[0], 0)).repeat(3)].into(),
        gulp: 7,
        ..Pieces::default()
    };
    let mut stream = Mended::new(pieces, 7, Arc::clone(&traffic));
    let mut cx = Context::from_waker(std::task::Waker::noop());
    let mut buffer = [0; 4096];
    for _ in 0..7 {
        let mut out = ReadBuf::new(&mut buffer);
        assert!(
            Pin::new(&mut stream)
                .poll_read(&mut cx, &mut out)
                .is_ready()
        );
    }
    assert_eq!(stream.open, 3);
    let bytes = [
        frame(1, 2, b""),
        frame(1, 3, b"data"),
        frame(3, 2, &[0; 100]),
    ]
    .concat();
    let mut written = 0;
    let mut open = Vec::new();
    while written < bytes.len() {
        match Pin::new(&mut stream).poll_write(&mut cx, &bytes[written..]) {
            Poll::Ready(Ok(some)) => written += some,
            other => panic!("{other:?}"),
        }
        // It has left when it is flushed: until then it may be kept together.
        assert!(Pin::new(&mut stream).poll_flush(&mut cx).is_ready());
        open.push((written, stream.open));
    }
    for (written, open) in open {
        let whole = usize::from(written >= 10) + usize::from(written >= 134);
        assert_eq!(open, 3 - whole, "after {written} bytes");
    }
    assert_eq!(stream.inner.outward, bytes);
    assert!(!traffic.quiet());
    drop(stream);
    assert!(traffic.quiet());
}

/// A Wait for init, in the words of either service.
fn wait(stream: u8, service: usize) -> Vec<u8> {
    let request = ttrpc::Request {
        service: SERVICES[service].to_owned(),
        method: "Wait".to_owned(),
        payload: b"\x0a\x02c1".to_vec(),
        ..ttrpc::Request::default()
    };
    frame(
        stream,
        1,
        &protobuf::Message::write_to_bytes(&request).unwrap(),
    )
}

/// However bytes are cut: one Wait goes on for all that ask the same, and each gets its
/// answer, between two others and whole.
#[test]
fn waits_that_ask_the_same_are_one_and_all_are_answered() {
    let state = frame(7, 1, &body(SERVICES[0], 0));
    let inward = [wait(1, 0), wait(3, 0), wait(5, 1), state.clone()].concat();
    let wanted = [told(&wait(1, 0)), told(&state)].concat();
    let end = b"\x12\x02\x08\x07";
    let outward = [frame(1, 2, end), frame(7, 2, b"state")].concat();
    let answers = [
        frame(1, 2, end),
        frame(3, 2, end),
        frame(5, 2, end),
        frame(7, 2, b"state"),
    ];
    for size in 1..40 {
        let traffic = Arc::new(Traffic::default());
        let pieces = Pieces {
            inward: inward.chunks(size).map(<[u8]>::to_vec).collect(),
            gulp: size,
            ..Pieces::default()
        };
        let mut stream = Mended::new(pieces, 7, Arc::clone(&traffic));
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let mut read = Vec::new();
        let mut buffer = [0; 64];
        loop {
            let mut out = ReadBuf::new(&mut buffer);
            let polled = Pin::new(&mut stream).poll_read(&mut cx, &mut out);
            assert!(polled.is_ready());
            if out.filled().is_empty() {
                break;
            }
            read.extend_from_slice(out.filled());
        }
        assert_eq!((&read, stream.open), (&wanted, 2), "{size}");
        let mut rest = &outward[..];
        while !rest.is_empty() {
            match Pin::new(&mut stream).poll_write(&mut cx, rest) {
                Poll::Ready(Ok(some)) => rest = &rest[some..],
                other => panic!("{other:?}"),
            }
        }
        assert!(Pin::new(&mut stream).poll_flush(&mut cx).is_ready());
        assert_eq!(stream.inner.outward, answers.concat(), "{size}");
        assert_eq!(stream.open, 0);
        assert!(traffic.quiet());
    }
}

proptest! {
    #[test]
    fn how_bytes_are_cut_does_not_matter(
        kinds in proptest::collection::vec((0_u8..4, 0_usize..1500), 0..6),
        sizes in proptest::collection::vec(1_usize..700, 1..6),
        sip in 1_usize..700,
        lost in 0_usize..40,
    ) {
        let mut all = Vec::new();
        for (kind, padding) in kinds {
            all.extend(match kind {
                0 => frame(1, 1, &body(SERVICES[0], padding)),
                1 => frame(3, 1, &body("foo.Bar", padding)),
                2 => frame(5, 3, &vec![9; padding]),
                _ => frame(7, 1, &vec![0x0a; padding]),
            });
        }
        all.truncate(all.len().saturating_sub(lost));
        let at_once = through(&all, &[usize::MAX], 1 << 16);
        prop_assert_eq!(through(&all, &sizes, sip), at_once);
    }

    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        let _ = through(&bytes, &[600], 300);
    }
}
