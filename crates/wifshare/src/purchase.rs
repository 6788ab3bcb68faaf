//! The decisions on the way to a credential, as a state machine without I/O.
//!
//! [`Purchase`] says what to do next and takes the outcome; `obtain` executes it. The explorer in the tests runs the
//! same machine in a small model, in every order of three processes and with a crash between any two actions.

/// The next action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    /// Prove the principal, if the identity key does not include it: read or request a token, without spending it.
    Prove,
    /// Check whether the stored credential is acceptable.
    Look,
    /// Wait for the lock, and hold it until the end. While another process holds it, check whether that process
    /// obtained a credential or was refused.
    Lock,
    /// Check the store again: another process may have stored a credential while this one waited for the lock.
    LookAgain,
    /// Check for a recently cached failure.
    Recall,
    /// Request an identity token from the source, and check the ledger for it.
    Ask,
    /// Connect to the token endpoint. The token is not sent yet.
    Connect,
    /// Record the token as spent, and sync.
    Spend,
    /// Send the token, once, and parse the response.
    Send,
    /// Remove the token from the ledger: no byte of it was sent.
    TakeBack,
    /// Store the new credential.
    Keep,
    /// Wait before another try.
    Pause,
    /// Cache the failure for other processes.
    Remember,
    /// Final: return the credential.
    Serve,
    /// Final: return the last failure.
    Fail,
}

/// The outcome of an action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    /// It succeeded.
    Done,
    /// A lookup, or a wait for the lock, found an acceptable credential.
    Acceptable,
    /// A lookup found no acceptable credential.
    Unacceptable,
    /// The ledger contains the token: it may have been sent.
    AlreadySpent,
    /// Sending failed, and no byte of the token was sent.
    Unsent,
    /// It failed, and a new identity token may help.
    Passing,
    /// It failed, and would fail again.
    Final,
}

/// The state of one process on its way to a credential.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Purchase {
    act: Act,
    kind: Kind,
    /// Exchanges started.
    tries: u8,
    /// Spent tokens received from the source in a row.
    duplicates: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// By exchange, from a source that issues a new token on each request.
    Remintable,
    /// By exchange, from a source that may have only one token.
    Single,
    /// By adoption of a credential that a child obtained. The principal was proven before.
    Adoption,
}

/// Maximum number of exchanges, each with its own token.
const TRIES: u8 = 3;

/// Maximum number of spent tokens that are accepted from the source in a row.
const DUPLICATES: u8 = 4;

impl Purchase {
    /// Starts an exchange. There is more than one try only if the source `can_be_asked_again`, because a failure may
    /// have spent the token.
    pub(crate) fn by_exchange(can_be_asked_again: bool) -> Self {
        let kind = if can_be_asked_again { Kind::Remintable } else { Kind::Single };
        Purchase { act: Act::Prove, kind, tries: 0, duplicates: 0 }
    }

    /// Starts the adoption of an existing credential.
    pub(crate) fn by_adoption() -> Self {
        Purchase { act: Act::Look, kind: Kind::Adoption, tries: 0, duplicates: 0 }
    }

    /// Returns the next action.
    pub(crate) fn act(self) -> Act {
        self.act
    }

