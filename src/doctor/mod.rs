//! What is wrong with a node, what that means, and what mends it. Works with the daemon down.
//!
//! [`symptoms`] is the catalogue, of which `docs/troubleshooting.md` is made; each of the other modules looks at one
//! part of the node and finds what it finds.

mod core;
mod daemon;
mod folders;
mod identity;
mod machine;
mod network;
pub mod symptoms;
mod written;

use self::symptoms::Symptom;
use crate::settings::{Mistakes, Settings};

pub use self::daemon::{Found, Running};
pub use self::written::{Changed, Written, written_since};

/// How bad something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// It works, and something could be better or will soon be worse.
    Warn,
    /// Something does not work.
    Fail,
}

impl Verdict {
    /// Its name, as it is printed.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// One line of what was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What was looked at.
    pub about: &'static str,
    /// What was found there.
    pub found: String,
    /// What that is a case of; `None` where all is well.
    pub symptom: Option<&'static Symptom>,
    /// The command that mends it; empty where all is well.
    pub mend: String,
}

impl Finding {
    fn well(about: &'static str, found: impl Into<String>) -> Self {
        Self {
            about,
            found: found.into(),
            symptom: None,
            mend: String::new(),
        }
    }

    /// With `{}` in the command standing for `place`.
    fn ill(symptom: &'static Symptom, found: impl Into<String>, place: &str) -> Self {
        Self {
            about: symptom.about,
            found: found.into(),
            symptom: Some(symptom),
            mend: symptom.mend.replace("{}", place),
        }
    }

    /// How bad it is.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        self.symptom.map_or(Verdict::Ok, |symptom| symptom.verdict)
    }
}

/// Looks at everything. Where the settings are wrong, at what needs none.
pub async fn examine(settings: Result<Settings, Mistakes>, found: Found) -> Vec<Finding> {
    let mut findings = Vec::new();
    let running = found.running();
    match settings {
        Err(mistakes) => findings.extend(
            mistakes
                .0
                .iter()
                .map(|mistake| Finding::ill(&symptoms::SETTING_IS_WRONG, mistake.to_string(), "")),
        ),
        Ok(settings) => {
            findings.extend(written::look(running));
            findings.extend(daemon::look(&settings, &found));
            findings.extend(folders::look(&settings, running));
            findings.extend(identity::look(&settings, running));
            findings.extend(network::look(&settings, &found).await);
            findings.extend(core::look(&settings, running).await);
        }
    }
    findings.extend(machine::look(running).await);
    findings
}
