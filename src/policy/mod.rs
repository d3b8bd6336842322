//! What an end means, and what an orphan means.

mod end;
mod errors;
mod judged;
mod media;
mod orphan;
mod recording;
mod refused;
mod said;

pub(crate) use self::end::Effects;
pub use self::end::End;
pub(crate) use self::errors::ErrorClasses;
pub(crate) use self::judged::Judged;
pub(crate) use self::media::has_second_message;
pub use self::orphan::{Orphan, Orphaned, Reconcile, Reconciled};
use self::recording::asked;
pub use self::recording::{CapturedResponse, Recording};
pub use self::said::{RecordingOverride, Summary, SummaryTooLong};
