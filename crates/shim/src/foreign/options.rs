//! How a foreign containerd's containers are to be run: by the runtime's name, a TOML file, an annotation.
//!
//! The name and the file are the administrator's, and so is the list of annotations that containerd passes on; an image has no say.
//! An annotation only makes the wall stronger.
//!
//! Source: containerd pkg/runtimeoptions/v1/api.proto; docs/design/0019-containerd.md.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use containerd_shim_protos::protobuf::CodedInputStream;
use oci_spec::runtime::Spec;
use proto::control::{Accelerator, BackendChoice};
use proto::{ErrorKind, Isolation, Status};
use protobuf::Message;
use protobuf::well_known_types::any::Any;
use serde::{Deserialize, Serialize};

/// The file that counts when containerd names none.
pub const DEFAULT_FILE: &str = "/etc/bulkhead/shim.toml";
/// The annotation that asks for a wall.
pub const ISOLATION_ANNOTATION: &str = "dev.bulkhead.isolation";
/// What containerd calls the options of a runtime that it does not know.
const RUNTIME_OPTIONS: &str = "runtimeoptions.v1.Options";
/// The longest file that is read.
const MOST_BYTES: u64 = 64 << 10;

/// Who shares a template with whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TemplateDomain {
    /// Everybody on the host, the engine too.
    #[default]
    Shared,
    /// The containers of one containerd namespace.
    PerNamespace,
    /// Nobody: each container boots its own.
    Private,
}

/// What the file says. Shape: every key may be missing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Options {
    /// The wall, where the runtime's name says nothing.
    pub isolation: Isolation,
    /// Who shares templates.
    pub template: TemplateDomain,
    /// The folder for templates and converted layers; the engine's data root by default.
    pub state: PathBuf,
    /// The folder with the guest image; beside the program by default.
    pub guest_image: Option<PathBuf>,
    /// What executes utility VMs.
    pub backend: BackendChoice,
    /// Refuse where a utility VM is no boundary.
    pub require_boundary: bool,
    /// How much a hyperv container may write, MiB.
    pub scratch_mib: u64,
    /// A pod's memory, MiB, where CRI does not say it.
    pub pod_memory_mib: Option<u64>,
    /// A pod's processors, where CRI does not say them.
    pub pod_cpus: Option<u64>,
    /// How long a guest may take to become a container's, milliseconds.
    pub personalize_timeout_ms: u64,
    /// How many utility VMs stand by for each of containerd's namespaces, 0 or 1. Without: 1 where they are emulated, otherwise a process to
    /// fork one in.
    pub standby_vms: Option<u32>,
    /// How long one stands by without use, seconds.
    pub standby_unused_s: u64,
}

/// What stands by for a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum StandbyKind {
    /// A utility VM that has rehearsed.
    Vm,
    /// A hypervisor's process that waits for a fork.
    Process,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            isolation: Isolation::Process,
            template: TemplateDomain::default(),
            state: "/var/lib/bulkhead".into(),
            guest_image: None,
            backend: BackendChoice::Auto,
            require_boundary: false,
            scratch_mib: 20 << 10,
            pod_memory_mib: None,
            pod_cpus: None,
            personalize_timeout_ms: 10_000,
            standby_vms: None,
            standby_unused_s: 5 * 60,
        }
    }
}

impl Options {
    /// Reads what a Create request names, or the default file.
    ///
    /// # Errors
    /// `InvalidArgument` when a file is not what it should be; `NotFound` when one that was named is missing.
    pub fn read(request: Option<&Any>) -> Result<Self, Status> {
        let ours = request.filter(|any| any.type_url.ends_with(RUNTIME_OPTIONS));
        let Named { path, body } = ours.map_or_else(|| Ok(Named::default()), |any| Named::decode(&any.value))?;
        if !body.is_empty() {
            return Self::parse(&body, "the runtime's options");
        }
        let (file, is_named) = if path.is_empty() { (DEFAULT_FILE, false) } else { (path.as_str(), true) };
        match read_bounded(Path::new(file)) {
            Ok(text) => Self::parse(&text, file),
            Err(error) if error.kind() == io::ErrorKind::NotFound && !is_named => Ok(Self::default()),
            Err(error) => {
                let kind = match error.kind() {
                    io::ErrorKind::NotFound => ErrorKind::NotFound,
                    _ => ErrorKind::InvalidArgument,
                };
                Err(Status { kind, message: format!("cannot read {file}"), causes: vec![error.to_string()] })
            }
        }
    }

