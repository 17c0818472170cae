//! What an event of epoll is about: its 64 bits of user data.
//!
//! A socket: generation in the high half, index in the low half. Listeners and the wake-up have the top bit of the index
//! set, which no socket has: there are fewer descriptors than that.

use rustix::event::epoll::EventData;

use crate::slab::Key;

/// See the module's head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    Wake,
    Listener(usize),
    Socket(Key),
}

const APART: u32 = 1 << 31;
const WAKE: u32 = u32::MAX;

impl Source {
    pub(super) fn data(self) -> EventData {
        EventData::new_u64(match self {
            Self::Wake => u64::from(WAKE),
            Self::Listener(index) => u64::from(APART | index as u32),
            Self::Socket(key) => {
                debug_assert!(key.index < APART, "fewer sockets than descriptors");
                u64::from(key.generation) << 32 | u64::from(key.index)
            }
        })
    }

    pub(super) fn of(data: EventData) -> Self {
        let (generation, index) = ((data.u64() >> 32) as u32, data.u64() as u32);
        match index {
            WAKE => Self::Wake,
            APART.. => Self::Listener((index - APART) as usize),
            _ => Self::Socket(Key { index, generation }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_survive_packing() {
        let socket = |index, generation| Source::Socket(Key { index, generation });
        for source in [
            Source::Wake,
            Source::Listener(0),
            Source::Listener(7),
            socket(0, 0),
            socket(APART - 1, u32::MAX),
            socket(5, 9),
        ] {
            assert_eq!(Source::of(source.data()), source);
        }
    }
}
