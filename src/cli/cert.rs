//! `raynode cert`: the certificate that panels trust.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::daemon::Daemon;
use super::failure::Failure;
use super::output::{Form, day, say, say_facts, say_json};
use crate::proto::raynode::v1::{
    Certificate, GetCertificateRequest, ImportCertificateRequest, RenewCertificateRequest,
};
use crate::settings::subject_names;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// What the certificate says.
    Show {
        #[command(flatten)]
        form: Form,
    },
    /// Make another self-signed one. Panels have to be given it; the old one is kept beside it.
    Renew {
        /// More names and addresses, beside this machine's own, those of `CERT_SAN` and those of the one of before.
        #[arg(long = "name", value_parser = some_names)]
        names: Vec<String>,
        /// Also where somebody else signed the one that is there.
        #[arg(long)]
        replace: bool,
        /// Without the names of the one of before.
        #[arg(long)]
        only: bool,
        #[command(flatten)]
        form: Form,
    },
    /// Use this certificate and its key. Connections live on; the old pair is kept beside it.
    Import {
        /// The certificate, then those that signed it, PEM.
        certificate: PathBuf,
        /// Its key, PEM, without passphrase.
        key: PathBuf,
        #[command(flatten)]
        form: Form,
    },
}

pub(super) async fn run(runtime_dir: &Path, arguments: Arguments) -> Result<ExitCode, Failure> {
    let mut operator = Daemon::find(runtime_dir).await?.operator();
    let (certificate, form) = match arguments.command {
        Command::Show { form } => {
            let request = GetCertificateRequest {};
            (operator.get_certificate(request).await?, form)
        }
        Command::Renew {
            names,
            replace,
            only,
            form,
        } => {
            let request = RenewCertificateRequest {
                names,
                replace,
                only,
            };
            (operator.renew_certificate(request).await?, form)
        }
        Command::Import {
            certificate,
            key,
            form,
        } => {
            let request = ImportCertificateRequest {
                certificate: read(&certificate)?,
                key: read(&key)?,
            };
            (operator.import_certificate(request).await?, form)
        }
    };
    let certificate = certificate.into_inner();
    if form.json {
        say_json("Certificate", &certificate)?;
    } else {
        show(&certificate)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn some_names(text: &str) -> Result<String, String> {
    match subject_names(text) {
        Some(names) if !names.is_empty() => Ok(text.to_owned()),
        _ => Err("not a host name or an address, such as node.example or 192.0.2.1".to_owned()),
    }
}

fn read(path: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(path).map_err(Failure::of(path.display()))
}

fn show(certificate: &Certificate) -> Result<(), Failure> {
    let signed_by = if certificate.self_signed {
        "itself".to_owned()
    } else {
        certificate.issuer.clone()
    };
    say(&certificate.path)?;
    say_facts(&[
        ("SHA-256", certificate.fingerprint.clone()),
        ("for", certificate.names.join(", ")),
        ("signed by", signed_by),
        (
            "holds",
            format!("{} to {}", day(certificate.begins), day(certificate.ends)),
        ),
    ])?;
    say(format!("\n{}", certificate.pem.trim_end()))
}
