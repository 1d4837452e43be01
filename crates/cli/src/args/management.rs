//! Docker's management commands: `container ls` is `ps`, and so on.

use clap::{Args, Subcommand};

use super::Command;
use super::container::{CreateArgs, RunArgs};
use super::files::{CommitArgs, CpArgs, DiffArgs, ExportArgs};
use super::image::{HistoryArgs, ImagesArgs, ImportArgs, LoadArgs, RmiArgs, TagArgs};
use super::process::{
    AttachArgs, EventsArgs, ExecArgs, InspectArgs, KillArgs, LogsArgs, Names, PortArgs, PsArgs, RenameArgs, RmArgs,
    StartArgs, StatsArgs, StopArgs, TopArgs, UpdateArgs,
};
use super::registry::{PullArgs, PushArgs};
use super::storage::{CheckArgs, DfArgs, ImagePruneArgs, PruneArgs, SaveArgs, SystemPruneArgs};
use super::system::FormatArgs;

/// `container`.
#[derive(Debug, Subcommand)]
pub enum ContainerCommand {
    /// List containers
    #[command(visible_aliases = ["ps", "list"])]
    Ls(PsArgs),
    /// Create a container and run a command in it
    Run(Box<RunArgs>),
    /// Create a container
    Create(Box<CreateArgs>),
    /// Start stopped containers
    Start(StartArgs),
    /// Attach to a running container
    Attach(AttachArgs),
    /// Run one more command in a running container
    Exec(ExecArgs),
    /// Show what a container has written
    Logs(LogsArgs),
    /// Wait until containers stop, and print their exit codes
    Wait(Names),
    /// Send a signal to containers
    Kill(KillArgs),
    /// Stop containers
    Stop(StopArgs),
    /// Stop and start containers
    Restart(StopArgs),
    /// Remove containers
    #[command(visible_alias = "remove")]
    Rm(RmArgs),
    /// Show a container's processes
    Top(TopArgs),
    /// Show what containers use
    Stats(StatsArgs),
    /// Stop all processes of containers for a while
    Pause(Names),
    /// Let the processes of containers go on
    Unpause(Names),
    /// Give a container another name
    Rename(RenameArgs),
    /// Change the limits of containers
    Update(Box<UpdateArgs>),
    /// Show which ports of the host lead to a container
    Port(PortArgs),
    /// Show everything about containers
    Inspect(ContainerInspectArgs),
    /// Copy files into containers and out of them
    Cp(CpArgs),
    /// Show what a container has changed in its files
    Diff(DiffArgs),
    /// Write a container's whole file system as a tar stream
    Export(ExportArgs),
    /// Make an image of a container and its changes
    Commit(CommitArgs),
    /// Remove all stopped containers
    Prune(PruneArgs),
}

/// `container inspect`.
#[derive(Debug, Args)]
pub struct ContainerInspectArgs {
    /// json, or a template
    #[arg(short, long)]
    pub format: Option<String>,
    /// With what they have written on their disks
    #[arg(short, long)]
    pub size: bool,
    /// Containers, by name or id
    #[arg(required = true, value_name = "CONTAINER")]
    pub names: Vec<String>,
}

/// `image`.
#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// List images
    #[command(visible_alias = "list")]
    Ls(ImagesArgs),
    /// Pull an image from a registry
    Pull(PullArgs),
    /// Push an image to a registry
    Push(PushArgs),
    /// Remove images
    #[command(visible_alias = "remove")]
    Rm(RmiArgs),
    /// Remove images that nobody uses
    Prune(ImagePruneArgs),
    /// Show everything about images
    Inspect(ImageInspectArgs),
    /// Show the steps that made an image
    History(HistoryArgs),
    /// Give an image another name
    Tag(TagArgs),
    /// Write images to an archive
    Save(SaveArgs),
    /// Load images from an archive
    Load(LoadArgs),
    /// Make an image from a root file system
    Import(ImportArgs),
}

