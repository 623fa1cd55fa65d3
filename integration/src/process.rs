//! Programs that the lab runs on the host.

use std::io::Write;
use std::process::{Command, Output, Stdio};

use crate::error::{Context, Error, Result};

/// Runs a command to its end and gives its standard output; its failure is an error with what it said.
///
/// # Errors
/// It cannot be started, or failed.
pub fn output(command: &mut Command) -> Result<String> {
    let line = line(command);
    let output = command
        .stdin(Stdio::null())
        .output()
        .context(|| format!("run `{line}`"))?;
    successful(line, &output)
}

/// The same, with a text on the command's standard input.
pub(crate) fn output_of(command: &mut Command, input: &str) -> Result<String> {
    let line = line(command);
    let action = || format!("run `{line}`");
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().context(action)?;
    if let Some(mut pipe) = child.stdin.take() {
        // One that ended before it had read everything says why in its output.
        let _ = pipe.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().context(action)?;
    successful(line, &output)
}

fn successful(line: String, output: &Output) -> Result<String> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() {
        return Ok(text(&output.stdout));
    }
    let said = format!("{}{}", text(&output.stdout), text(&output.stderr));
    Err(Error::Command {
        command: line,
        status: output.status,
        output: last_lines(&said, 20),
    })
}

/// The last `count` lines of a text, indented as quoted material.
pub(crate) fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<_> = text.trim_end().lines().collect();
    let tail = lines.get(lines.len().saturating_sub(count)..).unwrap_or_default();
    tail.iter()
        .map(|line| format!("  {}\n", line.trim_end()))
        .collect()
}

fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_carries_the_command_and_what_it_said() {
        let error = output(Command::new("sh").args(["-c", "echo no such thing >&2; exit 3"])).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("`sh -c") && text.contains("no such thing") && text.contains('3'),
            "{text}"
        );
    }

    #[test]
    fn a_command_reads_its_input() {
        assert_eq!(output_of(&mut Command::new("cat"), "a\nb").unwrap(), "a\nb");
    }

    #[test]
    fn last_lines_are_the_last() {
        assert_eq!(last_lines("a\nb\r\nc\n", 2), "  b\n  c\n");
        assert_eq!(last_lines("", 2), "");
    }
}
