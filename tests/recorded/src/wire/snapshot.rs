//! The answer to `Maintenance.Snapshot`: a file in parts, then its SHA-256 as a part of its own.
//!
//! Size and content of the file differ from run to run, and so does the number of parts; what is
//! recorded as one long part stands for all of them.

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::compare::Difference;

/// Bytes of the last part.
const HASH_BYTES: usize = 32;

/// What has come of the file.
#[derive(Debug, Default)]
pub(super) struct Snapshot {
    hasher: Sha256,
    bytes: usize,
    /// The last part, when it came while the parts of the file were read.
    hash: Option<Vec<u8>>,
}

impl Snapshot {
    /// Takes a part; says whether it was the last one, the hash.
    ///
    /// # Errors
    /// When the message is no part of a snapshot.
    pub(super) fn take(&mut self, expected: &Value, part: &Value) -> Result<bool> {
        let blob = STANDARD.decode(part["blob"].as_str().context("a part without blob")?)?;
        anyhow::ensure!(
            part["version"] == expected["version"],
            "version {} where {} was recorded",
            part["version"],
            expected["version"]
        );
        if blob.len() == HASH_BYTES {
            self.hash = Some(blob);
            return Ok(true);
        }
        self.hasher.update(&blob);
        self.bytes += blob.len();
        Ok(false)
    }

    /// Whether the hash has come.
    pub(super) fn is_complete(&self) -> bool {
        self.hash.is_some()
    }

    /// What is wrong with the whole.
    pub(super) fn differences(&self) -> Vec<Difference> {
        let mut found = Vec::new();
        let digest = self.hasher.clone().finalize();
        if self.hash.as_deref() != Some(digest.as_slice()) {
            found.push(Difference {
                path: "blob of the last part".to_owned(),
                expected: format!("the SHA-256 of the parts before it, {digest:02x?}"),
                got: format!("{:02x?}", self.hash),
            });
        }
        if self.bytes == 0 || !self.bytes.is_multiple_of(512) {
            found.push(Difference {
                path: "blob".to_owned(),
                expected: "a file of whole pages".to_owned(),
                got: format!("{} bytes", self.bytes),
            });
        }
        found
    }
}
