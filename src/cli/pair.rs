//! `raynode pair`: what a panel asks for when the node is added to it.

use std::path::Path;
use std::process::ExitCode;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use qrcode::QrCode;
use qrcode::render::unicode::Dense1x2;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::daemon::Daemon;
use super::failure::Failure;
use super::output::{Form, say, say_json};
use crate::proto::raynode::v1::{GetPairingRequest, GetPairingResponse};
use crate::settings::subject_names;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Print one string with all of it, certificate included.
    #[arg(long, conflicts_with = "qr")]
    string: bool,
    /// Print a QR code of address, port, key and the certificate's SHA-256.
    #[arg(long)]
    qr: bool,
    /// Print the certificate alone, PEM.
    #[arg(long, conflicts_with_all = ["qr", "string"])]
    certificate: bool,
    /// The address by which the panel reaches this server, where the node does not know it.
    #[arg(long, value_parser = a_host)]
    address: Option<String>,
    #[command(flatten)]
    form: Form,
}

/// One name or address, as it can stand in a certificate and in a URL.
fn a_host(text: &str) -> Result<String, String> {
    match subject_names(text).as_deref() {
        Some([name]) if !text.contains(',') => Ok(name.clone()),
        _ => Err("not a host name or an address, such as node.example or 192.0.2.1".to_owned()),
    }
}

pub(super) async fn run(runtime_dir: &Path, arguments: Arguments) -> Result<ExitCode, Failure> {
    let daemon = Daemon::find(runtime_dir).await?;
    let pairing = daemon.operator().get_pairing(GetPairingRequest {}).await?;
    let mut pairing = pairing.into_inner();
    if let Some(address) = arguments.address {
        pairing.address = address;
    }
    if arguments.form.json {
        say_json("GetPairingResponse", &pairing)?;
    } else if arguments.string {
        say(string(&pairing, true)?)?;
    } else if arguments.certificate {
        say(pairing.certificate.trim_end())?;
    } else if arguments.qr {
        let code = QrCode::new(string(&pairing, false)?)
            .map_err(|error| Failure::Other(format!("no QR code can be made of it: {error}")))?;
        // Dark on light, whatever the terminal's own colours are.
        let drawn = code
            .render::<Dense1x2>()
            .dark_color(Dense1x2::Light)
            .light_color(Dense1x2::Dark)
            .build();
        say(drawn)?;
    } else {
        say(describe(&pairing))?;
        warn_of_the_address(&pairing)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What the panel's form asks for, as text.
pub(super) fn describe(pairing: &GetPairingResponse) -> String {
    let api_port = match pairing.api_port {
        0 => "none (API_PORT=0)".to_owned(),
        port => port.to_string(),
    };
    format!(
        "\nAdd this node to your panel:\n\n  \
         address      {}\n  \
         port         {}\n  \
         API port     {api_port}\n  \
         connection   {}\n  \
         API key      {}\n  \
         SHA-256      {}\n\n{}",
        pairing.address,
        pairing.port,
        pairing.connection,
        pairing.api_key,
        pairing.fingerprint,
        pairing.certificate,
    )
}

/// Panels refuse a certificate that does not name what they connect to.
fn warn_of_the_address(pairing: &GetPairingResponse) -> Result<(), Failure> {
    if pairing.names.contains(&pairing.address) {
        return Ok(());
    }
    say(format!(
        "\nThe certificate does not name {0}: run `raynode cert renew --name {0}`, and give the panel the new one.",
        pairing.address
    ))
}

/// All of it as a URL: `raynode://ADDRESS:PORT?key=KEY&sha256=HEX&api=PORT&cert=DER`, the certificate in base64 for
/// URLs.
fn string(pairing: &GetPairingResponse, with_certificate: bool) -> Result<String, Failure> {
    let host = match pairing.address.parse() {
        Ok(std::net::IpAddr::V6(address)) => format!("[{address}]"),
        _ => pairing.address.clone(),
    };
    let sha256 = pairing.fingerprint.replace(':', "").to_lowercase();
    let connection = pairing.connection.replace(" or ", "+");
    let mut url = format!(
        "raynode://{host}:{}?key={}&sha256={sha256}&api={}&via={connection}",
        pairing.port, pairing.api_key, pairing.api_port
    );
    if with_certificate {
        let der = CertificateDer::from_pem_slice(pairing.certificate.as_bytes())
            .map_err(|error| Failure::Other(format!("the certificate can't be read: {error}")))?;
        url.push_str("&cert=");
        url.push_str(&URL_SAFE_NO_PAD.encode(der));
    }
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_one_name_or_address() {
        for text in ["", " ", ",", "a b&x=1", "a/b", "a,b", "a,", "DNS:"] {
            assert!(a_host(text).is_err(), "{text:?}");
        }
        for text in ["node.example", "192.0.2.1", "2001:db8::1"] {
            assert_eq!(a_host(text).unwrap(), text);
        }
    }

    #[test]
    fn one_string_has_all_of_it() {
        let pairing = GetPairingResponse {
            address: "2001:db8::1".to_owned(),
            port: 62050,
            api_port: 62051,
            connection: "grpc or rest".to_owned(),
            api_key: "7c1f4a0e-0000-4000-8000-000000000000".to_owned(),
            certificate: "-----BEGIN CERTIFICATE-----\n////\n-----END CERTIFICATE-----\n"
                .to_owned(),
            fingerprint: "AB:CD".to_owned(),
            names: Vec::new(),
        };
        assert_eq!(
            string(&pairing, true).unwrap(),
            "raynode://[2001:db8::1]:62050?key=7c1f4a0e-0000-4000-8000-000000000000&sha256=abcd&api=62051&via=grpc+rest&cert=____"
        );
        assert!(!string(&pairing, false).unwrap().contains("cert="));
    }
}
