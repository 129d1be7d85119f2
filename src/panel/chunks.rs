//! A user list that comes in pieces.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::wire::UsersChunk;

/// More than any panel has; a caller that sends more is not a panel.
const MAX_BYTES: usize = 256 << 20;
/// An empty chunk costs memory too.
const MAX_CHUNKS: usize = 1 << 20;

/// Why the pieces don't make a list. The texts are those that panels know.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Error {
    #[error("missing final chunk indicator")]
    NoLast,
    #[error("missing chunk index {0}")]
    Gap(u64),
    #[error("no users received")]
    Empty,
    #[error("the chunks together are larger than {} MiB", MAX_BYTES >> 20)]
    TooLarge,
}

/// The pieces so far. They may come in any order; one index may come several times, its users are
/// put together then.
#[derive(Default)]
pub(super) struct Chunks {
    by_index: BTreeMap<u64, Vec<Bytes>>,
    last: Option<u64>,
    bytes: usize,
    count: usize,
}

impl Chunks {
    /// Takes one more piece.
    pub(super) fn add(&mut self, chunk: UsersChunk) -> Result<(), Error> {
        self.count += 1;
        self.bytes += chunk.users.iter().map(Bytes::len).sum::<usize>();
        if self.bytes > MAX_BYTES || self.count > MAX_CHUNKS {
            return Err(Error::TooLarge);
        }
        if chunk.last {
            self.last = Some(chunk.index);
        }
        self.by_index
            .entry(chunk.index)
            .or_default()
            .extend(chunk.users);
        Ok(())
    }

    /// Whether every piece up to the last one is here, so that nothing need be waited for.
    pub(super) fn is_complete(&self) -> bool {
        self.last.is_some_and(|last| self.first_gap(last).is_none())
    }

    fn first_gap(&self, last: u64) -> Option<u64> {
        let present = self.by_index.range(..=last).map(|(index, _)| *index);
        let missing = present
            .zip(0..)
            .find_map(|(index, place)| (index != place).then_some(place));
        let count = self.by_index.range(..=last).count() as u64;
        missing.or_else(|| (count <= last).then_some(count))
    }

    /// The whole list. Pieces behind the last one don't belong to it.
    pub(super) fn into_users(self) -> Result<Vec<Bytes>, Error> {
        let last = self.last.ok_or(Error::NoLast)?;
        if let Some(gap) = self.first_gap(last) {
            return Err(Error::Gap(gap));
        }
        let users: Vec<Bytes> = self
            .by_index
            .into_iter()
            .take_while(|(index, _)| *index <= last)
            .flat_map(|(_, users)| users)
            .collect();
        if users.is_empty() {
            Err(Error::Empty)
        } else {
            Ok(users)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn chunk(index: u64, users: &[&'static str], last: bool) -> UsersChunk {
        UsersChunk {
            users: users
                .iter()
                .map(|user| Bytes::from_static(user.as_bytes()))
                .collect(),
            index,
            last,
        }
    }

    fn assemble(chunks: Vec<UsersChunk>) -> Result<Vec<Bytes>, Error> {
        let mut all = Chunks::default();
        for chunk in chunks {
            all.add(chunk)?;
        }
        all.into_users()
    }

    #[test]
    fn pieces_come_in_any_order_and_repeated_indexes_add_up() {
        let users = assemble(vec![
            chunk(1, &["c"], true),
            chunk(0, &["a"], false),
            chunk(0, &["b"], false),
            chunk(7, &["behind the end"], false),
        ]);
        assert_eq!(users.unwrap(), ["a", "b", "c"]);
    }

    #[test]
    fn what_is_missing_is_named() {
        assert_eq!(assemble(vec![chunk(0, &["a"], false)]), Err(Error::NoLast));
        assert_eq!(assemble(vec![]), Err(Error::NoLast));
        assert_eq!(
            assemble(vec![chunk(0, &["a"], false), chunk(2, &["c"], true)]),
            Err(Error::Gap(1))
        );
        assert_eq!(assemble(vec![chunk(3, &["c"], true)]), Err(Error::Gap(0)));
        assert_eq!(
            assemble(vec![chunk(u64::MAX, &["c"], true)]),
            Err(Error::Gap(0))
        );
        assert_eq!(assemble(vec![chunk(0, &[], true)]), Err(Error::Empty));
    }

    proptest! {
        #[test]
        fn the_order_of_arrival_does_not_matter(count in 1_u64..30, seed in any::<u64>()) {
            let mut order: Vec<u64> = (0..count).collect();
            let mut state = seed | 1;
            for place in (1..order.len()).rev() {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                order.swap(place, usize::try_from(state >> 33).unwrap() % (place + 1));
            }
            let mut all = Chunks::default();
            for (arrived, index) in order.iter().enumerate() {
                prop_assert!(!all.is_complete());
                let users = vec![Bytes::from(index.to_string())];
                all.add(UsersChunk { users, index: *index, last: index + 1 == count }).unwrap();
                prop_assert_eq!(all.is_complete(), arrived + 1 == order.len());
            }
            let expected: Vec<Bytes> = (0..count).map(|index| Bytes::from(index.to_string())).collect();
            prop_assert_eq!(all.into_users().unwrap(), expected);
        }
    }
}
