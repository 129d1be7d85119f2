use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::xray::account::{Credentials, Protocol};
use crate::xray::config::{Accounts, Inbound};

fn inbounds() -> Vec<Inbound> {
    let vless = Protocol::Vless {
        vision: false,
        vision_by_default: false,
    };
    vec![
        Inbound {
            tag: "vless".into(),
            protocol: vless,
        },
        Inbound {
            tag: "trojan".into(),
            protocol: Protocol::Trojan,
        },
    ]
}

/// A user whose secret on every inbound is the number `secret`.
fn user(email: &str, secret: u128, inbounds: &[&str]) -> User {
    User {
        email: Email::from(email),
        credentials: Credentials {
            // The two bytes that Xray ignores stay zero, so that different numbers differ.
            vless: Some(uuid::Uuid::from_u128(secret).to_string().into()),
            trojan: Some(format!("password {secret}").into()),
            ..Credentials::default()
        },
        inbounds: inbounds.iter().map(|tag| (*tag).into()).collect(),
    }
}

fn listed(users: Vec<User>) -> super::super::user::Users {
    Box::new(users.into_iter().map(Ok))
}

fn roster(users: Vec<User>) -> Roster {
    Roster::new(inbounds().iter(), listed(users)).unwrap()
}

/// Xray as far as its users go, with its trap: removing a user removes what his secret leads to,
/// whoever has it by then.
#[derive(Clone, Debug, Default)]
struct ModelCore {
    users: BTreeMap<(String, String), Account>,
    secrets: HashMap<(String, Secret), String>,
}

impl ModelCore {
    fn of(roster: &Roster) -> Self {
        let mut core = Self::default();
        let mut people = HashSet::new();
        for inbound in inbounds() {
            for (email, account) in roster.on(&inbound) {
                core.add(&inbound.tag, email, account).unwrap();
                people.insert(email.to_lowercase());
            }
        }
        assert_eq!(roster.people(), people.len(), "each is counted once");
        core
    }

    fn add(&mut self, tag: &str, email: &str, account: &Account) -> Result<(), String> {
        let key = (tag.to_owned(), email.to_lowercase());
        if self.users.contains_key(&key) {
            return Err(format!("User {email} already exists."));
        }
        self.users.insert(key, account.clone());
        self.secrets
            .insert((tag.to_owned(), account.secret()), email.to_owned());
        Ok(())
    }

    fn remove(&mut self, tag: &str, email: &str) -> Result<(), String> {
        let account = self.users.remove(&(tag.to_owned(), email.to_lowercase()));
        let account = account.ok_or(format!("User {email} not found."))?;
        self.secrets.remove(&(tag.to_owned(), account.secret()));
        Ok(())
    }

    fn perform(&mut self, op: &UserOp) -> Result<(), String> {
        match op {
            UserOp::Add {
                inbound,
                email,
                account,
            } => self.add(inbound, email.as_str(), account),
            UserOp::Remove { inbound, email } => self.remove(inbound, email.as_str()),
            UserOp::Replace {
                inbound,
                old,
                email,
                account,
            } => {
                self.remove(inbound, old.as_str())?;
                self.add(inbound, email.as_str(), account)
            }
        }
    }

    /// Who gets in with which secret.
    fn doors(&self) -> BTreeMap<String, String> {
        self.secrets
            .iter()
            .map(|((tag, secret), email)| (format!("{tag} {secret:?}"), email.clone()))
            .collect()
    }
}

/// Performs the changes in one of the orders that are possible when each phase runs at once.
fn perform(core: &mut ModelCore, changes: UserChanges, reversed: bool) {
    for mut phase in [changes.first, changes.then] {
        if reversed {
            phase.reverse();
        }
        for op in &phase {
            core.perform(op)
                .unwrap_or_else(|error| panic!("{op:?}: {error}"));
        }
    }
}

#[test]
fn the_same_roster_needs_no_change() {
    let users = || vec![user("a", 1, &["vless", "trojan"]), user("b", 2, &["vless"])];
    assert!(replace_all(&roster(users()), &roster(users())).is_empty());
    let (changes, refused) = update(&roster(users()), listed(users()), true);
    assert!(changes.is_empty() && refused.is_ok());
}

