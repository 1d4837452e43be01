//! The command line. Names and meanings are docker's where docker has them.

pub mod build;
pub mod container;
pub mod files;
pub mod image;
pub mod limits;
pub mod management;
pub mod network;
pub mod process;
pub mod registry;
pub mod storage;
pub mod system;
pub mod volume;

use clap::{Parser, Subcommand};

use container::{CreateArgs, RunArgs};

/// Containers as processes or in utility VMs.
#[derive(Debug, Parser)]
#[command(
    name = "bulkhead",
    version,
    disable_version_flag = true,
    about = "Containers as processes (--isolation=process) or in utility VMs (--isolation=hyperv)"
)]
#[command(disable_help_subcommand = true, propagate_version = false)]
pub struct Cli {
    /// The engine's address, unix:///PATH or ssh://[USER@]HOST[:PORT][/PATH] [default: $BULKHEAD_HOST, $DOCKER_HOST, docker's
    /// current context, unix:///run/bulkhead.sock]
    #[arg(short = 'H', long = "host", global = true, value_name = "ADDRESS")]
    pub host: Option<String>,

    /// One of docker's contexts, which says where the engine is
    #[arg(short = 'c', long, value_name = "NAME")]
    pub context: Option<String>,

    /// Print the version
    #[arg(short = 'v', short_alias = 'V', long, action = clap::ArgAction::Version)]
    pub version: Option<bool>,

    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Create a container and run a command in it
    Run(Box<RunArgs>),
    /// Create a container
    Create(Box<CreateArgs>),
    /// Start stopped containers
    Start(process::StartArgs),
    /// Attach to a running container
    Attach(process::AttachArgs),
    /// Run one more command in a running container
    Exec(process::ExecArgs),
    /// List containers
    Ps(process::PsArgs),
    /// Show what a container has written
    Logs(process::LogsArgs),
    /// Wait until containers stop, and print their exit codes
    Wait(process::Names),
    /// Send a signal to containers
    Kill(process::KillArgs),
    /// Stop containers
    Stop(process::StopArgs),
    /// Stop and start containers
    Restart(process::StopArgs),
    /// Remove containers
    Rm(process::RmArgs),
    /// Show a container's processes
    Top(process::TopArgs),
    /// Show what containers use
    Stats(process::StatsArgs),
    /// Show what happens in the engine
    Events(process::EventsArgs),
    /// Stop all processes of containers for a while
    Pause(process::Names),
    /// Let the processes of containers go on
    Unpause(process::Names),
    /// Give a container another name
    Rename(process::RenameArgs),
    /// Change the limits of containers
    Update(Box<process::UpdateArgs>),
    /// Show which ports of the host lead to a container
    Port(process::PortArgs),
    /// Show everything about containers, images, networks and volumes
    Inspect(process::InspectArgs),
    /// Copy files into containers and out of them
    Cp(files::CpArgs),
    /// Show what a container has changed in its files
    Diff(files::DiffArgs),
    /// Write a container's whole file system as a tar stream
    Export(files::ExportArgs),
    /// Make an image of a container and its changes
    Commit(files::CommitArgs),
    /// Build an image from a Dockerfile
    Build(Box<build::BuildArgs>),
    /// List images
    Images(image::ImagesArgs),
    /// Pull an image from a registry
    Pull(registry::PullArgs),
    /// Push an image to a registry
    Push(registry::PushArgs),
    /// Search Docker Hub for images
    Search(registry::SearchArgs),
    /// Log in to a registry
    Login(registry::LoginArgs),
    /// Log out from a registry
    Logout(registry::LogoutArgs),
    /// Load images from an archive
    Load(image::LoadArgs),
    /// Write images to an archive
    Save(storage::SaveArgs),
    /// Make an image from a root file system
    Import(image::ImportArgs),
    /// Remove images
    Rmi(image::RmiArgs),
    /// Give an image another name
    Tag(image::TagArgs),
    /// Show the steps that made an image
    History(image::HistoryArgs),
    /// What is done with images
    #[command(subcommand)]
    Image(management::ImageCommand),
    /// What is done with containers
    #[command(subcommand)]
    Container(management::ContainerCommand),
    /// What is done with networks
    #[command(subcommand)]
    Network(network::NetworkCommand),
    /// What is done with volumes
    #[command(subcommand)]
    Volume(volume::VolumeCommand),
    /// What is done with what builds keep
    #[command(subcommand)]
    Builder(management::BuilderCommand),
    /// What is done with the engine
    #[command(subcommand)]
    System(management::SystemCommand),
    /// Show the versions of client and engine
    Version(system::FormatArgs),
    /// Show what engine and host are
    Info(system::FormatArgs),
    /// Check what this host has and lacks
    Doctor(system::DoctorArgs),
    /// The frozen utility VMs that hyperv containers are forked from
    #[command(subcommand)]
    Template(system::TemplateCommand),
    /// Print a completion script for a shell
    Completion(system::CompletionArgs),
    /// Print the names that can come next
    #[command(name = "__complete", hide = true)]
    Complete(system::CompleteArgs),
    /// Write the manual pages to a folder
    #[command(hide = true)]
    Man(system::ManArgs),
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn run(words: &str) -> RunArgs {
        match Cli::try_parse_from(words.split(' ')).unwrap().command {
            Command::Run(args) => *args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_stands_behind_the_image_belongs_to_the_container() {
        let args = run("bulkhead run -it --rm --isolation=hyperv busybox sh -c x --rm -e A");
        assert!(args.create.interactive && args.create.tty && args.create.rm);
        assert_eq!(args.create.isolation.as_deref(), Some("hyperv"));
        assert_eq!(args.create.image(), "busybox");
        assert_eq!(args.create.command(), ["sh", "-c", "x", "--rm", "-e", "A"]);
        assert!(args.create.env.is_empty());
        assert_eq!(run("bulkhead run busybox -l -- a").create.command(), ["-l", "--", "a"]);
    }

    #[test]
    fn short_flags_are_dockers() {
        let args = run("bulkhead run -d -h box -e A=1 -e B -w /srv -u 1:2 -v /a:/b:ro -m 64m -l x=y -a stdout img");
        assert!(args.detach);
        assert_eq!(args.create.hostname.as_deref(), Some("box"));
        assert_eq!(args.create.env, ["A=1", "B"]);
        assert_eq!(
            (args.create.limits.memory, args.create.volume.as_slice()),
            (Some(64 << 20), &["/a:/b:ro".to_owned()][..])
        );
        assert_eq!(args.create.attach, ["stdout"]);
    }

    #[test]
    fn impossible_command_lines_are_refused() {
        for bad in [
            "bulkhead run",
            "bulkhead run --memory x img",
            "bulkhead run --nope img",
            "bulkhead exec x",
            "bulkhead rename a",
            "bulkhead",
        ] {
            assert!(Cli::try_parse_from(bad.split(' ')).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_engines_address_may_stand_anywhere_before_the_arguments() {
        for words in ["bulkhead -H unix:///x ps -a", "bulkhead ps -a -H unix:///x"] {
            assert_eq!(Cli::try_parse_from(words.split(' ')).unwrap().host.as_deref(), Some("unix:///x"));
        }
    }
}
