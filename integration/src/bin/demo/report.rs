//! What the demonstration prints: headings, what tools say, and claims that hold or do not.

use std::time::Instant;

use integration::Result;
use integration::topology::Host;
use integration::traffic::Answers;

pub(crate) struct Report {
    started: Instant,
    held: usize,
    failed: usize,
}

impl Report {
    pub(crate) fn new() -> Self {
        Self {
            started: Instant::now(),
            held: 0,
            failed: 0,
        }
    }

    pub(crate) fn heading(&self, text: &str) {
        println!("\n== {text}");
    }

    pub(crate) fn say(&self, text: &str) {
        println!("   {text}");
    }

    /// Runs a command on a host and prints it with what it says.
    pub(crate) fn show(&self, host: &Host, command: &str) -> Result<()> {
        println!("   $ {command}");
        for line in host.namespace.shell(command)?.lines() {
            println!("   {line}");
        }
        Ok(())
    }

    pub(crate) fn claim(&mut self, text: &str, holds: bool) {
        let (verdict, count) = if holds {
            ("ok    ", &mut self.held)
        } else {
            ("FAILED", &mut self.failed)
        };
        *count += 1;
        println!("{verdict} {text}");
    }

    /// Claims what was waited for, and says why if it did not come.
    pub(crate) fn outcome(&mut self, text: &str, outcome: Result<()>) {
        self.claim(text, outcome.is_ok());
        if let Err(error) = outcome {
            self.say(&error.to_string());
        }
    }

    /// Claims that exactly these pods answered, and saw this client address.
    pub(crate) fn answers(&mut self, what: &str, answers: &Answers, names: &[&str], seen: &str) {
        let good = answers.names().as_deref() == Some(names)
            && answers.seen().is_some_and(|address| address.to_string() == seen);
        self.claim(&format!("{what}: {answers}"), good);
    }

    /// Prints the sum; whether every claim holds.
    pub(crate) fn conclude(&self) -> bool {
        let (held, seconds) = (self.held, self.started.elapsed().as_secs());
        match self.failed {
            0 => println!("\nAll {held} claims hold. ({seconds} s)"),
            failed => println!(
                "\n{failed} of {} claims do NOT hold. ({seconds} s)",
                held + failed
            ),
        }
        self.failed == 0
    }
}
