//! What `make generations` and `make bench` share: private servers, plots, and numbers for people.

pub(crate) mod cluster;
pub(crate) mod number;
pub(crate) mod plot;
pub(crate) mod stores;
