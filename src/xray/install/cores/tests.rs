use std::time::Duration;

use super::*;
use crate::xray::install::testing::server::{Reply, Server};
use crate::xray::install::testing::{archive, program};

struct Node {
    state: tempfile::TempDir,
    cores: Cores,
    mirror: Server,
}

impl Node {
    async fn new() -> Self {
        let state = tempfile::tempdir().unwrap();
        let mut cores = Cores::new(state.path());
        cores.patience.stall = Duration::from_secs(10);
        Self {
            cores,
            state,
            mirror: Server::start().await,
        }
    }

    /// The mirror has a release; returns its archive.
    fn release(&self, folder: &str, core: &[u8]) -> Vec<u8> {
        let bytes = archive::of(&[("README.md", b"read me"), ("xray", core)]);
        let path = format!("/{folder}/{}", archive_name());
        self.mirror.on(&path, Reply::ok(&bytes));
        let digests = format!("MD5= 1\nSHA2-256= {}\nSHA2-512= 2\n", digest(&bytes));
        self.mirror
            .on(&format!("{path}.dgst"), Reply::ok(digests.as_bytes()));
        bytes
    }

    /// And one of that version, by its usual name.
    fn version(&self, version: &str) -> Vec<u8> {
        self.release(&format!("download/v{version}"), &program::xray(version))
    }

    fn releases(&self, sha256: Option<Digest>) -> Source {
        let url = self.mirror.url("");
        Source::Releases { url, sha256 }
    }

    async fn stage(&self, wanted: &str) -> Result<Staged, Error> {
        self.stage_from(&self.releases(None), wanted).await
    }

    async fn stage_from(&self, source: &Source, wanted: &str) -> Result<Staged, Error> {
        let wanted = wanted.parse().unwrap();
        self.cores.stage(source, &wanted, &Reporter::silent()).await
    }

    async fn install(&self, wanted: &str) -> String {
        let kept = self.stage(wanted).await.unwrap().keep().unwrap();
        kept.switch().unwrap().1.now
    }

    /// The reason, and that nothing has come of it.
    async fn refused(&self, source: &Source, wanted: &str) -> Error {
        let before = self.names();
        let refused = self.stage_from(source, wanted).await.unwrap_err();
        assert_eq!(self.names(), before, "{refused}");
        refused
    }

    fn names(&self) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.state.path().join("cores")) else {
            return Vec::new();
        };
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.filter(|name| name != "lock").collect();
        names.sort();
        names
    }
}

fn digest(bytes: &[u8]) -> Digest {
    let mut hasher = crate::xray::install::digest::Hasher::new();
    hasher.take(bytes);
    hasher.finish()
}

fn archive_name() -> &'static str {
    Architecture::here().unwrap().archive()
}

#[tokio::test]
async fn a_release_is_installed_and_used() {
    let node = Node::new().await;
    assert_eq!(node.cores.binary(), None);
    let archive = node.version("26.3.27");
    let (report, mut seen) = Reporter::new();
    let wanted = "v26.3.27".parse().unwrap();
    let staged = node
        .cores
        .stage(&node.releases(None), &wanted, &report)
        .await
        .unwrap();
    assert_eq!(seen.borrow_and_update().unwrap().step, Step::Try);
    assert_eq!(staged.version(), Version::new(26, 3, 27));
    let asked = probe::version(&staged.binary(), Duration::from_secs(10)).await;
    assert_eq!(asked.unwrap(), staged.version());
    assert_eq!(node.cores.shelf().list().unwrap(), []);

    let kept = staged.keep().unwrap();
    assert_eq!((kept.name(), node.cores.binary()), ("26.3.27", None));
    kept.switch().unwrap();
    let binary = node.cores.binary().unwrap();
    assert_eq!(binary, node.state.path().join("cores/current/xray"));
    let asked = probe::version(&binary, Duration::from_secs(10)).await;
    assert_eq!(asked.unwrap(), Version::new(26, 3, 27));
    assert_eq!(node.names(), ["26.3.27", "current"]);

    let list = node.cores.shelf().list().unwrap();
    assert_eq!((&*list[0].version, list[0].in_use), ("26.3.27", true));
    let from = node
        .mirror
        .url(&format!("/download/v26.3.27/{}", archive_name()));
    assert_eq!(list[0].source, from);
    let record = std::fs::read_to_string(node.state.path().join("cores/26.3.27/core.json"));
    let record: serde_json::Value = serde_json::from_str(&record.unwrap()).unwrap();
    assert_eq!(record["archive_sha256"], digest(&archive).to_string());
    let core = digest(&program::xray("26.3.27")).to_string();
    assert_eq!(record["sha256"]["xray"], core);
}

#[tokio::test]
async fn the_latest_is_whatever_it_says_it_is() {
    let node = Node::new().await;
    node.release("latest/download", &program::xray("26.10.10"));
    assert_eq!(node.install("latest").await, "26.10.10");
}

