//! How much memory there is for this process, and how much of it becomes buffers unless somebody says otherwise.
//!
//! In: `/proc/meminfo`, the control groups this process is in, and their limits (versions 1 and 2, nested). Out: the smallest
//! of them, with its name, so that an operator sees why buffer memory is what it is. A process that goes beyond a group's limit
//! is killed by the kernel, however much the machine has left.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::limits;

/// What there is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Room {
    /// In bytes.
    pub len: usize,
    /// Who says so.
    pub origin: Origin,
}

/// What bounds the memory of this process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The machine has no more.
    Machine,
    /// A limit of a control group: the file it stands in.
    Group(PathBuf),
    /// Nobody says: `/proc` cannot be read.
    Unknown,
}

impl fmt::Display for Room {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = self.len >> 20;
        match &self.origin {
            Origin::Machine => write!(formatter, "the machine's memory, {mib} MiB"),
            Origin::Group(file) => {
                write!(formatter, "the control group's limit, {mib} MiB ({})", file.display())
            }
            Origin::Unknown => write!(formatter, "an unknown amount of memory (/proc cannot be read)"),
        }
    }
}

/// Buffer memory that nobody has set: its length in bytes for all workers together, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DefaultBuffers {
    /// In bytes.
    pub len: usize,
    /// For people.
    pub reason: String,
}

/// The buffer memory of so many workers by default: half of the room, less what is needed beside buffers, and at most
/// [`limits::BUFFER_MEMORY_LEN`].
pub fn default_buffers(room: &Room, workers: usize) -> DefaultBuffers {
    let least = limits::BUFFER_MEMORY_LEN_MIN * workers;
    let half = room.len.saturating_sub(limits::BESIDE_BUFFERS_LEN) / 2;
    let beside = limits::BESIDE_BUFFERS_LEN >> 20;
    if half < least {
        let reason = format!("the least that works; half of {room} but {beside} MiB would be less");
        return DefaultBuffers { len: least, reason };
    }
    if half > limits::BUFFER_MEMORY_LEN {
        let reason = format!("the most that is taken by default; there is {room}");
        return DefaultBuffers { len: limits::BUFFER_MEMORY_LEN, reason };
    }
    DefaultBuffers { len: half, reason: format!("half of {room}, but {beside} MiB") }
}

/// What there is for this process now.
pub fn room() -> Room {
    room_under(Path::new("/"))
}

/// As [`room`], with another root directory.
fn room_under(root: &Path) -> Room {
    let groups = groups(root).into_iter().map(|(len, file)| Room { len, origin: Origin::Group(file) });
    let machine = machine(root).map(|len| Room { len, origin: Origin::Machine });
    let unknown = Room { len: usize::MAX, origin: Origin::Unknown };
    // The first of equals: a group whose limit is the machine's memory limits nothing.
    machine.into_iter().chain(groups).min_by_key(|room| room.len).unwrap_or(unknown)
}

fn machine(root: &Path) -> Option<usize> {
    let text = std::fs::read_to_string(root.join("proc/meminfo")).ok()?;
    let line = text.lines().find(|line| line.starts_with("MemTotal:"))?;
    line.split_whitespace().nth(1)?.parse::<usize>().ok()?.checked_mul(1024)
}

/// Files of a group of version 2 that hold a limit: beyond the second the kernel does not kill, but slows down to a crawl.
const FILES_V2: [&str; 2] = ["memory.max", "memory.high"];

/// And of version 1: the second says, among other things, the smallest limit of all groups above, also of those that cannot be
/// seen from here.
const FILES_V1: [&str; 2] = ["memory.limit_in_bytes", "memory.stat"];

/// The limit that such a file holds. `max` is none.
fn limit_of(text: &str) -> Option<usize> {
    let above = text.lines().find_map(|line| line.strip_prefix("hierarchical_memory_limit "));
    above.unwrap_or(text).trim().parse().ok()
}

