//! What the contract tests need: QEMU, the guest image, a template store that they share, disks.
//!
//! They run over software emulation, which every machine has, unless `BULKHEAD_TEST_BACKEND=auto` lets the probe choose;
//! `BULKHEAD_TEST_ACCELERATOR` is what it must find then. `BULKHEAD_TEST_REQUIRE=1`: a missing need fails.
//! `BULKHEAD_TEST_FORKS`: how many run at once where that matters. `BULKHEAD_TEST_PATIENCE=10`: ten times the deadlines, for a slow machine. `cargo xtask lab --test` sets all of them.
#![allow(dead_code, clippy::unwrap_used, reason = "part of the tests; each test binary uses a part of it")]

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use bulkhead_uvm::{StartRequest, UtilityVm, UvmError};
use proto::control::{BackendChoice, UtilityVmRequest};

/// All tests of one build share templates, as all containers of a host do.
static SHARED_STORE: LazyLock<PathBuf> = LazyLock::new(|| Path::new(env!("CARGO_TARGET_TMPDIR")).join("templates"));

/// One test's own folder, and the shared template store.
pub struct Lab {
    folder: tempfile::TempDir,
    guest_image: PathBuf,
}

/// Says loudly that a test did not run.
pub fn skip(test: &str, missing: &str) {
    assert!(std::env::var_os("BULKHEAD_TEST_REQUIRE").is_none(), "{test} must run here, but {missing}");
    eprintln!("SKIPPED {test}: {missing}");
}

/// The backend of this run.
fn backend() -> BackendChoice {
    match std::env::var("BULKHEAD_TEST_BACKEND").as_deref() {
        Ok("auto") => BackendChoice::Auto,
        Ok("kvm") => BackendChoice::Kvm,
        Ok("qemu-kvm") => BackendChoice::QemuKvm,
        Ok("qemu-tcg") | Err(_) => BackendChoice::QemuTcg,
        Ok(other) => panic!("BULKHEAD_TEST_BACKEND={other}: choose auto, kvm, qemu-kvm or qemu-tcg"),
    }
}

/// True when our own VMM runs them.
pub fn is_own_vmm() -> bool {
    backend() == BackendChoice::Kvm
}

/// What must execute the utility VMs of this run.
pub fn expected_accelerator() -> String {
    std::env::var("BULKHEAD_TEST_ACCELERATOR").unwrap_or_else(|_| "tcg".to_owned())
}

/// How many forks of one template run at once where that matters.
pub fn forks() -> usize {
    std::env::var("BULKHEAD_TEST_FORKS").map_or(2, |count| count.parse().unwrap())
}

/// A deadline, longer on a machine that is known to be slow.
pub fn patient(limit: Duration) -> Duration {
    let times = std::env::var("BULKHEAD_TEST_PATIENCE").map_or(1, |times| times.parse().unwrap());
    limit * times
}

impl Lab {
    /// Opens the lab, or says what is missing.
    pub fn open() -> Result<Self, String> {
        let default = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/boot");
        let guest_image = std::env::var_os("BULKHEAD_GUEST_IMAGE").map_or(default, PathBuf::from);
        bulkhead_uvm::GuestImage::open(&guest_image).map_err(|error| error.to_string())?;
        if backend() != BackendChoice::Kvm {
            bulkhead_uvm::Qemu::find(proto::control::Accelerator::Tcg).map_err(|error| error.to_string())?;
        }
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        let lab = Self { folder, guest_image };
        lab.disk("layer");
        Ok(lab)
    }

    /// A small empty disk of that name; one that exists stays.
    pub fn disk(&self, name: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        let file = File::options().create(true).append(true).open(&path).unwrap();
        file.set_len(1 << 20).unwrap();
        path
    }

    /// This test's own folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A store of this test's own.
    pub fn private_store(&self) -> PathBuf {
        self.folder.path().join("templates")
    }

    /// What an engine would ask for.
    pub fn request(&self) -> UtilityVmRequest {
        UtilityVmRequest {
            template_store: SHARED_STORE.clone(),
            guest_image: self.guest_image.clone(),
            backend: backend(),
            memory_bytes: None,
            cpus_milli: None,
            boundary_required: false,
            machine_id: "0123456789abcdef".repeat(2),
            // Several emulated machines share two processors here.
            personalize_timeout_ms: 20_000,
            disk_rates: proto::control::DiskRates::default(),
        }
    }

