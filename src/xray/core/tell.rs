//! What a running core is told by its own binary, `xray api`: the encoding of a rule or an inbound differs
//! between versions of Xray, and the binary knows its own.

use std::path::PathBuf;
use std::process::Output;
use std::time::Duration;

use serde_json::Value;

use super::{Core, Launcher};
use crate::xray::client::Error;
use crate::xray::tool::Tool;

/// How long the core gets to answer, in seconds.
const ANSWER_S: &str = "8";
/// How long the whole translation may take; reading geo files is most of it.
const DEADLINE: Duration = Duration::from_secs(12);

/// Where a core can be told something.
#[derive(Clone, Debug)]
pub struct Address {
    pid: i32,
    socket: PathBuf,
    binary: PathBuf,
}

impl Core {
    /// Where it can be told something, also by somebody who does not have it.
    #[must_use]
    pub fn address(&self) -> Address {
        Address {
            pid: self.pid(),
            socket: self.files.socket.clone(),
            binary: self.record.binary.clone(),
        }
    }
}

impl Launcher {
    /// Makes the core do what a command of `xray api` makes of `input`.
    pub(super) async fn tell(
        &self,
        core: &Core,
        command: &str,
        flags: &[&str],
        input: &Value,
    ) -> Result<(), Error> {
        let address = core.address();
        tokio::select! {
            biased;
            _ = core.process.ended() => Err(Error::NoAnswer("the core has ended".to_owned())),
            told = self.tell_at(&address, command, flags, input) => told,
        }
    }

    pub(super) async fn tell_at(
        &self,
        core: &Address,
        command: &str,
        flags: &[&str],
        input: &Value,
    ) -> Result<(), Error> {
        let input = input.to_string();
        let tool = Tool::new(&core.binary())
            .args(["api", command])
            .arg(format!("--server=unix:{}", core.socket.display()))
            .arg(format!("--timeout={ANSWER_S}"))
            .args(flags)
            .arg("stdin:")
            .env("XRAY_LOCATION_ASSET", &self.parts().assets)
            .run(input.as_bytes());
        match tokio::time::timeout(DEADLINE, tool).await {
            Err(_) => Err(Error::NoAnswer(format!(
                "nothing within {} s",
                DEADLINE.as_secs()
            ))),
            Ok(Err(error)) => Err(Error::Refused(format!("xray does not run: {error}"))),
            Ok(Ok(output)) if output.status.success() => Ok(()),
            Ok(Ok(output)) => Err(failure(&output)),
        }
    }
}

impl Address {
    /// The file that the core was started from: the one on disk may be another version by now.
    fn binary(&self) -> PathBuf {
        let running = PathBuf::from(format!("/proc/{}/exe", self.pid));
        // A core with capabilities of its own does not show it.
        if std::fs::metadata(&running).is_ok() {
            running
        } else {
            self.binary.clone()
        }
    }
}

/// The codes of calls that were not answered.
const NO_ANSWER: [&str; 3] = ["Unavailable", "DeadlineExceeded", "Canceled"];

/// The last line that the command printed, without what gRPC wraps around the core's words.
fn failure(output: &Output) -> Error {
    let text = String::from_utf8_lossy(&output.stderr);
    let line = text.lines().rev().find(|line| !line.trim().is_empty());
    let line = line.map_or_else(|| output.status.to_string(), str::to_owned);
    let asked = ["failed to perform AddRule: ", "failed to dial "];
    let Some(answer) = asked.iter().find_map(|prefix| line.strip_prefix(prefix)) else {
        return Error::Refused(line);
    };
    match answer.split_once("desc = ") {
        Some((code, words)) if code.contains("Unimplemented") => {
            Error::Unsupported(words.to_owned())
        }
        Some((code, words)) if !NO_ANSWER.iter().any(|silent| code.contains(silent)) => {
            Error::Refused(words.to_owned())
        }
        _ => Error::NoAnswer(line),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;

    use super::*;

    fn said(stderr: &str) -> Error {
        failure(&Output {
            status: ExitStatus::from_raw(1 << 8),
            stdout: Vec::new(),
            stderr: stderr.as_bytes().to_vec(),
        })
    }

    #[test]
    fn the_core_s_own_words_are_told_from_those_around_them() {
        let refused = said(
            "failed to perform AddRule: rpc error: code = Unknown desc = app/router: duplicate ruleTag a\n",
        );
        assert!(
            matches!(&refused, Error::Refused(text) if text == "app/router: duplicate ruleTag a"),
            "{refused:?}"
        );
        let built = said("failed to build conf: infra/conf: neither outboundTag nor balancerTag\n");
        assert!(
            matches!(&built, Error::Refused(text) if text.contains("neither")),
            "{built:?}"
        );
        let too_large = said(
            "failed to perform AddRule: rpc error: code = ResourceExhausted desc = grpc: received message larger than max (5 vs. 4)",
        );
        assert!(matches!(too_large, Error::Refused(_)), "it did answer");
        for silent in [
            "failed to perform AddRule: rpc error: code = DeadlineExceeded desc = context deadline exceeded",
            "failed to dial unix:/x",
        ] {
            assert!(matches!(said(silent), Error::NoAnswer(_)), "{silent}");
        }
        assert!(matches!(said(""), Error::Refused(text) if text.contains("exit status")));
    }
}