    /// As [`Options::read`], of what `start` gets on its standard input.
    ///
    /// # Errors
    /// As of [`Options::read`]; `InvalidArgument` for other bytes.
    pub fn read_bytes(bytes: &[u8]) -> Result<Self, Status> {
        if bytes.is_empty() {
            return Self::read(None);
        }
        let any = Any::parse_from_bytes(bytes);
        Self::read(Some(&any.map_err(|error| Status::from_error(ErrorKind::InvalidArgument, &error))?))
    }

    fn parse(text: &str, place: &str) -> Result<Self, Status> {
        let invalid = |what: &str| Status::new(ErrorKind::InvalidArgument, format!("{place}: {what}"));
        let options: Self = toml::from_str(text).map_err(|error| invalid(error.to_string().trim_end()))?;
        if options.standby_vms.is_some_and(|count| count > 1) {
            return Err(invalid("standby-vms: one utility VM at most stands by for a namespace"));
        }
        Ok(options)
    }

    /// Something may stand by: nobody has switched it off, and templates are kept.
    #[must_use]
    pub fn may_stand_by(&self) -> bool {
        self.standby_vms != Some(0) && self.template != TemplateDomain::Private && image::rehearsal::AVAILABLE
    }

    /// What it pays to have stand by: a fork of an emulated VM has all its code to translate, others are quick in a process that is there.
    #[must_use]
    pub fn pays_to_stand_by(&self, accelerator: Accelerator) -> Option<StandbyKind> {
        let vm = self.standby_vms.is_some() || accelerator == Accelerator::Tcg;
        self.may_stand_by().then_some(if vm { StandbyKind::Vm } else { StandbyKind::Process })
    }

    /// The wall around a container. Shape: `by_name` is what the runtime's name says.
    ///
    /// # Errors
    /// `InvalidArgument` when the annotation is no isolation, or would make the wall weaker.
    pub fn isolation(&self, by_name: Option<Isolation>, spec: &Spec) -> Result<Isolation, Status> {
        let given = by_name.unwrap_or(self.isolation);
        let asked = spec.annotations().as_ref().and_then(|all| all.get(ISOLATION_ANNOTATION));
        let Some(asked) = asked else { return Ok(given) };
        let invalid = |what: String| Status::new(ErrorKind::InvalidArgument, what);
        match asked.parse::<Isolation>() {
            Ok(Isolation::Process) if given == Isolation::Hyperv => {
                Err(invalid(format!("annotation {ISOLATION_ANNOTATION} cannot weaken the isolation, which is hyperv")))
            }
            Ok(asked) => Ok(asked),
            Err(_) => Err(invalid(format!("annotation {ISOLATION_ANNOTATION}: {asked:?} is no isolation"))),
        }
    }

    /// As [`Options::scratch_mib`].
    #[must_use]
    pub fn scratch_bytes(&self) -> u64 {
        self.scratch_mib.saturating_mul(1 << 20)
    }

    /// The folder of the template store for a container.
    #[must_use]
    pub fn template_store(&self, namespace: &str, bundle: &Path) -> PathBuf {
        match self.template {
            TemplateDomain::Shared => self.state.join("templates"),
            // A namespace's name is no path. Source: containerd pkg/identifiers.
            TemplateDomain::PerNamespace => {
                self.state.join("containerd").join(namespace.replace('/', "_")).join("templates")
            }
            TemplateDomain::Private => bundle.join("templates"),
        }
    }
}

/// The wall that a runtime's name asks for: `containerd-shim-bulkhead-hyperv-v2` is what containerd runs for
/// `io.containerd.bulkhead-hyperv.v2`.
#[must_use]
pub fn isolation_by_name(program: &Path) -> Option<Isolation> {
    let name = program.file_name()?.to_str()?;
    name.strip_prefix("containerd-shim-bulkhead-")?.strip_suffix("-v2")?.parse().ok()
}

/// The fields of containerd's message.
#[derive(Debug, Default, PartialEq, Eq)]
struct Named {
    path: String,
    body: String,
}

impl Named {
    /// Shape: 1 type URL, 2 path of a file, 3 its content (from containerd 1.7 on).
    fn decode(bytes: &[u8]) -> Result<Self, Status> {
        let read = || -> protobuf::Result<Self> {
            let mut named = Self::default();
            let mut stream = CodedInputStream::from_bytes(bytes);
            while let Some(tag) = stream.read_raw_tag_or_eof()? {
                match tag {
                    0x12 => named.path = stream.read_string()?,
                    0x1a => named.body = String::from_utf8_lossy(&stream.read_bytes()?).into_owned(),
                    _ => protobuf::rt::skip_field_for_tag(tag, &mut stream)?,
                }
            }
            Ok(named)
        };
        read().map_err(|error| Status::from_error(ErrorKind::InvalidArgument, &error))
    }
}