    pub fn start_request<'a>(&self, vm: &'a UtilityVmRequest, name: &str) -> StartRequest<'a> {
        StartRequest {
            vm,
            scratch: self.disk(&format!("{name}.scratch")),
            layers: vec![self.folder.path().join("layer")],
            run_dir: self.folder.path().join(name),
            hostname: name.to_owned(),
            domainname: String::new(),
            cgroup: None,
            rehearsal: false,
            namespace: None,
            network: proto::gcs::wire::Network::new(),
            pod: false,
        }
    }

    pub async fn start_with(&self, vm: &UtilityVmRequest, name: &str) -> Result<UtilityVm, UvmError> {
        UtilityVm::start(self.start_request(vm, name)).await
    }

    pub async fn start(&self, name: &str) -> Result<UtilityVm, UvmError> {
        self.start_with(&self.request(), name).await
    }

    pub async fn start_in(&self, store: &Path, name: &str) -> Result<UtilityVm, UvmError> {
        let request = UtilityVmRequest { template_store: store.to_owned(), ..self.request() };
        self.start_with(&request, name).await
    }

    /// Every byte of the shared templates that is not zero, as their digests.
    pub fn template_bytes(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let mut found: Vec<_> = fs::read_dir(SHARED_STORE.as_path())
            .unwrap()
            .flatten()
            .flat_map(|entry| ["memory", "state"].map(|name| entry.path().join(name)))
            .filter_map(|path| Some((path.clone(), fs::read(&path).ok()?)))
            .collect();
        found.sort();
        found
    }

    /// Hypervisors that this process started and that still run.
    pub fn own_children(&self) -> Vec<u32> {
        let own = std::process::id();
        let parent = |pid: u32| -> Option<u32> {
            let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            text.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
        };
        let pids = fs::read_dir("/proc").unwrap().flatten();
        let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        pids.filter(|&pid| parent(pid) == Some(own)).collect()
    }
}

/// What a program prints in a network namespace.
pub fn in_namespace(namespace: &std::os::fd::OwnedFd, program: &str, words: &[&str]) -> String {
    use std::os::fd::AsFd;
    std::thread::scope(|scope| {
        let work = || {
            let network = Some(rustix::thread::LinkNameSpaceType::Network);
            rustix::thread::move_into_link_name_space(namespace.as_fd(), network).unwrap();
            let output = std::process::Command::new(program).args(words).output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stdout).unwrap()
        };
        scope.spawn(work).join().unwrap()
    })
}

/// True while there is such a process, zombies included.
pub fn alive(pid: u32) -> bool {
    Path::new("/proc").join(pid.to_string()).exists()
}

/// Kills a process as a stranger would.
pub fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

/// Waits until something holds.
pub async fn until(limit: Duration, holds: impl Fn() -> bool) {
    let limit = patient(limit);
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < limit, "it did not hold within {limit:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Numbers of the pages of a file that a process has written for itself; the file's path ends so.
pub fn own_pages(process: u32, path_end: &str) -> Vec<u64> {
    let pagemap = File::open(format!("/proc/{process}/pagemap")).unwrap();
    let maps = fs::read_to_string(format!("/proc/{process}/maps")).unwrap();
    let mut own = Vec::new();
    for line in maps.lines().filter(|line| line.ends_with(path_end)) {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let number = |text: &str| u64::from_str_radix(text, 16).unwrap() / 4096;
        let (begin, end) = fields[0].split_once('-').unwrap();
        let (begin, end, offset) = (number(begin), number(end), number(fields[2]));
        let mut entries = vec![0; usize::try_from((end - begin) * 8).unwrap()];
        pagemap.read_exact_at(&mut entries, begin * 8).unwrap();
        let entries = entries.chunks_exact(8).map(|entry| u64::from_ne_bytes(entry.try_into().unwrap()));
        let is_own = |entry: u64| entry >> 63 == 1 && entry & 1 << 61 == 0;
        own.extend((offset..).zip(entries).filter(|&(_, entry)| is_own(entry)).map(|(page, _)| page));
    }
    own
}
