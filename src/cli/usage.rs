//! `raynode usage`: what was used, and what of it the panel does not have yet.

use std::path::Path;
use std::process::ExitCode;

use super::daemon::Daemon;
use super::failure::Failure;
use super::output::{Form, bytes, say, say_json, table};
use crate::proto::raynode::v1::{Kind, ListUsageRequest};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Of users, inbounds or outbounds only.
    #[arg(long, value_enum)]
    of: Option<Of>,
    /// Only what no panel has collected yet.
    #[arg(long)]
    pending: bool,
    #[command(flatten)]
    form: Form,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Of {
    Users,
    Inbounds,
    Outbounds,
}

pub(super) async fn run(runtime_dir: &Path, arguments: &Arguments) -> Result<ExitCode, Failure> {
    let daemon = Daemon::find(runtime_dir).await?;
    let kind = match arguments.of {
        None => Kind::Unspecified,
        Some(Of::Users) => Kind::User,
        Some(Of::Inbounds) => Kind::Inbound,
        Some(Of::Outbounds) => Kind::Outbound,
    };
    let request = ListUsageRequest { kind: kind.into() };
    let mut totals = daemon.operator().list_usage(request).await?.into_inner();
    let mut shown = table(&["OF", "NAME", ">UP", ">DOWN", ">PENDING UP", ">PENDING DOWN"]);
    let mut is_anything = false;
    while let Some(total) = totals.message().await? {
        let pending = total.pending.unwrap_or_default();
        if arguments.pending && pending.uplink == 0 && pending.downlink == 0 {
            continue;
        }
        is_anything = true;
        if arguments.form.json {
            say_json("UsageTotal", &total)?;
            continue;
        }
        let lifetime = total.lifetime.unwrap_or_default();
        let of = match total.kind() {
            Kind::User => "user",
            Kind::Inbound => "inbound",
            Kind::Outbound => "outbound",
            Kind::Unspecified => "",
        };
        shown.add_row([
            of.to_owned(),
            total.name.clone(),
            bytes(lifetime.uplink),
            bytes(lifetime.downlink),
            bytes(pending.uplink),
            bytes(pending.downlink),
        ]);
    }
    if !arguments.form.json {
        say(if is_anything {
            shown.trim_fmt()
        } else {
            "nothing was used yet".to_owned()
        })?;
    }
    Ok(ExitCode::SUCCESS)
}
