//! The listening sockets of all workers: made, or taken over from a data plane that has ended, and dealt out.
//!
//! In: addresses, sockets that were passed, the number of workers. Out: per worker the sockets it accepts from, one of each
//! address at least, and duplicates to hand on. Used when a server starts.
//!
//! Several listeners of one address share it by `SO_REUSEPORT`: the kernel spreads connections over them. The option would
//! also let an unrelated program of the same user share the address by mistake (a second server with another key, say), so
//! the first listener of an address is bound and listening *without* it, which the kernel refuses while anybody else
//! listens there; the option is set afterwards, and only when others are to follow. That is possible on a socket that was
//! passed, too, so a server of one worker never has it.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};

use super::StartError;
use crate::limits;

/// See the module's head.
#[derive(Debug)]
pub(super) struct Listeners {
    /// What it listens on, ports resolved, each once.
    pub(super) addresses: Vec<SocketAddr>,
    /// What each worker accepts from.
    pub(super) dealt: Vec<Vec<Socket>>,
    /// Duplicates of all, with what each is bound to.
    pub(super) duplicates: Vec<(SocketAddr, Socket)>,
}

impl Listeners {
    /// Takes over what was passed, or listens on the addresses; makes what is missing beside it.
    ///
    /// More than one for a worker and address: it accepts from all of them, because closing one would reset the connections that
    /// wait in it.
    pub(super) fn open(
        passed: Vec<Socket>,
        listen_on: &[SocketAddr],
        workers: usize,
    ) -> Result<Self, StartError> {
        let mut groups = if passed.is_empty() {
            let open = |&address| listen(address, false).map(|(socket, bound)| (bound, vec![socket]));
            listen_on.iter().map(open).collect::<Result<Vec<_>, _>>()?
        } else {
            by_address(passed)?
        };
        let given = groups.iter().map(|(_, sockets)| sockets.len().max(workers)).sum();
        if given > limits::LISTENERS_MAX {
            return Err(StartError::Listeners { given, most: limits::LISTENERS_MAX });
        }
        for (address, sockets) in &mut groups {
            if sockets.len() < workers {
                let share = |socket: &Socket| socket.set_reuse_port(true);
                sockets.iter().try_for_each(share).map_err(|error| refusal(*address, error))?;
            }
            while sockets.len() < workers {
                sockets.push(listen(*address, true)?.0);
            }
        }
        Self::deal(groups, workers)
    }

    fn deal(groups: Vec<(SocketAddr, Vec<Socket>)>, workers: usize) -> Result<Self, StartError> {
        let addresses = groups.iter().map(|(address, _)| *address).collect();
        let mut dealt: Vec<Vec<Socket>> = std::iter::repeat_with(Vec::new).take(workers).collect();
        let mut duplicates = Vec::new();
        for (address, sockets) in groups {
            for (at, socket) in sockets.into_iter().enumerate() {
                duplicates.push((address, socket.try_clone().map_err(StartError::Duplicate)?));
                dealt[at % workers].push(socket);
            }
        }
        Ok(Self { addresses, dealt, duplicates })
    }
}

/// Sockets that were passed, by what they are bound to, in the order in which they came.
fn by_address(passed: Vec<Socket>) -> Result<Vec<(SocketAddr, Vec<Socket>)>, StartError> {
    let mut groups: Vec<(SocketAddr, Vec<Socket>)> = Vec::new();
    for socket in passed {
        let address = bound_to(&socket).map_err(StartError::Adopted)?;
        match groups.iter_mut().find(|(known, _)| *known == address) {
            Some((_, sockets)) => sockets.push(socket),
            None => groups.push((address, vec![socket])),
        }
    }
    Ok(groups)
}

fn bound_to(socket: &Socket) -> io::Result<SocketAddr> {
    if !socket.is_listener()? {
        return Err(io::Error::other("it does not listen"));
    }
    socket.local_addr()?.as_socket().ok_or_else(|| io::Error::other("it is no internet socket"))
}

