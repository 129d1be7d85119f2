//! The core's routing at run time.

use std::collections::HashMap;
use std::net::IpAddr;

use tonic::transport::Channel;

use super::{ALTER_DEADLINE, Client, Error, MAX_REPLY, READ_DEADLINE, bounded, within};
use crate::proto::xray::app::router::command::routing_service_client::RoutingServiceClient;
use crate::proto::xray::app::router::command::{
    GetBalancerInfoRequest, ListRuleRequest, OverrideBalancerTargetRequest, RemoveRuleRequest,
    RoutingContext, TestRouteRequest,
};

pub use crate::proto::xray::common::net::Network;

/// A rule as the core lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedRule {
    /// Where it leads; empty for a rule with a balancer.
    pub outbound_tag: String,
    /// Its own tag; empty for a rule that can't be removed.
    pub rule_tag: String,
}

/// A connection that somebody wonders about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Connection {
    /// Where it would come in.
    pub inbound_tag: String,
    /// TCP or UDP.
    pub network: Network,
    /// Where it would go, as an address.
    pub target_ip: Option<IpAddr>,
    /// Where it would go, as a name.
    pub target_domain: String,
    /// Where it would go, the port.
    pub target_port: u16,
    /// What it would speak, as sniffed.
    pub protocol: String,
    /// E-mail of the user.
    pub user: String,
    /// What a sniffer would see beside.
    pub attributes: HashMap<String, String>,
}

/// What the rules decide about a [`Connection`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The outbound.
    pub outbound_tag: String,
    /// The balancers on the way.
    pub outbound_group_tags: Vec<String>,
    /// As asked.
    pub inbound_tag: String,
    /// As asked.
    pub network: Network,
    /// As asked.
    pub target_domain: String,
}

/// What a balancer does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Balancer {
    /// The outbound that it was told to take; empty when it chooses itself.
    pub override_target: String,
    /// What its strategy ranks first.
    pub principle_target: Vec<String>,
}

impl Client {
    /// The rules in the order in which they are tried.
    ///
    /// # Errors
    /// When the core refuses or does not answer.
    pub async fn rules(&self) -> Result<Vec<ListedRule>, Error> {
        let request = within(READ_DEADLINE, ListRuleRequest {});
        let reply = bounded(READ_DEADLINE, self.routing().list_rule(request)).await?;
        let rules = reply.rules.into_iter();
        Ok(rules
            .map(|rule| ListedRule {
                outbound_tag: rule.tag,
                rule_tag: rule.rule_tag,
            })
            .collect())
    }

    /// Removes the rule with this tag; it may be gone already.
    ///
    /// # Errors
    /// When the core refuses or does not answer.
    pub async fn remove_rule(&self, tag: &str) -> Result<(), Error> {
        let rule_tag = tag.to_owned();
        let request = within(ALTER_DEADLINE, RemoveRuleRequest { rule_tag });
        bounded(ALTER_DEADLINE, self.routing().remove_rule(request))
            .await
            .map(drop)
    }

    /// Where the rules send a connection. `selectors` limit what the answer holds, and `publish` is
    /// handed through.
    ///
    /// # Errors
    /// [`Error::NotFound`] when no rule matches; otherwise when the core refuses or does not answer.
    pub async fn test_route(
        &self,
        connection: Connection,
        selectors: Vec<String>,
        publish: bool,
    ) -> Result<Route, Error> {
        let request = TestRouteRequest {
            routing_context: Some(context(connection)),
            field_selectors: selectors,
            publish_result: publish,
        };
        let request = within(READ_DEADLINE, request);
        let reply = bounded(READ_DEADLINE, self.routing().test_route(request)).await;
        let route = reply.map_err(|error| not_found(error, NO_RULE))?;
        Ok(Route {
            network: route.network(),
            outbound_tag: route.outbound_tag,
            outbound_group_tags: route.outbound_group_tags,
            inbound_tag: route.inbound_tag,
            target_domain: route.target_domain,
        })
    }

    /// What a balancer does.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is no such balancer; otherwise when the core refuses or does
    /// not answer.
    pub async fn balancer(&self, tag: &str) -> Result<Balancer, Error> {
        let tag = tag.to_owned();
        let request = within(READ_DEADLINE, GetBalancerInfoRequest { tag });
        let reply = bounded(READ_DEADLINE, self.routing().get_balancer_info(request)).await;
        let balancer = reply.map_err(|error| not_found(error, NO_BALANCER))?;
        let balancer = balancer.balancer.unwrap_or_default();
        Ok(Balancer {
            override_target: balancer.r#override.unwrap_or_default().target,
            principle_target: balancer.principle_target.unwrap_or_default().tag,
        })
    }

    /// Makes a balancer take one outbound; an empty `target` lets it choose again.
    ///
    /// # Errors
    /// As for reading it.
    pub async fn override_balancer(&self, tag: &str, target: &str) -> Result<(), Error> {
        let request = OverrideBalancerTargetRequest {
            balancer_tag: tag.to_owned(),
            target: target.to_owned(),
        };
        let request = within(ALTER_DEADLINE, request);
        let mut routing = self.routing();
        let call = routing.override_balancer_target(request);
        match bounded(ALTER_DEADLINE, call).await {
            Ok(_) => Ok(()),
            Err(error) => Err(not_found(error, NO_BALANCER)),
        }
    }

    fn routing(&self) -> RoutingServiceClient<Channel> {
        RoutingServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_REPLY)
    }
}

/// Xray's words for "no rule matches"; its code says nothing.
const NO_RULE: &str = "not enough information for making a decision";
/// Xray's words for "no such balancer".
const NO_BALANCER: &str = "cannot find tag";

fn not_found(error: Error, words: &str) -> Error {
    match error {
        Error::Refused(text) if text.contains(words) => Error::NotFound(text),
        error => error,
    }
}

fn context(connection: Connection) -> RoutingContext {
    let target_ips = match connection.target_ip {
        None => Vec::new(),
        Some(IpAddr::V4(address)) => vec![address.octets().to_vec()],
        Some(IpAddr::V6(address)) => vec![address.octets().to_vec()],
    };
    RoutingContext {
        inbound_tag: connection.inbound_tag,
        network: connection.network.into(),
        target_ips,
        target_port: connection.target_port.into(),
        target_domain: connection.target_domain,
        protocol: connection.protocol,
        user: connection.user,
        attributes: connection.attributes,
        ..RoutingContext::default()
    }
}
