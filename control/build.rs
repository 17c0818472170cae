//! Tells the program what commit it is built from: `RINGWIRE_BUILD_COMMIT` of the environment, else what git says, else "unknown".
//!
//! Only a repository whose root is this workspace is asked: sources that were unpacked inside another one are not its commit.

use std::path::{Path, PathBuf};
use std::process::Command;

const VARIABLE: &str = "RINGWIRE_BUILD_COMMIT";

fn main() {
    println!("cargo:rerun-if-env-changed={VARIABLE}");
    println!("cargo:rerun-if-changed=build.rs");
    let named = std::env::var(VARIABLE).ok().filter(|commit| !commit.is_empty());
    let commit = named.or_else(commit).unwrap_or_else(|| "unknown".to_owned());
    let short: String = commit.chars().take(12).collect();
    println!("cargo:rustc-env={VARIABLE}={commit}");
    println!("cargo:rustc-env={VARIABLE}_SHORT={short}");
}

fn commit() -> Option<String> {
    let package = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR")?);
    let workspace = package.parent()?.canonicalize().ok()?;
    if Path::new(&git(&workspace, &["rev-parse", "--show-toplevel"])?).canonicalize().ok()? != workspace {
        return None;
    }
    let commit = git(&workspace, &["rev-parse", "--verify", "HEAD"])?;
    // What another commit or branch changes; a file that is not there would mean a new build every time.
    let branch = git(&workspace, &["symbolic-ref", "--quiet", "HEAD"]);
    for name in ["HEAD", "logs/HEAD", "packed-refs"].into_iter().chain(branch.as_deref()) {
        let path = git(&workspace, &["rev-parse", "--git-path", name]).map(|path| workspace.join(path));
        if let Some(path) = path.filter(|path| path.exists()) {
            println!("cargo:rerun-if-changed={}", path.display());
        }
    }
    Some(commit)
}

fn git(directory: &Path, arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").arg("-C").arg(directory).args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (output.status.success() && !text.is_empty()).then_some(text)
}
