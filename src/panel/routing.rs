//! The contract's routing messages and the domain's, one into the other.

use tonic::Status;

use crate::proto::service::{RouteResult, RoutingRule, TestRouteRequest};
use crate::xray::client::{Connection, ListedRule, Network, Route};

/// Refuses a request whose `field` says nothing.
pub(super) fn required(field: &str, value: String) -> Result<String, Status> {
    if value.is_empty() {
        return Err(Status::invalid_argument(format!("{field} is required")));
    }
    Ok(value)
}

pub(super) fn rule(rule: ListedRule) -> RoutingRule {
    RoutingRule {
        outbound_tag: rule.outbound_tag,
        rule_tag: rule.rule_tag,
    }
}

/// The connection that a request asks about.
pub(super) fn connection(request: TestRouteRequest) -> Result<Connection, Status> {
    let network = match request.network.to_ascii_lowercase().as_str() {
        "" => Network::Unknown,
        "tcp" => Network::Tcp,
        "udp" => Network::Udp,
        other => {
            let text = format!("network is tcp or udp, not {other:?}");
            return Err(Status::invalid_argument(text));
        }
    };
    let target_ip = match request.target_ip.as_str() {
        "" => None,
        address => Some(address.parse().map_err(|_| {
            Status::invalid_argument(format!("target_ip is not an address: {address:?}"))
        })?),
    };
    let target_port = u16::try_from(request.target_port).map_err(|_| {
        Status::invalid_argument(format!(
            "target_port is above 65535: {}",
            request.target_port
        ))
    })?;
    Ok(Connection {
        inbound_tag: request.inbound_tag,
        network,
        target_ip,
        target_domain: request.target_domain,
        target_port,
        protocol: request.protocol,
        user: request.user,
        attributes: request.attributes,
    })
}

pub(super) fn result(route: Route) -> RouteResult {
    let network = match route.network {
        Network::Unknown => String::new(),
        network => network.as_str_name().to_ascii_lowercase(),
    };
    RouteResult {
        outbound_tag: route.outbound_tag,
        outbound_group_tags: route.outbound_group_tags,
        inbound_tag: route.inbound_tag,
        network,
        target_domain: route.target_domain,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_connection_is_refused_by_name() {
        let good = TestRouteRequest {
            network: "TCP".to_owned(),
            target_ip: "2001:db8::1".to_owned(),
            target_port: 65535,
            ..TestRouteRequest::default()
        };
        assert_eq!(connection(good.clone()).unwrap().network, Network::Tcp);
        let network = TestRouteRequest {
            network: "tcp,udp".to_owned(),
            ..good.clone()
        };
        let address = TestRouteRequest {
            target_ip: "example.com".to_owned(),
            ..good.clone()
        };
        let port = TestRouteRequest {
            target_port: 65536,
            ..good
        };
        for (request, field) in [
            (network, "network"),
            (address, "target_ip"),
            (port, "target_port"),
        ] {
            let refused = connection(request).unwrap_err();
            assert_eq!(refused.code(), tonic::Code::InvalidArgument);
            assert!(refused.message().starts_with(field), "{refused}");
        }
    }
}
