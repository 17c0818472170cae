//! HTTP as the services of a box speak it (services 1): one frame for all of them.
//!
//! In: a router of one service and its listeners (TCP, a Unix socket, later streams of dmsg). Out: answers within
//! bounds. The frame owns what a service must not have to think about: how many connections, how long a head, a body and
//! an answer may take, how an orderly stop goes, and what is counted meanwhile.
//!
//! ```text
//!   listener ──► serve ──► (place, PROXY header, time limits, caller, counters) ──► the service's router ──► reply
//! ```

mod caller;
mod counters;
mod health;
mod limits;
mod lingering;
mod places;
mod proxied;
mod reply;
mod serve;
mod unread;

pub use caller::Caller;
pub use counters::HttpCounters;
pub use health::{BuildInfo, Health};
pub use limits::Limits;
pub use reply::{Reply, body_of, json_pieces};
pub use serve::{BindError, HttpServer, bind};
