use std::time::Duration;

use uuid::Uuid;

use super::keeper::RETRY;
use super::*;
use crate::usage::Unsure;
use crate::usage::counter::Kind;
use crate::usage::store::Store;

const POLICY: Policy = Policy {
    harvest_interval: Duration::from_secs(2),
    retention: Duration::from_secs(31 * 86_400),
    reply: 64 << 20,
    unsure: Unsure::Settle,
};

fn says(counters: &[(&str, i64)]) -> Vec<Readings> {
    let counters = counters.iter().map(|(name, value)| Counter {
        name: format!("user>>>{name}>>>traffic>>>downlink"),
        value: *value,
    });
    vec![Readings::Sweep(counters.collect())]
}

async fn all(ledger: &Ledger) -> Report {
    ledger.report(Of::All(Kind::User)).await.unwrap()
}

fn bytes(entries: &[Entry]) -> u64 {
    entries.iter().map(|entry| entry.bytes.total()).sum()
}

/// What the next daemon finds.
async fn again(ledger: Ledger, folder: &Path, policy: Policy) -> Ledger {
    ledger.close().await;
    Ledger::open(folder, policy)
}

#[tokio::test]
async fn what_is_pending_is_there_for_the_next_daemon() {
    let folder = tempfile::tempdir().unwrap();
    let epoch = Epoch::new_v4();
    let ledger = Ledger::open(folder.path(), POLICY);
    ledger.count(epoch, says(&[("1", 10)])).await.unwrap();
    let ledger = again(ledger, folder.path(), POLICY).await;
    ledger.adopt(epoch);
    // An adopted core goes on from where it was.
    ledger.count(epoch, says(&[("1", 15)])).await.unwrap();
    let report = all(&ledger).await;
    assert_eq!(bytes(&report.entries), 15);
    report.ticket.unwrap().arrived();
    let ledger = again(ledger, folder.path(), POLICY).await;
    assert!(all(&ledger).await.entries.is_empty());
}

#[tokio::test]
async fn a_report_that_never_left_comes_again_and_one_that_did_is_judged() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(folder.path(), POLICY);
    let epoch = Epoch::new_v4();
    ledger.count(epoch, says(&[("1", 10)])).await.unwrap();
    drop(all(&ledger).await);
    let report = all(&ledger).await;
    assert_eq!(bytes(&report.entries), 10, "it never left");
    let ticket = report.ticket.unwrap();
    ticket.leaves();
    assert!(all(&ledger).await.entries.is_empty(), "it is on its way");
    ticket.lost();
    ticket.arrived();
    assert_eq!(
        bytes(&all(&ledger).await.entries),
        10,
        "the first word counts"
    );
}

#[tokio::test]
async fn a_daemon_that_dies_in_the_middle_leaves_it_to_the_operator() {
    for (unsure, comes) in [(Unsure::Settle, 0), (Unsure::Return, 10)] {
        let policy = Policy { unsure, ..POLICY };
        let folder = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(folder.path(), policy);
        let counted = ledger.count(Epoch::new_v4(), says(&[("1", 10)]));
        counted.await.unwrap();
        let report = all(&ledger).await;
        let ticket = report.ticket.unwrap();
        ticket.leaves();
        let next = again(ledger, folder.path(), policy).await;
        // Its last word comes to nobody any more.
        drop(ticket);
        assert_eq!(bytes(&all(&next).await.entries), comes);
    }
}

