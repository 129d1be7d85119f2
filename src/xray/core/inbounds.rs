//! Inbounds given back to a core that had closed them.

use serde_json::{Value, json};

use super::launcher::render;
use super::{Core, Launcher};
use crate::xray::client::Error;
use crate::xray::config::{Accounts, Door, Skeleton};

impl Launcher {
    /// Opens inbounds of a skeleton again, with their users.
    ///
    /// # Errors
    /// When the core does not open one; those before it are open then.
    pub async fn open_inbounds(
        &self,
        core: &Core,
        skeleton: &Skeleton,
        accounts: &impl Accounts,
        tags: &[String],
    ) -> Result<(), Error> {
        let door = Door {
            socket: &core.files.socket,
            version: core.version(),
            placeholder_key: rand::random(),
            inbound_sockets: &core.files.inbound_sockets,
            quic_idle_timeout: None,
        };
        let config =
            render(skeleton, accounts, door).map_err(|error| Error::Refused(error.to_string()))?;
        let config: Value =
            serde_json::from_slice(&config).map_err(|error| Error::Refused(error.to_string()))?;
        let inbounds = config.get("inbounds").and_then(Value::as_array);
        let wanted = |inbound: &&Value| {
            let tag = inbound.get("tag").and_then(Value::as_str);
            tag.is_some_and(|tag| tags.iter().any(|wanted| wanted == tag))
        };
        let inbounds: Vec<&Value> = inbounds.into_iter().flatten().filter(wanted).collect();
        self.tell(core, "adi", &[], &json!({ "inbounds": inbounds }))
            .await
    }
}
