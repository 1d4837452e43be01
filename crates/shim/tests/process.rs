//! Process isolation through the real shim, as our engine drives it.

mod support;

use std::time::{Duration, Instant};

use containerd_shim_protos::api;
use containerd_shim_protos::cgroups::metrics::Metrics;
use containerd_shim_protos::types::task::Status as TaskStatus;
use proto::{ErrorKind, ProcessDetails};
use protobuf::Message;
use support::*;

#[tokio::test]
async fn output_exit_code_and_report() {
    if !can_run() {
        return;
    }
    let mut shim = Fixture::new(Setup::process(&["sh", "-c", "echo out; echo err >&2; echo hi > /new; exit 7"])).await;
    let pipes = shim.pipes(false);
    let pid = shim.create(&pipes).await.unwrap();
    let (out, err) = (pipes.output(), pipes.errors());
    assert_eq!(shim.state().await.status.enum_value(), Ok(TaskStatus::CREATED));
    assert_eq!(shim.start("").await.unwrap(), pid);
    assert_eq!(shim.wait("").await, 7);
    assert_eq!((read_all(out).await, read_all(err).await), (b"out\n".to_vec(), b"err\n".to_vec()));
    let report = shim.exit_report();
    assert_eq!((report.exit_code, report.oom_killed, report.error), (7, false, None));
    let state = shim.state().await;
    assert_eq!((state.status.enum_value(), state.exit_status, state.pid), (Ok(TaskStatus::STOPPED), 7, pid));
    assert_eq!(std::fs::read_to_string(shim.upper().join("new")).unwrap(), "hi\n");
    assert_eq!(shim.kill(15).await.unwrap_err().kind, ErrorKind::NotFound);
    shim.finish().await;
}

#[tokio::test]
async fn a_foreign_bundle_runs_from_its_folder() {
    if !can_run() {
        return;
    }
    let mut shim = Fixture::new(Setup::process(&["cat", "/etc/notexec"]).foreign()).await;
    let pipes = shim.pipes(false);
    shim.run(&pipes).await;
    let out = pipes.output();
    assert_eq!(shim.wait("").await, 0);
    assert_eq!(read_all(out).await, b"no program\n");
    shim.finish().await;
}

#[tokio::test]
async fn commands_that_cannot_run_say_so_in_dockers_words() {
    if !can_run() {
        return;
    }
    let cases = [
        ("nosuch", ErrorKind::NotFound, "exec: \"nosuch\": executable file not found in $PATH"),
        ("/etc/notexec", ErrorKind::PermissionDenied, "exec: \"/etc/notexec\": permission denied"),
    ];
    for (command, kind, phrase) in cases {
        let mut shim = Fixture::new(Setup::process(&[command])).await;
        let pipes = shim.pipes(false);
        let error = match shim.create(&pipes).await {
            Err(error) => error,
            Ok(_) => shim.start("").await.unwrap_err(),
        };
        assert_eq!(error.kind, kind, "{error}");
        assert!(error.to_string().contains(phrase), "{error}");
        let _ = shim.delete("").await;
        shim.shut_down(false).await;
        shim.assert_nothing_left();
    }
}