#[test]
fn unknown_tags_and_unknown_users_are_passed_over() {
    let current = roster(vec![user("a", 1, &["vless"])]);
    let (changes, refused) = update(
        &current,
        listed(vec![user("ghost", 9, &[]), user("b", 2, &["elsewhere"])]),
        true,
    );
    assert!(changes.is_empty() && refused.is_ok());
}

#[test]
fn two_users_may_swap_their_secrets() {
    let current = roster(vec![user("a", 1, &["vless"]), user("b", 2, &["vless"])]);
    let swapped = || vec![user("a", 2, &["vless"]), user("b", 1, &["vless"])];
    let (changes, refused) = update(&current, listed(swapped()), true);
    refused.unwrap();
    let mut core = ModelCore::of(&current);
    perform(&mut core, changes, false);
    assert_eq!(core.doors(), ModelCore::of(&roster(swapped())).doors());
}

#[test]
fn a_secret_that_somebody_keeps_is_refused_by_name() {
    let current = roster(vec![
        user("keeper", 1, &["vless"]),
        user("b", 2, &["vless"]),
    ]);
    let (changes, refused) = update(
        &current,
        listed(vec![user("thief", 1, &["vless"]), user("c", 3, &["vless"])]),
        true,
    );
    assert!(changes.is_empty());
    let text = refused.unwrap_err().to_string();
    assert!(
        text.contains("user thief") && text.contains("same secret as user keeper"),
        "{text}"
    );
}

#[test]
fn who_is_cut_off_keeps_his_secret_from_others() {
    // c may not have a's secret, because a keeps it; so b, who came before him, may not have c's.
    let current = roster(vec![user("a", 1, &["vless"]), user("c", 3, &["vless"])]);
    let users = vec![user("b", 3, &["vless"]), user("c", 1, &["vless"])];
    let (changes, refused) = update(&current, listed(users), false);
    assert!(changes.is_empty(), "{changes:?}");
    let text = refused.unwrap_err().to_string();
    assert!(
        text.contains("user c:") && text.contains("user b:"),
        "{text}"
    );
}

#[test]
fn in_a_stream_it_is_the_second_one_who_is_refused_with_all_behind_him() {
    let current = roster(vec![]);
    let users = || {
        vec![
            user("first", 1, &["vless"]),
            user("second", 1, &["vless"]),
            user("late", 3, &["vless"]),
        ]
    };
    for _ in 0..20 {
        let (changes, refused) = update(&current, listed(users()), false);
        let served: Vec<&str> = changes.then.iter().map(|op| op.email().as_str()).collect();
        assert_eq!(served, ["first"]);
        assert!(refused.unwrap_err().to_string().starts_with("user second:"));
    }
}

#[test]
fn a_list_names_everybody_who_is_wrong_in_it() {
    let bad = |users| {
        Roster::new(inbounds().iter(), listed(users))
            .unwrap_err()
            .to_string()
    };
    let text = bad(vec![user("Bob", 1, &["vless"]), user("bob", 2, &["vless"])]);
    assert!(
        text.contains("user bob: the e-mail is in the list twice"),
        "{text}"
    );
    let text = bad(vec![user("a", 1, &["vless"]), user("b", 1, &["vless"])]);
    assert!(
        text.contains("user b: inbound \"vless\": he has the same secret as user a"),
        "{text}"
    );
    let mut bad_id = user("c", 1, &["vless"]);
    bad_id.credentials.vless = Some("not a uuid".into());
    let text = bad(vec![bad_id, user("", 2, &[]), user("a>>>b", 3, &[])]);
    assert!(
        text.contains("user c: inbound \"vless\": the vless id is not a UUID"),
        "{text}"
    );
    assert!(
        text.contains("email is required") && text.contains("user a>>>b"),
        "{text}"
    );
    assert!(!text.contains("not a uuid"), "{text}");
    let text = bad((0..50).map(|_| user("x", 1, &[])).collect());
    assert!(text.ends_with("and 39 more users"), "{text}");
}

