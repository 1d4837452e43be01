//! One entry of `HostConfig.Mounts`, what `--mount` sends. Source: moby `volume/mounts/linux_parser.go`, `validateMountConfigImpl`.

use std::path::{Component, Path, PathBuf};

use bollard::models::{Mount, MountBindOptions, MountType, MountVolumeOptions};

use super::{Described, absolute, check_bind_source, clean};
use crate::container::mount_point::{Below, MountKind, MountPoint};
use crate::error::{ApiError, ApiResult};
use crate::volume::Wanted;

/// Reads it.
///
/// # Errors
/// 400 in dockerd's words; 501 for a type that this version does not have.
pub(super) fn read(given: &Mount) -> ApiResult<Described> {
    let kind = match given.typ {
        Some(MountType::BIND) => MountKind::Bind,
        Some(MountType::VOLUME) => MountKind::Volume,
        Some(MountType::TMPFS) => MountKind::Tmpfs,
        Some(MountType::IMAGE) => {
            let text = "mounts of type image: not supported by this version of Bulkhead";
            return Err(ApiError::not_implemented(text));
        }
        other => {
            let word = other.map(|typ| typ.to_string()).unwrap_or_default();
            return Err(ApiError::invalid(unknown_type(&word)));
        }
    };
    let described = match kind {
        MountKind::Bind => bind(given),
        MountKind::Volume => volume(given),
        MountKind::Tmpfs => tmpfs(given),
    };
    described.map_err(|why| ApiError::invalid(format!("invalid mount config for type \"{}\": {why}", kind.word())))
}

/// dockerd's text for a type that nobody knows.
pub fn unknown_type(word: &str) -> String {
    format!("invalid mount config for type \"{word}\": mount type unknown")
}

fn point(kind: MountKind, given: &Mount) -> Result<MountPoint, String> {
    let destination = absolute(given.target.as_deref().unwrap_or_default())?;
    let mut point = MountPoint::new(kind, destination);
    point.writable = !given.read_only.unwrap_or_default();
    Ok(point)
}

fn without<T>(field: &str, given: Option<&T>) -> Result<(), String> {
    given.map_or(Ok(()), |_| Err(format!("field {field} must not be specified")))
}

fn bind(given: &Mount) -> Result<Described, String> {
    let mut point = point(MountKind::Bind, given)?;
    let source = given.source.as_deref().unwrap_or_default();
    if source.is_empty() {
        return Err("field Source must not be empty".into());
    }
    without("VolumeOptions", given.volume_options.as_ref())?;
    without("TmpfsOptions", given.tmpfs_options.as_ref())?;
    if !Path::new(source).is_absolute() {
        return Err(format!("invalid mount path: '{source}' mount path must be absolute"));
    }
    point.source = clean(source);
    check_bind_source(&point.source)?;
    if let Some(options) = &given.bind_options {
        point.create_source = options.create_mountpoint == Some(true);
        let propagation = options.propagation.map(|word| word.to_string()).filter(|word| !word.is_empty());
        point.propagation = propagation.unwrap_or_else(|| "rprivate".into());
        point.below = below(options, point.writable)?;
    }
    if !point.create_source && !point.source.exists() {
        return Err(format!("bind source path does not exist: {source}"));
    }
    Ok(Described { point, volume: None })
}

fn below(options: &MountBindOptions, writable: bool) -> Result<Below, String> {
    let is = |flag: Option<bool>| flag == Some(true);
    let (writable_below, read_only_below) =
        (is(options.read_only_non_recursive), is(options.read_only_force_recursive));
    match (is(options.non_recursive), writable_below, read_only_below) {
        (_, true, true) => Err("mount options conflict: ReadOnlyNonRecursive and ReadOnlyForceRecursive".into()),
        (true, _, true) => Err("mount options conflict: NonRecursive and ReadOnlyForceRecursive".into()),
        (_, _, true) if writable => Err("mount options conflict: ReadOnlyForceRecursive needs ReadOnly".into()),
        (true, _, false) => Ok(Below::Absent),
        (false, true, false) => Ok(Below::StaysWritable),
        (false, false, true) => Ok(Below::MustBeReadOnly),
        (false, false, false) => Ok(Below::Follows),
    }
}

fn volume(given: &Mount) -> Result<Described, String> {
    let mut point = point(MountKind::Volume, given)?;
    without("BindOptions", given.bind_options.as_ref())?;
    without("TmpfsOptions", given.tmpfs_options.as_ref())?;
    let name = given.source.clone().filter(|name| !name.is_empty());
    point.anonymous = name.is_none();
    if point.anonymous && !point.writable {
        return Err("must not set ReadOnly mode when using anonymous volumes".into());
    }
    let MountVolumeOptions { no_copy, labels, driver_config, subpath } =
        given.volume_options.clone().unwrap_or_default();
    point.copy = no_copy != Some(true);
    point.subpath = subpath.filter(|path| !path.is_empty()).map(|path| local(&path)).transpose()?;
    if point.anonymous && point.subpath.is_some() {
        return Err("must not set Subpath when using anonymous volumes".into());
    }
    let (driver, driver_opts) = driver_config.map(|driver| (driver.name, driver.options)).unwrap_or_default();
    let wanted = Wanted {
        name,
        driver,
        driver_opts: driver_opts.map(|options| options.into_iter().collect()),
        labels: labels.map(|labels| labels.into_iter().collect()),
    };
    Ok(Described { point, volume: Some(wanted) })
}

