//! Netlink by the batch: many messages in one `send`, one acknowledgement, and a result for each message.
//!
//! The kernel executes the messages of a netlink datagram one after the other inside `sendmsg`, and it answers
//! a message that failed whether or not an acknowledgement was asked for. So only the last message of a datagram
//! needs `NLM_F_ACK`: once that one is answered, each message before it either has an error with its sequence
//! number in the receive queue, or succeeded. Thousands of objects cost a few system calls.
//!
//! [`Socket`] has four ways to talk to the kernel, for any netlink protocol and any message type that implements
//! the traits of `netlink-packet-core`:
//!
//! - [`Socket::batch`]: independent messages, each of which may fail for itself;
//! - [`Socket::transaction`]: nfnetlink messages that take effect together or not at all;
//! - [`Socket::dump`]: a table, complete or an error;
//! - [`Socket::request`]: one message and its replies.
//!
//! [`Notifications`] receives what the kernel multicasts. [`Attributes`] writes messages of which there are many.
//!
//! Where an answer is lost, the kernel may or may not have done what it was asked to:
//! [`Error::outcome_unknown`] tells, and the caller has to look at the kernel's state again.

mod attributes;
mod batch;
mod channel;
mod error;
mod filter;
mod socket;
mod wire;

pub use attributes::Attributes;
pub use channel::Notifications;
pub use error::{Errno, Error, KernelError, TransactionError};
pub use socket::Socket;
