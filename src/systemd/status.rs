//! The line that `systemctl status` shows. Everybody on the machine may read it, so it names no user and
//! repeats nothing that the core says.

use std::time::Duration;

use super::Manager;
use crate::node::{Absent, Because, Node, Serves, Standing};
use crate::shutdown::{How, Shutdown};

/// How often is looked whether there is an Xray by now: nobody tells of that.
const LOOK: Duration = Duration::from_secs(10);

/// Tells systemd that the node is ready, and what it is doing whenever that changes; returns when it ends
/// and systemd knows.
pub async fn report(manager: Manager, node: Node, shutdown: Shutdown) {
    manager.status(line(&node.standing())).await;
    manager.ready().await;
    tokio::select! {
        biased;
        () = shutdown.begun() => {}
        () = follow(manager, node) => shutdown.begun().await,
    }
    let how = shutdown.how();
    manager.status(end(how).to_owned()).await;
    match how {
        How::Stop | How::Detach => manager.stopping().await,
        How::Exec => manager.reloading().await,
    }
}

async fn follow(manager: Manager, mut node: Node) {
    let mut told = line(&node.standing());
    loop {
        tokio::select! {
            changed = node.changed() => if !changed {
                return;
            },
            () = tokio::time::sleep(LOOK) => {}
        }
        let now = line(&node.standing());
        if now != told {
            manager.status(now.clone()).await;
            told = now;
        }
    }
}

fn line(standing: &Standing) -> String {
    let core = match &standing.core {
        Ok(Serves { version, pid }) => format!("Xray {version} serves (pid {pid})"),
        Err(Absent::Unwanted(Some(version))) => format!("no core runs; Xray {version} is there"),
        Err(Absent::Unwanted(None)) => {
            "no core runs, and there is no Xray that could be started".to_owned()
        }
        Err(Absent::Comes(because, _)) => comes(*because).to_owned(),
        Err(Absent::GaveUp(_)) => {
            "the core failed too often and stays down until a panel starts the node; the log says why"
                .to_owned()
        }
    };
    let control = if standing.controlled {
        "a panel has control"
    } else {
        "no panel has control"
    };
    let draining = standing.draining.iter();
    let draining = draining.map(|pid| format!("an older core drains (pid {pid})"));
    let parts: Vec<String> = std::iter::once(core)
        .chain(draining)
        .chain([control.to_owned()])
        .collect();
    parts.join("; ")
}

fn comes(because: Because) -> &'static str {
    match because {
        Because::Asked => "the core is being started",
        Because::ServedLast => "the core is being started, with what was served last",
        Because::Ended => "the core ended unasked and is started again; the log says why",
        Because::NotStarted => "the core can't be started and is tried again; the log says why",
    }
}

fn end(how: How) -> &'static str {
    match how {
        How::Stop => "stopping, and the core with it",
        How::Detach => "making way for the next daemon; the core serves on",
        How::Exec => "making way for the binary on disk; the core serves on",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xray::version::Version;

    #[test]
    fn the_line_says_what_an_operator_looks_for() {
        let version = Version::new(26, 3, 27);
        let mut standing = Standing {
            core: Ok(Serves { version, pid: 12 }),
            lingers_until: None,
            draining: Vec::new(),
            controlled: true,
        };
        assert_eq!(
            line(&standing),
            "Xray 26.3.27 serves (pid 12); a panel has control"
        );
        standing.draining = vec![10, 11];
        standing.controlled = false;
        assert_eq!(
            line(&standing),
            "Xray 26.3.27 serves (pid 12); an older core drains (pid 10); an older core drains (pid 11); no panel has control"
        );
        standing.draining.clear();
        for (absent, said) in [
            (Absent::Unwanted(Some(version)), "Xray 26.3.27 is there"),
            (Absent::Unwanted(None), "no Xray that could be started"),
            (
                Absent::GaveUp("its own words".into()),
                "stays down until a panel starts the node",
            ),
            (Absent::Comes(Because::Asked, None), "being started"),
            (
                Absent::Comes(Because::ServedLast, None),
                "what was served last",
            ),
            (Absent::Comes(Because::Ended, None), "ended unasked"),
            (Absent::Comes(Because::NotStarted, None), "can't be started"),
        ] {
            standing.core = Err(absent);
            let line = line(&standing);
            assert!(line.contains(said), "{line}");
            assert!(!line.contains('\n') && line.len() < 120, "{line}");
        }
    }
}