/// A path that stays within the folder it begins in.
fn local(path: &str) -> Result<PathBuf, String> {
    let mut plain = PathBuf::new();
    for component in Path::new(path).components() {
        match component {
            Component::Normal(name) => plain.push(name),
            Component::CurDir => {}
            _ => return Err("subpath must be a relative path within the volume".into()),
        }
    }
    Ok(plain)
}

fn tmpfs(given: &Mount) -> Result<Described, String> {
    let mut point = point(MountKind::Tmpfs, given)?;
    without("BindOptions", given.bind_options.as_ref())?;
    without("VolumeOptions", given.volume_options.as_ref())?;
    without("Source", given.source.as_ref().filter(|source| !source.is_empty()))?;
    let words: Vec<String> = given
        .tmpfs_options
        .iter()
        .flat_map(|given| given.options.iter().flatten())
        .map(|word| word.join("="))
        .collect();
    let mut options = crate::spec::tmpfs_options(&words.join(","))?;
    if let Some(given) = &given.tmpfs_options {
        options.extend(given.size_bytes.filter(|bytes| *bytes > 0).map(|bytes| format!("size={bytes}")));
        options.extend(given.mode.filter(|mode| *mode > 0).map(|mode| format!("mode={mode:o}")));
    }
    point.tmpfs = options;
    Ok(Described { point, volume: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(typ: MountType, change: impl FnOnce(&mut Mount)) -> Mount {
        let mut mount = Mount { typ: Some(typ), target: Some("/x".into()), ..Mount::default() };
        change(&mut mount);
        mount
    }

    fn refused(given: &Mount) -> String {
        read(given).map(drop).unwrap_err().message
    }

    #[test]
    fn what_is_wrong_is_told_in_dockerds_words() {
        let missing = mount(MountType::BIND, |m| m.source = Some("/nosuch".into()));
        assert_eq!(
            refused(&missing),
            "invalid mount config for type \"bind\": bind source path does not exist: /nosuch"
        );
        let relative = mount(MountType::BIND, |m| m.source = Some("rel".into()));
        assert!(refused(&relative).ends_with("invalid mount path: 'rel' mount path must be absolute"));
        let anonymous = mount(MountType::VOLUME, |m| m.read_only = Some(true));
        assert!(refused(&anonymous).ends_with("must not set ReadOnly mode when using anonymous volumes"));
        let tmpfs = mount(MountType::TMPFS, |m| m.source = Some("x".into()));
        assert!(refused(&tmpfs).ends_with("field Source must not be specified"));
        let pipe = mount(MountType::NPIPE, |_| ());
        assert_eq!(refused(&pipe), "invalid mount config for type \"npipe\": mount type unknown");
        let root = mount(MountType::BIND, |m| m.target = Some("/".into()));
        assert!(refused(&root).ends_with("invalid specification: destination can't be '/'"));
    }

    #[test]
    fn a_part_of_a_volume_lies_within_it() {
        let with = |path: &str| {
            mount(MountType::VOLUME, |m| {
                m.source = Some("data".into());
                m.volume_options = Some(MountVolumeOptions { subpath: Some(path.into()), ..Default::default() });
            })
        };
        assert_eq!(read(&with("a/./b")).unwrap().point.subpath.as_deref(), Some(Path::new("a/b")));
        for bad in ["../x", "a/../../x", "/etc"] {
            assert!(refused(&with(bad)).ends_with("subpath must be a relative path within the volume"), "{bad}");
        }
    }

    #[test]
    fn options_of_binds_that_contradict_each_other_are_refused() {
        let options = |non_recursive, writable_below, read_only_below| MountBindOptions {
            non_recursive: Some(non_recursive),
            read_only_non_recursive: Some(writable_below),
            read_only_force_recursive: Some(read_only_below),
            ..Default::default()
        };
        assert_eq!(below(&options(true, false, false), true), Ok(Below::Absent));
        assert_eq!(below(&options(false, true, false), false), Ok(Below::StaysWritable));
        assert_eq!(below(&options(false, false, true), false), Ok(Below::MustBeReadOnly));
        for (options, writable) in [
            (options(false, true, true), false),
            (options(true, false, true), false),
            (options(false, false, true), true),
        ] {
            assert!(below(&options, writable).is_err());
        }
    }
}
