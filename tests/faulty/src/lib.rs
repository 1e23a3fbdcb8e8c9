//! Faults on real processes: three members, each in a network namespace of its own, with disks and clocks
//! that go wrong, under clients whose calls and watches are recorded and checked.
//!
//! [`stage`] makes the place, [`members`] the processes in it, [`load`], [`leases`], [`compactions`] and
//! [`watchers`] what clients do and see ([`record`]). [`faults`] says what goes wrong, [`run`] lets it, and measures how long the cluster
//! takes afterwards ([`heal`]); [`verdict`] looks at everything at the end. [`doctor`] spoils what was
//! recorded, to show that the verdict would not pass it.

pub mod compactions;
pub mod doctor;
pub mod faults;
pub mod heal;
pub mod leases;
pub mod load;
pub mod members;
pub mod record;
pub mod run;
pub mod stage;
pub mod stalls;
pub mod verdict;
pub mod watchers;
