//! A frame, changed at random.

use pcopy::proto::{MAX_FRAME_LEN, PROTOCOL_VERSION};

use super::{below, one_in};
use crate::driver::storage::Random;

/// Bytes that mean something somewhere: lengths, numbers, names.
const WORDS: [&[u8]; 12] = [
    b"..",
    b"../../x",
    b"/",
    b"\0",
    b"\x01",
    b"\x7f",
    b"\x80\x01",
    b"\xff\x01",
    b"\xff\xff\x03",
    b"\xff\xff\xff\xff\x0f",
    b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
    b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01",
];

/// Changes a frame a few times; `others` are frames to take pieces of.
pub fn mutated(frame: &[u8], others: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut bytes = frame.to_vec();
    for _ in 0..1 + below(random, 4) {
        change(&mut bytes, others, random);
    }
    // nearly all of what has another version looks the same
    if let Some(first) = bytes.first_mut().filter(|_| !one_in(random, 100)) {
        *first = PROTOCOL_VERSION;
    }
    bytes
}

fn change(bytes: &mut Vec<u8>, others: &[Vec<u8>], random: &mut Random) {
    let at = below(random, bytes.len());
    let end = (at + below(random, 16)).min(bytes.len());
    match below(random, 10) {
        0 | 1 => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << below(random, 8);
            }
        }
        2 | 3 => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = u8::try_from(below(random, 256)).expect("a byte");
            }
        }
        4 => drop(bytes.splice(at..end, WORDS[below(random, WORDS.len())].iter().copied())),
        5 => {
            let word = WORDS[below(random, WORDS.len())];
            let room = bytes.len().saturating_sub(at).min(word.len());
            bytes[at..at + room].copy_from_slice(&word[..room]);
        }
        6 => drop(bytes.drain(at..end)),
        7 => bytes.truncate(at),
        8 => {
            let other = &others[below(random, others.len())];
            let from = below(random, other.len());
            let piece = other[from..(from + 1 + below(random, 200)).min(other.len())].to_vec();
            drop(bytes.splice(at..end, piece));
        }
        _ => repeat(bytes, at..end, random),
    }
}

/// A piece many times; seldom so often that the frame is as long as one may be.
fn repeat(bytes: &mut Vec<u8>, piece: std::ops::Range<usize>, random: &mut Random) {
    let piece = bytes[piece].to_vec();
    let len = if one_in(random, 200) { MAX_FRAME_LEN } else { 1 << below(random, 13) };
    let times = len.saturating_sub(bytes.len()) / piece.len().max(1);
    let at = below(random, bytes.len());
    drop(bytes.splice(at..at, piece.repeat(times)));
}