#[tokio::test]
async fn an_archive_that_was_exchanged_is_refused() {
    let node = Node::new().await;
    node.version("26.3.27");
    assert_eq!(node.install("26.3.27").await, "26.3.27");

    let good = digest(&node.version("26.4.1"));
    let evil = archive::of(&[("xray", &program::built("26.4.1", "evil"))]);
    let path = format!("/download/v26.4.1/{}", archive_name());
    node.mirror.on(&path, Reply::ok(&evil));
    for known in [None, Some(good)] {
        let refused = node
            .refused(&node.releases(known), "26.4.1")
            .await
            .to_string();
        for part in [
            &good.to_string(),
            &digest(&evil).to_string(),
            archive_name(),
        ] {
            assert!(refused.contains(part), "{refused}");
        }
        assert!(refused.contains("nothing was changed"), "{refused}");
    }
    assert_eq!(node.names(), ["26.3.27", "current"]);
}

#[tokio::test]
async fn without_a_digest_nothing_even_comes() {
    let node = Node::new().await;
    let archive = node.version("26.3.27");
    let path = format!("/download/v26.3.27/{}", archive_name());
    let beside = format!("{path}.dgst");
    node.mirror.on(&beside, Reply::status(404));
    let refused = node.refused(&node.releases(None), "26.3.27").await;
    assert!(matches!(refused, Error::NoDigest { .. }), "{refused}");
    assert!(refused.to_string().contains(".dgst"), "{refused}");
    assert_eq!(node.mirror.asked(), [beside]);

    // Who knows it needs none.
    let known = node.releases(Some(digest(&archive)));
    node.stage_from(&known, "26.3.27").await.unwrap();
    assert_eq!(node.mirror.asked().last().unwrap(), &path);
    assert_eq!(node.mirror.asked().len(), 2);
}

#[tokio::test]
async fn a_cut_archive_leaves_nothing() {
    let node = Node::new().await;
    let archive = node.version("26.3.27");
    let path = format!("/download/v26.3.27/{}", archive_name());
    let cut = Reply::with_length(archive.len()).and(&archive[..archive.len() / 2]);
    node.mirror.on(&path, cut);
    let refused = node.refused(&node.releases(None), "26.3.27").await;
    assert!(matches!(refused, Error::Cut { .. }), "{refused}");
}

#[tokio::test]
async fn what_is_not_the_wanted_core_is_refused() {
    let node = Node::new().await;
    let releases = node.releases(None);
    let foreign = [program::header(9999, true, true), vec![0; 1000]].concat();
    let cores: [(Vec<u8>, &str); 5] = [
        (program::xray("25.6.8"), "holds Xray 25.6.8 and not 26.3.27"),
        (
            program::printing("V2Ray 5.1.0\n", 0),
            "does not print what Xray prints",
        ),
        (
            b"#!/bin/sh\necho 'Xray 26.3.27 (Xray)'\n".to_vec(),
            "not a program for Linux",
        ),
        (foreign, "this machine needs that of"),
        (program::xray("26.3.27")[..80].to_vec(), "does not work"),
    ];
    for (core, reason) in cores {
        node.release("download/v26.3.27", &core);
        let refused = node.refused(&releases, "26.3.27").await.to_string();
        assert!(refused.contains(reason), "{refused}");
    }
    let empty = archive::of(&[("../xray", &program::xray("26.3.27"))]);
    let known = node.releases(Some(digest(&empty)));
    let path = format!("/download/v26.3.27/{}", archive_name());
    node.mirror.on(&path, Reply::ok(&empty));
    let refused = node.refused(&known, "26.3.27").await;
    assert!(matches!(refused, Error::NoCore), "{refused}");
    let missing = node.refused(&known, "26.3.99").await;
    assert!(
        matches!(missing, Error::Status { status: 404, .. }),
        "{missing}"
    );
}

#[tokio::test]
async fn plain_http_of_others_is_not_even_asked() {
    let node = Node::new().await;
    let elsewhere = Source::Releases {
        url: "http://mirror.example/xray".to_owned(),
        sha256: None,
    };
    let refused = node.refused(&elsewhere, "26.3.27").await;
    assert!(matches!(refused, Error::Plain(_)), "{refused}");
}

#[tokio::test]
async fn an_archive_of_this_machine_needs_a_proof() {
    let node = Node::new().await;
    let bytes = archive::of(&[("xray", &program::xray("26.3.27"))]);
    let path = node.state.path().join("core.zip");
    std::fs::write(&path, &bytes).unwrap();
    let file = |proof| Source::File {
        path: path.clone(),
        name: "core.zip".to_owned(),
        proof,
    };
    let refused = node
        .refused(&file(Proof::Beside), "latest")
        .await
        .to_string();
    assert!(refused.contains("core.zip.dgst"), "{refused}");
    let other = Proof::Sha256(digest(b"other"));
    let refused = node.refused(&file(other), "latest").await;
    assert!(matches!(refused, Error::Mismatch { .. }), "{refused}");
    assert!(refused.to_string().starts_with("core.zip"), "{refused}");

    std::fs::write(node.state.path().join("core.zip.dgst"), "Not Found").unwrap();
    let refused = node.refused(&file(Proof::Beside), "latest").await;
    assert!(matches!(refused, Error::NoDigest { .. }), "{refused}");
    let text = format!("SHA2-256= {}\n", digest(&bytes));
    std::fs::write(node.state.path().join("core.zip.dgst"), text).unwrap();
    for proof in [Proof::Beside, Proof::Sha256(digest(&bytes)), Proof::Trusted] {
        let staged = node.stage_from(&file(proof), "latest").await.unwrap();
        assert_eq!(staged.version(), Version::new(26, 3, 27));
    }
    let refused = node.refused(&file(Proof::Trusted), "26.4.1").await;
    assert!(matches!(refused, Error::OtherVersion { .. }), "{refused}");

    let kept = node
        .stage_from(&file(Proof::Trusted), "26.3.27")
        .await
        .unwrap()
        .keep();
    kept.unwrap().switch().unwrap();
    let list = node.cores.shelf().list().unwrap();
    assert_eq!(list[0].source, "core.zip");
}

