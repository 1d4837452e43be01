use super::*;
use crate::flags::LogLevel;

/// Loads a file with these words of the command line.
fn loaded(name: &str, text: &str, words: &[&str]) -> Result<Loaded, String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    std::fs::write(&path, text).unwrap();
    let config = format!("--config={}", path.display());
    let args: Vec<OsString> = ["bulkheadd", &config].iter().chain(words).map(OsString::from).collect();
    load(&args).map_err(|error| error.to_string().replace(&format!("{}/", dir.path().display()), ""))
}

#[test]
fn the_file_is_read_and_flags_win_over_it() {
    let text = "# a comment\ndebug = true\nlog-level = 'warn'\nhosts = [\"unix:///a\", \"fd://\"]\n\
                max-concurrent-downloads = 5\ndata-root = \"/d\"\n";
    let config = loaded("c.toml", text, &["--data-root=/flag", "-H", "unix:///b"]).unwrap();
    assert!(config.flags.debug);
    assert_eq!(config.flags.log_level, LogLevel::Warn);
    assert_eq!(config.flags.hosts, ["unix:///b"], "a list on the command line replaces the file's");
    assert_eq!(config.flags.data_root, Path::new("/flag"));
    assert_eq!(config.flags.max_concurrent_downloads, 5);
    assert_eq!(config.overridden, ["hosts", "data-root"]);
}

#[test]
fn a_fault_names_file_line_and_key() {
    for (text, expected) in [
        ("\ndebgu = true", "c.toml:2: unknown key \"debgu\"; did you mean \"debug\"?"),
        ("registry-mirror = ['x']", "c.toml:1: unknown key \"registry-mirror\"; did you mean \"registry-mirrors\"?"),
        ("default-isolation = 'hyperv'", "c.toml:1: unknown key \"default-isolation\"; did you mean \"isolation\"?"),
        ("qqqq = 1", "c.toml:1: unknown key \"qqqq\""),
        ("config = 'x'", "c.toml:1: unknown key \"config\""),
        ("[hosts]\nx = [1]", "c.toml:1: hosts: a table of plain values is expected, such as {name = \"value\"}"),
        ("debug = 'yes'", "c.toml:1: debug: true or false is expected"),
        ("hosts = 'unix:///a'", "c.toml:1: hosts: a list is expected, such as [\"a\", \"b\"]"),
        ("data-root = 5", "c.toml:1: data-root: a text in quotes is expected"),
        ("labels = [\"x\"]", "c.toml:1: labels: invalid value 'x' for '--label <NAME=VALUE>': bad attribute format: x"),
        ("debug = true\ndebug = false", "c.toml:2: duplicate key"),
        ("debug true", "c.toml:1: "),
    ] {
        let error = loaded("c.toml", text, &[]).unwrap_err();
        assert!(error.starts_with(expected) && !error.contains('\n'), "{text:?}: {error}");
    }
    let error = loaded("c.toml", "\nisolation = \"vm\"", &[]).unwrap_err();
    assert!(error.starts_with("c.toml:2: isolation: ") && error.contains("'process' or 'hyperv'"), "{error}");
    let missing = load(&["bulkheadd".into(), "--config=/nonexistent".into()]).unwrap_err().to_string();
    assert!(missing.starts_with("cannot read the configuration /nonexistent: No such file"), "{missing}");
}

#[test]
fn dockers_json_is_understood() {
    let config = loaded("daemon.json", "{\"debug\": true, \"labels\": [\"a=b\"], \"data-root\": \"/d\"}", &[]).unwrap();
    assert!(config.flags.debug);
    assert_eq!(config.flags.labels, ["a=b"]);
    let error = loaded("daemon.json", "{\n\"debug\": true,\n\"storage-drvr\": 1}", &[]).unwrap_err();
    assert!(error.starts_with("daemon.json:3: unknown key \"storage-drvr\""), "{error}");
    let error = loaded("daemon.json", "{\n\"debug\" true}", &[]).unwrap_err();
    assert!(error.starts_with("daemon.json:2: expected `:`"), "{error}");
    loaded("daemon.json", "", &[]).unwrap();
}

