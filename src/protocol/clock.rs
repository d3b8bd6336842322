//! Wall time, read in one place and handed on as a value.

use std::time::{Duration, SystemTime};

/// A moment of wall time, in microseconds since the Unix epoch.
///
/// A store that has no clock of its own compares timestamps that different machines took, so they
/// are wall time and not a monotonic clock's; a margin for skew is part of every comparison of a
/// lease.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(u64);

impl Timestamp {
    /// The Unix epoch: a lease with this deadline has lapsed at any time.
    pub const EPOCH: Self = Self(0);

    /// A moment given in microseconds since the Unix epoch.
    pub const fn from_micros(micros: u64) -> Self {
        Self(micros)
    }

    /// A moment given in milliseconds since the Unix epoch.
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis.saturating_mul(1_000))
    }

    /// Microseconds since the Unix epoch.
    pub const fn as_micros(self) -> u64 {
        self.0
    }

    /// Whole milliseconds since the Unix epoch, rounded down.
    pub const fn as_millis(self) -> u64 {
        self.0 / 1_000
    }

    /// This moment in UTC to the second, as RFC 3339 has it; later than the year 9999, the last
    /// second of that.
    pub(crate) fn to_rfc3339(self) -> String {
        const DAY: u64 = 24 * 60 * 60;
        const LAST_SECOND: u64 = 253_402_300_799;
        let seconds = (self.0 / 1_000_000).min(LAST_SECOND);
        let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
        // Howard Hinnant's `civil_from_days`: years begin in March, so that a leap day is the
        // last of its year.
        let days = seconds / DAY + 719_468;
        let (era, of_era) = (days / 146_097, days % 146_097);
        let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let from_march = (5 * of_year + 2) / 153;
        let day = of_year - (153 * from_march + 2) / 5 + 1;
        let month = if from_march < 10 {
            from_march + 3
        } else {
            from_march - 9
        };
        let year = era * 400 + year_of_era + u64::from(month <= 2);
        format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
    }

    /// The time from `earlier` to this moment; zero when `earlier` is later.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }

    /// This moment and `duration` more; the last moment there is when that is past it.
    #[must_use]
    pub fn plus(self, duration: Duration) -> Self {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(micros))
    }

    /// This moment and `duration` less; the Unix epoch when that is before it.
    #[must_use]
    pub fn minus(self, duration: Duration) -> Self {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        Self(self.0.saturating_sub(micros))
    }
}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        let since_epoch = time
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        Self::EPOCH.plus(since_epoch)
    }
}

impl From<Timestamp> for SystemTime {
    fn from(timestamp: Timestamp) -> Self {
        Self::UNIX_EPOCH
            .checked_add(Duration::from_micros(timestamp.0))
            .unwrap_or(Self::UNIX_EPOCH)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_saturates() {
        let late = Timestamp::from_micros(u64::MAX - 1);
        assert_eq!(late.plus(Duration::MAX), Timestamp::from_micros(u64::MAX));
        assert_eq!(late.minus(Duration::MAX), Timestamp::EPOCH);
        assert_eq!(Timestamp::EPOCH.since(late), Duration::ZERO);
        assert_eq!(
            Timestamp::from_millis(u64::MAX),
            Timestamp::from_micros(u64::MAX)
        );
    }

    #[test]
    fn times_are_written_as_rfc_3339_has_them() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (784_111_777, "1994-11-06T08:49:37Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_800, "2000-03-01T00:00:00Z"),
            (4_107_542_399, "2100-02-28T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
            (u64::MAX / 1_000, "9999-12-31T23:59:59Z"),
        ] {
            assert_eq!(
                Timestamp::from_millis(seconds.saturating_mul(1_000)).to_rfc3339(),
                text
            );
        }
    }

    #[test]
    fn system_time_survives_the_round_trip() {
        let time = SystemTime::UNIX_EPOCH + Duration::from_micros(1_790_000_000_123_456);
        assert_eq!(SystemTime::from(Timestamp::from(time)), time);
    }
}
