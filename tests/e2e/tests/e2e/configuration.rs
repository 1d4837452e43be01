//! The engine's configuration file.

use std::time::Duration;

use bulkhead_e2e::{HostOptions, TestHost, Wall, eventually};
use rustix::process::{Pid, Signal, kill_process};

#[test]
fn a_file_is_in_force_and_can_be_reloaded() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("bulkheadd.toml");
    std::fs::write(&file, "labels = [\"rack=1\"]\nregistry-mirrors = [\"http://127.0.0.1:9\"]\n").unwrap();
    let flags = vec![format!("--config={}", file.display())];
    let options = HostOptions { flags, no_image: true, ..HostOptions::default() };
    let Some(mut host) = TestHost::start_own_with(Wall::Process, &options) else { return };
    let info = |host: &TestHost, what: &str| host.docker(&["info", "--format", &format!("{{{{json .{what}}}}}")]).ok();
    assert!(info(&host, "Labels").contains("\"rack=1\""), "{}", info(&host, "Labels"));
    assert_eq!(info(&host, "RegistryConfig.Mirrors"), "[\"http://127.0.0.1:9\"]");

    let follower =
        host.spawn(&["events", "--filter", "type=daemon", "--format", "{{.Action}} {{.Actor.Attributes.labels}}"]);
    std::thread::sleep(Duration::from_millis(300));
    std::fs::write(&file, "labels = [\"rack=2\"]\nisolation = \"hyperv\"\n").unwrap();
    let hang_up = |host: &mut TestHost| kill_process(Pid::from_raw(host.engine().pid()).unwrap(), Signal::HUP).unwrap();
    hang_up(&mut host);
    follower.wait_for("reload [\"rack=2\"]");
    assert!(info(&host, "Labels").contains("\"rack=2\""), "{}", info(&host, "Labels"));
    assert_eq!(info(&host, "RegistryConfig.Mirrors"), "[]");
    assert!(host.log().contains("in force only after a restart: isolation"), "{}", host.log());

    std::fs::write(&file, "label = [\"rack=3\"]\n").unwrap();
    hang_up(&mut host);
    assert!(eventually(Duration::from_secs(10), || host.log().contains("unknown key \"label\"")), "{}", host.log());
    assert!(info(&host, "Labels").contains("\"rack=2\""), "a wrong file changed something");
    follower.signal(Signal::INT);
    host.stop_engine();

    let said = host.engine_command().output().unwrap();
    let text = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(!said.status.success(), "an engine with a wrong key started");
    assert!(text.contains("bulkheadd.toml:1: unknown key \"label\"; did you mean \"labels\"?"), "{text}");
    let checked = host.engine_command().arg("--check-config").output().unwrap();
    assert!(!checked.status.success() && String::from_utf8_lossy(&checked.stderr) == text);
}

#[test]
fn containers_have_the_engines_defaults_unless_they_say_otherwise() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("bulkheadd.toml");
    let text = "log-driver = \"local\"\nlog-opts = {max-size = \"1m\"}\ndefault-ulimits = {nofile = \"700:800\"}\n";
    std::fs::write(&file, text).unwrap();
    let options = HostOptions { flags: vec![format!("--config={}", file.display())], ..HostOptions::default() };
    for wall in [Wall::Process, Wall::Hyperv] {
        let Some(host) = TestHost::start_own_with(wall, &options) else { continue };
        assert_eq!(host.docker(&["info", "--format", "{{.LoggingDriver}}"]).ok(), "local");
        let limits = ["sh", "-c", "ulimit -Sn; ulimit -Hn"];
        let logging = "{{json .HostConfig.LogConfig}}";
        let id = host.run_detached(&[], &limits);
        host.wait_state(&id, "exited");
        assert_eq!(host.docker(&["logs", &id]).ok(), "700\n800");
        let shown = host.docker(&["inspect", "--format", logging, &id]).ok();
        assert_eq!(shown, "{\"Type\":\"local\",\"Config\":{\"max-size\":\"1m\"}}");

        let id = host.run_detached(&["--log-driver=json-file", "--ulimit=nofile=90"], &limits);
        host.wait_state(&id, "exited");
        assert_eq!(host.docker(&["logs", &id]).ok(), "90\n90");
        let shown = host.docker(&["inspect", "--format", logging, &id]).ok();
        assert_eq!(shown, "{\"Type\":\"json-file\",\"Config\":{}}");
    }
}
