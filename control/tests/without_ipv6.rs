//! A host without IPv6, as `ipv6.disable=1` or a sandbox that forbids the family makes it: a system-call filter refuses its sockets.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may fail")]
#![allow(unsafe_code, reason = "a system-call filter is set between fork and exec")]

mod common;

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use common::process::Planes;
use ringwire::dmsg::{ServerAddress, Session, SessionConfig};
use ringwire_dataplane::entropy::OsEntropy;
use ringwire_proto::identity::SecretKey;

/// Of `struct seccomp_data`: the number of the call, and the low half of its first argument.
const NUMBER_AT: u32 = 0;
const FIRST_ARGUMENT_AT: u32 = if cfg!(target_endian = "little") { 16 } else { 20 };

/// From now on this process and its children have no IPv6: `socket` says what a kernel without it says.
fn forbid_ipv6() -> std::io::Result<()> {
    let load = |at| libc::sock_filter {
        code: (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16,
        jt: 0,
        jf: 0,
        k: at,
    };
    let unless = |value, jf| libc::sock_filter {
        code: (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16,
        jt: 0,
        jf,
        k: value,
    };
    let end =
        |action| libc::sock_filter { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k: action };
    let mut filter = [
        load(NUMBER_AT),
        unless(libc::SYS_socket as u32, 3),
        load(FIRST_ARGUMENT_AT),
        unless(libc::AF_INET6 as u32, 1),
        end(libc::SECCOMP_RET_ERRNO | libc::EAFNOSUPPORT as u32),
        end(libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: plain numbers.
    let alone = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    // SAFETY: the program outlives the call, which copies it.
    let set = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
    if alone == 0 && set == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

#[tokio::test]
async fn a_go_servers_ports_are_served_on_ipv4() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("config.json");
    std::fs::write(&file, r#"{"local_address": ":0", "health_endpoint_address": ":0"}"#).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringwire"));
    // SAFETY: what it calls may be called between fork and exec: two system calls, and no memory is allocated.
    unsafe { command.pre_exec(forbid_ipv6) };
    let state = directory.path().join("state");
    let arguments = ["--orphan-limit", "60", "--config", file.to_str().unwrap()];
    let planes = Planes::try_start_of(command, &state, &arguments).expect("a server that starts");
    let port = |name: &str| planes.ready[name].as_str().unwrap().rsplit_once(':').unwrap().1.to_owned();
    let address = format!("127.0.0.1:{}", port("address"));
    let server = ServerAddress { address, ..planes.address() };
    let session =
        Session::connect(SessionConfig::new(SecretKey::generate(&mut OsEntropy), server)).await.unwrap();
    session.ping().await.unwrap();
    let health = format!("http://127.0.0.1:{}/health", port("http"));
    assert_eq!(reqwest::get(health).await.unwrap().status(), 200);
}
