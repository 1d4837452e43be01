//! `docker build` by the classic builder: what it makes, what it says, and that it keeps inside its context.

use std::time::Duration;

use bulkhead_e2e::archive::Tar;
use bulkhead_e2e::eventually;
use bulkhead_e2e::{Said, TestHost, Wall};
use rustix::process::Signal;

/// `docker build` of a context that is sent as it is.
fn build(host: &TestHost, flags: &[&str], context: &[u8]) -> Said {
    let wall = ["--isolation", host.wall().word()];
    let wall: &[&str] = if host.is_reference() { &[] } else { &wall };
    host.docker_input(&[&["build", "--network", "none"], wall, flags, &["-"]].concat(), context)
}

fn context(dockerfile: &str) -> Tar {
    Tar::new().file("Dockerfile", 0o644, dockerfile.as_bytes())
}

/// What a container of an image says, behind the host's wall.
fn run(host: &TestHost, image: &str, command: &[&str]) -> String {
    host.docker(&host.words_for(image, "run", &["--rm"], command)).ok()
}

behind_both_walls! {
    fn stages_arguments_and_files_make_an_image(host) {
        let dockerfile = "ARG BASE=none\nFROM $BASE AS made\nARG WHAT=x\nRUN mkdir /out && echo \"$WHAT\" > /out/made && \
            chown 5:6 /out/made && uname -r > /out/kernel && ln -s made /out/link\nFROM box\nENV A=1 B=\"${A:-none} b\"\n\
            WORKDIR /w/x\nCOPY *.txt d ./\nCOPY --chown=7:8 a.txt /own/er\nCOPY --from=made /out /out\nADD t.tar /t\n\
            LABEL l=m\nCMD [\"cat\", \"a.txt\"]\n";
        let inner = Tar::new().file("in/tar", 0o600, b"unpacked").bytes();
        let files = context(dockerfile)
            .file("a.txt", 0o640, b"text a\n")
            .file("b.txt", 0o644, b"text b\n")
            .folder("d")
            .file("d/sub/c", 0o755, b"text c\n")
            .file("t.tar", 0o644, &inner)
            .bytes();
        let flags = ["--build-arg", "BASE=box", "--build-arg", "WHAT=that", "-t", "made:1", "-t", "made"];
        let said = build(host, &flags, &files).ok();
        assert!(said.contains("Step 1/13 : ARG BASE=none") && said.contains("Successfully tagged made:latest"), "{said}");
        assert_eq!(run(host, "made:1", &[]), "text a");
        let script = "cat /w/x/b.txt /w/x/sub/c /out/link /t/in/tar; stat -c '%a %u:%g' a.txt /own /own/er /out/made; echo $B";
        let expected = "text b\ntext c\nthat\nunpacked640 0:0\n755 7:8\n640 7:8\n644 5:6\nnone b";
        assert_eq!(run(host, "made", &["sh", "-c", script]), expected);
        let own = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
        let is_hosts = run(host, "made", &["cat", "/out/kernel"]) == own.trim();
        assert_eq!(is_hosts, host.is_reference() || host.wall() == Wall::Process, "RUN is behind the wall");
        let again = build(host, &flags, &files).ok();
        assert_eq!(again.matches("Using cache").count(), 10, "{again}");
        assert_eq!(host.docker(&["ps", "-aq"]).ok(), "");
    }

    fn a_client_that_goes_away_ends_its_build(host) {
        let folder = host.folder().join("context");
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("Dockerfile"), "FROM box\nRUN echo be''gun; sleep 1000\n").unwrap();
        let path = folder.to_str().unwrap();
        let wall = ["--isolation", host.wall().word()];
        let wall: &[&str] = if host.is_reference() { &[] } else { &wall };
        let building = host.spawn(&[&["build", "--network", "none"], wall, &[path]].concat());
        building.wait_for("begun");
        let id = host.docker(&["ps", "-q", "--no-trunc"]).ok();
        assert_eq!(id.len(), 64, "{id}");
        building.signal(Signal::KILL);
        assert_eq!(building.wait().code, 128 + 9);
        // It is in no list before it is away; nothing but its removal answers this.
        let is_gone = eventually(Duration::from_secs(20), || host.docker(&["inspect", &id]).code != 0);
        assert!(is_gone, "the container goes with the client");
        assert_eq!(host.docker(&["ps", "-aq"]).ok(), "");
    }
}

