//! The worker's own side: order, jail, work, answer.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};

use proto::Digest;

use super::jail::Jail;
use super::wire::{Answer, Facts, Job, Refusal, receive_order};
use crate::compression::Decompressed;
use crate::convert::{LayerError, convert_tar};
use crate::limits::Limits;

/// How a program knows that it is a worker: its own name.
pub(super) const NAME: &str = "bulkhead-layer-converter";
/// Bytes moved at once.
const CHUNK: usize = 128 << 10;
/// Digits of a digest.
const DIGEST_DIGITS: usize = 64;

static SERVES: AtomicBool = AtomicBool::new(false);

/// Serves as a conversion worker if this process was started as one.
///
/// When: first statement of `main`, before any thread; returns if the process is no worker, and else never. A program that
/// opens an [`ImageStore`](crate::ImageStore) and does not call it cannot convert layers.
pub fn serve_if_converter() {
    SERVES.store(true, Ordering::Relaxed);
    if std::env::args_os().next().is_some_and(|name| name == NAME) {
        let code = i32::from(serve().is_err());
        std::process::exit(code)
    }
}

/// True once this program has said that it can be its own worker.
pub(super) fn program_serves() -> bool {
    SERVES.load(Ordering::Relaxed)
}

fn serve() -> io::Result<()> {
    close_inherited()?;
    let control = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let (order, input, output) = receive_order(&control)?;
    let answer = match Jail::for_layer(&order.limits, order.parent).enter() {
        Ok(()) => work(order.job, &order.limits, File::from(input), File::from(output), &control),
        Err(error) => Answer::NoJail(chain(&error)),
    };
    (&control).write_all(&serde_json::to_vec(&answer)?)
}

/// Closes what the parent's own parent may have left open in both.
fn close_inherited() -> io::Result<()> {
    let names = std::fs::read_dir("/proc/self/fd")?.map(|entry| entry.map(|entry| entry.file_name()));
    let names: Vec<_> = names.collect::<io::Result<_>>()?;
    let numbers = names.iter().filter_map(|name| name.to_str()?.parse::<i32>().ok());
    for number in numbers.filter(|number| *number > 2) {
        // The list's own descriptor is closed already.
        let _ = nix::unistd::close(number);
    }
    Ok(())
}

fn work(job: Job, limits: &Limits, input: File, output: File, control: &File) -> Answer {
    let done = match job {
        Job::Decompress => decompress(input, output, limits).map(|()| Answer::Decompressed),
        Job::Convert => convert_tar(input, output, limits, |_| read_digest(control)).map(|converted| {
            Answer::Converted(Facts {
                content_bytes: converted.content_bytes,
                entries: converted.entries,
                file_bytes: converted.file_bytes,
                root_opaque: converted.root_opaque,
            })
        }),
    };
    done.unwrap_or_else(|error| Answer::Refused(Refusal::from(error)))
}

fn decompress(input: File, mut output: File, limits: &Limits) -> Result<(), LayerError> {
    let (mut stream, _) = Decompressed::new(input, limits, limits.layer_bytes).map_err(LayerError::from_read)?;
    let mut buffer = vec![0; CHUNK];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => output.write_all(&buffer[..count]).map_err(LayerError::Write)?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(LayerError::from_read(error)),
        }
    }
}

/// The parent has hashed what it gave.
fn read_digest(mut control: &File) -> io::Result<Digest> {
    let mut digits = [0; DIGEST_DIGITS];
    control.read_exact(&mut digits)?;
    let digits = String::from_utf8_lossy(&digits);
    format!("sha256:{digits}").parse().map_err(|_| io::Error::other("no digest came"))
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}
