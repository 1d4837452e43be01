//! `export`.

use http_body_util::BodyExt;
use hyper::Method;
use hyper::body::Incoming;
use tokio::io::{AsyncWrite, AsyncWriteExt};

use crate::args::files::ExportArgs;
use crate::client::body::RequestBody;
use crate::client::url::Url;
use crate::client::{Client, ClientError};
use crate::error::{CliError, CliResult};
use crate::terminal;

/// `export`.
pub(super) async fn export(client: &Client, args: &ExportArgs) -> CliResult<()> {
    if args.output.is_none() && terminal::on_stdout() {
        let text = "cowardly refusing to save to a terminal: use the -o flag or redirect";
        return Err(CliError::Usage(text.into()).with_code(1));
    }
    let url = Url::container(&args.container, "/export");
    let answer = client.send(Method::GET, &url, RequestBody::empty()).await?.into_body();
    match &args.output {
        None => write_to(answer, &mut tokio::io::stdout()).await,
        Some(path) => {
            let mut file = tokio::fs::File::create(path).await.map_err(CliError::file(path))?;
            write_to(answer, &mut file).await
        }
    }
}

/// Writes an answer as it comes.
pub(super) async fn write_to(mut answer: Incoming, to: &mut (impl AsyncWrite + Unpin)) -> CliResult<()> {
    while let Some(frame) = answer.frame().await {
        let frame = frame.map_err(ClientError::from)?;
        if let Some(bytes) = frame.data_ref() {
            to.write_all(bytes).await.map_err(CliError::local("cannot write"))?;
        }
    }
    to.flush().await.map_err(CliError::local("cannot write"))
}
