//! Progress of long work: a bar on a terminal, plain lines elsewhere.

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

pub(super) async fn show<T>(
    label: &str,
    total: u64,
    done: Arc<AtomicU64>,
    work: impl Future<Output = T>,
) -> anyhow::Result<T> {
    let terminal = stderr().is_terminal();
    let bar = bar(total, terminal, "{msg} {wide_bar} {pos}/{len} {per_sec}")?;
    bar.set_message(label.to_owned());
    let period = if terminal { Duration::from_millis(100) } else { Duration::from_secs(1) };
    let mut ticks = tokio::time::interval(period);
    tokio::pin!(work);
    let result = loop {
        tokio::select! {
            result = &mut work => break result,
            _ = ticks.tick() => {
                let done = done.load(Ordering::Relaxed);
                bar.set_position(done);
                if !terminal {
                    output::line(format!("{label}: {done} of {total}"))?;
                }
            }
        }
    };
    bar.finish_and_clear();
    output::line(format!("{label}: {} of {total}", done.load(Ordering::Relaxed)))?;
    Ok(result)
}

/// Progress that its work reports, with a text: a bar on a terminal, a line for each report elsewhere.
pub(super) struct Progress {
    bar: ProgressBar,
    terminal: bool,
}

impl Progress {
    /// Of so many steps.
    pub(super) fn new(total: u64) -> anyhow::Result<Self> {
        let terminal = stderr().is_terminal();
        let bar = bar(total, terminal, "{msg} {wide_bar} {pos}/{len}")?;
        Ok(Self { bar, terminal })
    }

    /// Shows how many steps are done.
    pub(super) fn set(&self, done: u64, text: &str) {
        self.bar.set_message(text.to_owned());
        self.bar.set_position(done);
        if !self.terminal {
            // The report at the end is what matters; if it cannot be printed, that is an error.
            drop(output::line(text));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

fn bar(total: u64, terminal: bool, template: &str) -> anyhow::Result<ProgressBar> {
    let target = if terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(Some(total), target);
    bar.set_style(ProgressStyle::with_template(template)?);
    Ok(bar)
}

/// Shows a bar on a terminal while `work` runs; shows nothing elsewhere.
pub(super) async fn show_on_terminal<T>(
    label: &'static str,
    total: u64,
    done: Arc<AtomicU64>,
    work: impl Future<Output = T>,
) -> anyhow::Result<T> {
    if stderr().is_terminal() { show(label, total, done, work).await } else { Ok(work.await) }
}
