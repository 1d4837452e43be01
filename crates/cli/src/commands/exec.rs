//! `exec`.

use bollard::models::ExecConfig;
use serde_json::{Value, json};

use super::container;
use crate::args::process::ExecArgs;
use crate::client::Client;
use crate::client::body::RequestBody;
use crate::client::url::Url;
use crate::error::{CliError, CliResult, start_code};
use crate::parse::environment;
use crate::session::{Ended, Session, Target};
use crate::terminal::{self, keys};

/// `exec`.
pub(super) async fn exec(client: &Client, args: &ExecArgs) -> CliResult<u8> {
    let [name, command @ ..] = args.container_and_command.as_slice() else {
        return Err(CliError::Usage("a container and a command are needed".into()));
    };
    if args.tty && args.interactive && !args.detach && !terminal::on_stdin() {
        return Err(CliError::Usage("the input device is not a TTY".into()).with_code(1));
    }
    let detach_keys = keys::wanted(client.preferences().detach_keys(args.detach_keys.as_deref()))?;
    let env = environment::variables(&args.env_file, &args.env, |name| std::env::var(name).ok())?;
    let size = terminal::size().filter(|_| args.tty).map(|(height, width)| vec![height.into(), width.into()]);
    let config = ExecConfig {
        attach_stdin: Some(args.interactive && !args.detach),
        attach_stdout: Some(!args.detach),
        attach_stderr: Some(!args.detach),
        console_size: size.clone(),
        tty: Some(args.tty),
        env: (!env.is_empty()).then_some(env),
        cmd: Some(command.to_vec()),
        privileged: Some(args.privileged),
        user: args.user.clone(),
        working_dir: args.workdir.clone(),
        detach_keys: client.preferences().detach_keys(args.detach_keys.as_deref()).map(str::to_owned),
    };
    let made: Value = client.post(&Url::container(name, "/exec"), &config).await?;
    let id = made["Id"].as_str().ok_or_else(|| CliError::Answer("it has no exec id".into()))?;
    let start = Url::named("/exec/", id, "/start");
    let body = json!({"Detach": args.detach, "Tty": args.tty, "ConsoleSize": size});
    if args.detach {
        let sent = client.send(hyper::Method::POST, &start, RequestBody::json(&body)?).await;
        return sent.map(|_| 0).map_err(|error| coded(error.into()));
    }
    let streams = client.hijack(&start, RequestBody::json(&body)?).await.map_err(|error| coded(error.into()))?;
    let target = Target {
        resize: Url::named("/exec/", id, "/resize"),
        kill: None,
        tty: args.tty,
        stdin: args.interactive,
        detach_keys,
    };
    match Session::begin(client, target)?.run(streams).await? {
        Ended::Detached => Ok(0),
        Ended::Closed => {
            let ended: Value = client.get(&Url::named("/exec/", id, "/json")).await?;
            container::exit_code(&ended["ExitCode"])
        }
    }
}

/// A command that could not be started ends with the code for its reason.
fn coded(error: CliError) -> CliError {
    match start_code(&error) {
        code @ (126 | 127) => error.with_code(code),
        _ => error,
    }
}
