//! Hyperv isolation through the real shim, as our engine drives it.

mod support;

use std::time::Duration;

use containerd_shim_protos::api;
use proto::ErrorKind;
use support::*;

fn ready() -> bool {
    can_run() && guest_image().is_some()
}

#[tokio::test]
async fn output_exit_code_and_another_kernel() {
    if !ready() {
        return;
    }
    let script = "uname -r; cat /etc/hostname 2>/dev/null; echo err >&2; echo hi > /new; exit 7";
    let mut shim = Fixture::new(Setup::hyperv(&["sh", "-c", script])).await;
    let pipes = shim.pipes(false);
    shim.run(&pipes).await;
    let (out, err) = (pipes.output(), pipes.errors());
    assert_eq!(shim.wait("").await, 7, "{}", shim.log());
    let kernel = String::from_utf8_lossy(&read_all(out).await).trim().to_owned();
    let host = rustix::system::uname().release().to_string_lossy().into_owned();
    assert!(!kernel.is_empty() && kernel != host, "{kernel} {host}");
    assert_eq!(read_all(err).await, b"err\n");
    let report = shim.exit_report();
    assert_eq!((report.exit_code, report.error), (7, None));
    assert!(!shim.utility_vm().boot_id.is_empty());
    shim.finish().await;
}

#[tokio::test]
async fn input_to_output_is_byte_for_byte() {
    if !ready() {
        return;
    }
    let mut shim = Fixture::new(Setup::hyperv(&["cat"])).await;
    let pipes = shim.pipes(false);
    shim.run(&pipes).await;
    let (mut input, out) = (pipes.input(), pipes.output());
    let bytes: Vec<u8> = (0..1_000_000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let sent = bytes.clone();
    let writing = tokio::spawn(async move { write_all(&mut input, &sent).await });
    let reading = tokio::spawn(read_all(out));
    writing.await.unwrap();
    shim.close_stdin("").await;
    assert_eq!(shim.wait("").await, 0);
    let received = reading.await.unwrap();
    assert!(received == bytes, "{} of {} bytes", received.len(), bytes.len());
    shim.finish().await;
}

#[tokio::test]
async fn terminal_exec_pause_and_kill() {
    if !ready() {
        return;
    }
    let mut shim = Fixture::new(Setup::hyperv(&["sh"]).terminal(91, 23)).await;
    let pipes = shim.pipes(true);
    shim.run(&pipes).await;
    let (mut input, mut out) = (pipes.input(), pipes.output());
    write_all(&mut input, b"stty size; echo $((6*7))\n").await;
    assert!(read_until(&mut out, "42").await.contains("23 91"));
    let resize = api::ResizePtyRequest { id: shim.id.clone(), width: 101, height: 33, ..Default::default() };
    shim.client.resize_pty(context(), &resize).await.unwrap();
    write_all(&mut input, b"stty size\n").await;
    read_until(&mut out, "33 101").await;

    let streams = shim.pipes(false);
    shim.exec("e1", &process(&["sh", "-c", "echo from an exec; exit 9"], false), &streams).await.unwrap();
    let exec_out = streams.output();
    assert_eq!(shim.wait("e1").await, 9);
    assert_eq!(read_all(exec_out).await, b"from an exec\n");
    let streams = shim.pipes(false);
    let error = shim.exec("e2", &process(&["nosuch"], false), &streams).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotFound, "{error}");
    assert!(error.to_string().contains("executable file not found in $PATH"), "{error}");

    let pids = api::PidsRequest { id: shim.id.clone(), ..Default::default() };
    assert!(!shim.client.pids(context(), &pids).await.unwrap().processes.is_empty());
    let stats = api::StatsRequest { id: shim.id.clone(), ..Default::default() };
    assert!(shim.client.stats(context(), &stats).await.unwrap().stats.is_some());
    let pause = api::PauseRequest { id: shim.id.clone(), ..Default::default() };
    shim.client.pause(context(), &pause).await.unwrap();
    let resume = api::ResumeRequest { id: shim.id.clone(), ..Default::default() };
    shim.client.resume(context(), &resume).await.unwrap();
    shim.client.pause(context(), &pause).await.unwrap();
    shim.kill(9).await.unwrap();
    assert_eq!(shim.wait("").await, 137);
    shim.finish().await;
}

