//! The contract's messages as JSON, by the protobuf JSON mapping: for people with curl.

use std::sync::LazyLock;

use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor};

use crate::proto::SERVICE_DESCRIPTORS;

/// The descriptors of the contract.
pub(super) static DESCRIPTORS: LazyLock<DescriptorPool> = LazyLock::new(|| {
    DescriptorPool::decode(SERVICE_DESCRIPTORS).expect("the build wrote these descriptors")
});

/// Why a body is not the message that it should be.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("not the JSON of a {message}: {source}")]
    Json {
        message: &'static str,
        source: serde_json::Error,
    },
    #[error("the contract has no message {0}")]
    NoSuchMessage(&'static str),
    #[error("not a {message}: {source}")]
    Protobuf {
        message: &'static str,
        source: prost::DecodeError,
    },
}

fn descriptor(message: &'static str) -> Result<MessageDescriptor, Error> {
    let name = format!("service.{message}");
    DESCRIPTORS
        .get_message_by_name(&name)
        .ok_or(Error::NoSuchMessage(message))
}

/// From JSON to the encoding of the message. An empty text is an empty message.
pub(super) fn to_protobuf(message: &'static str, json: &[u8]) -> Result<Vec<u8>, Error> {
    if json.trim_ascii().is_empty() {
        return Ok(Vec::new());
    }
    let fail = |source| Error::Json { message, source };
    let mut text = serde_json::Deserializer::from_slice(json);
    let decoded = DynamicMessage::deserialize(descriptor(message)?, &mut text).map_err(fail)?;
    text.end().map_err(fail)?;
    Ok(decoded.encode_to_vec())
}

/// From the encoding of a message to JSON, with every field that it has: people look for zeros.
pub(super) fn from_protobuf(message: &'static str, bytes: &[u8]) -> Result<Vec<u8>, Error> {
    let decoded = DynamicMessage::decode(descriptor(message)?, bytes)
        .map_err(|source| Error::Protobuf { message, source })?;
    let options = prost_reflect::SerializeOptions::new()
        .skip_default_fields(false)
        .use_proto_field_name(true)
        .stringify_64_bit_integers(true);
    let mut json = Vec::new();
    let mut serializer = serde_json::Serializer::new(&mut json);
    decoded
        .serialize_with_options(&mut serializer, &options)
        .map_err(|source| Error::Json { message, source })?;
    Ok(json)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::service::{BaseInfoResponse, StatRequest};

    #[test]
    fn json_is_the_message_in_both_spellings_of_its_fields() {
        for text in [
            r#"{"name":"7","reset":true,"type":"UserStat"}"#,
            r#"{"name":"7","reset":true,"type":5}"#,
        ] {
            let request =
                StatRequest::decode(&*to_protobuf("StatRequest", text.as_bytes()).unwrap());
            let wanted = StatRequest {
                name: "7".to_owned(),
                reset: true,
                r#type: 5,
            };
            assert_eq!(request.unwrap(), wanted);
        }
        let backend = br#"{"config":"{}","keepAlive":"60","exclude_inbounds":["a"]}"#;
        let backend = to_protobuf("Backend", backend).unwrap();
        let backend = crate::panel::wire::Backend::decode(&*backend).unwrap();
        assert_eq!(
            (backend.keep_alive, backend.exclude_inbounds.len()),
            (60, 1)
        );
        assert!(to_protobuf("StatRequest", b" ").unwrap().is_empty());
    }

    #[test]
    fn replies_show_every_field() {
        let reply = BaseInfoResponse {
            node_version: "1.0.0".to_owned(),
            ..Default::default()
        };
        let json = from_protobuf("BaseInfoResponse", &reply.encode_to_vec()).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
        assert_eq!(json["started"], serde_json::json!(false));
        assert_eq!(json["node_version"], serde_json::json!("1.0.0"));
    }

    #[test]
    fn what_is_not_the_message_is_refused() {
        for text in ["{", "[]", r#"{"nosuch":1}"#, r#"{"name":7}"#, "{} {}"] {
            assert!(
                to_protobuf("StatRequest", text.as_bytes()).is_err(),
                "{text}"
            );
        }
    }
}
