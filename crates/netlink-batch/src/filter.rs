//! What a socket does not want to hear, said to the kernel: a classic BPF program of four instructions.

use std::{io, mem::size_of, os::fd::AsRawFd};

use crate::{Errno, channel::errno};

/// Where `struct nlmsghdr` has `nlmsg_pid`: the port of whoever made the change that a message tells of.
const PORT: u32 = 12;

/// Has the kernel drop what is done through the socket with this port. What it sends at once is of one sender.
pub(crate) fn ignore(socket: &impl AsRawFd, port: u32) -> Result<(), Errno> {
    let statement = |code: u32, k| libc::sock_filter {
        code: code as u16,
        jt: 0,
        jf: 0,
        k,
    };
    // A program loads in network byte order.
    let port = u32::from_be_bytes(port.to_ne_bytes());
    let mut program = [
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, PORT),
        libc::sock_filter {
            jf: 1,
            ..statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, port)
        },
        statement(libc::BPF_RET | libc::BPF_K, 0),
        statement(libc::BPF_RET | libc::BPF_K, u32::MAX),
    ];
    let program = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: the kernel reads the structure, and the instructions that it points to, before the call returns.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(errno(&io::Error::last_os_error())),
    }
}
