//! The units in `dist/systemd`: what they forbid must not be what the program needs.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

const DATAPLANE: &str = include_str!("../../dist/systemd/ringwire-dataplane.service");
const CONTROL: &str = include_str!("../../dist/systemd/ringwire-control.service");

/// Groups of systemd that the units name (`systemd-analyze syscall-filter`): of each what matters here, and of the one group that
/// everything is allowed by, all calls that are in none of the others.
const GROUPS: [(&str, &[&str]); 7] = [
    (
        "@system-service",
        &[
            "accept4",
            "bind",
            "clone3",
            "connect",
            "epoll_wait",
            "execve",
            "fcntl",
            "flock",
            "fsync",
            "ftruncate",
            "getrandom",
            "listen",
            "madvise",
            "memfd_create",
            "mmap",
            "munmap",
            "openat",
            "pidfd_open",
            "poll",
            "prctl",
            "prlimit64",
            "recvmsg",
            "rename",
            "renameat2",
            "rt_sigaction",
            "sendmsg",
            "setsid",
            "setsockopt",
            "shutdown",
            "socketpair",
            "umask",
            "unlink",
            // These by the groups within it.
            "ioprio_set",
            "nice",
            "sched_setaffinity",
            "sched_setattr",
            "sched_setparam",
            "sched_setscheduler",
            "setpriority",
            "setrlimit",
            "chown",
            "setuid",
            "setgroups",
        ],
    ),
    ("@privileged", &["chown", "setuid", "setgroups", "chroot", "bpf", "reboot"]),
    (
        "@resources",
        &[
            "ioprio_set",
            "mbind",
            "migrate_pages",
            "move_pages",
            "nice",
            "sched_setaffinity",
            "sched_setattr",
            "sched_setparam",
            "sched_setscheduler",
            "set_mempolicy",
            "setpriority",
            "setrlimit",
        ],
    ),
    ("@debug", &["ptrace", "perf_event_open", "pidfd_getfd"]),
    ("@mount", &["mount", "umount2"]),
    ("@cpu-emulation", &["modify_ldt"]),
    ("@obsolete", &["_sysctl"]),
];

/// Whether a unit's filter lets a call through: the first line says what is allowed, a later one with `~` takes away from it,
/// one without adds.
fn allows(unit: &str, call: &str) -> bool {
    let mut allowed = false;
    for filter in unit.lines().filter_map(|line| line.strip_prefix("SystemCallFilter=")) {
        let (allow, words) = filter.strip_prefix('~').map_or((true, filter), |words| (false, words));
        let named = words.split_whitespace().any(|word| {
            let group = GROUPS.iter().find(|(name, _)| *name == word);
            assert!(group.is_some() || !word.starts_with('@'), "a group this test does not know: {word}");
            word == call || group.is_some_and(|(_, calls)| calls.contains(&call))
        });
        if named {
            allowed = allow;
        }
    }
    allowed
}

#[test]
fn the_data_planes_filter_lets_through_what_it_does() {
    for (call, what_for) in [
        ("setpriority", "the handshake lane behind the workers"),
        ("sched_setaffinity", "first_core"),
        ("io_uring_setup", "the driver"),
        ("io_uring_enter", "the driver"),
        ("io_uring_register", "the driver"),
        ("prctl", "no core dumps"),
        ("prlimit64", "the limit of open files"),
        ("madvise", "buffers in no core dump"),
        ("memfd_create", "shared memory"),
        ("flock", "the lock"),
        ("setsid", "a terminal's signals"),
    ] {
        assert!(allows(DATAPLANE, call), "{call}: {what_for}");
    }
}

#[test]
fn the_control_planes_filter_lets_through_what_it_does() {
    for call in ["prctl", "prlimit64", "pidfd_open", "renameat2", "fsync", "flock", "connect", "umask"] {
        assert!(allows(CONTROL, call), "{call}");
    }
}

#[test]
fn what_neither_needs_stays_forbidden() {
    for unit in [DATAPLANE, CONTROL] {
        for call in [
            "ptrace",
            "mount",
            "chown",
            "setuid",
            "bpf",
            "setrlimit",
            "perf_event_open",
            "sched_setscheduler",
        ] {
            assert!(!allows(unit, call), "{call}");
        }
    }
    assert!(!allows(CONTROL, "setpriority") && !allows(CONTROL, "io_uring_setup"));
}
