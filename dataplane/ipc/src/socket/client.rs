//! The asking side: a method per request.

use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use super::connection::{Connection, ConnectionError};
use super::message::{
    Address, Attach, Bridge, Change, Drain, Empty, Hello, Memory, Refusal, Reply, Request, Session, Start,
    Started, Status, Stop,
};

/// Why a request was not answered as asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens on the socket.
    #[error("no data plane answers at {path}: {error}")]
    Absent {
        /// The socket.
        path: String,
        /// What the kernel said.
        error: std::io::Error,
    },
    /// The socket belongs to another user.
    #[error(
        "the data plane's process {pid} belongs to user {found}, this one to {own}. Run this as the same user, or use another state directory"
    )]
    Owner {
        /// The process that listens.
        pid: i32,
        /// Its user.
        found: u32,
        /// Ours.
        own: u32,
    },
    /// The conversation failed.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    /// The data plane refused.
    #[error("{}. {cure}", reason.trim_end_matches('.'))]
    Refused {
        /// Which kind of refusal.
        refusal: Refusal,
        /// What is wrong.
        reason: String,
        /// What to do about it.
        cure: String,
    },
    /// It answered something else than what was asked.
    #[error("the data plane answered {0} to another request")]
    Unexpected(&'static str),
}

/// What an attach brought.
#[derive(Debug)]
pub struct Attachment {
    /// Its number, which the rings' regions carry.
    pub epoch: u64,
    /// Our end of the bell that every worker rings.
    pub bell: OwnedFd,
    /// Per worker.
    pub channels: Vec<ChannelDescriptors>,
}

/// Descriptors of one worker's channel; [`ControlEnd::open`](crate::channel::ControlEnd::open) checks them.
#[derive(Debug)]
pub struct ChannelDescriptors {
    /// Which worker.
    pub worker: u32,
    /// Ring of commands.
    pub commands: OwnedFd,
    /// Ring of events.
    pub events: OwnedFd,
    /// Page of counters.
    pub counters: OwnedFd,
    /// The worker's bell.
    pub bell: OwnedFd,
}

/// All sessions and bridges, as the data plane itself knows them.
#[derive(Debug, Clone, Default)]
pub struct Dump {
    /// Sessions, in no particular order.
    pub sessions: Vec<Session>,
    /// Bridges, each once.
    pub bridges: Vec<Bridge>,
    /// Buffer memory.
    pub memory: Memory,
}

/// A control plane's conversation with the data plane. After [`attach`](Self::attach) it is the lifeline: keep it.
#[derive(Debug)]
pub struct Client(Connection);

impl Client {
    /// Connects to the socket at `path`, whose listener must run as our user (or as root); each answer may take `timeout`.
    ///
    /// # Errors
    /// [`ClientError::Absent`] or [`ClientError::Owner`].
    pub fn connect(path: &Path, timeout: Duration) -> Result<Self, ClientError> {
        let absent = |error| ClientError::Absent { path: path.display().to_string(), error };
        let stream = UnixStream::connect(path).map_err(absent)?;
        let peer = rustix::net::sockopt::socket_peercred(&stream).map_err(|error| absent(error.into()))?;
        let (found, own) = (peer.uid.as_raw(), rustix::process::geteuid().as_raw());
        if found != own && found != 0 {
            return Err(ClientError::Owner { pid: peer.pid.as_raw_nonzero().get(), found, own });
        }
        Ok(Self(Connection::new(stream, timeout)))
    }

    /// The connection, to watch for its end.
    pub fn connection(&self) -> &Connection {
        &self.0
    }

