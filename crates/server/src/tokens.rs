//! Simple tokens: sixteen random letters, a dot, and the index of the entry that made them.
//!
//! They live in memory only, each for a while after its last use, and go with their user, the
//! user's password, or authentication as a whole. Expired ones are refused when they are shown and
//! cleared away when others are made, so nobody has to sweep.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rand::Rng as _;
use sha2::{Digest as _, Sha256};

/// Letters before the dot.
const LETTERS: usize = 16;

/// How many tokens are made before the expired ones are looked for.
const SWEEP_EVERY: u32 = 64;

/// The tokens of a member.
pub(crate) struct Tokens {
    life: Duration,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    tokens: HashMap<String, Holder>,
    made: u32,
}

struct Holder {
    user: String,
    used: Instant,
}

/// The random part of a token.
pub(crate) fn random_part() -> String {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let mut random = rand::rng();
    (0..LETTERS)
        .map(|_| {
            let at = random.random_range(0..ALPHABET.len());
            char::from(ALPHABET.get(at).copied().unwrap_or(b'A'))
        })
        .collect()
}

/// The index of the entry that made a token, if it looks like one.
pub(crate) fn index(token: &str) -> Option<u64> {
    let (letters, index) = token.split_once('.')?;
    (!letters.is_empty()).then_some(())?;
    index.parse().ok()
}

/// What the log may show of a token: the first letters of its SHA-256 in hex, as etcd does.
pub(crate) fn fingerprint(token: &str) -> String {
    let digest = Sha256::digest(token);
    digest.iter().take(6).fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

impl Tokens {
    /// An empty table of tokens that live so long after their last use.
    pub(crate) fn new(life: Duration) -> Tokens {
        Tokens {
            life,
            table: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // Nothing panics while it holds the lock.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in a token that has been made for a user.
    pub(crate) fn add(&self, token: String, user: String, now: Instant) {
        let mut table = self.lock();
        table.made = table.made.wrapping_add(1);
        if table.made.is_multiple_of(SWEEP_EVERY) {
            let life = self.life;
            table
                .tokens
                .retain(|_, holder| now.duration_since(holder.used) < life);
        }
        table.tokens.insert(token, Holder { user, used: now });
    }

    /// Whose token it is; its life begins anew.
    pub(crate) fn user(&self, token: &str, now: Instant) -> Option<String> {
        let mut table = self.lock();
        let holder = table.tokens.get_mut(token)?;
        if now.duration_since(holder.used) >= self.life {
            table.tokens.remove(token);
            return None;
        }
        holder.used = now;
        Some(holder.user.clone())
    }

    /// Whether it is there, expired or not; its life goes on as before.
    pub(crate) fn knows(&self, token: &str) -> bool {
        self.lock().tokens.contains_key(token)
    }

    /// Forgets the tokens of a user.
    pub(crate) fn forget_user(&self, user: &str) {
        self.lock().tokens.retain(|_, holder| holder.user != user);
    }

    /// Forgets all tokens.
    pub(crate) fn forget_all(&self) {
        self.lock().tokens.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_lives_as_long_as_it_is_used() {
        let tokens = Tokens::new(Duration::from_secs(300));
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        tokens.add("a.1".into(), "root".into(), start);
        assert_eq!(tokens.user("a.1", at(299)).as_deref(), Some("root"));
        assert_eq!(tokens.user("a.1", at(598)).as_deref(), Some("root"));
        assert_eq!(tokens.user("a.1", at(898)), None);
        assert_eq!(tokens.user("a.1", at(899)), None);
    }

    #[test]
    fn tokens_go_with_their_user_and_no_other() {
        let tokens = Tokens::new(Duration::from_secs(300));
        let now = Instant::now();
        tokens.add("a.1".into(), "root".into(), now);
        tokens.add("b.2".into(), "alice".into(), now);
        tokens.forget_user("root");
        assert_eq!(tokens.user("a.1", now), None);
        assert_eq!(tokens.user("b.2", now).as_deref(), Some("alice"));
        tokens.forget_all();
        assert_eq!(tokens.user("b.2", now), None);
    }

    #[test]
    fn expired_tokens_are_cleared_away() {
        let tokens = Tokens::new(Duration::from_secs(1));
        let start = Instant::now();
        for number in 0..1000 {
            let now = start + Duration::from_secs(number);
            tokens.add(format!("t.{number}"), "root".into(), now);
        }
        assert!(tokens.lock().tokens.len() <= SWEEP_EVERY as usize);
    }

    #[test]
    fn a_fingerprint_is_twelve_letters_of_the_hash() {
        assert_eq!(fingerprint("abc"), "ba7816bf8f01");
    }

    #[test]
    fn the_random_part_is_sixteen_letters() {
        let (one, other) = (random_part(), random_part());
        assert_eq!(one.len(), 16);
        assert!(one.bytes().all(|byte| byte.is_ascii_alphabetic()));
        assert_ne!(one, other);
    }
}
