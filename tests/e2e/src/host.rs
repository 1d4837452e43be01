//! A machine with one engine of its own.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::api::ApiConnection;
use crate::archive;
use crate::build::{Build, EngineKind, program};
use crate::docker::{Running, Said};
use crate::engine::{Engine, EngineSettings, tail};
use crate::host_network::HostNetwork;
use crate::leaks;
use crate::need::{Need, skip};
use crate::patience::eventually;
use crate::terminal::Terminal;

/// Name of the busybox image that every host has.
pub const IMAGE: &str = "box";

/// The wall that a test is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wall {
    /// `--isolation=process`.
    Process,
    /// `--isolation=hyperv`.
    Hyperv,
}

impl Wall {
    /// The word for `--isolation`.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::Hyperv => "hyperv",
        }
    }
}

/// How a host's engine is started.
#[derive(Debug, Clone, Default)]
pub struct HostOptions {
    /// Further flags of the engine.
    pub flags: Vec<String>,
    /// `PATH` of the engine.
    pub path: Option<String>,
    /// How many descriptors the engine may have.
    pub descriptors: Option<u64>,
    /// A template store of its own, instead of the one that all tests of a build share.
    pub own_templates: bool,
    /// Data root somewhere else, such as on a small file system.
    pub data_root: Option<PathBuf>,
    /// No image is made.
    pub no_image: bool,
    /// In a network namespace of its own: nobody else's rules and routes are there, and no way out.
    pub own_network: bool,
    /// Steps by which networks are made can be refused: [`TestHost::refuse_step`].
    pub network_faults: bool,
    /// What stands by is what a user's engine would have, not nothing.
    pub default_standby: bool,
}

/// One engine on a temporary root. Dropping it checks that nothing is left.
pub struct TestHost {
    folder: Option<tempfile::TempDir>,
    settings: EngineSettings,
    engine: Option<Engine>,
    wall: Wall,
    network: Option<HostNetwork>,
}

impl TestHost {
    /// A host for tests of containers behind this wall, or `None` when this machine cannot (the test is skipped then).
    #[must_use]
    #[track_caller]
    pub fn start(wall: Wall) -> Option<Self> {
        Self::start_with(wall, &HostOptions::default())
    }

    /// As [`TestHost::start`], for behaviour that only our engine has.
    #[must_use]
    #[track_caller]
    pub fn start_own(wall: Wall) -> Option<Self> {
        Self::start_own_with(wall, &HostOptions::default())
    }

    /// As [`TestHost::start_own`], with options.
    #[must_use]
    #[track_caller]
    pub fn start_own_with(wall: Wall, options: &HostOptions) -> Option<Self> {
        if let Some(reason) = Need::OwnEngine.missing() {
            skip(&reason);
            return None;
        }
        Self::start_with(wall, options)
    }

    /// As [`TestHost::start`], with options.
    ///
    /// # Panics
    /// When the engine does not start.
    #[must_use]
    #[track_caller]
    pub fn start_with(wall: Wall, options: &HostOptions) -> Option<Self> {
        let mut host = Self::prepare(wall, options)?;
        host.start_engine();
        if !options.no_image {
            host.import_image();
        }
        Some(host)
    }

    /// A host whose engine is not started yet.
    ///
    /// # Panics
    /// When the machine has no temporary folder.
    #[must_use]
    pub fn prepare(wall: Wall, options: &HostOptions) -> Option<Self> {
        let mut needs = vec![Need::Root, Need::DockerCli, Need::Engine, Need::Busybox];
        if wall == Wall::Hyperv {
            needs.push(Need::UtilityVms);
        }
        if options.network_faults {
            needs.push(Need::Failpoints);
        }
        if let Some(reason) = needs.into_iter().find_map(Need::missing) {
            skip(&reason);
            return None;
        }
        // Paths are short because those of unix sockets may have 107 bytes only.
        let folder = tempfile::Builder::new().prefix("bhe2e-").tempdir_in("/tmp").expect("/tmp is writable");
        let root = folder.path();
        // Not by the number of this process: those come again, and what a test that was killed has left would be this one's.
        let name = root.file_name().expect("it has a name").to_string_lossy().into_owned();
        let network = options.own_network.then(|| HostNetwork::make().expect("a network namespace"));
        let settings = EngineSettings {
            kind: EngineKind::of_this_run(),
            data_root: options.data_root.clone().unwrap_or_else(|| root.join("data")),
            exec_root: root.join("run"),
            socket: root.join("docker.sock"),
            log: root.join("engine.log"),
            cgroup_parent: format!("/bulkhead-{name}"),
            template_store: if options.own_templates {
                root.join("templates")
            } else {
                Build::of_this_test().shared.join("templates")
            },
            marker: ("BULKHEAD_E2E_HOST".to_owned(), name),
            flags: options.flags.clone(),
            path: options.path.clone(),
            descriptors: options.descriptors,
            default_standby: options.default_standby,
            network: network.as_ref().map(HostNetwork::path),
            failpoint: None,
            network_faults: options.network_faults.then(|| root.join("fault")),
        };
        Some(Self { folder: Some(folder), settings, engine: None, wall, network })
    }

