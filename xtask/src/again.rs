//! Tests that failed, once more and alone: was it what ran beside them?
//!
//! In: what a run of tests came to, and which packages may have a second run: those whose tests use real sockets, processes and
//! clocks, which a busy machine may hold up. Out: the tests that passed alone, and those that have failed for good. Used by the
//! steps that run tests.
//!
//! A test that passes alone is no proof of anything: it is said loudly, for somebody to find out why. It only does not cost
//! everything else its verdict.

use crate::watch::{self, Failed, Outcome};
use anyhow::Result;
use std::process::Command;

/// More failures than this are no chance, and none of them is repeated.
const REPEATED_MAX: usize = 5;

/// What is left of a run after what failed was repeated.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// Whether nothing failed, or nothing that failed did so again.
    pub(crate) passed: bool,
    /// What failed and then passed alone.
    pub(crate) flaky: Vec<String>,
    /// What failed for good.
    pub(crate) failed: Vec<String>,
}

/// Repeats what failed in `packages`. `command` is `cargo test` with these arguments.
pub(crate) fn repeat(
    outcome: &Outcome,
    packages: &[&str],
    command: impl Fn(&[&str]) -> Result<Command>,
) -> Result<Verdict> {
    let mut verdict = Verdict { passed: outcome.passed, ..Verdict::default() };
    let runs: Vec<(&Failed, Vec<Run<'_>>)> =
        outcome.failed.iter().map(|program| (program, runs_of(program, packages))).collect();
    let count: usize = runs.iter().map(|(program, runs)| runs.len().max(program.lines().len())).sum();
    // What failed without a word of cargo, such as cargo itself, cannot be made good by tests.
    let is_complete = outcome.announced == outcome.failed.len();
    for (program, runs) in runs {
        if runs.is_empty() || count > REPEATED_MAX || !is_complete {
            verdict.failed.extend(program.lines());
            continue;
        }
        for run in runs {
            eprintln!("==> once more, alone: {}", run.line);
            let outcome = watch::run(&mut command(&run.arguments)?)?;
            // A name that cargo does not find passes as well.
            let ran = run.is_whole || outcome.tests_passed > 0;
            let list = if outcome.passed && ran { &mut verdict.flaky } else { &mut verdict.failed };
            list.push(run.line);
        }
    }
    verdict.passed |= is_complete && !verdict.flaky.is_empty() && verdict.failed.is_empty();
    Ok(verdict)
}

/// One run of one test, or of a whole program.
struct Run<'a> {
    arguments: Vec<&'a str>,
    is_whole: bool,
    /// What failed.
    line: String,
}

