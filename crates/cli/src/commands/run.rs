//! `run`: create, attach, wait, start, and then what the container does.

use super::container::{self, Waiting};
use super::{create, say};
use crate::args::container::RunArgs;
use crate::client::Client;
use crate::client::body::RequestBody;
use crate::client::url::Url;
use crate::error::{CliError, CliResult, REFUSED, start_code};
use crate::request::Attached;
use crate::session::{Ended, Session, Target};
use crate::terminal::{self, keys};

/// `run`.
pub(super) async fn run(client: &Client, args: &RunArgs) -> CliResult<u8> {
    let detach_keys = keys::wanted(client.preferences().detach_keys(args.detach_keys.as_deref()))?;
    let create_args = &args.create;
    if args.detach && !create_args.attach.is_empty() {
        return Err(CliError::Usage("--attach and --detach contradict each other".into()));
    }
    let attached = Attached::choose(&create_args.attach, create_args.interactive, args.detach)?;
    if create_args.tty && attached.stdin && !terminal::on_stdin() {
        return Err(CliError::Usage("the input device is not a TTY".into()).with_code(1));
    }
    let refused = |error: CliError| error.with_code(REFUSED);
    let body = create::body(client, create_args, attached)?;
    let id = create::make(client, create_args, &body).await.map_err(refused)?;
    if args.detach {
        container::start(client, &id).await.map_err(coded)?;
        return say(&id).map(|()| 0);
    }
    let target = Target {
        resize: Url::container(&id, "/resize"),
        kill: args.sig_proxy.then(|| Url::container(&id, "/kill")),
        tty: create_args.tty,
        stdin: attached.stdin,
        detach_keys,
    };
    attached_run(client, &id, attached, target, create_args.rm).await
}

async fn attached_run(client: &Client, id: &str, attached: Attached, target: Target, remove: bool) -> CliResult<u8> {
    let refused = |error: CliError| error.with_code(REFUSED);
    let url = Url::container(id, "/attach")
        .with("stream", "1")
        .with_flag("stdin", attached.stdin)
        .with_flag("stdout", attached.stdout)
        .with_flag("stderr", attached.stderr);
    let streams = client.hijack(&url, RequestBody::empty()).await.map_err(|error| refused(error.into()))?;
    let condition = if remove { "removed" } else { "next-exit" };
    let waiting = Waiting::begin(client, id, condition).await.map_err(refused)?;
    container::start(client, id).await.map_err(coded)?;
    // Output flows while the container starts, so the session begins when the start is through.
    match Session::begin(client, target)?.run(streams).await.map_err(refused)? {
        Ended::Detached => Ok(0),
        Ended::Closed => waiting.code().await,
    }
}

/// A start that failed ends with the code for its reason.
fn coded(error: CliError) -> CliError {
    let code = start_code(&error);
    error.with_code(code)
}