    /// A program on the host as the engine sees it: in its network namespace.
    #[must_use]
    pub fn on_host(&self, program: &str) -> Command {
        self.network.as_ref().map_or_else(|| Command::new(program), |network| network.command(program))
    }

    /// Starts the engine, again after it was killed.
    ///
    /// # Panics
    /// When it does not answer.
    #[track_caller]
    pub fn start_engine(&mut self) {
        self.engine = Some(self.settings.start());
    }

    /// Starts the engine, this once with further flags.
    ///
    /// # Panics
    /// When it does not answer.
    #[track_caller]
    pub fn start_engine_with(&mut self, flags: &[&str]) {
        let mut settings = self.settings.clone();
        settings.flags.extend(flags.iter().map(|flag| (*flag).to_owned()));
        self.engine = Some(settings.start());
    }

    /// Starts an engine that kills itself at this point, once: the next one that is started does not.
    ///
    /// # Panics
    /// When it neither answers nor ends.
    #[track_caller]
    pub fn start_engine_dying_at(&mut self, point: &str) {
        let settings = EngineSettings { failpoint: Some(point.to_owned()), ..self.settings.clone() };
        let (engine, up) = settings.spawn();
        assert!(up, "the engine that is to die at {point} does not answer; its log:\n{}", self.log());
        self.engine = Some(engine);
    }

    /// Has one of the next steps by which engine and shim make networks come to a fault: `fail 3`, the third one is refused; `die 3`, who
    /// comes to it kills itself.
    ///
    /// # Panics
    /// When the host was not made for it.
    pub fn refuse_step(&self, fault: &str) {
        let file = self.settings.network_faults.as_ref().expect("a host with network_faults");
        std::fs::write(file, fault).expect("a file of the host's");
    }

    /// True if the fault that was asked for has come; it does not come any more.
    pub fn step_was_refused(&self) -> bool {
        let file = self.settings.network_faults.as_ref().expect("a host with network_faults");
        std::fs::remove_file(file).is_err()
    }

    /// Waits until the engine has ended by itself, as one that was killed.
    ///
    /// # Panics
    /// When it goes on.
    #[track_caller]
    pub fn wait_engine_died(&mut self, point: &str) {
        let ended = eventually(Duration::from_secs(20), || self.engine().has_ended().is_some());
        assert!(ended, "the engine never came to {point}; its log:\n{}", self.log());
        assert_eq!(self.engine().has_ended(), Some(-1), "it ended otherwise than by a signal: {}", self.log());
    }

    /// Asks the engine to end, and waits.
    ///
    /// # Panics
    /// When it ends with an error, or not at all.
    #[track_caller]
    pub fn stop_engine(&mut self) {
        let code = self.engine().stop();
        assert_eq!(code, Some(0), "the engine's log:\n{}", self.log());
        self.engine = None;
    }

    /// Mounts and loop devices that this host's containers have left on the machine.
    #[must_use]
    pub fn left_on_machine(&self) -> Vec<String> {
        let root = self.folder();
        [crate::procfs::mounts_below(root), crate::procfs::loops_below(root)].concat()
    }

    /// The command that starts this host's engine, for tests of engines that do not start.
    #[must_use]
    pub fn engine_command(&self) -> Command {
        self.settings.command()
    }

    fn import_image(&self) {
        let tar = archive::shared_busybox_tar(&Build::of_this_test().shared);
        let file = File::open(tar).expect("the shared image");
        let output = self.docker_command(&["import", "-", IMAGE]).stdin(file).output().expect("docker import runs");
        assert!(output.status.success(), "docker import: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// The engine.
    ///
    /// # Panics
    /// When it was not started.
    pub fn engine(&mut self) -> &mut Engine {
        self.engine.as_mut().expect("the engine was started")
    }

    /// The wall of this host's containers.
    #[must_use]
    pub fn wall(&self) -> Wall {
        self.wall
    }

    /// True when this is Docker's daemon.
    #[must_use]
    pub fn is_reference(&self) -> bool {
        self.settings.kind == EngineKind::Reference
    }

    /// Folder for everything of this host.
    ///
    /// # Panics
    /// Never: it exists until the drop.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.as_ref().expect("the folder lives as long as the host").path()
    }

    /// The engine's `--data-root`.
    #[must_use]
    pub fn data_root(&self) -> &Path {
        &self.settings.data_root
    }

    /// The engine's template store.
    #[must_use]
    pub fn template_store(&self) -> &Path {
        &self.settings.template_store
    }

    /// The engine's socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.settings.socket
    }

