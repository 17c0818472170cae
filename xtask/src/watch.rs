//! Tests under watch: what they print is passed on as it comes, failures are kept by name, and what hangs is named and ended.
//!
//! In: a cargo command that runs tests. Out: the programs with tests that failed or hung, and what of them is known. Used by the
//! steps that run tests, so that a long run says at its end what a reader would have to search for, and so that it has an end.

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, PipeReader};
use std::process::Command;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// So long nothing may be printed, by tests or by the compiler.
const SILENCE_MAX: Duration = Duration::from_secs(600);

/// So many programs that hang are ended one by one; then the whole run is.
const HANGS_MAX: usize = 2;

/// How often it is looked whether the command has ended.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// What a run of tests came to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// Whether the command ended with success.
    pub(crate) passed: bool,
    /// The programs that failed, in their order.
    pub(crate) failed: Vec<Failed>,
    /// How many programs cargo says have failed, at its end: fewer than it named when it did not get there.
    pub(crate) announced: usize,
    /// How many tests passed.
    pub(crate) tests_passed: usize,
}

/// A program of tests that failed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Failed {
    /// Its name.
    pub(crate) program: String,
    /// Its tests that are known to have failed.
    pub(crate) tests: Vec<String>,
    /// That it hung: which tests of it, and for how long.
    pub(crate) hung: Option<String>,
    /// What cargo takes to run it again: `-p package --test program`.
    pub(crate) again: Option<String>,
    /// Tests that it says have failed, at its end.
    counted: usize,
}

impl Failed {
    /// Whether its tests that failed are all known by name: it came to its end and said as many.
    pub(crate) fn is_known(&self) -> bool {
        !self.tests.is_empty() && self.tests.len() == self.counted
    }

    /// `program: test`, for each that failed, and what happened to it unless it just failed.
    pub(crate) fn lines(&self) -> Vec<String> {
        let mut words: Vec<&str> = self.tests.iter().chain(&self.hung).map(String::as_str).collect();
        if !self.is_known() && self.hung.is_none() {
            words.push("ended before it had said what failed");
        }
        words.into_iter().map(|words| format!("{}: {words}", self.program)).collect()
    }
}

/// Runs the command to its end, which comes: what prints nothing for too long is killed.
pub(crate) fn run(command: &mut Command) -> Result<Outcome> {
    run_within(command, SILENCE_MAX)
}

fn run_within(command: &mut Command, silence_max: Duration) -> Result<Outcome> {
    // One pipe for both, so that the name of a program stays in front of its tests.
    let (reader, writer) = std::io::pipe().context("no pipe")?;
    command.stdout(writer.try_clone().context("no pipe")?).stderr(writer);
    // What reads this is no terminal, whatever the caller prefers.
    command.env("CARGO_TERM_COLOR", "never");
    let mut child = command.spawn().context("the tests could not be started")?;
    // The command holds the other end of the pipe too: without this the lines would have no end.
    command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    let lines = lines_of(reader);
    let (mut log, mut outcome) = (Log::default(), Outcome::default());
    let (mut hangs, mut heard) = (0, Instant::now());
    loop {
        match lines.recv_timeout(LOOK_INTERVAL) {
            Ok(line) => {
                println!("{line}");
                log.take(&line, &mut outcome);
                heard = Instant::now();
                continue;
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => std::thread::sleep(LOOK_INTERVAL),
        }
        // A process that a test left behind may hold the pipe: the end of the command is what counts.
        if let Some(status) = child.try_wait().context("the tests cannot be waited for")? {
            log.close(&mut outcome);
            outcome.passed = status.success() && outcome.failed.is_empty();
            return Ok(outcome);
        }
        if heard.elapsed() >= silence_max {
            (hangs, heard) = (hangs + 1, Instant::now());
            log.hung(silence_max);
            // Cargo itself goes on with the next program.
            for pid in descendants(child.id()) {
                kill(pid);
            }
            if hangs == HANGS_MAX {
                kill(child.id());
            }
        }
    }
}

fn lines_of(reader: PipeReader) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let mut reader = BufReader::new(reader);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line).is_ok_and(|len| len > 0) {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            if sender.send(text).is_err() {
                return;
            }
            line.clear();
        }
    });
    receiver
}

