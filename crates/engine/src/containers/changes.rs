//! `GET /containers/{id}/changes`: what a container has changed in its file system.

use std::io::{BufRead, BufReader, Read};
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use proto::files::{ChangeLine, FilesRequest};
use serde_json::{Value, json};

use super::files::{Operation, own_paths, received};
use crate::engine::Engine;
use crate::error::{ApiError, ApiResult};

/// Bytes of a list. A guest could send one without end.
const MOST_BYTES: u64 = 256 << 20;

/// Lists the changes, in the order of their paths.
///
/// # Errors
/// 404 for an unknown container; what reading its files says.
pub async fn changes(State(engine): State<Arc<Engine>>, Path(id): Path<String>) -> ApiResult<Json<Value>> {
    let container = engine.containers.find(&id)?;
    let request = FilesRequest::Changes { own: own_paths(&engine, &container)? };
    let operation = Operation::begin(&engine, &container, request).await?;
    let lines = tokio::task::spawn_blocking(move || {
        let mut receiver = operation.receiver()?;
        let lines = read(&mut receiver)?;
        operation.finish()?;
        Ok::<_, ApiError>(lines)
    });
    let mut lines = lines.await??;
    lines.sort_unstable_by(|a, b| a.path.cmp(&b.path));
    let lines: Vec<Value> = lines.into_iter().map(|line| json!({ "Path": line.path, "Kind": line.kind })).collect();
    // A list without elements is null, as dockerd has it; clients tell the two apart.
    Ok(Json(if lines.is_empty() { Value::Null } else { lines.into() }))
}

fn read(stream: &mut impl Read) -> ApiResult<Vec<ChangeLine>> {
    let malformed = || ApiError::internal("the list of the container's changes is malformed");
    let mut bounded = BufReader::new(stream.take(MOST_BYTES + 1));
    let (mut lines, mut text, mut bytes) = (Vec::new(), Vec::new(), 0_u64);
    loop {
        text.clear();
        let count = received(bounded.read_until(b'\n', &mut text))?;
        if count == 0 {
            return Ok(lines);
        }
        bytes += count as u64;
        if bytes > MOST_BYTES {
            return Err(ApiError::internal("the list of the container's changes is too long"));
        }
        let line: ChangeLine = serde_json::from_slice(&text).map_err(|_| malformed())?;
        if line.kind > 2 || !line.path.starts_with('/') {
            return Err(malformed());
        }
        lines.push(line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_changes_are_taken_for_changes() {
        let good = "{\"kind\":0,\"path\":\"/a\"}\n{\"kind\":2,\"path\":\"/b\"}\n";
        assert_eq!(read(&mut good.as_bytes()).unwrap().len(), 2);
        for bad in ["{\"kind\":3,\"path\":\"/a\"}\n", "{\"kind\":0,\"path\":\"a\"}\n", "x\n", "\n"] {
            assert!(read(&mut bad.as_bytes()).is_err(), "{bad:?}");
        }
    }
}
