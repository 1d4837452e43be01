//! Further processes in a running container.

use std::fs;

use bulkhead_container::{CommandError, ExecError, Helper};
use proto::ErrorKind;
use serde_json::json;

use crate::Case;
use crate::fixture::{Fixture, Pipes, exec, process, silent, wait};

pub const CASES: &[Case] = &[
    ("a_process_joins_the_container", a_process_joins_the_container),
    ("a_process_has_its_own_settings", a_process_has_its_own_settings),
    ("commands_that_cannot_run_are_typed_errors", commands_that_cannot_run_are_typed_errors),
    ("there_is_no_exec_where_nothing_runs", there_is_no_exec_where_nothing_runs),
    ("many_at_once", many_at_once),
];

fn running() -> (Fixture, bulkhead_container::Container, u32) {
    let fixture = Fixture::new("touch /ready; exec sleep 1000");
    let (container, started) = fixture.start();
    fixture.await_file("ready");
    (fixture, container, started.pid)
}

fn end(container: bulkhead_container::Container, pid: u32) {
    container.signal_all(libc::SIGKILL).unwrap();
    wait(pid);
    container.delete(false).unwrap();
}

fn a_process_joins_the_container() {
    let (fixture, container, pid) = running();
    let script = "hostname; ps -o args | grep -c 'sleep 1000'; cat; exit 5";
    let further = process(&fixture, &["sh", "-c", script]);
    let mut pipes = Pipes::new(b"input");
    let started = container.exec(Helper::spawn().unwrap(), &further, pipes.stdio()).unwrap();
    // It is a process of the container, and our child.
    let outcome = pipes.collect(started.pid);
    assert_eq!((outcome.code, outcome.stderr.as_str()), (5, ""));
    assert!(outcome.stdout.starts_with("bulk\n") && outcome.stdout.ends_with("input"), "{outcome:?}");

    let sleeper = container.exec(Helper::spawn().unwrap(), &process(&fixture, &["sleep", "77"]), silent()).unwrap();
    let all = container.processes().unwrap();
    assert_eq!(all.len(), 2, "{all:?}");
    let found = all.iter().find(|process| process.pid == sleeper.pid).unwrap();
    assert_eq!((found.command.as_str(), found.user_id, found.terminal.as_str()), ("sleep 77", 0, "?"));
    assert_eq!(found.parent, std::process::id());
    let namespaces = |pid: u32, kind: &str| fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
    for kind in ["mnt", "pid", "net", "ipc", "uts", "cgroup", "user"] {
        assert_eq!(namespaces(sleeper.pid, kind), namespaces(pid, kind), "{kind}");
    }
    // The first process of a pid namespace ends only when the others were reaped.
    container.signal_all(libc::SIGKILL).unwrap();
    assert_eq!(wait(sleeper.pid), 128 + libc::SIGKILL);
    end(container, pid);
}

fn a_process_has_its_own_settings() {
    let (fixture, container, pid) = running();
    let mut further = process(&fixture, &["sh", "-c", "id; pwd; echo $HOME $EXTRA; ulimit -n; umask"]);
    further.user_mut().set_username(Some("app".into()));
    further.set_cwd("/tmp".into());
    further.set_env(Some(vec!["PATH=/bin".into(), "EXTRA=yes".into()]));
    further.set_rlimits(serde_json::from_value(json!([{ "type": "RLIMIT_NOFILE", "hard": 99, "soft": 88 }])).unwrap());
    further.user_mut().set_umask(Some(0o027));
    let outcome = exec(&container, &further).unwrap();
    let expected = "uid=1000(app) gid=1001(app) groups=50(staff),1001(app)\n/tmp\n/home/app yes\n88\n0027\n";
    assert_eq!((outcome.code, outcome.stdout.as_str()), (0, expected));

    // Its streams are its user's, so that they can be opened again.
    let mut further = process(&fixture, &["sh", "-c", "echo again > /dev/stdout"]);
    further.user_mut().set_username(Some("app".into()));
    assert_eq!(exec(&container, &further).unwrap().stdout, "again\n");

    let mut further = process(&fixture, &["id"]);
    further.user_mut().set_username(Some("nosuch".into()));
    let error = exec(&container, &further).unwrap_err();
    assert_eq!(error.to_string(), "unable to find user nosuch: no matching entries in passwd file");
    end(container, pid);
}

fn commands_that_cannot_run_are_typed_errors() {
    let (fixture, container, pid) = running();
    fs::write(fixture.rootfs().join("text"), "x").unwrap();
    let attempt = |command: &str| match exec(&container, &process(&fixture, &[command])).unwrap_err() {
        ExecError::Command(error) => (error.kind(), error.to_string()),
        other => panic!("{other:?}"),
    };
    let name = "foo".to_owned();
    assert_eq!(attempt("foo"), (ErrorKind::NotFound, CommandError::NotInPath { name }.to_string()));
    assert_eq!(attempt("/text"), (ErrorKind::PermissionDenied, "exec: \"/text\": permission denied".into()));
    assert_eq!(
        attempt("/tmp"),
        (ErrorKind::PermissionDenied, "exec: \"/tmp\": is a directory: permission denied".into())
    );

    let mut lost = process(&fixture, &["true"]);
    lost.set_cwd("/nowhere".into());
    let error = exec(&container, &lost).unwrap_err();
    let expected = "chdir to cwd (\"/nowhere\") set in config.json failed: no such file or directory";
    assert!(matches!(&error, ExecError::Setup(setup) if setup.message == expected), "{error:?}");
    for number in 3..20 {
        let mut leaked = process(&fixture, &["true"]);
        leaked.set_cwd(format!("/proc/self/fd/{number}").into());
        assert!(exec(&container, &leaked).is_err(), "{number}");
    }
    // Nothing of the failed ones is left.
    assert_eq!(container.processes().unwrap().len(), 1);
    end(container, pid);
}

fn there_is_no_exec_where_nothing_runs() {
    let fixture = Fixture::new("exec sleep 100");
    let (mut container, started) = fixture.create(silent());
    let further = process(&fixture, &["true"]);
    assert!(matches!(exec(&container, &further), Err(ExecError::NotRunning)), "created is not running");
    container.start().unwrap();
    container.pause().unwrap();
    assert!(matches!(exec(&container, &further), Err(ExecError::Paused)));
    container.resume().unwrap();
    assert_eq!(exec(&container, &further).unwrap().code, 0);
    container.signal_all(libc::SIGKILL).unwrap();
    wait(started.pid);
    assert!(matches!(exec(&container, &further), Err(ExecError::NotRunning)));
    container.delete(false).unwrap();
}

fn many_at_once() {
    let (fixture, container, pid) = running();
    std::thread::scope(|scope| {
        let runs: Vec<_> = (0..12)
            .map(|number| {
                let further = process(&fixture, &["sh", "-c", &format!("echo {number}; exit {number}")]);
                let container = &container;
                scope.spawn(move || exec(container, &further).unwrap())
            })
            .collect();
        for (number, run) in runs.into_iter().enumerate() {
            let outcome = run.join().unwrap();
            assert_eq!((outcome.code, outcome.stdout), (i32::try_from(number).unwrap(), format!("{number}\n")));
        }
    });
    end(container, pid);
}
