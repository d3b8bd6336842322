//! Functions that say what an error means.

use std::any::{Any, type_name};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use crate::protocol::end::End;

/// Functions that say of which class an end with an error is, each for one type of errors.
#[derive(Clone, Default)]
pub(crate) struct ErrorClasses(Vec<(&'static str, Arc<Classify>)>);

/// `None`: the error is of another type.
type Classify = dyn Fn(&dyn Any) -> Option<End> + Send + Sync;

impl ErrorClasses {
    pub(crate) fn add<E: 'static>(&mut self, classify: impl Fn(&E) -> End + Send + Sync + 'static) {
        let classify = move |error: &dyn Any| error.downcast_ref().map(&classify);
        self.0.push((type_name::<E>(), Arc::new(classify)));
    }

    /// What the first function says whose type fits.
    pub(crate) fn class(&self, error: &dyn Any) -> Option<End> {
        self.0
            .iter()
            .find_map(|(_, classify)| asked("classify_error", || classify(error)))
    }
}

impl fmt::Debug for ErrorClasses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.0.iter().map(|(of, _)| of))
            .finish()
    }
}

/// Asks a function of the application. One that panics says *unknown*, and the log says so.
pub(crate) fn asked(name: &'static str, ask: impl FnOnce() -> Option<End>) -> Option<End> {
    catch_unwind(AssertUnwindSafe(ask)).unwrap_or_else(|panic| {
        let message = message(&*panic);
        tracing::error!(
            function = name,
            message,
            "a function that says what the end of a run means panicked; the end counts as unknown"
        );
        Some(End::Unknown)
    })
}

/// What a panic says, if it is a text.
fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("it says nothing")
}

#[cfg(test)]
mod tests {
    use std::fmt::Error;

    use super::*;

    #[test]
    fn the_first_function_whose_type_fits_decides() {
        let mut classes = ErrorClasses::default();
        classes.add(|_: &Error| End::NothingDone);
        classes.add(|number: &u8| match number {
            0 => End::Final,
            _ => panic!("as planned"),
        });
        classes.add(|_: &u8| End::NothingDone);
        assert_eq!(classes.class(&Error), Some(End::NothingDone));
        assert_eq!(classes.class(&0_u8), Some(End::Final));
        assert_eq!(classes.class(&1_u8), Some(End::Unknown));
        assert_eq!(classes.class(&1_u16), None);
        assert_eq!(
            format!("{classes:?}"),
            r#"["core::fmt::Error", "u8", "u8"]"#
        );
    }
}
