//! The boundaries of HTTP/2 frames in a stream of bytes (RFC 9113, section 4.1).

/// What a client sends first (RFC 9113, section 3.4).
pub(super) const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEAD: usize = 9;
/// So much of a frame is kept for whoever wants to read it.
const KEPT: usize = 16 << 10;

pub(super) const HEADERS: u8 = 1;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const PING: u8 = 6;
pub(super) const DATA: u8 = 0;
pub(super) const ACK: u8 = 1;
pub(super) const END_STREAM: u8 = 1;
pub(super) const END_HEADERS: u8 = 4;

/// The head of a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) stream: u32,
}

/// Reads frames as their bytes come.
#[derive(Clone, Debug, Default)]
pub(super) struct Parser {
    head: Vec<u8>,
    frame: Frame,
    left: usize,
    kept: Vec<u8>,
}

impl Parser {
    /// Reads up to the end of the next frame: how many bytes that took, and the frame with what was kept
    /// of it when it is complete. `keep` chooses what to keep by a frame's head.
    pub(super) fn next(
        &mut self,
        bytes: &[u8],
        keep: impl Fn(Frame) -> bool,
    ) -> (usize, Option<(Frame, Vec<u8>)>) {
        let missing = HEAD.saturating_sub(self.head.len());
        let (head, rest) = bytes.split_at(missing.min(bytes.len()));
        self.head.extend_from_slice(head);
        let Some((length, [kind, flags, stream @ ..])) = self.head.split_first_chunk::<3>() else {
            return (bytes.len(), None);
        };
        let Ok(stream) = <[u8; 4]>::try_from(stream) else {
            return (bytes.len(), None);
        };
        if !head.is_empty() {
            self.left = length
                .iter()
                .fold(0, |sum, byte| sum << 8 | usize::from(*byte));
            self.frame = Frame {
                kind: *kind,
                flags: *flags,
                stream: u32::from_be_bytes(stream) & (u32::MAX >> 1),
            };
        }
        let (payload, _) = rest.split_at(self.left.min(rest.len()));
        if keep(self.frame) && self.kept.len() + payload.len() <= KEPT {
            self.kept.extend_from_slice(payload);
        }
        self.left -= payload.len();
        let read = head.len() + payload.len();
        if self.left > 0 {
            return (read, None);
        }
        self.head.clear();
        (read, Some((self.frame, std::mem::take(&mut self.kept))))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encode(frame: Frame, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let mut bytes = length[1..].to_vec();
        bytes.extend([frame.kind, frame.flags]);
        bytes.extend(frame.stream.to_be_bytes());
        bytes.extend(payload);
        bytes
    }

    proptest! {
        #[test]
        fn frames_are_found_however_their_bytes_come(
            frames in prop::collection::vec((0..10_u8, any::<u8>(), 0..1_u32 << 31, prop::collection::vec(any::<u8>(), 0..300)), 1..8),
            pieces in prop::collection::vec(1..200_usize, 1..20),
        ) {
            let frames: Vec<_> = frames
                .into_iter()
                .map(|(kind, flags, stream, payload)| (Frame { kind, flags, stream }, payload))
                .collect();
            let bytes: Vec<u8> = frames
                .iter()
                .flat_map(|(frame, payload)| encode(*frame, payload))
                .collect();
            let (mut parser, mut found) = (Parser::default(), Vec::new());
            let (mut rest, mut pieces) = (bytes.as_slice(), pieces.iter().cycle());
            while !rest.is_empty() {
                let (mut piece, after) = rest.split_at(rest.len().min(*pieces.next().unwrap()));
                while !piece.is_empty() {
                    let (read, frame) = parser.next(piece, |_| true);
                    found.extend(frame);
                    piece = &piece[read..];
                }
                rest = after;
            }
            prop_assert_eq!(found, frames);
        }
    }
}
