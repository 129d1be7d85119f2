//! The description of the REST routes, made from the table that routes them and the descriptors of
//! the messages, so that it can't be out of date.

use std::collections::BTreeSet;

use prost_reflect::{Kind, MessageDescriptor};
use serde_json::{Map, Value, json};

use super::json::DESCRIPTORS;
use super::routes::Route;

/// The document, `OpenAPI` 3.1.
pub(super) fn describe(routes: &[Route]) -> String {
    let mut paths = Map::new();
    let mut messages = BTreeSet::new();
    for route in routes {
        let path = paths.entry(route.path).or_insert_with(|| json!({}));
        if let Value::Object(path) = path {
            path.insert(route.method.as_str().to_ascii_lowercase(), operation(route));
        }
        messages.extend(
            [route.input, route.output]
                .into_iter()
                .filter(|name| !name.is_empty()),
        );
    }
    let mut schemas = Map::new();
    for message in messages {
        if let Some(message) = DESCRIPTORS.get_message_by_name(&format!("service.{message}")) {
            add_schema(&mut schemas, &message);
        }
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "raynode",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "The node's REST transport. Bodies are protobuf (application/x-protobuf), also of GET, or JSON.",
        },
        "security": [{ "apiKey": [] }, { "bearer": [] }],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "apiKey": { "type": "apiKey", "in": "header", "name": "x-api-key" },
                "bearer": { "type": "http", "scheme": "bearer" },
            },
        },
    })
    .to_string()
}

fn operation(route: &Route) -> Value {
    let mut operation = json!({
        "summary": route.summary,
        "responses": {
            "200": { "description": "done", "content": content(route.output) },
            "default": {
                "description": "refused, with the reason",
                "content": { "text/plain": { "schema": { "type": "string" } } },
            },
        },
    });
    if let (Value::Object(operation), false) = (&mut operation, route.input.is_empty()) {
        let body = json!({ "required": false, "content": content(route.input) });
        operation.insert("requestBody".to_owned(), body);
    }
    operation
}

fn content(message: &str) -> Value {
    if message.is_empty() {
        return json!({ "text/plain": { "schema": { "type": "string" } } });
    }
    json!({
        "application/json": { "schema": reference(message) },
        "application/x-protobuf": { "schema": { "type": "string", "format": "binary" } },
    })
}

fn reference(message: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{message}") })
}

fn add_schema(schemas: &mut Map<String, Value>, message: &MessageDescriptor) {
    if schemas.contains_key(message.name()) {
        return;
    }
    schemas.insert(message.name().to_owned(), Value::Null);
    let mut properties = Map::new();
    for field in message.fields() {
        let kind = field.kind();
        let schema = if field.is_map() {
            json!({ "type": "object", "additionalProperties": { "type": "string" } })
        } else {
            if let Kind::Message(message) = &kind {
                add_schema(schemas, message);
            }
            let one = schema_of(&kind);
            if field.is_list() {
                json!({ "type": "array", "items": one })
            } else {
                one
            }
        };
        properties.insert(field.name().to_owned(), schema);
    }
    let schema = json!({ "type": "object", "properties": properties });
    schemas.insert(message.name().to_owned(), schema);
}

/// As the protobuf JSON mapping writes it: 64-bit numbers are texts.
fn schema_of(kind: &Kind) -> Value {
    match kind {
        Kind::Bool => json!({ "type": "boolean" }),
        Kind::Double | Kind::Float => json!({ "type": "number" }),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 | Kind::Uint32 | Kind::Fixed32 => {
            json!({ "type": "integer" })
        }
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 | Kind::Uint64 | Kind::Fixed64 => {
            json!({ "type": "string", "format": "int64" })
        }
        Kind::String | Kind::Bytes => json!({ "type": "string" }),
        Kind::Enum(values) => {
            let names: Vec<String> = values
                .values()
                .map(|value| value.name().to_owned())
                .collect();
            json!({ "type": "string", "enum": names })
        }
        Kind::Message(message) => reference(message.name()),
    }
}
