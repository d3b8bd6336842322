//! Functions that say what an error means.

use std::any::{Any, type_name};
use std::fmt;
use std::sync::Arc;

use super::asked;
use super::end::End;

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
