use super::*;
use crate::xray::install::testing::geo;
use crate::xray::install::testing::server::{Reply, Server};

struct Node {
    state: tempfile::TempDir,
    files: GeoFiles,
    mirror: Server,
}

impl Node {
    async fn new() -> Self {
        let state = tempfile::tempdir().unwrap();
        Self {
            files: GeoFiles::new(state.path()),
            state,
            mirror: Server::start().await,
        }
    }

    /// The mirror has files with these codes in a folder.
    fn release(&self, folder: &str, codes: &[&str]) {
        for (name, bytes) in [
            ("geoip.dat", geo::ip(codes)),
            ("geosite.dat", geo::site(codes)),
        ] {
            let path = format!("{folder}/{name}");
            let line = format!("{}  ./publish/{name}\n", digest(&bytes));
            self.mirror.on(&path, Reply::ok(&bytes));
            self.mirror
                .on(&format!("{path}.sha256sum"), Reply::ok(line.as_bytes()));
        }
    }

    fn source(&self, path: &str, region: Region) -> GeoSource {
        let url = self.mirror.url(path);
        GeoSource::Mirror { url, region }
    }

    async fn stage(&self, source: &GeoSource) -> Result<StagedGeo, Error> {
        self.files.stage(source, &Reporter::silent()).await
    }

    async fn install(&self, source: &GeoSource) -> String {
        let kept = self.stage(source).await.unwrap().keep().unwrap();
        kept.switch().unwrap().1.now
    }

    async fn refused(&self, source: &GeoSource) -> Error {
        let before = self.names();
        let refused = self.stage(source).await.unwrap_err();
        assert_eq!(self.names(), before, "{refused}");
        refused
    }

    fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.state.path().join("assets")).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.filter(|name| name != "lock").collect();
        names.sort();
        names
    }

    fn used(&self) -> [Vec<u8>; 2] {
        let folder = self.files.shelf().current().unwrap();
        FILES.map(|name| std::fs::read(folder.join(name)).unwrap())
    }
}

fn digest(bytes: &[u8]) -> Digest {
    let mut hasher = Hasher::new();
    hasher.take(bytes);
    hasher.finish()
}

#[test]
fn the_regions_are_those_of_the_panel() {
    for name in ["iran", "russia", "china"] {
        let region: Region = name.parse().unwrap();
        assert_eq!(region.to_string(), name);
        assert!(region.releases().starts_with("https://"));
    }
    for name in ["", "Iran", "mars"] {
        assert!(matches!(name.parse::<Region>(), Err(Error::NotARegion(_))));
    }
}

#[tokio::test]
async fn both_files_come_and_go_together() {
    let node = Node::new().await;
    node.release("/iran", &["IR"]);
    node.release("/russia", &["RU", "PRIVATE"]);
    let iran = node.source("/{region}/", Region::Iran);
    let first = node.install(&iran).await;
    assert!(first.starts_with("iran-"), "{first}");
    assert_eq!(node.used(), [geo::ip(&["IR"]), geo::site(&["IR"])]);

    let russia = node.source("/{region}", Region::Russia);
    let second = node.install(&russia).await;
    let russian = [geo::ip(&["RU", "PRIVATE"]), geo::site(&["RU", "PRIVATE"])];
    assert_eq!(node.used(), russian);
    let list = node.files.shelf().list().unwrap();
    let told = list
        .iter()
        .map(|one| (&*one.name, &*one.version, one.in_use, one.previous));
    let mut told: Vec<_> = told.collect();
    told.sort_unstable();
    assert_eq!(
        told,
        [
            (&*first, "iran", false, true),
            (&*second, "russia", true, false)
        ]
    );
    let bytes = russian.iter().map(|file| file.len() as u64).sum::<u64>();
    assert!(list.iter().any(|one| one.bytes == bytes));

    assert_eq!(
        node.files.shelf().turn().unwrap().rollback().unwrap().now,
        first
    );
    assert_eq!(node.used(), [geo::ip(&["IR"]), geo::site(&["IR"])]);
    // The very same are there once.
    assert_eq!(node.install(&russia).await, second);
    assert_eq!(node.names(), ["current", &first, "previous", &second]);
}

