//! `save`.

use futures_util::TryStreamExt;
use http_body_util::BodyStream;
use hyper::Method;
use std::io::IsTerminal;
use std::path::Path;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio_util::io::StreamReader;

use crate::args::storage::SaveArgs;
use crate::client::Client;
use crate::client::body::RequestBody;
use crate::client::url::Url;
use crate::error::{CliError, CliResult};

/// `save`. A file gets its name when it is whole, so that no half archive is taken for one.
pub(super) async fn save(client: &Client, args: &SaveArgs) -> CliResult<()> {
    let Some(path) = &args.output else {
        if std::io::stdout().is_terminal() {
            let text = "an archive is not for a terminal: use --output, or send standard output elsewhere";
            return Err(CliError::Usage(text.into()).with_code(1));
        }
        return write(client, args, tokio::io::stdout()).await;
    };
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let half = folder.join(format!(".bulkhead-save-{}", std::process::id()));
    let file = tokio::fs::File::create_new(&half).await;
    let file = file.map_err(CliError::local(format!("cannot write {}", path.display())))?;
    let written = match write(client, args, file).await {
        Ok(()) => {
            tokio::fs::rename(&half, path).await.map_err(CliError::local(format!("cannot write {}", path.display())))
        }
        Err(error) => Err(error),
    };
    if written.is_err() {
        // What failed first is what is told.
        drop(tokio::fs::remove_file(&half).await);
    }
    written
}

async fn write(client: &Client, args: &SaveArgs, mut to: impl AsyncWrite + Unpin) -> CliResult<()> {
    let url = args.images.iter().fold(Url::new("/images/get"), |url, name| url.with("names", name));
    let response = client.send(Method::GET, &url, RequestBody::empty()).await?;
    let data = BodyStream::new(response.into_body())
        .map_err(std::io::Error::other)
        .try_filter_map(|frame| std::future::ready(Ok(frame.into_data().ok())));
    let mut reader = StreamReader::new(Box::pin(data));
    let copied = tokio::io::copy(&mut reader, &mut to).await;
    copied.map_err(CliError::local("the archive broke off"))?;
    to.flush().await.map_err(CliError::local("cannot write the archive"))
}
