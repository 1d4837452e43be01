//! `docker build` with what is elsewhere: ADD of a URL, contexts by URL and out of git repositories; and compressed archives.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use bulkhead_e2e::api::ApiConnection;
use bulkhead_e2e::archive::Tar;
use bulkhead_e2e::web::{Page, Web};
use bulkhead_e2e::{Said, TestHost, Wall};

fn build(host: &TestHost, dockerfile: &str, files: Tar) -> Said {
    let wall = ["--isolation", host.wall().word()];
    let wall: &[&str] = if host.is_reference() { &[] } else { &wall };
    let context = files.file("Dockerfile", 0o644, dockerfile.as_bytes()).bytes();
    host.docker_input(&[&["build", "--network", "none", "-t", "made"], wall, &["-"]].concat(), &context)
}

/// What a container of the image says.
fn look(host: &TestHost, script: &str) -> String {
    host.docker(&host.words_for("made", "run", &["--rm"], &["sh", "-c", script])).ok()
}

/// A build whose context the engine fetches, as SDKs ask for it.
fn build_remote(host: &TestHost, remote: &str) -> (u16, String) {
    let mut api = ApiConnection::open(host.socket()).unwrap();
    api.set_pause(std::time::Duration::from_secs(30));
    let remote = remote.replace('#', "%23").replace(':', "%3A").replace('/', "%2F");
    let answer =
        api.request("POST", &format!("/v1.41/build?t=made&networkmode=none&remote={remote}"), Some(b"")).unwrap();
    (answer.status, String::from_utf8_lossy(&answer.body).into_owned())
}

/// A stream as a program compresses it.
fn compressed(program: &str, bytes: &[u8]) -> Vec<u8> {
    let mut child =
        Command::new(program).arg("-c").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the program");
    let mut stdin = child.stdin.take().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(bytes).unwrap());
        child.wait_with_output().unwrap().stdout
    })
}

