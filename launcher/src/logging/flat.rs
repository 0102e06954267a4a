//! A subscriber for messages alone. Spans are nothing to this program, and the usual registry of theirs takes 32 KiB of
//! each machine's memory before there is one.

use std::convert::Infallible;

use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::registry::{Extensions, ExtensionsMut, LookupSpan, SpanData};

/// Leaves messages to the layers above it, and knows no span.
#[derive(Debug)]
pub(super) struct Flat;

/// What all spans are to it.
const SPAN: Id = Id::from_non_zero_u64(std::num::NonZeroU64::MIN);

impl Subscriber for Flat {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event()
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        SPAN
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, _: &Event<'_>) {}

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

impl<'a> LookupSpan<'a> for Flat {
    type Data = NoSpan;

    fn span_data(&'a self, _: &Id) -> Option<NoSpan> {
        None
    }
}

/// What is known of a span, of which there is none.
#[derive(Debug)]
pub(super) struct NoSpan(Infallible);

impl<'a> SpanData<'a> for NoSpan {
    fn id(&self) -> Id {
        match self.0 {}
    }

    fn metadata(&self) -> &'static Metadata<'static> {
        match self.0 {}
    }

    fn parent(&self) -> Option<&Id> {
        match self.0 {}
    }

    fn extensions(&self) -> Extensions<'_> {
        match self.0 {}
    }

    fn extensions_mut(&self) -> ExtensionsMut<'_> {
        match self.0 {}
    }
}
