use std::ffi::OsString;

use super::super::Digest;
use super::super::links::Act;
use super::super::staging::{Kept, Staging};
use super::*;

const KIND: Kind = Kind {
    record: "record.json",
    files: &["file"],
};

struct Place {
    state: tempfile::TempDir,
    shelf: Shelf,
}

impl Place {
    fn new() -> Self {
        let state = tempfile::tempdir().unwrap();
        let shelf = Shelf::new(state.path().join("shelf"), KIND);
        Self { state, shelf }
    }

    /// With those, and the last one in use.
    fn with(versions: &[&str]) -> Self {
        let place = Self::new();
        for version in versions {
            place.keep(version, version).switch().unwrap();
        }
        place
    }

    fn keep(&self, version: &str, content: &str) -> Kept {
        let staging = Staging::new(self.turn()).unwrap();
        let record = fill(&staging.content(), version, content);
        staging.keep(version, &record).unwrap()
    }

    fn turn(&self) -> Turn {
        self.shelf.turn().unwrap()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.shelf.folder().join(name)
    }

    /// What a core would read now.
    fn used(&self) -> Option<String> {
        let current = self.shelf.current()?;
        Some(fs::read_to_string(current.join("file")).unwrap())
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(self.shelf.folder())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .map(|name: OsString| name.into_string().unwrap())
            .filter(|name| name != "lock")
            .collect();
        names.sort();
        names
    }

    fn links(&self) -> [Option<String>; 2] {
        [CURRENT, PREVIOUS].map(|link| {
            let target = fs::read_link(self.path(link)).ok()?;
            Some(target.into_os_string().into_string().unwrap())
        })
    }
}

fn fill(folder: &Path, version: &str, content: &str) -> Record {
    let file = folder.join("file");
    fs::write(&file, content).unwrap();
    let digest = Digest::of_file(&file).unwrap();
    Record::new(
        version.to_owned(),
        "here".to_owned(),
        None,
        [("file", digest)],
    )
}

fn some(names: [&str; 2]) -> [Option<String>; 2] {
    names.map(|name| Some(name.to_owned()))
}

#[test]
fn nothing_is_used_until_it_is_switched_to() {
    let place = Place::new();
    assert_eq!(place.shelf.list().unwrap(), []);
    assert_eq!(place.shelf.current(), None);

    let kept = place.keep("1", "one");
    assert_eq!((kept.name(), kept.reused()), ("1", false));
    assert_eq!(place.used(), None);
    let switched = kept.switch().unwrap().1;
    assert_eq!((&*switched.now, &switched.before), ("1", &None));
    assert_eq!(place.used().unwrap(), "one");
    assert_eq!(place.links(), [Some("1".to_owned()), None]);

    let switched = place.keep("2", "two").switch().unwrap().1;
    assert_eq!(switched.before.unwrap(), "1");
    assert_eq!(place.used().unwrap(), "two");
    assert_eq!(place.links(), some(["2", "1"]));
    assert_eq!(place.names(), ["1", "2", "current", "previous"]);
}

#[test]
fn the_list_says_what_is_there_and_runs_nothing() {
    let place = Place::with(&["1", "22"]);
    fs::create_dir(place.path("made by hand")).unwrap();
    fs::write(place.path("note"), "a file").unwrap();
    let list = place.shelf.list().unwrap();
    let told: Vec<_> = list
        .iter()
        .map(|one| {
            (
                &*one.name,
                &*one.version,
                one.bytes,
                one.in_use,
                one.previous,
            )
        })
        .collect();
    assert_eq!(
        told,
        [("22", "22", 2, true, false), ("1", "1", 1, false, true)]
    );
    assert!(list.iter().all(|one| one.source == "here"));
    let age = SystemTime::now().duration_since(list[0].installed).unwrap();
    assert!(age.as_secs() < 60);
}

