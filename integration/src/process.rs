//! Programs that the lab runs on the host.

use std::process::{Command, Stdio};

use crate::error::{Context, Error, Result};

/// Runs a command to its end and gives its standard output; its failure is an error with what it said.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let line = line(command);
    let output = command
        .stdin(Stdio::null())
        .output()
        .context(|| format!("run `{line}`"))?;
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
    fn last_lines_are_the_last() {
        assert_eq!(last_lines("a\nb\r\nc\n", 2), "  b\n  c\n");
        assert_eq!(last_lines("", 2), "");
    }
}
