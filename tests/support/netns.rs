//! A network of its own for a client, so that packets can be lost on its way.

use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

/// A network namespace with one link to this one; both are gone with it.
pub struct Netns {
    name: String,
    link: String,
    /// The address of this side of the link.
    pub host: String,
}

static COUNT: AtomicU32 = AtomicU32::new(0);

fn run(arguments: &[&str]) -> bool {
    let output = Command::new("ip").args(arguments).output();
    output.is_ok_and(|output| output.status.success())
}

impl Netns {
    /// `None` where this is not allowed or its tools are missing, which is said.
    pub fn new() -> Option<Self> {
        let nft = Command::new("nft").arg("--version").output();
        let number = std::process::id() % 4096 * 8 + COUNT.fetch_add(1, Ordering::Relaxed) % 8;
        let (name, link) = (format!("rn{number}"), format!("rnv{number}"));
        let host = format!("10.{}.{}.1", 64 + number / 256, number % 256);
        let peer = format!("10.{}.{}.2/30", 64 + number / 256, number % 256);
        let made = nft.is_ok() && run(&["netns", "add", &name]);
        if !made {
            assert!(
                std::env::var_os("CI").is_none(),
                "no network namespace: this test needs root, `ip` and `nft`"
            );
            eprintln!("SKIPPED: it needs root, `ip` and `nft`");
            return None;
        }
        let netns = Self { name, link, host };
        let (name, link) = (netns.name.as_str(), netns.link.as_str());
        let address = format!("{}/30", netns.host);
        for arguments in [
            &[
                "link", "add", link, "type", "veth", "peer", "name", "up0", "netns", name,
            ][..],
            &["addr", "add", &address, "dev", link],
            &["link", "set", link, "up"],
            &["-n", name, "addr", "add", &peer, "dev", "up0"],
            &["-n", name, "link", "set", "up0", "up"],
        ] {
            assert!(run(arguments), "{arguments:?}");
        }
        Some(netns)
    }

    pub fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        run(&["netns", "del", &self.name]);
        run(&["link", "del", &self.link]);
    }
}