/// `image inspect`.
#[derive(Debug, Args)]
pub struct ImageInspectArgs {
    /// json, or a template
    #[arg(short, long)]
    pub format: Option<String>,
    /// Images, by name or id
    #[arg(required = true, value_name = "IMAGE")]
    pub names: Vec<String>,
}

/// `system`.
#[derive(Debug, Subcommand)]
pub enum SystemCommand {
    /// Show what takes the disk
    Df(DfArgs),
    /// Show what happens in the engine
    Events(EventsArgs),
    /// Show what engine and host are
    Info(FormatArgs),
    /// Remove what nobody uses
    Prune(SystemPruneArgs),
    /// Verify everything that is stored
    Check(CheckArgs),
    /// Join standard input and output to the engine's socket; what an ssh:// address runs on the other host
    #[command(hide = true)]
    DialStdio,
}

/// `builder`.
#[derive(Debug, Subcommand)]
pub enum BuilderCommand {
    /// Remove what builds have kept
    Prune(BuilderPruneArgs),
}

/// `builder prune`.
#[derive(Debug, Args)]
pub struct BuilderPruneArgs {
    /// All of it, not only what no image uses
    #[arg(short, long)]
    pub all: bool,
    /// Keep this much
    #[arg(long, value_name = "BYTES", value_parser = crate::parse::size::bytes)]
    pub keep_storage: Option<i64>,
    /// What every prune takes.
    #[command(flatten)]
    pub prune: PruneArgs,
}

impl Command {
    /// The same command in its short form, if it has one.
    #[must_use]
    pub fn short(self) -> Self {
        match self {
            Self::Container(command) => command.short(),
            Self::Image(command) => command.short(),
            Self::System(SystemCommand::Events(args)) => Self::Events(args),
            Self::System(SystemCommand::Info(args)) => Self::Info(args),
            other => other,
        }
    }
}

impl ContainerCommand {
    fn short(self) -> Command {
        match self {
            Self::Ls(args) => Command::Ps(args),
            Self::Run(args) => Command::Run(args),
            Self::Create(args) => Command::Create(args),
            Self::Start(args) => Command::Start(args),
            Self::Attach(args) => Command::Attach(args),
            Self::Exec(args) => Command::Exec(args),
            Self::Logs(args) => Command::Logs(args),
            Self::Wait(args) => Command::Wait(args),
            Self::Kill(args) => Command::Kill(args),
            Self::Stop(args) => Command::Stop(args),
            Self::Restart(args) => Command::Restart(args),
            Self::Rm(args) => Command::Rm(args),
            Self::Top(args) => Command::Top(args),
            Self::Stats(args) => Command::Stats(args),
            Self::Pause(args) => Command::Pause(args),
            Self::Unpause(args) => Command::Unpause(args),
            Self::Rename(args) => Command::Rename(args),
            Self::Update(args) => Command::Update(args),
            Self::Port(args) => Command::Port(args),
            Self::Cp(args) => Command::Cp(args),
            Self::Diff(args) => Command::Diff(args),
            Self::Export(args) => Command::Export(args),
            Self::Commit(args) => Command::Commit(args),
            Self::Inspect(args) => inspect("container", args.format, args.size, args.names),
            prune @ Self::Prune(_) => Command::Container(prune),
        }
    }
}

impl ImageCommand {
    fn short(self) -> Command {
        match self {
            Self::Ls(args) => Command::Images(args),
            Self::Pull(args) => Command::Pull(args),
            Self::Push(args) => Command::Push(args),
            Self::Rm(args) => Command::Rmi(args),
            Self::History(args) => Command::History(args),
            Self::Tag(args) => Command::Tag(args),
            Self::Save(args) => Command::Save(args),
            Self::Load(args) => Command::Load(args),
            Self::Import(args) => Command::Import(args),
            Self::Inspect(args) => inspect("image", args.format, false, args.names),
            prune @ Self::Prune(_) => Command::Image(prune),
        }
    }
}

fn inspect(kind: &str, format: Option<String>, size: bool, names: Vec<String>) -> Command {
    Command::Inspect(InspectArgs { format, kind: Some(kind.to_owned()), size, names })
}
