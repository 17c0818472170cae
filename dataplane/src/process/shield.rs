//! What a process of this program arranges before anything else: that no core file gets its secrets, and that a limit on
//! the size of files is an error that somebody can read and no signal that ends it.
//!
//! In: nothing. Out: the attributes and limits of this process. Both planes and every command call it: each of them may
//! hold a secret key.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};
use signal_hook::consts::SIGXFSZ;
use signal_hook::flag;

/// See the module's head. To be called first, before there is a key, a file or another thread.
///
/// From then on this user cannot look into the process either (`ptrace`, `/proc/PID/fd`, `/proc/PID/mem`); root can.
pub fn shield() {
    // Neither is refused to anybody. Where one were, the other would still hold: the kernel's own attribute also counts where
    // dumps go through a pipe, which does not ask for the limit.
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    let core = getrlimit(Resource::Core);
    let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: core.maximum });
    // Shared memory of the two planes counts as files. The soft limit is for programs that write without end.
    let size = getrlimit(Resource::Fsize);
    let _ = setrlimit(Resource::Fsize, Rlimit { current: size.maximum, maximum: size.maximum });
    // Whoever is beyond the hard one gets EFBIG from its call instead.
    let _ = flag::register(SIGXFSZ, Arc::<AtomicBool>::default());
}
