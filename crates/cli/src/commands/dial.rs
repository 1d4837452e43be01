//! `system dial-stdio`: the engine's socket on standard input and output. An `ssh://` address runs it on the other host.

use tokio::io::AsyncWriteExt;

use crate::client::{Client, ClientError};
use crate::error::{CliError, CliResult};

/// Copies both ways until the engine closes its side. The end of standard input is passed on, as half a close.
pub(super) async fn dial(client: &Client) -> CliResult<()> {
    let stream = client.connect().await?;
    let failed = |error: std::io::Error| CliError::Engine(ClientError::Broken(error.to_string()));
    let (mut from_engine, mut to_engine) = tokio::io::split(stream);
    let sending = async {
        tokio::io::copy(&mut tokio::io::stdin(), &mut to_engine).await?;
        to_engine.shutdown().await?;
        // What ends the command is the engine's side.
        std::future::pending::<std::io::Result<()>>().await
    };
    let mut out = tokio::io::stdout();
    let receiving = async {
        tokio::io::copy(&mut from_engine, &mut out).await?;
        out.flush().await
    };
    tokio::select! {
        sent = sending => sent,
        received = receiving => received,
    }
    .map_err(failed)
}
