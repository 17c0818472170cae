//! The listening sockets of all workers: made, or taken over from a data plane that has ended, and dealt out.
//!
//! In: addresses, sockets that were passed, the number of workers. Out: per worker the sockets it accepts from, one of each
//! address at least, and duplicates to hand on. Used when a server starts.
//!
//! Sockets that were passed outlived whoever listened on them. One that drained has shut its listeners down, and with them every
//! duplicate: those listen no more and never will. They are dropped, one by one, since of several workers' some may live, and
//! what is then missing is bound afresh at the same address.
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
use crate::families::ipv4_instead;
use crate::limits;
use crate::session::HELD_BACK_START;

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
    /// Takes over what was passed and still listens, listens afresh on the addresses that none of that is bound to; makes what is
    /// missing beside it.
    ///
    /// More than one for a worker and address: it accepts from all of them, because closing one would reset the connections that
    /// wait in it.
    pub(super) fn open(
        passed: Vec<Socket>,
        listen_on: &[SocketAddr],
        workers: usize,
    ) -> Result<Self, StartError> {
        Self::open_with(passed, listen_on, workers, listen)
    }

    /// [`open`](Self::open) with another way to listen.
    fn open_with(
        passed: Vec<Socket>,
        listen_on: &[SocketAddr],
        workers: usize,
        listen: impl Fn(SocketAddr, bool) -> Result<(Socket, SocketAddr), StartError>,
    ) -> Result<Self, StartError> {
        let wanted = in_order(by_address(passed)?, listen_on);
        let known: Vec<SocketAddr> = wanted.iter().map(|(address, _)| *address).collect();
        let mut groups = Groups::new();
        for (address, mut sockets) in wanted {
            let mut bound = address;
            if sockets.is_empty() {
                let opened = match listen(address, false) {
                    Ok(opened) => opened,
                    Err(refusal) => {
                        let instead = without_ipv6(address, &refusal).ok_or(refusal)?;
                        tracing::warn!(%address, %instead, "this host has no IPv6: listening on IPv4 alone");
                        if known.contains(&instead) {
                            continue;
                        }
                        listen(instead, false)?
                    }
                };
                sockets.push(opened.0);
                bound = opened.1;
            }
            groups.push((bound, sockets));
        }
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

/// Where to listen instead of an address that was refused, if the host has no IPv6.
fn without_ipv6(address: SocketAddr, refusal: &StartError) -> Option<SocketAddr> {
    let StartError::Listen { error, .. } = refusal else { return None };
    ipv4_instead(address, error)
}

/// An address that is listened on by nobody else as long as the value lasts. Nothing is accepted.
#[derive(Debug)]
pub struct Held(#[expect(dead_code, reason = "held")] Listeners);

/// Listens on an address as a server would.
///
/// # Errors
/// [`StartError::Listen`], as a server would say it.
pub fn hold(address: SocketAddr) -> Result<Held, StartError> {
    Listeners::open(Vec::new(), &[address], 1).map(Held)
}

/// Sockets by what they are bound to.
type Groups = Vec<(SocketAddr, Vec<Socket>)>;

/// Sockets that were passed, by what they are bound to, in the order in which they came; no socket where none listens any more.
fn by_address(passed: Vec<Socket>) -> Result<Groups, StartError> {
    let mut groups = Groups::new();
    for socket in passed {
        let (address, living) = bound_to(&socket).map_err(StartError::Adopted)?;
        if !living {
            tracing::info!(%address, "a listener that was passed was shut down; its place is taken by a fresh one");
        }
        let living = living.then_some(socket);
        match groups.iter_mut().find(|(known, _)| *known == address) {
            Some((_, sockets)) => sockets.extend(living),
            // One that has lost its port with its life says nothing of where to listen.
            None if living.is_none() && address.port() == 0 => {}
            None => groups.push((address, living.into_iter().collect())),
        }
    }
    Ok(groups)
}

/// The addresses in the order of `listen_on`, then what was passed besides. Port 0 is any port, so what was passed of that host
/// will do.
fn in_order(mut passed: Groups, listen_on: &[SocketAddr]) -> Groups {
    let mut groups = Groups::new();
    for address in listen_on {
        let does = |bound: &SocketAddr| {
            let any_port = address.port() == 0 && bound.ip() == address.ip() && !listen_on.contains(bound);
            bound == address || any_port
        };
        let at = passed.iter().position(|(bound, _)| does(bound));
        groups.push(at.map_or_else(|| (*address, Vec::new()), |at| passed.remove(at)));
    }
    groups.extend(passed);
    groups
}

/// What a socket that was passed is bound to, and whether it listens: not once it was shut down, by any process that had it.
fn bound_to(socket: &Socket) -> io::Result<(SocketAddr, bool)> {
    let living = socket.is_listener()?;
    if !living && (socket.r#type()? != Type::STREAM || socket.peer_addr().is_ok()) {
        return Err(io::Error::other("it is of another kind"));
    }
    let address =
        socket.local_addr()?.as_socket().ok_or_else(|| io::Error::other("it is no internet socket"))?;
    Ok((address, living))
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
        socket.set_tcp_notsent_lowat(HELD_BACK_START)?;
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
        _ if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
            "This host has no IPv6, or forbids it to this process: choose an IPv4 address."
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

    fn is_in_use(outcome: &Result<Listeners, StartError>) -> bool {
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
            let bound: Vec<_> = sockets.iter().map(|socket| bound_to(socket).unwrap().0).collect();
            assert_eq!(bound, listeners.addresses, "one port for all workers");
        }
    }

    #[test]
    fn an_address_that_somebody_else_listens_on_is_refused_whatever_they_allow() {
        for (theirs, ours) in [(1, 1), (1, 3), (3, 1), (3, 3)] {
            let first = Listeners::open(Vec::new(), &[local()], theirs).unwrap();
            let second = Listeners::open(Vec::new(), &first.addresses, ours);
            assert!(is_in_use(&second), "{ours} beside {theirs}");
        }
        // And one of one worker keeps everybody out, also who would share.
        let alone = Listeners::open(Vec::new(), &[local()], 1).unwrap();
        assert!(listen(alone.addresses[0], true).is_err());
    }

    #[test]
    fn passed_listeners_are_dealt_out_and_missing_ones_made_beside_them() {
        let one = Listeners::open(Vec::new(), &[local()], 1).unwrap();
        let address = one.addresses[0];
        let three = Listeners::open(passed(one), &[], 3).unwrap();
        assert_eq!((counts(&three), three.addresses.as_slice()), (vec![1, 1, 1], [address].as_slice()));
        let two = Listeners::open(passed(three), &[], 2).unwrap();
        assert_eq!((counts(&two), two.addresses.as_slice()), (vec![2, 1], [address].as_slice()));
        let one = Listeners::open(passed(two), &[], 1).unwrap();
        assert_eq!((counts(&one), one.duplicates.len()), (vec![3], 3));
    }

    /// What of the sockets of an ended data plane is passed on.
    fn passed(listeners: Listeners) -> Vec<Socket> {
        drop(listeners.dealt);
        listeners.duplicates.into_iter().map(|(_, socket)| socket).collect()
    }

    /// Whether every one of the sockets has somebody's connection.
    fn accept(listeners: &Listeners) -> bool {
        listeners.dealt.iter().flatten().all(|socket| {
            let address = bound_to(socket).unwrap().0;
            // The kernel chooses which of one address gets it.
            (0..1000).any(|_| {
                let connected = std::net::TcpStream::connect(address).is_ok();
                socket.set_nonblocking(true).unwrap();
                connected && socket.accept().is_ok()
            })
        })
    }

    /// Listeners of two addresses for `before` workers, those of the bits `dead` shut down, passed on to `after` workers. False: a
    /// port that was free for a moment has been taken by another program.
    fn hand_on(before: usize, dead: u32, after: usize) -> bool {
        let what = format!("{before} workers, dead {dead:b}, {after} workers");
        let first = Listeners::open(Vec::new(), &[local(), "[::1]:0".parse().unwrap()], before).unwrap();
        let addresses = first.addresses.clone();
        let passed = passed(first);
        for (at, socket) in passed.iter().enumerate() {
            if dead & 1 << at != 0 {
                socket.shutdown(std::net::Shutdown::Both).unwrap();
            }
        }
        let living = passed.len() - dead.count_ones() as usize;
        // Whoever passed them keeps them until there is a successor.
        let _kept: Vec<_> = passed.iter().map(|socket| socket.try_clone().unwrap()).collect();
        let second = match Listeners::open(passed, &addresses, after) {
            Err(StartError::Listen { error, .. }) if error.kind() == io::ErrorKind::AddrInUse => {
                return false;
            }
            outcome => outcome.unwrap_or_else(|error| panic!("{what}: {error}")),
        };
        assert_eq!(second.addresses, addresses, "{what}");
        assert!(second.dealt.iter().all(|sockets| sockets.len() >= 2), "{what}");
        assert!(second.duplicates.len() >= living, "{what}: what lives is kept");
        let listens = |socket: &Socket| socket.is_listener().unwrap();
        assert!(second.dealt.iter().flatten().all(listens), "{what}");
        assert!(after > 1 || before > 1 || accept(&second), "{what}");
        true
    }

    #[test]
    fn what_was_shut_down_is_bound_afresh_at_the_same_address_whatever_of_it_lives() {
        for before in 1..=3_usize {
            for dead in 0..1_u32 << (2 * before) {
                for after in 1..=3 {
                    assert!((0..20).any(|_| hand_on(before, dead, after)), "no port stays free");
                }
            }
        }
    }

    #[test]
    fn what_is_no_listener_is_refused_and_a_dead_one_alone_tells_the_address() {
        let first = Listeners::open(Vec::new(), &[local()], 1).unwrap();
        let address = first.addresses[0];
        let connection = Socket::from(std::net::TcpStream::connect(address).unwrap());
        let datagrams = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
        for other in [connection, datagrams] {
            let refused = Listeners::open(vec![other], &[address], 1);
            assert!(matches!(refused, Err(StartError::Adopted(_))), "{refused:?}");
        }
        let passed = passed(first);
        passed[0].shutdown(std::net::Shutdown::Both).unwrap();
        let again = Listeners::open(passed, &[], 1);
        // Unless another program has taken the port meanwhile.
        if !is_in_use(&again) {
            let again = again.unwrap();
            assert_eq!(again.addresses, [address]);
            assert!(accept(&again));
        }
    }

    #[test]
    fn any_port_is_a_port_that_was_passed() {
        let first = Listeners::open(Vec::new(), &[local()], 2).unwrap();
        let addresses = first.addresses.clone();
        let second = Listeners::open(passed(first), &[local()], 2).unwrap();
        assert_eq!(second.addresses, addresses);
        let more = [addresses[0], local()];
        let third = Listeners::open(passed(second), &more, 1).unwrap();
        assert_eq!((third.addresses.len(), third.addresses[0]), (2, addresses[0]), "and one more");
    }

    #[test]
    fn a_host_without_ipv6_is_served_on_every_ipv4_address_once() {
        let without_ipv6 = |address: SocketAddr, beside: bool| match address {
            SocketAddr::V4(_) => listen(address, beside),
            SocketAddr::V6(_) => Err(refusal(address, io::Error::from_raw_os_error(libc::EAFNOSUPPORT))),
        };
        let [v4, v6, one]: [SocketAddr; 3] =
            ["0.0.0.0:0", "[::]:0", "[::1]:0"].map(|text| text.parse().unwrap());
        for listen_on in [&[v4, v6][..], &[v6, v4], &[v6]] {
            let listeners = Listeners::open_with(Vec::new(), listen_on, 2, without_ipv6).unwrap();
            assert_eq!((listeners.addresses.len(), counts(&listeners)), (1, vec![1, 1]));
            assert!(listeners.addresses[0].is_ipv4());
        }
        // Who names one address means that.
        assert!(matches!(
            Listeners::open_with(Vec::new(), &[v4, one], 1, without_ipv6),
            Err(StartError::Listen { address, .. }) if address == one
        ));
    }

    #[test]
    fn more_listeners_than_can_be_handed_on_are_refused() {
        let addresses = vec![local(); 4];
        let error = Listeners::open(Vec::new(), &addresses, 64).unwrap_err();
        assert!(matches!(error, StartError::Listeners { given: 256, .. }), "{error}");
    }
}
