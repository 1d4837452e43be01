//! Forks of one tiny guest with memory of three sizes, and the bare minimum for each.

use anyhow::Context as _;

use super::bare;
use super::tiny_guest::{Frozen, Process};
use crate::series::{Series, print};

const MIB: u64 = 1 << 20;
const SIZES: [(u64, &str); 3] = [(128 * MIB, "128 MiB"), (1024 * MIB, "1 GiB"), (8192 * MIB, "8 GiB")];

struct Side {
    bytes: u64,
    frozen: Frozen,
    state: bare::State,
    fork: Series,
    fork_work: Series,
    waiting: Series,
    waiting_work: Series,
    bare: Series,
    bare_work: Series,
}

/// Forks each size in turn, and the bare minimum beside it. The first round does not count.
pub fn measure(rounds: usize) -> anyhow::Result<()> {
    let mut sides = Vec::new();
    for (bytes, name) in SIZES {
        let frozen = Frozen::make(bytes).with_context(|| format!("a guest with {name}"))?;
        let state = bare::State::read(&frozen.memory, bytes)?;
        let series = |what: &str| Series::new(format!("{what}, {name}"));
        sides.push(Side {
            bytes,
            frozen,
            state,
            fork: series("own vmm's process"),
            fork_work: series("own vmm's process, processor time"),
            waiting: series("a process that waits"),
            waiting_work: series("a process that waits, processor time"),
            bare: series("bare minimum"),
            bare_work: series("bare minimum, processor time"),
        });
    }
    for round in 0..=rounds {
        for side in &mut sides {
            let fork = side.frozen.fork(Process::New)?;
            let waiting = side.frozen.fork(Process::Waiting)?;
            let bare = side.state.fork(&side.frozen.memory, side.bytes)?;
            if round > 0 {
                side.fork.push(fork.fork);
                side.fork_work.push(fork.work);
                side.waiting.push(waiting.fork);
                side.waiting_work.push(waiting.work);
                side.bare.push(bare.fork);
                side.bare_work.push(bare.work);
            }
        }
    }
    let middle = &sides[1];
    let (bare, bare_work) = (middle.bare.clone(), middle.bare_work.clone());
    let each = |of: fn(&Side) -> [&Series; 3]| sides.iter().flat_map(of).cloned().collect::<Vec<_>>();
    print(&each(|side| [&side.fork, &side.waiting, &side.bare]), &[&bare]);
    println!("\n(all sizes are to cost the same; at most 1.5x in work done is asked for)\n");
    print(&each(|side| [&side.fork_work, &side.waiting_work, &side.bare_work]), &[&bare_work]);
    Ok(())
}
