//! The command line: Go's flag syntax, since containerd calls shims as its own are called.
//!
//! Shape: `-name value`, `-name=value`, one dash or two, in any place; the words without a dash are the command.
//! Source: containerd core/runtime/v2/README.md, "Commands"; Go package flag.

use std::ffi::OsString;
use std::path::PathBuf;

use proto::Isolation;

/// What was typed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// containerd's namespace.
    pub namespace: Option<String>,
    /// Identifier of the container.
    pub id: Option<String>,
    /// Address of containerd's gRPC socket: which containerd it is (events go to `$TTRPC_ADDRESS`).
    pub address: Option<String>,
    /// containerd's binary; not used (events go to `$TTRPC_ADDRESS`).
    pub publish_binary: Option<String>,
    /// The bundle, when it is not the working directory.
    pub bundle: Option<PathBuf>,
    /// Folder of the template store.
    pub store: Option<PathBuf>,
    /// Folder with the guest image.
    pub guest_image: Option<PathBuf>,
    /// `auto`, `kvm`, `qemukvm` or `qemutcg`.
    pub backend: Option<String>,
    /// The wall that the runtime's name asks for.
    pub isolation: Option<Isolation>,
    /// Serve all containers of a group.
    pub group: bool,
    /// Have a utility VM ready before there is a container.
    pub standby: bool,
    /// The container runs: look at its files where they are mounted.
    pub live: bool,
    /// Look at what is mounted in the container alone.
    pub mounts: bool,
    /// More log.
    pub debug: bool,
    /// Print the version.
    pub version: bool,
    /// Print `RuntimeInfo`.
    pub info: bool,
    /// The words without a dash.
    pub words: Vec<String>,
}

/// A command line that cannot be understood.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum FlagError {
    /// No flag of that name.
    #[error("unknown flag -{0}")]
    Unknown(String),
    /// A flag that needs a value came last.
    #[error("flag -{0} needs a value")]
    NoValue(String),
    /// No isolation of that name.
    #[error("{0:?} is no isolation")]
    Isolation(String),
    /// Not UTF-8, where text is needed.
    #[error("argument {0:?} is not UTF-8")]
    NotText(OsString),
}

impl Flags {
    /// Reads arguments, the program's name left out.
    ///
    /// # Errors
    /// [`FlagError`] for unknown flags and missing values.
    pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, FlagError> {
        let mut flags = Self::default();
        let mut arguments = arguments.into_iter();
        while let Some(argument) = arguments.next() {
            let argument = argument.into_string().map_err(FlagError::NotText)?;
            let Some(flag) = argument.strip_prefix("--").or_else(|| argument.strip_prefix('-')) else {
                flags.words.push(argument);
                continue;
            };
            let (name, value) = match flag.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (flag, None),
            };
            if let Some(switch) = flags.switch(name) {
                *switch = value.as_deref() != Some("false");
                continue;
            }
            let value = match value {
                Some(value) => value,
                None => {
                    let next = arguments.next().ok_or_else(|| FlagError::NoValue(name.to_owned()))?;
                    next.into_string().map_err(FlagError::NotText)?
                }
            };
            flags.set(name, value)?;
        }
        Ok(flags)
    }

    /// The words of a shim that serves a container of a foreign containerd's, the program's name left out.
    #[must_use]
    pub fn serving(&self) -> Vec<String> {
        let isolation = self.isolation.map(|isolation| isolation.as_str().to_owned());
        let values = [
            ("-id", &self.id),
            ("-namespace", &self.namespace),
            ("-address", &self.address),
            ("-isolation", &isolation),
        ];
        let values = values.into_iter().filter_map(|(name, value)| Some([name.to_owned(), value.clone()?]));
        let switches = [("-group", self.group), ("-debug", self.debug)].into_iter().filter(|(_, is_on)| *is_on);
        let switches = switches.map(|(name, _)| name.to_owned());
        std::iter::once("serve".to_owned()).chain(values.flatten()).chain(switches).collect()
    }

    fn switch(&mut self, name: &str) -> Option<&mut bool> {
        match name {
            "debug" => Some(&mut self.debug),
            "group" => Some(&mut self.group),
            "standby" => Some(&mut self.standby),
            "live" => Some(&mut self.live),
            "mounts" => Some(&mut self.mounts),
            "v" | "version" => Some(&mut self.version),
            "info" => Some(&mut self.info),
            _ => None,
        }
    }

    fn set(&mut self, name: &str, value: String) -> Result<(), FlagError> {
        match name {
            "namespace" => self.namespace = Some(value),
            "id" => self.id = Some(value),
            "address" => self.address = Some(value),
            "publish-binary" => self.publish_binary = Some(value),
            "bundle" => self.bundle = Some(value.into()),
            "isolation" => self.isolation = Some(value.parse().map_err(|_| FlagError::Isolation(value))?),
            "store" => self.store = Some(value.into()),
            "guest-image" => self.guest_image = Some(value.into()),
            "backend" => self.backend = Some(value),
            // containerd 1.x passes it to some shims; the socket's place is ours to choose.
            "socket" => {}
            _ => return Err(FlagError::Unknown(name.to_owned())),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Flags, FlagError> {
        Flags::parse(text.split_whitespace().map(OsString::from))
    }

    #[test]
    fn containerds_own_calls_are_understood() {
        let flags =
            parse("-namespace default -address /run/c.sock -publish-binary /usr/bin/containerd -id a1 start").unwrap();
        assert_eq!((flags.namespace.as_deref(), flags.id.as_deref()), (Some("default"), Some("a1")));
        assert_eq!((flags.words.as_slice(), flags.debug), (["start".to_owned()].as_slice(), false));
        let flags = parse("-namespace=default -id a1 -bundle /b -debug delete").unwrap();
        assert_eq!((flags.bundle, flags.debug), (Some(PathBuf::from("/b")), true));
        assert!(parse("-v").unwrap().version && parse("--info").unwrap().info);
    }

    #[test]
    fn our_own_calls_are_understood() {
        let flags = parse("template ls --store /s --guest-image /g --backend qemutcg").unwrap();
        assert_eq!(flags.words, ["template", "ls"]);
        assert_eq!((flags.store, flags.backend.as_deref()), (Some(PathBuf::from("/s")), Some("qemutcg")));
        let flags = parse("serve -namespace moby -id x").unwrap();
        assert_eq!((flags.words.as_slice(), flags.standby), (["serve".to_owned()].as_slice(), false));
        assert!(parse("-namespace bulkhead -id standby -standby serve").unwrap().standby);
    }

    #[test]
    fn what_a_serving_shim_is_told_is_understood() {
        let text = "serve -id a1 -namespace default -address /run/c.sock -isolation hyperv -group -debug";
        for text in [text, "serve -id a1 -namespace default"] {
            assert_eq!(parse(text).unwrap().serving().join(" "), text);
        }
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        assert_eq!(parse("-wrong start"), Err(FlagError::Unknown("wrong".into())));
        assert_eq!(parse("-wrong=1 start"), Err(FlagError::Unknown("wrong".into())));
        assert_eq!(parse("start -id"), Err(FlagError::NoValue("id".into())));
    }
}