/// What the lines so far say.
#[derive(Default)]
struct Log {
    /// The program whose tests run.
    current: Failed,
    /// Tests of it that are said to take long, and have not ended.
    slow: BTreeSet<String>,
}

impl Log {
    fn take(&mut self, line: &str, outcome: &mut Outcome) {
        if let Some(program) = program(line) {
            self.close(outcome);
            self.current.program = program;
        } else if let Some(result) = line.strip_prefix("test result: ") {
            outcome.tests_passed += count(result, "passed");
            self.current.counted += count(result, "failed");
        } else if let Some(rest) = line.strip_prefix("test ") {
            self.take_test(rest);
        } else if let Some(rest) = line.strip_prefix("error: ") {
            self.take_error(rest, outcome);
        }
    }

    fn take_test(&mut self, rest: &str) {
        if let Some(name) = rest.strip_suffix(" has been running for over 60 seconds") {
            self.slow.insert(name.to_owned());
        } else if let Some((name, result)) = rest.rsplit_once(" ... ") {
            // What follows the name of some: `a test - should panic`.
            let name = [" - should panic", " - compile fail", " - compile"]
                .iter()
                .find_map(|what| name.strip_suffix(what))
                .unwrap_or(name);
            self.slow.remove(name);
            if result.starts_with("FAILED") {
                self.current.tests.push(name.to_owned());
            }
        }
    }

    /// Cargo's word on a program (`test failed, to rerun pass ...`, without fail-fast after each), and on all (`2 targets failed:`).
    fn take_error(&mut self, rest: &str, outcome: &mut Outcome) {
        if let Some((_, words)) = rest.split_once("test failed, to rerun pass `") {
            self.current.again = Some(words.trim_end_matches('`').to_owned());
            self.close(outcome);
        } else if rest.ends_with(" target failed:") || rest.ends_with(" targets failed:") {
            outcome.announced = rest.split(' ').next().and_then(|number| number.parse().ok()).unwrap_or(0);
        }
    }

    /// The program is over.
    fn close(&mut self, outcome: &mut Outcome) {
        self.slow.clear();
        let program = std::mem::take(&mut self.current);
        if !program.tests.is_empty() || program.hung.is_some() || program.again.is_some() {
            outcome.failed.push(program);
        }
    }

    fn hung(&mut self, silence: Duration) {
        let minutes = silence.as_secs() / 60;
        let tests: Vec<&str> = self.slow.iter().map(String::as_str).collect();
        let tests = if tests.is_empty() { "no test is known to run".to_owned() } else { tests.join(", ") };
        self.current.hung = Some(format!("{tests} (nothing for {minutes} minutes: killed)"));
    }
}

/// The number in front of a word of a result: `FAILED. 3 passed; 1 failed; ...`.
fn count(result: &str, word: &str) -> usize {
    let words: Vec<&str> = result.split([' ', ';', '.']).filter(|word| !word.is_empty()).collect();
    let number = words.windows(2).find(|pair| pair[1] == word).and_then(|pair| pair[0].parse().ok());
    number.unwrap_or(0)
}

/// The program in cargo's line about it: `Running tests/a.rs (target/debug/deps/a-0123456789abcdef)`, `Doc-tests name`.
fn program(line: &str) -> Option<String> {
    let line = line.trim_start();
    if let Some(package) = line.strip_prefix("Doc-tests ") {
        return Some(format!("documentation of {package}"));
    }
    let (source, path) = line.strip_prefix("Running ")?.strip_suffix(')')?.rsplit_once(" (")?;
    let file = path.rsplit('/').next()?;
    let name = file.rsplit_once('-').map_or(file, |(name, _)| name);
    Some(if source.starts_with("unittests") { format!("{name} ({source})") } else { name.to_owned() })
}

