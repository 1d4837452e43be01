//! Forks utility VMs one after the other and prints what each cost: `fork GUEST_IMAGE STORE [COUNT] [LAYERS] [IDLE_MS]`.
//!
//! The first line is the template's boot if it had to be made.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bulkhead_uvm::{StartRequest, UtilityVm};
use proto::control::{BackendChoice, UtilityVmRequest};

type Failure = Box<dyn std::error::Error>;

/// Private memory, dirty and clean (page cache that nobody else maps at the moment).
fn private_kib(pid: u32) -> Result<[u64; 2], Failure> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let field = |name: &str| text.lines().find(|line| line.starts_with(name))?.split_whitespace().nth(1)?.parse().ok();
    Ok(["Private_Dirty", "Private_Clean"].map(|name| field(name).unwrap_or(0)))
}

/// Processor time of all threads so far.
fn processor_ms(pid: u32) -> Result<f64, Failure> {
    let mut nanoseconds = 0;
    for thread in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = std::fs::read_to_string(thread?.path().join("schedstat"))?;
        nanoseconds += text.split(' ').next().unwrap_or_default().parse::<u64>()?;
    }
    Ok(Duration::from_nanos(nanoseconds).as_secs_f64() * 1e3)
}

fn main() -> Result<(), Failure> {
    tracing_subscriber_to_stderr();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [guest_image, store, rest @ ..] = arguments.as_slice() else {
        return Err("usage: fork GUEST_IMAGE STORE [COUNT] [LAYERS] [IDLE_MS]".into());
    };
    let count: u32 = rest.first().map_or(Ok(5), |count| count.parse())?;
    let layers: usize = rest.get(1).map_or(Ok(1), |layers| layers.parse())?;
    let idle: u64 = rest.get(2).map_or(Ok(500), |idle| idle.parse())?;
    let vm = UtilityVmRequest {
        template_store: store.into(),
        guest_image: guest_image.into(),
        backend: BackendChoice::Auto,
        memory_bytes: None,
        cpus_milli: None,
        boundary_required: false,
        machine_id: "0f".repeat(16),
        personalize_timeout_ms: 2000,
        disk_rates: proto::control::DiskRates::default(),
    };
    let folder = PathBuf::from(store).with_extension("example");
    make_disks(&folder)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        for number in 0..count {
            let began = Instant::now();
            let request = StartRequest {
                rehearsal: false,
            namespace: None,
            network: proto::gcs::wire::Network::new(),
            pod: false,
                vm: &vm,
                scratch: folder.join("scratch"),
                layers: vec![folder.join("layer"); layers],
                run_dir: folder.join(format!("run{number}")),
                hostname: format!("fork{number}"),
                domainname: String::new(),
                cgroup: Some("/bulkhead-example".into()),
            };
            let vm = UtilityVm::start(request).await?;
            let took = began.elapsed();
            let processor = processor_ms(vm.report().vmm_pids[0])?;
            tokio::time::sleep(Duration::from_millis(idle)).await;
            let report = vm.report();
            let [dirty, clean] = private_kib(report.vmm_pids[0])?;
            println!(
                "start {:.1} ms, of it fork {:.1} ms, {processor:.1} ms of processor time in the VMM, built {}, clock off by {} us, private dirty {dirty} KiB, clean {clean} KiB, boot id {}",
                took.as_secs_f64() * 1e3,
                Duration::from_micros(report.fork_us).as_secs_f64() * 1e3,
                report.template_built,
                report.clock_error_us,
                report.boot_id,
            );
            vm.kill();
            let exit = vm.wait().await;
            println!("  {exit:?}");
        }
        Ok::<_, Failure>(())
    })
}

fn make_disks(folder: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    ["scratch", "layer"].into_iter().try_for_each(|name| File::create(folder.join(name))?.set_len(64 << 20))
}

fn tracing_subscriber_to_stderr() {
    let filter = tracing_subscriber::EnvFilter::from_default_env();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
}
