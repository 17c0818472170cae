//! What a process costs, read from `/proc`: processor time and resident memory. `None` when it cannot be known: another
//! user's process, one that ended, or a system without `/proc`.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

/// Processor time a process had used at some moment, all its threads together.
#[derive(Debug, Clone)]
pub(super) struct CpuTime {
    /// Nanoseconds by the scheduler's clock, of each thread that lived then.
    threads: BTreeMap<u32, u64>,
    /// Steps of the process's own count, which ended threads stay part of.
    ticks: u64,
}

impl CpuTime {
    /// Of process `pid`, now.
    pub(super) fn now(pid: u32) -> Option<Self> {
        let ticks = stat_ticks(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?;
        Some(Self { threads: threads_ns(pid).unwrap_or_default(), ticks })
    }

    /// What was used since `earlier`: exact while the same threads live, as servers' do, else in steps of 10 ms.
    pub(super) fn since(&self, earlier: &Self) -> Option<Duration> {
        let sum = |threads: &BTreeMap<u32, u64>| threads.values().sum::<u64>();
        if !self.threads.is_empty() && self.threads.keys().eq(earlier.threads.keys()) {
            return sum(&self.threads).checked_sub(sum(&earlier.threads)).map(Duration::from_nanos);
        }
        let ticks = self.ticks.checked_sub(earlier.ticks)?;
        Some(Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64))
    }
}

/// Resident memory of a process in bytes.
pub(super) fn resident_bytes(pid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let pages: u64 = text.split_ascii_whitespace().nth(1)?.parse().ok()?;
    pages.checked_mul(u64::try_from(rustix::param::page_size()).ok()?)
}

/// What the kernel holds for itself on this machine, in bytes: slabs that it cannot give back at will (sockets among them),
/// and the pages of TCP buffers. It cannot be told by process: on loopback, both ends of a connection are in it.
pub(super) fn kernel_bytes() -> Option<u64> {
    let slab = kernel_slab_bytes(&fs::read_to_string("/proc/meminfo").ok()?)?;
    let pages = tcp_pages(&fs::read_to_string("/proc/net/sockstat").ok()?)?;
    slab.checked_add(pages.checked_mul(u64::try_from(rustix::param::page_size()).ok()?)?)
}

fn kernel_slab_bytes(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("SUnreclaim:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

fn tcp_pages(sockstat: &str) -> Option<u64> {
    let line = sockstat.lines().find_map(|line| line.strip_prefix("TCP:"))?;
    let mut words = line.split_ascii_whitespace().skip_while(|word| *word != "mem");
    words.nth(1)?.parse().ok()
}

fn threads_ns(pid: u32) -> Option<BTreeMap<u32, u64>> {
    let mut threads = BTreeMap::new();
    for thread in fs::read_dir(format!("/proc/{pid}/task")).ok()? {
        let thread = thread.ok()?;
        let number = thread.file_name().to_str()?.parse().ok()?;
        // A thread that ended since the listing makes the whole unknown; the ticks stand in.
        let text = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        threads.insert(number, text.split_ascii_whitespace().next()?.parse().ok()?);
    }
    // A kernel that does not count says 0.
    threads.values().any(|used_ns| *used_ns > 0).then_some(threads)
}

/// User and system time in ticks from the text of `/proc/PID/stat`. The name in parentheses may contain anything.
fn stat_ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let user: u64 = fields.nth(11)?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    user.checked_add(system)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_costs_something() {
        let pid = std::process::id();
        let before = CpuTime::now(pid).unwrap();
        let used = |since: &CpuTime| CpuTime::now(pid).unwrap().since(since).unwrap();
        let mut value = 1_u64;
        while used(&before) < Duration::from_millis(30) {
            value = std::hint::black_box(value.wrapping_mul(3));
        }
        // A thread that ended in between takes nothing away; far less than the difference would be if it did.
        let other = std::thread::spawn(|| CpuTime::now(std::process::id()).unwrap());
        assert!(used(&other.join().unwrap()) < Duration::from_secs(3600));
        assert!(resident_bytes(pid).unwrap() > 100_000);
    }

    #[test]
    fn an_absent_process_is_unknown() {
        assert!(CpuTime::now(u32::MAX).is_none());
        assert_eq!(resident_bytes(u32::MAX), None);
    }

    #[test]
    fn the_kernels_memory_is_read() {
        assert_eq!(kernel_slab_bytes("Slab:  9 kB\nSUnreclaim:     88072 kB\n"), Some(88072 * 1024));
        assert_eq!(kernel_slab_bytes("Slab:  9 kB\n"), None);
        let sockstat = "sockets: used 80\nTCP: inuse 6 orphan 0 tw 9 alloc 7 mem 257\nUDP: inuse 1 mem 2\n";
        assert_eq!(tcp_pages(sockstat), Some(257));
        assert_eq!(tcp_pages("UDP: inuse 1 mem 2\n"), None);
        assert!(kernel_bytes().is_some());
    }

    #[test]
    fn names_with_spaces_and_parentheses_do_not_confuse() {
        let stat = "42 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 111 22 0 0 20 0";
        assert_eq!(stat_ticks(stat), Some(133));
        assert_eq!(stat_ticks("42 nothing"), None);
    }
}
