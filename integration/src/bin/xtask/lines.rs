//! What a program in a guest says: lines of JSON, to be kept, and anything else, to be shown.

use std::io::{self, Write};

/// Keeps the lines of JSON, and shows the others on standard error.
#[derive(Default)]
pub(crate) struct Lines {
    /// The lines that begin an object.
    pub(crate) objects: Vec<String>,
    /// A line of which the end is still to come.
    rest: Vec<u8>,
}

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.rest.extend_from_slice(bytes);
        while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            if line.starts_with('{') {
                self.objects.push(line.into_owned());
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