    /// Returns the state after this outcome of the current action.
    pub(crate) fn after(self, heard: Heard) -> Self {
        use {Act as A, Heard as H};
        let act = match (self.act, heard) {
            (A::Prove, H::Done) => A::Look,
            (A::Look | A::Lock | A::LookAgain, H::Acceptable) => A::Serve,
            (A::Look, H::Unacceptable) => A::Lock,
            (A::LookAgain, H::Unacceptable) if self.kind == Kind::Adoption => A::Keep,
            (A::LookAgain, H::Unacceptable) => A::Recall,
            (A::Lock, H::Done) => A::LookAgain,
            (A::Recall | A::Pause, H::Done) => A::Ask,
            (A::Ask, H::Done) => return Purchase { act: A::Connect, duplicates: 0, ..self },
            (A::Connect, H::Done) => A::Spend,
            (A::Spend, H::Done) => A::Send,
            (A::Send, H::Done) => A::Keep,
            (A::Keep, H::Done) => A::Serve,
            (A::Ask, H::AlreadySpent) if self.kind == Kind::Remintable && self.duplicates + 1 < DUPLICATES => {
                return Purchase { act: A::Pause, duplicates: self.duplicates + 1, ..self };
            }
            (A::Send, H::Unsent) => A::TakeBack,
            // Whatever happened to this token, the next try uses a new one.
            (A::Connect | A::Spend | A::Send | A::TakeBack, H::Passing | H::AlreadySpent)
                if self.kind == Kind::Remintable && self.tries + 1 < TRIES =>
            {
                return Purchase { act: A::Pause, tries: self.tries + 1, ..self };
            }
            (A::Ask | A::Connect | A::Spend | A::Send | A::TakeBack, _) => A::Remember,
            // After `Remember`, or a cached failure, there is nothing new to cache.
            _ => A::Fail,
        };
        Purchase { act, ..self }
    }

    /// Returns the number of failed tries, which determines the length of a pause.
    pub(crate) fn failures(self) -> u32 {
        u32::from(self.tries) + u32::from(self.duplicates)
    }
}

#[cfg(test)]
mod explored;
#[cfg(test)]
mod model;
#[cfg(test)]
mod sampled;

#[cfg(test)]
mod tests {
    use super::*;
    use {Act as A, Heard as H};

    const TO_THE_SOURCE: [Heard; 5] = [H::Done, H::Unacceptable, H::Done, H::Unacceptable, H::Done];

    /// Returns the actions of one process for these outcomes.
    fn acts(mut purchase: Purchase, heard: &[Heard]) -> (Vec<Act>, Purchase) {
        let step = |heard: &Heard| {
            purchase = purchase.after(*heard);
            purchase.act()
        };
        let acts = heard.iter().map(step).collect();
        (acts, purchase)
    }

    #[test]
    fn spent_token_is_requested_four_times_or_once_by_source() {
        let (acts_of_it, purchase) = acts(Purchase::by_exchange(true), &TO_THE_SOURCE);
        assert_eq!(acts_of_it, [A::Look, A::Lock, A::LookAgain, A::Recall, A::Ask]);
        let again = [H::AlreadySpent, H::Done, H::AlreadySpent, H::Done, H::AlreadySpent, H::Done];
        let (paused, purchase) = acts(purchase, &again);
        assert_eq!(paused, [A::Pause, A::Ask].repeat(3));
        assert_eq!(purchase.failures(), 3);
        assert_eq!(acts(purchase, &[H::AlreadySpent, H::Done]).0, [A::Remember, A::Fail]);
        // Another token restarts the count. An attempt that failed with it is counted separately.
        let (ended, purchase) = acts(purchase, &[H::Done, H::Passing, H::Done]);
        assert_eq!((ended, purchase.failures()), (vec![A::Connect, A::Pause, A::Ask], 1));
        assert_eq!(acts(purchase, &again).0, [A::Pause, A::Ask].repeat(3));

        let (_, single) = acts(Purchase::by_exchange(false), &TO_THE_SOURCE);
        assert_eq!(acts(single, &[H::AlreadySpent]).0, [A::Remember]);
    }

    #[test]
    fn process_without_proof_of_identity_reads_nothing() {
        assert_eq!(Purchase::by_exchange(true).act(), A::Prove);
        for heard in [H::Final, H::Passing, H::AlreadySpent] {
            assert_eq!(acts(Purchase::by_exchange(true), &[heard]).0, [A::Fail]);
        }
    }

    #[test]
    fn adopted_credential_is_stored_under_lock_without_request() {
        let heard = [H::Unacceptable, H::Done, H::Unacceptable, H::Done];
        assert_eq!(acts(Purchase::by_adoption(), &heard).0, [A::Lock, A::LookAgain, A::Keep, A::Serve]);
    }
}
