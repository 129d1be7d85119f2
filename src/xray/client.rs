//! Xray's gRPC API, typed: what can be asked of one core.
//!
//! Xray has no panic recovery: a message of the wrong kind ends the whole process. So every user
//! is checked against the protocol of his inbound before anything is sent.

mod routing;

use std::path::PathBuf;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use prost::Message;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Request, Status};

use crate::proto::xray::app::proxyman::command::handler_service_client::HandlerServiceClient;
use crate::proto::xray::app::proxyman::command::{
    AddUserOperation, AlterInboundRequest, GetInboundUserRequest, RemoveInboundRequest,
    RemoveUserOperation,
};
use crate::proto::xray::app::stats::command::stats_service_client::StatsServiceClient;
use crate::proto::xray::app::stats::command::{
    GetAllOnlineUsersRequest, GetStatsRequest, GetUsersStatsRequest, QueryStatsRequest,
    SysStatsRequest, SysStatsResponse, UserStat,
};
use crate::proto::xray::common::protocol::User;
use crate::proto::xray::common::serial::TypedMessage;
use crate::proto::xray::core::app::observatory::OutboundStatus;
use crate::proto::xray::core::app::observatory::command::GetOutboundStatusRequest;
use crate::proto::xray::core::app::observatory::command::observatory_service_client::ObservatoryServiceClient;
use crate::xray::account::Account;
use crate::xray::config::Inbound;

pub use self::routing::{Balancer, Connection, ListedRule, Network, Route};

/// Counters of 100,000 users are about 10 MB, far above gRPC's usual 4 MiB.
const MAX_REPLY: usize = 256 << 20;
/// How long a core may take to change one user.
const ALTER_DEADLINE: Duration = Duration::from_secs(4);
/// Xray's words for "no such inbound", when one is to be removed; its code says nothing.
const NO_INBOUND: &str = "not enough information for making a decision";
/// How long a core may take to close a listener.
const CLOSE_DEADLINE: Duration = Duration::from_secs(2);
/// How long a core may take to read its counters.
const READ_DEADLINE: Duration = Duration::from_secs(20);
/// How long a healthy core takes at most to say that it is.
pub const HEALTH_DEADLINE: Duration = Duration::from_secs(3);

/// Why a core did not do what it was asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The core refused; nothing changed.
    #[error("{0}")]
    Refused(String),
    /// The core knows no such thing.
    #[error("{0}")]
    NotFound(String),
    /// The core's version does not have this call.
    #[error("this xray version lacks the call: {0}")]
    Unsupported(String),
    /// No answer: whether it was done is unknown.
    #[error("no answer from xray: {0}")]
    NoAnswer(String),
    /// The account does not belong to the inbound's protocol; nothing was sent.
    #[error("the account does not fit the protocol of inbound {0:?}")]
    WrongProtocol(String),
}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        let text = status.message().to_owned();
        match status.code() {
            Code::NotFound => Self::NotFound(text),
            // Before 25.7.23 a missing counter was an unknown error like any other.
            Code::Unknown if text.to_ascii_lowercase().contains("not found") => {
                Self::NotFound(text)
            }
            Code::Unimplemented => Self::Unsupported(text),
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled => Self::NoAnswer(text),
            // Without this text it is the transport that failed, not Xray that answered.
            Code::Unknown if text == "transport error" => Self::NoAnswer(text),
            _ => Self::Refused(text),
        }
    }
}

/// The connection to one core's API. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Client {
    channel: Channel,
}

/// A traffic counter of the core.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counter {
    /// The counter's full name.
    pub name: String,
    /// Bytes.
    pub value: i64,
}

impl Client {
    /// The API behind a unix socket. Connects with the first call, and again whenever it must.
    #[must_use]
    pub fn new(socket: PathBuf) -> Self {
        // The name is never resolved: the connector below knows only one place.
        let channel = Endpoint::from_static("http://xray.invalid").connect_with_connector_lazy(
            tower::service_fn(move |_: Uri| {
                let socket = socket.clone();
                async move { UnixStream::connect(socket).await.map(TokioIo::new) }
            }),
        );
        Self { channel }
    }

