//! What can be asked of the API.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::extract::rejection::QueryRejection;
use axum::extract::{FromRequest, Json, Path, Query, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Router};
use bytes::Bytes;
use http::HeaderMap;
use http::header::CONTENT_TYPE;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::time::sleep;
use tower_idempotency::{Attempt, RecordingOverride};

use super::ledger::{Charge, Ledger, NewCharge};
use super::stripe::ApiError;

pub(crate) fn routes(ledger: Ledger) -> Router {
    Router::new()
        .route("/v1/charges", get(list_charges).post(create_charge))
        .route("/v1/charges/{id}", get(get_charge))
        .with_state(ledger)
}

async fn create_charge(
    State(ledger): State<Ledger>,
    attempt: Option<Attempt>,
    new: NewCharge,
) -> Result<Json<Charge>, ApiError> {
    let charge = match new.source.as_str() {
        "tok_visa" => ledger.charge(new, attempt).await?,
        "tok_slow" => {
            sleep(Duration::from_secs(2)).await;
            ledger.charge(new, attempt).await?
        }
        "tok_chargeDeclined" => {
            let declined = ledger.decline(new, attempt).await?;
            return Err(declined.map_or_else(ApiError::too_late, ApiError::declined));
        }
        "tok_error" => return Err(ApiError::internal("The card network is out of reach.")),
        "tok_panic" => panic!("as requested, before the charge"),
        "tok_panicAfterCharge" => {
            ledger.charge(new, attempt).await?;
            panic!("as requested, after the charge")
        }
        unknown => {
            let message = format!("No such token: '{unknown}'");
            return Err(ApiError::missing("source", message));
        }
    };
    charge.map(Json).ok_or_else(ApiError::too_late)
}

async fn get_charge(
    State(ledger): State<Ledger>,
    Path(id): Path<String>,
) -> Result<Json<Charge>, ApiError> {
    let charge = ledger.find(&id).await?;
    charge
        .map(Json)
        .ok_or_else(|| ApiError::no_such_charge("id", &id))
}

async fn list_charges(
    State(ledger): State<Ledger>,
    page: Result<Query<Page>, QueryRejection>,
) -> Result<Json<Value>, ApiError> {
    let Query(page) = page.map_err(|rejection| ApiError::invalid(rejection.body_text()))?;
    let limit = page.limit.unwrap_or(10);
    if !(1..=100).contains(&limit) {
        return Err(ApiError::param("limit", "Must be between 1 and 100."));
    }
    let after = page.starting_after.as_deref();
    if let Some(id) = after
        && ledger.find(id).await?.is_none()
    {
        return Err(ApiError::no_such_charge("starting_after", id));
    }
    // One more tells whether there are more.
    let mut data = ledger.newest(limit + 1, after).await?;
    let has_more = data.len() > limit;
    data.truncate(limit);
    Ok(Json(json!({
        "object": "list",
        "url": "/v1/charges",
        "has_more": has_more,
        "data": data,
    })))
}

#[derive(Deserialize)]
struct Page {
    limit: Option<usize>,
    starting_after: Option<String>,
}

/// As a form, which Stripe's libraries send, or as JSON.
impl<S: Send + Sync> FromRequest<S> for NewCharge {
    type Rejection = Response;

    async fn from_request(request: Request, state: &S) -> Result<Self, Response> {
        let is_json = is_json(request.headers());
        let body = Bytes::from_request(request, state)
            .await
            .map_err(IntoResponse::into_response)?;
        Self::read(&body, is_json).map_err(|error| {
            // Nothing has begun, so nothing is recorded: a corrected request may use the same key.
            (Extension(RecordingOverride::NothingDone), error).into_response()
        })
    }
}

impl NewCharge {
    fn read(body: &[u8], is_json: bool) -> Result<Self, ApiError> {
        let mut fields = if is_json {
            serde_json::from_slice(body)
                .map(as_form)
                .map_err(|error| ApiError::invalid(error.to_string()))?
        } else {
            form_urlencoded::parse(body).into_owned().collect()
        };
        let mut required = |name| {
            let value = fields.remove(name);
            value.ok_or_else(|| ApiError::param(name, format!("Missing required param: {name}.")))
        };
        let amount = match required("amount")?.parse() {
            Ok(amount) if amount > 0 => amount,
            _ => return Err(ApiError::param("amount", "Must be a positive integer.")),
        };
        let currency = required("currency")?.to_ascii_lowercase();
        if currency.len() != 3 || !currency.bytes().all(|byte| byte.is_ascii_lowercase()) {
            return Err(ApiError::param("currency", "Must be three letters."));
        }
        Ok(Self {
            amount,
            currency,
            source: required("source")?,
            description: fields.remove("description"),
            metadata: fields.into_iter().filter_map(metadata).collect(),
        })
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    headers
        .get(CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().starts_with(b"application/json"))
}

/// The pairs that a form would have in the place of a JSON object.
fn as_form(object: Map<String, Value>) -> BTreeMap<String, String> {
    let mut fields = BTreeMap::new();
    for (name, value) in object {
        let text = match value {
            Value::Null => continue,
            Value::String(text) => text,
            Value::Object(nested) => {
                let nested = as_form(nested).into_iter();
                fields.extend(nested.map(|(key, value)| (format!("{name}[{key}]"), value)));
                continue;
            }
            other => other.to_string(),
        };
        fields.insert(name, text);
    }
    fields
}

/// The entry that `metadata[order]=7` makes.
fn metadata((name, value): (String, String)) -> Option<(String, String)> {
    let key = name.strip_prefix("metadata[")?.strip_suffix(']')?;
    Some((key.to_owned(), value))
}
