//! `events`.

use hyper::Method;
use serde_json::Value;

use super::{filters, say, text};
use crate::args::process::EventsArgs;
use crate::client::Client;
use crate::client::body::RequestBody;
use crate::client::url::Url;
use crate::error::CliResult;
use crate::output::template::Template;
use crate::output::time;

/// `events`.
pub(super) async fn events(client: &Client, args: &EventsArgs) -> CliResult<()> {
    let template = match args.format.as_deref() {
        None | Some("json") => None,
        Some(format) => Some(Template::parse(format)?),
    };
    let url = Url::new("/events")
        .with_some("since", args.since.as_deref().map(time::point).as_deref())
        .with_some("until", args.until.as_deref().map(time::point).as_deref())
        .with_some("filters", filters(&args.filter)?.as_deref());
    let mut events = client.lines(Method::GET, &url, RequestBody::empty()).await?;
    while let Some(event) = events.next().await? {
        match (&template, args.format.is_some()) {
            (Some(template), _) => say(&template.apply(&event)?)?,
            (None, true) => say(&event.to_string())?,
            (None, false) => say(&line(&event))?,
        }
    }
    Ok(())
}

/// An event as docker prints it: time, kind, action, actor, attributes.
fn line(event: &Value) -> String {
    let at = time::rfc3339(event["timeNano"].as_i64().unwrap_or_default());
    let attributes: Vec<String> = event["Actor"]["Attributes"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(name, value)| format!("{name}={}", value.as_str().unwrap_or_default()))
        .collect();
    let attributes = if attributes.is_empty() { String::new() } else { format!(" ({})", attributes.join(", ")) };
    format!("{at} {} {} {}{attributes}", text(event, "Type"), text(event, "Action"), text(&event["Actor"], "ID"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_event_is_a_line() {
        let event = json!({
            "Type": "container", "Action": "die", "timeNano": 951_827_696_000_000_005_i64,
            "Actor": {"ID": "abc", "Attributes": {"exitCode": "0", "name": "web"}},
        });
        assert_eq!(line(&event), "2000-02-29T12:34:56.000000005Z container die abc (exitCode=0, name=web)");
    }
}
