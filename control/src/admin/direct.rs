//! What the data plane says for itself, asked on its own socket: with the control plane dead this is all there is.
//! Everything here blocks, with deadlines.

use ringwire_ipc::socket;
use ringwire_proto::identity::PublicKey;

use super::model::{DataPlaneStatus, Limits, Session, Sessions, Settings, Stream, Streams};
use crate::config::SETTINGS;
use crate::state::State;
use crate::supervise::{converse, monotonic_ns};

pub use ringwire_ipc::socket::ClientError as DirectError;

/// How it goes.
///
/// # Errors
/// [`DirectError::Absent`]: there is none.
pub fn dataplane_status(state: &State) -> Result<DataPlaneStatus, DirectError> {
    let (mut client, _) = converse(state)?;
    let status = client.status()?;
    Ok(DataPlaneStatus {
        pid: status.pid,
        build: status.build.clone(),
        state: status.state.clone(),
        public_key: PublicKey::from_bytes(&status.public_key).ok().map(|key| key.to_string()),
        addresses: status.addresses.iter().map(|address| address.text.clone()).collect(),
        driver: status.driver.clone(),
        connections_max: status.connections_max,
        half_open_max: status.half_open_max,
        memory_origin: (!status.memory_origin.is_empty()).then(|| status.memory_origin.clone()),
        workers: status.workers,
        serving_s: seconds(status.serving_ns),
        draining_s: (status.draining_ns > 0).then(|| seconds(status.draining_ns)),
        drain_left_s: (status.draining_ns > 0).then(|| seconds(status.drain_left_ns)),
        sessions: status.sessions,
        half_open: status.half_open,
        fault: (!status.fault.is_empty()).then(|| status.fault.clone()),
        bridges: status.bridges,
        epoch: status.epoch,
        attached_pid: (status.attached > 0).then_some(status.attached),
        orphan_s: (status.attached == 0).then(|| seconds(status.orphan_ns)),
    })
}

/// Which settings are in force; none if it does not say, because it does not serve yet or a worker does not answer.
///
/// # Errors
/// As [`dataplane_status`].
pub fn settings(state: &State) -> Result<Settings, DirectError> {
    let (mut client, _) = converse(state)?;
    let settings = serde_json::from_str(&client.status()?.settings).unwrap_or_default();
    let live = SETTINGS.iter().filter(|setting| setting.live).map(|setting| setting.name.to_owned());
    Ok(Settings { settings, live: live.collect() })
}

/// Its sessions and bridges, and its buffer memory.
///
/// # Errors
/// As [`dataplane_status`].
pub fn dump(state: &State) -> Result<(Sessions, Streams, socket::Memory), DirectError> {
    let (mut client, _) = converse(state)?;
    let dump = client.report()?;
    let now = monotonic_ns();
    let mut sessions: Vec<_> = dump
        .sessions
        .into_iter()
        .map(|session| Session {
            worker: session.worker,
            session: session.session,
            public_key: key_text(&session.peer),
            address: session.address.clone(),
            hybrid: session.hybrid,
            standby: session.stands_by,
            opened_ns: session.opened_ns,
            age_s: seconds(now.saturating_sub(session.opened_ns)),
        })
        .collect();
    sessions.sort_by_key(|session| (session.worker, session.session));
    let streams = dump.bridges.into_iter().map(|bridge| Stream {
        worker: bridge.worker,
        source: key_text(&bridge.source),
        destination: key_text(&bridge.destination),
        forth_bytes: bridge.forth,
        back_bytes: bridge.back,
        forth_queued_bytes: bridge.forth_queued,
        back_queued_bytes: bridge.back_queued,
        forth_limited: None,
        back_limited: None,
        age_s: None,
    });
    let from = "dataplane".to_owned();
    let streams = Streams { from: from.clone(), missing: 0, streams: streams.collect() };
    Ok((Sessions { from, current: true, untracked: 0, sessions }, streams, dump.memory))
}

/// Its bounds.
///
/// # Errors
/// As [`dataplane_status`].
pub fn dataplane_limits(state: &State) -> Result<Limits, DirectError> {
    let (status, memory) = (dataplane_status(state)?, dump(state)?.2);
    Ok(super::limits::list(&status, memory))
}

pub(super) fn seconds(ns: u64) -> f64 {
    // To the millisecond: ages are for people.
    (ns / 1_000_000) as f64 / 1000.0
}

/// A key as people see it, whether it is one or not.
pub(super) fn key_text(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