#[test]
fn a_table_gives_a_repeated_flag() {
    let config = loaded("c.toml", "[labels]\nb = \"x\"\na = 5\n", &[]).unwrap();
    assert_eq!(config.flags.labels, ["b=x", "a=5"]);
    let config = loaded("c.toml", "labels = [{base = \"10.0.0.0/8\", size = 24}]", &[]).unwrap();
    assert_eq!(config.flags.labels, ["base=10.0.0.0/8,size=24"]);
}

#[test]
fn defaults_of_containers_are_read_and_checked() {
    let text = "log-driver = 'local'\n[log-opts]\nmax-size = '1m'\nmax-file = 3\n[default-ulimits]\nnofile = '5:6'\n";
    let config = loaded("c.toml", text, &["--log-driver=json-file"]).unwrap();
    assert_eq!(
        (config.flags.log_driver.as_str(), config.overridden.as_slice()),
        ("json-file", &["log-driver".into()][..])
    );
    assert_eq!(config.flags.log_opts, ["max-size=1m", "max-file=3"]);
    let docker = "{\"default-ulimits\": {\"nofile\": {\"Name\": \"nofile\", \"Hard\": 6, \"Soft\": 5}}}";
    let brought = loaded("daemon.json", docker, &[]).unwrap();
    assert_eq!(brought.flags.default_ulimits, config.flags.default_ulimits);
    assert_eq!(brought.flags.default_ulimits[0].soft, Some(5));
    for (text, expected) in [
        ("\nlog-driver = 'odd'", "c.toml:2: log-driver: "),
        ("log-driver = 'journald'", "c.toml:1: log-driver: "),
        (
            "log-driver = 'local'\n[log-opts]\nlabels = 'x'",
            "c.toml:2: log-opts: unknown log opt 'labels' for log-driver local",
        ),
        ("log-opts = ['max-size=1']\nlog-driver = 'x'", "c.toml:2: log-driver: "),
        ("[log-opts]\nmax-size = 'x'", "c.toml:1: log-opts: invalid value for 'max-size': x"),
        ("[default-ulimits]\nnofile = '2:1'", "c.toml:1: default-ulimits: "),
        ("default-ulimits = ['odd=1']", "c.toml:1: default-ulimits: "),
    ] {
        let error = loaded("c.toml", text, &[]).unwrap_err();
        assert!(error.starts_with(expected), "{error}");
    }
    let error = loaded("c.toml", "", &["--log-opt=max=1"]).unwrap_err();
    assert_eq!(error, "the command line: log-opts: unknown log opt 'max' for json-file log driver");
}

#[test]
fn what_has_changed_is_known() {
    let before = loaded("c.toml", "debug = true\nlabels = ['a=1']", &[]).unwrap();
    let after = loaded("c.toml", "labels = ['a=2']\ndata-root = '/x'", &[]).unwrap();
    assert_eq!(after.changed(&before), ["data-root", "debug", "labels"]);
    assert!(after.changed(&after).is_empty());
}

/// Every key of the example, uncommented, is a configuration that works; so is the example as it is.
#[test]
fn the_example_has_every_key_and_is_right() {
    let text = example();
    loaded("c.toml", &text, &[]).unwrap();
    let uncommented: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix('#'))
        .filter(|line| line.starts_with(char::is_alphabetic))
        .collect();
    let config = loaded("c.toml", &uncommented.join("\n"), &[]).unwrap();
    assert_eq!(config.flags.standby_vms, Some(1));
    let command = Flags::command();
    for flag in flags_of(&command).filter(|flag| !flag.is_hide_set()) {
        let line = format!("{} = ", key(flag));
        assert!(uncommented.iter().any(|found| found.starts_with(&line)), "{line} is missing");
    }
    assert!(text.lines().all(|line| line.len() <= 120), "{text}");
}
