//! `version`.

use serde_json::{Value, json};

use super::{say, text};
use crate::args::system::FormatArgs;
use crate::client::Client;
use crate::client::url::Url;
use crate::error::CliResult;
use crate::output::template::Template;

/// `version`: the client's, and the engine's if it answers.
pub(super) async fn version(client: &Client, args: &FormatArgs) -> CliResult<()> {
    let server: Result<Value, _> = client.get(&Url::new("/version")).await;
    let own = json!({"Version": env!("CARGO_PKG_VERSION"), "Os": std::env::consts::OS, "Arch": std::env::consts::ARCH});
    let both = json!({"Client": own, "Server": server.as_ref().ok()});
    match args.format.as_deref() {
        Some("json") => say(&both.to_string())?,
        Some(format) => say(&Template::parse(format)?.apply(&both)?)?,
        None => {
            let mut lines = vec!["Client:".to_owned(), format!(" Version:      {}", env!("CARGO_PKG_VERSION"))];
            lines.push(format!(" OS/Arch:      {}/{}", std::env::consts::OS, std::env::consts::ARCH));
            if let Ok(server) = &server {
                lines.push(format!("\nServer: {}", text(&server["Platform"], "Name")));
                lines.push(format!(" Version:      {}", text(server, "Version")));
                lines.push(format!(
                    " API version:  {} (minimum version {})",
                    text(server, "ApiVersion"),
                    text(server, "MinAPIVersion")
                ));
                lines.push(format!(" OS/Arch:      {}/{}", text(server, "Os"), text(server, "Arch")));
                lines.push(format!(" Kernel:       {}", text(server, "KernelVersion")));
            }
            say(&lines.join("\n"))?;
        }
    }
    server.map(|_| ()).map_err(Into::into)
}