#[test]
fn to_switch_to_what_is_used_changes_nothing() {
    let place = Place::with(&["1", "2"]);
    let switched = place.turn().switch_to("2").unwrap();
    assert_eq!(switched.before.as_deref(), Some("2"));
    assert_eq!(place.links(), some(["2", "1"]));
    place.turn().undo(&switched).unwrap();
    assert_eq!(place.links(), some(["2", "1"]));
}

#[test]
fn a_rollback_goes_back_and_the_next_one_forth() {
    let place = Place::with(&["1", "2"]);
    assert_eq!(place.turn().rollback().unwrap().now, "1");
    assert_eq!(
        (place.used().unwrap(), place.links()),
        ("1".to_owned(), some(["1", "2"]))
    );
    assert_eq!(place.turn().rollback().unwrap().now, "2");
    assert_eq!(place.links(), some(["2", "1"]));
}

#[test]
fn a_rollback_to_nothing_is_refused() {
    assert!(matches!(
        Place::new().turn().rollback(),
        Err(Error::NoPrevious)
    ));
    let place = Place::with(&["1"]);
    assert!(matches!(place.turn().rollback(), Err(Error::NoPrevious)));
    let place = Place::with(&["1", "2"]);
    fs::remove_file(place.path("1/file")).unwrap();
    assert!(matches!(place.turn().rollback(), Err(Error::NoPrevious)));
    assert_eq!(place.used().unwrap(), "2");
}

#[test]
fn a_switch_can_be_undone_also_the_first_one() {
    let place = Place::new();
    let first = place.keep("1", "1").switch().unwrap().1;
    let second = place.keep("2", "2").switch().unwrap().1;
    let third = place.keep("3", "3").switch().unwrap().1;
    place.turn().undo(&third).unwrap();
    assert_eq!(place.links(), some(["2", "1"]));
    place.turn().undo(&second).unwrap();
    assert_eq!(place.links(), [Some("1".to_owned()), None]);
    assert!(matches!(
        place.turn().undo(&third),
        Err(Error::Overtaken(_))
    ));
    place.turn().undo(&first).unwrap();
    assert_eq!(place.links(), [None, None]);
    assert_eq!(place.names(), ["1", "2", "3"]);

    let place = Place::with(&["1", "2"]);
    let back = place.turn().rollback().unwrap();
    place.turn().undo(&back).unwrap();
    assert_eq!(place.links(), some(["2", "1"]));
}

#[test]
fn what_is_not_there_is_not_switched_to() {
    let place = Place::with(&["1"]);
    fs::create_dir(place.path("empty")).unwrap();
    fs::create_dir(place.state.path().join("outside")).unwrap();
    fs::write(place.state.path().join("outside/file"), "x").unwrap();
    let absolute = place.state.path().join("outside");
    for name in [
        "2",
        "",
        ".",
        "..",
        "empty",
        "current",
        "../outside",
        absolute.to_str().unwrap(),
    ] {
        let refused = place.turn().switch_to(name).unwrap_err();
        assert!(
            matches!(refused, Error::Unknown { .. }),
            "{name}: {refused}"
        );
        let removed = place.turn().remove(name);
        assert!(removed.is_err() || name == "empty", "{name}");
    }
    assert_eq!(place.links(), [Some("1".to_owned()), None]);
    assert!(absolute.join("file").exists());
}

#[test]
fn what_is_used_is_not_removed() {
    let place = Place::with(&["1", "2"]);
    assert!(matches!(place.turn().remove("2"), Err(Error::InUse(_))));
    place.turn().remove("1").unwrap();
    assert_eq!(place.names(), ["2", "current"]);
    assert!(matches!(place.turn().rollback(), Err(Error::NoPrevious)));
    assert_eq!(place.used().unwrap(), "2");
}

