//! `cargo xtask boot`: makes the guest image that utility VMs boot, `vmlinux`, `initramfs.cpio` and `manifest.json`.
//!
//! The kernel is a distribution's, from its package (downloaded and unpacked, never installed) or from files. The
//! initramfs holds the kernel modules named in `boot/modules`, in load order, and the static `bulkhead-guest` as `/init`.
//! Same inputs, same bytes; nothing is done when the inputs have not changed.
//!
//! ```text
//! package or files ── kernel ──▶ vmlinuz ── vmlinux ──▶ vmlinux ─┐
//!                        └─────▶ *.ko ───── modules ──▶ ordered ─┤
//! crates/guest ───────── guest ──────────▶ static program ───────┴─ initramfs ──▶ initramfs.cpio, manifest.json
//! ```

mod compression;
mod guest;
pub mod initramfs;
pub mod kernel;
mod manifest;
pub mod modules;
mod protocol;
pub mod vmlinux;

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use self::kernel::KernelFiles;
use self::manifest::Manifest;
use crate::workspace;

/// What `cargo xtask boot` may be told.
#[derive(Debug, clap::Args)]
pub struct BootArgs {
    /// Folder for the guest image
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Debian package of the kernel, a meta package or a kernel itself [default: what boot/kernel-package names]
    #[arg(long, value_name = "NAME", conflicts_with = "kernel")]
    kernel_package: Option<String>,
    /// A kernel file instead of a package: vmlinux, or a compressed bzImage
    #[arg(long, value_name = "FILE", requires = "modules")]
    kernel: Option<PathBuf>,
    /// The module folder of --kernel, such as /lib/modules/6.1.0-56-cloud-amd64
    #[arg(long, value_name = "DIR", requires = "kernel")]
    modules: Option<PathBuf>,
    /// Cargo profile of the guest's program; guest-quick for quick turns
    #[arg(long, value_name = "NAME", default_value = "guest", env = "BULKHEAD_GUEST_PROFILE")]
    guest_profile: String,
}

/// Makes the guest image, or finds that it is made.
///
/// # Errors
/// When a download, a build or a file operation fails; nothing half-made stays in the output folder.
pub fn run(args: &BootArgs) -> Result<()> {
    let (root, target) = (workspace::root(), workspace::target_dir());
    let output = args.output.clone().unwrap_or_else(|| target.join("boot"));
    fs::create_dir_all(&output).with_context(|| format!("cannot create {}", output.display()))?;
    let cache = Cache::open()?;

    let kernel = find_kernel(args, &root, &cache.folder)?;
    let program = guest::build(&args.guest_profile)?;
    let wanted = modules::parse_list(&read_text(&root.join("boot/modules"))?);
    let modules = modules::resolve(&kernel.modules, &wanted)?;
    let protocol = protocol::version(&read_text(&root.join(protocol::SOURCE))?)?;
    let inputs = manifest::Inputs { kernel: &kernel, program: &program, protocol, modules: &modules };
    let inputs_sha256 = inputs.digest()?;
    if let Some(made) = Manifest::read_current(&output, &inputs_sha256)? {
        println!(
            "{}: up to date, kernel {}, guest {}",
            output.display(),
            made.kernel_version,
            short(&made.guest_sha256)
        );
        return Ok(());
    }

    let vmlinux = vmlinux::extract(&fs::read(&kernel.image)?)
        .with_context(|| format!("cannot take the kernel out of {}", kernel.image.display()))?;
    let archive = initramfs::build(&program, &modules, &[])?;
    let manifest = inputs.manifest(inputs_sha256, &vmlinux, &archive);
    replace(&output.join("vmlinux"), &vmlinux)?;
    replace(&output.join("initramfs.cpio"), &archive)?;
    manifest.write(&output)?;
    report(&output, &manifest, vmlinux.len(), archive.len());
    Ok(())
}

/// The kernel of the package that `boot/kernel-package` names.
///
/// # Errors
/// When it cannot be downloaded or unpacked.
pub fn packaged_kernel() -> Result<KernelFiles> {
    let cache = Cache::open()?;
    let package = kernel::default_package(&read_text(&workspace::root().join("boot/kernel-package"))?)?;
    kernel::from_package(&package, &cache.folder)
}

/// The folder for what was downloaded and unpacked. Two runs at once would do it twice; the second one waits and finds it
/// done.
struct Cache {
    folder: PathBuf,
    _lock: File,
}

impl Cache {
    fn open() -> Result<Self> {
        let folder = workspace::target_dir().join("boot-cache");
        fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let lock = File::create(folder.join("lock")).context("cannot open the cache's lock file")?;
        lock.lock().context("cannot lock the cache")?;
        Ok(Self { folder, _lock: lock })
    }
}

fn find_kernel(args: &BootArgs, root: &Path, cache: &Path) -> Result<KernelFiles> {
    if let (Some(image), Some(modules)) = (&args.kernel, &args.modules) {
        return KernelFiles::from_paths(image, modules);
    }
    let package = match &args.kernel_package {
        Some(name) => name.clone(),
        None => kernel::default_package(&read_text(&root.join("boot/kernel-package"))?)?,
    };
    kernel::from_package(&package, cache)
}

fn report(output: &Path, manifest: &Manifest, vmlinux_bytes: usize, initramfs_bytes: usize) {
    let mib = |bytes: usize| bytes.div_ceil(1 << 20);
    println!("{}: kernel {}", output.display(), manifest.kernel_version);
    println!("  vmlinux         {:>3} MiB  {}", mib(vmlinux_bytes), short(&manifest.kernel_sha256));
    println!("  initramfs.cpio  {:>3} MiB  {}", mib(initramfs_bytes), short(&manifest.initramfs_sha256));
    println!("  modules         {}", manifest.modules.join(" "));
}

fn short(digest: &str) -> &str {
    digest.get(..12).unwrap_or(digest)
}

fn read_text(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Replaces a file at once, so that a reader sees the old bytes or the new ones.
fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let temporary = path.with_extension(format!("new-{}", std::process::id()));
    fs::write(&temporary, bytes)
        .and_then(|()| fs::rename(&temporary, path))
        .inspect_err(|_| drop(fs::remove_file(&temporary)))
        .with_context(|| format!("cannot write {}", path.display()))
}
