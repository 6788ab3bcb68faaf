//! The decisions on the way to a credential, as a state machine without I/O.
//!
//! [`Plan`] says what to do next and takes the outcome; `obtain` executes it. The explorer in the tests runs the
//! same machine in a small model, in every order of three processes and with a crash between any two actions.

/// The next action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Prove the principal, if the identity key does not include it: read or request a token, without spending it.
    Prove,
    /// Check whether the stored credential is acceptable.
    Snapshot,
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
pub(crate) enum Outcome {
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
pub(crate) struct Plan {
    action: Action,
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

impl Plan {
    /// Starts an exchange. There is more than one try only if the source `can_be_asked_again`, because a failure may
    /// have spent the token.
    pub(crate) fn by_exchange(can_be_asked_again: bool) -> Self {
        let kind = if can_be_asked_again { Kind::Remintable } else { Kind::Single };
        Plan { action: Action::Prove, kind, tries: 0, duplicates: 0 }
    }

    /// Starts the adoption of an existing credential.
    pub(crate) fn by_adoption() -> Self {
        Plan { action: Action::Snapshot, kind: Kind::Adoption, tries: 0, duplicates: 0 }
    }

    /// Returns the next action.
    pub(crate) fn action(self) -> Action {
        self.action
    }

    /// Returns the state after this outcome of the current action.
    pub(crate) fn after(self, outcome: Outcome) -> Self {
        use {Action as A, Outcome as H};
        let action = match (self.action, outcome) {
            (A::Prove, H::Done) => A::Snapshot,
            (A::Snapshot | A::Lock | A::LookAgain, H::Acceptable) => A::Serve,
            (A::Snapshot, H::Unacceptable) => A::Lock,
            (A::LookAgain, H::Unacceptable) if self.kind == Kind::Adoption => A::Keep,
            (A::LookAgain, H::Unacceptable) => A::Recall,
            (A::Lock, H::Done) => A::LookAgain,
            (A::Recall | A::Pause, H::Done) => A::Ask,
            (A::Ask, H::Done) => return Plan { action: A::Connect, duplicates: 0, ..self },
            (A::Connect, H::Done) => A::Spend,
            (A::Spend, H::Done) => A::Send,
            (A::Send, H::Done) => A::Keep,
            (A::Keep, H::Done) => A::Serve,
            (A::Ask, H::AlreadySpent) if self.kind == Kind::Remintable && self.duplicates + 1 < DUPLICATES => {
                return Plan { action: A::Pause, duplicates: self.duplicates + 1, ..self };
            }
            (A::Send, H::Unsent) => A::TakeBack,
            // Whatever happened to this token, the next try uses a new one.
            (A::Connect | A::Spend | A::Send | A::TakeBack, H::Passing | H::AlreadySpent)
                if self.kind == Kind::Remintable && self.tries + 1 < TRIES =>
            {
                return Plan { action: A::Pause, tries: self.tries + 1, ..self };
            }
            (A::Ask | A::Connect | A::Spend | A::Send | A::TakeBack, _) => A::Remember,
            // After `Remember`, or a cached failure, there is nothing new to cache.
            _ => A::Fail,
        };
        Plan { action, ..self }
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
    use {Action as A, Outcome as H};

    const TO_THE_SOURCE: [Outcome; 5] = [H::Done, H::Unacceptable, H::Done, H::Unacceptable, H::Done];

    /// Returns the actions of one process for these outcomes.
    fn actions(mut plan: Plan, outcome: &[Outcome]) -> (Vec<Action>, Plan) {
        let step = |outcome: &Outcome| {
            plan = plan.after(*outcome);
            plan.action()
        };
        let actions = outcome.iter().map(step).collect();
        (actions, plan)
    }

    #[test]
    fn spent_token_is_requested_four_times_or_once_by_source() {
        let (acts_of_it, plan) = actions(Plan::by_exchange(true), &TO_THE_SOURCE);
        assert_eq!(acts_of_it, [A::Snapshot, A::Lock, A::LookAgain, A::Recall, A::Ask]);
        let again = [H::AlreadySpent, H::Done, H::AlreadySpent, H::Done, H::AlreadySpent, H::Done];
        let (paused, plan) = actions(plan, &again);
        assert_eq!(paused, [A::Pause, A::Ask].repeat(3));
        assert_eq!(plan.failures(), 3);
        assert_eq!(actions(plan, &[H::AlreadySpent, H::Done]).0, [A::Remember, A::Fail]);
        // Another token restarts the count. An attempt that failed with it is counted separately.
        let (ended, plan) = actions(plan, &[H::Done, H::Passing, H::Done]);
        assert_eq!((ended, plan.failures()), (vec![A::Connect, A::Pause, A::Ask], 1));
        assert_eq!(actions(plan, &again).0, [A::Pause, A::Ask].repeat(3));

        let (_, single) = actions(Plan::by_exchange(false), &TO_THE_SOURCE);
        assert_eq!(actions(single, &[H::AlreadySpent]).0, [A::Remember]);
    }

    #[test]
    fn process_without_proof_of_identity_reads_nothing() {
        assert_eq!(Plan::by_exchange(true).action(), A::Prove);
        for outcome in [H::Final, H::Passing, H::AlreadySpent] {
            assert_eq!(actions(Plan::by_exchange(true), &[outcome]).0, [A::Fail]);
        }
    }

    #[test]
    fn adopted_credential_is_stored_under_lock_without_request() {
        let outcome = [H::Unacceptable, H::Done, H::Unacceptable, H::Done];
        assert_eq!(actions(Plan::by_adoption(), &outcome).0, [A::Lock, A::LookAgain, A::Keep, A::Serve]);
    }
}
