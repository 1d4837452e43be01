//! `copy-up`: fills a new volume with what an image has at its place, in a process that ends with it.
//!
//! Only the image's layers are mounted, for this process alone; they are what the engine's own worker has written.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use anyhow::Context;
use container::archive::{Root, copy_folder};
use container::rootfs::{self, LayerSource};
use proto::control::CopyUpRequest;
use proto::{ErrorKind, Status};

use crate::files::own_mounts;

/// Most bytes of a request.
const REQUEST_BYTES: u64 = 4 << 20;

/// Does it. Shape: what is to be printed. When: in a process without threads; the working directory is empty and takes mount
/// points.
///
/// # Errors
/// The request cannot be read.
pub fn run() -> anyhow::Result<Vec<u8>> {
    let mut text = Vec::new();
    io::stdin().lock().take(REQUEST_BYTES).read_to_end(&mut text).context("no request")?;
    let request: CopyUpRequest = serde_json::from_slice(&text).context("cannot understand the request")?;
    let work = std::env::current_dir().context("no working directory")?;
    Ok(serde_json::to_vec(&copy(&request, &work))?)
}

fn copy(request: &CopyUpRequest, work: &Path) -> Result<(), Status> {
    let internal = |error: io::Error| Status::from_error(ErrorKind::Internal, &error);
    own_mounts().map_err(internal)?;
    let layers: Vec<_> = request.layers.iter().map(|layer| LayerSource::File(layer.path.clone())).collect();
    let image: PathBuf = work.join("image");
    std::fs::create_dir(&image).map_err(internal)?;
    let mounted = rootfs::mount_layers(&layers, &work.join("layers"), &image);
    let mounted = mounted.map_err(|error| Status::from_error(error.kind(), &error))?;
    let into = &request.copy.into;
    if request.copy.again {
        empty(into).map_err(internal)?;
    }
    let (from, to) = (Root::open(&image).map_err(internal)?, Root::open(into).map_err(internal)?);
    let copied = copy_folder(&from, &request.copy.path, &to).map_err(|error| Status::from_error(error.kind(), &error));
    drop((from, to));
    mounted.unmount().map_err(|error| Status::from_error(error.kind(), &error))?;
    copied
}

fn empty(folder: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            std::fs::remove_dir_all(entry.path())?
        } else {
            std::fs::remove_file(entry.path())?
        }
    }
    Ok(())
}
