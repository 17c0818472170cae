//! The control plane's hold on the data plane: finding or starting it, attaching, watching, asking, replacing.

pub mod mirror;
