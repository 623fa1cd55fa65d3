//! Builds the workspace's own programs and tests.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::error::{Context, Error, Result};

/// Runs `cargo build` with these arguments and gives the programs that came of it.
///
/// # Errors
/// Cargo cannot be started, or the build failed; the compiler's messages are on standard error.
pub fn build(arguments: &[&str]) -> Result<Vec<PathBuf>> {
    executables("build", arguments)
}

fn executables(verb: &str, arguments: &[&str]) -> Result<Vec<PathBuf>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command
        .arg(verb)
        .args(["--quiet", "--message-format=json-render-diagnostics"])
        .args(arguments);
    let output = command
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context(|| "run cargo".into())?;
    if !output.status.success() {
        let command = format!("cargo {verb} {}", arguments.join(" "));
        return Err(Error::Command {
            command,
            status: output.status,
            output: String::new(),
        });
    }
    let messages = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(messages.lines().filter_map(executable).collect())
}

/// The program that a line of cargo's messages announces.
fn executable(line: &str) -> Option<PathBuf> {
    let message: Value = serde_json::from_str(line).ok()?;
    message.get("executable")?.as_str().map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_programs_are_taken() {
        let program = r#"{"reason":"compiler-artifact","executable":"/x/y"}"#;
        assert_eq!(executable(program), Some(PathBuf::from("/x/y")));
        assert_eq!(
            executable(r#"{"reason":"compiler-artifact","executable":null}"#),
            None
        );
        assert_eq!(executable("warning"), None);
    }
}
