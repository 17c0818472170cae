//! Any text as a discovery entry or a list of them (dmsg-wire 12.1): what reads is written in one form only.

use ringwire_proto::entry::{Deployment, Entry};

/// Reads, writes and reads again; validates.
pub fn run(data: &[u8]) {
    if let Ok(entry) = Entry::from_json(data) {
        let text = entry.to_json();
        assert_eq!(Entry::from_json(text.as_bytes()).as_ref(), Ok(&entry));
        let list = Entry::list_from_json(format!("[{text},{text}]").as_bytes());
        assert_eq!(list, Ok(vec![entry.clone(), entry.clone()]));
        let verdict = entry.validate(entry.timestamp_ns, Deployment::Test);
        assert!(verdict.is_err() || entry.verify().is_ok(), "a valid entry is signed");
        let unsigned = Entry { signature: None, ..entry };
        assert_eq!(unsigned.to_json(), unsigned.signed_text());
    }
    if let Ok(entries) = Entry::list_from_json(data) {
        assert!(entries.len() <= data.len());
    }
}
