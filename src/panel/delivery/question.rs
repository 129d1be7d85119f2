//! How a report is named on the wire, and what is asked behind it.

/// A report's number on its connection: eight letters that HTTP/2 always packs into five bytes, in which
/// they are found again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark(pub(super) u32);

impl Mark {
    /// The letters whose codes in HPACK's Huffman table are 0 to 7, in five bits each (RFC 7541, appendix B).
    const LETTERS: [u8; 8] = *b"012aceio";
    /// So many bits are in eight letters.
    pub(super) const BITS: u32 = 24;

    pub(super) fn letters(self) -> [u8; 8] {
        let mut letters = [0; 8];
        for (place, letter) in letters.iter_mut().enumerate() {
            let shift = Self::BITS - 3 * (u32::try_from(place).unwrap_or(0) + 1);
            let digit = (self.0 >> shift) & 7;
            *letter = Self::LETTERS
                .get(digit as usize)
                .copied()
                .unwrap_or_default();
        }
        letters
    }

    /// As HPACK writes it: Huffman, five bytes (RFC 7541, section 5.2).
    pub(super) fn packed(self) -> [u8; 6] {
        let mut bits = 0_u64;
        for place in 1..=8 {
            let digit = (self.0 >> (Self::BITS - 3 * place)) & 7;
            bits = bits << 5 | u64::from(digit);
        }
        let mut packed = [0x85; 6];
        let (_, bytes) = packed.split_at_mut(1);
        bytes.copy_from_slice(bits.to_be_bytes().split_at(3).1);
        packed
    }
}

/// What a PING of ours asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Question {
    /// Whether anybody answers: asked once, at the beginning.
    Anybody,
    /// Whether the client has come to the end of this report.
    Report(Mark),
}

impl Question {
    /// The payload of the PING, eight bytes that nobody else uses.
    pub(super) fn payload(self) -> [u8; 8] {
        let [_, a, b, c] = match self {
            Self::Anybody => [0; 4],
            Self::Report(mark) => mark.0.to_be_bytes(),
        };
        let kind = u8::from(self != Self::Anybody);
        [b'D', b'L', b'r', b'n', kind, a, b, c]
    }

    pub(super) fn read(payload: [u8; 8]) -> Option<Self> {
        let [b'D', b'L', b'r', b'n', kind, a, b, c] = payload else {
            return None;
        };
        match kind {
            0 => Some(Self::Anybody),
            1 => Some(Self::Report(Mark(u32::from_be_bytes([0, a, b, c])))),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_found_in_what_hpack_makes_of_it() {
        // RFC 7541, appendix B: '0' is 00000, '1' 00001, '2' 00010, 'a' 00011, 'c' 00100, 'e' 00101, 'i'
        // 00110, 'o' 00111.
        assert_eq!(&Mark(0).letters(), b"00000000");
        assert_eq!(&Mark(0o12_345_670).letters(), b"12aceio0");
        assert_eq!(
            Mark(0o12_345_670).packed(),
            [
                0x85,
                0b0000_1000,
                0b1000_0110,
                0b0100_0010,
                0b1001_1000,
                0b1110_0000
            ]
        );
    }

    #[test]
    fn a_question_is_known_by_its_answer() {
        for question in [Question::Anybody, Question::Report(Mark(0x00ab_cdef))] {
            assert_eq!(Question::read(question.payload()), Some(question));
        }
        assert_eq!(Question::read(*b"\0\0\0\0\0\0\0\0"), None);
        assert_eq!(Question::read(*b"DLrn\x07abc"), None);
    }
}
