//! `docker load` of an image made of Debian packages, from the CLI's start to its exit.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, bail};
use bulkhead_e2e::{TestHost, archive};

use crate::reference::Dockerd;
use crate::series::{Series, print};

const NAME: &str = "debian-load:1";
/// What makes a minimal Debian some 300 MB large.
const PACKAGES: &str = "python3,git,ca-certificates";

type Side<'a> = (Series, Box<dyn Fn(&[&str]) -> Command + 'a>);

/// Loads the image into every side in turn, and removes it again, which is not timed. The first round does not count.
pub fn measure(host: &TestHost, dockerd: Option<&Dockerd>, rounds: usize) -> anyhow::Result<()> {
    let image = image()?;
    let bytes = image.metadata()?.len();
    println!("{} MB\n", bytes / 1_000_000);
    let mut sides = vec![side("bulkheadd".to_owned(), |args| host.docker_command(args))];
    if let Some(dockerd) = dockerd {
        sides.push(side(format!("dockerd {}", dockerd.version), |args| dockerd.docker(args)));
    }
    let path = image.to_str().context("the image's path is no text")?;
    for round in 0..=rounds {
        for (series, docker) in &mut sides {
            let began = Instant::now();
            run(&mut docker(&["load", "-q", "-i", path]))?;
            let took = began.elapsed();
            if round > 0 {
                series.push(took);
            }
            run(&mut docker(&["rmi", NAME]))?;
        }
    }
    let series: Vec<Series> = sides.into_iter().map(|(series, _)| series).collect();
    let peers: Vec<&Series> = series[1..].iter().collect();
    print(&series, &peers);
    Ok(())
}

fn side<'a>(name: String, docker: impl Fn(&[&str]) -> Command + 'a) -> Side<'a> {
    (Series::new(name), Box::new(docker))
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("{command:?} does not start"))?;
    if !output.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

/// The archive, made once: it takes mmdebstrap minutes, and a mirror.
fn image() -> anyhow::Result<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bench");
    let image = folder.join("debian-load.tar");
    if image.exists() {
        return Ok(image);
    }
    std::fs::create_dir_all(&folder)?;
    let rootfs = folder.join("debian-rootfs.tar");
    println!("mmdebstrap makes the image ...");
    run(Command::new("mmdebstrap")
        .args(["--quiet", "--variant=minbase", "--include", PACKAGES, "stable"])
        .arg(&rootfs)
        .arg("http://deb.debian.org/debian"))?;
    let unfinished = folder.join("debian-load.new");
    std::fs::write(&unfinished, archive::saved_image(NAME, &[std::fs::read(&rootfs)?]))?;
    std::fs::rename(&unfinished, &image)?;
    std::fs::remove_file(&rootfs)?;
    Ok(image)
}
