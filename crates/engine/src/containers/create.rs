//! `POST /containers/create`.

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::Json;
use axum::extract::{Extension, Request, State};
use axum::http::StatusCode;
use bollard::models::{ContainerConfig, HealthConfig, HostConfig};
use image::{Image, ImageLease, Scratch, failpoint};
use oci_spec::runtime::Spec;
use proto::{ContainerId, Isolation};
use serde::Deserialize;
use serde_json::{Value, json};

use super::config::Requested;
use super::mounting::Mounting;
use super::{links, names, remove};
use crate::clock::Timestamp;
use crate::container::health;
use crate::container::mount_point::MountPoint;
use crate::container::record::{Phase, Record};
use crate::container::{Container, kept};
use crate::engine::Engine;
use crate::error::{ApiError, ApiResult};
use crate::network::endpoint::Endpoints;
use crate::network::{self, FilesRequest};
use crate::query::Query;
use crate::spec::{self, NetworkNamespace, SpecInput};
use crate::version::ApiVersion;
use crate::{body, error};

/// Size of a hyperv container's disk when the client says none, in bytes. It is sparse: it takes what is written.
const DEFAULT_SCRATCH_BYTES: u64 = 10 << 30;

/// Older clients do not know a health check's `StartInterval`, as dockerd has it.
const START_INTERVAL_SINCE: ApiVersion = ApiVersion::new(1, 44);

/// Makes a container.
///
/// # Errors
/// 400 and 501 as [`Requested::read`] and [`spec::build`] say, 404 for an unknown image, 409 for a name that is taken.
pub async fn create(
    State(engine): State<Arc<Engine>>,
    Extension(version): Extension<ApiVersion>,
    query: Query,
    request: Request,
) -> ApiResult<(StatusCode, Json<Value>)> {
    check_platform(query.get("platform").unwrap_or_default())?;
    let mut body: Value = body::json(request).await?;
    if version < START_INTERVAL_SINCE
        && let Some(health) = body.get_mut("Healthcheck").and_then(Value::as_object_mut)
    {
        health.remove("StartInterval");
    }
    let requested = Requested::read(body, engine.settings.default_isolation, &engine.settings.container_defaults)?;
    let name = match query.get("name").map(|name| name.strip_prefix('/').unwrap_or(name)) {
        Some(name) if names::is_valid(name) => Some(name.to_owned()),
        Some(name) => return Err(names::invalid(name)),
        None => None,
    };
    let maker = Arc::clone(&engine);
    let made = tokio::task::spawn_blocking(move || make(&maker, requested, name)).await?;
    let container = made.inspect_err(|_| remove::collect_image(&engine))?;
    container.emit(&engine.events, "create", &[]);
    let warnings = container.record().warnings.clone();
    Ok((StatusCode::CREATED, Json(json!({ "Id": container.id, "Warnings": warnings }))))
}

/// Other platforms need an emulator, which comes with a later version.
///
/// # Errors
/// 501 for any but the host's.
pub fn check_platform(platform: &str) -> ApiResult<()> {
    let host = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let mut parts = platform.split('/');
    let (system, arch) = (parts.next().unwrap_or_default(), parts.next().unwrap_or(host));
    if matches!(system, "" | "linux") && (arch == host || arch == std::env::consts::ARCH) {
        return Ok(());
    }
    Err(ApiError::not_implemented(format!(
        "platform {platform:?}: not supported by this version of Bulkhead; this host runs linux/{host}"
    )))
}