/// A listening socket whose connections inherit what a session wants (Linux copies these options on accept, which saves
/// five calls per connection), and what it is bound to. `beside` others of ours, or where nobody listens yet.
fn listen(address: SocketAddr, beside: bool) -> Result<(Socket, SocketAddr), StartError> {
    let bind = || -> io::Result<(Socket, SocketAddr)> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM.cloexec(), Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(beside)?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.set_tcp_nodelay(true)?;
        socket.set_tcp_notsent_lowat(limits::NOTSENT_LOWAT_LEN)?;
        socket.set_tcp_user_timeout(Some(Duration::from_millis(u64::from(limits::USER_TIMEOUT_MS))))?;
        socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(Duration::from_secs(60)))?;
        socket.bind(&address.into())?;
        socket.listen(limits::LISTEN_BACKLOG)?;
        let bound = socket.local_addr()?.as_socket().unwrap_or(address);
        Ok((socket, bound))
    };
    bind().map_err(|error| refusal(address, error))
}

fn refusal(address: SocketAddr, error: io::Error) -> StartError {
    let cure = match error.kind() {
        io::ErrorKind::AddrInUse => {
            "Another program has it: stop that one, or listen elsewhere with --listen."
        }
        io::ErrorKind::AddrNotAvailable => {
            "No interface of this machine has this address: choose one that `ip address` shows."
        }
        io::ErrorKind::PermissionDenied => {
            "Ports below 1024 need CAP_NET_BIND_SERVICE: choose a higher port."
        }
        _ => "Choose another address with --listen.",
    };
    StartError::Listen { address, error, cure }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn local() -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 0))
    }

    fn is_in_use(outcome: Result<Listeners, StartError>) -> bool {
        matches!(outcome, Err(StartError::Listen { error, .. }) if error.kind() == io::ErrorKind::AddrInUse)
    }

    fn counts(listeners: &Listeners) -> Vec<usize> {
        listeners.dealt.iter().map(Vec::len).collect()
    }

    #[test]
    fn each_worker_has_a_listener_of_each_address() {
        let listeners = Listeners::open(Vec::new(), &[local(), "[::1]:0".parse().unwrap()], 3).unwrap();
        assert_eq!(counts(&listeners), [2, 2, 2]);
        assert_eq!((listeners.addresses.len(), listeners.duplicates.len()), (2, 6));
        for sockets in &listeners.dealt {
            let bound: Vec<_> = sockets.iter().map(|socket| bound_to(socket).unwrap()).collect();
            assert_eq!(bound, listeners.addresses, "one port for all workers");
        }
    }

    #[test]
    fn an_address_that_somebody_else_listens_on_is_refused_whatever_they_allow() {
        for (theirs, ours) in [(1, 1), (1, 3), (3, 1), (3, 3)] {
            let first = Listeners::open(Vec::new(), &[local()], theirs).unwrap();
            let second = Listeners::open(Vec::new(), &first.addresses, ours);
            assert!(is_in_use(second), "{ours} beside {theirs}");
        }
        // And one of one worker keeps everybody out, also who would share.
        let alone = Listeners::open(Vec::new(), &[local()], 1).unwrap();
        assert!(listen(alone.addresses[0], true).is_err());
    }

    #[test]
    fn passed_listeners_are_dealt_out_and_missing_ones_made_beside_them() {
        let one = Listeners::open(Vec::new(), &[local()], 1).unwrap();
        let address = one.addresses[0];
        let pass = |listeners: Listeners| {
            drop(listeners.dealt);
            listeners.duplicates.into_iter().map(|(_, socket)| socket).collect::<Vec<_>>()
        };
        let three = Listeners::open(pass(one), &[], 3).unwrap();
        assert_eq!((counts(&three), three.addresses.as_slice()), (vec![1, 1, 1], [address].as_slice()));
        let two = Listeners::open(pass(three), &[], 2).unwrap();
        assert_eq!((counts(&two), two.addresses.as_slice()), (vec![2, 1], [address].as_slice()));
        let one = Listeners::open(pass(two), &[], 1).unwrap();
        assert_eq!((counts(&one), one.duplicates.len()), (vec![3], 3));
    }

    #[test]
    fn more_listeners_than_can_be_handed_on_are_refused() {
        let addresses = vec![local(); 4];
        let error = Listeners::open(Vec::new(), &addresses, 64).unwrap_err();
        assert!(matches!(error, StartError::Listeners { given: 256, .. }), "{error}");
    }
}
