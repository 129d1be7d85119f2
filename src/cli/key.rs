//! `raynode key`: the keys that open the node to panels.

use std::path::Path;
use std::process::ExitCode;

use super::daemon::Daemon;
use super::failure::Failure;
use super::output::{Form, say, say_json};
use crate::proto::raynode::v1::{AddKeyRequest, ListKeysRequest, RevokeKeyRequest};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// One more key, shown once. It opens the node at once.
    Add {
        /// What the log calls it: letters, digits, dots, dashes, underscores.
        name: String,
        #[command(flatten)]
        form: Form,
    },
    /// The names of the keys that there are; `API_KEY` is the node's own.
    List {
        #[command(flatten)]
        form: Form,
    },
    /// This key opens the node no more. `API_KEY` is replaced by another one, which is shown.
    Revoke {
        /// Its name.
        name: String,
        #[command(flatten)]
        form: Form,
    },
}

pub(super) async fn run(runtime_dir: &Path, arguments: Arguments) -> Result<ExitCode, Failure> {
    let mut operator = Daemon::find(runtime_dir).await?.operator();
    match arguments.command {
        Command::Add { name, form } => {
            let added = operator.add_key(AddKeyRequest { name }).await?.into_inner();
            if form.json {
                say_json("AddKeyResponse", &added)?;
            } else {
                say(added.key)?;
            }
        }
        Command::List { form } => {
            let keys = operator.list_keys(ListKeysRequest {}).await?.into_inner();
            if form.json {
                say_json("ListKeysResponse", &keys)?;
            } else {
                say(keys.names.join("\n"))?;
            }
        }
        Command::Revoke { name, form } => {
            let request = RevokeKeyRequest { name: name.clone() };
            let revoked = operator.revoke_key(request).await?.into_inner();
            if form.json {
                say_json("RevokeKeyResponse", &revoked)?;
            } else if revoked.key.is_empty() {
                say(format!("{name} opens the node no more"))?;
            } else {
                say(revoked.key)?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
