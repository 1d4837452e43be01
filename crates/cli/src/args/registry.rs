//! Flags of the commands for registries.

use clap::Args;

/// `pull`.
#[derive(Debug, Args)]
pub struct PullArgs {
    /// All tags of the repository
    #[arg(short, long)]
    pub all_tags: bool,
    /// Only the image's name at the end
    #[arg(short, long)]
    pub quiet: bool,
    /// Platform, such as linux/arm64
    #[arg(long, env = "DOCKER_DEFAULT_PLATFORM")]
    pub platform: Option<String>,
    /// Image
    #[arg(value_name = "NAME[:TAG|@DIGEST]")]
    pub image: String,
}

/// `push`.
#[derive(Debug, Args)]
pub struct PushArgs {
    /// All tags of the repository
    #[arg(short, long)]
    pub all_tags: bool,
    /// Only the image's name at the end
    #[arg(short, long)]
    pub quiet: bool,
    /// Image
    #[arg(value_name = "NAME[:TAG]")]
    pub image: String,
}

/// `login`.
#[derive(Debug, Args)]
pub struct LoginArgs {
    /// User name; asked for if none is given
    #[arg(short, long)]
    pub username: Option<String>,
    /// Password (others can see it: better --password-stdin); asked for if none is given
    #[arg(short, long)]
    pub password: Option<String>,
    /// Read the password from standard input
    #[arg(long, conflicts_with = "password")]
    pub password_stdin: bool,
    /// Registry; Docker Hub if none is given
    pub server: Option<String>,
}

/// `logout`.
#[derive(Debug, Args)]
pub struct LogoutArgs {
    /// Registry; Docker Hub if none is given
    pub server: Option<String>,
}

/// `search`.
#[derive(Debug, Args)]
pub struct SearchArgs {
    /// What to look for
    pub term: String,
}
