//! What a node served last, for who looks at its folders while no daemon runs.

use std::path::Path;
use std::sync::Arc;

use super::Error;
use super::last_good::LastGood;
use super::plan::Desired;
use crate::xray::core::Launcher;
use crate::xray::parts::Parts;

/// What was served last.
#[derive(Debug)]
pub struct ServedLast(Desired);

impl ServedLast {
    /// Reads it; `None` where nothing was served, or nobody can read it.
    #[must_use]
    pub fn read(state_dir: &Path, runtime_dir: &Path) -> Option<Self> {
        let restored = LastGood::new(state_dir, runtime_dir).load(None)?;
        Some(Self(Desired {
            skeleton: Arc::clone(&restored.applied.skeleton),
            roster: restored.applied.roster,
        }))
    }

    /// Whether a core of these parts would run it.
    ///
    /// # Errors
    /// With the core's own words.
    pub async fn would_run(&self, launcher: &Launcher, parts: &Parts) -> Result<(), Error> {
        let Desired { skeleton, roster } = &self.0;
        launcher.check_parts(parts, skeleton, roster).await?;
        Ok(())
    }
}
