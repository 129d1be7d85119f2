//! Routing rules given to a running core.
//!
//! The encoding of a rule differs between versions of Xray, and one of the wrong kind is taken for
//! another rule without a word. So the core's own binary translates it: `xray api adrules`.

use serde_json::{Value, json};

use super::{Address, Core, Launcher};
use crate::xray::client::Error;
use crate::xray::config::{self, Skeleton};

impl Launcher {
    /// Puts rules behind all that the core has: all of them, or none.
    ///
    /// # Errors
    /// [`Error::Refused`] with Xray's own words; [`Error::NoAnswer`] when nobody knows.
    pub async fn append_rules(&self, core: &Core, rules: &[Value]) -> Result<(), Error> {
        self.adrules(core, &["-append"], &Value::from(rules)).await
    }

    /// The same for whoever does not have the core.
    ///
    /// # Errors
    /// As for appending.
    pub async fn append_rules_at(&self, core: &Address, rules: &[Value]) -> Result<(), Error> {
        let input = section(&Value::from(rules));
        self.tell_at(core, "adrules", &["-append"], &input).await
    }

    /// Gives the core the rules of a skeleton and takes all others away, with all balancers.
    ///
    /// # Errors
    /// As for appending; a core before 26.10.10 may have no rule at all then.
    pub async fn replace_rules(&self, core: &Core, skeleton: &Skeleton) -> Result<(), Error> {
        let rules = config::rules(skeleton, core.version());
        self.adrules(core, &[], &rules).await
    }

    async fn adrules(&self, core: &Core, flags: &[&str], rules: &Value) -> Result<(), Error> {
        self.tell(core, "adrules", flags, &section(rules)).await
    }
}

/// Rules as `xray api adrules` reads them.
fn section(rules: &Value) -> Value {
    json!({ "routing": { "rules": rules } })
}
