use proptest::prelude::*;

use super::*;
use crate::usage::counter::Direction;

/// Room for everything.
const REPLY: usize = 1 << 20;
const USERS: [&str; 3] = ["1", "2", "3"];

fn reading(name: &str, direction: Direction, value: u64) -> Reading<'_> {
    Reading {
        kind: Kind::User,
        name,
        direction,
        value,
    }
}

fn pending(book: &Book, name: &str) -> Bytes {
    let row = table(&book.contents.rows, Kind::User).get(name);
    row.map_or_else(Bytes::default, |row| row.pending)
}

#[test]
fn differences_count_and_nothing_is_counted_twice() {
    let mut book = Book::default();
    let epoch = Uuid::new_v4();
    let other = Uuid::new_v4();
    for (epoch, value, sum) in [
        (epoch, 10, 10),
        (epoch, 10, 10),
        (epoch, 15, 15),
        // Somebody has reset the core's counters.
        (epoch, 3, 18),
        // Another core counts from zero.
        (other, 7, 25),
    ] {
        book.count(epoch, [reading("1", Direction::Up, value)]);
        assert_eq!(pending(&book, "1").up, sum);
    }
    let moved = book.count(
        other,
        [
            reading("1", Direction::Up, 7),
            reading("2", Direction::Up, 1),
        ],
    );
    assert_eq!(moved, [Arc::from("2")], "who has moved something");
}

#[test]
fn a_reading_that_comes_after_its_core_was_given_up_counts_nothing() {
    let mut book = Book::default();
    let (old, new) = (Uuid::new_v4(), Uuid::new_v4());
    book.count(old, [reading("1", Direction::Up, 10)]);
    book.count(new, [reading("1", Direction::Up, 1)]);
    book.end_all_but(&[new]);
    book.count(old, [reading("1", Direction::Up, 12)]);
    assert_eq!(pending(&book, "1").up, 11);
}

#[test]
fn what_was_counted_before_a_book_began_is_nobodys() {
    let mut book = Book::default();
    let epoch = Uuid::new_v4();
    book.begin_at(epoch, [reading("1", Direction::Down, 100)]);
    book.count(epoch, [reading("1", Direction::Down, 130)]);
    assert_eq!(pending(&book, "1").down, 30);
}

#[test]
fn a_delivery_is_out_of_everybodys_reach_until_it_is_judged() {
    let mut book = Book::default();
    let epoch = Uuid::new_v4();
    book.count(epoch, [reading("1", Direction::Up, 10)]);
    let first = book.report(&Of::All(Kind::User), REPLY).unwrap().unwrap();
    assert_eq!(book.report(&Of::All(Kind::User), REPLY), Ok(None));
    assert_eq!(book.batch(10), Ok(None));
    book.count(epoch, [reading("1", Direction::Up, 12)]);
    let one = Of::One(Kind::User, "1".to_owned());
    let second = book.report(&one, REPLY).unwrap().unwrap();
    assert_eq!(book.delivery(second).unwrap().entries[0].bytes.up, 2);
    assert_eq!(book.put_back(first).unwrap().bytes, 10);
    assert_eq!(book.put_back(first), None, "a second judgement is none");
    assert_eq!(book.settle(first), None);
    book.settle(second);
    assert_eq!(pending(&book, "1").up, 10);
}

#[test]
fn batches_come_in_order_until_they_have_their_receipt() {
    let mut book = Book::default();
    let epoch = Uuid::new_v4();
    for name in USERS {
        book.count(epoch, [reading(name, Direction::Up, 10)]);
    }
    let first = book.batch(2).unwrap().unwrap();
    let second = book.batch(2).unwrap().unwrap();
    assert_eq!(book.batch(2), Ok(None));
    assert_eq!(book.delivery(first).unwrap().entries.len(), 2);
    assert_eq!(book.batch_after(0), Some(first));
    assert_eq!(book.batch_after(first), Some(second));
    assert!(book.receipt(first));
    assert!(!book.receipt(first), "a repeated receipt is harmless");
    assert_eq!(book.batch_after(0), Some(second));
    book.count(epoch, [reading("1", Direction::Up, 11)]);
    let report = book.report(&Of::All(Kind::User), REPLY).unwrap().unwrap();
    assert!(!book.receipt(report), "a report is no batch");
}

#[test]
fn what_does_not_fit_comes_with_the_next_report() {
    let mut book = Book::default();
    for name in USERS {
        book.count(Uuid::nil(), [reading(name, Direction::Up, 10)]);
    }
    let two = 4 * (1 + ENTRY);
    for entries in [Some(2), Some(1), None] {
        let id = book.report(&Of::All(Kind::User), two).unwrap();
        assert_eq!(
            id.map(|id| book.delivery(id).unwrap().entries.len()),
            entries
        );
    }
}

#[test]
fn there_are_only_so_many_deliveries() {
    let mut book = Book::default();
    let epoch = Uuid::new_v4();
    for value in 1..=MAX_REPORTS as u64 {
        book.count(epoch, [reading("1", Direction::Up, value)]);
        book.report(&Of::All(Kind::User), REPLY).unwrap();
    }
    let last = MAX_REPORTS as u64 + 7;
    book.count(epoch, [reading("1", Direction::Up, last)]);
    assert!(book.report(&Of::All(Kind::User), REPLY).is_err());
    assert_eq!(pending(&book, "1").up, 7);
}