    /// The engine's `--cgroup-parent`.
    #[must_use]
    pub fn cgroup_parent(&self) -> &str {
        &self.settings.cgroup_parent
    }

    /// The end of the engine's log.
    #[must_use]
    pub fn log(&self) -> String {
        tail(&self.settings.log)
    }

    /// The lines of the engine's log that contain a text, from its beginning.
    ///
    /// # Panics
    /// When the log cannot be read.
    #[must_use]
    pub fn logged(&self, text: &str) -> Vec<String> {
        let log = BufReader::new(File::open(&self.settings.log).expect("a log")).split(b'\n');
        let lines = log.map(|line| String::from_utf8_lossy(&line.expect("a log")).into_owned());
        lines.filter(|line| line.contains(text)).collect()
    }

    /// Live processes of the engine and its containers, as the host sees them.
    #[must_use]
    pub fn processes(&self) -> Vec<i32> {
        leaks::processes(&self.settings)
    }

    /// The docker CLI with these arguments, not started yet.
    ///
    /// # Panics
    /// Never: a host has asked for the CLI before.
    #[must_use]
    pub fn docker_command(&self, args: &[&str]) -> Command {
        self.client(Command::new(program("docker").expect("the docker CLI")), args)
    }

    /// Our own CLI with these arguments, not started yet.
    #[must_use]
    pub fn bulkhead_command(&self, args: &[&str]) -> Command {
        self.client(Command::new(Build::of_this_test().binaries.join("bulkhead")), args)
    }

    fn client(&self, mut command: Command, args: &[&str]) -> Command {
        command.args(args).env("DOCKER_HOST", format!("unix://{}", self.settings.socket.display()));
        command.env("DOCKER_CONFIG", self.folder()).env("DOCKER_CLI_HINTS", "false").env_remove("DOCKER_CONTEXT");
        command
    }

    /// Runs `docker ARGS` to its end, without input.
    #[must_use]
    #[track_caller]
    pub fn docker(&self, args: &[&str]) -> Said {
        self.spawn(args).end()
    }

    /// Runs `docker ARGS` with this standard input.
    #[must_use]
    #[track_caller]
    pub fn docker_input(&self, args: &[&str], input: &[u8]) -> Said {
        let mut running = self.spawn(args);
        let mut stdin = running.take_stdin().expect("standard input");
        std::thread::scope(|scope| {
            scope.spawn(move || {
                // A command that has seen enough may close its input early.
                drop(std::io::Write::write_all(&mut stdin, input));
            });
            running.wait()
        })
    }

    /// Runs `bulkhead ARGS` to its end.
    #[must_use]
    #[track_caller]
    pub fn bulkhead(&self, args: &[&str]) -> Said {
        Running::start(&mut self.bulkhead_command(args)).end()
    }

    /// Starts `docker ARGS`.
    #[must_use]
    pub fn spawn(&self, args: &[&str]) -> Running {
        Running::start(&mut self.docker_command(args))
    }

    /// Starts `docker ARGS` in a terminal of 80 columns and 24 rows.
    #[must_use]
    pub fn terminal(&self, args: &[&str]) -> Terminal {
        Terminal::start(&self.docker_command(args), 80, 24)
    }

    /// Starts our own CLI in such a terminal.
    #[must_use]
    pub fn bulkhead_terminal(&self, args: &[&str]) -> Terminal {
        Terminal::start(&self.bulkhead_command(args), 80, 24)
    }

