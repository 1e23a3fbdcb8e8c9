//! Whole clusters in one thread: a seed decides who runs, what fails, and what clients do.
//!
//! The members are those that ship (`keelson_node::Stepped`); clock, network and disks are models.
//! Safety is asserted at every step, that the cluster serves again once the faults have stopped, and at
//! the end what clients and watchers saw. A seed is a run, exactly: [`run()`] twice gives the same trace.
//!
//! [`linear`] and [`watch_check`] know nothing of the world: they check histories of real processes, too.

mod client;
mod clock;
mod conclude;
mod copies;
mod disk;
mod faults;
pub mod history;
pub mod linear;
mod machine;
mod net;
mod place;
pub mod plan;
mod post;
mod random;
mod run;
mod safety;
pub mod search;
pub mod shrink;
mod trace;
pub mod watch_check;
mod watcher;
mod workload;
mod world;

pub use clock::{MILLI, Moment, SECOND};
pub use net::Weather;
pub use random::{GENERATOR, Random};
pub use run::{Report, run, run_twice};
