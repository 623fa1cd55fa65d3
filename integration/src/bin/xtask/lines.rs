//! What a program in a guest says: lines of JSON, to be used, and anything else, to be shown.

use std::io::{self, Write};

use integration::Result;

/// Hands on the lines of JSON, and shows the others on standard error.
pub(crate) struct Lines<F> {
    /// Takes each line that begins an object.
    take: F,
    /// A line of which the end is still to come.
    rest: Vec<u8>,
}

impl<F: FnMut(&str) -> Result<()>> Lines<F> {
    pub(crate) fn new(take: F) -> Self {
        let rest = Vec::new();
        Self { take, rest }
    }
}

impl<F: FnMut(&str) -> Result<()>> Write for Lines<F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.rest.extend_from_slice(bytes);
        while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            if line.starts_with('{') {
                (self.take)(&line).map_err(io::Error::other)?;
            } else {
                eprint!("{line}");
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
