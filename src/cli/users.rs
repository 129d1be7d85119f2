//! `raynode users`: who may connect, from where somebody is connected, and what he used.

use std::path::Path;
use std::process::ExitCode;

use super::daemon::Daemon;
use super::failure::Failure;
use super::output::{Form, bytes, counted, say, say_facts, say_json, seconds, table};
use crate::proto::raynode::v1::{ListUsersRequest, Traffic, UserEntry};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Everybody who may connect. With --json a line of JSON for each.
    List {
        /// Only those who are online.
        #[arg(long)]
        online: bool,
        #[command(flatten)]
        form: Form,
    },
    /// One of them: inbounds, addresses, usage.
    Show {
        /// His e-mail, as the panel names him.
        email: String,
        #[command(flatten)]
        form: Form,
    },
}

pub(super) async fn run(runtime_dir: &Path, arguments: &Arguments) -> Result<ExitCode, Failure> {
    let daemon = Daemon::find(runtime_dir).await?;
    match &arguments.command {
        Command::List { online, form } => {
            let request = ListUsersRequest {
                online: *online,
                ..ListUsersRequest::default()
            };
            list(&daemon, request, *form).await
        }
        Command::Show { email, form } => show(&daemon, email, *form).await,
    }
}

async fn list(daemon: &Daemon, request: ListUsersRequest, form: Form) -> Result<ExitCode, Failure> {
    let mut users = daemon.operator().list_users(request).await?.into_inner();
    let mut shown = table(&["USER", "INBOUNDS", ">ONLINE", ">UP", ">DOWN", ">PENDING"]);
    let mut count = 0;
    while let Some(user) = users.message().await? {
        count += 1;
        if form.json {
            say_json("UserEntry", &user)?;
            continue;
        }
        let lifetime = user.lifetime.unwrap_or_default();
        shown.add_row([
            user.email.clone(),
            user.inbounds.join(" "),
            online(&user),
            bytes(lifetime.uplink),
            bytes(lifetime.downlink),
            bytes(sum(user.pending)),
        ]);
    }
    if !form.json && count > 0 {
        say(shown.trim_fmt())?;
    }
    if !form.json {
        say(counted(count, "user"))?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn show(daemon: &Daemon, email: &str, form: Form) -> Result<ExitCode, Failure> {
    let request = ListUsersRequest {
        email: email.to_owned(),
        online: false,
    };
    let mut users = daemon.operator().list_users(request).await?.into_inner();
    let Some(user) = users.message().await? else {
        return Err(Failure::Other(format!(
            "{email:?} may not connect: no panel named such a user"
        )));
    };
    if form.json {
        say_json("UserEntry", &user)?;
        return Ok(ExitCode::SUCCESS);
    }
    let both = |traffic: Option<Traffic>| {
        let traffic = traffic.unwrap_or_default();
        format!(
            "{} up, {} down",
            bytes(traffic.uplink),
            bytes(traffic.downlink)
        )
    };
    say(&user.email)?;
    let mut facts = vec![
        ("inbounds", user.inbounds.join(", ")),
        ("used", both(user.lifetime)),
        (
            "pending",
            format!("{} of that no panel has yet", both(user.pending)),
        ),
    ];
    for address in &user.addresses {
        let since = std::time::SystemTime::now()
            .duration_since(std::time::SystemTime::UNIX_EPOCH)
            .map_or(0, |now| now.as_secs())
            .saturating_sub(u64::try_from(address.since).unwrap_or_default());
        facts.push(("online", format!("{} for {}", address.ip, seconds(since))));
    }
    if user.addresses.is_empty() {
        facts.push(("online", online_at_all(&user).to_owned()));
    }
    say_facts(&facts)?;
    Ok(ExitCode::SUCCESS)
}

fn online_at_all(user: &UserEntry) -> &'static str {
    if user.online { "yes" } else { "no" }
}

fn online(user: &UserEntry) -> String {
    match user.addresses.len() {
        0 if user.online => "yes".to_owned(),
        0 => String::new(),
        1 => "1 address".to_owned(),
        count => format!("{count} addresses"),
    }
}

fn sum(traffic: Option<Traffic>) -> u64 {
    let traffic = traffic.unwrap_or_default();
    traffic.uplink.saturating_add(traffic.downlink)
}
