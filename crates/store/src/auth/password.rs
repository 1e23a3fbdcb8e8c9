//! Passwords: bcrypt as etcd writes and reads it.
//!
//! These functions block for as long as the cost makes them (50 ms and more): never call them
//! where entries are applied, but for [`hash_of_old_entry`], which only entries of etcd 3.4 and
//! older need.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bcrypt::Version;
use keelson_proto::ApiError;
use sha1::{Digest as _, Sha1};

/// The cost where none is configured.
pub const COST_DEFAULT: u32 = 10;

/// The longest password that can be hashed.
pub const PASSWORD_BYTES_MAX: usize = 72;

/// Hashes a password with a fresh salt: the bcrypt text, `$2a$..`, 60 bytes.
///
/// A `cost` outside of 4 to 31 stands for [`COST_DEFAULT`].
///
/// # Errors
///
/// [`ApiError::PasswordTooLong`] above [`PASSWORD_BYTES_MAX`] bytes; [`ApiError::AuthFailed`] where
/// the machine has no randomness to give.
pub fn hash(password: &str, cost: u32) -> Result<String, ApiError> {
    if password.len() > PASSWORD_BYTES_MAX {
        return Err(ApiError::PasswordTooLong);
    }
    bcrypt::hash_with_result(password, allowed(cost))
        .map(|parts| parts.format_for_version(Version::TwoA))
        .map_err(|_| ApiError::AuthFailed)
}

/// The `hashedPassword` that goes into an entry: [`hash`] in base64.
///
/// # Errors
///
/// As [`hash`].
pub fn propose_hash(password: &str, cost: u32) -> Result<String, ApiError> {
    hash(password, cost).map(|text| STANDARD.encode(text))
}

/// Whether the password is the one that was hashed. A hash that is not bcrypt's fits none.
///
/// Any minor version is accepted, and passwords past [`PASSWORD_BYTES_MAX`] are compared by their
/// beginning, as Go's bcrypt does both.
#[must_use]
pub fn verify(password: &str, hashed: &[u8]) -> bool {
    let Ok(hashed) = std::str::from_utf8(hashed) else {
        return false;
    };
    let rest = match hashed.strip_prefix("$2") {
        Some(rest) if rest.starts_with('$') => rest.get(1..),
        Some(rest) => rest
            .char_indices()
            .nth(1)
            .and_then(|(minor_end, _)| rest.get(minor_end..))
            .and_then(|rest| rest.strip_prefix('$')),
        None => None,
    };
    rest.is_some_and(|rest| bcrypt::verify(password, &format!("$2a${rest}")).unwrap_or(false))
}

/// The hash that an entry without `hashedPassword` gives: etcd 3.4 and older replicated the
/// password itself, and every member salted by itself. Here the salt comes from the entry, so that
/// members agree.
pub(super) fn hash_of_old_entry(name: &str, password: &str, revision: u64) -> Option<String> {
    if password.len() > PASSWORD_BYTES_MAX {
        return None;
    }
    let mut digest = Sha1::new();
    for part in [name.as_bytes(), password.as_bytes()] {
        digest.update((part.len() as u64).to_be_bytes());
        digest.update(part);
    }
    digest.update(revision.to_be_bytes());
    let mut salt = [0; 16];
    salt.copy_from_slice(&digest.finalize()[..16]);
    bcrypt::hash_with_salt(password, COST_DEFAULT, salt)
        .ok()
        .map(|parts| parts.format_for_version(Version::TwoA))
}

fn allowed(cost: u32) -> u32 {
    if (4..=31).contains(&cost) {
        cost
    } else {
        COST_DEFAULT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_fits_its_own_hash_alone() {
        let hashed = hash("pässword", 4).unwrap();
        assert_eq!(hashed.len(), 60);
        assert!(hashed.starts_with("$2a$04$"));
        assert!(verify("pässword", hashed.as_bytes()));
        assert!(!verify("passwort", hashed.as_bytes()));
    }

    #[test]
    fn hashes_that_etcd_wrote_are_read() {
        // Recorded with etcd 3.7.
        for (password, hashed) in [
            (
                "alicepw",
                "$2a$04$9uB/ksRBAffAb3BJqrimoeP0WkF/s1Hoo3ytsFRWIbxAyg/D1smSW",
            ),
            (
                "carol2",
                "$2a$04$N7pschvUvHclUDusbd8skOO1QVvI3cj5oVXv8jsVOqHEHEnV1lZ..",
            ),
            (
                "davepw",
                "$2a$04$KzoSCGSfQw8ceRLSz/7VW.I4XGQlXJQgyLPc3McELmTCMd7AhkSO.",
            ),
            (
                "rootpw",
                "$2a$04$4oUEW372vq/P8Xpk7/EnTu79lXAtz6sbyPEZbpaOCuOFmJ1GaCi5C",
            ),
        ] {
            assert!(verify(password, hashed.as_bytes()), "{password}");
            assert!(!verify("other", hashed.as_bytes()));
        }
    }

    #[test]
    fn any_minor_version_is_read() {
        let hashed = hash("secret", 4).unwrap();
        for version in ["$2$", "$2b$", "$2y$", "$2z$"] {
            let other = hashed.replacen("$2a$", version, 1);
            assert!(verify("secret", other.as_bytes()), "{other}");
        }
        for broken in [
            "",
            "$2",
            "$2ä",
            "$3a$04$",
            "plain",
            &hashed[1..],
            &hashed[..59],
        ] {
            assert!(!verify("secret", broken.as_bytes()), "{broken}");
        }
    }

    #[test]
    fn seventy_two_bytes_are_hashed_and_seventy_three_are_refused() {
        let longest = "p".repeat(72);
        let hashed = hash(&longest, 4).unwrap();
        assert!(verify(&longest, hashed.as_bytes()));
        assert!(verify(&"p".repeat(80), hashed.as_bytes()));
        assert!(!verify(&"p".repeat(71), hashed.as_bytes()));
        assert_eq!(hash(&"p".repeat(73), 4), Err(ApiError::PasswordTooLong));
    }

    #[test]
    fn an_empty_password_is_one_like_any_other() {
        let hashed = hash("", 4).unwrap();
        assert!(verify("", hashed.as_bytes()));
        assert!(!verify("\0x", hashed.as_bytes()));
    }

    #[test]
    fn members_agree_on_the_hash_of_an_old_entry() {
        let first = hash_of_old_entry("alice", "secret", 7).unwrap();
        assert_eq!(hash_of_old_entry("alice", "secret", 7).unwrap(), first);
        assert_ne!(hash_of_old_entry("bob", "secret", 7).unwrap(), first);
        assert!(verify("secret", first.as_bytes()));
        assert_eq!(hash_of_old_entry("alice", &"p".repeat(73), 7), None);
    }
}
