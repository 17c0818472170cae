//! The admin interface: HTTP with JSON on `STATE/control.sock`, for the command line and for whoever may open the socket
//! (its owner, and root).
//!
//! ```text
//!   GET  /v1/alive             that it answers
//!   GET  /v1/status            both planes: processes, sessions, listeners
//!   GET  /v1/sessions          who is connected                /v1/sessions/closed   the last that were
//!   GET  /v1/streams           what is bridged                 each of these three: ?key=KEY, or the beginning of one
//!   GET  /v1/counters          totals per worker               /v1/limits            bounds, and how near they are
//!   POST /v1/close             {"public_key"}                  close the session of a key, or of its beginning
//!   PUT  /v1/settings          {"name", "value"}               change a setting while it runs
//!   POST /v1/drain             {"within_s"}                    accept nothing new, end when all have left
//!   POST /v1/stop              {"leave_dataplane"}             end
//! ```
//!
//! A failure is a status code and `{"error": text}`. `server` answers, `client` asks, `model` is what they say,
//! `direct` is what can be known from the data plane alone, with the control plane dead or stopped.

mod client;
mod direct;
mod limits;
pub mod model;
mod pattern;
mod server;

pub use client::{Client, ClientError};
pub use direct::{DirectError, dataplane_limits, dataplane_status, dump, settings};
pub use pattern::{Pattern, PatternError};
pub use server::{Admin, bind};
