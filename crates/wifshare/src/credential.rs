//! The access token with its metadata, and the arithmetic of its lifetime.

use std::ops::Range;
use std::time::{Duration, SystemTime};

use crate::secret::Secret;

/// The result of an exchange: one access token, shared by every process of a job.
///
/// Two credentials are equal if their access tokens are equal. The times of the same credential can differ between
/// processes if the wall clock was set.
#[derive(Clone, Debug)]
pub struct Credential {
    /// The bearer token (RFC 6750).
    pub access_token: Secret,
    /// When the token expires, to the second.
    pub expires_at: SystemTime,
    /// When the request of the exchange was sent, to the second. Earlier than `expires_at`.
    pub obtained_at: SystemTime,
    /// Counts the credentials of this identity, including this one. A later credential has a higher number.
    pub generation: u64,
}

impl PartialEq for Credential {
    fn eq(&self, other: &Credential) -> bool {
        self.access_token == other.access_token
    }
}

impl Eq for Credential {}

/// The state of a credential with respect to renewal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// No renewal is due.
    Fresh,
    /// Usable, but renewal is due.
    Expiring,
    /// Not to be served any more: it has expired, or expires so soon that a client would refuse it.
    Expired,
}

/// The SDKs re-read a credential file when 120 s are left, so the successor must be there before that
/// (docs/reference/protocol.md §4.1).
const CLIENTS_LOOK_AGAIN: Duration = Duration::from_secs(150);

/// The SDKs refuse a credential with 30 s left or less (docs/reference/protocol.md §4.1).
const CLIENTS_REFUSE: Duration = Duration::from_secs(30);

/// The SDKs certainly accept a credential with this much left. Includes the time that an exchange takes.
const CLIENTS_ACCEPT: Duration = Duration::from_secs(33);

/// Returns whether a text can be a bearer token: one word that can be sent in a header (RFC 6750 §2.1).
pub fn is_bearer_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic())
}

impl Credential {
    /// Returns the whole lifetime, from the exchange to the expiry.
    pub fn lifetime(&self) -> Duration {
        self.expires_at.duration_since(self.obtained_at).unwrap_or_default()
    }

    /// Returns the time until expiry; zero after it.
    pub fn remaining(&self, now: SystemTime) -> Duration {
        self.expires_at.duration_since(now).unwrap_or_default()
    }

    /// Returns when renewal is due.
    ///
    /// For a short lifetime, the lead before expiry is a share of the lifetime. With a fixed lead, a credential with a
    /// shorter lifetime than the lead would be due at once, and every lookup would cause an exchange.
    pub fn refresh_at(&self) -> SystemTime {
        self.expires_at - self.lead()
    }

    /// Returns when one of several sharing processes should renew: a tenth to a fifth of the lead before
    /// [`refresh_at`](Self::refresh_at).
    ///
    /// The first tenth leaves time for the exchange itself, which matters if a client refuses what is left at
    /// `refresh_at`. The rest spreads the renewals of jobs that started together. If the lead is more than half of a
    /// short lifetime, the offset is a share of the other half instead. `jitter` is between 0 and 1.
    pub fn refresh_at_with(&self, jitter: f64) -> SystemTime {
        let lead = self.lead();
        let share = lead.min(self.lifetime().saturating_sub(lead));
        self.refresh_at() - share.mul_f64((1.0 + jitter.clamp(0.0, 1.0)) / 10.0)
    }

    /// Returns the freshness at this moment.
    pub fn freshness(&self, now: SystemTime) -> Freshness {
        if self.remaining(now) <= self.margin() {
            Freshness::Expired
        } else if self.fresh_during().contains(&now) {
            Freshness::Fresh
        } else {
            Freshness::Expiring
        }
    }

    /// Returns the period in which the credential is fresh.
    pub fn fresh_during(&self) -> Range<SystemTime> {
        // If the clock is far before `obtained_at`, the expiry cannot be trusted: renew.
        self.obtained_at - CLIENTS_REFUSE..self.refresh_at()
    }

    /// Returns whether the credential may be served at this moment.
    pub fn is_usable(&self, now: SystemTime) -> bool {
        self.freshness(now) != Freshness::Expired
    }

