use std::time::Instant;

use super::*;
use crate::xray::install::testing::server::{Reply, Server};
use crate::xray::install::{Progress, Reporter, Step};

const LIMIT: u64 = 100_000;

fn patience() -> Patience {
    Patience {
        connect: Duration::from_secs(10),
        stall: Duration::from_secs(10),
        whole: Duration::from_secs(20),
        ..Patience::default()
    }
}

/// Gets `/file` of a server into a folder of its own.
struct Getting {
    server: Server,
    folder: tempfile::TempDir,
    patience: Patience,
}

impl Getting {
    async fn of(reply: Reply) -> Self {
        let server = Server::start().await;
        server.on("/file", reply);
        Self {
            server,
            folder: tempfile::tempdir().unwrap(),
            patience: patience(),
        }
    }

    async fn get(&self) -> Result<Vec<u8>, Error> {
        self.get_reporting(&Reporter::silent()).await
    }

    async fn get_reporting(&self, report: &Reporter) -> Result<Vec<u8>, Error> {
        let url = self.server.url("/file");
        let fetcher = Fetcher::new(&url, false, self.patience).await?;
        let path = self.folder.path().join("file");
        let progress = Progress::of(Step::Download, "file");
        let into = Receiving::create(&path, progress, report).await?;
        let digest = fetcher.file(&url, LIMIT, into).await?;
        assert_eq!(Digest::of_file(&path).unwrap(), digest);
        Ok(std::fs::read(&path).unwrap())
    }

    async fn refused(&self) -> Error {
        self.get().await.unwrap_err()
    }
}

#[tokio::test]
async fn a_file_comes_whole_and_says_how_far_it_is() {
    let body: Vec<u8> = (0..90_000_u32).map(|at| at.to_le_bytes()[0]).collect();
    let (report, mut seen) = Reporter::new();
    let getting = Getting::of(Reply::ok(&body)).await;
    assert_eq!(getting.get_reporting(&report).await.unwrap(), body);
    let last = seen.borrow_and_update().unwrap();
    assert_eq!((last.step, last.file), (Step::Download, "file"));
    assert_eq!((last.done, last.total), (90_000, Some(90_000)));
}

#[tokio::test]
async fn a_body_in_chunks_has_no_length_and_an_end() {
    let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n";
    let whole = Getting::of(Reply::raw(chunked).and(b"0\r\n\r\n")).await;
    assert_eq!(whole.get().await.unwrap(), b"hello");

    let refused = Getting::of(Reply::raw(chunked)).await.refused().await;
    assert!(
        matches!(
            refused,
            Error::Cut {
                got: 5,
                of: None,
                ..
            }
        ),
        "{refused}"
    );
}

#[tokio::test]
async fn a_body_that_is_cut_is_no_file() {
    let cut = Getting::of(Reply::with_length(1000).and(b"the beginning")).await;
    let refused = cut.refused().await;
    assert!(matches!(
        refused,
        Error::Cut {
            got: 13,
            of: Some(1000),
            ..
        }
    ));
    let text = refused.to_string();
    assert!(
        text.contains("cut after 13 bytes of 1000") && text.contains("try again"),
        "{text}"
    );
}

#[tokio::test]
async fn silence_has_an_end() {
    for reply in [
        Reply::raw(""),
        Reply::raw("HTTP/1.1 200"),
        Reply::with_length(1000),
        Reply::with_length(1000).and(b"the beginning"),
    ] {
        let mut silent = Getting::of(reply.then_silence()).await;
        silent.patience.connect = Duration::from_millis(500);
        silent.patience.stall = Duration::from_millis(100);
        let begin = Instant::now();
        let refused = silent.refused().await;
        assert!(matches!(refused, Error::Stalled { .. }), "{refused}");
        assert!(begin.elapsed() < Duration::from_secs(8));
    }
}

#[tokio::test]
async fn a_whole_file_has_a_deadline() {
    let mut slow = Getting::of(Reply::with_length(1000).and(b"b").then_silence()).await;
    slow.patience.whole = Duration::from_millis(200);
    let refused = slow.refused().await;
    assert!(matches!(refused, Error::Late { .. }), "{refused}");
}

#[tokio::test]
async fn what_is_too_large_is_not_fetched() {
    let announced = Getting::of(Reply::with_length(100_001).then_silence()).await;
    assert!(matches!(
        announced.refused().await,
        Error::TooLarge { limit: LIMIT, .. }
    ));

    let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    let chunk = [b"8000\r\n".to_vec(), vec![0; 0x8000], b"\r\n".to_vec()].concat();
    let endless = Reply::raw(head).and(&chunk.repeat(4)).then_silence();
    let refused = Getting::of(endless).await.refused().await;
    assert!(matches!(refused, Error::TooLarge { .. }), "{refused}");
}

