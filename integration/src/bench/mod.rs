//! What a proxier costs: its first synchronisation, a change, its memory, and an idle minute.
//!
//! ```text
//! load     the objects: so many Services with so many endpoints each, made through the API server
//! course   what one proxier is put through, and what came out, as one line of JSON each
//! probe    when the kernel has a change, seen without getting in the proxier's way
//! measure  one course, in the guest
//! ```

pub mod course;
pub mod load;
pub mod measure;
mod probe;

pub use course::{Course, FirstSync, Limit, Line, Memory, Outcome};
pub use load::Load;