    /// The words `VERB OPTIONS IMAGE COMMAND` for a container of the busybox image behind this host's wall.
    #[must_use]
    pub fn words<'a>(&self, verb: &'a str, options: &[&'a str], command: &[&'a str]) -> Vec<&'a str> {
        self.words_for(IMAGE, verb, options, command)
    }

    /// As [`TestHost::words`], for another image.
    #[must_use]
    pub fn words_for<'a>(
        &self,
        image: &'a str,
        verb: &'a str,
        options: &[&'a str],
        command: &[&'a str],
    ) -> Vec<&'a str> {
        let wall: &[&str] = if self.is_reference() { &[] } else { &["--isolation", self.wall.word()] };
        [&[verb, "--network", "none"], wall, options, &[image], command].concat()
    }

    /// `docker run --rm` behind this host's wall, to its end.
    #[must_use]
    #[track_caller]
    pub fn run(&self, options: &[&str], command: &[&str]) -> Said {
        self.docker(&self.words("run", &[&["--rm"], options].concat(), command))
    }

    /// `docker run --rm` of a shell script.
    #[must_use]
    #[track_caller]
    pub fn sh(&self, script: &str) -> Said {
        self.run(&[], &["sh", "-c", script])
    }

    /// `docker run -d`; gives the id.
    #[track_caller]
    pub fn run_detached(&self, options: &[&str], command: &[&str]) -> String {
        self.docker(&self.words("run", &[&["-d"], options].concat(), command)).ok()
    }

    /// `docker inspect` of a container, the first element.
    ///
    /// # Panics
    /// When there is no such container.
    #[must_use]
    #[track_caller]
    pub fn inspect(&self, container: &str) -> Value {
        let said = self.docker(&["container", "inspect", container]);
        let list: Value = serde_json::from_str(&said.ok()).expect("inspect prints JSON");
        list[0].clone()
    }

    /// Asks the engine's API directly, for what no CLI shows.
    ///
    /// # Panics
    /// When the answer is no JSON.
    #[must_use]
    #[track_caller]
    pub fn get_json(&self, path: &str) -> Value {
        let mut connection = ApiConnection::open(self.socket()).expect("the engine listens");
        connection.set_pause(Duration::from_secs(30));
        let answer = connection.request("GET", path, None).expect("the engine answers");
        serde_json::from_slice(&answer.body).unwrap_or_else(|error| panic!("GET {path}: {error}: {answer:?}"))
    }

    /// State and exit code of a container: such as `("exited", 137)`.
    ///
    /// # Panics
    /// When there is no such container.
    #[must_use]
    #[track_caller]
    pub fn state(&self, container: &str) -> (String, i64) {
        let state = &self.inspect(container)["State"];
        (state["Status"].as_str().unwrap_or_default().to_owned(), state["ExitCode"].as_i64().unwrap_or(-1))
    }

    /// Waits until a container is in a state.
    ///
    /// # Panics
    /// When it does not come.
    #[track_caller]
    pub fn wait_state(&self, container: &str, state: &str) {
        assert!(
            eventually(Duration::from_secs(30), || self.state(container).0 == state),
            "{container} is not {state} but {:?}; the engine's log:\n{}",
            self.state(container),
            self.log()
        );
    }

    /// Waits until a container's log holds a text.
    ///
    /// # Panics
    /// When it does not come.
    #[track_caller]
    pub fn wait_log(&self, container: &str, text: &str) {
        let logs = || self.docker(&["logs", container]).text();
        assert!(eventually(Duration::from_secs(30), || logs().contains(text)), "no {text:?} in the log: {}", logs());
    }

    /// Removes every container; says what was said if that failed.
    fn remove_all(&self) -> Option<Said> {
        let ids = self.docker(&["ps", "-aq", "--no-trunc"]).text();
        let ids: Vec<&str> = ids.split_whitespace().collect();
        let said = (!ids.is_empty()).then(|| self.docker(&[&["rm", "-f"], ids.as_slice()].concat()));
        said.filter(|said| said.code != 0)
    }

    /// Removes every container and stops the engine; gives what is left.
    fn take_down(&mut self) -> Vec<String> {
        let mut left = Vec::new();
        if let Some(mut engine) = self.engine.take() {
            if engine.has_ended().is_none() {
                // A killed container has dockerd's ten seconds to end, and a slow machine may need them twice.
                if let Some(said) = self.remove_all().and_then(|_| self.remove_all()) {
                    left.push(format!("containers that cannot be removed: {said}"));
                }
                if !self.is_reference() {
                    // A removed container's folder goes after the answer, but soon.
                    eventually(Duration::from_secs(5), || leaks::container_files(&self.settings).is_empty());
                    left.extend(leaks::container_files(&self.settings));
                }
            }
            match engine.stop() {
                Some(0) => {}
                Some(code) => left.push(format!("the engine ended with {code}")),
                None => left.push("the engine did not stop when asked to".to_owned()),
            }
        }
        let mut after = Vec::new();
        eventually(Duration::from_secs(5), || {
            after = leaks::after_engine(self.folder(), &self.settings);
            after.is_empty()
        });
        left.extend(after);
        left
    }
}

impl Drop for TestHost {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the engine's log:\n{}", self.log());
            drop(self.engine.take());
            leaks::sweep(self.folder(), &self.settings);
            if std::env::var_os("BULKHEAD_E2E_KEEP").is_some() {
                let kept = self.folder.take().map(tempfile::TempDir::keep);
                eprintln!("kept: {kept:?}");
            }
            return;
        }
        let left = self.take_down();
        let log = if left.is_empty() { String::new() } else { self.log() };
        leaks::sweep(self.folder(), &self.settings);
        assert!(left.is_empty(), "left behind:\n  {}\nthe engine's log:\n{log}", left.join("\n  "));
    }
}
