//! Times of one side of a comparison.

use std::time::Duration;

use comfy_table::{Table, presets};

/// What one side took, round by round.
#[derive(Clone)]
pub struct Series {
    /// What was run.
    pub name: String,
    times: Vec<Duration>,
}

impl Series {
    /// One without times.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), times: Vec::new() }
    }

    /// Adds a round.
    pub fn push(&mut self, time: Duration) {
        self.times.push(time);
    }

    fn sorted(&self) -> Vec<Duration> {
        let mut times = self.times.clone();
        times.sort();
        times
    }

    /// The middle one (the upper of two).
    pub fn median(&self) -> Duration {
        self.sorted().get(self.times.len() / 2).copied().unwrap_or_default()
    }
}

/// Milliseconds with one digit.
pub fn ms(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1000.0)
}

/// Prints each side with its minimum, median and maximum, and its median as a ratio to every peer's.
pub fn print(sides: &[Series], peers: &[&Series]) {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    let mut head = vec!["side".to_owned(), "min".into(), "median".into(), "max".into()];
    head.extend(peers.iter().map(|peer| format!("ratio to {}", peer.name)));
    table.set_header(head);
    for side in sides {
        let sorted = side.sorted();
        let (Some(&least), Some(&most)) = (sorted.first(), sorted.last()) else { continue };
        let mut row = vec![side.name.clone(), ms(least), ms(side.median()), ms(most)];
        row.extend(
            peers.iter().map(|peer| format!("{:.2}x", side.median().as_secs_f64() / peer.median().as_secs_f64())),
        );
        table.add_row(row);
    }
    println!("{table}");
}