#[test]
fn the_oldest_go_but_never_what_is_linked() {
    let place = Place::with(&["1", "2"]);
    for (version, age) in [("1", 10), ("2", 9)] {
        grow_old(&place, version, age);
    }
    drop(place.keep("3", "3"));
    grow_old(&place, "3", 8);
    assert_eq!(place.names(), ["1", "2", "3", "current", "previous"]);
    // The two oldest are the ones that are linked.
    drop(place.keep("4", "4"));
    assert_eq!(place.names(), ["1", "2", "4", "current", "previous"]);
    grow_old(&place, "4", 7);
    place.turn().switch_to("4").unwrap();
    assert_eq!(place.links(), some(["4", "2"]));
    place.keep("5", "5").switch().unwrap();
    assert_eq!(place.names(), ["2", "4", "5", "current", "previous"]);
}

/// As if it had been installed so many hours ago.
fn grow_old(place: &Place, name: &str, hours: u64) {
    let path = place.path(name).join("record.json");
    let text = fs::read_to_string(&path).unwrap();
    let mut record: serde_json::Value = serde_json::from_str(&text).unwrap();
    let installed = record["installed"].as_u64().unwrap();
    record["installed"] = (installed - hours * 3600).into();
    fs::write(&path, record.to_string()).unwrap();
}

#[test]
fn the_same_is_kept_once_and_another_of_that_name_beside_it() {
    let place = Place::with(&["1"]);
    let again = place.keep("1", "1");
    assert_eq!((again.name(), again.reused()), ("1", true));
    again.switch().unwrap();
    assert_eq!(place.names(), ["1", "current"]);

    let other = place.keep("1", "another build");
    assert_eq!((other.name(), other.reused()), ("1-2", false));
    drop(other);
    assert_eq!(place.used().unwrap(), "1");
    assert_eq!(place.keep("1", "another build").name(), "1-2");

    // What the disk has damaged is not what it was.
    fs::write(place.path("1/file"), "damaged").unwrap();
    let fresh = place.keep("1", "1");
    assert_eq!((fresh.name(), fresh.reused()), ("1-3", false));
    fresh.switch().unwrap();
    assert_eq!(place.used().unwrap(), "1");
}

#[test]
fn one_installs_at_a_time() {
    let place = Place::with(&["1", "2"]);
    let staging = Staging::new(place.turn()).unwrap();
    let same = Shelf::new(place.shelf.folder().to_owned(), KIND);
    let text = same.turn().unwrap_err().to_string();
    assert!(text.contains("another installation is under way"), "{text}");
    assert!(
        text.contains(&format!("process {}", std::process::id())),
        "{text}"
    );
    // Its folder is not cleared away below it, and all can look.
    same.tidy().unwrap();
    assert!(staging.content().exists());
    assert_eq!(same.list().unwrap().len(), 2);
    drop(staging);
    assert_eq!(place.names(), ["1", "2", "current", "previous"]);
    same.turn().unwrap().switch_to("1").unwrap();
}

#[test]
fn what_is_another_users_is_left_to_that_user() {
    let place = Place::new();
    let (shelf, owner) = if nix::unistd::geteuid().is_root() {
        std::os::unix::fs::chown(place.state.path(), Some(12345), None).unwrap();
        (place.shelf.clone(), 12345)
    } else {
        (Shelf::new("/etc".into(), KIND), 0)
    };
    let refused = shelf.turn().unwrap_err();
    assert!(matches!(refused, Error::NotOurs { uid, .. } if uid == owner));
    assert!(!place.shelf.folder().exists());
}

#[test]
fn leftovers_are_cleared_away() {
    let place = Place::with(&["1"]);
    fs::create_dir_all(place.path(".staging-1/content")).unwrap();
    fs::write(place.path(".staging-1/content/file"), "half").unwrap();
    std::os::unix::fs::symlink("nowhere", place.path(".current.new")).unwrap();
    place.shelf.tidy().unwrap();
    assert_eq!(place.names(), ["1", "current"]);

    let none = Place::new();
    none.shelf.tidy().unwrap();
    assert!(!none.shelf.folder().exists());
}

