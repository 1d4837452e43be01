//! Templates: made once, at first need or by command; a damaged one is made again.

use std::fs;
use std::path::PathBuf;

use bulkhead_e2e::{HostOptions, TestHost, Wall};
use serde_json::Value;

fn host_with_own_store() -> Option<TestHost> {
    TestHost::start_own_with(Wall::Hyperv, &HostOptions { own_templates: true, ..HostOptions::default() })
}

fn templates(host: &TestHost) -> Vec<Value> {
    let text = host.bulkhead(&["template", "ls", "--format", "json"]).ok();
    match serde_json::from_str(&text) {
        Ok(Value::Array(list)) => list,
        // One object a line, as docker's `--format json`.
        _ => text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect(),
    }
}

/// The largest file of the store: the frozen memory.
fn memory_file(host: &TestHost) -> PathBuf {
    let mut files = Vec::new();
    let mut open = vec![host.template_store().to_path_buf()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            if entry.path().is_dir() { open.push(entry.path()) } else { files.push(entry.path()) }
        }
    }
    files.into_iter().max_by_key(|path| path.metadata().map_or(0, |data| data.len())).expect("a template has files")
}

#[test]
fn the_first_runs_at_once_make_one_template() {
    let Some(host) = host_with_own_store() else { return };
    assert_eq!(templates(&host).len(), 0);
    let words = host.words("run", &["--rm"], &["echo", "up"]);
    let running: Vec<_> = (0..2).map(|_| host.spawn(&words)).collect();
    for run in running {
        assert_eq!(run.end().ok(), "up");
    }
    assert_eq!(templates(&host).len(), 1);
    // Forks need no boot: the next run is over before a boot would be.
    let boot_ms = host.get_json("/bulkhead/templates")[0]["boot_ms"].as_u64().expect("boot_ms");
    let took = host.run(&[], &["true"]).took;
    assert!(took.as_millis() < u128::from(boot_ms), "{took:?}, booting took {boot_ms} ms");
}

#[test]
fn templates_are_made_listed_and_removed_by_command() {
    let Some(host) = host_with_own_store() else { return };
    assert_eq!(host.bulkhead(&["template", "create"]).code, 0);
    let list = templates(&host);
    assert_eq!(list.len(), 1, "{list:?}");
    assert!(host.bulkhead(&["template", "ls"]).ok().lines().count() == 2);
    assert_eq!(host.run(&[], &["echo", "forked"]).ok(), "forked");
    let id = host.bulkhead(&["template", "ls", "-q"]).ok();
    assert_eq!(host.bulkhead(&["template", "rm", &id]).code, 0);
    assert_eq!(templates(&host).len(), 0);
    assert_ne!(host.bulkhead(&["template", "rm", &id]).code, 0);
    assert_eq!(host.run(&[], &["echo", "made again"]).ok(), "made again");
    assert_eq!(templates(&host).len(), 1);
    assert_eq!(host.bulkhead(&["template", "prune"]).code, 0);
    // The current one is no rubbish.
    assert_eq!(templates(&host).len(), 1);
}

#[test]
fn a_truncated_or_altered_template_is_made_again() {
    let Some(host) = host_with_own_store() else { return };
    assert_eq!(host.run(&[], &["echo", "one"]).ok(), "one");
    let file = memory_file(&host);
    let length = file.metadata().unwrap().len();

    make_writable(&file);
    fs::File::options().write(true).open(&file).unwrap().set_len(length / 2).unwrap();
    assert_eq!(host.run(&[], &["echo", "two"]).ok(), "two");
    assert_eq!(memory_file(&host).metadata().unwrap().len(), length);

    let file = memory_file(&host);
    make_writable(&file);
    let state = file
        .parent()
        .unwrap()
        .read_dir()
        .unwrap()
        .flatten()
        .map(|e| e.path())
        .find(|p| p.is_file() && *p != file)
        .expect("a state file");
    make_writable(&state);
    let mut bytes = fs::read(&state).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0xFF;
    fs::write(&state, bytes).unwrap();
    assert_eq!(host.run(&[], &["echo", "three"]).ok(), "three");
    assert!(host.log().to_lowercase().contains("template") || !host.log().is_empty());
}

fn make_writable(file: &std::path::Path) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(file, fs::Permissions::from_mode(0o600)).unwrap();
}