#[tokio::test]
async fn a_server_may_lead_elsewhere_but_not_for_ever() {
    let getting = Getting::of(Reply::redirect("/second")).await;
    let third = getting.server.url("/third?signed=secret");
    getting.server.on("/second", Reply::redirect(&third));
    getting
        .server
        .on("/third?signed=secret", Reply::ok(b"found"));
    assert_eq!(getting.get().await.unwrap(), b"found");

    let looping = Getting::of(Reply::redirect("/file")).await;
    let refused = looping.refused().await;
    assert!(matches!(refused, Error::Redirects(_)), "{refused}");
    assert_eq!(looping.server.asked().len(), MAX_REDIRECTS + 1);

    let nowhere = Getting::of(Reply::redirect("ftp://127.0.0.1/file")).await;
    assert!(matches!(nowhere.refused().await, Error::Url { .. }));
}

#[tokio::test]
async fn a_server_that_refuses_is_named() {
    for status in [404, 403, 500, 204, 304] {
        let refused = Getting::of(Reply::status(status)).await.refused().await;
        assert!(matches!(refused, Error::Status { status: said, .. } if said == status));
    }
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/file", free.local_addr().unwrap());
    drop(free);
    let fetcher = Fetcher::new(&url, false, patience()).await.unwrap();
    let refused = fetcher.digest_beside(&url, ".dgst").await.unwrap_err();
    assert!(matches!(refused, Error::Unreachable { .. }), "{refused}");
    assert!(refused.to_string().contains("refused"), "{refused}");
}

#[tokio::test]
async fn the_digest_is_beside_the_file() {
    const A: &str = "23cd9af937744d97776ee35ecad4972cf4b2109d1e0fe6be9930467608f7c8ae";

    let server = Server::start().await;
    let url = server.url("/a/file.zip");
    let fetcher = Fetcher::new(&url, false, patience()).await.unwrap();
    let text = format!("MD5= 1\nSHA2-256= {A}\n");
    server.on("/a/file.zip.dgst", Reply::ok(text.as_bytes()));
    let digest = fetcher.digest_beside(&url, ".dgst").await.unwrap();
    assert_eq!(digest.to_string(), A);

    for (reply, reason) in [
        (Reply::status(404), "the server answers 404"),
        (Reply::ok(b"SHA1= 1"), "no SHA-256 of file.zip"),
        (
            Reply::ok(format!("{A}  other.zip").as_bytes()),
            "no SHA-256 of file.zip",
        ),
    ] {
        server.on("/a/file.zip.dgst", reply);
        let refused = fetcher.digest_beside(&url, ".dgst").await.unwrap_err();
        assert!(matches!(refused, Error::NoDigest { .. }), "{refused}");
        assert!(refused.to_string().contains(reason), "{refused}");
    }
    let long = vec![b' '; 1 + usize::try_from(MAX_DIGESTS).unwrap()];
    server.on("/a/file.zip.dgst", Reply::ok(&long));
    let refused = fetcher.digest_beside(&url, ".dgst").await.unwrap_err();
    assert!(matches!(refused, Error::TooLarge { .. }), "{refused}");
}

#[tokio::test]
async fn over_tls_the_server_is_believed_for_its_certificate_alone() {
    let (server, roots) = Server::start_tls().await;
    server.on("/file.sha256sum", Reply::ok([b'0'; 64].as_slice()));
    let url = server.url("/file");
    let base = parse(&url).unwrap();
    let trusting = Fetcher::with_roots(&base, false, patience(), roots).unwrap();
    trusting.digest_beside(&url, ".sha256sum").await.unwrap();

    // The machine's own authorities know nothing of it.
    let wary = Fetcher::new(&url, false, patience()).await;
    let refused = match wary {
        Ok(wary) => wary.digest_beside(&url, ".sha256sum").await.unwrap_err(),
        Err(error) => error,
    };
    let unbelieved =
        matches!(&refused, Error::Unreachable { reason, .. } if reason.contains("UnknownIssuer"));
    assert!(
        unbelieved || matches!(refused, Error::NoAuthorities),
        "{refused}"
    );

    let nobody = Fetcher::with_roots(&base, false, patience(), RootCertStore::empty());
    assert!(matches!(nobody, Err(Error::NoAuthorities)));
}

#[tokio::test]
async fn nobody_is_led_from_https_to_http() {
    let plain = Server::start().await;
    plain.on("/file.sha256sum", Reply::ok([b'0'; 64].as_slice()));
    let (server, roots) = Server::start_tls().await;
    let to = plain
        .url("/file.sha256sum")
        .replace("127.0.0.1", "mirror.example");
    server.on("/file.sha256sum", Reply::redirect(&to));
    let base = parse(&server.url("/")).unwrap();
    let fetcher = Fetcher::with_roots(&base, false, patience(), roots).unwrap();
    let refused = fetcher
        .digest_beside(&server.url("/file"), ".sha256sum")
        .await;
    assert!(matches!(refused, Err(Error::Plain(_))), "{refused:?}");
    assert_eq!(plain.asked(), [""; 0]);
}
