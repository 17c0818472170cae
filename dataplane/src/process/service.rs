//! One conversation on the data plane's socket: requests in, replies out.

use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use ringwire_ipc::LAYOUT_HASH;
use ringwire_ipc::socket::{
    Address, Attached, Bridge, Channel, Connection, ConnectionError, Empty, Hello, Listeners, Memory,
    PROTOCOL, Refusal, Refused, Reply, Request, Session, Started, Status,
};

use super::plane::{Draining, Plane, Serving, State, not_started, refused};
use super::{configuration, own_pid, pid_number};
use crate::mail::Report;
use crate::server::Workers;

/// How long a conversation may be silent before it is closed; one that attached may be silent for ever.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// Whether the process at the other end may speak with us: it runs as our user, or as root.
pub(super) fn check_peer(stream: &UnixStream) -> Result<(), String> {
    let peer = rustix::net::sockopt::socket_peercred(stream).map_err(|error| error.to_string())?;
    let (uid, own) = (peer.uid, rustix::process::geteuid());
    if may_speak(uid, own) {
        return Ok(());
    }
    Err(format!("process {} runs as user {}, not {}", pid_number(peer.pid), uid.as_raw(), own.as_raw()))
}

fn may_speak(uid: rustix::process::Uid, own: rustix::process::Uid) -> bool {
    uid == own || uid.is_root()
}

/// Why a conversation ended, other than by its other side.
enum End {
    Connection(ConnectionError),
    /// An order was given after which there is nothing to say.
    Stopped,
}

impl From<ConnectionError> for End {
    fn from(error: ConnectionError) -> Self {
        Self::Connection(error)
    }
}

/// Answers until the other side leaves or breaks the rules.
pub(super) fn converse(connection: Connection, plane: &Plane) {
    let peer =
        rustix::net::sockopt::socket_peercred(connection.stream()).map_or(0, |peer| pid_number(peer.pid));
    let mut conversation = Conversation { connection, plane, peer, introduced: false, epoch: None };
    let end = conversation.run();
    let epoch = conversation.epoch;
    drop(conversation);
    if let Some(epoch) = epoch {
        plane.detach(epoch);
    }
    if let End::Connection(error) = end {
        match error {
            ConnectionError::Closed => {}
            error => tracing::warn!(%error, peer, "conversation with the data plane ended"),
        }
    }
}

struct Conversation<'a> {
    connection: Connection,
    plane: &'a Plane,
    peer: u32,
    /// HELLO was said.
    introduced: bool,
    /// The attach whose lifeline this is.
    epoch: Option<u64>,
}

