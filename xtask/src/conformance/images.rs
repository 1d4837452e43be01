//! Stand-ins for the images of Docker Hub that the suites name, out of Debian's busybox, and the registry that has them.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bulkhead_e2e::archive::{Tar, busybox, busybox_rootfs};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::workspace;

/// Where the registry listens inside a session. The suites have this address in them.
pub const REGISTRY: &str = "127.0.0.1:5000";
const DEADLINE: Duration = Duration::from_secs(30);

/// An image: its file, its names in the registry, its command, and a layer above busybox.
struct StandIn {
    file: &'static str,
    names: &'static [&'static str],
    command: &'static [&'static str],
    /// Files of the second layer: path, mode, content.
    files: &'static [(&'static str, u32, &'static str)],
    /// Programs of this machine that go into the second layer with their libraries.
    programs: &'static [&'static str],
}

const STAND_INS: &[StandIn] = &[
    StandIn {
        file: "alpine-3.10.tar",
        names: &["library/alpine:3.10"],
        command: &["/bin/sh"],
        files: &[("etc/alpine-release", 0o644, "3.10.9\n")],
        programs: &[],
    },
    StandIn {
        file: "alpine.tar",
        names: &["library/alpine:latest", "alpine:latest"],
        command: &["/bin/sh"],
        files: &[("etc/alpine-release", 0o644, "3.20.0\n")],
        programs: &[],
    },
    StandIn {
        file: "busybox.tar",
        names: &["library/busybox:latest"],
        command: &["sh"],
        files: &[("etc/stand-in", 0o644, "busybox\n")],
        programs: &[],
    },
    StandIn {
        file: "hello-world.tar",
        names: &["library/hello-world:latest", "hello-world:linux"],
        command: &["/hello"],
        files: &[("hello", 0o755, "#!/bin/sh\nprintf '\\nHello from Docker!\\nIt works.\\n'\n")],
        programs: &[],
    },
    StandIn {
        file: "uhttpd.tar",
        names: &["fussybeaver/uhttpd:latest"],
        command: &["/usr/sbin/run_uhttpd", "-f", "-p", "80", "-h", "/www"],
        files: &[
            ("usr/sbin/run_uhttpd", 0o755, "#!/bin/sh\nexec httpd \"$@\"\n"),
            ("etc/config/uhttpd", 0o644, "\nconfig uhttpd main\n"),
            ("www/index.html", 0o644, "it works\n"),
        ],
        programs: &[],
    },
    StandIn {
        file: "redis.tar",
        names: &["library/redis:latest"],
        command: &["redis-server"],
        files: &[("data/.keep", 0o644, "")],
        programs: &["/usr/bin/redis-server", "/usr/bin/redis-cli"],
    },
];

/// Writes the archives that are not there yet.
pub fn make(folder: &Path) -> anyhow::Result<()> {
    if busybox().is_none() {
        bail!("busybox-static is missing: scripts/setup conformance");
    }
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let base = busybox_rootfs();
    for image in STAND_INS {
        let file = folder.join(image.file);
        fs::write(&file, image.archive(&base)?).with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(())
}

impl StandIn {
    /// Form: that of `docker save`.
    fn archive(&self, base: &[u8]) -> anyhow::Result<Vec<u8>> {
        let own = self.files.iter().fold(Tar::new(), |tar, (path, mode, text)| tar.file(path, *mode, text.as_bytes()));
        let own = with_programs(own, self.programs)?;
        let layers = [base.to_vec(), own.bytes()];
        let digest = |bytes: &[u8]| hex::encode(Sha256::digest(bytes));
        let made = "2024-01-01T00:00:00Z";
        let config = json!({
            "architecture": "amd64", "os": "linux", "created": made,
            "config": {
                "Cmd": self.command,
                "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            },
            "rootfs": {
                "type": "layers",
                "diff_ids": layers.iter().map(|layer| format!("sha256:{}", digest(layer))).collect::<Vec<_>>(),
            },
            "history": [
                { "created": made, "created_by": "ADD busybox" },
                { "created": made, "created_by": "ADD files" },
            ],
        })
        .to_string();
        let config_name = format!("{}.json", digest(config.as_bytes()));
        let manifest = json!([{ "Config": config_name, "RepoTags": [], "Layers": ["0/layer.tar", "1/layer.tar"] }]);
        let archive = Tar::new()
            .file(&config_name, 0o644, config.as_bytes())
            .file("0/layer.tar", 0o644, &layers[0])
            .file("1/layer.tar", 0o644, &layers[1])
            .file("manifest.json", 0o644, manifest.to_string().as_bytes())
            .bytes();
        Ok(archive)
    }
}

/// Adds programs, and the libraries that `ldd` names.
fn with_programs(mut tar: Tar, programs: &[&str]) -> anyhow::Result<Tar> {
    let mut paths: BTreeSet<String> = programs.iter().map(|path| (*path).to_owned()).collect();
    for program in programs {
        let output = Command::new("ldd").arg(program).output().context("ldd does not start")?;
        if !output.status.success() {
            bail!("{program} is missing: scripts/setup conformance");
        }
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        paths.extend(text.split_whitespace().filter(|word| word.starts_with('/')).map(str::to_owned));
    }
    for path in paths {
        let content = fs::read(&path).with_context(|| format!("cannot read {path}"))?;
        tar = tar.file(path.trim_start_matches('/'), 0o755, &content);
    }
    Ok(tar)
}

/// A registry with the stand-ins. It ends with this.
pub struct Registry {
    child: Child,
}

impl Registry {
    /// Starts one that keeps its data below a folder, and fills it.
    pub fn start(folder: &Path, images: &Path) -> anyhow::Result<Self> {
        let config = folder.join("registry.yml");
        let text = format!(
            "version: 0.1\nlog:\n  level: warn\nstorage:\n  delete:\n    enabled: true\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {REGISTRY}\n",
            folder.join("registry").display()
        );
        fs::write(&config, text).with_context(|| format!("cannot write {}", config.display()))?;
        let log = File::create(folder.join("registry.log"))?;
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("docker-registry does not start")?;
        let mut registry = Self { child };
        let began = Instant::now();
        while TcpStream::connect(REGISTRY).is_err() {
            if registry.child.try_wait()?.is_some() || began.elapsed() > DEADLINE {
                bail!("the registry does not start, see registry.log in {}", folder.display());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        for image in STAND_INS {
            image.names.iter().try_for_each(|name| push(&images.join(image.file), name))?;
        }
        Ok(registry)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn push(archive: &Path, name: &str) -> anyhow::Result<()> {
    let mut command = Command::new("skopeo");
    command.args(["--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false", "--format=v2s2"]);
    command.arg(format!("docker-archive:{}", archive.display())).arg(format!("docker://{REGISTRY}/{name}"));
    let output = command.output().context("skopeo does not start")?;
    if !output.status.success() {
        bail!("{}: {}", workspace::shown(&command), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
