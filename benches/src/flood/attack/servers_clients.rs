//! The longest list a discovery has, asked for many times and never read.

use super::{Field, IDLE, Reins, Row, USUAL};
use crate::flood::discovery::client_entry;
use crate::flood::server::Plane;
use crate::flood::targets::{SETTLE_SHORT, Target};
use crate::flood::wire::fresh_key;
use anyhow::Result;
use std::time::{Duration, Instant};

pub(super) const ROW: Row = Row {
    name: "servers-clients",
    about: "a stranger posts entries that name many servers, then asks 16 times which clients are where and reads no answer",
    attackers: &[16],
    attackers_quick: 4,
    seconds: 10.0,
    server: USUAL,
    server_quick: USUAL,
    plane: Plane::Control,
    watches_discovery: true,
    targets: &[
        Target::GrowthOverAnswers { times: 2.0, spare_mib: 64.0 },
        Target::ServerCpuS(3.0),
        Target::EntriesThere,
        Target::PostsOk,
    ],
    settle: SETTLE_SHORT,
    run,
};

/// Entries, and the servers that each names: as many as 16 KiB of entry take.
const ENTRIES: usize = 2000;
const ENTRIES_QUICK: usize = 20;
const SERVERS_EACH: usize = 220;
/// A key in the answer: 66 digits, quotes and a comma.
const KEY_LEN: usize = 69;
/// What the kernel keeps for somebody who does not read.
const RECEIVE_BUFFER: usize = 4096;
/// So often a connection that ended is made again.
const AGAIN: Duration = Duration::from_millis(500);

fn run(field: &Field, reins: &Reins) -> Result<()> {
    let door = field.door()?;
    let servers: Vec<_> = (0..SERVERS_EACH).map(|_| fresh_key().public_key()).collect();
    let mut stored = 0;
    for _ in 0..field.scaled(ENTRIES, ENTRIES_QUICK) {
        if reins.ended() || reins.is_late() {
            break;
        }
        stored += usize::from(door.post(&client_entry(&fresh_key(), 1, servers.clone())?).unwrap_or(false));
    }
    reins.did("entries", stored as u64);
    reins.did("answer_bytes", (stored * SERVERS_EACH * KEY_LEN) as u64);
    reins.stand();
    let ask = || door.ask("GET", "/dmsg-discovery/servers/clients", "", Some(RECEIVE_BUFFER));
    let mut unread = (0..field.attackers).map(|_| ask()).collect::<Result<Vec<_>>>()?;
    reins.did("requests", unread.len() as u64);
    let mut next = Instant::now() + AGAIN;
    while !reins.ended() {
        std::thread::sleep(IDLE);
        if Instant::now() >= next {
            next = Instant::now() + AGAIN;
            for socket in &mut unread {
                // The head of the answer stays where it is: a connection that was closed reads as ended behind it.
                if rustix::net::sockopt::socket_error(&*socket).is_ok_and(|error| error.is_err())
                    && let Ok(again) = ask()
                {
                    *socket = again;
                    reins.did("requests", 1);
                }
            }
        }
    }
    Ok(())
}
