//! Health checks.

use std::time::Duration;

use bulkhead_e2e::{TestHost, Wall, eventually};

fn health(host: &TestHost, id: &str) -> serde_json::Value {
    host.inspect(id)["State"]["Health"].clone()
}

#[track_caller]
fn wait_health(host: &TestHost, id: &str, word: &str) {
    let is = || health(host, id)["Status"] == word;
    assert!(eventually(Duration::from_secs(30), is), "not {word}: {}", health(host, id));
}

behind_both_walls! {
    fn a_check_tells_and_goes_on_with_the_next_engine(host) {
        let flags = ["--name", "asked", "--health-cmd", "echo looked; test -e /ok", "--health-interval", "300ms", "--health-retries", "2"];
        let id = host.run_detached(&flags, &["sleep", "1000"]);
        assert!(host.docker(&["ps", "--format", "{{.Status}}"]).ok().contains("(health: starting)"));
        wait_health(host, &id, "unhealthy");
        assert_eq!(host.docker(&["ps", "-q", "--no-trunc", "--filter", "health=unhealthy"]).ok(), id);
        assert_eq!(host.docker(&["exec", &id, "touch", "/ok"]).code, 0);
        wait_health(host, &id, "healthy");
        assert!(host.docker(&["ps", "--format", "{{.Status}}"]).ok().ends_with("(healthy)"));
        let seen = health(host, &id);
        let log = seen["Log"].as_array().unwrap().clone();
        assert!(seen["FailingStreak"] == 0 && (3..=5).contains(&log.len()), "{seen}");
        assert_eq!((log.last().unwrap()["Output"].as_str(), log.last().unwrap()["ExitCode"].as_i64()), (Some("looked\n"), Some(0)));
        let events = host.docker(&["events", "--since", "0", "--until", &crate::events::now(), "--filter", "event=health_status", "--format", "{{.Action}}"]);
        assert_eq!(events.lines(), ["health_status: unhealthy", "health_status: healthy"]);
        if !host.is_reference() {
            host.engine().kill();
            host.start_engine();
        }
        assert_eq!(host.docker(&["exec", &id, "rm", "/ok"]).code, 0);
        wait_health(host, &id, "unhealthy");
        assert_eq!(host.docker(&["stop", "-t", "0", &id]).code, 0);
        assert_eq!(health(host, &id)["Status"], "unhealthy");
    }

    /// Case F57.
    fn a_check_that_never_ends_is_ended(host) {
        let flags = ["--health-cmd", "echo begun; exec sleep 7654", "--health-interval", "100ms", "--health-timeout", "400ms", "--health-retries", "1"];
        let id = host.run_detached(&flags, &["sleep", "1000"]);
        wait_health(host, &id, "unhealthy");
        let several = || health(host, &id)["FailingStreak"].as_u64() >= Some(3);
        assert!(eventually(Duration::from_secs(30), several), "{}", health(host, &id));
        let last = health(host, &id)["Log"][0].clone();
        // dockerd 20.10 says no more than that.
        let said = if host.is_reference() { "Health check exceeded timeout (400ms)" } else { "Health check exceeded timeout (400ms): begun\n" };
        assert_eq!((last["Output"].as_str(), last["ExitCode"].as_i64()), (Some(said), Some(-1)));
        let running = host.docker(&["top", &id]).text().lines().filter(|line| line.contains("sleep 7654")).count();
        assert!(running <= 1, "{running} checks run");
        assert!(host.inspect(&id)["ExecIDs"].as_array().is_none_or(|ids| ids.len() <= 1));
    }
}

#[test]
fn the_images_check_is_taken_unless_refused() {
    let Some(host) = TestHost::start(Wall::Process) else { return };
    let change = "HEALTHCHECK --interval=200ms --retries=1 CMD [\"true\"]";
    let made = host.docker(&host.words("create", &["--name", "made"], &["true"]));
    assert_eq!(made.code, 0, "{made}");
    assert_eq!(host.docker(&["commit", "--change", change, "made", "checked"]).code, 0);
    let run = |name: &str, options: &[&str]| {
        let options = [&["-d", "--name", name], options].concat();
        host.docker(&host.words_for("checked", "run", &options, &["sleep", "1000"])).ok()
    };
    let asked = run("asked", &[]);
    wait_health(&host, &asked, "healthy");
    let refused = run("refused", &["--no-healthcheck"]);
    assert_eq!(health(&host, &refused), serde_json::Value::Null);
    assert_eq!(host.docker(&["ps", "-q", "--no-trunc", "--filter", "health=none"]).ok(), refused);
    host.docker(&host.words("create", &["--health-interval", "1us", "--health-cmd", "x"], &["true"]))
        .fails_saying(1, &["Interval in Healthcheck cannot be less than 1ms"]);
    host.docker(&["ps", "--filter", "health=odd"]).fails_saying(1, &["health", "odd"]);
}
