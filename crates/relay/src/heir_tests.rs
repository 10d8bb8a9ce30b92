//! A relay that is left and goes on in another process: nobody at either end notices, whatever was
//! under way between them.
use super::*;
use crate::frame::{HEADER_LEN, REQUEST, RESPONSE};

const OWN: Fd = Fd(9);
const PAIR: Fd = Fd(10);

fn frame(stream: u8, kind: u8, body: &[u8]) -> Vec<u8> {
    let len = u8::try_from(body.len()).unwrap_or(0);
    let mut out = vec![0, 0, 0, len, 0, 0, 0, stream, kind, 0];
    out.extend_from_slice(body);
    out
}

fn request(stream: u8) -> Vec<u8> {
    frame(stream, REQUEST, &[0x0a, 1, stream])
}

fn answer(stream: u8) -> Vec<u8> {
    frame(stream, RESPONSE, &[stream])
}

/// All that a side is given.
fn drained(relay: &mut Relay) -> (Vec<u8>, Vec<u8>) {
    let (mut shim, mut containerd) = (Vec::new(), Vec::new());
    while !relay.for_shim().is_empty() {
        shim.extend_from_slice(relay.for_shim());
        relay.shim_took(relay.for_shim().len());
    }
    while !relay.for_containerd().is_empty() {
        containerd.extend_from_slice(relay.for_containerd());
        relay.containerd_took(relay.for_containerd().len());
    }
    (shim, containerd)
}

fn handed(relay: &Relay, pair: Option<Fd>) -> Relay {
    let now = Instant::now();
    Relay::resume(&Budget::default(), 7, relay.leave(now, 1, OWN, pair), now)
}

/// With three requests under way, wherever it stands: shim and containerd see from both what
/// they would have seen from one.
#[test]
fn it_goes_on_where_it_was_with_the_shim_that_lives() {
    let asked: Vec<u8> = [1, 3, 5].into_iter().flat_map(request).collect();
    for taken in 0..=asked.len() {
        for left in 0..answer(1).len() {
            let mut one = Relay::new();
            one.from_containerd(&asked);
            one.stamp(Instant::now());
            let mut had = taken;
            while had > 0 {
                let count = had.min(one.for_shim().len());
                one.shim_took(count);
                had -= count;
            }
            let answered = taken >= request(1).len();
            if answered {
                one.from_shim(&answer(1));
                one.containerd_took(left);
            }
            assert!(one.is_between());
            let mut other = handed(&one, Some(PAIR));
            assert!(other.is_between());
            assert_eq!(other.unanswered(), one.unanswered());
            assert_eq!(drained(&mut other), drained(&mut one), "{taken} {left}");
            for stream in [5, 3] {
                other.from_shim(&answer(stream));
            }
            assert_eq!(other.unanswered(), usize::from(!answered));
            assert_eq!(drained(&mut other).1, [answer(5), answer(3)].concat());
        }
    }
}

/// The next shim is given all that was not answered, in the old order; what a dead relay had
/// taken only a look at is not given twice.
#[test]
fn a_request_that_stands_in_the_socket_still_is_given_once() {
    let left = Conn {
        number: 1,
        own: OWN,
        passed: Some(3),
        half: None,
        requests: [request(1), request(3)]
            .map(|frame| Request {
                age_ms: 5,
                attempts: 0,
                proven: false,
                frame: frame.into(),
            })
            .into(),
        answers: vec![answer(9).into()],
        left: 0,
        pair: None,
    };
    // Also if that one becomes another program before it has heard anything.
    let again = [None, Some(None), Some(Some(PAIR))];
    for (there, again) in again
        .into_iter()
        .flat_map(|one| [(true, one), (false, one)])
    {
        let now = Instant::now();
        let mut relay = Relay::resume(&Budget::default(), 7, left.clone(), now);
        if let Some(pair) = again {
            assert!(
                relay.is_between(),
                "it would wait for a client that says nothing"
            );
            relay = handed(&relay, pair);
        }
        if there {
            // It comes byte by byte.
            for byte in request(3) {
                relay.from_containerd(&[byte]);
            }
        }
        relay.from_containerd(&request(5));
        relay.from_containerd(&request(3));
        assert!(!relay.is_broken() && relay.is_between());
        let shim = [request(1), request(3), request(5), request(3)].concat();
        assert_eq!(drained(&mut relay), (shim, answer(9)), "{there} {again:?}");
    }
}

#[test]
fn the_rest_of_a_request_breaks_the_connection() {
    let fresh = || {
        let relay = Relay::new();
        handed(&relay, None)
    };
    for bytes in [
        frame(2, REQUEST, &[0x0a]),
        frame(1, RESPONSE, &[0x0a]),
        frame(1, REQUEST, &[0x0b]),
        [0x61; 40].to_vec(),
    ] {
        let mut relay = fresh();
        relay.from_containerd(&bytes);
        assert!(relay.is_broken(), "{bytes:?}");
        let mut relay = fresh();
        relay.from_containerd(&bytes[..=HEADER_LEN]);
        assert!(relay.is_broken(), "{bytes:?} in part");
    }
    let mut relay = fresh();
    relay.from_containerd(&request(1)[..HEADER_LEN]);
    assert!(!relay.is_broken());
}

/// Numbers that fit nothing make no harm: the estate may come from another version.
#[test]
fn what_makes_no_sense_is_left_out() {
    let now = Instant::now();
    let mut left = Relay::new().leave(now, 1, OWN, Some(PAIR));
    left.answers = vec![answer(1).into(), [1, 2].into()];
    left.left = 99;
    left.requests = [request(1)[..7].to_vec(), request(3)]
        .map(|frame| Request {
            age_ms: u32::MAX,
            attempts: 9,
            proven: true,
            frame: frame.into(),
        })
        .into();
    left.pair = left.pair.map(|pair| Pair {
        sent: 70,
        part: 70,
        ..pair
    });
    let mut relay = Relay::resume(&Budget::default(), 7, left, now);
    assert_eq!(relay.unanswered(), 1);
    relay.from_shim(&answer(3));
    assert_eq!(
        drained(&mut relay),
        (Vec::new(), [answer(1), answer(3)].concat())
    );
    assert_eq!(relay.held(), 0);
}
