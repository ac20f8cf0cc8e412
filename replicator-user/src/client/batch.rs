//! Frames that wait for `flush`, and how they are cut into messages of one `sendmmsg` call.

use std::ops::Range;

/// Segments of one message with UDP_SEGMENT: `UDP_MAX_SEGMENTS`, which kernels since 2024 have at 128.
pub(super) const MAX_SEGMENTS: usize = 64;

/// Bytes of one message with UDP_SEGMENT: an IPv4 datagram of 65,535 bytes less its headers.
const MAX_MESSAGE_BYTES: usize = 65_507;

/// Frames one behind the other, each as it is sent. Its memory is taken once.
pub(super) struct Batch {
    bytes: Vec<u8>,
    lengths: Vec<u16>,
    /// Frames and bytes at the front that are no longer waiting.
    done: (usize, usize),
}

/// One message: consecutive frames of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Message {
    /// Where they are in the batch.
    pub(super) bytes: Range<usize>,
    /// How many.
    pub(super) frames: usize,
    /// Length of each but the last where the kernel is to cut the message into them; one frame is sent as it is.
    pub(super) segment: Option<u16>,
}

impl Batch {
    /// Room for `frames` frames, and never for more bytes than one message takes: a batch of one length that is full is
    /// one message, without a remainder that would need a second.
    pub(super) fn new(frames: usize) -> Self {
        Self {
            bytes: Vec::with_capacity(MAX_MESSAGE_BYTES),
            lengths: Vec::with_capacity(frames),
            done: (0, 0),
        }
    }

    /// Whether one more frame of `bytes` fits without taking memory.
    pub(super) fn has_room(&self, bytes: usize) -> bool {
        self.lengths.len() < self.lengths.capacity() && self.bytes.len() + bytes <= self.bytes.capacity()
    }

    /// Adds the frame that `write` appends, unless it fails.
    pub(super) fn push<E>(&mut self, write: impl FnOnce(&mut Vec<u8>) -> Result<(), E>) -> Result<(), E> {
        let start = self.bytes.len();
        write(&mut self.bytes)?;
        // A frame fits a page: see `frame::max_packet`.
        self.lengths.push((self.bytes.len() - start) as u16);
        Ok(())
    }

    /// Frames that wait.
    pub(super) fn waiting(&self) -> usize {
        self.lengths.len() - self.done.0
    }

    /// Every byte; messages point into it.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Cuts what waits into messages.
    pub(super) fn plan(&self, segmenting: bool, messages: &mut Vec<Message>) {
        messages.clear();
        messages.extend(plan(&self.lengths[self.done.0..], self.done.1, segmenting));
    }

    /// Takes the first message's frames off.
    pub(super) fn finish(&mut self, message: &Message) {
        self.done = (self.done.0 + message.frames, message.bytes.end);
        if self.waiting() == 0 {
            self.bytes.clear();
            self.lengths.clear();
            self.done = (0, 0);
        }
    }
}

/// The messages for frames of these lengths, the first of which is at `start`. The order of the frames is kept. Where
/// the kernel may segment, frames of one length share a message, and the last of them may be shorter (`udp(7)`).
fn plan(mut lengths: &[u16], mut start: usize, segmenting: bool) -> impl Iterator<Item = Message> {
    std::iter::from_fn(move || {
        let &segment = lengths.first()?;
        let frames = if segmenting { run(lengths) } else { 1 };
        let (message, rest) = lengths.split_at(frames);
        let end = start + message.iter().map(|&length| usize::from(length)).sum::<usize>();
        let message = Message { bytes: start..end, frames, segment: (frames > 1).then_some(segment) };
        (lengths, start) = (rest, end);
        Some(message)
    })
}

