//! What a proxier costs: its first synchronisation, a change, its memory, an idle minute, and what packets take on
//! their way through what it has programmed.
//!
//! ```text
//! load          the objects: so many Services with so many endpoints each, made through the API server
//! course        what one proxier is put through, and what came out, as one line of JSON each
//! first_server  when the kernel has the first virtual server
//! probe         when the kernel has a change, seen without getting in the proxier's way
//! measure       one course, in the guest
//! trace         the kernel's own record of IPVS commands
//! flows         the packets' costs, in the guest
//! ```

pub mod course;
mod first_server;
pub mod flows;
pub mod load;
pub mod measure;
mod probe;
mod trace;

pub use course::{Course, FirstSync, FlowCosts, Flows, Limit, Line, Memory, NodeCosts, Outcome, Task};
pub use load::Load;