fn git(folder: &Path, words: &[&str]) -> String {
    let output = Command::new("git")
        .args([
            "-c",
            "user.name=t",
            "-c",
            "user.email=t@t",
            "-c",
            "protocol.file.allow=always",
            "-c",
            "init.defaultBranch=master",
        ])
        .args(words)
        .current_dir(folder)
        .output()
        .expect("git");
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

behind_both_walls! {
    fn add_fetches_urls_and_unpacks_compressed_archives(host) {
        let tar = Tar::new().file("in/tar", 0o640, b"unpacked\n").bytes();
        let remote = tar.clone();
        let web = Web::start(move |path| match path {
            "/a%20file?x=y" => Page::ok("content\n").with("Last-Modified: Wed, 21 Oct 2015 07:28:00 GMT"),
            "/moved" => Page::status("302 Found").with("Location: /called"),
            "/called" => Page::ok("by the server\n").with("Content-Disposition: attachment; filename=\"../x/named\""),
            "/other.tar" => Page::ok(remote.clone()),
            _ => Page::status("404 Not Found"),
        });
        let url = |path: &str| web.url(path);
        let dockerfile = format!(
            "FROM box\nADD {} {} plain /u/\nADD --chown=7:8 {} /renamed\nADD t.xz t.bz2 /t/\n",
            url("/a%20file?x=y"), url("/other.tar"), url("/moved")
        );
        let files = || Tar::new()
            .file("plain", 0o644, b"of the context\n")
            .file("t.xz", 0o644, &compressed("xz", &tar))
            .file("t.bz2", 0o644, &compressed("bzip2", &Tar::new().file("in/more", 0o600, b"too\n").bytes()));
        build(host, &dockerfile, files()).ok();
        let script = "cd /u; cat 'a file' plain /renamed /t/in/tar /t/in/more; stat -c '%n %a %u:%g %Y' * /renamed";
        let said = look(host, script);
        let expected = "content\nof the context\nby the server\nunpacked\ntoo\na file 600 0:0 1445412480\nother.tar 600 0:0 0\n";
        assert!(said.starts_with(expected) && said.ends_with("/renamed 600 7:8 0"), "{said}");
        let again = build(host, &dockerfile, files()).ok();
        assert_eq!(again.matches("Using cache").count(), 3, "what is fetched is known by its content: {again}");
    }
}

#[test]
fn urls_that_cannot_be_added_are_told() {
    let Some(host) = TestHost::start(Wall::Process) else { return };
    let web = Web::start(|path| match path {
        "/loop" => Page::status("302 Found").with("Location: /loop"),
        "/" => Page::ok("nameless"),
        _ => Page::status("404 Not Found").with("Content-Type: text/plain"),
    });
    for (path, destination, words) in [
        ("/gone", "/x", "ADD failed: failed to GET"),
        ("/gone", "/x", "404 Not Found"),
        ("/loop", "/x", "redirects"),
        ("/", "/x/", "cannot determine filename for source"),
    ] {
        let said = build(&host, &format!("FROM box\nADD {} {destination}\n", web.url(path)), Tar::new());
        said.fails_saying(1, &[words]);
    }
    build(&host, &format!("FROM box\nADD {} /x\n", web.url("/")), Tar::new()).ok();
    assert_eq!(look(&host, "cat /x"), "nameless");
    let said = build(&host, &format!("FROM box\nCOPY {} /x\n", web.url("/")), Tar::new());
    said.fails_saying(1, &["source can't be a URL for COPY"]);
    assert_eq!(host.docker(&["ps", "-aq"]).ok(), "");
}

#[test]
fn contexts_come_from_urls() {
    let Some(host) = TestHost::start(Wall::Process) else { return };
    let context = Tar::new().file("Dockerfile", 0o644, b"FROM box\nCOPY f /f\n").file("f", 0o644, b"by url\n").bytes();
    let context = compressed("gzip", &context);
    let web = Web::start(move |path| match path {
        "/c.tgz" => Page::ok(context.clone()).with("Content-Type: application/x-gzip"),
        "/alone" => Page::ok("FROM box\nRUN echo alone > /f\n").with("Content-Type: text/plain; charset=utf-8"),
        "/page" => Page::ok("<html>").with("Content-Type: text/html"),
        _ => Page::status("404 Not Found"),
    });
    for (path, expected) in [("/c.tgz", "by url"), ("/alone", "alone")] {
        let (status, said) = build_remote(&host, &web.url(path));
        assert!(status == 200 && said.contains("Successfully tagged made:latest"), "{said}");
        assert_eq!(look(&host, "cat /f"), expected);
    }
    for (remote, status, words) in [
        (web.url("/none"), 404, "404 Not Found"),
        (web.url("/page"), 500, "unsupported Content-Type"),
        ("/etc".into(), 500, "could not be recognized as URL"),
        ("file:///etc".into(), 500, "could not be recognized as URL"),
    ] {
        let (answered, said) = build_remote(&host, &remote);
        assert!(answered == status && said.contains(words), "{remote}: {answered} {said}");
    }
}

#[test]
fn contexts_come_from_repositories_with_their_submodules() {
    // dockerd's git gives up on submodules that a plain file server has.
    let Some(host) = TestHost::start_own(Wall::Process) else { return };
    let folder = host.folder().join("git");
    for (name, file) in [("inner", "i"), ("outer", "f")] {
        let work = folder.join(name);
        std::fs::create_dir_all(work.join("sub")).unwrap();
        git(&work, &["init", "-q"]);
        std::fs::write(work.join(file), format!("{name}\n")).unwrap();
        std::fs::write(work.join("sub/Dockerfile"), "FROM box\nCOPY . /c\n").unwrap();
        std::fs::write(work.join("Dockerfile"), "FROM box\nCOPY . /c\n").unwrap();
        std::os::unix::fs::symlink("/etc/hostname", work.join("sub/out")).unwrap();
        std::fs::write(work.join(".gitattributes"), "f export-ignore\n").unwrap();
        if name == "outer" {
            git(&work, &["submodule", "--quiet", "add", "../inner", "mod"]);
            git(&work, &["config", "-f", ".gitmodules", "submodule.mod.url", "../inner.git"]);
        }
        git(&work, &["add", "-A"]);
        git(&work, &["commit", "-qm", "first"]);
        git(&work, &["tag", "v1"]);
        git(&folder, &["clone", "-q", "--bare", name, &format!("{name}.git")]);
        git(&folder.join(format!("{name}.git")), &["update-server-info"]);
    }
    let served = folder.clone();
    let web = Web::start(move |path| Page::file(&served, path));
    let (status, said) = build_remote(&host, &web.url("/outer.git"));
    assert!(status == 200 && said.contains("Successfully tagged made:latest"), "{said}");
    assert_eq!(
        look(&host, "cd /c; cat f mod/i; ls sub; readlink sub/out"),
        "outer\ninner\nDockerfile\nout\n/etc/hostname"
    );
    let (_, said) = build_remote(&host, &web.url("/outer.git#v1:sub"));
    assert!(said.contains("Successfully tagged"), "{said}");
    assert_eq!(look(&host, "ls -A /c"), "Dockerfile\nout");
    for (remote, words) in [
        (web.url("/outer.git#nope"), "error fetching"),
        (web.url("/outer.git#v1:f"), "not a directory"),
        (web.url("/outer.git#--upload-pack=touch"), "invalid refspec"),
        (web.url("/none.git"), "error fetching"),
    ] {
        let (status, said) = build_remote(&host, &remote);
        assert!(status >= 400 && said.contains(words), "{remote}: {status} {said}");
    }
    assert_eq!(std::fs::read_dir(host.data_root().join("builds")).unwrap().count(), 0, "repositories go");
    assert_eq!(host.bulkhead(&["build", "-q", &web.url("/outer.git")]).code, 0);
}
