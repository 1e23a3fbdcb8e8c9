//! The `keelson` program: arguments in, a configuration or an answer out.
//!
//! [`run`] looks at the name it was called by: `keelson` has sub-commands, `etcd` takes etcd's
//! flags at once. There is no logic here beyond reading arguments, files and the environment.

mod argv;
pub mod bench;
pub mod bolt;
pub mod flag_file;
pub mod flags;
pub mod serve;
pub mod version;

pub use argv::{run, run_in};