/// How many frames at the front go into one message. No frame is without a header.
fn run(lengths: &[u16]) -> usize {
    let segment = lengths[0];
    let most = (MAX_MESSAGE_BYTES / usize::from(segment)).clamp(1, MAX_SEGMENTS).min(lengths.len());
    let equal = lengths[..most].iter().take_while(|&&length| length == segment).count();
    let shorter_last = equal < most && lengths[equal] < segment;
    equal + usize::from(shorter_last)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn planned(lengths: &[u16], segmenting: bool) -> Vec<(Range<usize>, usize, Option<u16>)> {
        plan(lengths, 0, segmenting).map(|m| (m.bytes, m.frames, m.segment)).collect()
    }

    #[test]
    fn equal_frames_share_a_message() {
        assert_eq!(planned(&[100, 100, 100], true), [(0..300, 3, Some(100))]);
        assert_eq!(planned(&[100], true), [(0..100, 1, None)]);
        assert_eq!(planned(&[], true), []);
    }

    #[test]
    fn a_shorter_frame_ends_a_message_and_a_longer_one_begins_another() {
        assert_eq!(
            planned(&[100, 100, 40, 40, 70], true),
            [(0..240, 3, Some(100)), (240..280, 1, None), (280..350, 1, None),]
        );
    }

    #[test]
    fn without_segmenting_every_frame_is_a_message() {
        assert_eq!(
            planned(&[100, 100, 40], false),
            [(0..100, 1, None), (100..200, 1, None), (200..240, 1, None)]
        );
    }

    #[test]
    fn a_message_holds_at_most_64_frames_and_65507_bytes() {
        assert_eq!(planned(&[10; 65], true), [(0..640, 64, Some(10)), (640..650, 1, None)]);
        // 31 * 2,104 = 65,224; one more would be 67,328.
        assert_eq!(planned(&[2104; 32], true), [(0..65_224, 31, Some(2104)), (65_224..67_328, 1, None)]);
        // 283 bytes are left behind 31 frames, but a 32nd that is shorter is not squeezed in.
        let mut lengths = [2104; 32];
        lengths[31] = 300;
        assert_eq!(planned(&lengths, true).len(), 2);
    }

    #[test]
    fn a_batch_takes_no_more_memory_and_forgets_what_is_done() {
        let mut batch = Batch::new(3);
        let memory = (batch.bytes.as_ptr(), batch.lengths.as_ptr());
        let mut messages = Vec::new();
        for _ in 0..4 {
            for length in [100, 100, 50] {
                assert!(batch.has_room(100));
                let frame = &[7; 100][..length];
                batch
                    .push(|bytes| {
                        bytes.extend_from_slice(frame);
                        Ok::<_, ()>(())
                    })
                    .unwrap();
            }
            assert!(!batch.has_room(1), "three frames are the most");
            batch.plan(false, &mut messages);
            batch.finish(&messages[0]);
            assert_eq!(batch.waiting(), 2);
            batch.plan(true, &mut messages);
            assert_eq!(messages, [Message { bytes: 100..250, frames: 2, segment: Some(100) }]);
            batch.finish(&messages[0]);
            assert_eq!(batch.waiting(), 0);
        }
        assert_eq!(memory, (batch.bytes.as_ptr(), batch.lengths.as_ptr()));
        assert_eq!(batch.push(|_| Err("no")), Err("no"));
        assert_eq!(batch.waiting(), 0);
        assert!(batch.has_room(65_507) && !batch.has_room(65_508), "one message's bytes are the most");
    }

    proptest! {
        /// What the kernel asks of a message with UDP_SEGMENT, and that no frame is lost, doubled or moved.
        #[test]
        fn every_plan_is_one_the_kernel_takes(lengths in prop::collection::vec(prop_oneof![
            Just(40u16), Just(2104), 20..4096u16], 0..200)) {
            let (mut at, mut byte) = (0, 0);
            for message in plan(&lengths, 0, true) {
                let frames = &lengths[at..at + message.frames];
                prop_assert_eq!(message.bytes.start, byte);
                prop_assert_eq!(message.bytes.len(), frames.iter().map(|&l| usize::from(l)).sum::<usize>());
                if let Some(segment) = message.segment {
                    let (last, others) = frames.split_last().unwrap();
                    prop_assert!(others.iter().all(|&length| length == segment));
                    prop_assert!(*last <= segment);
                    prop_assert!((2..=64).contains(&frames.len()) && message.bytes.len() <= 65_507);
                } else {
                    prop_assert_eq!(frames.len(), 1);
                }
                (at, byte) = (at + message.frames, message.bytes.end);
            }
            prop_assert_eq!(at, lengths.len());
        }
    }
}
