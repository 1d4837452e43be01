//! Request bodies.

mod fields;

use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::{StatusCode, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::error::{ApiError, ApiResult};

/// The longest JSON body that is read, in bytes.
const MAX_JSON_BYTES: usize = 4 << 20;

/// Reads the JSON body of a request.
///
/// # Errors
/// 400 when it is absent, has another type, or cannot be decoded; 413 when it is too long.
pub async fn json<T: DeserializeOwned>(request: Request) -> ApiResult<T> {
    optional_json(request).await?.ok_or_else(|| ApiError::invalid("invalid JSON: got EOF while reading request body"))
}

/// Reads the JSON body of a request that may have none.
///
/// # Errors
/// As [`json`], but for an absent body.
pub async fn optional_json<T: DeserializeOwned>(request: Request) -> ApiResult<Option<T>> {
    let given = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let given = given.to_owned();
    let bytes = read(request.into_body()).await?;
    if bytes.is_empty() {
        return Ok(None);
    }
    let media_type = given.split(';').next().unwrap_or_default().trim();
    if media_type != "application/json" {
        return Err(ApiError::invalid(format!(
            "unsupported Content-Type header ({given}): must be 'application/json'"
        )));
    }
    let mut reader = serde_json::Deserializer::from_slice(&bytes);
    let mut document: Value = typed(&mut reader)?;
    reader.end().map_err(|error| ApiError::invalid(format!("invalid JSON: {error}")))?;
    fields::name_as_fields::<T>(&mut document);
    typed(document).map(Some)
}

/// Reads a value; an error says where in the document it is, such as `HostConfig.Memory`.
///
/// # Errors
/// 400 when it has another form.
pub fn typed<'de, T: Deserialize<'de>, D: Deserializer<'de>>(document: D) -> ApiResult<T> {
    serde_path_to_error::deserialize(document).map_err(|error| {
        // Text that breaks off has no place. The words are those of Go's decoder, which clients know.
        if error.inner().to_string().starts_with("EOF while parsing") {
            return ApiError::invalid("invalid JSON: unexpected EOF");
        }
        // Without a path there is nothing to add to the text.
        let place = Some(error.path().to_string()).filter(|path| path != ".").map(|path| path + ": ");
        ApiError::invalid(format!("invalid JSON: {}{}", place.unwrap_or_default(), error.inner()))
    })
}

async fn read(body: Body) -> ApiResult<Bytes> {
    match Limited::new(body, MAX_JSON_BYTES).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => {
            Err(ApiError::invalid(format!("the request body is longer than {MAX_JSON_BYTES} bytes"))
                .with_status(StatusCode::PAYLOAD_TOO_LARGE))
        }
        Err(error) => Err(ApiError::invalid(format!("cannot read the request body: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(content_type: &str, body: &str) -> Request {
        Request::builder().header(header::CONTENT_TYPE, content_type).body(Body::from(body.to_owned())).unwrap()
    }

    #[tokio::test]
    async fn only_json_is_read_and_absence_is_told_apart() {
        let value: Value = json(request("application/json; charset=utf-8", "{\"a\":1}")).await.unwrap();
        assert_eq!(value["a"], 1);
        assert!(optional_json::<Value>(request("", "")).await.unwrap().is_none());
        for (content_type, body, text) in [
            ("text/plain", "{}", "must be 'application/json'"),
            ("application/json", "{", "invalid JSON: unexpected EOF"),
            ("application/json", "", "got EOF"),
        ] {
            let error = json::<Value>(request(content_type, body)).await.unwrap_err();
            assert_eq!(error.http_status(), 400);
            assert!(error.message.contains(text), "{}", error.message);
        }
        let error = json::<std::collections::BTreeMap<String, u8>>(request("application/json", "{\"a\":-1}"))
            .await
            .unwrap_err();
        assert!(error.message.starts_with("invalid JSON: a: invalid value"), "{}", error.message);
        let deep = "[".repeat(10_000);
        assert_eq!(json::<Value>(request("application/json", &deep)).await.unwrap_err().http_status(), 400);
        let long = " ".repeat(MAX_JSON_BYTES + 1);
        assert_eq!(json::<Value>(request("application/json", &long)).await.unwrap_err().http_status(), 413);
    }
}
