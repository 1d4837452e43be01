//! What a command gets, and what is said when it cannot be run.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use bulkhead_container::{CommandError, CreateError, StartError};
use proto::ErrorKind;
use serde_json::json;

use crate::Case;
use crate::fixture::{Fixture, Pipes, chain, silent, wait};

pub const CASES: &[Case] = &[
    ("exit_codes_and_signals_arrive", exit_codes_and_signals_arrive),
    ("streams_carry_every_byte", streams_carry_every_byte),
    ("surroundings_are_as_specified", surroundings_are_as_specified),
    ("users_are_resolved_in_the_image", users_are_resolved_in_the_image),
    ("commands_that_cannot_run_are_typed_errors", commands_that_cannot_run_are_typed_errors),
    ("the_kernels_refusal_arrives_from_start", the_kernels_refusal_arrives_from_start),
    ("bad_bundles_leave_nothing", bad_bundles_leave_nothing),
];

fn exit_codes_and_signals_arrive() {
    assert_eq!(Fixture::new("exit 7").run().code, 7);
    assert_eq!(Fixture::new("true").run().code, 0);
    let fixture = Fixture::new("exec sleep 100");
    let (container, started) = fixture.start();
    container.signal_all(libc::SIGKILL).unwrap();
    assert_eq!(wait(started.pid), 128 + libc::SIGKILL);
    container.delete(false).unwrap();
}

fn streams_carry_every_byte() {
    let fixture = Fixture::new("cat; echo done >&2");
    let input: Vec<u8> = (0..3_000_000_u32).map(|n| b'a' + (n % 23) as u8).collect();
    let mut pipes = Pipes::new(&input);
    let (mut container, started) = fixture.create(pipes.stdio());
    container.start().unwrap();
    let outcome = pipes.collect(started.pid);
    assert_eq!((outcome.code, outcome.stderr.as_str()), (0, "done\n"));
    assert!(outcome.stdout.into_bytes() == input);
    container.delete(false).unwrap();

    // Without streams all three are the container's own /dev/null.
    let fixture = Fixture::new("ls -l /proc/self/fd/0 /proc/self/fd/1 /proc/self/fd/2 > /out; test -c /dev/null");
    let (container, started) = fixture.start();
    assert_eq!(wait(started.pid), 0);
    let listing = fs::read_to_string(fixture.rootfs().join("out")).unwrap();
    assert_eq!(listing.matches("/dev/null").count(), 2, "{listing}");
    container.delete(false).unwrap();
}

fn surroundings_are_as_specified() {
    let mut fixture = Fixture::new("hostname; dnsdomainname -y 2>/dev/null; cat /proc/sys/kernel/domainname; pwd; env");
    fixture.set("/process/cwd", json!("/made/for/it"));
    fixture.set("/process/env", json!(["PATH=/bin", "A=b c", "EMPTY="]));
    let output = fixture.output();
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!(lines[0], "bulk");
    assert!(lines.contains(&"head.test") && lines.contains(&"/made/for/it"), "{output}");
    for entry in ["A=b c", "EMPTY=", "HOME=/root", "PATH=/bin"] {
        assert!(lines.contains(&entry), "{entry} is missing: {output}");
    }
    // Nothing of the host's environment: PWD and SHLVL come from the shell.
    let env: Vec<&&str> = lines.iter().filter(|line| line.contains('=')).collect();
    assert_eq!(env.len(), 6, "{env:?}");
}

fn users_are_resolved_in_the_image() {
    let id = |user: &str| {
        let mut fixture = Fixture::new("id; echo $HOME");
        fixture.set("/annotations", json!({ "dev.bulkhead.user": user }));
        fixture.output()
    };
    assert_eq!(id("app"), "uid=1000(app) gid=1001(app) groups=50(staff),1001(app)\n/home/app\n");
    assert_eq!(id(""), "uid=0(root) gid=0(root) groups=0(root),10(wheel)\n/root\n");
    assert_eq!(id("1000:staff"), "uid=1000(app) gid=50(staff) groups=50(staff)\n/home/app\n");
    assert_eq!(id("4711"), "uid=4711 gid=0(root) groups=0(root)\n/\n");

    let mut fixture = Fixture::new("true");
    fixture.set("/annotations", json!({ "dev.bulkhead.user": "nosuch" }));
    let error = fixture.try_create(silent()).unwrap_err();
    assert_eq!(error.to_string(), "unable to find user nosuch: no matching entries in passwd file");
    assert!(!fixture.root().join(&fixture.id).exists());
}

