//! What the state machine would log: handed to a sink, so that the core stays pure.
//!
//! The texts are those of etcd's raft log lines, because operators search for them.

use std::fmt;

/// How much an event matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// For those who follow single messages.
    Debug,
    /// What the reference says at info although it happens in normal operation: operators are spared.
    Routine,
    /// Changes of role, term and configuration.
    Info,
    /// Something did not go as it should.
    Warn,
    /// A call that makes no sense was ignored.
    Error,
}

/// Takes events as they happen, in order.
pub trait EventSink: Send {
    /// Takes one event; `text` is formatted only if the sink does so.
    fn record(&mut self, level: Level, text: fmt::Arguments<'_>);
}

/// Passes events on to `tracing`, with the target `raft`.
#[derive(Clone, Copy, Debug, Default)]
pub struct TracingEvents;

impl EventSink for TracingEvents {
    fn record(&mut self, level: Level, text: fmt::Arguments<'_>) {
        match level {
            Level::Debug | Level::Routine => tracing::debug!(target: "raft", "{text}"),
            Level::Info => tracing::info!(target: "raft", "{text}"),
            Level::Warn => tracing::warn!(target: "raft", "{text}"),
            Level::Error => tracing::error!(target: "raft", "{text}"),
        }
    }
}

/// Records one event: `event!(sink, Info, "{} did this", id)`.
macro_rules! event {
    ($sink:expr, $level:ident, $($text:tt)+) => {
        $sink.record($crate::events::Level::$level, format_args!($($text)+))
    };
}

pub(crate) use event;
