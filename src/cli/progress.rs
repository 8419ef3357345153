//! How far a sale is: a bar on a terminal, plain lines elsewhere.

use std::{
    io::{IsTerminal as _, stderr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::output;

/// Shows progress while `work` runs.
pub(super) async fn show<T>(
    what: &str,
    of: u64,
    done: Arc<AtomicU64>,
    work: impl Future<Output = T>,
) -> anyhow::Result<T> {
    let terminal = stderr().is_terminal();
    let target = if terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(Some(of), target);
    let style = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} {per_sec}")?;
    bar.set_style(style);
    bar.set_message(what.to_owned());
    let every = if terminal { Duration::from_millis(100) } else { Duration::from_secs(1) };
    let mut ticks = tokio::time::interval(every);
    tokio::pin!(work);
    let result = loop {
        tokio::select! {
            result = &mut work => break result,
            _ = ticks.tick() => {
                let done = done.load(Ordering::Relaxed);
                bar.set_position(done);
                if !terminal {
                    output::line(format!("{what}: {done} of {of}"))?;
                }
            }
        }
    };
    bar.finish_and_clear();
    output::line(format!("{what}: {} of {of}", done.load(Ordering::Relaxed)))?;
    Ok(result)
}

/// Shows a bar on a terminal while `work` runs, and nothing elsewhere.
pub(super) async fn bar<T>(
    what: &'static str,
    of: u64,
    done: Arc<AtomicU64>,
    work: impl Future<Output = T>,
) -> anyhow::Result<T> {
    if stderr().is_terminal() { show(what, of, done, work).await } else { Ok(work.await) }
}
