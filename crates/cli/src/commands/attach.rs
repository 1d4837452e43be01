//! `attach`.

use super::container::{self, Waiting};
use crate::args::process::AttachArgs;
use crate::client::Client;
use crate::client::body::RequestBody;
use crate::client::url::Url;
use crate::error::{CliError, CliResult};
use crate::session::{self, Ended, Session, Target};
use crate::terminal::keys;

/// `attach`.
pub(super) async fn attach(client: &Client, args: &AttachArgs) -> CliResult<u8> {
    let described = container::inspect(client, &args.container).await?;
    let state = &described["State"];
    if state["Running"] != true {
        return Err(CliError::Usage("you cannot attach to a stopped container, start it first".into()).with_code(1));
    }
    if state["Paused"] == true {
        return Err(CliError::Usage("you cannot attach to a paused container, unpause it first".into()).with_code(1));
    }
    let id = described["Id"].as_str().unwrap_or(&args.container).to_owned();
    let waiting = Waiting::begin(client, &id, "not-running").await?;
    let stdin = !args.no_stdin && described["Config"]["OpenStdin"] == true;
    let url = Url::container(&id, "/attach").with("stream", "1").with("stdout", "1").with("stderr", "1");
    let streams = client.hijack(&url.with_flag("stdin", stdin), RequestBody::empty()).await?;
    let target = Target {
        resize: Url::container(&id, "/resize"),
        kill: args.sig_proxy.then(|| Url::container(&id, "/kill")),
        tty: described["Config"]["Tty"] == true,
        stdin,
        detach_keys: keys::wanted(client.preferences().detach_keys(args.detach_keys.as_deref()))?,
    };
    if target.tty {
        session::redraw(client, &target.resize).await;
    }
    match Session::begin(client, target)?.run(streams).await? {
        Ended::Detached => Ok(0),
        Ended::Closed => waiting.code().await,
    }
}