#[tokio::test]
async fn a_killed_vmm_is_exit_137_with_a_reason() {
    if !ready() {
        return;
    }
    let mut shim = Fixture::new(Setup::hyperv(&["sleep", "1000"])).await;
    let pipes = shim.pipes(false);
    shim.run(&pipes).await;
    let vmm = i32::try_from(shim.utility_vm().vmm_pids[0]).unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(vmm), nix::sys::signal::Signal::SIGKILL).unwrap();
    assert_eq!(shim.wait("").await, 137);
    assert!(shim.exit_report().error.unwrap().contains("killed"));
    shim.finish().await;
}

#[tokio::test]
async fn a_guest_panic_is_exit_255_with_a_reason() {
    if !ready() {
        return;
    }
    let mut setup = Setup::hyperv(&["sh", "-c", "echo c > /proc/sysrq-trigger; sleep 1000"]);
    // As a privileged container: nothing masked, nothing read-only.
    let mut linux = setup.spec.linux().clone().unwrap();
    linux.set_masked_paths(None);
    linux.set_readonly_paths(None);
    setup.spec.set_linux(Some(linux));
    let mut shim = Fixture::new(setup).await;
    let pipes = shim.pipes(false);
    shim.run(&pipes).await;
    assert_eq!(shim.wait("").await, 255, "{}", shim.log());
    let error = shim.exit_report().error.unwrap();
    assert!(error.contains("panic"), "{error}");
    shim.finish().await;
}

#[tokio::test]
async fn shutdown_now_ends_everything() {
    if !ready() {
        return;
    }
    let mut shim = Fixture::new(Setup::hyperv(&["true"])).await;
    let pipes = shim.pipes(false);
    shim.run(&pipes).await;
    assert_eq!(shim.wait("").await, 0);
    shim.shut_down(true).await;
    shim.assert_nothing_left();
}

#[tokio::test]
async fn changes_are_on_the_scratch_disk_after_delete() {
    if !ready() {
        return;
    }
    let mut shim = Fixture::new(Setup::hyperv(&["sh", "-c", "echo kept > /kept"])).await;
    let pipes = shim.pipes(false);
    shim.run(&pipes).await;
    assert_eq!(shim.wait("").await, 0);
    shim.delete("").await.unwrap();
    let shown =
        std::process::Command::new("/sbin/debugfs").args(["-R", "cat /upper/kept"]).arg(shim.scratch()).output();
    assert_eq!(String::from_utf8_lossy(&shown.unwrap().stdout), "kept\n");
    let checked = std::process::Command::new("/sbin/e2fsck").arg("-fn").arg(shim.scratch()).output().unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
    shim.shut_down(false).await;
    shim.assert_nothing_left();
}

#[tokio::test]
async fn nothing_is_left_after_a_killed_shim() {
    if !ready() {
        return;
    }
    let mut shim = Fixture::new(Setup::hyperv(&["sleep", "1000"])).await;
    let pipes = shim.pipes(false);
    shim.run(&pipes).await;
    shim.shim.kill().unwrap();
    shim.shim.wait().unwrap();
    assert_eq!(shim.delete_after_crash().exit_status, 137);
    shim.assert_nothing_left();
    tokio::time::sleep(Duration::from_millis(10)).await;
}

#[tokio::test]
async fn commands_that_cannot_run_say_so_in_dockers_words() {
    if !ready() {
        return;
    }
    let cases = [
        ("nosuch", ErrorKind::NotFound, "exec: \"nosuch\": executable file not found in $PATH"),
        ("/etc/notexec", ErrorKind::PermissionDenied, "exec: \"/etc/notexec\": permission denied"),
    ];
    for (command, kind, phrase) in cases {
        let mut shim = Fixture::new(Setup::hyperv(&[command])).await;
        let pipes = shim.pipes(false);
        let error = match shim.create(&pipes).await {
            Err(error) => error,
            Ok(_) => shim.start("").await.unwrap_err(),
        };
        assert_eq!(error.kind, kind, "{error}\n{}", shim.log());
        assert!(error.to_string().contains(phrase), "{error}");
        let _ = shim.delete("").await;
        shim.shut_down(false).await;
        shim.assert_nothing_left();
    }
}
