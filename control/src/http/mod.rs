//! HTTP as the services of a box speak it (services 1).

mod health;

pub use health::{BuildInfo, Health};
