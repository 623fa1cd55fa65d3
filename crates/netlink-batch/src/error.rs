use std::fmt;

pub use rustix::io::Errno;

/// Why a message was not executed, or why that is not known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The socket cannot be opened or configured.
    #[error("cannot open the netlink socket: {0}")]
    Open(#[source] Errno),
    /// The kernel did not take the datagram: nothing in it was executed.
    #[error("cannot send to the kernel: {0}")]
    Send(#[source] Errno),
    /// The message or transaction does not fit in the socket's send buffer: it was not sent.
    #[error("{bytes} bytes do not fit in the socket's send buffer of {limit} bytes")]
    TooLarge {
        /// Size of what was to be sent, in bytes.
        bytes: usize,
        /// The largest datagram that the socket takes, in bytes.
        limit: usize,
    },
    /// The kernel refused the message.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The table kept changing while it was dumped (`NLM_F_DUMP_INTR`), so that no consistent dump was had.
    #[error("the kernel's table changed during each of the attempts to dump it")]
    Interrupted,
    /// The receive queue overran (`ENOBUFS`): answers or notifications were lost.
    #[error("the socket's receive queue overran and answers were lost")]
    Overrun,
    /// The kernel did not answer in time.
    #[error("the kernel did not answer in time")]
    Deadline,
    /// Receiving failed.
    #[error("cannot receive from the kernel: {0}")]
    Receive(#[source] Errno),
    /// A datagram was larger than the receive buffer.
    #[error("a datagram of {0} bytes from the kernel was truncated")]
    Truncated(usize),
    /// The kernel's answer cannot be decoded.
    #[error("cannot decode the kernel's answer: {0}")]
    Decode(String),
}

impl Error {
    /// Whether the kernel may or may not have executed the message: an answer was lost or could not be read.
    /// Only a look at the kernel's state settles it.
    pub fn outcome_unknown(&self) -> bool {
        match self {
            Self::Overrun | Self::Deadline | Self::Receive(_) | Self::Truncated(_) | Self::Decode(_) => true,
            Self::Open(_) | Self::Send(_) | Self::TooLarge { .. } | Self::Kernel(_) | Self::Interrupted => {
                false
            }
        }
    }

    /// The errno with which the kernel refused the message, if it did.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Kernel(error) => Some(error.errno),
            _ => None,
        }
    }
}

/// The kernel's refusal of a message (`NLMSG_ERROR`, or `NLMSG_DONE` with an error).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelError {
    /// The errno, positive.
    pub errno: Errno,
    /// The kernel's own words (`NLMSGERR_ATTR_MSG` of the extended acknowledgement), where it has any.
    pub message: Option<String>,
}

impl fmt::Display for KernelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.message {
            Some(message) => write!(f, "{message}: {}", self.errno),
            None => self.errno.fmt(f),
        }
    }
}

impl std::error::Error for KernelError {}

/// Why a transaction did not take effect, or why that is not known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TransactionError {
    /// The kernel refused these messages, and so executed none of the transaction. Each is given by its index in
    /// the transaction, in order; there is at least one.
    #[error("the kernel refused {} of the transaction's messages: {}", .0.len(), first_refusal(.0))]
    Refused(Vec<(usize, KernelError)>),
    /// The transaction as a whole failed.
    #[error(transparent)]
    Failed(#[from] Error),
}

fn first_refusal(refusals: &[(usize, KernelError)]) -> String {
    refusals
        .first()
        .map_or_else(String::new, |(index, error)| format!("message {index}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_lost_answers_leave_the_outcome_unknown() {
        assert!(Error::Overrun.outcome_unknown());
        assert!(Error::Deadline.outcome_unknown());
        assert!(!Error::Send(Errno::NOBUFS).outcome_unknown());
        let refused = KernelError {
            errno: Errno::EXIST,
            message: None,
        };
        assert!(!Error::from(refused).outcome_unknown());
    }

    #[test]
    fn the_kernels_own_words_come_first() {
        let error = KernelError {
            errno: Errno::PERM,
            message: Some("not for you".to_owned()),
        };
        assert_eq!(
            error.to_string(),
            "not for you: Operation not permitted (os error 1)"
        );
    }
}