    /// Returns the credential with times for a wall clock that was set back by this much.
    pub(crate) fn moved_back(&self, by: Duration) -> Credential {
        let moved = |moment: SystemTime| moment.checked_sub(by).unwrap_or(SystemTime::UNIX_EPOCH);
        let [expires_at, obtained_at] = [self.expires_at, self.obtained_at].map(moved);
        Credential { expires_at, obtained_at, ..self.clone() }
    }

    /// Returns the credential with its renewal due at this moment at the latest.
    pub(crate) fn due_by(&self, moment: SystemTime) -> Credential {
        self.moved_back(self.refresh_at().duration_since(moment).unwrap_or_default())
    }

    fn lead(&self) -> Duration {
        let lifetime = self.lifetime();
        let lead = CLIENTS_LOOK_AGAIN.max(lifetime / 5).min(lifetime / 2);
        // If the lifetime allows it, a served credential has more time left than clients require.
        let has_room = lifetime >= CLIENTS_ACCEPT + Duration::from_secs(5);
        if has_room { lead.max(CLIENTS_ACCEPT) } else { lead }
    }

    fn margin(&self) -> Duration {
        CLIENTS_REFUSE.min(self.lifetime() / 4)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::from_epoch_seconds;

    const BORN: u64 = 1_000_000;

    fn living(lifetime: u64) -> Credential {
        Credential {
            access_token: Secret::new("sk-ant-oat01-x".to_owned()),
            expires_at: from_epoch_seconds(BORN + lifetime),
            obtained_at: from_epoch_seconds(BORN),
            generation: 1,
        }
    }

    #[test]
    fn refresh_lead_is_150_s_or_a_share_of_the_lifetime() {
        for (lifetime, lead) in [
            (37, 18),
            (38, 33),
            (40, 33),
            (60, 33),
            (66, 33),
            (70, 35),
            (299, 149),
            (300, 150),
            (600, 150),
            (750, 150),
            (755, 151),
            (3600, 720),
        ] {
            let refresh_at = from_epoch_seconds(BORN + lifetime - lead);
            let difference = living(lifetime).refresh_at().duration_since(refresh_at).unwrap_or_default();
            assert!(difference < Duration::from_secs(1), "lifetime {lifetime}");
        }
    }

    #[test]
    fn short_lived_credential_is_fresh_at_first() {
        for lifetime in [1, 2, 10, 60, 600, 86_400] {
            assert_eq!(living(lifetime).freshness(from_epoch_seconds(BORN)), Freshness::Fresh, "lifetime {lifetime}");
        }
    }

    #[test]
    fn freshness_changes_at_its_boundaries() {
        let credential = living(600);
        for (age, freshness) in [
            (449, Freshness::Fresh),
            (450, Freshness::Expiring),
            (569, Freshness::Expiring),
            (570, Freshness::Expired),
            (600, Freshness::Expired),
            (601, Freshness::Expired),
        ] {
            assert_eq!(credential.freshness(from_epoch_seconds(BORN + age)), freshness, "age {age}");
        }
    }

    #[test]
    fn clock_before_obtained_at_makes_the_credential_expiring() {
        let credential = living(600);
        assert_eq!(credential.freshness(from_epoch_seconds(BORN - 30)), Freshness::Fresh, "within the leeway");
        assert_eq!(credential.freshness(from_epoch_seconds(BORN - 31)), Freshness::Expiring);
    }

    #[test]
    fn jitter_only_moves_the_refresh_earlier() {
        let credential = living(600);
        assert_eq!(credential.refresh_at_with(0.0), credential.refresh_at() - Duration::from_secs(15));
        assert_eq!(credential.refresh_at_with(1.0), credential.refresh_at() - Duration::from_secs(30));
        assert_eq!(credential.refresh_at_with(7.0), credential.refresh_at_with(1.0));
    }

    #[test]
    fn short_lived_credential_is_renewed_before_clients_refuse_it() {
        for lifetime in 38..300 {
            for jitter in [0.0, 0.5, 1.0] {
                let credential = living(lifetime);
                let left = credential.remaining(credential.refresh_at_with(jitter));
                assert!(left > CLIENTS_ACCEPT, "{left:?} left of {lifetime} s");
                assert!(credential.refresh_at_with(jitter) > credential.obtained_at + Duration::from_secs(3));
            }
        }
    }

    #[test]
    fn remaining_time_is_zero_after_expiry() {
        assert_eq!(living(600).remaining(from_epoch_seconds(BORN + 601)), Duration::ZERO);
    }
}
