//! `logs`.

use futures_util::TryStreamExt;
use http_body_util::BodyStream;
use hyper::Method;
use tokio_util::io::StreamReader;

use super::container;
use crate::args::process::LogsArgs;
use crate::client::Client;
use crate::client::body::RequestBody;
use crate::client::hijack::Output;
use crate::client::url::Url;
use crate::error::{CliError, CliResult};
use crate::output::time;

/// `logs`.
pub(super) async fn logs(client: &Client, args: &LogsArgs) -> CliResult<()> {
    let described = container::inspect(client, &args.container).await?;
    let url = Url::container(&args.container, "/logs")
        .with("stdout", "1")
        .with("stderr", "1")
        .with_flag("follow", args.follow)
        .with_flag("details", args.details)
        .with_flag("timestamps", args.timestamps)
        .with("tail", &args.tail)
        .with_some("since", args.since.as_deref().map(time::point).as_deref())
        .with_some("until", args.until.as_deref().map(time::point).as_deref());
    let response = client.send(Method::GET, &url, RequestBody::empty()).await?;
    let data = BodyStream::new(response.into_body())
        .map_err(std::io::Error::other)
        .try_filter_map(|frame| std::future::ready(Ok(frame.into_data().ok())));
    let reader = StreamReader::new(Box::pin(data));
    let (mut out, mut err) = (tokio::io::stdout(), tokio::io::stderr());
    let raw = described["Config"]["Tty"] == true;
    Output::new(reader, raw).copy(&mut out, &mut err).await.map_err(CliError::local("the log broke off"))
}
