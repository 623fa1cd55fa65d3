//! Reading YAML, of which JSON is a part.

use serde::de::DeserializeOwned;
use serde_saphyr::{Options, UserMessageFormatter, options::DuplicateKeyPolicy};

/// What went wrong, and at which line of the document, counted from 1.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Error {
    pub(crate) line: u64,
    pub(crate) message: String,
    /// A field is there twice, and nothing else was found.
    pub(crate) duplicate: bool,
}

/// The documents of a file with the line that each starts at. Three dashes at the beginning of a line part
/// documents wherever they stand: YAML allows them nowhere else.
pub(crate) fn documents(text: &str) -> impl Iterator<Item = (u64, &str)> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let is_separator = |line: &str| {
        line.strip_prefix("---")
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace))
    };
    let mut documents = vec![(1, 0)];
    let mut offset = 0;
    for (number, line) in (1..).zip(text.split_inclusive('\n')) {
        if is_separator(line) && offset > 0 {
            documents.push((number, offset));
        }
        offset += line.len();
    }
    let ends: Vec<usize> = documents
        .iter()
        .skip(1)
        .map(|(_, start)| *start)
        .chain([text.len()])
        .collect();
    documents
        .into_iter()
        .zip(ends)
        .filter_map(|((line, start), end)| {
            let document = text.get(start..end)?;
            // Blank lines, comments and directives make no document.
            let has_content = |line: &str| !line.is_empty() && !line.starts_with(['#', '%']) && line != "---";
            document
                .lines()
                .any(|line| has_content(line.trim()))
                .then_some((line, document))
        })
}

/// Reads one document. A field that is there twice is an error.
pub(crate) fn read<T: DeserializeOwned>(document: &str) -> Result<T, Error> {
    read_with(document, DuplicateKeyPolicy::Error)
}

/// Reads one document. Of a field that is there twice, the last holds.
pub(crate) fn read_leniently<T: DeserializeOwned>(document: &str) -> Result<T, Error> {
    read_with(document, DuplicateKeyPolicy::LastWins)
}

fn read_with<T: DeserializeOwned>(document: &str, duplicate_keys: DuplicateKeyPolicy) -> Result<T, Error> {
    // Whoever may write our files may program Services: there is no reason to limit their size.
    let options: Options =
        serde_saphyr::options! { budget: None, with_snippet: false, duplicate_keys: duplicate_keys };
    serde_saphyr::from_str_with_options(document, options).map_err(|error| {
        let error = error.without_snippet();
        let duplicate = matches!(error, serde_saphyr::Error::DuplicateMappingKey { .. });
        let message = match error {
            // It would name Rust's type.
            serde_saphyr::Error::InvalidScalar { .. } => "this field cannot have such a value".to_owned(),
            error => error.render_with_formatter(&UserMessageFormatter),
        };
        let Some(location) = error.location() else {
            return Error {
                line: 1,
                message,
                duplicate,
            };
        };
        // The place in the message is the document's, not the file's: quote it instead.
        let place = format!(" at line {}, column {}", location.line(), location.column());
        let message = message.strip_suffix(&place).unwrap_or(&message);
        let index = usize::try_from(location.line())
            .unwrap_or_default()
            .saturating_sub(1);
        let quoted = document.lines().nth(index).unwrap_or_default().trim();
        Error {
            line: location.line(),
            message: format!("{message}: `{quoted}`"),
            duplicate,
        }
    })
}