#[test]
fn in_a_stream_the_users_before_the_refused_one_are_done() {
    let current = roster(vec![]);
    let mut bad = user("bad", 2, &["vless"]);
    bad.credentials.vless = Some("x".into());
    let users = vec![
        user("good", 1, &["vless"]),
        bad,
        user("late", 3, &["vless"]),
    ];
    let (changes, refused) = update(&current, listed(users), false);
    assert_eq!(
        changes
            .then
            .iter()
            .map(|op| op.email().as_str())
            .collect::<Vec<_>>(),
        ["good"]
    );
    assert!(refused.is_err());
}

#[test]
fn another_spelling_is_the_same_user_under_a_new_name() {
    let current = roster(vec![user("Bob", 1, &["vless"])]);
    let (changes, _) = update(&current, listed(vec![user("bob", 1, &["vless"])]), true);
    assert!(
        matches!(changes.then.as_slice(), [UserOp::Replace { old, email, .. }] if old.as_str() == "Bob" && email.as_str() == "bob")
    );
}

#[test]
fn who_may_or_may_not_be_there_is_settled_by_the_next_change() {
    let mut current = roster(vec![user("a", 1, &["vless"])]);
    current.put("vless", &Email::from("doubtful"), None);
    let (changes, _) = update(
        &current,
        listed(vec![user("doubtful", 5, &["vless"])]),
        true,
    );
    assert!(
        matches!(
            (changes.first.as_slice(), changes.then.as_slice()),
            ([UserOp::Remove { .. }], [UserOp::Add { .. }])
        ),
        "{changes:?}"
    );
    let changes = replace_all(&current, &roster(vec![user("a", 1, &["vless"])]));
    assert!(
        matches!(changes.first.as_slice(), [UserOp::Remove { .. }]),
        "{changes:?}"
    );
    assert_eq!(
        current.on(&inbounds()[0]).count(),
        1,
        "a core that is started anew does not get him"
    );
}

/// Up to eight users with secrets of their own, on some of the inbounds.
fn some_users() -> impl Strategy<Value = Vec<User>> {
    let on = prop::sample::select(vec![&["vless"][..], &["trojan"], &["vless", "trojan"], &[]]);
    let secrets = Just((0..10_u128).collect::<Vec<_>>()).prop_shuffle();
    (prop::collection::vec((0..8_usize, on), 0..8), secrets).prop_map(|(chosen, secrets)| {
        let mut users = BTreeMap::new();
        for (number, on) in chosen {
            let secret = secrets[users.len()] << 8;
            users
                .entry(number)
                .or_insert_with(|| user(&format!("u{number}"), secret, on));
        }
        users.into_values().collect()
    })
}

proptest! {
    #[test]
    fn any_roster_is_reached_from_any_other(before in some_users(), after in some_users(), reversed: bool) {
        let (before, after) = (roster(before), roster(after));
        let mut core = ModelCore::of(&before);
        perform(&mut core, replace_all(&before, &after), reversed);
        prop_assert_eq!(core.doors(), ModelCore::of(&after).doors());
        prop_assert_eq!(core.users, ModelCore::of(&after).users);
    }

    #[test]
    fn an_update_changes_the_listed_users_and_nobody_else(before in some_users(), change in some_users(), reversed: bool) {
        let before = roster(before);
        let emails: Vec<Email> = change.iter().map(|user| user.email.clone()).collect();
        let wanted: Vec<User> = change.clone();
        let (changes, refused) = update(&before, listed(change), true);
        let mut core = ModelCore::of(&before);
        let untouched = core.clone();
        perform(&mut core, changes, reversed);
        if refused.is_err() {
            prop_assert_eq!(core.users, untouched.users);
            return Ok(());
        }
        for user in &wanted {
            for inbound in inbounds() {
                let has = core.users.get(&(inbound.tag.to_string(), user.email.to_string()));
                let names_it = user.inbounds.iter().any(|tag| **tag == *inbound.tag);
                prop_assert_eq!(has.is_some(), names_it);
            }
        }
        for (key, account) in &untouched.users {
            if !emails.contains(&Email::from(key.1.as_str())) {
                prop_assert_eq!(core.users.get(key), Some(account));
            }
        }
        prop_assert_eq!(core.doors().len(), core.users.len(), "nobody lost his secret to another");
    }
}