/// The limits of all groups this process is in, as far up as they can be seen.
fn groups(root: &Path) -> Vec<(usize, PathBuf)> {
    let read = |name: &str| std::fs::read_to_string(root.join(name)).unwrap_or_default();
    let (memberships, mounts) = (read("proc/self/cgroup"), read("proc/self/mountinfo"));
    let mut found = Vec::new();
    for mount in mounts.lines().filter_map(Mount::parse) {
        // `hierarchy:controllers:path`; version 2 has number 0 and no controllers.
        let ours = memberships.lines().find_map(|line| {
            let mut parts = line.splitn(3, ':');
            let (hierarchy, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
            let same = match mount.version {
                1 => controllers.split(',').any(|controller| controller == "memory"),
                _ => hierarchy == "0" && controllers.is_empty(),
            };
            same.then_some(path)
        });
        let Some(ours) = ours else { continue };
        // The part of the tree that is mounted may begin below its root, and in a namespace of its own the path may lead out of
        // it: then the mount itself is the nearest that can be seen.
        let within = Path::new(ours).strip_prefix(&mount.root).unwrap_or(Path::new(""));
        let within =
            if within.components().any(|part| part.as_os_str() == "..") { Path::new("") } else { within };
        let files: &[&str] = if mount.version == 1 { &FILES_V1 } else { &FILES_V2 };
        for group in within.ancestors() {
            for file in files {
                let file = mount.at.join(group).join(file);
                let text = std::fs::read_to_string(root.join(file.strip_prefix("/").unwrap_or(&file)));
                if let Some(len) = text.ok().and_then(|text| limit_of(&text)) {
                    found.push((len, file));
                }
            }
        }
    }
    found
}

/// A mounted tree of control groups.
#[derive(Debug)]
struct Mount {
    version: u8,
    /// The group that is mounted.
    root: PathBuf,
    /// Where.
    at: PathBuf,
}

impl Mount {
    /// A line of `/proc/self/mountinfo`: `id parent device root at options [tags] - type source options`.
    fn parse(line: &str) -> Option<Self> {
        let (front, back) = line.split_once(" - ")?;
        let mut back = back.split(' ');
        let version = match (back.next()?, back.nth(1)) {
            ("cgroup2", _) => 2,
            ("cgroup", Some(options)) if options.split(',').any(|option| option == "memory") => 1,
            _ => return None,
        };
        let mut front = front.split(' ').skip(3);
        let (root, at) = (front.next()?, front.next()?);
        Some(Self { version, root: unescape(root), at: unescape(at) })
    }
}

/// White space in the kernel's list of mounts is written in octal.
fn unescape(text: &str) -> PathBuf {
    PathBuf::from(text.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    /// A machine of 8 GiB with these files.
    fn machine_with(files: &[(&str, &str)]) -> (tempfile::TempDir, Room) {
        let root = tempfile::tempdir().unwrap();
        let meminfo = [("proc/meminfo", "MemFree: 1 kB\nMemTotal:        8388608 kB\n")];
        for (name, text) in meminfo.iter().chain(files) {
            let path = root.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let room = room_under(root.path());
        (root, room)
    }

    fn group(len: usize, file: &str) -> Room {
        Room { len, origin: Origin::Group(file.into()) }
    }

    const V2: (&str, &str) = (
        "proc/self/mountinfo",
        "22 27 0:21 / /proc rw - proc proc rw\n30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n",
    );

    #[test]
    fn without_groups_the_machine_counts() {
        assert_eq!(machine_with(&[]).1, Room { len: 8192 * MIB, origin: Origin::Machine });
        let empty = tempfile::tempdir().unwrap();
        assert_eq!(room_under(empty.path()).origin, Origin::Unknown);
        // And a group that allows more than there is does not.
        let (_root, room) = machine_with(&[
            V2,
            ("proc/self/cgroup", "0::/\n"),
            ("sys/fs/cgroup/memory.max", "9223372036854771712\n"),
        ]);
        assert_eq!(room.origin, Origin::Machine);
    }

    #[test]
    fn the_smallest_of_nested_groups_counts_in_version_2() {
        let nested = [
            V2,
            ("proc/self/cgroup", "0::/system.slice/ringwire.service\n"),
            ("sys/fs/cgroup/system.slice/ringwire.service/memory.max", "max\n"),
            ("sys/fs/cgroup/system.slice/ringwire.service/memory.high", "max\n"),
            ("sys/fs/cgroup/system.slice/memory.max", "268435456\n"),
        ];
        let (_root, room) = machine_with(&nested);
        assert_eq!(room, group(256 * MIB, "/sys/fs/cgroup/system.slice/memory.max"));
        let (_root, room) = machine_with(
            &[&nested[..], &[("sys/fs/cgroup/system.slice/ringwire.service/memory.high", "167772160\n")]]
                .concat(),
        );
        assert_eq!(room, group(160 * MIB, "/sys/fs/cgroup/system.slice/ringwire.service/memory.high"));
        // A container with a namespace of its own sees itself as the root, or a path that leads out of it.
        for ours in ["0::/\n", "0::/../other\n"] {
            let (_root, room) =
                machine_with(&[V2, ("proc/self/cgroup", ours), ("sys/fs/cgroup/memory.max", "167772160\n")]);
            assert_eq!(room, group(160 * MIB, "/sys/fs/cgroup/memory.max"), "{ours}");
        }
    }

    #[test]
    fn groups_of_version_1_and_of_both_are_found_also_where_only_a_part_is_mounted() {
        let both = (
            "proc/self/mountinfo",
            "35 31 0:32 /docker/ab /sys/fs/cgroup/memory\\040one rw,relatime - cgroup cgroup rw,memory\n\
             36 31 0:33 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
             41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
        );
        let ours = ("proc/self/cgroup", "5:cpu:/\n4:memory:/docker/ab/inner\n0::/\n");
        let outer = ("sys/fs/cgroup/memory one/memory.limit_in_bytes", "268435456\n");
        let inner = ("sys/fs/cgroup/memory one/inner/memory.limit_in_bytes", "9223372036854771712\n");
        let (_root, room) = machine_with(&[both, ours, outer, inner]);
        assert_eq!(room, group(256 * MIB, "/sys/fs/cgroup/memory one/memory.limit_in_bytes"));
        let (_root, room) = machine_with(&[both, ours, inner]);
        assert_eq!(room.origin, Origin::Machine, "no limit is none");
        let above =
            ("sys/fs/cgroup/memory one/inner/memory.stat", "cache 5\nhierarchical_memory_limit 167772160\n");
        let (_root, room) = machine_with(&[both, ours, outer, inner, above]);
        assert_eq!(room, group(160 * MIB, "/sys/fs/cgroup/memory one/inner/memory.stat"));
    }

    #[test]
    fn what_is_not_set_is_half_of_the_room_and_at_most_8_gib_for_all_workers() {
        let of =
            |mib: usize, workers| default_buffers(&Room { len: mib * MIB, origin: Origin::Machine }, workers);
        assert_eq!(of(160, 1).len, 48 * MIB);
        assert_eq!(of(256, 1).len, 96 * MIB);
        let usual = of(8192, 1);
        assert_eq!(usual.len, (4096 - 32) * MIB);
        assert_eq!(usual.reason, "half of the machine's memory, 8192 MiB, but 64 MiB");
        for workers in [1, 2, limits::WORKERS_MAX] {
            assert_eq!(of(1 << 20, workers).len, limits::BUFFER_MEMORY_LEN, "{workers} workers");
        }
        assert!(of(1 << 20, 2).reason.starts_with("the most that is taken by default"));
        for (mib, workers) in [(0, 1), (70, 1), (100, 16)] {
            assert_eq!(of(mib, workers).len, limits::BUFFER_MEMORY_LEN_MIN * workers);
        }
    }
}