/// Makes the container's folder, record and writable part. What was made is taken back when a later step fails.
///
/// # Errors
/// As [`create`].
pub fn make(engine: &Engine, mut requested: Requested, name: Option<String>) -> ApiResult<Arc<Container>> {
    let id = new_id()?;
    let mut config = requested.typed_config()?;
    let host = requested.typed_host()?;
    config.healthcheck.as_ref().map_or(Ok(()), health::validate)?;
    let reference = config.image.clone().unwrap_or_default();
    // Until the container is known to use it, only the lease keeps a removal from freeing the image's layers.
    let (image, _lease) = lease(engine, &reference)?;
    if let Some(defaults) = image.config.config() {
        spec::merge_image(&mut config, defaults);
    }
    health::merge(&mut config.healthcheck, health_of(&image).as_ref());
    give_hostname(&mut config, &host, &id);
    requested.set_config(&config)?;
    crate::container::log_options(&host)?;
    let links = links::decide(engine, &host)?;
    if !links.is_empty() {
        // From here on they are what is kept of them, and can be removed.
        requested.host["Links"] = Value::Null;
    }
    let name = name.map_or_else(|| names::draw(&engine.containers), Ok)?;
    let reserved = engine.containers.reserve(&name, &id)?;
    let folder = Folder::make(engine.containers_dir().join(id.as_str()))?;
    failpoint::reach("create.folder");
    write_network_files(&folder.path, &config, &host)?;
    let terminal = config.tty.unwrap_or_default();
    let mounting = Mounting::decide(engine, &config, &host, &image)?;
    let mounts = mounting.points();
    let plan =
        Plan { mounts: &mounts, id: &id, isolation: requested.isolation, config: &config, host: &host, terminal };
    let spec = plan.validate(engine, &folder.path)?;
    show_paths(&mut requested.host, &spec);
    plan.make_writable(engine, &folder.path)?;
    failpoint::reach("create.writable");
    let record = Record {
        format: Record::format(),
        id: id.clone(),
        name,
        created: Timestamp::now(),
        isolation: requested.isolation,
        image_id: image.id,
        image: reference,
        config: requested.config,
        host: requested.host,
        mounts,
        warnings: requested.warnings,
        phase: Phase::Created { fault: None },
        restarts: 0,
        stopped_by_client: false,
        utility_vm: None,
        health: None,
        network: requested.endpoints,
        links,
    };
    record.write(&folder.path).map_err(|error| ApiError::caused("cannot create the container", &error))?;
    failpoint::reach("create.recorded");
    let container =
        Container::new(record, folder.path.clone()).map_err(|error| ApiError::invalid(error::chain(&error)))?;
    let container = Arc::new(container);
    engine.containers.add(Arc::clone(&container), reserved);
    folder.keep();
    mounting.keep();
    Ok(container)
}

/// The image's health check, which is Docker's addition to its configuration; one that cannot be read is none.
fn health_of(image: &Image) -> Option<HealthConfig> {
    let whole: Value = serde_json::from_slice(&image.config_json).ok()?;
    let health = HealthConfig::deserialize(whole["config"].get("Healthcheck")?);
    health.inspect_err(|error| tracing::warn!(image = %image.id, %error, "cannot read the image's health check")).ok()
}

/// The host name of a container that was given none.
fn give_hostname(config: &mut ContainerConfig, host: &HostConfig, id: &ContainerId) {
    let named = config.hostname.as_deref().is_some_and(|name| !name.is_empty());
    let shares_network = host.network_mode.as_deref().is_some_and(|mode| mode.starts_with("container:"));
    match host.network_mode.as_deref() {
        _ if named || shares_network || host.uts_mode.as_deref() == Some("host") => {}
        // As Docker: on the host's network, the host's name.
        Some("host") => config.hostname = Some(rustix::system::uname().nodename().to_string_lossy().into_owned()),
        _ => config.hostname = Some(id.as_str()[..12].to_owned()),
    }
}

/// 64 hexadecimal digits, of which the first twelve are no number, since a host name made of them must not be one.
///
/// # Errors
/// 500 when there is no randomness.
pub fn random_id() -> ApiResult<String> {
    loop {
        let text = hex::encode(names::random::<32>()?);
        if text[..12].bytes().any(|digit| digit.is_ascii_alphabetic()) {
            return Ok(text);
        }
    }
}

fn new_id() -> ApiResult<ContainerId> {
    random_id()?.parse().map_err(|error| ApiError::caused("cannot make an id", &error))
}

fn lease<'e>(engine: &'e Engine, reference: &str) -> ApiResult<(Image, ImageLease<'e>)> {
    if reference.is_empty() {
        return Err(ApiError::invalid("no image specified"));
    }
    engine.images.lease(reference).map_err(|error| match error.kind() {
        proto::ErrorKind::NotFound => ApiError::not_found(format!("No such image: {}", with_tag(reference))),
        kind => ApiError::new(kind, error::chain(&error)),
    })
}

/// A reference with the tag that is meant when it has none; the docker CLI looks at this text.
fn with_tag(reference: &str) -> String {
    let name = reference.rsplit('/').next().unwrap_or(reference);
    let is_id = reference.len() == 64 && reference.bytes().all(|b| b.is_ascii_hexdigit());
    if name.contains([':', '@']) || is_id { reference.to_owned() } else { format!("{reference}:latest") }
}

/// The container's folder while it is made; removed on drop unless kept.
struct Folder {
    path: PathBuf,
    keep: bool,
}

impl Folder {
    fn make(path: PathBuf) -> ApiResult<Self> {
        std::fs::DirBuilder::new()
            .mode(0o710)
            .create(&path)
            .map_err(|error| ApiError::caused("cannot make the container's folder", &error))?;
        Ok(Self { path, keep: false })
    }

    fn keep(mut self) {
        self.keep = true;
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if !self.keep
            && let Err(error) = std::fs::remove_dir_all(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove a container that was not finished");
        }
    }
}

/// Writes hostname, hosts and resolv.conf of a container that is on no network yet.
///
/// # Errors
/// 400 for a wrong `--add-host`, 500 for a file that cannot be written.
pub fn write_network_files(dir: &Path, config: &ContainerConfig, host: &HostConfig) -> ApiResult<()> {
    let endpoints = Endpoints::default();
    let request = FilesRequest { config, host, endpoints: &endpoints, name_server: None, gateway: None, apart: false };
    network::write_files(dir, &request)
}

