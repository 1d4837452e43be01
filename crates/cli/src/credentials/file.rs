//! docker's `config.json`.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use serde_json::{Map, Value};

use super::{Account, HUB, helper};
use crate::error::{CliError, CliResult};
use crate::preferences::Preferences;

/// The configuration as it is on disk; what is not ours in it is kept.
pub struct ConfigFile {
    path: PathBuf,
    content: Map<String, Value>,
}

impl ConfigFile {
    /// Reads `$DOCKER_CONFIG/config.json`, else `~/.docker/config.json`. One that is not there is empty.
    ///
    /// # Errors
    /// When it cannot be read or is no JSON object.
    pub fn open() -> CliResult<Self> {
        Self::read(Self::place())
    }

    /// What the user prefers. A file that does not say that in order says nothing, which the user is told, as by docker.
    #[must_use]
    pub fn preferences() -> Preferences {
        let path = Self::place();
        let read = fs::read(&path).and_then(|text| Ok(Preferences::parse(&text)?));
        read.unwrap_or_else(|error| {
            if error.kind() != io::ErrorKind::NotFound {
                // Nobody is there to be told when standard error is closed.
                let _ = writeln!(io::stderr(), "WARNING: Error loading config file: {}: {error}", path.display());
            }
            Preferences::default()
        })
    }

    fn place() -> PathBuf {
        let folder = match std::env::var_os("DOCKER_CONFIG") {
            Some(folder) if !folder.is_empty() => PathBuf::from(folder),
            _ => PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/root".into())).join(".docker"),
        };
        folder.join("config.json")
    }

    fn read(path: PathBuf) -> CliResult<Self> {
        let content = match fs::read(&path) {
            Ok(json) => serde_json::from_slice(&json)
                .map_err(|error| CliError::file(&path)(io::Error::new(io::ErrorKind::InvalidData, error)))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Map::new(),
            Err(error) => return Err(CliError::file(&path)(error)),
        };
        Ok(Self { path, content })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &PathBuf {
        &self.path
    }

    /// The account for a registry: from its helper, else from the file.
    ///
    /// # Errors
    /// When the helper cannot be run or answers what is not understood.
    pub fn account(&self, server: &str) -> CliResult<Option<Account>> {
        if let Some(name) = self.helper(server) {
            return helper::get(name, server);
        }
        let Some(entries) = self.content.get("auths").and_then(Value::as_object) else { return Ok(None) };
        if let Some(account) = entries.get(server).and_then(Account::from_entry) {
            return Ok(Some(account));
        }
        // Old clients wrote whole URLs.
        let same = |(key, _): &(&String, &Value)| super::server(key) == server;
        Ok(entries.iter().filter(same).find_map(|(_, entry)| Account::from_entry(entry)))
    }

    /// The helper program for a registry, without `docker-credential-`.
    fn helper(&self, server: &str) -> Option<&str> {
        let own = self.content.get("credHelpers").and_then(|helpers| helpers[server].as_str());
        own.or_else(|| self.content.get("credsStore").and_then(Value::as_str)).filter(|name| !name.is_empty())
    }

    /// Keeps an account; gives the helper that does, if one does.
    ///
    /// # Errors
    /// When the file or the helper fails.
    pub fn keep(&mut self, server: &str, account: &Account) -> CliResult<Option<String>> {
        if let Some(name) = self.helper(server).map(str::to_owned) {
            helper::store(&name, server, account)?;
            return Ok(Some(name));
        }
        let entries = self.content.entry("auths").or_insert_with(|| Value::Object(Map::new()));
        let broken = || CliError::Usage(format!("{} has an \"auths\" that is no object", self.path.display()));
        let entries = entries.as_object_mut().ok_or_else(broken)?;
        entries.insert(server.to_owned(), account.to_entry());
        self.write()?;
        Ok(None)
    }

    /// Forgets an account.
    ///
    /// # Errors
    /// When the file or the helper fails.
    pub fn forget(&mut self, server: &str) -> CliResult<()> {
        if let Some(name) = self.helper(server).map(str::to_owned) {
            helper::erase(&name, server)?;
        }
        let Some(entries) = self.content.get_mut("auths").and_then(Value::as_object_mut) else { return Ok(()) };
        let before = entries.len();
        entries.retain(|key, _| key != server && (server == HUB || super::server(key) != server));
        if entries.len() < before { self.write() } else { Ok(()) }
    }

    /// Writes a new file beside the old one and puts it in its place: readers see the one or the other.
    fn write(&self) -> CliResult<()> {
        let failed = || CliError::local(format!("cannot write {}", self.path.display()));
        if let Some(folder) = self.path.parent() {
            fs::create_dir_all(folder).map_err(failed())?;
        }
        let text = serde_json::to_string_pretty(&self.content).map_err(|error| failed()(io::Error::other(error)))?;
        let fresh = self.path.with_extension(format!("json{}", std::process::id()));
        let options = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh);
        let written = options.and_then(|mut file| file.write_all(text.as_bytes()));
        let placed = written.and_then(|()| fs::rename(&fresh, &self.path));
        placed.map_err(|error| {
            // What was not put in place is of no use; the first error is the one to tell.
            let _ = fs::remove_file(&fresh);
            failed()(error)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn accounts_are_kept_and_forgotten_and_the_rest_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sub/config.json");
        fs::create_dir(folder.path().join("sub")).unwrap();
        fs::write(&path, r#"{"psFormat":"x","auths":{"https://old.example.com/v1/":{"auth":"YTpi"}}}"#).unwrap();
        let mut config = ConfigFile::read(path.clone()).unwrap();
        assert_eq!(config.account("old.example.com").unwrap().unwrap().password, "b");
        assert!(config.keep("reg:5000", &Account::with_password("u", "p")).unwrap().is_none());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let mut config = ConfigFile::read(path.clone()).unwrap();
        assert_eq!(config.account("reg:5000").unwrap().unwrap().username, "u");
        assert_eq!(config.content["psFormat"], "x");
        config.forget("reg:5000").unwrap();
        config.forget("old.example.com").unwrap();
        let config = ConfigFile::read(path).unwrap();
        assert!(config.account("reg:5000").unwrap().is_none() && config.account("old.example.com").unwrap().is_none());
    }

    #[test]
    fn a_helper_for_one_registry_comes_before_the_one_for_all() {
        let content = r#"{"credsStore":"all","credHelpers":{"a":"own"}}"#;
        let config = ConfigFile { path: PathBuf::new(), content: serde_json::from_str(content).unwrap() };
        assert_eq!((config.helper("a"), config.helper("b")), (Some("own"), Some("all")));
    }
}
