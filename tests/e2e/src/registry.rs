//! A registry: Debian's `docker-registry` on a loopback port, with what a test wants of passwords and certificates.

use std::fs::{self, File};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::build::program;
use crate::patience::eventually;

/// The account of a registry that wants one.
pub const ACCOUNT: (&str, &str) = ("tester", "correct horse");
/// bcrypt of the password.
const HTPASSWD: &str = "tester:$2b$04$w8ssXYy9Vwdc5Wn5eahONeaU0lZPldyfAYZ6quQn/VmM6TtRQ8/R.\n";

/// How a registry is to be.
#[derive(Debug, Clone, Copy, Default)]
pub struct RegistryOptions {
    /// It wants [`ACCOUNT`].
    pub password: bool,
    /// It speaks TLS, with a certificate of an authority of its own.
    pub tls: bool,
}

/// A registry that runs. It ends with this.
pub struct Registry {
    child: Child,
    folder: tempfile::TempDir,
    port: u16,
}

impl Registry {
    /// Starts one.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    #[track_caller]
    pub fn start(options: RegistryOptions) -> Self {
        let folder = tempfile::Builder::new().prefix("bhreg-").tempdir_in("/tmp").expect("/tmp is writable");
        let root = folder.path();
        // Somebody else may take the port in between; then the registry does not start, and the test says so.
        let free = TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a free port");
        let port = free.port();
        let mut config = format!(
            "version: 0.1\nlog:\n  level: warn\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:{port}\n",
            root.join("data").display()
        );
        if options.tls {
            make_certificates(root);
            let (certificate, key) = (root.join("tls.crt"), root.join("tls.key"));
            config += &format!("  tls:\n    certificate: {}\n    key: {}\n", certificate.display(), key.display());
        }
        if options.password {
            fs::write(root.join("htpasswd"), HTPASSWD).expect("the folder is writable");
            config += &format!("auth:\n  htpasswd:\n    realm: test\n    path: {}\n", root.join("htpasswd").display());
        }
        fs::write(root.join("config.yml"), config).expect("the folder is writable");
        let log = File::create(root.join("log")).expect("the folder is writable");
        let errors = log.try_clone().expect("a copy of a descriptor");
        let child = Command::new(program("docker-registry").expect("docker-registry"))
            .arg("serve")
            .arg(root.join("config.yml"))
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .spawn()
            .expect("the registry starts");
        let mut registry = Self { child, folder, port };
        let up = eventually(Duration::from_secs(30), || {
            registry.has_ended() || TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        assert!(up && !registry.has_ended(), "the registry did not start:\n{}", registry.log());
        registry
    }

    fn has_ended(&mut self) -> bool {
        self.child.try_wait().is_ok_and(|status| status.is_some())
    }

    /// `127.0.0.1:PORT`, as images' names have it.
    #[must_use]
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// An image's name here.
    #[must_use]
    pub fn name(&self, rest: &str) -> String {
        format!("{}/{rest}", self.address())
    }

    /// What it wrote, one line for each request among it.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// How often each blob was fetched: digests with counts, one for each blob that was.
    #[must_use]
    pub fn fetched_blobs(&self) -> Vec<(String, usize)> {
        let mut counts = std::collections::BTreeMap::new();
        for line in self.log().lines() {
            let digest = line.split("\"GET /v2/").nth(1).and_then(|rest| rest.split("/blobs/").nth(1));
            if let Some(digest) = digest.and_then(|rest| rest.split(' ').next()) {
                *counts.entry(digest.to_owned()).or_default() += 1;
            }
        }
        counts.into_iter().collect()
    }

    /// A `certs.d` that has this registry's authority.
    ///
    /// # Panics
    /// When it has none.
    #[must_use]
    pub fn certificates(&self) -> PathBuf {
        let folder = self.folder.path().join("certs.d");
        let own = folder.join(self.address());
        fs::create_dir_all(&own).expect("the folder is writable");
        fs::copy(self.folder.path().join("ca.crt"), own.join("ca.crt")).expect("a registry with TLS");
        folder
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // It keeps nothing that would have to be written.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// An authority, and a certificate of it for 127.0.0.1, by openssl.
fn make_certificates(folder: &Path) {
    let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
    let authority = ["-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=test authority", "-days", "2"];
    openssl(folder, &[&["req", "-x509"], &key[..], &authority].concat());
    openssl(
        folder,
        &[&["req"], &key[..], &["-keyout", "tls.key", "-out", "tls.csr", "-subj", "/CN=registry"]].concat(),
    );
    fs::write(folder.join("names"), "subjectAltName=IP:127.0.0.1\n").expect("the folder is writable");
    let sign = ["x509", "-req", "-in", "tls.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial"];
    openssl(folder, &[&sign[..], &["-out", "tls.crt", "-days", "2", "-extfile", "names"]].concat());
}

fn openssl(folder: &Path, args: &[&str]) {
    let output = Command::new(program("openssl").expect("openssl")).args(args).current_dir(folder).output();
    let output = output.expect("openssl runs");
    assert!(output.status.success(), "openssl {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}
