//! How long a body may be waited for.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use pin_project_lite::pin_project;

use crate::executor::after;
use crate::runtime::{self, Instant, Sleep, sleep_until};

/// A timer that fires so much later than it was set for was not looked at in time: its task was
/// not polled, and the body may have come meanwhile.
const LATE: Duration = Duration::from_millis(100);

/// Limits the time for which a body may be silent, and that in which it must end.
///
/// It makes a timer only when the body has to be waited for. Time in which nobody polls does not
/// count.
#[derive(Debug, Default)]
pub(crate) struct Patience {
    armed: Option<Pin<Box<Armed>>>,
}

/// How long a body may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// For how long it may be silent.
    pub(crate) idle: Duration,
    /// In how long it must end.
    pub(crate) total: Duration,
}

pin_project! {
    #[derive(Debug)]
    struct Armed {
        idle_at: Instant,
        ends_at: Instant,
        // How much had come when it was last looked at.
        come: usize,
        #[pin]
        sleep: Sleep,
    }
}

impl Patience {
    /// Whether a body had to be waited for.
    pub(crate) const fn is_armed(&self) -> bool {
        self.armed.is_some()
    }

    /// Is asked when a body is pending of which so much has come; ready when the time is over.
    pub(crate) fn poll(&mut self, limits: Limits, come: usize, cx: &mut Context<'_>) -> Poll<()> {
        let Limits { idle, total } = limits;
        let armed = self.armed.get_or_insert_with(|| {
            let (idle_at, ends_at) = (after(idle), after(total));
            Box::pin(Armed {
                idle_at,
                ends_at,
                come,
                sleep: sleep_until(idle_at.min(ends_at)),
            })
        });
        let mut armed = armed.as_mut().project();
        if come != *armed.come {
            *armed.come = come;
            *armed.idle_at = after(idle);
        }
        loop {
            if armed.sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            let now = runtime::now();
            let late = now.saturating_duration_since(armed.sleep.deadline());
            if late > LATE {
                *armed.ends_at = armed.ends_at.checked_add(late).unwrap_or(*armed.ends_at);
                *armed.idle_at = after(idle);
            }
            let due = (*armed.idle_at).min(*armed.ends_at);
            if now >= due {
                return Poll::Ready(());
            }
            armed.sleep.as_mut().reset(due);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::task::Waker;

    use tokio::time::{advance, sleep, timeout};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn limits(idle: Duration, total: Duration) -> Limits {
        Limits { idle, total }
    }

    fn poll(patience: &mut Patience, limits: Limits, come: usize) -> bool {
        let mut context = Context::from_waker(Waker::noop());
        patience.poll(limits, come, &mut context).is_ready()
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_is_silent_is_given_up() {
        let mut patience = Patience::default();
        let limits = limits(SECOND, 10 * SECOND);
        let began = Instant::now();
        poll_fn(|cx| patience.poll(limits, 0, cx)).await;
        assert_eq!((Instant::now() - began).as_millis() / 10, 100);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_comes_in_drops_is_given_up_at_its_end() {
        let mut patience = Patience::default();
        let limits = limits(SECOND, 10 * SECOND);
        let began = Instant::now();
        let mut come = 0;
        while timeout(SECOND / 2, poll_fn(|cx| patience.poll(limits, come, cx)))
            .await
            .is_err()
        {
            come += 1;
        }
        assert_eq!((Instant::now() - began).as_millis() / 10, 1_000);
    }

    #[tokio::test(start_paused = true)]
    async fn time_in_which_nobody_polls_does_not_count() {
        let mut patience = Patience::default();
        let limits = limits(SECOND, 2 * SECOND);
        assert!(!poll(&mut patience, limits, 0));
        advance(100 * SECOND).await;
        assert!(
            !poll(&mut patience, limits, 0),
            "it may have come meanwhile"
        );
        advance(SECOND).await;
        assert!(poll(&mut patience, limits, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_time_without_an_end_is_no_fault() {
        let mut patience = Patience::default();
        let limits = limits(Duration::MAX, Duration::MAX);
        assert!(!poll(&mut patience, limits, 0));
        sleep(1_000 * SECOND).await;
        assert!(!poll(&mut patience, limits, 0));
    }
}
