//! From the bundle's specification to the one that is carried out: names resolved, gaps closed that would weaken the wall,
//! and what this host cannot give taken back, with a warning.

mod cgroup_mount;

use std::fs::File;
use std::io::{self, BufReader};
use std::path::{Component, Path, PathBuf};
use std::sync::OnceLock;

use libcontainer::capabilities::CapabilityExt;
use oci_spec::runtime::{
    Capabilities, Capability, Linux, LinuxCapabilities, LinuxDeviceCgroupBuilder, LinuxDeviceType, LinuxIdMapping,
    LinuxNamespace, LinuxNamespaceType, LinuxResources, Mount, PosixRlimitBuilder, PosixRlimitType, Process, Spec,
};
use proto::ErrorKind;
use rustix::fs::FileType;
use rustix::process::{Resource, getrlimit};

use crate::failure::kind_of_io;
use crate::rootpath::Root;
use crate::user::{Accounts, UserError};

/// Annotation with the container's user as it was typed: `name`, `uid`, `name:group` and so on, or nothing for user 0. It
/// takes the place of `process.user`'s ids.
pub const USER_ANNOTATION: &str = "dev.bulkhead.user";
/// Annotation with further groups by name or number, separated by commas, added to `process.user.additionalGids`.
pub const GROUPS_ANNOTATION: &str = "dev.bulkhead.groups";

/// Annotation of a container whose first process is to be ours, in front of the command: it passes signals on and reaps.
pub const INIT_ANNOTATION: &str = "dev.bulkhead.init";

/// A specification that cannot be carried out.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// The file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is no OCI specification.
    #[error("{path} is no OCI runtime specification")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// A part that is needed is missing.
    #[error("the specification has no {0}")]
    Missing(&'static str),
    /// It asks for what can never be right.
    #[error("{0}")]
    Invalid(String),
    /// It asks for what is not there yet.
    #[error("{0} not supported")]
    Unsupported(&'static str),
    /// The root file system is not there.
    #[error("cannot open the container's root {path}")]
    Root {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A mount point is behind a link that leads nowhere, and cannot be made there.
    #[error("cannot make the mount point {path}")]
    MountPoint {
        /// Its path in the container.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The working directory does not exist and cannot be made.
    #[error("cannot make the working directory {path}")]
    WorkingDirectory {
        /// Its path in the container.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl SpecError {
    /// What a caller can act on.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Read { source, .. } | Self::Root { source, .. } => kind_of_io(source),
            Self::Malformed { .. } | Self::Missing(_) | Self::Invalid(_) => ErrorKind::InvalidArgument,
            Self::Unsupported(_) => ErrorKind::NotImplemented,
            Self::WorkingDirectory { source, .. } | Self::MountPoint { source, .. } => match source.raw_os_error() {
                Some(libc::ENOTDIR | libc::EEXIST | libc::ELOOP | libc::ENOENT) => ErrorKind::InvalidArgument,
                _ => kind_of_io(source),
            },
        }
    }
}

/// Either of the two ways in which a specification is refused.
#[derive(Debug)]
pub enum PrepareError {
    Spec(SpecError),
    User(UserError),
}

impl From<SpecError> for PrepareError {
    fn from(error: SpecError) -> Self {
        Self::Spec(error)
    }
}

impl From<UserError> for PrepareError {
    fn from(error: UserError) -> Self {
        Self::User(error)
    }
}

/// What this process may pass on to a container.
#[derive(Debug, Clone, Copy)]
pub struct HostLimits {
    /// Capabilities, bit by number.
    pub capabilities: u64,
    /// The own `oom_score_adj`; a lower one takes `CAP_SYS_RESOURCE`.
    pub oom_score_adj: i32,
    /// The own hard limit, `None` for none.
    pub hard_limit: fn(PosixRlimitType) -> Option<u64>,
}

/// Bit of `CAP_SYS_RESOURCE`. Source: linux/capability.h.
const SYS_RESOURCE: u64 = 1 << 24;

impl HostLimits {
    /// Asks the kernel.
    pub fn of_this_process() -> io::Result<Self> {
        // They stay the same: nothing that uses this crate gives up a capability or changes its own score.
        static KNOWN: OnceLock<HostLimits> = OnceLock::new();
        if let Some(known) = KNOWN.get() {
            return Ok(*known);
        }
        let found = Self::ask()?;
        Ok(*KNOWN.get_or_init(|| found))
    }

    fn ask() -> io::Result<Self> {
        let status = std::fs::read_to_string("/proc/self/status")?;
        let set = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok()).unwrap_or(0)
        };
        let score = std::fs::read_to_string("/proc/self/oom_score_adj")?;
        Ok(Self {
            capabilities: set("CapPrm:") & set("CapBnd:"),
            oom_score_adj: score.trim().parse().unwrap_or(0),
            hard_limit,
        })
    }

    fn may_raise_limits(&self) -> bool {
        self.capabilities & SYS_RESOURCE != 0
    }
}

