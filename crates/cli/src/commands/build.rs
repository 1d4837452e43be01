//! `build`.

mod context;

use std::collections::HashMap;
use std::io::Write;

use hyper::Method;
use serde_json::{Value, json};

use crate::args::build::BuildArgs;
use crate::client::Client;
use crate::client::url::Url;
use crate::error::{CliError, CliResult};
use crate::parse::{environment, ulimit};
use context::Context;

/// `build`.
pub(super) async fn build(client: &Client, args: &BuildArgs) -> CliResult<()> {
    let context = Context::open(args)?;
    let set = |name: &str| args.build_arg.iter().any(|entry| entry.split('=').next() == Some(name));
    let proxies = client.preferences().proxy_variables(&client.address().to_string(), set);
    let url = url(args, &context.dockerfile, proxies)?.with_some("remote", context.remote.as_deref());
    let mut lines = client.lines(Method::POST, &url, context.body).await?;
    let mut image = None;
    let mut out = std::io::stdout();
    while let Some(line) = lines.next().await? {
        if let Some(message) = line["errorDetail"]["message"].as_str() {
            let error = CliError::Failed(message.to_owned());
            let code = line["errorDetail"]["code"].as_u64().and_then(|code| u8::try_from(code).ok());
            return Err(error.with_code(code.filter(|code| *code != 0).unwrap_or(1)));
        }
        if let Some(id) = line["aux"]["ID"].as_str() {
            image = Some(id.to_owned());
        }
        let text = match (line["stream"].as_str(), line["status"].as_str()) {
            (Some(text), _) => text.to_owned(),
            // How far the layers of a base image are is left out: there may be a hundred lines a second.
            (None, Some(status)) if line["progressDetail"].is_null() => status.to_owned() + "\n",
            _ => continue,
        };
        if args.quiet {
            image = Some(text.trim().to_owned());
        }
        out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(CliError::local("cannot write"))?;
    }
    match (&args.iidfile, image) {
        (Some(file), Some(id)) => std::fs::write(file, id).map_err(CliError::file(file)),
        _ => Ok(()),
    }
}

fn url(args: &BuildArgs, dockerfile: &str, proxies: Vec<(String, String)>) -> CliResult<Url> {
    let number = |value: Option<i64>| value.map(|value| value.to_string());
    let mut url = Url::new("/build")
        .with("dockerfile", dockerfile)
        .with("rm", if args.rm { "1" } else { "0" })
        .with_flag("forcerm", args.force_rm)
        .with_flag("q", args.quiet)
        .with_flag("nocache", args.no_cache)
        .with_flag("pull", args.pull)
        .with_some("isolation", args.isolation.as_deref())
        .with_some("target", args.target.as_deref())
        .with_some("platform", args.platform.as_deref())
        .with_some("networkmode", args.network.as_deref())
        .with_some("cpusetcpus", args.cpuset_cpus.as_deref())
        .with_some("cpusetmems", args.cpuset_mems.as_deref())
        .with_some("cgroupparent", args.cgroup_parent.as_deref());
    for (name, value) in [
        ("memory", args.memory),
        ("memswap", args.memory_swap),
        ("shmsize", args.shm_size),
        ("cpushares", args.cpu_shares),
        ("cpuperiod", args.cpu_period),
        ("cpuquota", args.cpu_quota),
    ] {
        url = url.with_some(name, number(value).as_deref());
    }
    for (name, values) in [("t", &args.tag), ("extrahosts", &args.add_host)] {
        url = values.iter().fold(url, |url, value| url.with(name, value));
    }
    let ulimits = args.ulimit.iter().map(|text| ulimit::ulimit(text)).collect::<CliResult<Vec<_>>>()?;
    let labels: HashMap<String, String> = environment::pairs(&args.label, "label")?;
    let mut build_args = build_args(&args.build_arg);
    build_args.extend(proxies.into_iter().map(|(name, value)| (name, Some(value))));
    for (name, value, is_given) in [
        ("buildargs", json!(build_args), !build_args.is_empty()),
        ("labels", json!(labels), !labels.is_empty()),
        ("cachefrom", json!(args.cache_from), !args.cache_from.is_empty()),
        ("securityopt", json!(args.security_opt), !args.security_opt.is_empty()),
        ("ulimits", json!(ulimits), !ulimits.is_empty()),
    ] {
        if is_given {
            url = url.with(name, &Value::to_string(&value));
        }
    }
    Ok(url)
}

/// One without a value has that of the environment, or none.
fn build_args(given: &[String]) -> HashMap<String, Option<String>> {
    let pair = |text: &String| match text.split_once('=') {
        Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
        None => (text.clone(), std::env::var(text).ok()),
    };
    given.iter().map(pair).collect()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};

    #[test]
    fn flags_become_parameters() {
        let words = "bulkhead build -t a -t b:1 --build-arg X=1 --isolation hyperv -m 64m --rm=false --label l=m .";
        let Command::Build(args) = Cli::try_parse_from(words.split(' ')).unwrap().command else { panic!() };
        let url = url(&args, "Dockerfile", Vec::new()).unwrap();
        let text = url.as_str();
        for part in ["t=a&t=b%3A1", "isolation=hyperv", "memory=67108864", "rm=0", "buildargs=%7B%22X%22%3A%221%22%7D"]
        {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!text.contains("nocache") && !text.contains("ulimits"), "{text}");
    }
}
