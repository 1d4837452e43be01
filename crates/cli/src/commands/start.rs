//! `start`.

use super::container::{self, Waiting};
use super::{for_each, say};
use crate::args::process::StartArgs;
use crate::client::Client;
use crate::client::body::RequestBody;
use crate::client::url::Url;
use crate::error::{CliError, CliResult, start_code};
use crate::session::{Ended, Session, Target};
use crate::terminal::keys;

/// `start`.
pub(super) async fn start(client: &Client, args: &StartArgs) -> CliResult<u8> {
    if !args.attach && !args.interactive {
        for_each(&args.names.names, async |name| {
            container::start(client, name).await?;
            say(name)
        })
        .await?;
        return Ok(0);
    }
    let [name] = args.names.names.as_slice() else {
        return Err(CliError::Usage("you cannot start and attach multiple containers at once".into()).with_code(1));
    };
    let described = container::inspect(client, name).await?;
    let id = described["Id"].as_str().unwrap_or(name).to_owned();
    let stdin = args.interactive && described["Config"]["OpenStdin"] == true;
    let url = Url::container(&id, "/attach").with("stream", "1").with("stdout", "1").with("stderr", "1");
    let streams = client.hijack(&url.with_flag("stdin", stdin), RequestBody::empty()).await?;
    let removed = described["HostConfig"]["AutoRemove"] == true;
    let waiting = Waiting::begin(client, &id, if removed { "removed" } else { "next-exit" }).await?;
    let target = Target {
        resize: Url::container(&id, "/resize"),
        kill: args.sig_proxy.then(|| Url::container(&id, "/kill")),
        tty: described["Config"]["Tty"] == true,
        stdin,
        detach_keys: keys::wanted(client.preferences().detach_keys(args.detach_keys.as_deref()))?,
    };
    container::start(client, &id).await.map_err(|error| {
        let code = start_code(&error);
        // Without a fault of the container's command, a failed start is an ordinary failure.
        error.with_code(if code == crate::error::REFUSED { 1 } else { code })
    })?;
    match Session::begin(client, target)?.run(streams).await? {
        Ended::Detached => Ok(0),
        Ended::Closed => waiting.code().await,
    }
}
