//! A server of releases, as far as files go: what is asked for, by its path.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io::{Cursor, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use http::{Request, Response, StatusCode};
use http_body_util::StreamBody;
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use sha2::{Digest, Sha256};
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use zip::write::SimpleFileOptions;

pub struct Releases {
    address: SocketAddr,
    files: Files,
    goes_on: Arc<Notify>,
    _task: JoinSet<()>,
}

type Files = Arc<Mutex<HashMap<String, Served>>>;

#[derive(Clone)]
struct Served {
    body: Bytes,
    /// After so many bytes nothing comes until this says so, and the connection stays.
    stalls: Option<(usize, Arc<Notify>)>,
}

impl Releases {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let files = Files::default();
        let shelf = Arc::clone(&files);
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut clients = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let shelf = Arc::clone(&shelf);
                clients.spawn(async move {
                    let answer = service_fn(move |request: Request<Incoming>| {
                        let found = shelf.lock().unwrap().get(request.uri().path()).cloned();
                        async move { Ok::<_, Infallible>(respond(found)) }
                    });
                    let server = hyper::server::conn::http1::Builder::new();
                    drop(server.serve_connection(TokioIo::new(stream), answer).await);
                });
            }
        });
        Self {
            address,
            files,
            goes_on: Arc::default(),
            _task: task,
        }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn put(&self, path: &str, body: impl Into<Bytes>) {
        let served = Served {
            body: body.into(),
            stalls: None,
        };
        self.files.lock().unwrap().insert(path.to_owned(), served);
    }

    /// From now on only so much of it comes, and the rest when it goes on.
    pub fn stall(&self, path: &str, after: usize) {
        let mut files = self.files.lock().unwrap();
        files.get_mut(path).unwrap().stalls = Some((after, Arc::clone(&self.goes_on)));
    }

    /// The one who waits for the rest gets it.
    pub fn go_on(&self) {
        self.goes_on.notify_one();
    }

    /// A release of Xray with its digests, under its version and as the latest one.
    pub fn put_release(&self, version: &str, archive: &[u8]) {
        for folder in [
            format!("/download/v{version}"),
            "/latest/download".to_owned(),
        ] {
            let path = format!("{folder}/{ARCHIVE}");
            self.put(
                &format!("{path}.dgst"),
                format!("SHA2-256= {}\n", sha256(archive)),
            );
            self.put(&path, archive.to_vec());
        }
    }
}

fn respond(found: Option<Served>) -> Response<StreamBody<Pieces>> {
    let Some(Served { body, stalls }) = found else {
        let mut missing = Response::new(StreamBody::new(pieces(Bytes::new(), None)));
        *missing.status_mut() = StatusCode::NOT_FOUND;
        return missing;
    };
    let length = body.len();
    Response::builder()
        .header("content-length", length)
        .body(StreamBody::new(pieces(body, stalls)))
        .unwrap()
}

type Pieces = futures_util::stream::BoxStream<'static, Result<Frame<Bytes>, Infallible>>;

fn pieces(mut body: Bytes, stalls: Option<(usize, Arc<Notify>)>) -> Pieces {
    let after = stalls.as_ref().map_or(body.len(), |(after, _)| *after);
    let first = body.split_to(after.min(body.len()));
    let rest = futures_util::stream::once(async move {
        if let Some((_, goes_on)) = stalls {
            drop(tokio::time::timeout(Duration::from_secs(60), goes_on.notified()).await);
        }
        Ok(Frame::data(body))
    });
    let first = futures_util::stream::once(async move { Ok(Frame::data(first)) });
    first.chain(rest).boxed()
}

/// What a release for this machine is called.
pub const ARCHIVE: &str = if cfg!(target_arch = "aarch64") {
    "Xray-linux-arm64-v8a.zip"
} else {
    "Xray-linux-64.zip"
};

/// An archive with this core in it; with `more` bytes behind it, which nobody looks at.
pub fn archive(core: &Path, more: &[u8]) -> Vec<u8> {
    let mut content = std::fs::read(core).unwrap();
    content.extend(more);
    archive_of("xray", &content)
}

pub fn archive_of(name: &str, content: &[u8]) -> Vec<u8> {
    let mut writer = zip::ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    writer.start_file(name, options).unwrap();
    writer.write_all(content).unwrap();
    writer.finish().unwrap().into_inner()
}

pub fn sha256(content: &[u8]) -> String {
    let digest = Sha256::digest(content);
    let pairs: Vec<String> = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    pairs.concat()
}
