//! Starting and stopping: drivers that are refused, what is divided, a worker that does not answer.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::Mutex;

use super::*;
use crate::entropy::OsEntropy;

fn config(driver: DriverChoice) -> ServerConfig {
    let secret_key = SecretKey::generate(&mut OsEntropy);
    let mut config = ServerConfig::new(secret_key, vec!["127.0.0.1:0".parse().unwrap()]);
    config.driver = driver;
    config
}

/// The ways io_uring is forbidden: errno of ring creation, `kernel.io_uring_disabled`, words of reason and cure.
const REFUSALS: [(i32, &str, &str, &str); 4] = [
    (libc::EPERM, "0", "seccomp profile", "Allow io_uring_setup, io_uring_enter and io_uring_register"),
    (libc::EPERM, "2", "kernel.io_uring_disabled is 2", "sysctl -w kernel.io_uring_disabled=0"),
    (libc::EPERM, "1", "kernel.io_uring_disabled is 1", "CAP_SYS_ADMIN"),
    (libc::ENOSYS, "", "built without it", "CONFIG_IO_URING"),
];

#[test]
fn a_demand_for_io_uring_that_is_forbidden_names_reason_and_cure() {
    for (errno, switch, reason, cure) in REFUSALS {
        let probe = || Err(ring::refusal(&io::Error::from_raw_os_error(errno), switch));
        let error = Server::start_probed(config(DriverChoice::Uring), probe).unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, StartError::Driver(DriverError::Unavailable { .. })), "{text}");
        assert!(text.contains(reason) && text.contains(cure), "{text}");
        assert!(text.contains("--driver poll"), "{text}");
    }
}

#[test]
fn without_a_demand_the_poll_driver_runs_where_io_uring_is_forbidden() {
    for (errno, switch, reason, cure) in REFUSALS {
        let probe = || Err(ring::refusal(&io::Error::from_raw_os_error(errno), switch));
        let warnings = Warnings::default();
        let server = tracing::subscriber::with_default(warnings.clone(), || {
            Server::start_probed(config(DriverChoice::Auto), probe).unwrap()
        });
        assert_eq!(server.driver_name(), "poll");
        server.stop().unwrap();
        let warnings = warnings.0.lock().unwrap();
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(warnings[0].contains(reason) && warnings[0].contains(cure), "{warnings:?}");
    }
}

#[test]
fn there_is_a_bound_of_workers_and_what_is_divided_suffices_for_each() {
    let start = |workers, memory_len| {
        let mut config = config(DriverChoice::Poll);
        (config.workers, config.buffer_memory_len) = (workers, memory_len);
        Server::start(config).map(|_| ()).unwrap_err()
    };
    for workers in [0, limits::WORKERS_MAX + 1] {
        let error = start(workers, 0);
        assert!(matches!(error, StartError::Workers { given, .. } if given == workers), "{error}");
    }
    let error = start(3, 3 * limits::BUFFER_MEMORY_LEN_MIN - 1);
    assert!(matches!(error, StartError::BufferMemory { workers: 3, .. }), "{error}");
}

#[test]
fn shares_add_up_to_the_whole() {
    for (whole, workers) in [(10, 3), (9, 3), (1, 2), (0, 2), (usize::MAX, 7)] {
        let shares: Vec<_> = (0..workers).map(|worker| share(whole, workers, worker)).collect();
        assert_eq!(shares.iter().sum::<usize>(), whole, "{shares:?}");
        assert!(shares.iter().max().unwrap() - shares.iter().min().unwrap() <= 1, "{shares:?}");
    }
}

#[test]
fn a_worker_that_is_stuck_is_named_and_left_behind() {
    let mut config = config(DriverChoice::Poll);
    config.workers = 3;
    let mut server = Server::start(config).unwrap();
    assert_eq!(server.report().unwrap().sessions.len(), 0);
    let (release, released) = crossbeam::channel::bounded(1);
    server.workers.hang(1, released);
    assert_eq!(server.report().unwrap_err(), Stuck(1));
    let nobody = SecretKey::generate(&mut OsEntropy).public_key();
    assert_eq!(server.close_session(nobody), Err(Stuck(1)), "it may be the one that has it");
    assert!(!server.has_ended());
    let error = server.halt(Duration::from_millis(200)).unwrap_err();
    assert!(error.to_string().starts_with("worker 1 did not end within 200ms"), "{error}");
    // The two others have.
    drop(release);
    assert_eq!(server.ended.recv_timeout(Duration::from_secs(20)), Err(RecvTimeoutError::Disconnected));
}

/// Collects warnings of this thread as text.
#[derive(Clone, Default)]
struct Warnings(Arc<Mutex<Vec<String>>>);

impl tracing::Subscriber for Warnings {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() <= tracing::Level::WARN
    }

    fn event(&self, event: &tracing::Event<'_>) {
        let mut text = String::new();
        event.record(&mut |field: &tracing::field::Field, value: &dyn std::fmt::Debug| {
            text.push_str(&format!("{field}={value:?} "));
        });
        self.0.lock().unwrap().push(text);
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}