#[tokio::test]
async fn input_to_output_is_byte_for_byte() {
    if !can_run() {
        return;
    }
    let mut shim = Fixture::new(Setup::process(&["cat"])).await;
    let pipes = shim.pipes(false);
    shim.run(&pipes).await;
    let (mut input, out) = (pipes.input(), pipes.output());
    let bytes: Vec<u8> = (0..4_000_000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let sent = bytes.clone();
    let writing = tokio::spawn(async move {
        write_all(&mut input, &sent).await;
    });
    let reading = tokio::spawn(read_all(out));
    writing.await.unwrap();
    shim.close_stdin("").await;
    assert_eq!(shim.wait("").await, 0);
    let received = reading.await.unwrap();
    assert!(received == bytes, "{} of {} bytes", received.len(), bytes.len());
    shim.finish().await;
}

#[tokio::test]
async fn the_death_of_the_caller_is_neither_end_of_file_nor_a_broken_pipe() {
    if !can_run() {
        return;
    }
    let script = "echo first; read line; echo got $line; cat; echo end";
    let mut shim = Fixture::new(Setup::process(&["sh", "-c", script])).await;
    let pipes = shim.pipes(false);
    shim.run(&pipes).await;
    let (input, mut out) = (pipes.input(), pipes.output());
    read_until(&mut out, "first\n").await;
    // The engine dies and comes back.
    drop((input, out));
    let mut input = pipes.input();
    write_all(&mut input, b"line\nrest\n").await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let mut out = pipes.output();
    read_until(&mut out, "got line\nrest\n").await;
    drop(input);
    shim.close_stdin("").await;
    assert_eq!(shim.wait("").await, 0);
    assert_eq!(read_all(out).await, b"end\n");
    shim.finish().await;
}

#[tokio::test]
async fn a_terminal_has_its_size_and_takes_another() {
    if !can_run() {
        return;
    }
    let script = "stty size; trap 'stty size; exit 3' WINCH; echo ready; while :; do sleep 0.05; done";
    let mut shim = Fixture::new(Setup::process(&["sh", "-c", script]).terminal(91, 23)).await;
    let pipes = shim.pipes(true);
    shim.run(&pipes).await;
    let mut out = pipes.output();
    assert!(read_until(&mut out, "ready").await.contains("23 91"));
    let request = api::ResizePtyRequest { id: shim.id.clone(), width: 101, height: 33, ..Default::default() };
    shim.client.resize_pty(context(), &request).await.unwrap();
    assert_eq!(shim.wait("").await, 3);
    assert!(String::from_utf8_lossy(&read_all(out).await).contains("33 101"));
    shim.finish().await;
}

#[tokio::test]
async fn what_is_typed_reaches_a_terminal() {
    if !can_run() {
        return;
    }
    let mut shim = Fixture::new(Setup::process(&["sh"]).terminal(80, 24)).await;
    let pipes = shim.pipes(true);
    shim.run(&pipes).await;
    let (mut input, mut out) = (pipes.input(), pipes.output());
    write_all(&mut input, b"echo $((6*7))\n").await;
    read_until(&mut out, "42").await;
    write_all(&mut input, b"exit 5\n").await;
    assert_eq!(shim.wait("").await, 5);
    shim.finish().await;
}

#[tokio::test]
async fn execs_beside_a_container_that_writes() {
    if !can_run() {
        return;
    }
    let mut shim = Fixture::new(Setup::process(&["yes"])).await;
    let pipes = shim.pipes(false);
    shim.run(&pipes).await;
    let mut out = pipes.output();
    let drain = tokio::spawn(async move {
        let mut buffer = vec![0; 65536];
        while tokio::io::AsyncReadExt::read(&mut out, &mut buffer).await.is_ok_and(|count| count > 0) {}
    });
    for round in 0..3 {
        let exec_id = format!("e{round}");
        let streams = shim.pipes(false);
        shim.exec(&exec_id, &process(&["sh", "-c", "cat; exit 9"], false), &streams).await.unwrap();
        let mut input = streams.input();
        write_all(&mut input, b"through an exec\n").await;
        let exec_out = streams.output();
        drop(input);
        shim.close_stdin(&exec_id).await;
        assert_eq!(shim.wait(&exec_id).await, 9);
        assert_eq!(read_all(exec_out).await, b"through an exec\n");
        shim.delete(&exec_id).await.unwrap();
    }
    let streams = shim.pipes(false);
    let error = shim.exec("e9", &process(&["nosuch"], false), &streams).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotFound);
    assert!(error.to_string().contains("executable file not found in $PATH"), "{error}");
    assert_eq!(shim.wait("e9").await, 127);
    shim.kill(9).await.unwrap();
    assert_eq!(shim.wait("").await, 137);
    drain.await.unwrap();
    shim.finish().await;
}

#[tokio::test]
async fn a_process_that_an_exec_leaves_behind_delays_wait_by_two_seconds() {
    if !can_run() {
        return;
    }
    let mut shim = Fixture::new(Setup::process(&["sleep", "1000"])).await;
    let pipes = shim.pipes(false);
    shim.run(&pipes).await;
    let streams = shim.pipes(true);
    let leaving = process(&["sh", "-c", "trap '' HUP; sleep 500 & echo started; exit 4"], true);
    shim.exec("e1", &leaving, &streams).await.unwrap();
    let out = streams.output();
    let begin = Instant::now();
    assert_eq!(shim.wait("e1").await, 4);
    assert!(begin.elapsed() < Duration::from_secs(8), "{:?}", begin.elapsed());
    assert!(String::from_utf8_lossy(&read_all(out).await).contains("started"));
    shim.kill(9).await.unwrap();
    shim.wait("").await;
    shim.finish().await;
}

#[tokio::test]
async fn pause_pids_stats_and_kill() {
    if !can_run() {
        return;
    }
    let mut shim =
        Fixture::new(Setup::process(&["sh", "-c", "trap 'exit 6' TERM; echo on; while :; do sleep 0.02; done"])).await;
    let pipes = shim.pipes(false);
    let pid = shim.run(&pipes).await;
    read_until(&mut pipes.output(), "on").await;
    let pids = api::PidsRequest { id: shim.id.clone(), ..Default::default() };
    let listed = shim.client.pids(context(), &pids).await.unwrap();
    let info = listed.processes.iter().find(|entry| entry.pid == pid).unwrap().info.clone().unwrap();
    assert_eq!(info.type_url, ProcessDetails::TYPE_URL);
    let details: ProcessDetails = serde_json::from_slice(&info.value).unwrap();
    assert!(details.command.starts_with("sh -c"), "{details:?}");
    let stats = api::StatsRequest { id: shim.id.clone(), ..Default::default() };
    let stats = shim.client.stats(context(), &stats).await.unwrap().stats.unwrap();
    let metrics = Metrics::parse_from_bytes(&stats.value).unwrap();
    assert!(metrics.memory.usage.usage > 0 && metrics.cpu.usage.total > 0 && metrics.pids.current > 0);
    let pause = api::PauseRequest { id: shim.id.clone(), ..Default::default() };
    shim.client.pause(context(), &pause).await.unwrap();
    assert_eq!(shim.state().await.status.enum_value(), Ok(TaskStatus::PAUSED));
    let resume = api::ResumeRequest { id: shim.id.clone(), ..Default::default() };
    shim.client.resume(context(), &resume).await.unwrap();
    shim.kill(15).await.unwrap();
    assert_eq!(shim.wait("").await, 6);
    shim.finish().await;
}

