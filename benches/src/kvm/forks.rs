//! The true guest, forked by each backend: from the request to the acknowledged personalization, and one more call over the guest
//! connection.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use proto::control::{BackendChoice, UtilityVmRequest};
use proto::gcs::wire::ContainerRequest;
use uvm::{GuestError, StartRequest, UtilityVm, WaitingVmm};

use crate::series::{Series, print};
use crate::working_set::{ONE_BY_ONE, forget, recorded};

/// More than a process takes to build its jail.
const READY: Duration = Duration::from_millis(500);
/// A slow machine's guest may take this long.
const PERSONALIZE_LIMIT_MS: u64 = 60_000;

struct Side {
    backend: BackendChoice,
    /// No fork knows which pages it will write.
    unknown: bool,
    /// A process waits for each fork, as it does for the engine's.
    waiting: bool,
    /// From the request to the answer.
    fork: Series,
    /// Processor time of the VMM's process, the guest's included, up to the answer.
    work: Series,
    /// A call that the guest answers at once.
    call: Series,
}

/// Calls of which the mean counts.
const CALLS: u32 = 20;

/// What one fork took.
struct Took {
    fork: Duration,
    work: Duration,
    call: Duration,
}

/// Forks on each backend in turn; the first round makes the templates, and does not count.
pub fn measure(rounds: usize) -> anyhow::Result<()> {
    let folder = tempfile::tempdir().context("cannot make a folder")?;
    for name in ["scratch", "layer"] {
        File::create(folder.path().join(name))?.set_len(1 << 20)?;
    }
    let side = |backend, name: &str| Side {
        backend,
        unknown: false,
        waiting: false,
        fork: Series::new(format!("{name}, to the answer")),
        work: Series::new(format!("{name}, processor time")),
        call: Series::new(format!("{name}, a call to the guest")),
    };
    let mut sides = [
        Side { waiting: true, ..side(BackendChoice::Kvm, "own vmm, a process waiting") },
        side(BackendChoice::Kvm, "own vmm"),
        Side { unknown: true, ..side(BackendChoice::Kvm, &format!("own vmm, {ONE_BY_ONE}")) },
        side(BackendChoice::QemuKvm, "qemu, accel=kvm"),
    ];
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("no runtime")?;
    for round in 0..=rounds {
        for side in &mut sides {
            if side.unknown {
                forget(&folder.path().join("templates"))?;
            }
            let forked = fork(folder.path(), side.backend, side.waiting, round);
            let Took { fork, work, call } = runtime.block_on(forked)?;
            if round > 0 {
                side.fork.push(fork);
                side.work.push(work);
                side.call.push(call);
            }
        }
    }
    let [waiting, own, single, qemu] = sides;
    print(&[waiting.fork, own.fork, single.fork, qemu.fork.clone()], &[&qemu.fork]);
    let (runs, pages) = recorded(&folder.path().join("templates"))?;
    println!("\n(at most 0.7x is asked for; {pages} pages in {runs} pieces are copied at once)\n");
    print(&[waiting.work, own.work, single.work, qemu.work.clone()], &[&qemu.work]);
    println!("\n(the round trip by the console's port)\n");
    print(&[own.call, qemu.call.clone()], &[&qemu.call]);
    Ok(())
}

async fn fork(folder: &Path, backend: BackendChoice, waits: bool, round: usize) -> anyhow::Result<Took> {
    let vm = UtilityVmRequest {
        template_store: folder.join("templates"),
        guest_image: guest_image()?,
        backend,
        memory_bytes: None,
        cpus_milli: None,
        boundary_required: false,
        machine_id: "0f".repeat(16),
        personalize_timeout_ms: PERSONALIZE_LIMIT_MS,
        disk_rates: proto::control::DiskRates::default(),
    };
    let run_dir = folder.join(format!("run{round}"));
    let waiting = if waits { WaitingVmm::start(&vm, &run_dir).await? } else { None };
    // It gets ready meanwhile.
    tokio::time::sleep(if waits { READY } else { Duration::ZERO }).await;
    let request = StartRequest {
        vm: &vm,
        scratch: folder.join("scratch"),
        layers: vec![folder.join("layer")],
        run_dir,
        hostname: "bench".to_owned(),
        domainname: String::new(),
        cgroup: None,
        rehearsal: false,
        namespace: None,
        network: proto::gcs::wire::Network::new(),
        pod: false,
    };
    let vm = UtilityVm::start_in(waiting, request)
        .await
        .with_context(|| format!("cannot start a utility VM on {backend:?}"))?;
    vm.record_working_set().await;
    let report = vm.report();
    let work = super::memory::processor_time(*report.vmm_pids.first().context("a VMM has a process")?)?;
    let fork = Duration::from_micros(report.fork_us);
    let nobody = ContainerRequest { container: u32::MAX, ..ContainerRequest::default() };
    let began = Instant::now();
    for _ in 0..CALLS {
        let answer = vm.guest().stats(&nobody).await;
        anyhow::ensure!(matches!(answer, Err(GuestError::Refused(_))), "no answer that there is no such container");
    }
    let call = began.elapsed() / CALLS;
    vm.kill();
    vm.wait().await;
    Ok(Took { fork, work, call })
}

/// Where the tests find it, too.
fn guest_image() -> anyhow::Result<PathBuf> {
    if let Some(named) = std::env::var_os("BULKHEAD_GUEST_IMAGE") {
        return Ok(named.into());
    }
    let own = fs::canonicalize("/proc/self/exe").context("cannot find this program")?;
    let target = own.ancestors().nth(2).context("this program is in no target folder")?;
    Ok(target.join("boot"))
}
