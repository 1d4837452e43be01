//! Bars and spinners on standard error, only on a terminal and only for what takes more than half a second.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// What takes less is not worth a bar.
pub const PATIENCE: Duration = Duration::from_millis(500);
/// Time between two frames of a spinner.
const FRAME: Duration = Duration::from_millis(100);

/// A spinner with a message; gone when it is dropped.
pub struct Spinner(ProgressBar);

impl Spinner {
    /// Begins to spin now.
    #[must_use]
    pub fn start(message: impl Into<String>) -> Self {
        let bar = ProgressBar::with_draw_target(None, target());
        bar.set_style(
            ProgressStyle::with_template("{spinner:.cyan} {msg} {elapsed:.dim}")
                .unwrap_or_else(|_| ProgressStyle::default_spinner()),
        );
        bar.set_message(message.into());
        bar.enable_steady_tick(FRAME);
        Self(bar)
    }
}

impl Drop for Spinner {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// Waits; spins with the message once it takes longer than [`PATIENCE`]. The message is asked for only then.
pub async fn patiently<T, F: Future<Output = T>, M: Future<Output = String>>(work: F, message: M) -> T {
    tokio::pin!(work);
    if let Ok(done) = tokio::time::timeout(PATIENCE, &mut work).await {
        return done;
    }
    if !std::io::stderr().is_terminal() {
        return work.await;
    }
    let spinning = async {
        let _spinner = Spinner::start(message.await);
        std::future::pending::<T>().await
    };
    tokio::select! {
        biased;
        done = &mut work => done,
        never = spinning => never,
    }
}

/// A bar that counts bytes, hidden until it was asked to show.
#[must_use]
pub fn bytes_bar(total: Option<u64>) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::hidden());
    let template = match total {
        Some(_) => "{msg} [{bar:40.cyan}] {bytes}/{total_bytes} {bytes_per_sec} {eta:.dim}",
        None => "{spinner:.cyan} {msg} {bytes} {bytes_per_sec} {elapsed:.dim}",
    };
    bar.set_style(
        ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> "),
    );
    bar
}

/// The line of a layer that is not counted yet, for a group of them.
#[must_use]
pub fn layer_line() -> ProgressBar {
    let line = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::hidden());
    line.set_style(layer_line_style());
    line
}

/// A layer's id and what happens to it.
#[must_use]
pub fn layer_line_style() -> ProgressStyle {
    ProgressStyle::with_template("{prefix}: {msg}").unwrap_or_else(|_| ProgressStyle::default_spinner())
}

/// The same with a bar.
#[must_use]
pub fn layer_bar_style() -> ProgressStyle {
    ProgressStyle::with_template("{prefix}: {msg:18} [{bar:40.cyan}] {bytes}/{total_bytes}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
}

/// Shows a bar on standard error, if that is a terminal.
pub fn show(bar: &ProgressBar) {
    bar.set_draw_target(target());
    bar.enable_steady_tick(FRAME);
}

fn target() -> ProgressDrawTarget {
    if std::io::stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn quick_work_is_never_explained() {
        let message = async { panic!("nobody was to ask") };
        assert_eq!(patiently(async { 5 }, message).await, 5);
    }

    #[tokio::test]
    async fn slow_work_is_waited_for() {
        let work = async {
            tokio::time::sleep(PATIENCE + Duration::from_millis(50)).await;
            7
        };
        assert_eq!(patiently(work, async { String::new() }).await, 7);
    }
}
