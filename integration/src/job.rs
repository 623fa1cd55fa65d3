//! What a guest is told to do, and what it tells; shared by the host and the guest's first process.

use serde::{Deserialize, Serialize};

/// Where the guest finds its job.
pub const PATH: &str = "/job.json";

/// The device that carries the command's output, as bytes.
pub const OUTPUT: &str = "/dev/ttyS1";

/// The device that carries [`Report`]s, one line each.
pub const REPORTS: &str = "/dev/ttyS2";

/// The run of one command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// The program, found on the guest's PATH, and its arguments.
    pub command: Vec<String>,
    /// Variables added to the guest's environment.
    pub environment: Vec<(String, String)>,
    /// The output device is the command's terminal, with so many rows and columns; else the command reads nothing.
    pub terminal: Option<(u16, u16)>,
}

/// A line from the guest's first process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Report {
    /// The command starts now.
    Started,
    /// The command ended with this status; as in a shell, 128 and more is a signal, 127 "not found".
    Exited(u8),
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Started => f.write_str("started"),
            Self::Exited(status) => write!(f, "exited {status}"),
        }
    }
}

impl std::str::FromStr for Report {
    type Err = ();

    fn from_str(line: &str) -> Result<Self, ()> {
        match line.trim_end().split_once(' ') {
            None if line.trim_end() == "started" => Ok(Self::Started),
            Some(("exited", status)) => status.parse().map(Self::Exited).map_err(|_| ()),
            _ => Err(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_read_as_written() {
        for report in [Report::Started, Report::Exited(0), Report::Exited(255)] {
            assert_eq!(report.to_string().parse(), Ok(report));
        }
        for not in ["", "start", "exited", "exited 256"] {
            assert_eq!(not.parse::<Report>(), Err(()));
        }
    }
}
