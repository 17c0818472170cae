//! One worker's channel, whole: the two rings, the counter page and the bells, as each side holds them.
//!
//! The data plane makes a pair with [`WorkerEnd::create`] at each attach and passes the descriptors; the control plane opens
//! them with [`ControlEnd::open`], which believes nothing.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::counters::CounterReader;
use crate::doorbell::{Bell, SocketBell};
use crate::message::{Command, Event};
use crate::region::{ReadRegion, Region, RegionError};
use crate::ring::{Consumer, Producer, PushError};
use crate::socket::ChannelDescriptors;
use crate::{CommandRing, EventRing, Fault};

/// Epoch in the header of counter pages: they live as long as their worker and are the same for every attach.
pub const COUNTERS_EPOCH: u64 = 0;

/// The worker's end: reads commands, writes events.
#[derive(Debug)]
pub struct WorkerEnd {
    commands: Consumer<Region<CommandRing>, 256, { crate::message::COMMAND_WORDS }>,
    events: Producer<Region<EventRing>, 4096, { crate::message::EVENT_WORDS }>,
    bell: SocketBell,
    dropped: u64,
    resync: bool,
    pushed: bool,
}

/// Descriptors of the rings of a fresh channel, for the control plane.
#[derive(Debug)]
pub struct RingDescriptors {
    /// Ring of commands.
    pub commands: OwnedFd,
    /// Ring of events.
    pub events: OwnedFd,
}

impl WorkerEnd {
    /// Fresh rings for attach number `epoch`, and their descriptors. `bell` is the data plane's end of the attach's bell.
    ///
    /// # Errors
    /// The kernel's: descriptors or memory are used up.
    pub fn create(epoch: u64, bell: SocketBell) -> Result<(Self, RingDescriptors), RegionError> {
        let duplicate = |descriptor: BorrowedFd<'_>| {
            descriptor
                .try_clone_to_owned()
                .map_err(|error| RegionError::Kernel { step: "duplicate the descriptor of", error })
        };
        let commands = Region::<CommandRing>::create(epoch)?;
        let events = Region::<EventRing>::create(epoch)?;
        let descriptors =
            RingDescriptors { commands: duplicate(commands.as_fd())?, events: duplicate(events.as_fd())? };
        let end = Self {
            commands: Consumer::new(commands),
            events: Producer::new(events),
            bell,
            dropped: 0,
            resync: false,
            pushed: false,
        };
        Ok((end, descriptors))
    }

    /// Ends the whole attach, of which this is one worker's part: the bell is that of all workers, and as long as one of
    /// them holds it the control plane would not learn that this one has stopped listening.
    pub fn hang_up(&self) {
        self.bell.hang_up();
    }

    /// The next command.
    ///
    /// # Errors
    /// What no honest control plane does; this end is finished.
    pub fn command(&mut self) -> Result<Option<Command>, Fault> {
        self.commands.pop()?.map(|record| Command::decode(&record)).transpose()
    }

    /// Passes an event on. A full ring drops it: then the control plane is told to list again as soon as there is room.
    /// True unless it was dropped.
    ///
    /// # Errors
    /// What no honest control plane does; this end is finished.
    pub fn event(&mut self, event: &Event) -> Result<bool, Fault> {
        if !self.flush_resync()? {
            self.dropped += 1;
            return Ok(false);
        }
        match self.events.push(&event.encode()) {
            Ok(()) => {
                self.pushed = true;
                Ok(true)
            }
            Err(PushError::Full) => {
                self.dropped += 1;
                self.resync = true;
                Ok(false)
            }
            Err(PushError::Fault(fault)) => Err(fault),
        }
    }

    /// Says that events were dropped, if that is so and there is room for it. True when nothing of the kind is due any more.
    ///
    /// # Errors
    /// What no honest control plane does; this end is finished.
    pub fn flush_resync(&mut self) -> Result<bool, Fault> {
        if !self.resync {
            return Ok(true);
        }
        match self.events.push(&Event::Resync { dropped: self.dropped }.encode()) {
            Ok(()) => {
                self.resync = false;
                self.pushed = true;
                Ok(true)
            }
            Err(PushError::Full) => Ok(false),
            Err(PushError::Fault(fault)) => Err(fault),
        }
    }

    /// Passes an event on if there is room for it and for `spare` more; for what can wait.
    ///
    /// # Errors
    /// What no honest control plane does; this end is finished.
    pub fn event_if_room(&mut self, event: &Event, spare: usize) -> Result<bool, Fault> {
        if self.events.room()? <= spare { Ok(false) } else { self.event(event) }
    }

    /// Events dropped so far.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Once a turn: rings for what was passed on, if the control plane sleeps. Never waits.
    pub fn ring(&mut self) {
        if std::mem::take(&mut self.pushed) && self.events.must_ring() {
            self.bell.ring();
        }
    }

    /// "From now on, ring." True if a command is there already, and the worker must not wait.
    pub fn announce_sleep(&mut self) -> bool {
        self.commands.announce_sleep();
        self.commands.is_ready()
    }

    /// Awake again.
    pub fn withdraw_sleep(&mut self) {
        self.commands.withdraw_sleep();
    }
}

/// The control plane's end: writes commands, reads events and counters.
#[derive(Debug)]
pub struct ControlEnd {
    commands: Producer<Region<CommandRing>, 256, { crate::message::COMMAND_WORDS }>,
    events: Consumer<Region<EventRing>, 4096, { crate::message::EVENT_WORDS }>,
    counters: CounterReader,
    bell: Bell,
}

impl ControlEnd {
    /// Opens what an attach of number `epoch` brought.
    ///
    /// # Errors
    /// A descriptor is not what a data plane of this build makes.
    pub fn open(descriptors: ChannelDescriptors, epoch: u64) -> Result<Self, RegionError> {
        Ok(Self {
            commands: Producer::new(Region::open(descriptors.commands, epoch)?),
            events: Consumer::new(Region::open(descriptors.events, epoch)?),
            counters: CounterReader::new(ReadRegion::open(descriptors.counters, COUNTERS_EPOCH)?),
            bell: Bell::from_descriptor(descriptors.bell),
        })
    }

    /// Sends a command, and wakes the worker if it sleeps.
    ///
    /// # Errors
    /// The ring is full, or the worker misbehaved.
    pub fn command(&mut self, command: &Command) -> Result<(), PushError> {
        self.commands.push(&command.encode())?;
        if self.commands.must_ring() {
            // The descriptor was checked by nobody; if it cannot be rung, the worker sees the command at its next turn.
            let _ = self.bell.ring();
        }
        Ok(())
    }

    /// Wakes the worker, whether or not there is something for it.
    pub fn ring(&self) {
        // As with a command: one that cannot be rung is seen to stand still.
        let _ = self.bell.ring();
    }

    /// The next event.
    ///
    /// # Errors
    /// What no honest worker does; this end is finished.
    pub fn event(&mut self) -> Result<Option<Event>, Fault> {
        self.events.pop()?.map(|record| Event::decode(&record)).transpose()
    }

    /// "From now on, ring the attach's bell." True if an event is there already, and one must not wait.
    pub fn announce_sleep(&mut self) -> bool {
        self.events.announce_sleep();
        self.events.is_ready()
    }

    /// Awake again.
    pub fn withdraw_sleep(&mut self) {
        self.events.withdraw_sleep();
    }

    /// The worker's totals.
    pub fn counters(&self) -> &CounterReader {
        &self.counters
    }
}