fn hard_limit(kind: PosixRlimitType) -> Option<u64> {
    let resource = match kind {
        PosixRlimitType::RlimitCpu => Resource::Cpu,
        PosixRlimitType::RlimitFsize => Resource::Fsize,
        PosixRlimitType::RlimitData => Resource::Data,
        PosixRlimitType::RlimitStack => Resource::Stack,
        PosixRlimitType::RlimitCore => Resource::Core,
        PosixRlimitType::RlimitRss => Resource::Rss,
        PosixRlimitType::RlimitNproc => Resource::Nproc,
        PosixRlimitType::RlimitNofile => Resource::Nofile,
        PosixRlimitType::RlimitMemlock => Resource::Memlock,
        PosixRlimitType::RlimitAs => Resource::As,
        PosixRlimitType::RlimitLocks => Resource::Locks,
        PosixRlimitType::RlimitSigpending => Resource::Sigpending,
        PosixRlimitType::RlimitMsgqueue => Resource::Msgqueue,
        PosixRlimitType::RlimitNice => Resource::Nice,
        PosixRlimitType::RlimitRtprio => Resource::Rtprio,
        PosixRlimitType::RlimitRttime => Resource::Rttime,
    };
    getrlimit(resource).maximum
}

/// Reads a `config.json`.
pub fn read(path: &Path) -> Result<Spec, SpecError> {
    let file = File::open(path).map_err(|source| SpecError::Read { path: path.to_owned(), source })?;
    serde_json::from_reader(BufReader::new(file))
        .map_err(|source| SpecError::Malformed { path: path.to_owned(), source })
}

/// What a container is to be made of, beside its specification.
pub struct Surroundings<'a> {
    pub id: &'a str,
    pub bundle: &'a Path,
    pub terminal: bool,
    pub limits: HostLimits,
}

/// Makes the specification that is carried out.
pub fn prepare(mut spec: Spec, around: &Surroundings<'_>) -> Result<Spec, PrepareError> {
    let root = make_root_absolute(&mut spec, around.bundle)?;
    check(&spec)?;
    check_mount_points(&root)?;
    close_gaps(&mut spec, around.id)?;
    let accounts = Accounts::read(&root)?;
    let annotation = |name: &str| spec.annotations().as_ref().and_then(|all| all.get(name)).cloned();
    let (user, groups) = (annotation(USER_ANNOTATION), annotation(GROUPS_ANNOTATION));
    let process = spec.process_mut().as_mut().ok_or(SpecError::Missing("process"))?;
    process.set_terminal(Some(around.terminal));
    if let Some(user) = user {
        process.user_mut().set_username(Some(user));
    }
    resolve_user(process, &accounts, groups.as_deref())?;
    adjust_process(process, &around.limits)?;
    let cwd = process.cwd().clone();
    root.create_folders(&cwd).map_err(|source| SpecError::WorkingDirectory { path: cwd, source })?;
    make_linked_mount_points(&spec, &root)?;
    cgroup_mount::spell_out(&mut spec)?;
    Ok(spec)
}

/// Makes the mount points that libcontainer cannot: those behind links that lead nowhere yet.
fn make_linked_mount_points(spec: &Spec, root: &Root) -> Result<(), SpecError> {
    for mount in spec.mounts().iter().flatten() {
        let binds = mount.options().iter().flatten().any(|option| option == "bind" || option == "rbind");
        let file = binds && mount.source().as_ref().is_some_and(|source| !source.is_dir());
        let kind = if file { FileType::RegularFile } else { FileType::Directory };
        root.create_behind_links(mount.destination(), kind)
            .map_err(|source| SpecError::MountPoint { path: mount.destination().clone(), source })?;
        if binds {
            check_kinds(spec, mount, file, root)?;
        }
    }
    Ok(())
}