#[test]
fn a_failing_step_is_told_with_its_code_and_the_rest_is_not_done() {
    let Some(host) = TestHost::start(Wall::Process) else { return };
    let said = build(&host, &["--force-rm"], &context("FROM box\nRUN exit 3\nRUN echo never\n").bytes());
    said.fails_saying(3, &["The command '/bin/sh -c exit 3' returned a non-zero code: 3"]);
    assert!(!said.text().contains("never\n"), "{said}");
    assert_eq!(host.docker(&["ps", "-aq"]).ok(), "");
    for (dockerfile, words) in [
        ("FROM box\n\nFOO x\n", "dockerfile parse error line 3: unknown instruction: FOO"),
        ("FROM box\nCOPY --chmod=755 Dockerfile /x\n", "the --chmod option requires BuildKit"),
        ("FROM box\nCOPY nope /x\n", "COPY failed: file not found in build context or excluded by .dockerignore"),
        ("FROM box\nCOPY --from=3 a /x\n", "invalid from flag value 3: index out of bounds"),
        ("FROM box\nENV A=${B:x}\n", "unsupported modifier (x) in substitution"),
        ("FROM scratch\n", "No image was generated. Is your Dockerfile empty?"),
        ("", "the Dockerfile (Dockerfile) cannot be empty"),
    ] {
        build(&host, &[], &context(dockerfile).bytes()).fails_saying(1, &[words]);
    }
}

#[test]
fn triggers_are_done_in_the_next_build() {
    let Some(host) = TestHost::start(Wall::Process) else { return };
    let base = "FROM box\nONBUILD COPY a /a\nONBUILD RUN cat /a > /b\n";
    build(&host, &["-t", "base"], &context(base).bytes()).ok();
    let said = build(&host, &["-t", "child", "-q"], &context("FROM base\n").file("a", 0o644, b"content").bytes());
    assert!(said.ok().starts_with("sha256:"), "{said}");
    assert_eq!(run(&host, "child", &["cat", "/b"]), "content");
    assert_eq!(host.docker(&["inspect", "-f", "{{json .Config.OnBuild}}", "child"]).ok(), "null");
}

#[test]
fn ignored_files_and_steps_are_not_shown() {
    let Some(host) = TestHost::start(Wall::Process) else { return };
    let folder = host.folder().join("context");
    std::fs::create_dir_all(folder.join("sub")).unwrap();
    for (name, text) in [
        ("Dockerfile", "FROM box\nCOPY . /c\nRUN rm /c/keep\n"),
        (".dockerignore", "Dockerfile\n.dockerignore\n*.o\n!keep.o\nsub/*\n"),
        ("a.o", "x"),
        ("keep.o", "x"),
        ("keep", "x"),
        ("sub/x", "x"),
    ] {
        std::fs::write(folder.join(name), text).unwrap();
    }
    host.docker(&["build", "--network", "none", "-t", "ignored", folder.to_str().unwrap()]).ok();
    assert_eq!(run(&host, "ignored", &["sh", "-c", "cd /c; find . | sort"]), ".\n./keep.o\n./sub");
    let list = |flags: &[&str]| host.docker(&[&["images", "-q"], flags].concat()).lines().len();
    assert_eq!((list(&[]), list(&["-a"])), (2, 3), "the step between is an image that is seldom shown");
    assert_eq!(host.docker(&["images", "-q", "--filter", "dangling=true"]).ok(), "");
    host.docker(&["rmi", "ignored"]).ok();
    assert_eq!(list(&["-a"]), 1, "it goes with what it was made for");
}

#[test]
fn a_hostile_context_reaches_nothing_outside_of_it() {
    let Some(host) = TestHost::start_own(Wall::Process) else { return };
    let outside = host.folder().join("outside");
    std::fs::write(&outside, "secret").unwrap();
    let outside = outside.to_str().unwrap();
    let links = context("FROM box\nCOPY link /stolen\n").symlink("link", outside).bytes();
    build(&host, &[], &links).fails_saying(1, &["COPY failed", "file does not exist"]);
    let up = "../".repeat(12) + outside;
    let climbs = context("FROM box\nCOPY link /stolen\n").symlink("link", &up).bytes();
    build(&host, &[], &climbs).fails_saying(1, &["COPY failed", "file does not exist"]);
    let names = context("FROM box\n").file("../../escaped", 0o644, b"x").bytes();
    build(&host, &[], &names).fails_saying(1, &["leads out of it"]);
    let through = context("FROM box\n").symlink("l", "/tmp").file("l/escaped", 0o644, b"x").bytes();
    build(&host, &[], &through).fails_saying(1, &["through what is no folder"]);
    let linked = context("FROM box\n").hard_link("hard", outside).bytes();
    build(&host, &[], &linked).fails_saying(1, &["hard link"]);
    build(&host, &[], &context("FROM box\nCOPY ../outside /x\n").bytes()).fails_saying(1, &["forbidden path"]);
    // A link in the image leads to the image.
    let placed = "FROM box\nRUN ln -s / /up && ln -s /nowhere/else /gone\nCOPY f /up/../../placed\nCOPY f /gone/f\n";
    build(&host, &["-t", "placed"], &context(placed).file("f", 0o644, b"mine").bytes()).ok();
    assert_eq!(run(&host, "placed", &["cat", "/placed", "/nowhere/else/f"]), "minemine");
    assert!(!std::path::Path::new("/placed").exists() && !std::path::Path::new("/tmp/escaped").exists());
    assert_eq!(host.docker(&["ps", "-aq"]).ok(), "");
}
