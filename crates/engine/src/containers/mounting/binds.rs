//! `-v [SOURCE:]DESTINATION[:MODE]`. Source: moby `volume/mounts/linux_parser.go`, `ParseMountRaw`.

use std::path::Path;

use super::{Described, absolute, check_bind_source, clean};
use crate::container::mount_point::{MountKind, MountPoint};
use crate::error::{ApiError, ApiResult};
use crate::volume::Wanted;

/// Words of a mode; of each line one may be there.
const MODES: [&[&str]; 6] = [
    &["ro", "rw"],
    &["shared", "rshared", "slave", "rslave", "private", "rprivate"],
    &["z", "Z"],
    &["nocopy"],
    &["consistent", "cached", "delegated"],
    &["bind", "rbind"],
];
const PROPAGATIONS: usize = 1;

/// The words are a mode.
pub(super) fn is_mode(text: &str) -> bool {
    let mut seen = [false; MODES.len()];
    text.is_empty()
        || text.split(',').all(|word| {
            let line = MODES.iter().position(|words| words.contains(&word));
            line.is_some_and(|line| !std::mem::replace(&mut seen[line], true))
        })
}

/// Reads one. `driver` is that of `--volume-driver`.
///
/// # Errors
/// 400 in dockerd's words.
pub(super) fn parse(text: &str, driver: &str) -> ApiResult<Described> {
    let invalid = || ApiError::invalid(format!("invalid volume specification: '{text}'"));
    let fields: Vec<&str> = text.split(':').collect();
    let (source, destination, mode) = match fields[..] {
        [destination] => ("", destination, ""),
        [_, mode] if !mode.is_empty() && is_mode(mode) => return Err(invalid()),
        [source, destination] => (source, destination, ""),
        [source, destination, mode] => (source, destination, mode),
        _ => return Err(invalid()),
    };
    if fields[0].is_empty() || destination.is_empty() {
        return Err(invalid());
    }
    if !is_mode(mode) {
        return Err(ApiError::invalid(format!("invalid mode: {mode}")));
    }
    let kind = if source.starts_with('/') { MountKind::Bind } else { MountKind::Volume };
    let refused = |why: &str| {
        let kind = kind.word();
        ApiError::invalid(format!(
            "invalid volume specification: '{text}': invalid mount config for type \"{kind}\": {why}"
        ))
    };
    let words: Vec<&str> = mode.split(',').collect();
    let mut point = MountPoint::new(kind, absolute(destination).map_err(|why| refused(&why))?);
    point.mode = mode.to_owned();
    point.writable = !words.contains(&"ro");
    let propagation = words.iter().find(|word| MODES[PROPAGATIONS].contains(word));
    match kind {
        MountKind::Bind => {
            if words.contains(&"nocopy") {
                return Err(refused("field VolumeOptions must not be specified"));
            }
            point.source = clean(source);
            check_bind_source(Path::new(&point.source)).map_err(|why| refused(&why))?;
            point.create_source = true;
            point.propagation = propagation.map_or("rprivate", |word| *word).to_owned();
            if words.contains(&"bind") {
                point.below = crate::container::mount_point::Below::Absent;
            }
            Ok(Described { point, volume: None })
        }
        _ => {
            if propagation.is_some() {
                return Err(refused("field BindOptions must not be specified"));
            }
            point.copy = !words.contains(&"nocopy");
            point.anonymous = source.is_empty();
            let name = Some(source.to_owned()).filter(|name| !name.is_empty());
            let driver = Some(driver.to_owned());
            Ok(Described { point, volume: Some(Wanted { name, driver, ..Wanted::default() }) })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        parse(text, "").map(drop).unwrap_err().message
    }

    #[test]
    fn binds_and_volumes_are_read_as_docker_reads_them() {
        let bind = parse("/src:/dst:ro,rslave", "").unwrap();
        assert_eq!((bind.point.kind, bind.point.writable), (MountKind::Bind, false));
        assert_eq!((bind.point.propagation.as_str(), bind.point.create_source), ("rslave", true));
        let volume = parse("data:/dst/../x:nocopy", "foo").unwrap();
        assert_eq!((volume.point.kind, volume.point.copy, volume.point.anonymous), (MountKind::Volume, false, false));
        assert_eq!(volume.point.destination, Path::new("/x"));
        let wanted = volume.volume.unwrap();
        assert_eq!((wanted.name.as_deref(), wanted.driver.as_deref()), (Some("data"), Some("foo")));
        assert!(parse("/only", "").unwrap().point.anonymous);
    }

    #[test]
    fn what_is_wrong_is_told_in_dockerds_words() {
        let volume = |text: &str, why: &str| {
            format!("invalid volume specification: '{text}': invalid mount config for type \"volume\": {why}")
        };
        for (text, expected) in [
            ("v1:x", volume("v1:x", "invalid mount path: 'x' mount path must be absolute")),
            ("v1:/../..", volume("v1:/../..", "invalid specification: destination can't be '/'")),
            ("v1:/b:rshared", volume("v1:/b:rshared", "field BindOptions must not be specified")),
            ("v1:/b:bogus", "invalid mode: bogus".into()),
            ("v1:/b:ro,rw", "invalid mode: ro,rw".into()),
            ("a:b:c:d", "invalid volume specification: 'a:b:c:d'".into()),
            (":/x", "invalid volume specification: ':/x'".into()),
            ("/x:ro", "invalid volume specification: '/x:ro'".into()),
        ] {
            assert_eq!(refused(text), expected);
        }
        assert!(refused("/tmp:/b:nocopy").ends_with("field VolumeOptions must not be specified"));
        assert!(refused("/proc/self/mem:/m").contains("the engine's own"));
    }
}
