//! One run of one attack, for people and as one line of JSON.

use super::honest::Figures;
use super::server::Plane;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// Everything that one run found.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Found {
    /// The row.
    pub name: String,
    /// What moved the bytes: `uring` or `poll`.
    pub driver: String,
    /// How many attackers.
    pub attackers: usize,
    /// Small loads: what was found shows that everything works, not how well.
    pub quick: bool,
    /// The honest client, from one phase to the next.
    pub honest: Phases,
    /// What the attackers did, by their own count.
    pub attack: BTreeMap<String, u64>,
    /// Processor time of the attackers, from their start to the end of the attack.
    pub attacker_cpu_s: f64,
    /// Processor time of both planes in the same time.
    pub server_cpu_s: f64,
    /// The plane that was attacked.
    pub plane: Plane,
    /// Resident memory of that plane before the attack; where an attack needs preparations, behind them.
    pub rss_start_bytes: u64,
    /// The most until the attack ended.
    pub rss_max_bytes: u64,
    /// At the end, or as soon after the attack as its target was met.
    pub rss_end_bytes: u64,
    /// Times that missed their target before there was an attack: then the machine was busy, and they say nothing.
    pub disturbed: Vec<String>,
    /// Whether the honest client's threads had real-time priority.
    pub real_time: bool,
    /// Every target was met.
    pub met: bool,
    /// Those that were not, with the numbers.
    pub unmet: Vec<String>,
}

/// The honest client's figures.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Phases {
    /// Without an attack.
    pub before: Figures,
    /// Beside it.
    pub during: Figures,
    /// When it is over.
    pub after: Figures,
}

impl Found {
    /// What the attackers counted of something.
    #[must_use]
    pub fn counted(&self, what: &str) -> f64 {
        self.attack.get(what).copied().unwrap_or(0) as f64
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = if self.attackers == 1 { "attacker" } else { "attackers" };
        writeln!(f, "{}: {} {plural}, driver {}", self.name, self.attackers, self.driver)?;
        writeln!(
            f,
            "  {:<8} {:>12} {:>9} {:>9} {:>9} {:>9} {:>7} {:>12} {:>9}",
            "honest", "opens", "p50 ms", "p99 ms", "ping p50", "ping p99", "lost", "handshakes", "p99 ms"
        )?;
        let phases =
            [("before", &self.honest.before), ("during", &self.honest.during), ("after", &self.honest.after)];
        for (phase, figures) in phases {
            let of = |ok: u64, failed: u64| format!("{ok}/{}", ok + failed);
            writeln!(
                f,
                "  {phase:<8} {:>12} {:>9.2} {:>9.2} {:>9.2} {:>9.2} {:>7} {:>12} {:>9.1}",
                of(figures.opens_ok, figures.opens_failed),
                figures.open_p50_ms,
                figures.open_p99_ms,
                figures.ping_p50_ms,
                figures.ping_p99_ms,
                figures.pings_lost,
                of(figures.handshakes_ok, figures.handshakes_failed),
                figures.handshake_p99_ms,
            )?;
        }
        if let Some(seen) = &self.honest.during.discovery {
            writeln!(
                f,
                "  discovery: {} looks, own entry gone {}, honest entry gone {}, posts {}/{}, {} not answered",
                seen.looks,
                seen.own_entry_gone,
                seen.client_entry_gone,
                seen.posts_ok,
                seen.posts_ok + seen.posts_failed,
                seen.unanswered
            )?;
        }
        let did: Vec<_> = self.attack.iter().map(|(what, count)| format!("{what} {count}")).collect();
        writeln!(f, "  attack: {}", did.join(", "))?;
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        writeln!(
            f,
            "  cpu: attackers {:.2} s, server {:.2} s; memory of the {} plane: {:.1} MiB before, {:.1} at most, {:.1} at the end",
            self.attacker_cpu_s,
            self.server_cpu_s,
            match self.plane {
                Plane::Data => "data",
                Plane::Control => "control",
            },
            mib(self.rss_start_bytes),
            mib(self.rss_max_bytes),
            mib(self.rss_end_bytes)
        )?;
        for disturbed in &self.disturbed {
            writeln!(f, "  DISTURBED: already before the attack: {disturbed}")?;
        }
        for unmet in &self.unmet {
            writeln!(f, "  MISSED: {unmet}")?;
        }
        if self.met {
            writeln!(f, "  met")?;
        }
        Ok(())
    }
}
