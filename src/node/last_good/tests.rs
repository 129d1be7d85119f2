use serde_json::json;

use super::*;
use crate::node::plan;
use crate::node::user::User;
use crate::xray::account::Credentials;

struct Disk {
    state: tempfile::TempDir,
    runtime: tempfile::TempDir,
}

impl Disk {
    fn new() -> Self {
        Self {
            state: tempfile::tempdir().unwrap(),
            runtime: tempfile::tempdir().unwrap(),
        }
    }

    fn open(&self) -> LastGood {
        LastGood::new(self.state.path(), self.runtime.path())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.state.path().join(name)
    }
}

fn user(email: &str) -> User {
    User {
        email: Email::from(email),
        credentials: Credentials {
            trojan: Some(format!("secret of {email}").into()),
            ..Credentials::default()
        },
        inbounds: vec!["in".into()],
    }
}

fn applied(emails: &[&str]) -> Applied {
    let config = json!({
        "log": { "error": "/var/log/xray.log" },
        "inbounds": [{ "tag": "in", "protocol": "trojan", "port": 1, "settings": { "clients": [] } }],
        "outbounds": [{ "tag": "out", "protocol": "blackhole" }],
    });
    let skeleton = Skeleton::parse(&config.to_string(), &[]).unwrap();
    let users: Vec<_> = emails.iter().map(|email| Ok(user(email))).collect();
    let roster = Roster::new(skeleton.inbounds(), Box::new(users.into_iter())).unwrap();
    Applied {
        skeleton: Arc::new(skeleton),
        roster,
        overrides: BTreeMap::from([("b".to_owned(), "out".to_owned())]),
        unanswered: HashMap::new(),
        doubtful: false,
    }
}

fn emails(applied: &Applied) -> Vec<String> {
    let users = &applied.roster.inbound("in").unwrap().users;
    let mut emails: Vec<_> = users
        .keys()
        .map(|email| email.as_str().to_owned())
        .collect();
    emails.sort();
    emails
}

/// From one roster to another, as the driver does it.
fn change(disk: &mut LastGood, from: &Applied, to: &[&str]) {
    disk.intend(&plan::replace_all(&from.roster, &applied(to).roster));
}

#[test]
fn what_is_saved_is_there_again() {
    let disk = Disk::new();
    assert!(disk.open().load(None).is_none());
    let core = Uuid::new_v4();
    let saved = applied(&["1", "Zoë", "with \"quotes\""]);
    disk.open()
        .save(core, &saved, Some(Duration::from_secs(60)));
    let found = disk.open().load(None).unwrap();
    assert_eq!(found.core, core);
    assert!(*found.applied.skeleton == *saved.skeleton);
    assert_eq!(emails(&found.applied), emails(&saved));
    assert!(
        plan::replace_all(&found.applied.roster, &saved.roster).is_empty(),
        "accounts and all"
    );
    assert_eq!(found.applied.overrides, saved.overrides);
    assert_eq!(found.keep_alive, Some(Duration::from_secs(60)));
    assert!(!found.stopped && !found.outdated);
}

#[test]
fn it_is_for_nobody_else_and_not_much() {
    use std::os::unix::fs::PermissionsExt;
    let disk = Disk::new();
    let names: Vec<String> = (0..5000).map(|number| number.to_string()).collect();
    let all: Vec<&str> = names.iter().map(String::as_str).collect();
    disk.open().save(Uuid::new_v4(), &applied(&all), None);
    for name in ["last-good", "last-good.journal"] {
        let file = std::fs::metadata(disk.path(name)).unwrap();
        assert_eq!(file.permissions().mode() & 0o777, 0o600, "{name}");
    }
    let bytes = std::fs::metadata(disk.path("last-good")).unwrap().len();
    assert!(bytes < 5000 * 40, "{bytes} bytes for 5000 users");
}

#[test]
fn changes_are_there_again_and_those_that_were_refused_are_not() {
    let disk = Disk::new();
    let mut last_good = disk.open();
    let before = applied(&["1", "2"]);
    last_good.save(Uuid::new_v4(), &before, None);
    change(&mut last_good, &before, &["2", "3"]);
    assert_eq!(
        emails(&disk.open().load(None).unwrap().applied),
        ["2", "3"],
        "before the core is told"
    );
    // The core would not take 3, and nobody knows about 2.
    let mut roster = before.roster.clone();
    roster.take("in", &Email::from("1"));
    roster.put("in", &Email::from("2"), None);
    let off = ["2", "3"].map(|email| (Arc::from("in"), Email::from(email)));
    last_good.correct(&roster, off.iter());
    let found = disk.open().load(None).unwrap().applied;
    assert_eq!(emails(&found), ["2"]);
    assert_eq!(
        found.roster.inbound("in").unwrap().users[&Email::from("2")],
        None
    );
    last_good.set_stopped(true);
    assert!(disk.open().load(None).unwrap().stopped);
    last_good.save(Uuid::new_v4(), &before, None);
    assert!(
        disk.open().load(None).unwrap().stopped,
        "a snapshot changes nothing about it"
    );
    last_good.set_stopped(false);
    assert!(!disk.open().load(None).unwrap().stopped);
}

