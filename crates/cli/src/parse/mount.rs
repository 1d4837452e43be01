//! `--mount`, `--tmpfs`, `--device`.

use std::collections::HashMap;

use bollard::models::{DeviceMapping, Mount, MountBindOptions, MountTmpfsOptions, MountType};

use super::{fields::fields, size};
use crate::error::{CliError, CliResult};

/// Reads `type=bind,source=/a,target=/b,readonly`. Source: docker/cli `opts/mount.go`.
///
/// # Errors
/// [`CliError::Usage`] for fields that are unknown, missing, or do not fit the type.
pub fn mount(text: &str) -> CliResult<Mount> {
    let invalid = |why: String| CliError::Usage(format!("invalid argument {text:?} for --mount: {why}"));
    let mut mount = Mount { typ: Some(MountType::VOLUME), ..Default::default() };
    let mut tmpfs = MountTmpfsOptions::default();
    let mut bind = MountBindOptions::default();
    for field in fields(text).map_err(invalid)? {
        let (key, value) = field.split_once('=').map_or((field.as_str(), None), |(key, value)| (key, Some(value)));
        let needed = || value.map(str::to_owned).ok_or_else(|| invalid(format!("{key} needs a value")));
        match key.to_ascii_lowercase().as_str() {
            "type" => {
                mount.typ = Some(match needed()?.as_str() {
                    "bind" => MountType::BIND,
                    "tmpfs" => MountType::TMPFS,
                    "volume" => MountType::VOLUME,
                    "image" => MountType::IMAGE,
                    other => return Err(invalid(format!("unknown type {other:?}"))),
                });
            }
            "source" | "src" => mount.source = Some(needed()?),
            "target" | "dst" | "destination" => mount.target = Some(needed()?),
            "readonly" | "ro" => mount.read_only = Some(truth(value).ok_or_else(|| invalid(format!("bad {key}")))?),
            "tmpfs-size" => tmpfs.size_bytes = Some(size::bytes(&needed()?).map_err(invalid)?),
            "tmpfs-mode" => {
                let mode = i64::from_str_radix(&needed()?, 8).map_err(|_| invalid("tmpfs-mode is octal".into()))?;
                tmpfs.mode = Some(mode);
            }
            "bind-propagation" => {
                let word = serde_json::Value::String(needed()?);
                bind.propagation = Some(serde_json::from_value(word).map_err(|error| invalid(error.to_string()))?);
            }
            "bind-create-src" => {
                bind.create_mountpoint = Some(truth(value).ok_or_else(|| invalid(format!("bad {key}")))?)
            }
            _ => return Err(invalid(format!("unexpected key '{key}'"))),
        }
    }
    if mount.target.as_ref().is_none_or(String::is_empty) {
        return Err(invalid("target is required".into()));
    }
    if tmpfs != MountTmpfsOptions::default() {
        mount.tmpfs_options = Some(tmpfs);
    }
    if bind != MountBindOptions::default() {
        mount.bind_options = Some(bind);
    }
    Ok(mount)
}

fn truth(value: Option<&str>) -> Option<bool> {
    match value {
        None | Some("true" | "1") => Some(true),
        Some("false" | "0") => Some(false),
        Some(_) => None,
    }
}

/// Reads `/path[:options]` of every `--tmpfs`.
#[must_use]
pub fn tmpfs(list: &[String]) -> HashMap<String, String> {
    list.iter()
        .map(|text| text.split_once(':').unwrap_or((text, "")))
        .map(|(path, options)| (path.into(), options.into()))
        .collect()
}

/// Reads `/dev/a[:/dev/b][:rwm]`.
///
/// # Errors
/// [`CliError::Usage`].
pub fn device(text: &str) -> CliResult<DeviceMapping> {
    let is_mode = |text: &str| !text.is_empty() && text.bytes().all(|b| matches!(b, b'r' | b'w' | b'm'));
    let fields: Vec<&str> = text.split(':').collect();
    let (host, inside, mode) = match fields[..] {
        [host] => (host, host, "rwm"),
        [host, mode] if is_mode(mode) => (host, host, mode),
        [host, inside] => (host, inside, "rwm"),
        [host, inside, mode] => (host, inside, mode),
        _ => return Err(CliError::Usage(format!("invalid device specification: {text}"))),
    };
    if host.is_empty() || !is_mode(mode) {
        return Err(CliError::Usage(format!("invalid device specification: {text}")));
    }
    Ok(DeviceMapping {
        path_on_host: Some(host.into()),
        path_in_container: Some(inside.into()),
        cgroup_permissions: Some(mode.into()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_read_field_by_field() {
        let mount = super::mount("type=bind,src=/a,dst=/b,readonly,bind-propagation=rslave").unwrap();
        assert_eq!((mount.typ, mount.read_only), (Some(MountType::BIND), Some(true)));
        assert_eq!((mount.source.as_deref(), mount.target.as_deref()), (Some("/a"), Some("/b")));
        assert!(mount.bind_options.is_some());
        let quoted = super::mount("type=bind,\"source=/a,b\",target=/c").unwrap();
        assert_eq!(quoted.source.as_deref(), Some("/a,b"));
        let tmpfs = super::mount("type=tmpfs,target=/t,tmpfs-size=1m,tmpfs-mode=1770").unwrap();
        assert_eq!(tmpfs.tmpfs_options.map(|o| (o.size_bytes, o.mode)), Some((Some(1 << 20), Some(0o1770))));
        for bad in [
            "type=odd,target=/x",
            "type=bind,source=/a",
            "target",
            "type=bind,target=/a,size=1",
            "type=tmpfs,target=/t,tmpfs-size=x",
        ] {
            assert!(super::mount(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn devices_and_tmpfs_have_parts() {
        let device = super::device("/dev/a:/dev/b:rw").unwrap();
        assert_eq!(
            (device.path_in_container.as_deref(), device.cgroup_permissions.as_deref()),
            (Some("/dev/b"), Some("rw"))
        );
        assert_eq!(super::device("/dev/a:r").unwrap().path_in_container.as_deref(), Some("/dev/a"));
        assert!(super::device("").is_err() && super::device("/a:/b:x").is_err() && super::device("/a:/b:r:w").is_err());
        let tmpfs = super::tmpfs(&["/a:size=1m,exec".into(), "/b".into()]);
        assert_eq!((tmpfs["/a"].as_str(), tmpfs["/b"].as_str()), ("size=1m,exec", ""));
    }
}