    /// Changes how long an answer may take.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.0.set_timeout(timeout);
    }

    /// Introduces this side; says who is there. The first request.
    ///
    /// # Errors
    /// As all: the connection's, a refusal, or an answer to something else.
    pub fn hello(&mut self, hello: Hello) -> Result<Hello, ClientError> {
        match self.ask(Request::Hello(hello), &[])? {
            (Reply::Hello(hello), _) => Ok(hello),
            (other, _) => Err(unexpected(&other)),
        }
    }

    /// How it goes.
    ///
    /// # Errors
    /// As all.
    pub fn status(&mut self) -> Result<Status, ClientError> {
        match self.ask(Request::Status(Empty {}), &[])? {
            (Reply::Status(status), _) => Ok(status),
            (other, _) => Err(unexpected(&other)),
        }
    }

    /// Begin to serve, on these listeners as far as they listen and on what `start.listen` names besides.
    ///
    /// # Errors
    /// As all; [`Refusal::StartFailed`] with what the machine or the settings forbid.
    pub fn start(&mut self, start: Start, listeners: &[BorrowedFd<'_>]) -> Result<Started, ClientError> {
        match self.ask(Request::Start(start), listeners)? {
            (Reply::Started(started), _) => Ok(started),
            (other, _) => Err(unexpected(&other)),
        }
    }

    /// Fresh shared memory for a control plane of this layout.
    ///
    /// # Errors
    /// As all; [`Refusal::Layout`] if the data plane's is another.
    pub fn attach(&mut self, layout: u64) -> Result<Attachment, ClientError> {
        let (attached, bell) = match self.ask(Request::Attach(Attach { layout }), &[])? {
            (Reply::Attached(attached), descriptors) => (attached, descriptors.into_iter().next()),
            (other, _) => return Err(unexpected(&other)),
        };
        let bell = bell.ok_or(ClientError::Unexpected("an attach without a bell"))?;
        let mut channels = Vec::new();
        for _ in 0..attached.workers {
            let (reply, descriptors) = self.0.receive_reply()?;
            let Reply::Channel(channel) = reply else { return Err(unexpected(&reply)) };
            let [commands, events, counters, bell] = descriptors
                .try_into()
                .map_err(|_| ClientError::Unexpected("a channel without its four descriptors"))?;
            channels.push(ChannelDescriptors { worker: channel.worker, commands, events, counters, bell });
        }
        Ok(Attachment { epoch: attached.epoch, bell, channels })
    }

    /// Accept nothing new and end when the sessions have ended, at the latest after this time.
    ///
    /// # Errors
    /// As all.
    pub fn drain(&mut self, within: Duration) -> Result<(), ClientError> {
        let within_ms = u64::try_from(within.as_millis()).unwrap_or(u64::MAX);
        self.done(Request::Drain(Drain { within_ms }))
    }

    /// End now.
    ///
    /// # Errors
    /// As all.
    pub fn stop(&mut self) -> Result<(), ClientError> {
        self.done(Request::Stop(Stop {}))
    }

    /// Settings of the running workers, as a JSON object, are to be these from now on.
    ///
    /// # Errors
    /// As all; [`Refusal::Malformed`] for one that does not change while it runs, or has another value than it may.
    pub fn change(&mut self, settings: String) -> Result<(), ClientError> {
        self.done(Request::Change(Change { settings }))
    }

    /// Duplicates of the listeners, with what they are bound to.
    ///
    /// # Errors
    /// As all.
    pub fn listeners(&mut self) -> Result<Vec<(SocketAddr, OwnedFd)>, ClientError> {
        match self.ask(Request::GiveListeners(Empty {}), &[])? {
            (Reply::Listeners(listeners), descriptors) => {
                let addresses = parse(&listeners.addresses)
                    .ok_or(ClientError::Unexpected("listeners with an address that is none"))?;
                Ok(addresses.into_iter().zip(descriptors).collect())
            }
            (other, _) => Err(unexpected(&other)),
        }
    }

    /// Everything the data plane knows of its sessions and bridges.
    ///
    /// # Errors
    /// As all.
    pub fn report(&mut self) -> Result<Dump, ClientError> {
        let mut dump = Dump::default();
        let mut reply = self.ask(Request::Report(Empty {}), &[])?.0;
        loop {
            match reply {
                Reply::Session(session) => dump.sessions.push(session),
                Reply::Bridge(bridge) => dump.bridges.push(bridge),
                Reply::Memory(memory) => {
                    dump.memory = memory;
                    return Ok(dump);
                }
                other => return Err(unexpected(&other)),
            }
            reply = self.0.receive_reply()?.0;
        }
    }

    fn done(&mut self, request: Request) -> Result<(), ClientError> {
        match self.ask(request, &[])? {
            (Reply::Done(_), _) => Ok(()),
            (other, _) => Err(unexpected(&other)),
        }
    }

    fn ask(
        &mut self,
        request: Request,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(Reply, Vec<OwnedFd>), ClientError> {
        self.0.send_request(request, descriptors)?;
        match self.0.receive_reply()? {
            (Reply::Refused(refused), _) => Err(ClientError::Refused {
                refusal: refused.refusal(),
                reason: refused.reason.clone(),
                cure: refused.cure.clone(),
            }),
            answer => Ok(answer),
        }
    }
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Address {
    /// As text.
    pub fn new(address: SocketAddr) -> Self {
        Self { text: address.to_string() }
    }
}

/// The addresses of a message; `None` if one is none.
pub(super) fn parse(addresses: &[Address]) -> Option<Vec<SocketAddr>> {
    addresses.iter().map(|address| address.text.parse().ok()).collect()
}

fn unexpected(reply: &Reply) -> ClientError {
    ClientError::Unexpected(match reply {
        Reply::Refused(_) => "a refusal",
        Reply::Done(_) => "done",
        Reply::Hello(_) => "hello",
        Reply::Status(_) => "a status",
        Reply::Started(_) => "started",
        Reply::Attached(_) => "attached",
        Reply::Channel(_) => "a channel",
        Reply::Listeners(_) => "listeners",
        Reply::Session(_) => "a session",
        Reply::Bridge(_) => "a bridge",
        Reply::Memory(_) => "memory",
    })
}