impl Conversation<'_> {
    fn run(&mut self) -> End {
        loop {
            let (request, descriptors) = match self.next() {
                Ok(next) => next,
                Err(End::Connection(error @ (ConnectionError::Unknown | ConnectionError::Malformed(_)))) => {
                    let refusal =
                        refused(Refusal::Unknown, error.to_string(), "Use the same build for both planes.");
                    match self.connection.send_reply(Reply::Refused(refusal), &[]) {
                        Ok(()) => continue,
                        Err(error) => return error.into(),
                    }
                }
                Err(end) => return end,
            };
            match self.answer(request, descriptors) {
                Ok(()) => {}
                Err(end) => return end,
            }
        }
    }

    /// Waits for the next request: as long as it takes if this is a lifeline.
    fn next(&mut self) -> Result<(Request, Vec<OwnedFd>), End> {
        self.connection.set_timeout(if self.epoch.is_some() { Duration::ZERO } else { SILENCE_MAX });
        let request = self.connection.receive_request();
        self.connection.set_timeout(super::MESSAGE_TIMEOUT);
        Ok(request?)
    }

    fn answer(&mut self, request: Request, descriptors: Vec<OwnedFd>) -> Result<(), End> {
        if !self.introduced && !matches!(request, Request::Hello(_)) {
            let reason = "the first request must be HELLO".to_owned();
            let refusal = refused(Refusal::Unknown, reason, "Use the same build for both planes.");
            return Ok(self.connection.send_reply(Reply::Refused(refusal), &[])?);
        }
        let answer = match request {
            Request::Hello(hello) => Ok(self.hello(&hello)),
            Request::Status(_) => Ok(Reply::Status(self.status())),
            Request::Start(start) => {
                self.plane.state().start(&start, descriptors).map(|serving| Reply::Started(started(serving)))
            }
            Request::Attach(attach) => return self.attach(attach.layout),
            Request::Drain(drain) => {
                if self.plane.drain(Duration::from_millis(drain.within_ms)) {
                    Ok(Reply::Done(Empty {}))
                } else {
                    Err(not_started())
                }
            }
            Request::Stop(_) => {
                self.connection.send_reply(Reply::Done(Empty {}), &[])?;
                self.plane.stop();
                return Err(End::Stopped);
            }
            Request::Change(change) => self.change(&change.settings),
            Request::GiveListeners(_) => return self.give_listeners(),
            Request::Report(_) => return self.report(),
        };
        Ok(self.connection.send_reply(answer.unwrap_or_else(Reply::Refused), &[])?)
    }

    fn hello(&mut self, hello: &Hello) -> Reply {
        tracing::debug!(peer = self.peer, build = %hello.build, protocol = hello.protocol, "hello");
        self.introduced = true;
        let state = self.plane.state();
        let serving = state.serving.as_ref();
        Reply::Hello(Hello {
            protocol: PROTOCOL,
            build: build(),
            layout: LAYOUT_HASH,
            public_key: public_key(serving),
            configuration: serving.map(|serving| serving.configuration.clone()).unwrap_or_default(),
            pid: own_pid(),
        })
    }

    fn attach(&mut self, layout: u64) -> Result<(), End> {
        if layout != LAYOUT_HASH {
            let reason = format!(
                "the control plane's shared memory has layout {layout:016x}, this data plane's {LAYOUT_HASH:016x} (build {})",
                build()
            );
            let cure = "It goes on forwarding. Run the control plane of that build, or end it with `ringwire stop` and start anew";
            return self.refuse(refused(Refusal::Layout, reason, cure));
        }
        let attached = self.plane.state().attach(self.peer);
        let (epoch, bell, workers) = match attached {
            Ok(attached) => attached,
            Err(refusal) => return self.refuse(refusal),
        };
        self.epoch = Some(epoch);
        let attached = Attached { epoch, workers: workers.len() as u32 };
        self.connection.send_reply(Reply::Attached(attached), &[bell.as_fd()])?;
        for (worker, given) in workers.iter().enumerate() {
            let descriptors = [
                given.rings.commands.as_fd(),
                given.rings.events.as_fd(),
                given.counters.as_fd(),
                given.bell.as_fd(),
            ];
            self.connection.send_reply(Reply::Channel(Channel { worker: worker as u32 }), &descriptors)?;
        }
        Ok(())
    }

    fn change(&self, settings: &str) -> Result<Reply, Refused> {
        let Some(workers) = self.workers() else { return Err(not_started()) };
        let changes = configuration::changes(settings)
            .map_err(|error| refused(Refusal::Malformed, error.to_string(), "Nothing was changed."))?;
        workers.change(&changes).map_err(|stuck| {
            refused(
                Refusal::Stuck,
                stuck.to_string(),
                "The other workers have changed. Look at the data plane's log.",
            )
        })?;
        Ok(Reply::Done(Empty {}))
    }

    fn give_listeners(&mut self) -> Result<(), End> {
        let duplicates = {
            let state = self.plane.state();
            state.serving.as_ref().map(|serving| {
                let listeners = serving.server.listeners().iter();
                let addresses = listeners.clone().map(|(address, _)| Address::new(*address)).collect();
                let duplicates = listeners.map(|(_, listener)| listener.try_clone());
                duplicates.collect::<std::io::Result<Vec<_>>>().map(|listeners| (addresses, listeners))
            })
        };
        match duplicates {
            None => self.refuse(not_started()),
            Some(Err(error)) => {
                let reason = format!("the listeners cannot be duplicated: {error}");
                self.refuse(refused(Refusal::Other, reason, "Raise the limit of open files (`ulimit -n`)."))
            }
            Some(Ok((addresses, listeners))) => {
                let descriptors: Vec<_> = listeners.iter().map(std::os::fd::AsFd::as_fd).collect();
                Ok(self.connection.send_reply(Reply::Listeners(Listeners { addresses }), &descriptors)?)
            }
        }
    }

    fn report(&mut self) -> Result<(), End> {
        let Some(workers) = self.workers() else { return self.refuse(not_started()) };
        let reports = match workers.reports() {
            Ok(reports) => reports,
            Err(stuck) => {
                let refusal = refused(Refusal::Stuck, stuck.to_string(), "Look at the data plane's log.");
                return self.refuse(refusal);
            }
        };
        for (worker, report) in (0..).zip(&reports) {
            for session in &report.sessions {
                let reply = Session {
                    worker,
                    session: session.session,
                    peer: session.peer.as_bytes().to_vec(),
                    address: session.address.to_string(),
                    hybrid: session.hybrid,
                    stands_by: session.stands_by,
                    streams: session.streams as u32,
                    opened_ns: session.opened_at,
                };
                self.connection.send_reply(Reply::Session(reply), &[])?;
            }
            for bridge in &report.bridges {
                let reply = Bridge {
                    worker,
                    source: bridge.source.as_bytes().to_vec(),
                    destination: bridge.destination.as_bytes().to_vec(),
                    forth: bridge.forth.bytes,
                    back: bridge.back.bytes,
                    forth_queued: bridge.forth.queued as u64,
                    back_queued: bridge.back.queued as u64,
                };
                self.connection.send_reply(Reply::Bridge(reply), &[])?;
            }
        }
        Ok(self.connection.send_reply(Reply::Memory(memory(&Report::sum(reports))), &[])?)
    }

    /// The workers, to ask without holding up who else wants to know something of the plane.
    fn workers(&self) -> Option<Workers> {
        self.plane.state().serving.as_ref().map(|serving| serving.server.workers().clone())
    }

    fn status(&self) -> Status {
        let mut status = status(&self.plane.state());
        let Some(workers) = self.workers() else { return status };
        match workers.reports() {
            Ok(reports) => {
                let report = Report::sum(reports);
                status.sessions = report.sessions.len() as u64;
                status.half_open = report.half_open as u64;
                status.bridges = report.bridges.len() as u64;
                status.settings = settings(&self.plane.state(), &report);
            }
            // While it ends there is nothing to say of the workers, and nothing wrong with it.
            Err(_) if self.plane.has_ended() || self.plane.is_stopped() => {}
            Err(stuck) => status.fault = stuck.to_string(),
        }
        status
    }

    fn refuse(&mut self, refusal: Refused) -> Result<(), End> {
        Ok(self.connection.send_reply(Reply::Refused(refusal), &[])?)
    }
}

