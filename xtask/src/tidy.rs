//! `cargo xtask tidy`: whether the documents still speak of the tree that is there.
//!
//! In: the files that git knows, and the new ones it does not ignore. Out: a line for each thing that is not so:
//! a path in a document that cannot be opened, a link that leads nowhere, a source file that no row of the code map has.
//! A part of `cargo xtask test`.

use crate::steps::workspace_root;
use anyhow::{Context, Result, bail};
use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};
use std::process::Command;

/// The document with the code map, and the heading above it.
const MAP: (&str, &str) = ("docs/ARCHITECTURE.md", "## Code map");

/// What of the tree the code map is about.
const MAPPED: &[&str] = &["dataplane", "control", "benches"];

/// Ends of names that make a word in a document the name of a file of the tree.
const FILE_ENDS: &[&str] = &[".rs", ".md", ".toml", ".service", ".svg"];

/// Files whose names in a document are those of a machine that runs the product, and not of the tree.
const ELSEWHERE: &[&str] = &["ringwire.toml", "/etc/ringwire.toml"];

/// No options: the command means the same everywhere.
#[derive(clap::Args)]
pub(crate) struct Arguments {}

/// Reads documents and tree; fails with every finding on a line of its own.
pub(crate) fn run(_arguments: &Arguments) -> Result<()> {
    let root = workspace_root()?;
    let Some(tree) = Tree::of(&root)? else {
        println!("this is no checkout that git reads: the documents were not looked at");
        return Ok(());
    };
    let mut findings = Vec::new();
    for path in tree.files.iter().filter(|path| path.ends_with(".md")) {
        let text = std::fs::read_to_string(root.join(path)).with_context(|| format!("cannot read {path}"))?;
        findings.extend(document(path, &text, &tree));
        if path == MAP.0 {
            findings.extend(map(&text, &tree));
        }
    }
    for finding in &findings {
        eprintln!("{finding}");
    }
    if !findings.is_empty() {
        bail!("{} things in the documents are not so", findings.len());
    }
    Ok(())
}

/// The files of the project, by their paths from its top.
struct Tree {
    files: BTreeSet<String>,
}

impl Tree {
    /// None: it came without its history, as an archive does.
    fn of(root: &Path) -> Result<Option<Self>> {
        let listed = Command::new("git")
            .args(["ls-files", "--cached", "--others", "--exclude-standard", "-z"])
            .current_dir(root)
            .output()
            .context("git cannot be started")?;
        if !listed.status.success() {
            eprint!("{}", String::from_utf8_lossy(&listed.stderr));
            return Ok(None);
        }
        let names = String::from_utf8(listed.stdout).context("a file's name is no text")?;
        // One that is removed and not yet committed is listed, too.
        let there = names.split('\0').filter(|name| !name.is_empty() && root.join(name).exists());
        Ok(Some(Self { files: there.map(str::to_owned).collect() }))
    }

    /// Whether this is a file or a folder of the tree.
    fn has(&self, path: &str) -> bool {
        let path = path.trim_end_matches('/');
        self.files.contains(path) || self.files.iter().any(|file| is_below(file, path))
    }

    /// Whether some file or folder is called so, from some folder on.
    fn has_somewhere(&self, path: &str) -> bool {
        let (path, below) = (path.trim_end_matches('/'), format!("/{}", path.trim_end_matches('/')));
        self.has(path)
            || self.files.iter().any(|file| file.ends_with(&below) || file.contains(&format!("{below}/")))
    }
}

fn is_below(file: &str, folder: &str) -> bool {
    file.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'))
}

/// What of a document is not so.
fn document(path: &str, text: &str, tree: &Tree) -> Vec<String> {
    let mut findings = Vec::new();
    let mut is_example = false;
    for (number, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            is_example = !is_example;
            continue;
        }
        if is_example {
            continue;
        }
        let place = format!("{path}:{}", number + 1);
        for word in quoted(line).filter(|word| names_file(word) && !tree.has_somewhere(word)) {
            findings.push(format!("{place}: no file of the tree is called `{word}`"));
        }
        for target in links(line).filter(|target| !tree.has(&resolved(path, target))) {
            findings.push(format!("{place}: the link to {target} leads nowhere"));
        }
    }
    findings
}

/// What stands between single back-ticks.
fn quoted(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2)
}

/// Whether a word in a document means a file or a folder of the tree.
fn names_file(word: &str) -> bool {
    let is_path = word.chars().all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c));
    if !is_path || ELSEWHERE.contains(&word) {
        return false;
    }
    let is_folder = word.ends_with('/') && word.len() > 1;
    is_folder || FILE_ENDS.iter().any(|end| word.ends_with(end) && word != *end)
}