/// All processes below this one, the deepest last.
fn descendants(of: u32) -> Vec<u32> {
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        // `pid (name) state parent`, and the name may contain anything.
        let parent = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse().ok());
        if let Some(parent) = parent {
            children.entry(parent).or_default().push(pid);
        }
    }
    let mut found = vec![of];
    let mut at = 0;
    while let Some(pid) = found.get(at) {
        found.extend(children.remove(pid).unwrap_or_default());
        at += 1;
    }
    found.split_off(1)
}

fn kill(pid: u32) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    // One that has ended meanwhile is what was wanted.
    let _ = pid.map(|pid| kill_process(pid, Signal::KILL));
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A shell in the place of cargo.
    pub(crate) fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn failures_are_kept_with_their_program() {
        let script = "
            echo '     Running tests/one.rs (target/debug/deps/one-00112233445566aa)' >&2
            echo 'test a::b ... ok'; echo 'test a::c ... FAILED'
            echo 'test result: FAILED. 1 passed; 1 failed; 0 ignored; finished in 0.10s'
            echo 'error: test failed, to rerun pass `-p one --test one`' >&2
            echo '     Running unittests src/lib.rs (target/debug/deps/two_parts-00112233445566aa)' >&2
            echo 'test d has been running for over 60 seconds'; echo 'test d - should panic ... FAILED'
            echo '   Doc-tests three' >&2
            echo 'test src/lib.rs - f (line 3) ... FAILED'
            echo 'test result: FAILED. 0 passed; 1 failed; 0 ignored; finished in 0.10s'
            echo 'error: doctest failed, to rerun pass `-p three --doc`' >&2
            echo 'error: 3 targets failed:' >&2
            exit 101";
        let outcome = run(&mut shell(script)).unwrap();
        let lines: Vec<String> = outcome.failed.iter().flat_map(Failed::lines).collect();
        let expected = [
            "one: a::c",
            "two_parts (unittests src/lib.rs): d",
            "two_parts (unittests src/lib.rs): ended before it had said what failed",
            "documentation of three: src/lib.rs - f (line 3)",
        ];
        assert_eq!((outcome.passed, lines), (false, expected.map(str::to_owned).to_vec()));
        assert_eq!((outcome.announced, outcome.tests_passed), (3, 1));
        let again: Vec<_> = outcome.failed.iter().map(|program| program.again.as_deref()).collect();
        assert_eq!(again, [Some("-p one --test one"), None, Some("-p three --doc")]);
        let outcome =
            run(&mut shell("echo 'test a ... ok'; echo 'test result: ok. 1 passed; 0 failed;'")).unwrap();
        assert_eq!(outcome, Outcome { passed: true, tests_passed: 1, ..Outcome::default() });
        assert_eq!(run(&mut shell("exit 1")).unwrap(), Outcome::default());
    }

    #[test]
    fn what_hangs_is_named_and_ended_and_the_rest_goes_on() {
        let script = "
            echo '     Running tests/one.rs (target/debug/deps/one-00112233445566aa)'
            echo 'test quick has been running for over 60 seconds'; echo 'test quick ... ok'
            echo 'test stuck has been running for over 60 seconds'
            sleep 1000
            echo '     Running tests/two.rs (target/debug/deps/two-00112233445566aa)'
            echo 'test other ... FAILED'; exit 101";
        let outcome = run_within(&mut shell(script), Duration::from_secs(5)).unwrap();
        assert!(!outcome.passed);
        let lines: Vec<String> = outcome.failed.iter().flat_map(Failed::lines).collect();
        let ended = "two: ended before it had said what failed";
        assert_eq!(lines, ["one: stuck (nothing for 0 minutes: killed)", "two: other", ended]);
    }

    #[test]
    fn what_hangs_again_and_again_is_given_up() {
        let script = "while true; do sleep 1000; done";
        let outcome = run_within(&mut shell(script), Duration::from_millis(500)).unwrap();
        assert_eq!((outcome.passed, outcome.failed.len()), (false, 1));
    }

    #[test]
    fn a_process_that_is_left_behind_holds_up_nobody() {
        let outcome = run(&mut shell("sleep 30 & echo 'test a ... ok'")).unwrap();
        assert!(outcome.passed);
    }
}