fn status(state: &State) -> Status {
    let serving = state.serving.as_ref();
    let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    let elapsed_ns = |since: Instant| nanos(since.elapsed());
    let draining = serving.and_then(|serving| serving.draining);
    let left = |draining: Draining| draining.until.saturating_duration_since(Instant::now());
    Status {
        pid: own_pid(),
        state: match serving {
            _ if state.is_stopped() => "ending",
            None => "waiting",
            Some(serving) if serving.draining.is_some() => "draining",
            Some(_) => "serving",
        }
        .into(),
        serving_ns: serving.map_or(0, |serving| elapsed_ns(serving.since)),
        draining_ns: draining.map_or(0, |draining| elapsed_ns(draining.since)),
        drain_left_ns: draining.map_or(0, |draining| nanos(left(draining))),
        epoch: state.epoch,
        attached: state.attached.map_or(0, |attached| attached.pid),
        orphan_ns: state.alone_since.map_or(0, elapsed_ns),
        addresses: serving.map(|serving| started(serving).addresses).unwrap_or_default(),
        driver: serving.map(|serving| serving.server.driver_name().into()).unwrap_or_default(),
        workers: serving.map_or(0, |serving| serving.server.workers().count() as u32),
        public_key: public_key(serving),
        build: build(),
        connections_max: serving.map_or(0, |serving| serving.server.connections_max() as u64),
        half_open_max: serving.map_or(0, |serving| serving.server.half_open_max() as u64),
        memory_origin: serving.map(|serving| serving.server.memory_origin().into()).unwrap_or_default(),
        ..Status::default()
    }
}

/// What is in force of all settings, as JSON.
fn settings(state: &State, report: &Report) -> String {
    let Some(serving) = &state.serving else { return String::new() };
    let mut settings = serving.settings.in_force(report);
    let addresses = serving.server.addresses().iter().map(ToString::to_string);
    settings.insert("listen".into(), addresses.collect::<Vec<_>>().into());
    settings.insert("driver".into(), serving.server.driver_name().into());
    serde_json::Value::Object(settings).to_string()
}