#[tokio::test]
async fn without_its_digest_no_file_is_taken() {
    let node = Node::new().await;
    node.release("", &["CN"]);
    let china = node.source("", Region::China);
    let installed = node.install(&china).await;

    node.release("", &["CN", "NEW"]);
    node.mirror
        .on("/geosite.dat", Reply::ok(&geo::site(&["EVIL"])));
    let refused = node.refused(&china).await;
    assert!(matches!(&refused, Error::Mismatch { file, .. } if file == "geosite.dat"));
    node.mirror.on("/geosite.dat.sha256sum", Reply::status(404));
    let refused = node.refused(&china).await;
    assert!(matches!(refused, Error::NoDigest { .. }), "{refused}");

    let html = b"<!DOCTYPE html>";
    node.mirror.on("/geosite.dat", Reply::ok(html));
    let line = digest(html).to_string();
    node.mirror
        .on("/geosite.dat.sha256sum", Reply::ok(line.as_bytes()));
    let refused = node.refused(&china).await;
    assert!(matches!(refused, Error::NotGeo { .. }), "{refused}");

    let all = geo::ip(&["CN", "NEW"]);
    let cut = Reply::with_length(all.len()).and(&all[..5]);
    node.mirror.on("/geoip.dat", cut);
    let refused = node.refused(&china).await;
    assert!(matches!(refused, Error::Cut { .. }), "{refused}");
    assert_eq!(node.names(), [&installed, "current"]);
    assert_eq!(node.used(), [geo::ip(&["CN"]), geo::site(&["CN"])]);
}

#[tokio::test]
async fn a_folder_of_this_machine_needs_digests_or_trust() {
    let node = Node::new().await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_owned();
    std::fs::write(path.join("geoip.dat"), geo::ip(&["IR"])).unwrap();
    std::fs::write(path.join("geosite.dat"), geo::site(&["IR"])).unwrap();
    let of = |trusted| GeoSource::Folder {
        path: path.clone(),
        trusted,
    };
    drop(node.stage(&of(true)).await.unwrap());
    let refused = node.refused(&of(false)).await.to_string();
    assert!(refused.contains("geoip.dat.sha256sum"), "{refused}");
    for (name, bytes) in [
        ("geoip.dat", geo::ip(&["IR"])),
        ("geosite.dat", geo::site(&["IR"])),
    ] {
        let line = format!("{}  {name}\n", digest(&bytes));
        std::fs::write(path.join(format!("{name}.sha256sum")), line).unwrap();
    }
    assert!(node.install(&of(false)).await.starts_with("local-"));
    std::fs::remove_file(path.join("geosite.dat")).unwrap();
    let refused = node.refused(&of(true)).await;
    assert!(matches!(refused, Error::Disk { .. }), "{refused}");
}

#[tokio::test]
async fn one_installs_at_a_time_and_beside_a_core() {
    let node = Node::new().await;
    node.release("/iran", &["IR"]);
    let iran = node.source("/{region}", Region::Iran);
    let staged = node.stage(&iran).await.unwrap();
    let refused = node.stage(&iran).await.unwrap_err();
    assert!(matches!(refused, Error::Busy { .. }), "{refused}");
    let cores = crate::xray::install::Cores::new(node.state.path());
    drop(cores.shelf().turn().unwrap());
    drop(staged);
    node.stage(&iran).await.unwrap();
}

/// What is taken for geo files here, a real core reads.
#[tokio::test]
async fn a_real_core_reads_them() {
    let Some(xray) = std::env::var_os("XRAY_EXECUTABLE_PATH") else {
        eprintln!("XRAY_EXECUTABLE_PATH is not set: no real core reads geo files");
        return;
    };
    let node = Node::new().await;
    node.release("/iran", &["IR"]);
    let staged = node
        .stage(&node.source("/iran", Region::Iran))
        .await
        .unwrap();
    for (code, reads) in [("ir", true), ("nowhere", false)] {
        let config = format!(
            r#"{{
                "outbounds": [{{ "tag": "out", "protocol": "freedom" }}],
                "routing": {{ "rules": [
                    {{ "outboundTag": "out", "ip": ["geoip:{code}"] }},
                    {{ "outboundTag": "out", "domain": ["geosite:{code}"] }}
                ] }}
            }}"#
        );
        let tried = crate::xray::tool::Tool::new(Path::new(&xray))
            .args(["run", "-test"])
            .env("XRAY_LOCATION_ASSET", staged.folder())
            .run(config.as_bytes());
        assert_eq!(tried.await.unwrap().status.success(), reads, "{code}");
    }
}
