//! Entries that are signed to be removed.
//!
//! A discovery of 2024 removes the entry of whoever shows anything signed by its key, and everybody can read such a thing:
//! the entry itself, or the one at another discovery. So a removal of ours is signed in a form in which nothing is ever
//! posted, and has a time: it is the entry with another `version`, which a discovery of any year takes for a removal
//! (it checks entry and signature, and that there is a version at all), and which ours does not store.

use ringwire_proto::entry::{Entry, TIMESTAMP_FUTURE_MAX_NS, TIMESTAMP_PAST_MAX_NS};

/// The `version` of an entry that is signed to be removed.
const WITHDRAWN: &str = "0.0.1-withdrawn";

/// `entry` in the form of a removal, to be signed.
#[must_use]
pub fn withdrawal(entry: Entry) -> Entry {
    Entry { version: WITHDRAWN.to_owned(), ..entry }
}

/// True for an entry in that form.
pub(super) fn is_withdrawal(entry: &Entry) -> bool {
    entry.version == WITHDRAWN
}

/// True while a removal counts: the window of posts of servers (services 2.2, step 4).
pub(super) fn is_current(entry: &Entry, now_ns: i64) -> bool {
    let age_ns = now_ns.saturating_sub(entry.timestamp_ns);
    (-TIMESTAMP_FUTURE_MAX_NS..=TIMESTAMP_PAST_MAX_NS).contains(&age_ns)
}
