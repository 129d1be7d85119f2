//! Somebody who looks at a node's metrics.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{eventually, ports};

/// What Prometheus says that it takes.
pub const OPENMETRICS: &str =
    "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2,*/*;q=0.1";

/// Where a node shows its metrics.
#[derive(Clone, Copy)]
pub struct Scrape(pub u16);

pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

/// A page in the older format.
pub struct Page(pub String);

impl Scrape {
    /// A port of its own for one node; the setting that names it.
    pub fn reserve() -> (Self, String) {
        let port = ports::free();
        (Self(port), port.to_string())
    }

    /// Says this and hears what comes back until the end.
    pub async fn say(self, request: &str) -> std::io::Result<Answer> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.0)).await?;
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
        Ok(Answer {
            status: status.unwrap_or(0),
            head: head.to_ascii_lowercase(),
            body: body.to_owned(),
        })
    }

    pub async fn ask(self, method: &str, path: &str, accept: &str) -> std::io::Result<Answer> {
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\nAccept: {accept}\r\n\r\n"
        );
        self.say(&request).await
    }

    pub async fn page(self) -> Page {
        // A daemon that makes way says nothing to whom it had let in.
        let there = || async {
            let answer = self.ask("GET", "/metrics", "*/*").await.ok()?;
            (answer.status == 200).then_some(answer)
        };
        let answer = eventually("metrics are served", there).await;
        Page(answer.body)
    }

    /// Looks until a count is this one.
    pub async fn until(self, name: &str, wanted: i64) {
        self.until_it(name, |count| count == wanted).await;
    }

    pub async fn until_it(self, name: &str, is_good: impl Fn(i64) -> bool) {
        eventually(name, || async {
            let page = self.page().await;
            let count = page.get(name)?.parse().unwrap();
            is_good(count).then_some(())
        })
        .await;
    }
}

impl Page {
    /// What is behind this name, with its labels as they are written.
    pub fn get(&self, name: &str) -> Option<&str> {
        let mut lines = self.0.lines();
        lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))
    }

    /// A whole number.
    pub fn count(&self, name: &str) -> i64 {
        self.text(name).parse().unwrap()
    }

    /// Any number.
    pub fn value(&self, name: &str) -> f64 {
        self.text(name).parse().unwrap()
    }

    fn text(&self, name: &str) -> &str {
        let found = self.get(name);
        found.unwrap_or_else(|| panic!("no {name} in\n{}", self.0))
    }

    /// All whole numbers that begin so, together.
    pub fn sum(&self, beginning: &str) -> i64 {
        let lines = self.0.lines().filter(|line| line.starts_with(beginning));
        lines
            .map(|line| line.rsplit(' ').next().unwrap().parse::<i64>().unwrap())
            .sum()
    }
}
