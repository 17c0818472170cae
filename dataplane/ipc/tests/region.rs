//! Regions: what is sealed stays as it is, and a descriptor that is not what it should be is refused with its reason.
#![cfg(not(any(feature = "loom", feature = "shuttle")))]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

use ringwire_ipc::counters::{CELLS, CellIndex, CounterPage, CounterReader, CounterWriter};
use ringwire_ipc::region::{ReadRegion, Region, RegionError};
use ringwire_ipc::ring::{Consumer, Producer, Ring};
use ringwire_ipc::{CommandRing, EventRing, Fault};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};

const EPOCH: u64 = 41;

fn duplicate(region: &impl AsFd) -> OwnedFd {
    region.as_fd().try_clone_to_owned().unwrap()
}

/// The region's memory as the other process reaches it past every type: through the file.
fn raw(region: &impl AsFd) -> File {
    File::from(duplicate(region))
}

fn memory_file(len: u64, seals: SealFlags) -> OwnedFd {
    let descriptor = memfd_create("test", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    ftruncate(&descriptor, len).unwrap();
    fcntl_add_seals(&descriptor, seals).unwrap();
    descriptor
}

fn len(region: &impl AsFd) -> u64 {
    raw(region).metadata().unwrap().len()
}

#[test]
fn two_mappings_are_one_memory() {
    let made = Region::<CommandRing>::create(EPOCH).unwrap();
    let opened = Region::<CommandRing>::open(duplicate(&made), EPOCH).unwrap();
    let mut producer = Producer::new(opened);
    let mut consumer = Consumer::new(made);
    for number in 0..1000 {
        producer.push(&[number; 8]).unwrap();
        assert_eq!(consumer.pop(), Ok(Some([number; 8])));
    }
}

#[test]
fn nobody_changes_the_size_or_the_seals() {
    let made = Region::<CommandRing>::create(EPOCH).unwrap();
    let other_side = raw(&made);
    let len = len(&made);
    assert!(other_side.set_len(len - 1).is_err());
    assert!(other_side.set_len(len + 1).is_err());
    assert!(other_side.write_at(&[1], len).is_err());
    assert!(fcntl_add_seals(&other_side, SealFlags::WRITE).is_err());
    assert_eq!(other_side.metadata().unwrap().len(), len);
}

#[test]
fn unsealed_files_are_refused() {
    let len = len(&Region::<CommandRing>::create(EPOCH).unwrap());
    let all = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    for missing in [SealFlags::SHRINK, SealFlags::GROW, SealFlags::SEAL, all] {
        let descriptor = memory_file(len, all - missing);
        let error = Region::<CommandRing>::open(descriptor, EPOCH).unwrap_err();
        let RegionError::Unsealed { found, needed } = error else { panic!("{error}") };
        assert_eq!(needed & !found, missing.bits());
    }
}

#[test]
fn files_of_another_size_or_sort_are_refused() {
    let all = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    let right = len(&Region::<CommandRing>::create(EPOCH).unwrap());
    for wrong in [0, 1, right - 1, right + 1, 1 << 40] {
        let error = Region::<CommandRing>::open(memory_file(wrong, all), EPOCH).unwrap_err();
        assert!(matches!(error, RegionError::Size { found, .. } if found as u64 == wrong), "{error}");
    }
    let plain = OwnedFd::from(File::open("/dev/zero").unwrap());
    let error = Region::<CommandRing>::open(plain, EPOCH).unwrap_err();
    assert!(matches!(error, RegionError::NotMemory), "{error}");
}

#[test]
fn a_header_that_disagrees_is_refused() {
    let field = |offset: u64, bytes: &[u8]| {
        let made = Region::<CommandRing>::create(EPOCH).unwrap();
        raw(&made).write_all_at(bytes, offset).unwrap();
        match Region::<CommandRing>::open(duplicate(&made), EPOCH) {
            Err(RegionError::Header { field, .. }) => field,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(field(0, b"X"), "magic");
    assert_eq!(field(8, &[200]), "layout version");
    assert_eq!(field(12, &[9]), "kind");
    assert_eq!(field(16, &[0; 8]), "layout hash");
    assert_eq!(field(24, &[40]), "epoch");
    let blank = memory_file(
        len(&Region::<CommandRing>::create(EPOCH).unwrap()),
        SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL,
    );
    let error = Region::<CommandRing>::open(blank, EPOCH).unwrap_err();
    assert!(matches!(error, RegionError::Header { field: "magic", .. }), "{error}");
}

/// Same size, other shape: 128 records of 16 words against 256 of 8.
#[test]
fn another_shape_of_the_same_size_is_refused() {
    let made = Region::<Ring<128, 16>>::create(EPOCH).unwrap();
    assert_eq!(len(&made), len(&Region::<CommandRing>::create(EPOCH).unwrap()));
    let error = Region::<CommandRing>::open(duplicate(&made), EPOCH).unwrap_err();
    assert!(matches!(error, RegionError::Header { field: "layout hash", .. }), "{error}");
}

/// The whole file overwritten with one byte, holes punched: a fault, never a crash.
#[test]
fn a_scribbled_region_is_a_fault() {
    let made = Region::<EventRing>::create(EPOCH).unwrap();
    let other_side = raw(&made);
    let len = len(&made);
    let mut consumer = Consumer::new(made);
    other_side.write_all_at(&vec![0xaa; len as usize], 0).unwrap();
    assert!(consumer.is_ready());
    assert!(matches!(consumer.pop(), Err(Fault::Position { found: 0xaaaa_aaaa_aaaa_aaaa, .. })));
    use rustix::fs::{FallocateFlags, fallocate};
    fallocate(&other_side, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 0, len).unwrap();
    assert!(consumer.pop().is_err(), "a fault is for good");
}

#[test]
fn counters_are_read_by_others_and_written_by_the_maker_alone() {
    let made = Region::<CounterPage>::create(EPOCH).unwrap();
    let reader = CounterReader::new(ReadRegion::open(duplicate(&made), EPOCH).unwrap());
    let writable = Region::<CounterPage>::open(duplicate(&made), EPOCH);
    assert!(matches!(writable, Err(RegionError::Kernel { step: "map", .. })), "{writable:?}");
    assert!(raw(&made).write_at(&[1], 128).is_err());
    let writer = CounterWriter::new(made);
    let first = CellIndex::new(0).unwrap();
    let last = CellIndex::new(CELLS - 1).unwrap();
    assert_eq!(CellIndex::new(CELLS), None);
    for _ in 0..1000 {
        writer.add(first, 1);
        writer.add(last, u64::MAX);
    }
    assert_eq!(reader.read(first), 1000);
    assert_eq!(reader.read(last), 0_u64.wrapping_sub(1000));
    let snapshot = reader.snapshot();
    assert_eq!(snapshot[0], 1000);
    assert!(snapshot[1..CELLS - 1].iter().all(|&total| total == 0));
    let unmarked = Region::<CommandRing>::create(EPOCH).unwrap();
    let error = ReadRegion::<CounterPage>::open(duplicate(&unmarked), EPOCH).unwrap_err();
    assert!(matches!(error, RegionError::Unsealed { .. }), "{error}");
}
