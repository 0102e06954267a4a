//! Messages on standard error, with seconds since the start of the process.

mod flat;
mod limit;
mod stream;

use std::io::{self, IsTerminal};

use clap::ValueEnum;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::fmt::{self, time};
use tracing_subscriber::layer::SubscriberExt;

use self::flat::Flat;
use self::limit::Limit;
use self::stream::Stream;
pub use self::stream::tell_lost;
pub(crate) use self::stream::{has_lost, paragraph};

/// Least severity of messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[expect(missing_docs, reason = "the names say it")]
pub enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
}

/// Text for people or JSON for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[expect(missing_docs, reason = "the names say it")]
pub enum LogFormat {
    Text,
    Json,
}

/// Sets up logging for this process and its forks. Only the first call counts.
pub fn init(level: LogLevel, format: LogFormat) {
    let filter = match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
    };
    let layer = fmt::layer()
        .with_writer(Stream::open(format))
        .with_timer(time::uptime())
        .with_target(false);
    // A second call means that somebody else's subscriber is in place, which is as good.
    let _ = match format {
        LogFormat::Json => {
            let subscriber = Flat.with(layer.json()).with(filter).with(Limit::default());
            tracing::subscriber::set_global_default(subscriber)
        }
        LogFormat::Text => {
            let layer = layer.with_ansi(io::stderr().is_terminal());
            let subscriber = Flat.with(layer).with(filter).with(Limit::default());
            tracing::subscriber::set_global_default(subscriber)
        }
    };
}
