//! `docs/benchmarks.md`: the figures of the last run that was to be kept.

use std::fs;
use std::path::Path;

use integration::{Error, Result};

/// Between these lines are the figures; what is around them is written by hand.
const BEGIN: &str = "<!-- written by cargo xtask bench -->";
const END: &str = "<!-- end -->";

/// Replaces the figures and the picture.
pub(crate) fn write(figures: &str, picture: &str) -> Result<()> {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
    let (text, svg) = (docs.join("benchmarks.md"), docs.join("benchmarks.svg"));
    let io = |path: &Path, source| Error::Io {
        action: format!("write {}", path.display()),
        source,
    };
    let old = fs::read_to_string(&text).map_err(|source| io(&text, source))?;
    let new = replaced(&old, figures).ok_or_else(|| {
        Error::Unavailable(format!(
            "{} has no place for figures: {BEGIN} ... {END}",
            text.display()
        ))
    })?;
    fs::write(&text, new).map_err(|source| io(&text, source))?;
    fs::write(&svg, picture).map_err(|source| io(&svg, source))
}

fn replaced(old: &str, figures: &str) -> Option<String> {
    let (before, rest) = old.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n\n{figures}\n{END}{after}"))
}

/// The machine that all this ran on.
pub(crate) fn machine() -> String {
    let information = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let models: Vec<_> = information
        .lines()
        .filter_map(|line| line.strip_prefix("model name")?.split_once(':'))
        .map(|(_, model)| model.trim())
        .collect();
    let model = models.first().copied().unwrap_or("unknown processor");
    format!("{} x {model}", models.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_replaced_and_the_rest_stays() {
        let old = format!("# Title\n{BEGIN}\n\nold\n{END}\nmore\n");
        let new = replaced(&old, "new\n").unwrap();
        assert_eq!(new, format!("# Title\n{BEGIN}\n\nnew\n\n{END}\nmore\n"));
        assert_eq!(replaced(&new, "new\n").unwrap(), new);
        assert_eq!(replaced("nothing", "new"), None);
    }
}
