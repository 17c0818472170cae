//! A discovery over HTTP as a client's [`Directory`].

use ringwire_proto::entry::Entry;
use ringwire_proto::identity::PublicKey;

use super::directory::{Answer, Directory, DirectoryError};
use crate::discovery::{DiscoveryClient, DiscoveryError, Refusal};

impl Directory for DiscoveryClient {
    fn entry(&self, key: PublicKey) -> Answer<'_, Option<Entry>> {
        Box::pin(async move {
            match DiscoveryClient::entry(self, &key).await {
                Ok(entry) => Ok(Some(entry)),
                Err(DiscoveryError::NotFound { .. }) => Ok(None),
                Err(error) => Err(error.into()),
            }
        })
    }

    fn available_servers(&self) -> Answer<'_, Vec<Entry>> {
        Box::pin(async { Ok(DiscoveryClient::available_servers(self).await?) })
    }

    fn put(&self, entry: Entry) -> Answer<'_, ()> {
        Box::pin(async move { Ok(DiscoveryClient::put(self, &entry).await?) })
    }

    fn remove(&self, entry: Entry) -> Answer<'_, ()> {
        Box::pin(async move { Ok(self.delete(&entry).await?) })
    }
}

impl From<DiscoveryError> for DirectoryError {
    fn from(error: DiscoveryError) -> Self {
        let text = error.to_string();
        match error {
            DiscoveryError::Refused { refusal: Refusal::Sequence | Refusal::TimestampOrder, .. } => {
                Self::Sequence(text)
            }
            _ => Self::Failed(text),
        }
    }
}
