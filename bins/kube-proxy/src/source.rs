//! Where the proxier's objects come from.

use std::fmt::Display;

use tracing::warn;

use crate::objects::Problem;

pub(crate) mod api;
mod documents;
mod encoding;
pub(crate) mod manifests;
pub(crate) mod sink;

/// Tells what of an object cannot be used; the rest of it is.
fn report(kind: &str, name: &dyn Display, problems: &[Problem]) {
    for problem in problems {
        warn!("{kind} {name}: {problem}");
    }
}