/// A file is bound to a file and a folder to a folder. The kernel refuses the rest, in words that libcontainer does not pass on. What
/// is below another mount is seen by nobody yet. Source of the text: runc, `init_linux.go`.
fn check_kinds(spec: &Spec, mount: &Mount, file: bool, root: &Root) -> Result<(), SpecError> {
    let place = mount.destination();
    let covered = |other: &Mount| other.destination() != place && place.starts_with(other.destination());
    if spec.mounts().iter().flatten().any(covered) || !mount.source().as_ref().is_some_and(|source| source.exists()) {
        return Ok(());
    }
    // What is not there yet is made as it must be.
    let there = root.open_path(place).and_then(|there| Ok(rustix::fs::fstat(there)?));
    let Ok(there) = there else { return Ok(()) };
    if file != (FileType::from_raw_mode(there.st_mode) == FileType::Directory) {
        return Ok(());
    }
    let source = mount.source().clone().unwrap_or_default();
    Err(SpecError::Invalid(format!(
        "error mounting {source:?} to rootfs at {place:?}: not a directory: unknown: Are you trying to mount a directory onto a file (or vice-versa)? Check if the specified host path exists and is the expected type"
    )))
}

fn make_root_absolute(spec: &mut Spec, bundle: &Path) -> Result<Root, SpecError> {
    let path = spec.root().as_ref().ok_or(SpecError::Missing("root"))?.path();
    let path = bundle.join(path);
    let failed = |source| SpecError::Root { path: path.clone(), source };
    let absolute = path.canonicalize().map_err(failed)?;
    let root = Root::open(&absolute).map_err(failed)?;
    if let Some(part) = spec.root_mut() {
        part.set_path(absolute);
    }
    Ok(root)
}

/// Refuses what libcontainer would carry out wrongly or not at all without saying so.
fn check(spec: &Spec) -> Result<(), SpecError> {
    let linux = spec.linux().as_ref().ok_or(SpecError::Missing("linux"))?;
    let process = spec.process().as_ref().ok_or(SpecError::Missing("process"))?;
    let namespaces = linux.namespaces().iter().flatten();
    if !namespaces.into_iter().any(|namespace| namespace.typ() == LinuxNamespaceType::Mount) {
        return Err(SpecError::Unsupported("a container in the host's mount namespace is"));
    }
    check_process(process)
}

/// Refuses an image in which one of these is a link: libcontainer 0.7 makes devices and links at `<root>/dev/...`, and would
/// follow the link out of the root, onto the host.
fn check_mount_points(root: &Root) -> Result<(), SpecError> {
    for name in ["dev", "proc", "sys"] {
        let plain = root.is_plain_folder_or_nothing(name);
        if !plain.map_err(|source| SpecError::Root { path: name.into(), source })? {
            return Err(SpecError::Invalid(format!("the root file system's /{name} is not a folder")));
        }
    }
    Ok(())
}

/// The same for a further process.
pub fn check_process(process: &Process) -> Result<(), SpecError> {
    if !process.cwd().is_absolute() {
        return Err(SpecError::Invalid(format!("the working directory {:?} is not absolute", process.cwd())));
    }
    let has_nul = |texts: &Option<Vec<String>>| texts.iter().flatten().any(|text| text.contains('\0'));
    if has_nul(process.args()) || has_nul(process.env()) {
        return Err(SpecError::Invalid("arguments and environment must not contain NUL".to_owned()));
    }
    let labelled = process.selinux_label().as_ref().is_some_and(|label| !label.is_empty());
    if labelled && Path::new("/sys/fs/selinux/enforce").exists() {
        return Err(SpecError::Unsupported("SELinux labels are"));
    }
    Ok(())
}

/// Fills in what is left out, always to the side of the stronger wall.
fn close_gaps(spec: &mut Spec, id: &str) -> Result<(), SpecError> {
    let linux = spec.linux_mut().as_mut().ok_or(SpecError::Missing("linux"))?;
    let path = linux.cgroups_path().clone().unwrap_or_else(|| Path::new("/bulkhead").join(id));
    linux.set_cgroups_path(Some(plain_cgroup_path(&path)?));
    let mut resources = linux.resources().clone().unwrap_or_default();
    deny_devices_by_default(&mut resources)?;
    drop_dead_limits(&mut resources);
    linux.set_resources(Some(resources));
    Ok(())
}