#[tokio::test]
async fn a_paused_container_dies_by_sigkill() {
    if !can_run() {
        return;
    }
    let mut shim = Fixture::new(Setup::process(&["sleep", "1000"])).await;
    let pipes = shim.pipes(false);
    shim.run(&pipes).await;
    let pause = api::PauseRequest { id: shim.id.clone(), ..Default::default() };
    shim.client.pause(context(), &pause).await.unwrap();
    shim.kill(9).await.unwrap();
    assert_eq!(shim.wait("").await, 137);
    shim.finish().await;
}

#[tokio::test]
async fn a_host_kill_ends_the_container_and_is_seen() {
    if !can_run() {
        return;
    }
    let mut shim = Fixture::new(Setup::process(&["sleep", "1000"])).await;
    let pipes = shim.pipes(false);
    let pid = i32::try_from(shim.run(&pipes).await).unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    assert_eq!(shim.wait("").await, 137);
    shim.finish().await;
}

#[tokio::test]
async fn nothing_is_left_after_a_killed_shim() {
    if !can_run() {
        return;
    }
    let mut shim = Fixture::new(Setup::process(&["sh", "-c", "sleep 1000 & sleep 1001"])).await;
    let pipes = shim.pipes(false);
    let pid = shim.run(&pipes).await;
    shim.shim.kill().unwrap();
    shim.shim.wait().unwrap();
    let deleted = shim.delete_after_crash();
    assert_eq!((deleted.exit_status, deleted.pid), (137, pid));
    assert!(shim.exit_report().error.unwrap().contains("shim"));
    shim.assert_nothing_left();
    assert_eq!(shim.delete_after_crash().exit_status, 137, "deleting may be repeated");
}

#[tokio::test]
async fn an_exit_before_the_shims_death_keeps_its_code() {
    if !can_run() {
        return;
    }
    let mut shim = Fixture::new(Setup::process(&["sh", "-c", "exit 33"])).await;
    let pipes = shim.pipes(false);
    shim.run(&pipes).await;
    assert_eq!(shim.wait("").await, 33);
    shim.shim.kill().unwrap();
    shim.shim.wait().unwrap();
    assert_eq!(shim.delete_after_crash().exit_status, 33);
    shim.assert_nothing_left();
}

#[tokio::test]
async fn a_shim_takes_one_container_and_outlives_sigterm() {
    if !can_run() {
        return;
    }
    let mut shim = Fixture::new(Setup::process(&["sleep", "1000"])).await;
    let pipes = shim.pipes(false);
    shim.run(&pipes).await;
    assert_eq!(shim.create(&pipes).await.unwrap_err().kind, ErrorKind::AlreadyExists);
    let pid = nix::unistd::Pid::from_raw(i32::try_from(shim.shim.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    let shutdown = api::ShutdownRequest { id: shim.id.clone(), ..Default::default() };
    shim.client.shutdown(context(), &shutdown).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(shim.shim.try_wait().unwrap().is_none(), "a shim with a container does not end");
    assert_eq!(shim.delete("").await.unwrap_err().kind, ErrorKind::FailedPrecondition);
    shim.kill(9).await.unwrap();
    shim.wait("").await;
    shim.finish().await;
}

#[tokio::test]
async fn shutdown_now_ends_everything() {
    if !can_run() {
        return;
    }
    let mut shim = Fixture::new(Setup::process(&["sleep", "1000"])).await;
    let pipes = shim.pipes(false);
    shim.run(&pipes).await;
    shim.shut_down(true).await;
    assert_eq!(shim.exit_report().exit_code, 137);
    shim.assert_nothing_left();
}

#[tokio::test]
async fn the_programs_signals_are_not_changed_by_the_shim() {
    if !can_run() {
        return;
    }
    let mut shim = Fixture::new(Setup::process(&["cat", "/proc/self/status"])).await;
    let pipes = shim.pipes(false);
    shim.run(&pipes).await;
    let out = pipes.output();
    shim.wait("").await;
    let status = String::from_utf8_lossy(&read_all(out).await).into_owned();
    for field in ["SigBlk", "SigIgn"] {
        assert!(status.contains(&format!("{field}:\t{}\n", "0".repeat(16))), "{status}");
    }
    shim.finish().await;
}
