//! Our server as a relay of the comparison.
//!
//! In: nothing but the process's core, and public keys on standard input. Out: sessions accepted and bridged; for each key,
//! which worker has its session. The defaults of the library, a new key each time; warnings of the server go to standard
//! error, where they make the row invalid. Started by [`super::child`] in a process of its own, which closes its standard
//! input to end it; it then prints its counters.

use super::Ready;
use anyhow::{Context, Result, bail};
use ringwire_dataplane::entropy::OsEntropy;
use ringwire_dataplane::mail::Report;
use ringwire_dataplane::{DriverChoice, Server, ServerConfig};
use ringwire_proto::identity::{PublicKey, SecretKey};
use std::collections::BTreeMap;
use std::io::{BufRead, Write};
use std::net::{Ipv4Addr, SocketAddr};

/// Serves until standard input ends. Several workers are pinned to `first_core` and those behind it; none: all are where the
/// process is.
///
/// # Errors
/// When the server does not start, or ended by itself before.
pub fn run(driver: DriverChoice, workers: usize, first_core: Option<usize>) -> Result<()> {
    tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::WARN)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let mut config = ServerConfig::new(SecretKey::generate(&mut OsEntropy), vec![address]);
    config.driver = driver;
    config.workers = workers;
    config.core = first_core.filter(|_| workers > 1);
    let company_us_max = config.company_us_max;
    let server = Server::start(config)?;
    let ready = Ready {
        addresses: server.addresses().to_vec(),
        public_key: Some(server.public_key().to_string()),
        driver: server.driver_name().into(),
        company_us_max: Some(company_us_max),
    };
    ready.print()?;
    // This thread sleeps here while the workers work: its share of the process's clock is nothing.
    for line in std::io::stdin().lock().lines() {
        let key: PublicKey = line?.parse()?;
        let reports = server.workers().reports()?;
        let has = |report: &Report| report.sessions.iter().any(|session| session.peer == key);
        let mut out = std::io::stdout().lock();
        writeln!(out, "{}", serde_json::to_string(&reports.iter().position(has))?)?;
        out.flush()?;
    }
    if server.has_ended() {
        bail!("the worker ended by itself");
    }
    let counters: BTreeMap<String, u64> =
        server.counters().iter().map(|(name, value)| (name.to_owned(), value)).collect();
    server.stop().context("the worker had failed")?;
    println!("{}", serde_json::to_string(&counters)?);
    Ok(())
}