/// Whether the container gets a network namespace that nobody has furnished.
pub fn makes_network(linux: &Linux) -> bool {
    let is_new =
        |namespace: &LinuxNamespace| namespace.typ() == LinuxNamespaceType::Network && namespace.path().is_none();
    linux.namespaces().iter().flatten().any(is_new)
}

/// An absolute path of plain names, at least one: everything in it is killed when the container is removed.
fn plain_cgroup_path(path: &Path) -> Result<PathBuf, SpecError> {
    let invalid = || SpecError::Invalid(format!("cgroupsPath {path:?} is not a plain path below the cgroup root"));
    if path.to_str().is_none_or(|text| text.contains(':') || text.contains('\0')) {
        // With colons it is a slice, a prefix and a name for systemd.
        return Err(invalid());
    }
    let mut plain = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => plain.push(name),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => return Err(invalid()),
        }
    }
    if plain.parent().is_none() { Err(invalid()) } else { Ok(plain) }
}

/// runc denies all devices before it applies the rules; libcontainer leaves that to the caller, and skips cgroups without
/// resources altogether.
fn deny_devices_by_default(resources: &mut LinuxResources) -> Result<(), SpecError> {
    let mut rules = resources.devices().clone().unwrap_or_default();
    let covers_all = |rule: &oci_spec::runtime::LinuxDeviceCgroup| {
        matches!(rule.typ(), None | Some(LinuxDeviceType::A)) && rule.major().is_none() && rule.minor().is_none()
    };
    if !rules.first().is_some_and(covers_all) {
        let deny_all = LinuxDeviceCgroupBuilder::default().allow(false).typ(LinuxDeviceType::A).access("rwm").build();
        rules.insert(0, deny_all.map_err(|error| SpecError::Invalid(error.to_string()))?);
    }
    resources.set_devices(Some(rules));
    Ok(())
}

/// Takes away limits that Linux no longer has, or that this kernel was built without.
fn drop_dead_limits(resources: &mut LinuxResources) {
    let Some(mut memory) = *resources.memory() else { return };
    if memory.kernel().is_some() || memory.kernel_tcp().is_some() {
        tracing::warn!("limits of kernel memory are gone from Linux and are left out");
        memory.set_kernel(None);
        memory.set_kernel_tcp(None);
    }
    if memory.disable_oom_killer() == Some(true) {
        tracing::warn!("the OOM killer stays enabled: cgroup version 2 and libcontainer cannot disable it");
        memory.set_disable_oom_killer(None);
    }
    let v1 = Path::new("/sys/fs/cgroup/memory");
    if memory.swap().is_some() && v1.exists() && !v1.join("memory.memsw.limit_in_bytes").exists() {
        tracing::warn!("this kernel does not account for swap: the limit of memory and swap is left out");
        memory.set_swap(None);
    }
    resources.set_memory(Some(memory));
}

/// Resolves `user.username`, adds groups, and sets `HOME` where it is unset.
pub fn resolve_user(process: &mut Process, accounts: &Accounts, groups: Option<&str>) -> Result<(), UserError> {
    let mut home = None;
    if let Some(name) = process.user().username().clone() {
        let identity = accounts.resolve(&name)?;
        let user = process.user_mut();
        // The primary group is also a supplementary one, so that a file's group permissions cannot be evaded by dropping it.
        let mut all = vec![identity.group_id];
        all.extend(identity.groups);
        all.extend(user.additional_gids().iter().flatten());
        user.set_uid(identity.user_id);
        user.set_gid(identity.group_id);
        user.set_additional_gids(Some(all));
        user.set_username(None);
        home = Some(identity.home);
    }
    if let Some(groups) = groups {
        let mut all = process.user().additional_gids().clone().unwrap_or_default();
        for group in groups.split(',').filter(|group| !group.is_empty()) {
            all.push(accounts.group_id(group)?);
        }
        process.user_mut().set_additional_gids(Some(all));
    }
    if let Some(gids) = process.user_mut().additional_gids_mut() {
        let mut seen = std::collections::HashSet::new();
        gids.retain(|gid| seen.insert(*gid));
    }
    // libcontainer would ask the container's own name service, with libraries of the container's choice.
    let mut environment = process.env().clone().unwrap_or_default();
    if !environment.iter().any(|entry| entry.len() > "HOME=".len() && entry.starts_with("HOME=")) {
        environment.retain(|entry| entry != "HOME=");
        let user_id = process.user().uid();
        environment.push(format!("HOME={}", home.unwrap_or_else(|| accounts.home(user_id))));
    }
    process.set_env(Some(environment));
    Ok(())
}