/// Targets of links to files, without the part of the page.
fn links(line: &str) -> impl Iterator<Item = &str> {
    let targets = line.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    let targets = targets.map(|target| target.split('#').next().unwrap_or_default());
    targets.filter(|target| !target.is_empty() && !target.contains("://"))
}

/// The path from the top that a link in the document at `path` means.
fn resolved(path: &str, target: &str) -> String {
    let mut parts = PathBuf::from(path);
    parts.pop();
    for part in Path::new(target).components() {
        match part {
            Component::ParentDir => drop(parts.pop()),
            Component::Normal(name) => parts.push(name),
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    parts.to_string_lossy().into_owned()
}

/// Source files that no row of the code map has, and rows that have nothing.
fn map(text: &str, tree: &Tree) -> Vec<String> {
    let mut places = Vec::new();
    let rows = text.split(MAP.1).nth(1).unwrap_or_default().split("\n## ").next().unwrap_or_default();
    for row in rows.lines().filter(|line| line.starts_with("| `")) {
        let mut folder = "";
        let cell = row.trim_start_matches('|').split(" | ").next().unwrap_or_default();
        for (at, word) in quoted(cell).enumerate() {
            // Those behind the first are in its folder, unless they say where they are.
            if at == 0 {
                folder = parent(word);
            }
            let is_whole = MAPPED.iter().any(|top| is_below(word, top));
            places.push(if is_whole || folder.is_empty() {
                word.to_owned()
            } else {
                format!("{folder}/{word}")
            });
        }
    }
    let mut findings: Vec<_> = places
        .iter()
        .filter(|place| !tree.has(place))
        .map(|place| format!("{}: the code map has `{place}`, which is not there", MAP.0))
        .collect();
    let is_source = |file: &&String| {
        let is_mapped = MAPPED.iter().any(|top| is_below(file, top));
        is_mapped && file.ends_with(".rs") && file.contains("/src/")
    };
    let has = |file: &str| {
        let name = file.rsplit('/').next().unwrap_or_default();
        // What a package begins with is about all of it.
        ["lib.rs", "main.rs"].contains(&name)
            || places.iter().any(|place| file == place || is_below(file, place.trim_end_matches('/')))
    };
    let missing = tree.files.iter().filter(is_source).filter(|file| !has(file));
    findings.extend(missing.map(|file| format!("{}: no row of the code map has {file}", MAP.0)));
    findings
}

/// The folder of a path: all before its last name.
fn parent(path: &str) -> &str {
    path.trim_end_matches('/').rsplit_once('/').map_or("", |(folder, _)| folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[&str]) -> Tree {
        Tree { files: files.iter().map(|file| (*file).to_owned()).collect() }
    }

    #[test]
    fn a_path_that_cannot_be_opened_is_found_and_one_that_can_is_not() {
        let tree = tree(&["docs/A.md", "docs/log/1.md", "control/src/cli/run.rs"]);
        let text = "`cli/run.rs`, `run.rs`, `control/src/`, `cli/walk.rs`, `ringwire.toml`, `a.b()`\n\
                    [one](log/1.md), [two](../docs/A.md#part), [three](B.md), [four](https://x.example/C.md)\n\
                    ```\n`gone.rs`\n```\n`.rs` `x/` `N/A`";
        let found = document("docs/A.md", text, &tree);
        let expected = [
            "docs/A.md:1: no file of the tree is called `cli/walk.rs`",
            "docs/A.md:2: the link to B.md leads nowhere",
            "docs/A.md:6: no file of the tree is called `x/`",
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn the_map_has_every_source_file_and_nothing_else() {
        let tree = tree(&[
            "control/src/lib.rs",
            "control/src/a.rs",
            "control/src/b/mod.rs",
            "control/src/c.rs",
            "control/tests/t.rs",
            "dataplane/src/d.rs",
            "xtask/src/x.rs",
        ]);
        let text = "# Head\n## Code map\n| where | what |\n|---|---|\n| `control/src/a.rs`, `b/` | x |\n\
                    | `dataplane/src/e.rs` | y |\n## Other\n| `control/src/c.rs` | no row of the map |";
        let found = map(text, &tree);
        let expected = [
            "docs/ARCHITECTURE.md: the code map has `dataplane/src/e.rs`, which is not there",
            "docs/ARCHITECTURE.md: no row of the code map has control/src/c.rs",
            "docs/ARCHITECTURE.md: no row of the code map has dataplane/src/d.rs",
        ];
        assert_eq!(found, expected);
    }
}