    /// The core's own statistics; also the way to ask whether it lives.
    ///
    /// # Errors
    /// When there is no answer within [`HEALTH_DEADLINE`].
    pub async fn sys_stats(&self) -> Result<SysStatsResponse, Error> {
        let request = within(HEALTH_DEADLINE, SysStatsRequest {});
        bounded(HEALTH_DEADLINE, self.stats().get_sys_stats(request)).await
    }

    /// Gives a user to an inbound.
    ///
    /// # Errors
    /// When the core refuses (`already exists` among other things) or does not answer.
    pub async fn add_user(
        &self,
        inbound: &Inbound,
        email: &str,
        account: &Account,
    ) -> Result<(), Error> {
        if !account.fits(inbound.protocol) {
            return Err(Error::WrongProtocol(inbound.tag.to_string()));
        }
        let user = User {
            level: 0,
            email: email.to_owned(),
            account: Some(account.to_typed_message()),
        };
        let operation = AddUserOperation { user: Some(user) };
        self.alter(
            &inbound.tag,
            "xray.app.proxyman.command.AddUserOperation",
            operation.encode_to_vec(),
        )
        .await
    }

    /// Takes a user from an inbound.
    ///
    /// # Errors
    /// [`Error::NotFound`] when he was not there; otherwise as for adding.
    pub async fn remove_user(&self, tag: &str, email: &str) -> Result<(), Error> {
        let operation = RemoveUserOperation {
            email: email.to_owned(),
        };
        self.alter(
            tag,
            "xray.app.proxyman.command.RemoveUserOperation",
            operation.encode_to_vec(),
        )
        .await
    }

    /// The users that an inbound has, as the core shows them. Xray 24.11.5 and later.
    ///
    /// # Errors
    /// When the core refuses or does not answer.
    pub async fn users(&self, tag: &str) -> Result<Vec<User>, Error> {
        let request = GetInboundUserRequest {
            tag: tag.to_owned(),
            email: String::new(),
        };
        let request = within(READ_DEADLINE, request);
        let reply = bounded(READ_DEADLINE, self.handler().get_inbound_users(request)).await?;
        Ok(reply.users)
    }

    /// How many users an inbound has. Xray 24.11.5 and later.
    ///
    /// # Errors
    /// When the core refuses or does not answer.
    pub async fn user_count(&self, tag: &str) -> Result<usize, Error> {
        let request = GetInboundUserRequest {
            tag: tag.to_owned(),
            email: String::new(),
        };
        let request = within(READ_DEADLINE, request);
        let mut handler = self.handler();
        let reply = handler.get_inbound_users_count(request);
        let reply = bounded(READ_DEADLINE, reply).await?;
        Ok(usize::try_from(reply.count).unwrap_or_default())
    }

    /// Closes the listener of an inbound. Connections on it live on, but those over gRPC.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is no such inbound (any more); when the core does not answer.
    pub async fn remove_inbound(&self, tag: &str) -> Result<(), Error> {
        let request = RemoveInboundRequest {
            tag: tag.to_owned(),
        };
        let request = within(CLOSE_DEADLINE, request);
        let closed = bounded(CLOSE_DEADLINE, self.handler().remove_inbound(request)).await;
        match closed {
            Ok(_) => Ok(()),
            Err(Error::Refused(text)) if text.contains(NO_INBOUND) => Err(Error::NotFound(text)),
            Err(error) => Err(error),
        }
    }

    async fn alter(&self, tag: &str, r#type: &str, value: Vec<u8>) -> Result<(), Error> {
        let operation = TypedMessage {
            r#type: r#type.to_owned(),
            value,
        };
        let request = AlterInboundRequest {
            tag: tag.to_owned(),
            operation: Some(operation),
        };
        let request = within(ALTER_DEADLINE, request);
        bounded(ALTER_DEADLINE, self.handler().alter_inbound(request))
            .await
            .map(drop)
    }

    /// The counters whose names contain `pattern`; all of them where it is empty.
    ///
    /// # Errors
    /// When the core refuses or does not answer.
    pub async fn counters(&self, pattern: &str) -> Result<Vec<Counter>, Error> {
        let request = QueryStatsRequest {
            pattern: pattern.to_owned(),
            reset: false,
        };
        let request = within(READ_DEADLINE, request);
        let reply = bounded(READ_DEADLINE, self.stats().query_stats(request)).await?;
        let counters = reply.stat.into_iter();
        Ok(counters
            .map(|stat| Counter {
                name: stat.name,
                value: stat.value,
            })
            .collect())
    }

