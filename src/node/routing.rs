//! Routing while the core runs: what a panel can see and change of it without a Start.

use std::sync::Arc;

use super::applied::Applied;
use super::{Error, Node};
use crate::xray::client::{self, Balancer, Client, Connection, ListedRule, Route};
use crate::xray::config::{API_RULE_TAG, Nobody, Rule, RuleSteps, refuse_own_tag};
use crate::xray::core::{Core, Launcher};
use crate::xray::version::Version;

/// A call of Xray's API, and the release that brought it.
struct Since(&'static str, Version);

const LIST_RULES: Since = Since("ListRoutingRules", Version::new(26, 1, 23));
const ADD_RULE: Since = Since("AddRoutingRule", Version::new(1, 8, 10));
const REMOVE_RULE: Since = Since("RemoveRoutingRule", Version::new(1, 8, 10));
const GET_BALANCER: Since = Since("GetBalancerInfo", Version::new(1, 8, 8));
const OVERRIDE_BALANCER: Since = Since("OverrideBalancerTarget", Version::new(1, 8, 8));

impl Since {
    fn require(&self, runs: Version) -> Result<(), Error> {
        let Self(call, needs) = *self;
        if runs < needs {
            return Err(Error::TooOld { call, needs, runs });
        }
        Ok(())
    }
}

impl Node {
    /// The core's rules in the order in which they are tried.
    ///
    /// # Errors
    /// When the core does not serve, is too old, or does not answer.
    pub async fn routing_rules(&self) -> Result<Vec<ListedRule>, Error> {
        let serving = self.serving()?;
        LIST_RULES.require(serving.version)?;
        let mut rules = serving.client.rules().await.map_err(Error::Read)?;
        rules.retain(|rule| rule.rule_tag != API_RULE_TAG);
        Ok(rules)
    }

    /// Where the rules would send a connection.
    ///
    /// # Errors
    /// [`Error::NoRule`] when none matches; otherwise as for listing them.
    pub async fn test_route(
        &self,
        connection: Connection,
        selectors: Vec<String>,
        publish: bool,
    ) -> Result<Route, Error> {
        let serving = self.serving()?;
        let route = serving.client.test_route(connection, selectors, publish);
        route.await.map_err(|error| match error {
            client::Error::NotFound(_) => Error::NoRule {
                outbound: serving.skeleton.default_outbound().to_owned(),
            },
            error => Error::Read(error),
        })
    }

    /// What a balancer does.
    ///
    /// # Errors
    /// [`Error::NoBalancer`] when there is none of this tag; otherwise as for listing rules.
    pub async fn balancer(&self, tag: &str) -> Result<Balancer, Error> {
        let serving = self.serving()?;
        GET_BALANCER.require(serving.version)?;
        let balancer = serving.client.balancer(tag).await;
        balancer.map_err(|error| no_balancer(tag, error, Error::Read))
    }
}

fn no_balancer(tag: &str, error: client::Error, other: fn(client::Error) -> Error) -> Error {
    match error {
        client::Error::NotFound(_) => Error::NoBalancer(tag.to_owned()),
        error => other(error),
    }
}

/// Puts a rule behind all others. A rule that is there already stays, and that is no error.
pub(super) async fn add_rule(
    launcher: &Launcher,
    core: &Core,
    applied: &mut Applied,
    rule: &Rule,
) -> Result<(), Error> {
    ADD_RULE.require(core.version())?;
    if applied.skeleton.routes_by_script() {
        return Err(Error::ScriptRoutes);
    }
    let Some(skeleton) = applied.skeleton.with_rule(rule)? else {
        return Ok(());
    };
    append(launcher, core, std::slice::from_ref(rule.as_json()))
        .await
        .map_err(Error::Routing)?;
    applied.skeleton = Arc::new(skeleton);
    Ok(())
}

/// Makes a rule the only one and takes every balancer away.
///
/// The rule is tried on a core of its own first, because an older one may be left without any rule
/// when it refuses; then `Err` says whether it may be.
pub(super) async fn replace_rules(
    launcher: &Launcher,
    core: &Core,
    applied: &mut Applied,
    rule: &Rule,
) -> Result<(), (Error, Left)> {
    let unchanged = |error: Error| (error, Left::Unchanged);
    ADD_RULE.require(core.version()).map_err(unchanged)?;
    if applied.skeleton.routes_by_script() {
        return Err(unchanged(Error::ScriptRoutes));
    }
    let skeleton = applied.skeleton.with_only_rule(rule);
    launcher
        .check(&skeleton, &Nobody)
        .await
        .map_err(|error| unchanged(error.into()))?;
    if let Err(error) = launcher.replace_rules(core, &skeleton).await {
        let kept =
            core.version().replaces_rules_at_once() && !matches!(error, client::Error::NoAnswer(_));
        let left = if kept { Left::Unchanged } else { Left::Unknown };
        return Err((Error::Routing(error), left));
    }
    applied.skeleton = Arc::new(skeleton);
    applied.overrides.clear();
    Ok(())
}

/// What a core has after a change that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Left {
    /// What it had before.
    Unchanged,
    /// Nobody knows.
    Unknown,
}

/// Removes every rule of this tag. There may be none.
pub(super) async fn remove_rule(
    core: &Core,
    applied: &mut Applied,
    tag: &str,
) -> Result<(), Error> {
    REMOVE_RULE.require(core.version())?;
    refuse_own_tag(tag)?;
    core.client()
        .remove_rule(tag)
        .await
        .map_err(Error::Routing)?;
    applied.skeleton = Arc::new(applied.skeleton.without_rule(tag));
    Ok(())
}

/// Makes a balancer take one outbound, or choose again with an empty `target`.
pub(super) async fn override_balancer(
    core: &Core,
    applied: &mut Applied,
    tag: &str,
    target: &str,
) -> Result<(), Error> {
    OVERRIDE_BALANCER.require(core.version())?;
    core.client()
        .override_balancer(tag, target)
        .await
        .map_err(|error| no_balancer(tag, error, Error::Routing))?;
    if target.is_empty() {
        applied.overrides.remove(tag);
    } else {
        applied.overrides.insert(tag.to_owned(), target.to_owned());
    }
    Ok(())
}

/// Makes the steps that lead from one set of rules to another. After an error nobody knows which of
/// them were made.
pub(super) async fn change_rules(
    launcher: &Launcher,
    core: &Core,
    steps: &RuleSteps,
) -> Result<(), client::Error> {
    if !steps.append.is_empty() {
        append(launcher, core, &steps.append).await?;
    }
    for tag in &steps.remove {
        core.client().remove_rule(tag).await?;
    }
    Ok(())
}

/// A rule whose tag the core has, though it should not, was left by a change that had no answer: it
/// makes room.
async fn append(
    launcher: &Launcher,
    core: &Core,
    rules: &[serde_json::Value],
) -> Result<(), client::Error> {
    match launcher.append_rules(core, rules).await {
        Err(client::Error::Refused(reason)) if reason.contains("duplicate ruleTag") => {
            make_room(core.client(), rules).await?;
            launcher.append_rules(core, rules).await
        }
        result => result,
    }
}

async fn make_room(client: &Client, rules: &[serde_json::Value]) -> Result<(), client::Error> {
    let tags = rules
        .iter()
        .filter_map(|rule| rule.get("ruleTag")?.as_str())
        .filter(|tag| !tag.is_empty());
    for tag in tags {
        client.remove_rule(tag).await?;
    }
    Ok(())
}
