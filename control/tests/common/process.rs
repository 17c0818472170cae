//! Both planes as processes, as people run them, and the end of both with the test.

use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ringwire::dmsg::ServerAddress;
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::Value;

/// What is waited for comes within this, also on a loaded machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A server: the process that looks after it, the control plane that this started, and the data plane that that started or found.
/// None of them outlives the value.
pub struct Planes {
    /// What `ringwire run` is.
    program: Child,
    state: PathBuf,
    pub ready: Value,
    /// Of the data plane that was last known.
    pub dataplane_pid: u32,
}

impl Drop for Planes {
    fn drop(&mut self) {
        self.program.kill().ok();
        self.program.wait().ok();
        send(self.dataplane_pid, Signal::KILL);
        // A successor that the test did not learn of.
        let holder = std::fs::read_to_string(self.state.join("dataplane.lock")).unwrap_or_default();
        holder.trim().parse().map(|pid| send(pid, Signal::KILL)).ok();
    }
}

impl Planes {
    /// `ringwire run` on a free port, ready. A data plane that escapes the test ends by itself.
    pub fn start(state: &Path, arguments: &[&str]) -> Self {
        Self::try_start(state, &[&["--listen", "127.0.0.1:0", "--orphan-limit", "60"], arguments].concat())
            .expect("a server that starts")
    }

    /// `ringwire run` with these arguments alone; what it says if it is not ready.
    pub fn try_start(state: &Path, arguments: &[&str]) -> Result<Self, String> {
        Self::try_start_of(Command::new(env!("CARGO_BIN_EXE_ringwire")), state, arguments)
    }

    /// The same with another command than the program itself.
    pub fn try_start_of(mut command: Command, state: &Path, arguments: &[&str]) -> Result<Self, String> {
        on_state(&mut command, state);
        command.args(["run", "--json"]).args(arguments).stdout(Stdio::piped());
        let mut program = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(program.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let Ok(ready) = serde_json::from_str::<Value>(&line) else {
            program.wait().unwrap();
            return Err(line);
        };
        let dataplane_pid = ready["dataplane_pid"].as_u64().unwrap() as u32;
        Ok(Self { program, state: state.to_owned(), ready, dataplane_pid })
    }

    /// Where clients connect.
    pub fn address(&self) -> ServerAddress {
        let text = format!(
            "{}@{}",
            self.ready["public_key"].as_str().unwrap(),
            self.ready["address"].as_str().unwrap()
        );
        text.parse().unwrap()
    }

    /// Of the control plane that was ready first.
    pub fn control_pid(&self) -> u32 {
        self.ready["control_pid"].as_u64().unwrap() as u32
    }

    /// What was started, and looks after it.
    pub fn program_pid(&self) -> u32 {
        self.program.id()
    }

    /// The control plane that `server.json` names now.
    pub fn noted_control(&self) -> Option<u32> {
        let note = std::fs::read(self.state.join("server.json")).ok()?;
        Some(serde_json::from_slice::<Value>(&note).ok()?["control_pid"].as_u64()? as u32)
    }

    /// The data plane that `server.json` names now.
    pub fn noted_dataplane(&self) -> Option<u32> {
        let note = std::fs::read(self.state.join("server.json")).ok()?;
        Some(serde_json::from_slice::<Value>(&note).ok()?["dataplane_pid"].as_u64()? as u32)
    }

    /// SIGKILL for what was started, which the control plane does not outlive. The data plane does.
    pub fn kill_control(&mut self) {
        let control = self.noted_control();
        self.program.kill().unwrap();
        self.program.wait().unwrap();
        if let Some(control) = control {
            until("the control plane has died of it", || !is_alive(control));
        }
    }

    /// A new control plane in place of the dead one.
    pub fn run_again(&mut self, state: &Path, arguments: &[&str]) {
        let mut again = Self::try_start(state, arguments).expect("a control plane that attaches");
        std::mem::swap(&mut self.program, &mut again.program);
        self.ready = std::mem::take(&mut again.ready);
        self.dataplane_pid = again.dataplane_pid;
        // What is left in it is a child that was waited for.
        again.dataplane_pid = 0;
        again.state = PathBuf::new();
    }

    pub fn signal(&self, signal: Signal) {
        send(self.program_pid(), signal);
    }

    /// How what was started ended.
    pub fn exit_code(&mut self) -> Option<i32> {
        let started = Instant::now();
        while started.elapsed() < PATIENCE {
            if let Some(status) = self.program.try_wait().unwrap() {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("the server does not end");
    }
}

/// An address of the loopback that stays free while nobody listens on it: its port is none that the kernel gives away.
pub fn lasting_address() -> String {
    static TAKEN: AtomicUsize = AtomicUsize::new(0);
    let begin = std::process::id() as usize + 1000 * TAKEN.fetch_add(1, Ordering::Relaxed);
    let mut ports = (20_000..32_000_u16).cycle().skip(begin % 12_000).take(1000);
    let free = |port: &u16| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok();
    format!("127.0.0.1:{}", ports.find(free).expect("a free port"))
}

/// What is made for a test is open to everybody as far as the umask allows; a state directory must not be.
pub fn private(state: &Path) {
    // One that is not there yet is made private by the program.
    std::fs::set_permissions(state, std::fs::Permissions::from_mode(0o700)).ok();
}

/// The program on this state directory.
pub fn ringwire(state: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringwire"));
    on_state(&mut command, state);
    command
}

fn on_state(command: &mut Command, state: &Path) {
    private(state);
    command.env("RINGWIRE_STATE", state).env_remove("RINGWIRE_LOG").stdin(Stdio::null());
}

/// A command that succeeds, and the JSON it prints.
pub fn json(state: &Path, arguments: &[&str]) -> Value {
    let output = ringwire(state).args(arguments).arg("--json").output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    json_of(&output)
}

pub fn json_of(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"))
}

pub fn send(pid: u32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid as i32) {
        kill_process(pid, signal).ok();
    }
}

/// Whether the process runs; one that has ended and is waited for by nobody does not.
pub fn is_alive(pid: u32) -> bool {
    let exists = Pid::from_raw(pid as i32).is_some_and(|pid| test_kill_process(pid).is_ok());
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    exists && !stat.rsplit(')').next().unwrap_or_default().trim_start().starts_with('Z')
}

/// Waits until something is so.
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) -> Duration {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
    started.elapsed()
}
