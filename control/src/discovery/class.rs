//! Which servers are official (services 2.2, step 6).

use std::collections::HashSet;

use ringwire_proto::identity::PublicKey;
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

use super::store::Record;

/// The class of servers that the operator of the deployment vouches for.
const OFFICIAL: &str = "official";
/// The class of all others.
const COMMUNITY: &str = "community";

/// True for a server that was put into that class.
pub(super) fn is_official(record: &Record) -> bool {
    record.entry.server.as_ref().is_some_and(|server| server.server_type == OFFICIAL)
}

/// Decides the class of a server.
#[derive(Debug)]
pub(super) struct Classes {
    passphrase: Zeroizing<String>,
    official: HashSet<PublicKey>,
}

impl Classes {
    pub(super) fn new(passphrase: Zeroizing<String>, official: HashSet<PublicKey>) -> Self {
        Self { passphrase, official }
    }

    /// The class of the server `key` that posted `server_type`.
    ///
    /// quirk: the discovery of 2024 compares with the empty text where no passphrase is set, and calls whoever posts no type
    /// official. Not imitated: a class that strangers give themselves says nothing.
    pub(super) fn of(&self, key: &PublicKey, server_type: &str) -> &'static str {
        let knows = self.passphrase.as_bytes().ct_eq(server_type.as_bytes());
        let knows = bool::from(knows) && !self.passphrase.is_empty();
        if knows || self.official.contains(key) { OFFICIAL } else { COMMUNITY }
    }
}

#[cfg(test)]
mod tests {
    use ringwire_proto::identity::SecretKey;

    use super::*;

    #[test]
    fn only_the_passphrase_and_the_list_make_a_server_official() {
        let keys: Vec<_> =
            [1, 2].map(|number| SecretKey::from_bytes(&[number; 32]).unwrap().public_key()).into();
        let open = Classes::new(Zeroizing::default(), HashSet::new());
        assert_eq!(
            open.of(&keys[0], ""),
            COMMUNITY,
            "a server that posts no type where no passphrase is set"
        );
        assert_eq!(open.of(&keys[0], "official"), COMMUNITY);
        let closed = Classes::new("secret".to_owned().into(), HashSet::from([keys[1]]));
        assert_eq!(closed.of(&keys[0], ""), COMMUNITY);
        assert_eq!(closed.of(&keys[0], "official"), COMMUNITY);
        assert_eq!(closed.of(&keys[0], "secret"), OFFICIAL);
        assert_eq!(closed.of(&keys[1], ""), OFFICIAL);
    }
}