fn commands_that_cannot_run_are_typed_errors() {
    let attempt = |command: &str| {
        let mut fixture = Fixture::new("");
        fs::write(fixture.rootfs().join("bin/text"), "no program").unwrap();
        fs::set_permissions(fixture.rootfs().join("bin/text"), fs::Permissions::from_mode(0o644)).unwrap();
        fixture.set("/process/args", json!([command, "x"]));
        let error = fixture.try_create(silent()).unwrap_err();
        assert!(!fixture.root().join(&fixture.id).exists(), "state is left");
        assert_eq!(fixture.cgroup_folders(), [] as [std::path::PathBuf; 0], "cgroups are left");
        assert!(matches!(error, CreateError::Command(_)), "{}", chain(&error));
        (error.kind(), error.to_string())
    };
    let text = |rest: &str| format!("unable to start container process: exec: {rest}");
    let (kind, message) = attempt("foo");
    assert_eq!((kind, message), (ErrorKind::NotFound, text("\"foo\": executable file not found in $PATH")));
    let (kind, message) = attempt("/nowhere/foo");
    assert_eq!(
        (kind, message),
        (ErrorKind::NotFound, text("\"/nowhere/foo\": stat /nowhere/foo: no such file or directory"))
    );
    let (kind, message) = attempt("/bin/text");
    assert_eq!((kind, message), (ErrorKind::PermissionDenied, text("\"/bin/text\": permission denied")));
    let (kind, message) = attempt("/etc");
    assert_eq!((kind, message), (ErrorKind::PermissionDenied, text("\"/etc\": is a directory: permission denied")));
}

fn the_kernels_refusal_arrives_from_start() {
    let mut fixture = Fixture::new("");
    for (name, content) in [("junk", "\x01\x02\x03"), ("lost", "#!/no/interpreter\n")] {
        let path = fixture.rootfs().join("bin").join(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    for (name, errno, kind) in
        [("junk", libc::ENOEXEC, ErrorKind::PermissionDenied), ("lost", libc::ENOENT, ErrorKind::NotFound)]
    {
        fixture.set("/process/args", json!([name]));
        let (mut container, started) = fixture.create(silent());
        let error = container.start().unwrap_err();
        assert_eq!(error.kind(), kind);
        let expected = CommandError::Refused { path: format!("/bin/{name}"), errno };
        assert!(matches!(&error, StartError::Command(command) if *command == expected), "{error}");
        wait(started.pid);
        container.delete(false).unwrap();
    }
}

fn bad_bundles_leave_nothing() {
    let check = |fixture: &Fixture, kind: ErrorKind, words: &str| {
        let error = fixture.try_create(silent()).unwrap_err();
        assert!(chain(&error).contains(words), "{words:?} is not in {:?}", chain(&error));
        assert_eq!(error.kind(), kind, "{}", chain(&error));
        assert!(!fixture.root().join(&fixture.id).exists(), "state is left");
        assert_eq!(fixture.cgroup_folders(), [] as [std::path::PathBuf; 0], "cgroups are left");
    };
    let mut fixture = Fixture::new("true");
    fixture.set("/root/path", json!("gone"));
    check(&fixture, ErrorKind::NotFound, "cannot open the container's root");

    let mut fixture = Fixture::new("true");
    fixture.set("/process/cwd", json!("/etc/passwd/x"));
    check(&fixture, ErrorKind::InvalidArgument, "cannot make the working directory /etc/passwd/x");

    let mut fixture = Fixture::new("true");
    let bind = json!({ "destination": "/mnt", "type": "bind", "source": "/does/not/exist", "options": ["rbind"] });
    fixture.spec["mounts"].as_array_mut().unwrap().push(bind);
    check(&fixture, ErrorKind::Internal, "/does/not/exist");

    let mut fixture = Fixture::new("true");
    fixture.set("/linux/cgroupsPath", json!("/"));
    check(&fixture, ErrorKind::InvalidArgument, "cgroup root");

    let mut fixture = Fixture::new("true");
    fixture.spec = json!({ "ociVersion": 7 });
    check(&fixture, ErrorKind::InvalidArgument, "no OCI runtime specification");
}