/// What loading a seccomp filter (`CAP_SYS_ADMIN`) and giving up capabilities afterwards (`CAP_SETPCAP`) takes.
const CONFINING: [Capability; 2] = [Capability::SysAdmin, Capability::Setpcap];

/// The capabilities with which a process can still confine itself. libcontainer gives up the others before it lets us do
/// that; what is returned in place of `wanted` must be given up right afterwards.
///
/// Shape: a set that is absent stays so, since libcontainer leaves such a set alone.
pub fn with_confining(wanted: &LinuxCapabilities) -> LinuxCapabilities {
    let widen = |set: &Option<Capabilities>| set.clone().map(|set| set.into_iter().chain(CONFINING).collect());
    let mut widened = wanted.clone();
    widened.set_bounding(Some(wanted.bounding().iter().flatten().copied().chain(CONFINING).collect()));
    widened.set_effective(widen(wanted.effective())).set_permitted(widen(wanted.permitted()));
    widened
}

/// Takes back what this host cannot give.
pub fn adjust_process(process: &mut Process, limits: &HostLimits) -> Result<(), SpecError> {
    if process.no_new_privileges() == Some(false) {
        // libcontainer takes any value for "yes" when it decides when to load the seccomp profile.
        process.set_no_new_privileges(None);
    }
    adjust_capabilities(process, limits.capabilities);
    if limits.may_raise_limits() {
        return Ok(());
    }
    if let Some(score) = process.oom_score_adj().filter(|score| *score < limits.oom_score_adj) {
        tracing::warn!(score, "oom_score_adj is left as it is: a lower one takes CAP_SYS_RESOURCE");
        process.set_oom_score_adj(None);
    }
    let mut rlimits = process.rlimits().clone().unwrap_or_default();
    for rlimit in &mut rlimits {
        let Some(most) = (limits.hard_limit)(rlimit.typ()).filter(|most| *most < rlimit.hard()) else { continue };
        tracing::warn!(limit = %rlimit.typ(), wanted = rlimit.hard(), most, "lowered: more takes CAP_SYS_RESOURCE");
        let lowered = PosixRlimitBuilder::default().typ(rlimit.typ()).hard(most).soft(rlimit.soft().min(most)).build();
        *rlimit = lowered.map_err(|error| SpecError::Invalid(error.to_string()))?;
    }
    process.set_rlimits(Some(rlimits));
    Ok(())
}

fn adjust_capabilities(process: &mut Process, available: u64) {
    let Some(mut capabilities) = process.capabilities().clone() else { return };
    let mut missing = std::collections::BTreeSet::new();
    let mut keep = |set: &Option<Capabilities>| {
        set.as_ref().map(|set| {
            let mut kept = set.clone();
            kept.retain(|capability| {
                let there = capability.to_cap().bitmask() & available != 0;
                if !there {
                    missing.insert(capability.to_string());
                }
                there
            });
            kept
        })
    };
    let kept = keep(capabilities.bounding());
    capabilities.set_bounding(kept);
    let kept = keep(capabilities.effective());
    capabilities.set_effective(kept);
    let kept = keep(capabilities.permitted());
    capabilities.set_permitted(kept);
    let kept = keep(capabilities.inheritable());
    capabilities.set_inheritable(kept);
    let kept = keep(capabilities.ambient());
    capabilities.set_ambient(kept);
    if !missing.is_empty() {
        tracing::warn!(?missing, "capabilities that this process does not have cannot be given to a container");
    }
    process.set_capabilities(Some(capabilities));
}

/// The id outside of the container's user namespace, if it has one of its own.
pub fn host_id(id: u32, mappings: Option<&Vec<LinuxIdMapping>>) -> u32 {
    let offset = |mapping: &LinuxIdMapping| id.checked_sub(mapping.container_id()).filter(|at| *at < mapping.size());
    let mapped = mappings.into_iter().flatten().find_map(|mapping| Some(mapping.host_id() + offset(mapping)?));
    mapped.unwrap_or(id)
}

#[cfg(test)]
mod tests;