fn read_bounded(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    io::Read::read_to_string(&mut io::Read::take(fs::File::open(path)?, MOST_BYTES), &mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(annotation: Option<&str>) -> Spec {
        let mut spec = Spec::default();
        let annotations = annotation.map(|word| [(ISOLATION_ANNOTATION.to_owned(), word.to_owned())].into());
        spec.set_annotations(annotations);
        spec
    }

    #[test]
    fn a_runtimes_name_says_its_wall() {
        let of = |name: &str| isolation_by_name(Path::new(name));
        assert_eq!(of("/usr/bin/containerd-shim-bulkhead-hyperv-v2"), Some(Isolation::Hyperv));
        assert_eq!(of("containerd-shim-bulkhead-process-v2"), Some(Isolation::Process));
        assert_eq!((of("/usr/bin/containerd-shim-bulkhead-v2"), of("/proc/self/exe")), (None, None));
    }

    #[test]
    fn an_annotation_makes_the_wall_stronger_only() {
        let options = Options::default();
        assert_eq!(options.isolation(None, &spec(None)).unwrap(), Isolation::Process);
        assert_eq!(options.isolation(None, &spec(Some("hyperv"))).unwrap(), Isolation::Hyperv);
        assert_eq!(options.isolation(Some(Isolation::Hyperv), &spec(None)).unwrap(), Isolation::Hyperv);
        for (by_name, word) in [(Some(Isolation::Hyperv), "process"), (None, "none")] {
            let refused = options.isolation(by_name, &spec(Some(word))).unwrap_err();
            assert_eq!(refused.kind, ErrorKind::InvalidArgument);
        }
    }

    #[test]
    fn containerds_message_names_a_file_or_holds_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("hv.toml");
        fs::write(&file, "isolation = \"hyperv\"\ntemplate = \"per-namespace\"\nstate = \"/s\"\n").unwrap();
        let path = file.to_str().unwrap();
        let mut value = vec![0x0a, 1, b't', 0x12, u8::try_from(path.len()).unwrap()];
        value.extend_from_slice(path.as_bytes());
        let any = |value: Vec<u8>| Any { type_url: RUNTIME_OPTIONS.to_owned(), value, ..Any::default() };
        let options = Options::read(Some(&any(value))).unwrap();
        assert_eq!(options.isolation, Isolation::Hyperv);
        assert_eq!(options.template_store("k8s.io", Path::new("/b")), Path::new("/s/containerd/k8s.io/templates"));
        let body = b"backend = \"qemutcg\"";
        let mut value = vec![0x1a, u8::try_from(body.len()).unwrap()];
        value.extend_from_slice(body);
        assert_eq!(Options::read(Some(&any(value.clone()))).unwrap().backend, BackendChoice::QemuTcg);
        let bytes = any(value).write_to_bytes().unwrap();
        assert_eq!(Options::read_bytes(&bytes).unwrap().backend, BackendChoice::QemuTcg);
        assert!(Options::read_bytes(b"\xff").is_err());
        let missing = b"\x12\x05/none".to_vec();
        assert_eq!(Options::read(Some(&any(missing))).unwrap_err().kind, ErrorKind::NotFound);
    }

    #[test]
    fn a_wrong_key_is_told_with_its_file() {
        let refused = Options::parse("isolaton = \"hyperv\"", "/etc/x.toml").unwrap_err();
        assert_eq!(refused.kind, ErrorKind::InvalidArgument);
        assert!(refused.message.starts_with("/etc/x.toml: ") && refused.message.contains("isolaton"), "{refused}");
    }

    #[test]
    fn a_utility_vm_stands_by_where_it_pays_or_where_it_is_said() {
        let said = |text: &str| Options::parse(text, "test").unwrap();
        let pays = |text: &str| [Accelerator::Tcg, Accelerator::Kvm].map(|on| said(text).pays_to_stand_by(on));
        assert_eq!(pays(""), [Some(StandbyKind::Vm), Some(StandbyKind::Process)]);
        assert_eq!(pays("standby-vms = 1"), [Some(StandbyKind::Vm); 2]);
        assert_eq!(pays("standby-vms = 0"), [None; 2]);
        assert_eq!(pays("standby-vms = 1\ntemplate = \"private\""), [None; 2]);
        assert_eq!(Options::parse("standby-vms = 2", "test").unwrap_err().kind, ErrorKind::InvalidArgument);
    }
}