#[tokio::test]
async fn batches_come_again_until_there_is_a_receipt() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(folder.path(), POLICY);
    let epoch = Epoch::new_v4();
    let three = says(&[("1", 1), ("2", 2), ("3", 3)]);
    ledger.count(epoch, three).await.unwrap();
    let collect =
        async |ledger: &Ledger, cursor: &str| ledger.batch(cursor.to_owned(), 2).await.unwrap();
    let first = collect(&ledger, "").await.unwrap();
    assert_eq!((first.entries.len(), first.more), (2, true));
    let second = collect(&ledger, &first.id).await.unwrap();
    assert_eq!((second.entries.len(), second.more), (1, false));
    assert_eq!(collect(&ledger, &second.id).await, None);
    let ledger = again(ledger, folder.path(), POLICY).await;
    let same = collect(&ledger, "").await.unwrap();
    assert_eq!((&same.id, &same.entries), (&first.id, &first.entries));
    let receipt = || ledger.receipts(vec![first.id.clone()]);
    assert_eq!(receipt().await.unwrap(), 1);
    assert_eq!(receipt().await.unwrap(), 0, "a repeated one is harmless");
    let next = collect(&ledger, "").await.unwrap();
    assert_eq!((next.id, next.more), (second.id, false));
    let wrong = ledger.receipts(vec!["7".to_owned()]).await.unwrap_err();
    assert!(matches!(wrong, Error::NotABatch(_)));
    let foreign = format!("{}-1", Uuid::new_v4().simple());
    assert_eq!(ledger.receipts(vec![foreign]).await.unwrap(), 0);
}

#[tokio::test]
async fn a_damaged_ledger_is_moved_aside_and_nothing_is_billed_twice() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.redb");
    std::fs::write(&path, "this is no ledger").unwrap();
    let ledger = Ledger::open(folder.path(), POLICY);
    let (old, new) = (Epoch::new_v4(), Epoch::new_v4());
    ledger.adopt(old);
    // Some counters are no beginning.
    let some = vec![Readings::Some(vec![Counter {
        name: "user>>>1>>>traffic>>>downlink".to_owned(),
        value: 90,
    }])];
    ledger.count(old, some).await.unwrap();
    let ledger = again(ledger, folder.path(), POLICY).await;
    ledger.adopt(old);
    ledger.count(old, says(&[("1", 100)])).await.unwrap();
    ledger.count(old, says(&[("1", 107)])).await.unwrap();
    ledger.count(new, says(&[("1", 10)])).await.unwrap();
    assert_eq!(bytes(&all(&ledger).await.entries), 17);
    assert!(folder.path().join("ledger.redb.damaged").exists());
}

#[tokio::test]
async fn a_disk_that_refuses_costs_nothing_that_was_counted() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("state");
    let ledger = Ledger::open(&folder, POLICY);
    let epoch = Epoch::new_v4();
    ledger.count(epoch, says(&[("1", 10)])).await.unwrap();
    // A core that has ended meanwhile.
    ledger
        .count(Epoch::new_v4(), says(&[("2", 5)]))
        .await
        .unwrap();
    ledger.only_epochs(vec![epoch]);
    let refused = ledger.report(Of::All(Kind::User)).await.unwrap_err();
    assert!(refused.to_string().contains("nothing is lost"), "{refused}");
    std::fs::create_dir(&folder).unwrap();
    tokio::time::sleep(RETRY + Duration::from_millis(100)).await;
    ledger.count(epoch, says(&[("1", 12)])).await.unwrap();
    assert_eq!(bytes(&all(&ledger).await.entries), 17);
}

#[tokio::test]
async fn a_ledger_that_is_written_anew_is_the_same_ledger() {
    let root = tempfile::tempdir().unwrap();
    let (folder, away) = (root.path().join("state"), root.path().join("away"));
    std::fs::create_dir(&folder).unwrap();
    let ledger = Ledger::open(&folder, POLICY);
    let epoch = Epoch::new_v4();
    ledger.count(epoch, says(&[("1", 10)])).await.unwrap();
    let batch = ledger.batch(String::new(), 10).await.unwrap().unwrap();
    // The next daemon's disk loses the file under it and refuses for a while.
    let ledger = again(ledger, &folder, POLICY).await;
    let same = ledger.batch(String::new(), 10).await.unwrap().unwrap();
    assert_eq!(same, batch);
    ledger.close().await;
    std::fs::rename(&folder, &away).unwrap();
    std::fs::create_dir(&folder).unwrap();
    let (mut store, _) = Store::open(&folder.join("ledger.redb"), false).unwrap();
    let (old, contents) = Store::open(&away.join("ledger.redb"), false).unwrap();
    store.rewrite(&contents, old.id).unwrap();
    drop(store);
    let ledger = Ledger::open(&folder, POLICY);
    let same = ledger.batch(String::new(), 10).await.unwrap().unwrap();
    assert_eq!(same, batch);
}
