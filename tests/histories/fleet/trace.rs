//! What the machines of all attempts were told and said.

use std::fmt::{Debug, Write};
use std::sync::{Arc, Mutex};

use tokio::time::Instant;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id};
use tracing::subscriber::DefaultGuard;
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::{LookupSpan, Registry};

/// Collects what this thread traces as long as it is there.
pub(super) struct Trace {
    lines: Lines,
    guard: DefaultGuard,
}

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Collected>>);

#[derive(Default)]
struct Collected {
    lines: Vec<String>,
    /// When the first of them was.
    began: Option<Instant>,
}

/// The fields of a span or an event as text.
struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let _ = write!(self.0, " {field}={value:?}");
    }
}

impl Trace {
    pub(super) fn begin() -> Self {
        let lines = Lines::default();
        let subscriber = Registry::default().with(lines.clone());
        Self {
            lines,
            guard: tracing::subscriber::set_default(subscriber),
        }
    }

    pub(super) fn end(self) -> Vec<String> {
        drop(self.guard);
        let mut collected = self.lines.0.lock().expect("nobody panics");
        std::mem::take(&mut collected.lines)
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Lines {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut text = Text(String::new());
        attributes.record(&mut text);
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(text);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        if !event.metadata().target().starts_with("tower_idempotency") {
            return;
        }
        let now = Instant::now();
        let mut collected = self.0.lock().expect("nobody panics");
        let began = *collected.began.get_or_insert(now);
        let mut text = Text((now - began).as_micros().to_string());
        if let Some(span) = context.event_span(event)
            && let Some(node) = span.extensions().get::<Text>()
        {
            text.0.push_str(&node.0);
        }
        event.record(&mut text);
        collected.lines.push(text.0);
    }
}
