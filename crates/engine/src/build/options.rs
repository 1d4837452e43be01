//! What a client says about a build, beside its files.

use std::collections::{BTreeMap, HashMap};

use image::Reference;
use proto::Isolation;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::remote::Remote;
use crate::containers::check_platform;
use crate::error::{ApiError, ApiResult, chain};
use crate::query::Query;

/// The parameters of `POST /build`.
#[derive(Debug, Clone)]
pub struct Options {
    /// Names for the image.
    pub tags: Vec<Reference>,
    /// Where the context comes from, if the client does not send it.
    pub remote: Option<Remote>,
    /// Path of the Dockerfile in the context; empty for the usual one.
    pub dockerfile: String,
    pub quiet: bool,
    pub no_cache: bool,
    /// Only these images may serve as the cache, if there are any.
    pub cache_from: Vec<String>,
    /// Base images are asked for anew.
    pub pull: bool,
    /// Intermediate containers go when their step went well.
    pub remove: bool,
    /// And when it did not.
    pub force_remove: bool,
    pub args: BTreeMap<String, Option<String>>,
    pub labels: BTreeMap<String, String>,
    /// Name of the last stage.
    pub target: String,
    /// The wall around RUN and COPY.
    pub isolation: Isolation,
    /// `HostConfig` of the containers.
    pub host: Value,
    /// By which the build can be cancelled.
    pub build_id: String,
}

impl Options {
    /// Reads the parameters.
    ///
    /// # Errors
    /// 400 for what is malformed; 501 for what this engine does not do.
    pub fn read(query: &Query, default: Isolation) -> ApiResult<Self> {
        refuse(query)?;
        check_platform(query.get("platform").unwrap_or_default())?;
        let isolation = Isolation::choose(query.get("isolation").unwrap_or_default(), default);
        let isolation = isolation.map_err(|error| ApiError::invalid(error.to_string()))?;
        let tags = query.all("t").filter(|tag| !tag.is_empty()).map(name).collect::<ApiResult<_>>()?;
        let named = |name: &str| query.get(name).unwrap_or_default().to_owned();
        Ok(Self {
            tags,
            remote: match query.get("remote") {
                None | Some("" | "client-session") => None,
                Some(remote) => Some(Remote::read(remote)?),
            },
            dockerfile: named("dockerfile"),
            quiet: query.flag("q"),
            no_cache: query.flag("nocache"),
            cache_from: json_of(query, "cachefrom", "error reading cache-from")?.unwrap_or_default(),
            pull: query.flag("pull"),
            remove: query.flag("forcerm") || query.flag_or("rm", true),
            force_remove: query.flag("forcerm"),
            args: json_of(query, "buildargs", "error reading build args")?.unwrap_or_default(),
            labels: json_of(query, "labels", "error reading labels")?.unwrap_or_default(),
            target: named("target"),
            isolation,
            host: host(query, isolation)?,
            build_id: named("buildid"),
        })
    }
}

fn refuse(query: &Query) -> ApiResult<()> {
    if query.get("version").is_some_and(|version| version != "1") {
        return Err(ApiError::not_implemented(
            "building images with BuildKit: not supported by this version of Bulkhead; set DOCKER_BUILDKIT=0 for the classic builder",
        ));
    }
    if query.flag("squash") {
        return Err(ApiError::invalid("squash is only supported with experimental mode"));
    }
    if query.get("outputs").is_some_and(|outputs| !matches!(outputs, "[]" | "null")) {
        return Err(ApiError::not_implemented("--output needs BuildKit, which this version of Bulkhead does not have"));
    }
    Ok(())
}

/// A tag; one that is none is dockerd's 500.
fn name(text: &str) -> ApiResult<Reference> {
    let reference: Reference = text
        .parse()
        .map_err(|error| ApiError::invalid(chain(&error)).with_status(axum::http::StatusCode::INTERNAL_SERVER_ERROR))?;
    if reference.digest().is_some() {
        return Err(ApiError::invalid("build tag cannot contain a digest"));
    }
    Ok(reference)
}

fn json_of<T: DeserializeOwned>(query: &Query, name: &str, what: &str) -> ApiResult<Option<T>> {
    let Some(text) = query.get(name) else { return Ok(None) };
    // Go's clients send `null` for nothing.
    serde_json::from_str::<Option<T>>(text).map_err(|error| ApiError::invalid(format!("{what}: {error}")))
}

/// `HostConfig` of the containers in which the build works. Their output is the build's, and is not logged.
fn host(query: &Query, isolation: Isolation) -> ApiResult<Value> {
    let number = |name: &str| query.number::<i64>(name).map(|number| number.unwrap_or(0));
    let text = |name: &str| query.get(name).unwrap_or_default();
    let ulimits: Option<Vec<HashMap<String, Value>>> = json_of(query, "ulimits", "error reading ulimits")?;
    let security: Option<Vec<String>> = json_of(query, "securityopt", "error reading security options")?;
    let hosts: Vec<&str> = query.all("extrahosts").filter(|host| !host.is_empty()).collect();
    let mut host = json!({
        "Isolation": isolation.as_str(),
        "NetworkMode": text("networkmode"),
        "Memory": number("memory")?,
        "MemorySwap": number("memswap")?,
        "CpuShares": number("cpushares")?,
        "CpuPeriod": number("cpuperiod")?,
        "CpuQuota": number("cpuquota")?,
        "CpusetCpus": text("cpusetcpus"),
        "CpusetMems": text("cpusetmems"),
        "CgroupParent": text("cgroupparent"),
        "LogConfig": { "Type": "none", "Config": {} },
    });
    let shm = number("shmsize")?;
    if shm > 0 {
        host["ShmSize"] = shm.into();
    }
    for (name, value) in [("Ulimits", json!(ulimits)), ("SecurityOpt", json!(security)), ("ExtraHosts", json!(hosts))] {
        if value.as_array().is_some_and(|list| !list.is_empty()) {
            host[name] = value;
        }
    }
    Ok(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(query: &str) -> ApiResult<Options> {
        Options::read(&Query::parse(query), Isolation::Process)
    }

    #[test]
    fn parameters_are_read_as_dockerd_does() {
        let options =
            read("t=a&t=b:1&buildargs={\"X\":null,\"Y\":\"2\"}&rm=0&isolation=hyperv&memory=5&ulimits=null&labels={}");
        let options = options.unwrap();
        let tags: Vec<String> = options.tags.iter().map(Reference::familiar).collect();
        assert_eq!(tags, ["a:latest", "b:1"]);
        assert_eq!(options.args, [("X".to_owned(), None), ("Y".to_owned(), Some("2".to_owned()))].into());
        assert_eq!((options.remove, options.isolation), (false, Isolation::Hyperv));
        assert_eq!((&options.host["Memory"], &options.host["Isolation"]), (&json!(5), &json!("hyperv")));
        assert!(read("").unwrap().remove && read("rm=0&forcerm=1").unwrap().remove);
    }

    #[test]
    fn what_is_not_done_is_refused() {
        for (query, status, words) in [
            ("squash=1", 400, "squash is only supported with experimental mode"),
            ("version=2", 501, "DOCKER_BUILDKIT=0"),
            ("remote=ftp://x/y", 500, "could not be recognized as URL"),
            ("buildargs=[", 400, "error reading build args"),
            ("t=UPPER", 500, "must be lowercase"),
            ("platform=linux/s390x", 501, "s390x"),
            ("isolation=vm", 400, "invalid isolation"),
        ] {
            let error = read(query).unwrap_err();
            assert_eq!((error.http_status().as_u16(), error.message.contains(words)), (status, true), "{error}");
        }
    }
}