#[test]
fn a_journal_counts_only_behind_its_own_snapshot_and_to_its_last_whole_line() {
    let disk = Disk::new();
    let mut last_good = disk.open();
    let before = applied(&["1"]);
    last_good.save(Uuid::new_v4(), &before, None);
    change(&mut last_good, &before, &["1", "2"]);
    let old = std::fs::read(disk.path("last-good.journal")).unwrap();
    for torn in 0..old.len() {
        std::fs::write(disk.path("last-good.journal"), &old[..torn]).unwrap();
        let found = emails(&disk.open().load(None).unwrap().applied);
        assert_eq!(found, ["1"], "cut at {torn}");
    }
    // A snapshot that is younger than the journal beside it: the daemon died between the two.
    last_good.save(Uuid::new_v4(), &applied(&["5"]), None);
    std::fs::write(disk.path("last-good.journal"), &old).unwrap();
    assert_eq!(emails(&disk.open().load(None).unwrap().applied), ["5"]);
}

#[test]
fn what_can_not_be_read_is_moved_aside() {
    let disk = Disk::new();
    let mut last_good = disk.open();
    last_good.save(Uuid::new_v4(), &applied(&["1"]), None);
    let good = std::fs::read(disk.path("last-good")).unwrap();
    let mut flipped = good.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 0xff;
    for damaged in [&[][..], b"nonsense", &good[..good.len() / 2], &flipped] {
        std::fs::write(disk.path("last-good"), damaged).unwrap();
        assert!(disk.open().load(None).is_none());
        assert!(!disk.path("last-good").exists() && disk.path("last-good.damaged").exists());
    }
}

#[test]
fn where_the_disk_refuses_the_next_daemon_finds_it_elsewhere() {
    let disk = Disk::new();
    let mut last_good = disk.open();
    let before = applied(&["1"]);
    last_good.save(Uuid::new_v4(), &before, None);
    assert!(!last_good.wants_saving(Instant::now()));
    std::fs::create_dir_all(disk.path("last-good.new/in the way")).unwrap();
    last_good.save(Uuid::new_v4(), &applied(&["1", "2"]), None);
    change(&mut last_good, &before, &["9"]);
    last_good.set_stopped(true);
    let found = disk.open().load(None).unwrap();
    assert!(!found.outdated && found.stopped);
    assert_eq!(emails(&found.applied), ["2", "9"]);
    assert!(!last_good.wants_saving(Instant::now()));
    assert!(last_good.wants_saving(Instant::now() + RETRY));
    std::fs::remove_dir_all(disk.path("last-good.new")).unwrap();
    last_good.save(Uuid::new_v4(), &applied(&["7"]), None);
    std::fs::remove_dir_all(disk.runtime.path()).unwrap();
    assert_eq!(emails(&disk.open().load(None).unwrap().applied), ["7"]);
}

#[test]
fn where_nothing_can_be_written_it_is_said_to_be_old_and_can_be_forgotten() {
    let disk = Disk::new();
    let mut last_good = disk.open();
    last_good.save(Uuid::new_v4(), &applied(&["1"]), None);
    for folder in [disk.state.path(), disk.runtime.path()] {
        std::fs::create_dir_all(folder.join("last-good.new/in the way")).unwrap();
    }
    last_good.save(Uuid::new_v4(), &applied(&["2"]), None);
    let found = disk.open().load(None).unwrap();
    assert!(found.outdated);
    assert_eq!(emails(&found.applied), ["1"]);
    assert!(last_good.wants_saving(Instant::now() + SOON));
    // A panel stops the node: nothing of it may come back.
    last_good.set_stopped(true);
    last_good.forget_if_it_is_wrong();
    assert!(disk.open().load(None).is_none());
}

#[test]
fn a_long_journal_wants_a_new_snapshot() {
    let disk = Disk::new();
    let mut last_good = disk.open();
    let (one, two) = (applied(&["1"]), applied(&["2"]));
    last_good.save(Uuid::new_v4(), &one, None);
    let mut changes = 0;
    while !last_good.wants_saving(Instant::now()) {
        change(&mut last_good, &one, &["2"]);
        change(&mut last_good, &two, &["1"]);
        changes += 4;
        assert!(changes < 1_000_000, "it grows without end");
    }
    last_good.save(Uuid::new_v4(), &one, None);
    assert!(
        std::fs::metadata(disk.path("last-good.journal"))
            .unwrap()
            .len()
            < 200
    );
}
