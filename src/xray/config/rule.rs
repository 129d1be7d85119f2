//! Routing rules that come and go while a core runs.

use std::collections::HashSet;

use serde_json::Value;

use super::rewrite::{self, GUARD_TAG};
use super::{API_RULE_TAG, API_TAG, Skeleton};
use crate::xray::client::ListedRule;

/// Why a routing rule can't be used.
#[derive(Debug, thiserror::Error)]
pub enum RuleError {
    /// The text is not JSON.
    #[error("the rule is not valid JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// The JSON is not an object.
    #[error("the rule is not a JSON object, as one entry of routing.rules is")]
    NotAnObject,
    /// Users of the proxy would reach the core's API.
    #[error("the rule leads to the outbound {API_TAG:?}, which is the node's own")]
    LeadsToApi,
    /// The node's own rules stay as they are.
    #[error("the rule tag {0:?} is the node's own")]
    OwnTag(String),
    /// Another rule has this tag.
    #[error("duplicate ruleTag {0}: another rule has this tag, remove that one first")]
    Duplicate(String),
}

/// One entry of `routing.rules`, put right as those of a configuration are.
#[derive(Clone, PartialEq, Eq)]
pub struct Rule(Value);

impl std::fmt::Debug for Rule {
    /// Shows only the tag: a rule may name users and addresses.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Rule").field(&self.tag()).finish()
    }
}

impl Rule {
    /// Reads the JSON of one rule.
    ///
    /// # Errors
    /// When it is no JSON object, or would change what belongs to the node. What only Xray can judge
    /// is left to Xray.
    pub fn parse(text: &str) -> Result<Self, RuleError> {
        let mut rule: Value = serde_json::from_str(text)?;
        if !rule.is_object() {
            return Err(RuleError::NotAnObject);
        }
        rewrite::rule(&mut rule);
        if rule.get("outboundTag").and_then(Value::as_str) == Some(API_TAG) {
            return Err(RuleError::LeadsToApi);
        }
        let rule = Self(rule);
        refuse_own_tag(rule.tag())?;
        Ok(rule)
    }

    /// Its tag; empty when it has none, and then it can't be removed alone.
    #[must_use]
    pub fn tag(&self) -> &str {
        tag_of(&self.0)
    }

    /// As Xray reads it.
    #[must_use]
    pub fn as_json(&self) -> &Value {
        &self.0
    }
}

/// # Errors
/// When a rule with this tag is the node's own.
pub fn refuse_own_tag(tag: &str) -> Result<(), RuleError> {
    if [API_RULE_TAG, GUARD_TAG].contains(&tag) {
        return Err(RuleError::OwnTag(tag.to_owned()));
    }
    Ok(())
}

fn tag_of(rule: &Value) -> &str {
    rule.get("ruleTag")
        .and_then(Value::as_str)
        .unwrap_or_default()
}

/// How a running core's rules become others without a moment in which a rule of both is missing.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct RuleSteps {
    /// Goes behind all others, in this order, before anything is removed.
    pub append: Vec<Value>,
    /// Tags of the rules that go.
    pub remove: Vec<String>,
}

impl Skeleton {
    /// The rules in the order in which they are tried, without the one that leads to the API.
    #[must_use]
    pub fn rules(&self) -> &[Value] {
        self.root
            .get("routing")
            .and_then(|routing| routing.get("rules"))
            .and_then(Value::as_array)
            .map_or(&[], Vec::as_slice)
    }

    /// The same as the core lists them.
    #[must_use]
    pub fn listed_rules(&self) -> Vec<ListedRule> {
        let outbound = |rule: &Value| {
            let tag = rule.get("outboundTag").and_then(Value::as_str);
            tag.unwrap_or_default().to_owned()
        };
        let rules = self.rules().iter();
        rules
            .map(|rule| ListedRule {
                outbound_tag: outbound(rule),
                rule_tag: tag_of(rule).to_owned(),
            })
            .collect()
    }

    /// Whether a script decides instead of the rules (Xray 26.10).
    #[must_use]
    pub fn routes_by_script(&self) -> bool {
        self.root
            .get("routing")
            .and_then(|routing| routing.get("script")?.as_str())
            .is_some_and(|script| !script.is_empty())
    }

    /// The same with one more rule behind all others; `None` when it has that rule.
    ///
    /// # Errors
    /// When another rule has its tag.
    pub fn with_rule(&self, rule: &Rule) -> Result<Option<Self>, RuleError> {
        if self.rules().contains(&rule.0) {
            return Ok(None);
        }
        let tag = rule.tag();
        if !tag.is_empty() && self.rules().iter().any(|other| tag_of(other) == tag) {
            return Err(RuleError::Duplicate(tag.to_owned()));
        }
        let mut rules = self.rules().to_vec();
        rules.push(rule.0.clone());
        Ok(Some(self.with_rules(rules)))
    }

    /// The same with this rule alone, and the node's own; no balancer either.
    #[must_use]
    pub fn with_only_rule(&self, rule: &Rule) -> Self {
        let own = self.rules().iter().filter(|rule| tag_of(rule) == GUARD_TAG);
        let mut skeleton = self.with_rules(own.chain([&rule.0]).cloned().collect());
        if let Some(Value::Object(routing)) = skeleton.root.get_mut("routing") {
            routing.shift_remove("balancers");
        }
        skeleton
    }

    /// The same without the rules of this tag.
    #[must_use]
    pub fn without_rule(&self, tag: &str) -> Self {
        let rules = self.rules().iter();
        self.with_rules(rules.filter(|rule| tag_of(rule) != tag).cloned().collect())
    }

    /// The steps from these rules to those of `wanted`, when nothing else differs and steps that a
    /// running core can make lead there.
    #[must_use]
    pub fn rule_steps(&self, wanted: &Self) -> Option<RuleSteps> {
        if self.routes_by_script() || self.with_rules(Vec::new()) != wanted.with_rules(Vec::new()) {
            return None;
        }
        let mut steps = RuleSteps::default();
        let mut rest = wanted.rules();
        let mut kept = HashSet::new();
        for rule in self.rules() {
            match rest.split_first() {
                Some((next, behind)) if next == rule => {
                    kept.insert(tag_of(rule));
                    rest = behind;
                }
                _ if tag_of(rule).is_empty() => return None,
                _ => steps.remove.push(tag_of(rule).to_owned()),
            }
        }
        steps.append = rest.to_vec();
        // Xray refuses a second rule of a tag, and removes every rule of one.
        let taken = |rule: &Value| {
            let tag = tag_of(rule);
            !tag.is_empty() && (kept.contains(tag) || steps.remove.iter().any(|gone| gone == tag))
        };
        let clashes = steps.append.iter().any(taken)
            || steps.remove.iter().any(|tag| kept.contains(tag.as_str()))
            || steps.remove.iter().any(|tag| tag == GUARD_TAG);
        (!clashes).then_some(steps)
    }

    fn with_rules(&self, rules: Vec<Value>) -> Self {
        let mut skeleton = self.clone();
        if let Some(Value::Object(routing)) = skeleton.root.get_mut("routing") {
            routing.insert("rules".to_owned(), Value::Array(rules));
        }
        skeleton
    }
}
