//! Words to systemd (`sd_notify(3)`). The socket for them stays in the environment, so that the program that
//! takes this one's place in the same process has it, too; cores do not get it.

use std::convert::Infallible;
use std::io;
use std::time::{Duration, Instant};

use sd_notify::NotifyState::{
    self, ExtendTimeoutUsec, Ready, Reloading, Status, Stopping, Watchdog,
};

/// How long systemd may take to hear a word. It never takes long, unless it hangs; and we don't with it.
const HEARS: Duration = Duration::from_secs(2);
/// How much time is asked for at once, and how often: of a daemon that hangs meanwhile, systemd loses its patience
/// after the former.
const MORE_TIME: Duration = Duration::from_secs(30);
const ASK_AGAIN: Duration = Duration::from_secs(10);
/// How long a start, or the work of a reload, may take in all: longer than the deadlines of what is waited for
/// in one of them, together.
const LONGEST: Duration = Duration::from_secs(600);
/// How long an end may take: all the deadlines of a stop, and some seconds.
const END: Duration = Duration::from_secs(45);

/// The service manager that has started this daemon; nobody, where none has.
#[derive(Clone, Copy, Debug)]
pub struct Manager {
    listens: bool,
    watchdog: Option<Duration>,
}

impl Manager {
    /// The one that the environment names.
    #[must_use]
    pub fn from_env() -> Self {
        let listens = std::env::var_os("NOTIFY_SOCKET").is_some();
        Self {
            listens,
            watchdog: sd_notify::watchdog_enabled().filter(|_| listens),
        }
    }

    /// How long it may hear nothing before it takes this daemon for hung; `None` for as long as it likes.
    #[must_use]
    pub fn watchdog(&self) -> Option<Duration> {
        self.watchdog
    }

    /// The ports listen and the node is built; or a reload has been made.
    pub async fn ready(self) {
        self.tell(|| send(&[Ready])).await;
    }

    /// What the daemon is doing, in a line.
    pub async fn status(self, line: String) {
        self.tell(move || send(&[Status(&line)])).await;
    }

    /// Something is read anew, or another program takes this one's place in the same process: `ready` follows.
    pub async fn reloading(self) {
        // With the moment: otherwise systemd could take an older "ready" for the one that follows.
        self.tell(|| send(&[Reloading, NotifyState::monotonic_usec_now()?]))
            .await;
    }

    /// It ends. This may take longer than systemd waits by itself.
    pub async fn stopping(self) {
        self.tell(|| send(&[Stopping, ExtendTimeoutUsec(micros(END))]))
            .await;
    }

    /// It is not hung.
    pub async fn alive(self) {
        self.tell(|| send(&[Watchdog])).await;
    }

    /// What `work` brings. systemd waits for it longer than it would by itself, though not for ever.
    pub async fn with_time<T>(self, work: impl Future<Output = T>) -> T {
        tokio::select! {
            biased;
            done = work => done,
            never = self.ask_for_time(None) => match never {},
        }
    }

    /// The same for a start. A program that has taken another one's place is watched from its first moment,
    /// when it has no driver yet.
    pub async fn with_time_to_start<T>(self, work: impl Future<Output = T>) -> T {
        tokio::select! {
            biased;
            done = work => done,
            never = self.ask_for_time(self.watchdog) => match never {},
        }
    }

    async fn ask_for_time(self, watched: Option<Duration>) -> Infallible {
        let pause = watched.map_or(ASK_AGAIN, |interval| ASK_AGAIN.min(interval / 2));
        let began = Instant::now();
        while self.listens && began.elapsed() < LONGEST {
            let more = ExtendTimeoutUsec(micros(MORE_TIME));
            self.tell(move || match watched {
                Some(_) => send(&[more, Watchdog]),
                None => send(&[more]),
            })
            .await;
            tokio::time::sleep(pause).await;
        }
        std::future::pending().await
    }

    /// A socket that nobody reads would hold up a thread, so it is not one of those that serve.
    async fn tell(self, word: impl FnOnce() -> io::Result<()> + Send + 'static) {
        if !self.listens {
            return;
        }
        let told = tokio::time::timeout(HEARS, tokio::task::spawn_blocking(word)).await;
        let failure = match told {
            Ok(Ok(Ok(()))) => return,
            Ok(Ok(Err(error))) => error.to_string(),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "it does not listen".to_owned(),
        };
        tracing::warn!(failure, "systemd is not told how this daemon is");
    }
}

fn send(words: &[NotifyState<'_>]) -> io::Result<()> {
    sd_notify::notify(words)
}

fn micros(span: Duration) -> u32 {
    u32::try_from(span.as_micros()).unwrap_or(u32::MAX)
}
