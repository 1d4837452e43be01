//! What the user prefers, by docker's `config.json`: detach keys, formats of lists, headers of every request, proxies for containers
//! and builds, and filters for everything that prunes. Credentials and the current context are read from it elsewhere.
//!
//! Source: docker/cli, cli/config/configfile/file.go.

use std::collections::BTreeMap;

use serde::Deserialize;

/// The file's keys. An empty value is none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Preferences {
    /// Keys that detach, where `--detach-keys` says nothing.
    pub detach_keys: String,
    /// `--format` of `ps`.
    pub ps_format: String,
    /// `--format` of `images`.
    pub images_format: String,
    /// `--format` of `network ls`.
    pub networks_format: String,
    /// `--format` of `volume ls`.
    pub volumes_format: String,
    /// `--format` of `stats`.
    pub stats_format: String,
    /// Headers of every request.
    #[serde(rename = "HttpHeaders", alias = "httpHeaders")]
    pub headers: BTreeMap<String, String>,
    /// By the engine's address; `default` is for all others.
    pub proxies: BTreeMap<String, Proxies>,
    /// Filters of everything that prunes, `KEY=VALUE`.
    pub prune_filters: Vec<String>,
}

/// Proxies that containers and builds are told of.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Proxies {
    http_proxy: String,
    https_proxy: String,
    no_proxy: String,
    ftp_proxy: String,
    all_proxy: String,
}

/// A value, unless it is empty.
fn given(text: &str) -> Option<&str> {
    Some(text).filter(|text| !text.is_empty())
}

impl Preferences {
    /// Reads the text of the file. Shape: what else is in it is nothing to us.
    ///
    /// # Errors
    /// It is no JSON, or a key holds something else than it should.
    pub fn parse(text: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(text)
    }

    /// The detach keys, if the command line or the file has them. An empty flag is none, as with docker.
    pub fn detach_keys<'a>(&'a self, flag: Option<&'a str>) -> Option<&'a str> {
        flag.and_then(given).or_else(|| given(&self.detach_keys))
    }

    /// The format of a list: the command line's, or else the `preferred` one, unless the list is `quiet`.
    pub fn format<'a>(flag: Option<&'a str>, preferred: &'a str, quiet: bool) -> Option<&'a str> {
        flag.and_then(given).or_else(|| given(preferred).filter(|_| !quiet))
    }

    /// Variables for the proxies of an engine's containers, in large letters and in small ones, but for those that are `set`.
    pub fn proxy_variables(&self, engine: &str, set: impl Fn(&str) -> bool) -> Vec<(String, String)> {
        let Some(proxies) = self.proxies.get(engine).or_else(|| self.proxies.get("default")) else { return Vec::new() };
        let values = [
            ("HTTP_PROXY", &proxies.http_proxy),
            ("HTTPS_PROXY", &proxies.https_proxy),
            ("NO_PROXY", &proxies.no_proxy),
            ("FTP_PROXY", &proxies.ftp_proxy),
            ("ALL_PROXY", &proxies.all_proxy),
        ];
        let given = values.into_iter().filter(|(_, value)| !value.is_empty());
        let both = given.flat_map(|(name, value)| [(name.to_owned(), value), (name.to_lowercase(), value)]);
        both.filter(|(name, _)| !set(name)).map(|(name, value)| (name, value.clone())).collect()
    }

    /// The filters of a command that prunes: the command line's, and those of the file that do not contradict them.
    pub fn prune_filters(&self, given: &[String]) -> Vec<String> {
        let contradicted = |filter: &str| {
            let Some((key, value)) = filter.split_once('=') else { return true };
            let opposite = match key {
                "label" => "label!",
                "label!" => "label",
                _ => return value.is_empty(),
            };
            value.is_empty() || given.iter().any(|other| *other == format!("{opposite}={value}"))
        };
        given.iter().chain(self.prune_filters.iter().filter(|filter| !contradicted(filter))).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_come_before_the_file_and_empty_ones_are_none() {
        let text = br#"{"detachKeys":"ctrl-x","psFormat":"{{.ID}}","auths":{},"HttpHeaders":{"X-A":"b"},"aliases":{}}"#;
        let read = Preferences::parse(text).unwrap();
        assert_eq!(read.detach_keys(None), Some("ctrl-x"));
        assert_eq!(read.detach_keys(Some("")), Some("ctrl-x"));
        assert_eq!(read.detach_keys(Some("a,b")), Some("a,b"));
        assert_eq!(Preferences::default().detach_keys(None), None);
        assert_eq!(Preferences::format(None, &read.ps_format, false), Some("{{.ID}}"));
        assert_eq!(Preferences::format(None, &read.ps_format, true), None);
        assert_eq!(Preferences::format(Some("json"), &read.ps_format, true), Some("json"));
        assert_eq!(Preferences::format(None, &read.images_format, false), None);
        assert_eq!(read.headers["X-A"], "b");
        assert!(Preferences::parse(br#"{"psFormat":1}"#).is_err());
    }

    #[test]
    fn proxies_are_those_of_the_engine_or_the_default_and_yield_to_what_is_set() {
        let text = br#"{"proxies":{"default":{"httpProxy":"http://p:1","noProxy":"a"},"unix:///x":{"allProxy":"s"}}}"#;
        let read = Preferences::parse(text).unwrap();
        let names = |engine: &str| -> Vec<String> {
            let variables = read.proxy_variables(engine, |name| name == "no_proxy");
            variables.into_iter().map(|(name, value)| format!("{name}={value}")).collect()
        };
        assert_eq!(names("unix:///y"), ["HTTP_PROXY=http://p:1", "http_proxy=http://p:1", "NO_PROXY=a"]);
        assert_eq!(names("unix:///x"), ["ALL_PROXY=s", "all_proxy=s"]);
    }

    #[test]
    fn filters_for_pruning_yield_to_their_opposites() {
        let read = Preferences::parse(br#"{"pruneFilters":["label=keep","label!=old","until=24h","odd"]}"#).unwrap();
        assert_eq!(read.prune_filters(&["label!=keep".into()]), ["label!=keep", "label!=old", "until=24h"]);
    }
}
