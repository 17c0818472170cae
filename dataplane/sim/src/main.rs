//! `ringwire-sim --seeds N --from S [--trace]`: runs seeds, two at a time or as many as there are cores.
//!
//! Out: one line for each failing seed with the command that replays it, a summary, and status 1 if any failed. With
//! `--trace` every event of every seed is printed: for one seed at a time.

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use clap::Parser;
use ringwire_dataplane::counters::Counter;
use ringwire_sim::run::quiet_panics;
use ringwire_sim::{Report, run_seed};

/// Runs the data plane's worker in virtual time against model clients, one scenario for each seed.
#[derive(Parser)]
#[command(name = "ringwire-sim", bin_name = "cargo xtask sim")]
struct Arguments {
    /// How many seeds.
    #[arg(long, default_value_t = 500)]
    seeds: u64,
    /// The first one.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Print every event.
    #[arg(long)]
    trace: bool,
    /// Print a line for each seed.
    #[arg(long)]
    verbose: bool,
    /// Threads; by default one for each core.
    #[arg(long)]
    threads: Option<usize>,
}

/// Failing seeds that are replayed with a trace at the end of the output.
const TRACED_LINES: usize = 60;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    quiet_panics();
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    let threads = if arguments.trace { 1 } else { arguments.threads.unwrap_or(cores) };
    let began = Instant::now();
    let next = AtomicU64::new(arguments.from);
    let reports = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= arguments.from + arguments.seeds {
                        return;
                    }
                    let started = Instant::now();
                    let report = run_seed(seed, arguments.trace);
                    show(&arguments, &report, started.elapsed().as_secs_f64());
                    if let Ok(mut reports) = reports.lock() {
                        reports.push(report);
                    }
                }
            });
        }
    });
    let mut reports = reports.into_inner().unwrap_or_default();
    reports.sort_by_key(|report| report.seed);
    summarise(&arguments, &reports, began.elapsed().as_secs_f64())
}

fn show(arguments: &Arguments, report: &Report, seconds: f64) {
    if arguments.trace {
        for line in &report.trace {
            println!("{line}");
        }
    }
    if arguments.verbose || arguments.trace {
        let (planned, opened, bytes) = report.bridges;
        println!(
            "seed {:>6}  {:<12}  hash {:016x}  {:>7} events  {:>7} turns  {:>5.0} s virtual  {planned:>2}/{opened:<2} bridges  {bytes:>8} bytes  {seconds:.3} s",
            report.seed,
            report.theme,
            report.hash,
            report.events,
            report.turns,
            report.virtual_ns as f64 / 1e9,
        );
    }
    if let Some(failure) = &report.failure {
        println!(
            "seed {} ({}) FAILED at {:.6} s: {}\n    cargo xtask sim --seeds 1 --from {} --trace",
            report.seed,
            report.theme,
            failure.at as f64 / 1e9,
            failure.what,
            report.seed,
        );
    }
}

/// What the workers counted in all runs together: a zero is something the seeds do not reach.
fn show_counters(reports: &[Report]) {
    for &counter in Counter::ALL {
        let sum: u64 = reports.iter().map(|report| report.counters.value(counter)).sum();
        println!("{sum:>14}  {}", counter.name());
    }
}

fn summarise(arguments: &Arguments, reports: &[Report], seconds: f64) -> ExitCode {
    let failed: Vec<&Report> = reports.iter().filter(|report| report.failure.is_some()).collect();
    let hash = reports.iter().fold(0, |hash: u64, report| hash.rotate_left(5) ^ report.hash);
    let virtual_s = reports.iter().map(|report| report.virtual_ns).sum::<u64>() / 1_000_000_000;
    let bytes: u64 = reports.iter().map(|report| report.bridges.2).sum();
    println!(
        "{} seeds from {}: {} failed; {virtual_s} s of virtual time and {} MB of payload in {seconds:.1} s; hash {hash:016x}",
        reports.len(),
        arguments.from,
        failed.len(),
        bytes / 1_000_000,
    );
    if arguments.verbose {
        show_counters(reports);
    }
    if failed.is_empty() {
        return ExitCode::SUCCESS;
    }
    if !arguments.trace
        && let Some(first) = failed.first()
    {
        println!("the last events of seed {}:", first.seed);
        let again = run_seed(first.seed, true);
        for line in again.trace.iter().rev().take(TRACED_LINES).rev() {
            println!("{line}");
        }
    }
    ExitCode::FAILURE
}
