//! Back to the core that served before, while it still can.

use std::sync::Arc;
use std::time::Instant;

use super::Driver;
use crate::node::applied::Former;
use crate::node::apply::change_users;
use crate::node::handover::GivenBack;
use crate::node::phase::Phase;
use crate::node::plan;
use crate::node::user::Email;

impl Driver {
    /// The core that served before serves again, where the one that followed it died at once: nobody but
    /// those who were with that one is cut.
    pub(super) async fn return_to_the_old_core(&mut self, how: &str) -> bool {
        let Some(before) = self.beside.before.take() else {
            return false;
        };
        let mut drains = self.beside.drains.iter();
        let Some(place) = drains.position(|drain| drain.source.epoch == before.core) else {
            return false;
        };
        let drain = self.beside.drains.remove(place);
        let Some(GivenBack { core: old, gone }) = drain.give_back().await else {
            self.beside.drains.insert(place, drain);
            self.endurance.replaced(before.former, before.ran);
            return false;
        };
        tracing::error!(
            how,
            pid = old.pid(),
            "the new core died at once, the one before serves again"
        );
        let Phase::Serving {
            core: dead,
            applied: failed,
        } = std::mem::replace(&mut self.phase, Phase::Idle)
        else {
            return false;
        };
        self.setbacks
            .note(Arc::clone(&failed.skeleton), how.to_owned(), Instant::now());
        if let Err(error) = old.show_sockets() {
            tracing::warn!(%error, "a unix socket of an inbound leads nowhere");
        }
        let Former { mut applied, parts } = before.former;
        // The next one is not to die as the new one did.
        if let Some(parts) = parts {
            let files = self.launcher.parts().with_files_of(&parts);
            self.launcher.set_parts_if_others(&files);
        }
        let mut wanted = applied.roster.clone();
        wanted.take_over(&failed.roster);
        // They were being taken from it when that was cut off.
        for email in &gone {
            applied.roster.doubt(&Email::from(email.as_str()));
        }
        // In this order: a daemon that dies in between is followed by one that finds this core.
        let keep_alive = self.keep_alive;
        tokio::task::block_in_place(|| self.last_good.save(old.id(), &applied, keep_alive));
        self.launcher.write_record(old.record());
        self.beside.journal.serving = None;
        self.write_journal().await;
        dead.stop().await;
        let changes = plan::replace_all(&applied.roster, &wanted);
        let made = change_users(old.client(), &mut applied, &mut self.last_good, changes).await;
        if let Err(error) = made {
            tracing::error!(%error, "not all users of the core are as they should be; the panel's next list puts that right");
        }
        self.serve(old, applied).await;
        self.history.end(
            "the new core died at once",
            format!("the one before serves again ({how})"),
            None,
        );
        true
    }
}