#[tokio::test]
async fn what_is_no_file_is_not_read() {
    let node = Node::new().await;
    for path in ["/dev/zero", "/nowhere/core.zip", "/tmp"] {
        let source = Source::File {
            path: path.into(),
            name: path.to_owned(),
            proof: Proof::Trusted,
        };
        let refused = node.refused(&source, "latest").await;
        assert!(matches!(refused, Error::Disk { .. }), "{refused}");
    }
}

#[tokio::test]
async fn the_same_core_is_there_once_and_another_build_beside_it() {
    let node = Node::new().await;
    node.version("26.3.27");
    assert_eq!(node.install("26.3.27").await, "26.3.27");
    assert_eq!(node.install("26.3.27").await, "26.3.27");
    assert_eq!(node.names(), ["26.3.27", "current"]);

    node.release("download/v26.3.27", &program::built("26.3.27", "rebuilt"));
    let kept = node.stage("26.3.27").await.unwrap().keep().unwrap();
    assert_eq!((kept.name(), kept.reused()), ("26.3.27-2", false));
    let used = std::fs::read(node.cores.binary().unwrap()).unwrap();
    assert_eq!(used, program::xray("26.3.27"));
    kept.switch().unwrap();
    let used = std::fs::read(node.cores.binary().unwrap()).unwrap();
    assert_eq!(used, program::built("26.3.27", "rebuilt"));
    assert_eq!(
        node.cores.shelf().turn().unwrap().rollback().unwrap().now,
        "26.3.27"
    );
}

#[tokio::test]
async fn what_is_given_up_is_gone_and_the_next_one_may_come() {
    let node = Node::new().await;
    node.version("26.3.27");
    let staged = node.stage("26.3.27").await.unwrap();
    let second = node.stage("26.3.27").await.unwrap_err();
    assert!(
        matches!(second, Error::Busy { by: Some(_), .. }),
        "{second}"
    );
    drop(staged);
    assert_eq!(node.names(), [""; 0]);

    // Given up in the middle of a download.
    let path = format!("/download/v26.3.27/{}", archive_name());
    node.mirror
        .on(&path, Reply::with_length(1000).and(b"x").then_silence());
    let before = node.mirror.asked().len();
    let coming = async {
        while node.mirror.asked().len() < before + 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        staged = node.stage("26.3.27") => panic!("{staged:?}"),
        () = coming => {}
    }
    assert_eq!(node.mirror.asked().last().unwrap(), &path);
    assert_eq!(node.names(), [""; 0]);
    node.version("26.3.27");
    assert_eq!(node.install("26.3.27").await, "26.3.27");
}

#[tokio::test]
async fn a_core_that_hangs_is_refused() {
    let mut node = Node::new().await;
    node.cores.patience.answer = Duration::from_millis(300);
    node.release("download/v26.3.27", &program::hanging());
    let refused = node.refused(&node.releases(None), "26.3.27").await;
    let text = refused.to_string();
    assert!(text.contains("did not end within 0.3 s"), "{text}");
}

/// The real core: it is unpacked, runs, and takes the configuration that it is tried with.
#[tokio::test]
async fn a_real_core_is_installed() {
    let Some(xray) = std::env::var_os("XRAY_EXECUTABLE_PATH") else {
        eprintln!("XRAY_EXECUTABLE_PATH is not set: no real core is installed");
        return;
    };
    let node = Node::new().await;
    let path = node.state.path().join("core.zip");
    let core = std::fs::read(xray).unwrap();
    std::fs::write(&path, archive::stored(&[("xray", &core)])).unwrap();
    let source = Source::File {
        path,
        name: "core.zip".to_owned(),
        proof: Proof::Trusted,
    };
    let staged = node.stage_from(&source, "latest").await.unwrap();
    let config = r#"{ "outbounds": [{ "protocol": "freedom" }] }"#;
    let tried = crate::xray::tool::Tool::new(&staged.binary());
    let tried = tried
        .args(["run", "-test"])
        .run(config.as_bytes())
        .await
        .unwrap();
    assert!(tried.status.success(), "{tried:?}");
    let name = staged.version().to_string();
    assert_eq!(staged.keep().unwrap().switch().unwrap().1.now, name);
    let installed = std::fs::read(node.cores.binary().unwrap()).unwrap();
    assert!(installed == core);
}