#[test]
fn what_nobody_collects_is_kept_for_so_long_and_no_longer() {
    let mut book = Book::default();
    let epoch = Uuid::new_v4();
    book.count(epoch, [reading("1", Direction::Up, 10)]);
    book.pass(100);
    book.count(
        epoch,
        [
            reading("1", Direction::Up, 15),
            reading("2", Direction::Up, 7),
        ],
    );
    assert_eq!(book.expire(100).entries, 0);
    book.pass(1);
    assert_eq!(
        book.expire(100),
        Sum {
            entries: 1,
            bytes: 15
        }
    );
    assert_eq!((pending(&book, "1").up, pending(&book, "2").up), (0, 7));
    // Nothing is invented of what was dropped.
    book.count(epoch, [reading("1", Direction::Up, 16)]);
    assert_eq!(pending(&book, "1").up, 1);
    // Who has nothing pending and uses nothing is forgotten.
    let report = book.report(&Of::All(Kind::User), REPLY).unwrap().unwrap();
    book.settle(report);
    book.pass(200);
    book.expire(100);
    assert!(book.contents.rows.iter().all(HashMap::is_empty));
}

/// What can happen.
#[derive(Clone, Debug)]
enum Event {
    Traffic {
        user: usize,
        bytes: u64,
    },
    Harvest,
    /// The core is stopped after a last harvest, or dies without one.
    NewCore {
        planned: bool,
    },
    Report {
        one: Option<usize>,
    },
    Batch {
        limit: usize,
    },
    /// The oldest or the newest delivery is judged.
    Judge {
        newest: bool,
        arrived: bool,
    },
    /// The panel acknowledges a batch, maybe again.
    Receipt {
        cursor: u64,
    },
    /// The daemon starts again with what is on disk.
    Crash,
    LateReading,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        (0..3_usize, 1..1000_u64).prop_map(|(user, bytes)| Event::Traffic { user, bytes }),
        Just(Event::Harvest),
        any::<bool>().prop_map(|planned| Event::NewCore { planned }),
        prop::option::of(0..3_usize).prop_map(|one| Event::Report { one }),
        (1..3_usize).prop_map(|limit| Event::Batch { limit }),
        any::<(bool, bool)>().prop_map(|(newest, arrived)| Event::Judge { newest, arrived }),
        (0..5_u64).prop_map(|cursor| Event::Receipt { cursor }),
        Just(Event::Crash),
        Just(Event::LateReading),
    ]
}

/// The world around the book.
#[derive(Default)]
struct World {
    book: Book,
    epoch: Epoch,
    /// What the core's counters say.
    core: [u64; 3],
    /// What no harvest has seen of a core that died.
    lost: u64,
    /// What cores have counted in all.
    counted: u64,
    /// What panels have.
    arrived: u64,
    last: Option<(Epoch, [u64; 3])>,
}

impl World {
    fn harvest(&mut self) {
        let values = self.core;
        let readings = USERS
            .iter()
            .zip(values)
            .map(|(name, value)| reading(name, Direction::Up, value));
        self.book.count(self.epoch, readings);
        self.lost = 0;
    }

    fn happen(&mut self, event: &Event) {
        match *event {
            Event::Traffic { user, bytes } => {
                self.core[user] += bytes;
                self.counted += bytes;
                self.lost += bytes;
            }
            Event::Harvest => self.harvest(),
            Event::NewCore { planned } => {
                if planned {
                    self.harvest();
                }
                self.last = Some((self.epoch, self.core));
                self.counted -= std::mem::take(&mut self.lost);
                (self.epoch, self.core) = (Uuid::new_v4(), [0; 3]);
                self.book.count(self.epoch, []);
                self.book.end_all_but(&[self.epoch]);
            }
            Event::Report { one } => {
                let of = match one {
                    None => Of::All(Kind::User),
                    Some(user) => Of::One(Kind::User, USERS[user].to_owned()),
                };
                self.book.report(&of, REPLY).unwrap();
            }
            Event::Batch { limit } => {
                self.book.batch(limit).ok();
            }
            Event::Judge { newest, arrived } => {
                let reports = self.book.reports();
                let id = if newest {
                    reports.last()
                } else {
                    reports.first()
                };
                match id {
                    Some(id) if arrived => {
                        self.arrived += self.book.settle(*id).unwrap().bytes;
                    }
                    Some(id) => drop(self.book.put_back(*id)),
                    None => {}
                }
            }
            Event::Receipt { cursor } => {
                if let Some(id) = self.book.batch_after(cursor) {
                    let bytes = sum(self.book.delivery(id).unwrap()).bytes;
                    assert!(self.book.receipt(id));
                    assert!(!self.book.receipt(id));
                    self.arrived += bytes;
                }
            }
            Event::Crash => {
                let contents = std::mem::take(&mut self.book).contents;
                self.book = Book::new(contents);
                self.last = None;
            }
            Event::LateReading => {
                if let Some((epoch, values)) = self.last {
                    let readings = USERS
                        .iter()
                        .zip(values)
                        .map(|(name, value)| reading(name, Direction::Up, value));
                    self.book.count(epoch, readings);
                }
            }
        }
    }

    /// Bytes in the book, wherever.
    fn booked(&self) -> u64 {
        let pending = USERS.iter().map(|name| pending(&self.book, name).total());
        let deliveries = self.book.contents.deliveries.values();
        pending.sum::<u64>() + deliveries.map(|delivery| sum(delivery).bytes).sum::<u64>()
    }
}

proptest! {
    #[test]
    fn every_byte_is_in_one_place(events in prop::collection::vec(event(), 0..200)) {
        let mut world = World::default();
        world.book.count(world.epoch, []);
        for event in &events {
            world.happen(event);
            prop_assert_eq!(&world.book.pending, &Pending::of(&world.book.contents.rows));
            world.book.pass(1);
            prop_assert_eq!(world.arrived + world.booked() + world.lost, world.counted, "after {:?}", event);
        }
    }
}
