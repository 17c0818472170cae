//! What the kernel says of a process: its CPU time, memory and descriptors.

use std::fs;

/// See the module's head. What this process may not read is absent.
#[derive(Debug, Default, PartialEq)]
pub(super) struct ProcessFigures {
    /// CPU time of all its threads, in seconds.
    pub(super) cpu_s: Option<f64>,
    /// Resident memory, in bytes.
    pub(super) resident_len: Option<i64>,
    /// Descriptors that are open.
    pub(super) descriptors: Option<i64>,
    /// And how many may be.
    pub(super) descriptors_max: Option<i64>,
}

impl ProcessFigures {
    /// Of a process as it is now; 0 is none.
    pub(super) fn of(pid: u32) -> Self {
        if pid == 0 {
            return Self::default();
        }
        let read = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).ok();
        let stat = read("stat");
        let (cpu_s, resident_len) = stat.as_deref().map_or((None, None), of_stat);
        Self {
            cpu_s,
            resident_len,
            descriptors: descriptors(pid),
            descriptors_max: read("limits").as_deref().and_then(of_limits),
        }
    }
}

/// CPU time in seconds and resident memory in bytes.
fn of_stat(text: &str) -> (Option<f64>, Option<i64>) {
    // The name in brackets may hold anything.
    let Some((_, rest)) = text.rsplit_once(')') else { return (None, None) };
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let number = |index: usize| fields.get(index)?.parse::<u32>().ok();
    let ticks = f64::from(u32::try_from(rustix::param::clock_ticks_per_second()).unwrap_or(100));
    // Fields 14, 15 and 24 of proc(5); the state behind the name is the third.
    let cpu_s =
        number(11).zip(number(12)).map(|(user, system)| (f64::from(user) + f64::from(system)) / ticks);
    let page_len = i64::try_from(rustix::param::page_size()).unwrap_or(4096);
    (cpu_s, number(21).map(|pages| i64::from(pages) * page_len))
}

/// The soft limit of open files; `None` where there is none.
fn of_limits(text: &str) -> Option<i64> {
    let line = text.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

/// Open descriptors: the size of their directory, which kernels before 6.2 do not say; there those are counted that are ours.
fn descriptors(pid: u32) -> Option<i64> {
    let directory = format!("/proc/{pid}/fd");
    match fs::metadata(&directory).ok()?.len() {
        0 if pid == std::process::id() => i64::try_from(fs::read_dir(directory).ok()?.count()).ok(),
        0 => None,
        len => i64::try_from(len).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_lines_are_read() {
        let stat = "7 (a (b) c) S 1 1 1 0 -1 4194560 10 0 0 0 250 50 0 0 20 0 5 0 100 1000000 300 1 2 3";
        let ticks = f64::from(u32::try_from(rustix::param::clock_ticks_per_second()).unwrap());
        let page_len = i64::try_from(rustix::param::page_size()).unwrap();
        assert_eq!(of_stat(stat), (Some(300.0 / ticks), Some(300 * page_len)));
        assert_eq!(of_stat("7 (x"), (None, None));
        assert_eq!(
            of_limits("Limit  Soft  Hard  Units\nMax open files            1024   4096   files\n"),
            Some(1024)
        );
        assert_eq!(of_limits("Max open files  unlimited unlimited files"), None);
    }

    #[test]
    fn this_process_has_them_all_and_nobody_has_none() {
        let own = ProcessFigures::of(std::process::id());
        assert!(own.cpu_s.is_some() && own.resident_len > Some(0) && own.descriptors > Some(2), "{own:?}");
        assert_eq!(ProcessFigures::of(0), ProcessFigures::default());
    }
}
