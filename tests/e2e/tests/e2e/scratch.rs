//! A container's changes live in one place on the host, found through inspect, and small (M9).

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

use bulkhead_e2e::{TestHost, Wall};

#[test]
fn a_hyperv_containers_changes_are_in_one_sparse_disk_file() {
    let Some(host) = TestHost::start_own(Wall::Hyperv) else { return };
    let id = host.run_detached(&[], &["sleep", "1000"]);
    let data = host.inspect(&id)["GraphDriver"]["Data"].clone();
    let file = PathBuf::from(data["Scratch"].as_str().unwrap_or_else(|| panic!("no disk file in {data}")));
    assert!(file.starts_with(host.data_root()), "{}", file.display());
    let before = file.metadata().unwrap();
    assert!(before.blocks() * 512 < 16 << 20, "{} bytes used", before.blocks() * 512);
    assert!(before.len() > 1 << 30, "{} bytes of room", before.len());
    assert_eq!(host.docker(&["exec", &id, "sh", "-c", "head -c 5000000 /dev/urandom > /big && sync"]).code, 0);
    let grown = file.metadata().unwrap().blocks() * 512;
    assert!(grown > before.blocks() * 512 + 4_000_000, "{grown} bytes used");
    assert_eq!(host.docker(&["exec", &id, "sh", "-c", "rm /big && sync"]).code, 0);
    // What is freed goes back to the host with the journal's next commits.
    let shrunk = || file.metadata().unwrap().blocks() * 512 < grown - 4_000_000;
    assert!(
        bulkhead_e2e::eventually(Duration::from_secs(20), shrunk),
        "{} bytes used",
        file.metadata().unwrap().blocks() * 512
    );
    assert_eq!(host.docker(&["rm", "-f", &id]).code, 0);
    assert!(!file.exists());
}

#[test]
fn a_process_containers_changes_are_in_an_upper_folder() {
    let Some(host) = TestHost::start(Wall::Process) else { return };
    let id = host.run_detached(&[], &["sh", "-c", "echo changed > /tmp/changed; rm /etc/plain; exec sleep 1000"]);
    let upper = PathBuf::from(host.inspect(&id)["GraphDriver"]["Data"]["UpperDir"].as_str().expect("UpperDir"));
    assert!(upper.starts_with(host.data_root()), "{}", upper.display());
    assert!(bulkhead_e2e::eventually(std::time::Duration::from_secs(10), || upper.join("tmp/changed").exists()));
    assert_eq!(std::fs::read_to_string(upper.join("tmp/changed")).unwrap(), "changed\n");
    assert!(!upper.join("bin").exists(), "only changes are in it");
    assert_eq!(host.docker(&["rm", "-f", &id]).code, 0);
    assert!(!upper.exists());
}

behind_both_walls! {
    fn files_survive_a_stop_and_a_kill(host) {
        let id = host.run_detached(&[], &["sh", "-c", "[ -e /count ] || echo x > /count; echo x >> /count; wc -l < /count; sync; exec sleep 1000"]);
        host.wait_log(&id, "2\n");
        assert_eq!(host.docker(&["kill", &id]).code, 0);
        host.wait_state(&id, "exited");
        assert_eq!(host.docker(&["start", &id]).code, 0);
        host.wait_log(&id, "3\n");
    }

    fn a_small_root_holds_many_files(host) {
        let script = "mkdir /many && cd /many && for i in $(seq 300); do echo $i > f$i; done; mv f1 g1; ln g1 h1; ln -s g1 s1; rm f2; ls | wc -l; cat s1; chmod 4755 g1; stat -c %a g1; chown 5:6 h1; stat -c %u:%g g1";
        assert_eq!(host.sh(script).ok(), "301\n1\n4755\n5:6");
    }
}