/// The runs that a program gets: none, if its package is not one of those.
fn runs_of<'a>(program: &'a Failed, packages: &[&str]) -> Vec<Run<'a>> {
    let words: Vec<&str> = program.again.iter().flat_map(|words| words.split(' ')).collect();
    if !matches!(&words[..], ["-p", package, ..] if packages.contains(package)) {
        return Vec::new();
    }
    let run = |name: Option<&'a str>, line| {
        let exact = name.map_or_else(Vec::new, |name| vec!["--exact", name]);
        let arguments = [&words[..], &["--"], &exact, &["--test-threads", "1"]].concat();
        Run { arguments, is_whole: name.is_none(), line }
    };
    // Of the name of a documentation test rustdoc makes several.
    let named = program.is_known() && program.tests.iter().all(|name| !name.contains(' '));
    if named && program.hung.is_none() {
        let tests = program.tests.iter().map(String::as_str);
        return tests.zip(program.lines()).map(|(name, line)| run(Some(name), line)).collect();
    }
    vec![run(None, program.lines().join(", "))]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::watch::tests::shell;

    /// What cargo prints about a program with these lines of its own.
    fn program(package: &str, name: &str, lines: &str) -> String {
        format!(
            "     Running tests/{name}.rs (target/debug/deps/{name}-00112233445566aa)\n{lines}\n\
             error: test failed, to rerun pass `-p {package} --test {name}`\n"
        )
    }

    fn failing(names: &[&str]) -> String {
        let lines: String = names.iter().map(|name| format!("test {name} ... FAILED\n")).collect();
        format!("{lines}test result: FAILED. 7 passed; {} failed; 0 ignored; finished in 1.00s", names.len())
    }

    fn first_run(programs: &[String]) -> Outcome {
        let script = format!(
            "cat <<'END'\n{}error: {} targets failed:\nEND\nexit 101",
            programs.concat(),
            programs.len()
        );
        watch::run(&mut shell(&script)).unwrap()
    }

    const PASSES: &str = "echo 'test result: ok. 1 passed; 0 failed; 0 ignored'";

    /// Repeats with a shell that runs `script`, which sees the arguments; returns them all too.
    fn repeat_with(outcome: &Outcome, script: &str) -> (Verdict, Vec<String>) {
        let asked = std::cell::RefCell::new(Vec::new());
        let verdict = repeat(outcome, &["net", "far"], |arguments| {
            asked.borrow_mut().push(arguments.join(" "));
            let mut command = shell(script);
            command.arg("cargo").args(arguments);
            Ok(command)
        });
        (verdict.unwrap(), asked.into_inner())
    }

    #[test]
    fn what_passes_alone_is_flaky_and_what_fails_again_has_failed() {
        let outcome = first_run(&[
            program("net", "one", &failing(&["uring::a", "poll::b"])),
            program("far", "two", &failing(&["c"])),
        ]);
        let (verdict, asked) = repeat_with(&outcome, PASSES);
        let all = ["one: uring::a", "one: poll::b", "two: c"].map(str::to_owned).to_vec();
        assert_eq!(verdict, Verdict { passed: true, flaky: all, failed: vec![] });
        assert_eq!(
            asked,
            [
                "-p net --test one -- --exact uring::a --test-threads 1",
                "-p net --test one -- --exact poll::b --test-threads 1",
                "-p far --test two -- --exact c --test-threads 1"
            ]
        );
        let script = format!("case \"$*\" in *poll::b*) exit 101 ;; *) {PASSES} ;; esac");
        let (verdict, _) = repeat_with(&outcome, &script);
        let flaky = ["one: uring::a", "two: c"].map(str::to_owned).to_vec();
        assert_eq!(verdict, Verdict { passed: false, flaky, failed: vec!["one: poll::b".to_owned()] });
    }

    #[test]
    fn a_name_that_is_not_found_has_not_passed() {
        let outcome = first_run(&[program("net", "one", &failing(&["a"]))]);
        let (verdict, _) =
            repeat_with(&outcome, "echo 'test result: ok. 0 passed; 0 failed; 9 filtered out'");
        assert_eq!(verdict, Verdict { passed: false, flaky: vec![], failed: vec!["one: a".to_owned()] });
    }

    #[test]
    fn a_program_that_did_not_come_to_its_end_is_repeated_whole() {
        let outcome = first_run(&[program("net", "one", "test a ... FAILED"), program("far", "two", "")]);
        let (verdict, asked) = repeat_with(&outcome, "true");
        assert_eq!(asked, ["-p net --test one -- --test-threads 1", "-p far --test two -- --test-threads 1"]);
        let flaky = [
            "one: a, one: ended before it had said what failed",
            "two: ended before it had said what failed",
        ];
        assert_eq!(
            verdict,
            Verdict { passed: true, flaky: flaky.map(str::to_owned).to_vec(), failed: vec![] }
        );
        let (verdict, _) = repeat_with(&outcome, "exit 101");
        assert_eq!((verdict.passed, verdict.flaky.len(), verdict.failed.len()), (false, 0, 2));
    }

    #[test]
    fn documentation_is_repeated_whole() {
        let lines = "   Doc-tests net\ntest src/lib.rs - f (line 3) ... FAILED\n\
                     test result: FAILED. 0 passed; 1 failed;\nerror: doctest failed, to rerun pass `-p net --doc`\n";
        let (verdict, asked) = repeat_with(&first_run(&[lines.to_owned()]), PASSES);
        assert_eq!(asked, ["-p net --doc -- --test-threads 1"]);
        assert_eq!(verdict.flaky, ["documentation of net: src/lib.rs - f (line 3)"]);
    }

    #[test]
    fn what_is_deterministic_is_not_repeated() {
        let outcome =
            first_run(&[program("sim", "one", &failing(&["a"])), program("net", "two", &failing(&["b"]))]);
        let (verdict, asked) = repeat_with(&outcome, PASSES);
        assert_eq!(asked, ["-p net --test two -- --exact b --test-threads 1"]);
        let [flaky, failed] = ["two: b", "one: a"].map(|line| vec![line.to_owned()]);
        assert_eq!(verdict, Verdict { passed: false, flaky, failed });
    }

    #[test]
    fn many_failures_are_no_chance() {
        let names = ["a", "b", "c", "d", "e", "f"];
        let outcome = first_run(&[program("net", "one", &failing(&names))]);
        let (verdict, asked) = repeat_with(&outcome, PASSES);
        assert_eq!((verdict.passed, verdict.failed.len(), asked.len()), (false, 6, 0));
        let outcome = first_run(&[program("net", "one", &failing(&names[1..]))]);
        assert!(repeat_with(&outcome, PASSES).0.passed);
    }

    #[test]
    fn what_cargo_did_not_finish_stays_failed() {
        let script = format!("cat <<'END'\n{}END\nexit 101", program("net", "one", &failing(&["a"])));
        let outcome = watch::run(&mut shell(&script)).unwrap();
        let (verdict, asked) = repeat_with(&outcome, PASSES);
        assert_eq!((verdict.passed, verdict.failed.len(), asked.len()), (false, 1, 0));
        let (verdict, _) = repeat_with(&watch::run(&mut shell("exit 1")).unwrap(), PASSES);
        assert_eq!(verdict, Verdict::default(), "an error of the compiler");
        let (verdict, _) = repeat_with(&watch::run(&mut shell("true")).unwrap(), PASSES);
        assert!(verdict.passed);
    }
}
