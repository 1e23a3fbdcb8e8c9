//! The window of appends that were sent to a follower and not yet answered.

use std::collections::VecDeque;

use keelson_proto::ids::LogIndex;

/// The window: bounded in messages, and softly in bytes (the message that passes the limit is the
/// last one). Indexes only rise from its front to its back.
#[derive(Clone, Debug)]
pub(crate) struct Inflights {
    /// The last index and the data bytes of each message.
    sent: VecDeque<(LogIndex, u64)>,
    bytes: u64,
    messages_max: usize,
    /// 0 for no limit.
    bytes_max: u64,
}

impl Inflights {
    pub(crate) fn new(messages_max: usize, bytes_max: u64) -> Inflights {
        Inflights {
            sent: VecDeque::new(),
            bytes: 0,
            messages_max,
            bytes_max,
        }
    }

    /// Notes a message that ends with `last`.
    pub(crate) fn add(&mut self, last: LogIndex, bytes: u64) {
        assert!(!self.is_full(), "cannot add into a Full inflights");
        self.sent.push_back((last, bytes));
        self.bytes = self.bytes.saturating_add(bytes);
    }

    /// Forgets the messages that `index` acknowledges.
    pub(crate) fn free_up_to(&mut self, index: LogIndex) {
        while let Some(&(last, bytes)) = self.sent.front() {
            if last > index {
                break;
            }
            self.sent.pop_front();
            self.bytes = self.bytes.saturating_sub(bytes);
        }
    }

    pub(crate) fn is_full(&self) -> bool {
        self.sent.len() >= self.messages_max
            || (self.bytes_max != 0 && self.bytes >= self.bytes_max)
    }

    pub(crate) fn count(&self) -> usize {
        self.sent.len()
    }

    pub(crate) fn reset(&mut self) {
        self.sent.clear();
        self.bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_is_bounded_in_messages() {
        let mut window = Inflights::new(2, 0);
        window.add(LogIndex(1), 100);
        window.add(LogIndex(5), 100);
        assert!(window.is_full());
        window.free_up_to(LogIndex(4));
        assert_eq!(window.count(), 1);
        assert!(!window.is_full());
        window.free_up_to(LogIndex(5));
        assert_eq!(window.count(), 0);
    }

    #[test]
    fn the_message_that_passes_the_byte_limit_is_the_last() {
        let mut window = Inflights::new(10, 100);
        window.add(LogIndex(1), 99);
        assert!(!window.is_full());
        window.add(LogIndex(2), 50);
        assert!(window.is_full());
        window.free_up_to(LogIndex(1));
        assert!(!window.is_full());
    }
}
