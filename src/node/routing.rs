//! Routing while the core runs: what a panel can see and change of it without a Start.

use std::sync::Arc;

use super::applied::Applied;
use super::{Error, Node};
use crate::xray::client::{self, Balancer, Client, Connection, ListedRule, Route};
use crate::xray::config::{API_RULE_TAG, Nobody, Rule, RuleSteps, Skeleton, refuse_own_tag};
use crate::xray::core::{self, Core, Launcher};
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
        LIST_RULES.require(serving.source.version)?;
        let mut rules = serving.source.client.rules().await.map_err(Error::Read)?;
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
        let route = serving
            .source
            .client
            .test_route(connection, selectors, publish);
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
        GET_BALANCER.require(serving.source.version)?;
        let balancer = serving.source.client.balancer(tag).await;
        balancer.map_err(|error| match error {
            client::Error::NotFound(_) => Error::NoBalancer(tag.to_owned()),
            error => Error::Read(error),
        })
    }
}

/// Lets every balancer choose again: a Start says all that is wanted.
pub(super) async fn free_balancers(core: &Core, applied: &mut Applied) {
    for tag in std::mem::take(&mut applied.overrides).into_keys() {
        if let Err(error) = core.client().override_balancer(&tag, "").await {
            tracing::warn!(balancer = tag, %error, "the balancer may still take what it was told");
        }
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
    check(launcher, &skeleton).await?;
    let appended = append(launcher, core, std::slice::from_ref(rule.as_json())).await;
    doubt(applied, appended)?;
    applied.skeleton = Arc::new(skeleton);
    Ok(())
}

/// Tries rules on a process of their own. There are rules on which Xray panics, and a running core
/// would be gone with every connection.
async fn check(launcher: &Launcher, skeleton: &Skeleton) -> Result<(), Error> {
    match launcher.check(skeleton, &Nobody).await {
        Err(core::Error::Refused(reason)) => Err(Error::Routing(client::Error::Refused(reason))),
        result => result.map(drop).map_err(Error::Core),
    }
}

/// Notes that nobody knows the core's rules after a change without an answer.
fn doubt(applied: &mut Applied, changed: Result<(), client::Error>) -> Result<(), Error> {
    if let Err(client::Error::NoAnswer(_)) = &changed {
        applied.doubtful = true;
    }
    changed.map_err(Error::Routing)
}

/// Whether the core's rules are those that it should have, where nobody knew any more. A core that
/// does not list its rules can't be trusted then.
pub(super) async fn settle(core: &Core, applied: &mut Applied) -> bool {
    if !applied.doubtful {
        return true;
    }
    if LIST_RULES.require(core.version()).is_err() {
        return false;
    }
    let Ok(mut found) = core.client().rules().await else {
        return false;
    };
    found.retain(|rule| rule.rule_tag != API_RULE_TAG);
    applied.doubtful = found != applied.skeleton.listed_rules();
    !applied.doubtful
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
    check(launcher, &skeleton).await.map_err(unchanged)?;
    if let Err(error) = launcher.replace_rules(core, &skeleton).await {
        let kept = match &error {
            client::Error::NoAnswer(_) => false,
            _ => core.version().replaces_rules_at_once() || never_got_there(&error),
        };
        let left = if kept { Left::Unchanged } else { Left::Unknown };
        return Err((Error::Routing(error), left));
    }
    applied.skeleton = Arc::new(skeleton);
    applied.overrides.clear();
    Ok(())
}

/// Whether a refusal came from before the core's rules: from gRPC, or from the command that translates.
fn never_got_there(error: &client::Error) -> bool {
    let text = error.to_string();
    text.contains("received message larger than max") || text.starts_with("failed to ")
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
    let removed = core.client().remove_rule(tag).await;
    doubt(applied, removed)?;
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
    if !target.is_empty() && !applied.skeleton.has_outbound(target) {
        return Err(Error::NoOutbound(target.to_owned()));
    }
    let told = core.client().override_balancer(tag, target).await;
    if let Err(client::Error::NoAnswer(_)) = &told {
        // It may be so; a Start makes sure.
        applied.overrides.insert(tag.to_owned(), target.to_owned());
    }
    told.map_err(|error| match error {
        client::Error::NotFound(_) => Error::NoBalancer(tag.to_owned()),
        error => Error::Routing(error),
    })?;
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
