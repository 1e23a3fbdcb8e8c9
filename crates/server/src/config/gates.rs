//! Feature gates: switches for what is not settled yet (`--feature-gates=A=true,B=false`).
//!
//! Names, stages and defaults are those of etcd 3.7.1.

use std::fmt;

use super::quote::quote;

/// A switch of `--feature-gates`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Gate {
    /// Turns on every alpha gate that is not named itself.
    AllAlpha,
    /// Turns on (or off) every beta gate that is not named itself.
    AllBeta,
    /// Compares the hashes of compactions between members.
    CompactHashCheck,
    /// Lease keep-alive does not wait for the applied index.
    FastLeaseKeepAlive,
    /// Compares hashes with the other members before serving.
    InitialCorruptCheck,
    /// Records the remaining time of leases through consensus.
    LeaseCheckpoint,
    /// Keeps the recorded remaining time on disk; needs `LeaseCheckpoint`.
    LeaseCheckpointPersist,
    /// Lets important requests pass a full queue.
    PriorityRequest,
    /// Dials peers from the address that is advertised to them.
    SetMemberLocalAddr,
    /// Fails health checks while a defragmentation runs.
    StopGRPCServiceOnDefrag,
    /// How a write transaction reads its own buffer; no visible effect.
    TxnModeWriteWithSharedBuffer,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Switch,
    Alpha,
    Beta,
}

/// All gates in the order of their names, which is the order of the enum.
const TABLE: [(Gate, &str, Stage); 11] = [
    (Gate::AllAlpha, "AllAlpha", Stage::Switch),
    (Gate::AllBeta, "AllBeta", Stage::Switch),
    (Gate::CompactHashCheck, "CompactHashCheck", Stage::Alpha),
    (Gate::FastLeaseKeepAlive, "FastLeaseKeepAlive", Stage::Beta),
    (
        Gate::InitialCorruptCheck,
        "InitialCorruptCheck",
        Stage::Alpha,
    ),
    (Gate::LeaseCheckpoint, "LeaseCheckpoint", Stage::Alpha),
    (
        Gate::LeaseCheckpointPersist,
        "LeaseCheckpointPersist",
        Stage::Alpha,
    ),
    (Gate::PriorityRequest, "PriorityRequest", Stage::Alpha),
    (Gate::SetMemberLocalAddr, "SetMemberLocalAddr", Stage::Alpha),
    (
        Gate::StopGRPCServiceOnDefrag,
        "StopGRPCServiceOnDefrag",
        Stage::Alpha,
    ),
    (
        Gate::TxnModeWriteWithSharedBuffer,
        "TxnModeWriteWithSharedBuffer",
        Stage::Beta,
    ),
];

impl Gate {
    /// Its name on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        TABLE[self as usize].1
    }

    /// All gates, with name and stage.
    pub fn all() -> impl Iterator<Item = (Gate, &'static str, &'static str)> {
        TABLE
            .iter()
            .map(|(gate, ..)| *gate)
            .zip(FeatureGates::known())
            .map(|(gate, (name, stage, _))| (gate, name, stage))
    }

    fn stage(self) -> Stage {
        TABLE[self as usize].2
    }
}

/// The gates that were set, by name; the others are at their default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FeatureGates {
    set: [Option<bool>; TABLE.len()],
}

impl FeatureGates {
    /// Sets gates from `name=bool` pairs separated by commas; nothing is changed on an error.
    ///
    /// # Errors
    /// The texts of etcd's flag, for example `unrecognized feature gate: X`.
    pub fn set(&mut self, text: &str) -> Result<(), String> {
        let mut next = self.clone();
        for pair in text
            .split(',')
            .map(str::trim)
            .filter(|pair| !pair.is_empty())
        {
            let Some((name, value)) = pair.split_once('=') else {
                return Err(format!("missing bool value for feature gate {pair}"));
            };
            let (name, value) = (name.trim(), value.trim());
            let Some(on) = go_bool(value) else {
                let cause = format!(
                    "strconv.ParseBool: parsing {}: invalid syntax",
                    quote(value)
                );
                return Err(format!("invalid value of {name}={value}, err: {cause}"));
            };
            let Some((gate, ..)) = TABLE.iter().find(|(_, known, _)| *known == name) else {
                return Err(format!("unrecognized feature gate: {name}"));
            };
            next.set[*gate as usize] = Some(on);
        }
        *self = next;
        Ok(())
    }

    /// Whether `gate` is on.
    #[must_use]
    pub fn enabled(&self, gate: Gate) -> bool {
        let by_name = self.set[gate as usize];
        let by_switch = |switch: Gate| self.set[switch as usize];
        match gate.stage() {
            Stage::Switch => by_name.unwrap_or(false),
            Stage::Alpha => by_name.or(by_switch(Gate::AllAlpha)).unwrap_or(false),
            Stage::Beta => by_name.or(by_switch(Gate::AllBeta)).unwrap_or(true),
        }
    }

    /// Every gate with its name, stage (`ALPHA`, `BETA`) and default, in order of the names.
    pub fn known() -> impl Iterator<Item = (&'static str, &'static str, bool)> {
        TABLE.iter().map(|(gate, name, stage)| {
            let beta = *stage == Stage::Beta || *gate == Gate::AllBeta;
            (
                *name,
                if beta { "BETA" } else { "ALPHA" },
                *stage == Stage::Beta,
            )
        })
    }
}

impl fmt::Display for FeatureGates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for (gate, name, _) in TABLE {
            if let Some(on) = self.set[gate as usize] {
                write!(f, "{separator}{name}={on}")?;
                separator = ",";
            }
        }
        Ok(())
    }
}

/// A boolean as Go's `strconv.ParseBool` reads it.
#[must_use]
pub fn go_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_stands_in_the_order_of_the_enum() {
        for (at, (gate, name, _)) in TABLE.iter().enumerate() {
            assert_eq!(*gate as usize, at);
            assert_eq!(gate.name(), *name);
        }
        assert!(TABLE.is_sorted_by_key(|(_, name, _)| *name));
    }

    #[test]
    fn beta_gates_are_on_and_alpha_gates_off_until_set() {
        let mut gates = FeatureGates::default();
        assert!(gates.enabled(Gate::FastLeaseKeepAlive));
        assert!(!gates.enabled(Gate::LeaseCheckpoint));
        gates
            .set("AllAlpha=true, LeaseCheckpoint=false,AllBeta=0")
            .unwrap();
        assert!(gates.enabled(Gate::CompactHashCheck));
        assert!(
            !gates.enabled(Gate::LeaseCheckpoint),
            "a name wins over a switch"
        );
        assert!(!gates.enabled(Gate::FastLeaseKeepAlive));
        assert_eq!(
            gates.to_string(),
            "AllAlpha=true,AllBeta=false,LeaseCheckpoint=false"
        );
    }

    #[test]
    fn a_wrong_gate_changes_nothing() {
        let mut gates = FeatureGates::default();
        let error = gates.set("LeaseCheckpoint=true,Nope=true").unwrap_err();
        assert_eq!(error, "unrecognized feature gate: Nope");
        assert_eq!(gates, FeatureGates::default());
        let error = gates.set("LeaseCheckpoint").unwrap_err();
        assert_eq!(error, "missing bool value for feature gate LeaseCheckpoint");
        let error = gates.set("LeaseCheckpoint=yes").unwrap_err();
        assert!(error.starts_with("invalid value of LeaseCheckpoint=yes, err: strconv.ParseBool"));
    }
}