/// Notes which paths are hidden or read-only, as Docker does, unless the client has said so itself, or they cannot be: a
/// privileged container has none.
fn show_paths(host: &mut Value, spec: &Spec) {
    let Some(linux) = spec.linux().as_ref().filter(|_| host["Privileged"] != true) else { return };
    for (name, paths) in [("MaskedPaths", linux.masked_paths()), ("ReadonlyPaths", linux.readonly_paths())] {
        if host[name].is_null() {
            host[name] = json!(paths);
        }
    }
}

/// What decides about a container's writable part and its spec.
struct Plan<'a> {
    mounts: &'a [MountPoint],
    id: &'a ContainerId,
    isolation: Isolation,
    config: &'a ContainerConfig,
    host: &'a HostConfig,
    terminal: bool,
}

impl Plan<'_> {
    /// Finds out now what would make the start impossible.
    fn validate(&self, engine: &Engine, files: &Path) -> ApiResult<Spec> {
        let hostname = self.config.hostname.as_deref().unwrap_or_default();
        let input = SpecInput {
            isolation: self.isolation,
            config: self.config,
            host_config: self.host,
            mounts: self.mounts,
            rootfs: Path::new("rootfs"),
            network: NetworkNamespace::Own,
            files,
            hostname,
            cgroup: &super::bundle::cgroup_path(engine, self.host, self.id),
            terminal: self.terminal,
        };
        spec::build(&input).map_err(|error| ApiError::new(error.kind(), error::chain(&error)))
    }

    fn make_writable(&self, engine: &Engine, dir: &Path) -> ApiResult<()> {
        match self.isolation {
            Isolation::Process if self.host.storage_opt.as_ref().is_some_and(|options| !options.is_empty()) => {
                make_scratch(engine, &kept(dir, UPPER_DISK), self.host)
            }
            Isolation::Process => image::prepare_upper(dir).map(drop).map_err(|error| no_disk(&error)),
            Isolation::Hyperv => make_scratch(engine, &kept(dir, SCRATCH), self.host),
        }
    }
}

fn no_disk(error: &dyn std::fmt::Display) -> ApiError {
    ApiError::internal(format!("cannot make the container's disk: {error}"))
}

/// Makes a disk file for a container's changes.
///
/// # Errors
/// 400 for a wrong size, 500 for a disk that cannot be made.
pub fn make_scratch(engine: &Engine, disk: &Path, host: &HostConfig) -> ApiResult<()> {
    let blank = engine.settings.data_root.join("blank");
    Scratch::prepare(&blank, disk, scratch_bytes(host)?).map_err(|error| match error.kind() {
        proto::ErrorKind::InvalidArgument => ApiError::invalid(error::chain(&error)),
        _ => no_disk(&error::chain(&error)),
    })
}

/// Name of a hyperv container's disk file.
pub const SCRATCH: &str = "scratch.img";

/// Name of the disk file with a process container's changes, if they are bounded.
pub const UPPER_DISK: &str = "upper.img";

/// `--storage-opt size=20G`.
fn scratch_bytes(host: &HostConfig) -> ApiResult<u64> {
    let Some(options) = &host.storage_opt else { return Ok(DEFAULT_SCRATCH_BYTES) };
    if let Some(name) = options.keys().find(|name| name.as_str() != "size") {
        return Err(ApiError::invalid(format!("unknown storage option {name:?}")));
    }
    let Some(size) = options.get("size") else { return Ok(DEFAULT_SCRATCH_BYTES) };
    crate::log::parse_size(size)
        .ok_or_else(|| ApiError::invalid(format!("invalid size {size:?} in the storage options")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_missing_image_is_named_with_its_tag() {
        for (reference, shown) in [
            ("busybox", "busybox:latest"),
            ("reg:5000/a/b", "reg:5000/a/b:latest"),
            ("a:1", "a:1"),
            ("a@sha256:00", "a@sha256:00"),
        ] {
            assert_eq!(with_tag(reference), shown);
        }
    }

    #[test]
    fn only_this_platform_is_there() {
        for good in ["", "linux", &format!("linux/{}", std::env::consts::ARCH)] {
            check_platform(good).unwrap();
        }
        assert_eq!(check_platform("linux/s390x").unwrap_err().http_status(), 501);
        assert_eq!(check_platform("windows/amd64").unwrap_err().http_status(), 501);
    }

    #[test]
    fn ids_are_new_and_no_number() {
        let (a, b) = (new_id().unwrap(), new_id().unwrap());
        assert_ne!(a, b);
        assert_eq!(a.as_str().len(), 64);
        assert!(a.as_str()[..12].parse::<u64>().is_err());
    }
}
