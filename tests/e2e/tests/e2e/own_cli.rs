//! The CLI `bulkhead`: docker's verbs and exit codes.

use bulkhead_e2e::Wall;
use bulkhead_e2e::{IMAGE, TestHost};

fn verbs(wall: Wall) {
    let Some(host) = TestHost::start_own(wall) else { return };
    let isolation = format!("--isolation={}", wall.word());
    let run = |options: &[&str], command: &[&str]| {
        host.bulkhead(&[&["run", "--network", "none", &isolation], options, &[IMAGE], command].concat())
    };
    assert_eq!(run(&["--rm"], &["echo", "hello"]).ok(), "hello");
    assert_eq!(run(&["--rm"], &["sh", "-c", "echo err >&2; exit 7"]).fails(7).trim(), "err");
    assert_eq!(run(&["--rm"], &["no-such-command"]).code, 127);
    assert_eq!(run(&["--rm"], &["/etc/plain"]).code, 126);
    assert_eq!(run(&["--rm", "--isolation", "bogus"], &["true"]).code, 125);
    let id = run(&["-d", "--name", "one"], &["sh", "-c", "echo started; exec sleep 1000"]).ok();
    host.wait_log("one", "started");
    assert_eq!(host.bulkhead(&["ps", "-q", "--no-trunc"]).ok(), id);
    let table = host.bulkhead(&["ps"]).ok();
    assert!(table.contains("one") && table.contains(wall.word()), "{table}");
    assert!(!table.contains('\x1b'), "colours without a terminal: {table:?}");
    assert_eq!(host.bulkhead(&["exec", "one", "echo", "inside"]).ok(), "inside");
    assert_eq!(host.bulkhead(&["exec", "one", "sh", "-c", "exit 5"]).code, 5);
    assert_eq!(host.bulkhead(&["logs", "one"]).ok(), "started");
    let top = host.bulkhead(&["top", "one"]);
    assert!(top.ok().contains("sleep 1000"), "{top}");
    assert!(host.bulkhead(&["inspect", "one"]).ok().contains(&id));
    assert_eq!(host.bulkhead(&["pause", "one"]).code, 0);
    assert_eq!(host.bulkhead(&["unpause", "one"]).code, 0);
    assert_eq!(host.bulkhead(&["rename", "one", "two"]).code, 0);
    assert_eq!(host.bulkhead(&["stop", "-t", "0", "two"]).code, 0);
    assert_eq!(host.bulkhead(&["wait", "two"]).ok(), "137");
    assert_eq!(host.bulkhead(&["start", "two"]).code, 0);
    assert_eq!(host.bulkhead(&["kill", "two"]).code, 0);
    assert_eq!(host.bulkhead(&["rm", "-f", "two"]).code, 0);
    assert_eq!(host.bulkhead(&["ps", "-aq"]).ok(), "");
    assert!(host.bulkhead(&["images"]).ok().contains(IMAGE));
    assert_ne!(host.bulkhead(&["rm", "nosuch"]).code, 0);
}

#[test]
fn management_commands_contexts_and_ssh_lead_to_the_same_engine() {
    use std::os::unix::fs::PermissionsExt;
    let Some(host) = TestHost::start_own(Wall::Process) else { return };
    let id = host.run_detached(&["--name", "one"], &["sleep", "1000"]);
    assert_eq!(host.bulkhead(&["container", "ls", "-q", "--no-trunc"]).ok(), id);
    assert!(host.bulkhead(&["image", "ls"]).ok().contains(IMAGE));
    let shown = host.bulkhead(&[
        "container",
        "inspect",
        "--format",
        "{{slice .Id 0 12}} {{printf \"%s\" .State.Status}}",
        "one",
    ]);
    assert_eq!(shown.ok(), format!("{} running", &id[..12]));
    assert_eq!(host.bulkhead(&["port", "one"]).ok(), "");
    assert_eq!(
        host.bulkhead(&["update", "one"]).fails(1).trim(),
        "bulkhead: you must provide one or more flags when using this command"
    );
    host.bulkhead(&["inspect", "nosuch"]).fails_saying(1, &["No such object: nosuch"]);
    let said = host.bulkhead(&["doctor"]);
    assert!(said.text().contains("socket") && !said.text().contains("everybody may use"), "{said}");

    // docker makes the context, and both find the engine by it.
    let address = format!("host=unix://{}", host.socket().display());
    host.docker(&["context", "create", "here", "--docker", &address]).ok();
    let without_host = |args: &[&str]| {
        let mut command = host.bulkhead_command(args);
        command.env_remove("DOCKER_HOST");
        command.output().unwrap()
    };
    let asked = without_host(&["-c", "here", "ps", "-q", "--no-trunc"]);
    assert_eq!(String::from_utf8_lossy(&asked.stdout).trim(), id, "{asked:?}");
    let asked = without_host(&["-c", "nosuch", "ps"]);
    assert!(
        !asked.status.success() && String::from_utf8_lossy(&asked.stderr).contains("context not found"),
        "{asked:?}"
    );

    // An ssh that leads to this host.
    let program = host.bulkhead_command(&[]).get_program().to_owned();
    let ssh = host.folder().join("ssh");
    let text = "#!/bin/sh\nwhile [ \"$1\" != -- ]; do shift; done\nshift 3\neval \"exec $BULKHEAD $*\"\n";
    std::fs::write(&ssh, text).unwrap();
    std::fs::set_permissions(&ssh, std::fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", host.folder().display(), std::env::var("PATH").unwrap());
    let address = format!("ssh://me@elsewhere{}", host.socket().display());
    for words in
        [&["-H", &address, "exec", "-i", "one", "cat"][..], &["-H", &address, "exec", "-i", "one", "sed", "s/a/a/"]]
    {
        let mut command = host.bulkhead_command(words);
        command.env("PATH", &path).env("BULKHEAD", &program).env_remove("DOCKER_HOST");
        command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
        let mut child = command.spawn().unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"through ssh and back\n").unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success() && output.stdout == b"through ssh and back\n", "{output:?}");
    }
}

