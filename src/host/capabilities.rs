//! What the file of this program allows it beyond its user.
//!
//! A container's process that is not root gets none of the capabilities that are added to the container, except
//! by the file that it is started from. In the image that is the daemon's and not the core's: cores that are installed
//! later have them as well, and a core that holds no more than its daemon lends it its sockets.

use std::fs::File;
use std::io;

use rustix::thread::{CapabilitySet, CapabilitySets};
use rustix::thread::{
    capabilities, capability_is_in_ambient_set, configure_capability_in_ambient_set,
    set_capabilities,
};

/// What a core that may administer the network takes for granted: with `CAP_NET_ADMIN`, Xray makes a device of the
/// kernel's for each `WireGuard` outbound, and nothing gets through where it can't. Without, it does so by itself.
const OF_A_NETWORK_OF_ONES_OWN: [&str; 2] =
    ["/proc/sys/net/ipv4/conf/all/rp_filter", "/dev/net/tun"];

/// Uses what the file of this program allows, and hands it on to the programs that this one starts: ports under
/// 1024 to all of them, the administration of the network where they can use it.
///
/// Capabilities belong to a thread, so this comes before there is another one. What systemd or root has handed on
/// already is left as it is.
///
/// # Errors
/// When the kernel refuses a part of it; what came before that part holds.
pub fn take_up_capabilities() -> io::Result<()> {
    let mut sets = capabilities(None)?;
    let given = not_handed_on(&sets)?;
    if given.is_empty() || nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    sets.effective |= given;
    // Opening some of those files is allowed to who administers the network.
    set_capabilities(None, sets)?;
    let handed_on = if OF_A_NETWORK_OF_ONES_OWN.iter().all(can_be_written) {
        given
    } else {
        given - CapabilitySet::NET_ADMIN
    };
    sets.inheritable |= handed_on;
    set_capabilities(None, sets)?;
    for capability in handed_on.iter() {
        configure_capability_in_ambient_set(capability, true)?;
    }
    // A process that got more by its file is a secret from its own user. The next daemon is of that user, and asks
    // what this one has open.
    nix::sys::prctl::set_dumpable(true)?;
    Ok(())
}

/// Those that are of use to node and core, that this process may have, and that its children do not get.
fn not_handed_on(sets: &CapabilitySets) -> io::Result<CapabilitySet> {
    let useful = CapabilitySet::NET_BIND_SERVICE | CapabilitySet::NET_ADMIN;
    let mut found = CapabilitySet::empty();
    for capability in (sets.permitted & useful).iter() {
        if !capability_is_in_ambient_set(capability)? {
            found |= capability;
        }
    }
    Ok(found)
}

fn can_be_written(path: &&str) -> bool {
    File::options().write(true).open(path).is_ok()
}
