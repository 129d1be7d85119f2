//! The framing of a chunked user sync over REST: a length, then a chunk, until the last one.
//!
//! The contract's length is a varint. One published client writes four bytes, big-endian, instead.
//! A varint writer never begins with a zero byte, and a big-endian length below 16 MiB always does:
//! the first byte of a frame tells which it is.

use bytes::{Buf, Bytes};
use prost::Message;

use super::chunks::{self, Chunks};
use super::wire::UsersChunk;

/// Why a body is no chunked user list.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("the body ends in the middle of a chunk")]
    Truncated,
    #[error("a chunk's length is not a number")]
    Length,
    #[error("a chunk could not be decoded: {0}")]
    Chunk(#[from] prost::DecodeError),
    #[error(transparent)]
    Chunks(#[from] chunks::Error),
}

/// Reads frames until a chunk says that it is the last, or to the end. A length is only ever
/// compared with what has really come.
pub(super) fn read(mut body: Bytes) -> Result<Chunks, Error> {
    let mut chunks = Chunks::default();
    while let Some(first) = body.first() {
        let length = if *first == 0 && body.len() >= 4 && fits(&body) {
            u64::from(body.get_u32())
        } else {
            prost::decode_length_delimiter(&mut body).map_err(|_| Error::Length)? as u64
        };
        let length = usize::try_from(length).map_err(|_| Error::Length)?;
        if length == 0 {
            continue;
        }
        if length > body.len() {
            return Err(Error::Truncated);
        }
        let chunk = UsersChunk::decode(body.split_to(length))?;
        let last = chunk.last;
        chunks.add(chunk)?;
        if last {
            break;
        }
    }
    Ok(chunks)
}

/// Whether the four bytes are a length; a zero byte alone is a varint of an empty frame.
fn fits(body: &Bytes) -> bool {
    let length = body.clone().get_u32();
    length > 0 && (length as usize) <= body.len() - 4
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use proptest::prelude::*;

    use super::*;

    fn chunk(index: u64, user: &str, last: bool) -> UsersChunk {
        UsersChunk {
            users: vec![Bytes::from(user.to_owned())],
            index,
            last,
        }
    }

    fn varint(chunks: &[UsersChunk]) -> Bytes {
        chunks
            .iter()
            .flat_map(UsersChunk::encode_length_delimited_to_vec)
            .collect()
    }

    fn big_endian(chunks: &[UsersChunk]) -> Bytes {
        let mut body = BytesMut::new();
        for chunk in chunks {
            body.extend(u32::try_from(chunk.encoded_len()).unwrap().to_be_bytes());
            body.extend(chunk.encode_to_vec());
        }
        body.freeze()
    }

    #[test]
    fn both_framings_are_read_and_empty_frames_skipped() {
        let long = "u".repeat(70_000);
        let chunks = [chunk(0, "a", false), chunk(1, &long, true)];
        for body in [varint(&chunks), big_endian(&chunks)] {
            assert_eq!(
                read(body).unwrap().into_users().unwrap(),
                ["a".to_owned(), long.clone()]
            );
        }
        let mut padded = BytesMut::from(&[0_u8, 0][..]);
        padded.extend(varint(&[chunk(0, "a", true)]));
        assert_eq!(read(padded.freeze()).unwrap().into_users().unwrap(), ["a"]);
        assert!(read(Bytes::new()).unwrap().into_users().is_err());
    }

    #[test]
    fn a_length_that_lies_is_refused() {
        let mut body = BytesMut::from(&[0xff_u8, 0xff, 0xff, 0xff, 0x0f][..]);
        body.extend(b"short");
        assert!(matches!(read(body.freeze()), Err(Error::Truncated)));
        assert!(matches!(
            read(Bytes::from_static(&[0xff; 11])),
            Err(Error::Length)
        ));
    }

    proptest! {
        #[test]
        fn no_body_makes_it_panic(body in prop::collection::vec(any::<u8>(), 0..200)) {
            drop(read(Bytes::from(body)).map(|_| ()));
        }
    }
}