#[test]
fn a_link_to_elsewhere_is_one_like_others() {
    let place = Place::with(&["1"]);
    let outside = place.state.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("file"), "by hand").unwrap();
    fs::remove_file(place.path(CURRENT)).unwrap();
    std::os::unix::fs::symlink(&outside, place.path(CURRENT)).unwrap();
    assert_eq!(place.used().unwrap(), "by hand");
    let switched = place.turn().switch_to("1").unwrap();
    assert_eq!(switched.before.as_deref(), outside.to_str());
    assert_eq!(place.used().unwrap(), "1");
    place.turn().rollback().unwrap();
    assert_eq!(place.used().unwrap(), "by hand");
    place.turn().switch_to("1").unwrap();
    place.keep("2", "2").switch().unwrap();
    assert!(outside.join("file").exists());
}

/// What a node finds on its disk after a kill behind each step, and that it gets on from there.
fn killed_at_each_step(
    before: &[&str],
    acts: impl Fn(&Place) -> Vec<Act>,
    may_be_used: &[Option<&str>],
) {
    let steps = acts(&Place::with(before)).len();
    let mut seen = Vec::new();
    for done in 0..=steps {
        let place = Place::with(before);
        let acts = acts(&place);
        links::run(&acts[..done]).unwrap();

        let used = place.used();
        assert!(
            may_be_used.contains(&used.as_deref()),
            "{used:?} behind {done} steps"
        );
        assert_eq!(
            used.is_some(),
            place.path(CURRENT).symlink_metadata().is_ok()
        );
        seen.push(used);

        place.shelf.tidy().unwrap();
        let kept = place.keep("9", "9");
        kept.switch().unwrap();
        assert_eq!(place.used().unwrap(), "9", "behind {done} steps");
        let leftovers = place
            .names()
            .into_iter()
            .filter(|name| name.starts_with('.'));
        assert_eq!(
            leftovers.collect::<Vec<_>>(),
            [""; 0],
            "behind {done} steps"
        );
        if let Some(used) = seen.last().unwrap() {
            assert_eq!(&place.turn().rollback().unwrap().now, used);
        }
    }
    for expected in may_be_used {
        assert!(
            seen.iter().any(|used| used.as_deref() == *expected),
            "{expected:?} was never used"
        );
    }
}

/// The steps to keep what is staged as 2 and to use it.
fn keep_and_switch(place: &Place) -> Vec<Act> {
    disk::private_folder(place.shelf.folder()).unwrap();
    let content = place.path(".staging-1/content");
    disk::private_folder(&content).unwrap();
    let record = fill(&content, "2", "2");
    record.write(&content.join("record.json")).unwrap();
    let folder = place.shelf.folder();
    let mut acts = links::keeping(&content, folder, "2");
    let current = place.shelf.linked(CURRENT);
    acts.extend(links::switching(folder, current.as_deref(), "2"));
    acts
}

#[test]
fn a_kill_while_the_first_one_comes_leaves_none_or_that_one() {
    killed_at_each_step(&[], keep_and_switch, &[None, Some("2")]);
}

#[test]
fn a_kill_while_another_one_comes_leaves_the_old_or_the_new_one() {
    killed_at_each_step(&["1"], keep_and_switch, &[Some("1"), Some("2")]);
    killed_at_each_step(&["0", "1"], keep_and_switch, &[Some("1"), Some("2")]);
}

#[test]
fn a_kill_while_going_back_leaves_one_of_both() {
    let back = |place: &Place| links::going_back(place.shelf.folder(), Some("1"), Some("0"));
    killed_at_each_step(&["0", "1"], back, &[Some("1"), Some("0")]);
    let undone = |place: &Place| links::going_back(place.shelf.folder(), None, None);
    killed_at_each_step(&["1"], undone, &[Some("1"), None]);
}

#[test]
fn a_kill_while_removing_leaves_what_is_used() {
    let removing = |place: &Place| {
        let folder = place.shelf.folder();
        let mut acts = links::forgetting(folder, PREVIOUS);
        acts.extend(links::leaving(folder, "0", &folder.join(".staging-1")));
        acts
    };
    killed_at_each_step(&["0", "1"], removing, &[Some("1")]);
}
