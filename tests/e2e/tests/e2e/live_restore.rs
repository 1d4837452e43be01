//! Containers outlive their engine, whatever ends it: none dies, no output is lost, policies are applied once.
//!
//! `BULKHEAD_E2E_LIVE` is how many containers write behind each wall; `20` is the number that must hold.

use std::time::Duration;

use bulkhead_e2e::{TestHost, eventually};

/// Writes numbers, one a line, for as long as it lives; its output must be all of them in order.
const WRITER: &str = "i=0; while :; do i=$((i+1)); echo $i; [ $((i % 50)) = 0 ] && sleep 0.05; done";

/// How often the engine is killed.
const PAUSES: [u64; 3] = [200, 700, 4000];

/// Every number is there, once and in order.
#[track_caller]
fn check_output(host: &TestHost, id: &str) -> usize {
    let lines = host.docker(&["logs", id]).lines();
    for (at, line) in lines.iter().enumerate() {
        assert_eq!(
            line.parse(),
            Ok(at + 1),
            "{id}: line {at} after {:?}",
            at.checked_sub(1).map(|before| &lines[before])
        );
    }
    lines.len()
}

behind_both_walls! {
    fn killed_engines_lose_nothing(host) {
        if host.is_reference() {
            return bulkhead_e2e::skip("dockerd takes its containers along without live-restore");
        }
        let count: usize = std::env::var("BULKHEAD_E2E_LIVE").ok().and_then(|text| text.parse().ok()).unwrap_or(2);
        // All of it is kept, so that every number can be asked for.
        let options = ["--log-opt", "max-size=-1"];
        let writers: Vec<String> = (0..count).map(|_| host.run_detached(&options, &["sh", "-c", WRITER])).collect();
        let checked = host.run_detached(&["--health-cmd", "true", "--health-interval", "300ms"], &["sleep", "1000"]);
        let ends = host.run_detached(&[], &["sh", "-c", "echo begun; sleep 3; printf 'no end of line'; exit 23"]);
        let again = host.run_detached(&["--restart", "on-failure:1"], &["sh", "-c", "echo run; sleep 3; exit 7"]);
        let _gone = host.docker(&host.words("run", &["-d", "--rm", "--name", "gone"], &["sleep", "3"])).ok();
        for pause in PAUSES {
            std::thread::sleep(Duration::from_millis(300));
            host.engine().kill();
            std::thread::sleep(Duration::from_millis(pause));
            host.start_engine();
        }
        for writer in &writers {
            assert_eq!(host.state(writer).0, "running");
        }
        host.wait_state(&ends, "exited");
        assert_eq!(host.state(&ends).1, 23);
        assert_eq!(host.docker(&["logs", &ends]).text(), "begun\nno end of line");
        assert!(eventually(Duration::from_secs(30), || host.state(&again) == ("exited".to_owned(), 7) && host.inspect(&again)["RestartCount"] == 1));
        assert_eq!(host.docker(&["logs", &again]).lines(), ["run", "run"]);
        assert!(eventually(Duration::from_secs(10), || host.docker(&["inspect", "gone"]).code != 0), "it was to be removed");
        assert!(eventually(Duration::from_secs(10), || host.inspect(&checked)["State"]["Health"]["Status"] == "healthy"));
        let waiting = host.spawn(&["wait", &writers[0]]);
        for writer in &writers {
            let before = check_output(host, writer);
            assert!(eventually(Duration::from_secs(20), || host.docker(&["logs", writer]).lines().len() > before), "{writer} stands still");
        }
        let ids: Vec<&str> = writers.iter().map(String::as_str).collect();
        assert_eq!(host.docker(&[&["kill"], &ids[..]].concat()).code, 0);
        assert_eq!(waiting.end().ok(), "137");
        for writer in &writers {
            check_output(host, writer);
        }
    }
}