    /// One counter by its full name: looking it up costs nothing, a search among all counters does.
    ///
    /// # Errors
    /// [`Error::NotFound`] where nothing was counted yet; otherwise as for several.
    pub async fn counter(&self, name: &str) -> Result<Counter, Error> {
        let request = within(
            READ_DEADLINE,
            GetStatsRequest {
                name: name.to_owned(),
                reset: false,
            },
        );
        let reply = bounded(READ_DEADLINE, self.stats().get_stats(request)).await?;
        Ok(Counter {
            name: name.to_owned(),
            value: reply.stat.map_or(0, |stat| stat.value),
        })
    }

    /// Everybody who is online, with addresses and traffic. Xray 26.4.13 and later.
    ///
    /// # Errors
    /// When the core refuses, is too old or does not answer.
    pub async fn users_stats(&self) -> Result<Vec<UserStat>, Error> {
        let request = GetUsersStatsRequest {
            include_traffic: true,
            reset: false,
        };
        let request = within(READ_DEADLINE, request);
        let reply = bounded(READ_DEADLINE, self.stats().get_users_stats(request)).await?;
        Ok(reply.users)
    }

    /// The e-mails of everybody who is online. Xray 26.1.13 and later.
    ///
    /// # Errors
    /// As for users with their traffic.
    pub async fn online_users(&self) -> Result<Vec<String>, Error> {
        let request = within(READ_DEADLINE, GetAllOnlineUsersRequest {});
        let reply = bounded(READ_DEADLINE, self.stats().get_all_online_users(request)).await?;
        let maps = reply.users.into_iter();
        Ok(maps
            .filter_map(|map| {
                let email = map.strip_prefix("user>>>")?.strip_suffix(">>>online")?;
                Some(email.to_owned())
            })
            .collect())
    }

    /// From how many addresses a user is connected.
    ///
    /// # Errors
    /// [`Error::NotFound`] for a user who never connected; otherwise when the core refuses or does
    /// not answer.
    pub async fn online_count(&self, email: &str) -> Result<i64, Error> {
        let request = within(READ_DEADLINE, online(email));
        let reply = bounded(READ_DEADLINE, self.stats().get_stats_online(request)).await?;
        Ok(reply.stat.map_or(0, |stat| stat.value))
    }

    /// The addresses that a user is connected from, with the Unix second of his latest connection
    /// from each.
    ///
    /// # Errors
    /// As for the count.
    pub async fn online_addresses(&self, email: &str) -> Result<Vec<(String, i64)>, Error> {
        let request = within(READ_DEADLINE, online(email));
        let reply = bounded(
            READ_DEADLINE,
            self.stats().get_stats_online_ip_list(request),
        )
        .await?;
        Ok(reply.ips.into_iter().collect())
    }

    /// What the core's observatory measured.
    ///
    /// # Errors
    /// When the core refuses or does not answer.
    pub async fn outbound_status(&self) -> Result<Vec<OutboundStatus>, Error> {
        let mut observatory = ObservatoryServiceClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_REPLY);
        let request = within(READ_DEADLINE, GetOutboundStatusRequest {});
        let reply = bounded(READ_DEADLINE, observatory.get_outbound_status(request)).await?;
        Ok(reply.status.map(|result| result.status).unwrap_or_default())
    }

    fn handler(&self) -> HandlerServiceClient<Channel> {
        HandlerServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_REPLY)
    }

    fn stats(&self) -> StatsServiceClient<Channel> {
        StatsServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_REPLY)
    }
}

fn online(email: &str) -> GetStatsRequest {
    GetStatsRequest {
        name: format!("user>>>{email}>>>online"),
        reset: false,
    }
}

/// Tells the core how long we wait, so that it gives up as well.
fn within<T>(deadline: Duration, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(deadline);
    request
}

/// A frozen core still accepts connections, so every call ends by our own clock.
async fn bounded<T>(
    deadline: Duration,
    call: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<T, Error> {
    match tokio::time::timeout(deadline, call).await {
        Ok(reply) => Ok(reply?.into_inner()),
        Err(_) => Err(Error::NoAnswer(format!(
            "nothing within {} s",
            deadline.as_secs()
        ))),
    }
}