#[test]
fn the_verbs_work_behind_the_process_wall() {
    verbs(Wall::Process);
}

#[test]
fn the_verbs_work_behind_the_hyperv_wall() {
    verbs(Wall::Hyperv);
}

#[test]
fn without_an_engine_it_says_what_to_do() {
    let Some(host) = TestHost::prepare(Wall::Process, &bulkhead_e2e::HostOptions::default()) else { return };
    if host.is_reference() {
        return bulkhead_e2e::skip("our own CLI");
    }
    let said = host.bulkhead(&["ps"]);
    assert_ne!(said.code, 0);
    assert!(said.err.contains("docker.sock") && said.err.contains("bulkheadd"), "{said}");
}

/// What docker's `config.json` says, both CLIs do.
#[test]
fn preferences_are_those_of_docker() {
    let Some(host) = TestHost::start_own(Wall::Process) else { return };
    let config = serde_json::json!({
        "detachKeys": "ctrl-x,x",
        "psFormat": "{{.Names}} is {{.State}}", "imagesFormat": "{{.Repository}}!",
        "networksFormat": "{{.Name}}?", "volumesFormat": "{{.Driver}}",
        "proxies": {"default": {"httpProxy": "http://proxy:1", "noProxy": "here"}},
        "pruneFilters": ["label=prune-me"],
    });
    std::fs::write(host.folder().join("config.json"), config.to_string()).unwrap();
    for (name, label) in [("kept", "x=y"), ("pruned", "prune-me")] {
        host.docker(&host.words("create", &["--name", name, "-l", label, "-v", "/v"], &["true"])).ok();
    }
    for words in [&["ps", "-a"][..], &["images"], &["network", "ls"], &["volume", "ls"], &["ps", "-aq"]] {
        let (own, docker) = (host.bulkhead(words), host.docker(words));
        assert!(docker.code == 0 && !docker.out.is_empty(), "{docker}");
        assert_eq!((own.code, own.text()), (0, docker.text()), "{words:?}");
    }

    // A variable of the command line comes before the configuration's, in the letters in which it is given.
    let variables = |id: &str| {
        let text = host.docker(&["inspect", "-f", "{{json .Config.Env}}", id]).ok();
        let mut variables: Vec<String> = serde_json::from_str(&text).unwrap();
        variables.sort();
        variables
    };
    let words = host.words("create", &["-e", "http_proxy=mine"], &["true"]);
    let (own, docker) = (host.bulkhead(&words).ok(), host.docker(&words).ok());
    assert_eq!(variables(&own), variables(&docker));
    assert!(variables(&own).contains(&"HTTP_PROXY=http://proxy:1".to_owned()));
    let context = host.folder().join("context");
    std::fs::create_dir(&context).unwrap();
    let steps = format!("FROM {}\nRUN echo proxy is $http_proxy\n", bulkhead_e2e::IMAGE);
    std::fs::write(context.join("Dockerfile"), steps).unwrap();
    let built = host.bulkhead(&["build", "--network", "none", context.to_str().unwrap()]);
    assert!(built.code == 0 && built.text().contains("proxy is http://proxy:1"), "{built}");

    host.bulkhead(&["container", "prune", "-f"]).ok();
    assert!(host.docker(&["ps", "-a"]).text().contains("kept is created"));
    assert!(!host.docker(&["ps", "-a"]).text().contains("pruned"));

    let wrong = serde_json::json!({"psFormat": 1}).to_string();
    std::fs::write(host.folder().join("config.json"), wrong).unwrap();
    let said = host.bulkhead(&["ps"]);
    assert!(said.code == 0 && said.err.contains("WARNING: Error loading config file"), "{said}");
}

#[test]
fn keys_detach_as_docker_has_them() {
    let Some(host) = TestHost::start_own(Wall::Process) else { return };
    std::fs::write(host.folder().join("config.json"), r#"{"detachKeys":"ctrl-x,x"}"#).unwrap();
    let script = "i=0; while :; do i=$((i+1)); echo tick $i; sleep 0.2; done";
    let run = host.words("run", &["-it", "--name", "long"], &["sh", "-c", script]);
    let attach = &["attach", "long"][..];
    let flag = &["attach", "--detach-keys", "ctrl-p,ctrl-q", "long"][..];
    for (words, keys) in
        [(&run[..], "\x18x"), (attach, "\x18x"), (flag, "\x10\x11"), (&["exec", "-it", "long", "sh"], "\x18x")]
    {
        let mut terminal = host.bulkhead_terminal(words);
        terminal.wait_for(if words[0] == "exec" { "#" } else { "tick" });
        terminal.type_text(keys);
        terminal.end();
        assert_eq!(host.state("long").0, "running", "{words:?}");
    }
}
