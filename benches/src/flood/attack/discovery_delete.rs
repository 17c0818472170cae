//! What a GET shows, sent back as a DELETE, and servers that are nowhere.

use super::{Field, IDLE, Reins, Row, USUAL};
use crate::flood::discovery::{Door, is_made_up, server_entry};
use crate::flood::server::Plane;
use crate::flood::targets::{SETTLE_SHORT, Target};
use crate::flood::wire::fresh_key;
use anyhow::Result;
use ringwire_proto::entry::Entry;
use ringwire_proto::identity::PublicKey;
use std::time::{Duration, Instant};

pub(super) const ROW: Row = Row {
    name: "discovery-delete",
    about: "a stranger deletes the server's and a client's entry with what GET shows, and posts servers that are nowhere",
    attackers: &[1],
    attackers_quick: 1,
    seconds: 6.0,
    server: USUAL,
    server_quick: USUAL,
    plane: Plane::Control,
    watches_discovery: true,
    targets: &[
        Target::EntriesThere,
        Target::PostsOk,
        // An eighth of what a discovery lists.
        Target::AtMost("made_up_servers_listed", 512.0),
        Target::AtMost("made_up_servers_official", 0.0),
    ],
    settle: SETTLE_SHORT,
    run,
};

/// Servers to make up: as many as there is room for.
const SERVERS: usize = 4096;
const SERVERS_QUICK: usize = 40;
/// Time between two attempts to delete.
const INTERVAL: Duration = Duration::from_millis(50);

fn run(field: &Field, reins: &Reins) -> Result<()> {
    let door = field.door()?;
    let (own, client): (PublicKey, PublicKey) = (field.key.parse()?, field.registered.parse()?);
    reins.stand();
    // What is not answered counts as refused.
    let mut next = Instant::now();
    let servers = field.scaled(SERVERS, SERVERS_QUICK);
    let mut made = 0;
    while !reins.ended() {
        if Instant::now() >= next {
            next = Instant::now() + INTERVAL;
            for key in [own, client] {
                reins.did("deletes_accepted", u64::from(delete(&door, &key).unwrap_or(false)));
                reins.did("deletes", 1);
            }
        }
        if made < servers {
            let stored = door.post(&server_entry(&fresh_key(), 1)?).unwrap_or(false);
            made += 1;
            reins.did("made_up_servers", 1);
            reins.did("made_up_servers_accepted", u64::from(stored));
        } else {
            std::thread::sleep(IDLE);
        }
    }
    let listed = door.servers()?;
    let made_up = |entry: &&Entry| is_made_up(entry);
    let is_official =
        |entry: &&Entry| entry.server.as_ref().is_some_and(|server| server.server_type == "official");
    reins.did("made_up_servers_listed", listed.iter().filter(made_up).count() as u64);
    let official = listed.iter().filter(made_up).filter(is_official).count();
    reins.did("made_up_servers_official", official as u64);
    Ok(())
}

/// Sends back what is stored: a server's as it was signed, which is without the type that the discovery wrote into it.
fn delete(door: &Door, key: &PublicKey) -> Result<bool> {
    let Some(text) = door.entry(key)? else { return Ok(false) };
    let mut entry = Entry::from_json(&text)?;
    let body = match &mut entry.server {
        Some(server) => {
            server.server_type.clear();
            entry.to_json().into_bytes()
        }
        None => text,
    };
    Ok(door.request("DELETE", "/dmsg-discovery/entry", std::str::from_utf8(&body)?)?.0 == 200)
}