fn started(serving: &Serving) -> Started {
    Started {
        addresses: serving.server.addresses().iter().copied().map(Address::new).collect(),
        driver: serving.server.driver_name().into(),
        workers: serving.server.workers().count() as u32,
    }
}

fn public_key(serving: Option<&Serving>) -> Vec<u8> {
    serving.map(|serving| serving.server.public_key().as_bytes().to_vec()).unwrap_or_default()
}

fn memory(report: &Report) -> Memory {
    Memory {
        held: (report.held_len + report.streams_len) as u64,
        promised: report.extra_len as u64,
        budget: report.budget_len as u64,
    }
}

fn build() -> String {
    env!("CARGO_PKG_VERSION").into()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::thread::JoinHandle;

    use ringwire_ipc::socket::Start;
    use ringwire_proto::identity::SecretKey;
    use rustix::process::Uid;

    use super::*;
    use crate::entropy::OsEntropy;

    /// A plane whose server has three workers, and a conversation with it on a thread of its own.
    fn conversing(plane: &Arc<Plane>) -> (Connection, JoinHandle<()>) {
        let start = Start {
            secret_key: SecretKey::generate(&mut OsEntropy).expose_bytes().to_vec(),
            settings: r#"{"driver":"poll","workers":3}"#.into(),
            configuration: Vec::new(),
            listen: vec![Address { text: "127.0.0.1:0".into() }],
        };
        assert!(plane.state().start(&start, Vec::new()).is_ok());
        let (ours, theirs) = UnixStream::pair().unwrap();
        let of_thread = Arc::clone(plane);
        let body = move || converse(Connection::new(theirs, LIMIT), &of_thread);
        let thread = std::thread::spawn(body);
        let mut client = Connection::new(ours, LIMIT);
        let hello = Hello { protocol: PROTOCOL, ..Hello::default() };
        client.send_request(Request::Hello(hello), &[]).unwrap();
        assert!(matches!(client.receive_reply(), Ok((Reply::Hello(_), _))));
        (client, thread)
    }

    const LIMIT: Duration = Duration::from_secs(60);

    #[test]
    fn a_worker_that_is_stuck_is_named_and_holds_up_only_who_asks_for_it() {
        let plane = Arc::new(Plane::new());
        let (mut client, thread) = conversing(&plane);
        let (release, released) = crossbeam::channel::bounded(1);
        plane.state().serving.as_ref().unwrap().server.workers().hang(2, released);
        client.send_request(Request::Status(Empty {}), &[]).unwrap();
        // The answer takes two seconds; what else wants to know something of the plane, such as whether to end, does not wait.
        let started = Instant::now();
        while started.elapsed() < Duration::from_millis(300) {
            let asked = Instant::now();
            assert!(!plane.is_stopped());
            assert!(
                asked.elapsed() < Duration::from_secs(1),
                "the plane is held while a worker is waited for"
            );
        }
        let Ok((Reply::Status(status), _)) = client.receive_reply() else { panic!("a status") };
        assert_eq!((status.state.as_str(), status.workers), ("serving", 3));
        assert!(status.fault.starts_with("worker 2 does not answer"), "{}", status.fault);
        client.send_request(Request::Report(Empty {}), &[]).unwrap();
        let Ok((Reply::Refused(refused), _)) = client.receive_reply() else { panic!("a refusal") };
        assert!(refused.refusal() == Refusal::Stuck && refused.reason.starts_with("worker 2"), "{refused:?}");
        drop((release, client));
        thread.join().unwrap();
        plane.end().unwrap();
    }

    #[test]
    fn the_own_user_and_root_may_speak_and_nobody_else() {
        let (own, other) = (Uid::from_raw(1000), Uid::from_raw(1001));
        assert!(may_speak(own, own) && may_speak(Uid::ROOT, own));
        assert!(!may_speak(other, own) && !may_speak(other, Uid::ROOT));
        let (ours, _theirs) = UnixStream::pair().unwrap();
        assert_eq!(check_peer(&ours), Ok(()), "the kernel says who is at the other end");
    }
}
