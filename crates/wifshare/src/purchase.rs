//! The decisions between wanting a credential and having one, as a machine without I/O.
//!
//! [`Purchase`] says what is to be done next and hears what came of it. `obtain` does it in the world. The explorer in
//! the tests does it in a small model of the world, in every order that three processes can take, with a crash possible
//! between any two acts: what runs is what was explored.

/// What is to be done next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    /// Show who this process acts for, where the identity key does not say it: a token is read or asked for, and not
    /// spent.
    Prove,
    /// Look whether the stored credential is acceptable.
    Look,
    /// Wait for the lock, and keep it until the end; while another process has it, look whether that one has done the
    /// work or was refused.
    Lock,
    /// Look again: between wanting the lock and having it, somebody else may have done the work.
    LookAgain,
    /// Look whether an exchange was refused a moment ago.
    Recall,
    /// Ask the source for an identity token, and the ledger whether it is spent.
    Ask,
    /// Connect to the token endpoint; nothing of the token leaves.
    Connect,
    /// Write the token down as spent, and sync.
    Spend,
    /// Send the token, once, and understand the answer.
    Send,
    /// Remove the token from the ledger: no byte of it has left.
    TakeBack,
    /// Store what was bought.
    Keep,
    /// Wait before another try.
    Pause,
    /// Remember the failure for others.
    Remember,
    /// The end: serve what was found or bought.
    Serve,
    /// The end: tell the last failure.
    Fail,
}

/// What came of an act.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    /// It was done, and nothing stands in the way of the next.
    Done,
    /// A look, or a wait for the lock, found an acceptable credential.
    Acceptable,
    /// A look found none.
    Unacceptable,
    /// The token stands in the ledger: whoever wrote it there may have sent it.
    AlreadySpent,
    /// The send failed, and it is certain that no byte of the token has left.
    Unsent,
    /// It failed, and a new identity token may fare better.
    Passing,
    /// It failed, and would again.
    Final,
}

/// One process's way to a credential.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Purchase {
    act: Act,
    kind: Kind,
    /// Exchanges begun.
    tries: u8,
    /// Tokens of the source that were spent before, in a row.
    duplicates: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// From a source that has a new token whenever it is asked.
    Remintable,
    /// From a source that may have one token and no more.
    Single,
    /// Of something that is at hand already: a child of ours has bought it. Who adopts has proven who it is before.
    Adoption,
}

/// How many exchanges are tried, each with a token of its own.
const TRIES: u8 = 3;

/// How many tokens that were spent before are taken from the source in a row.
const DUPLICATES: u8 = 4;

impl Purchase {
    /// By exchange. Only where the source `can_be_asked_again` is there more than one try: a failure may have spent the
    /// token.
    pub(crate) fn by_exchange(can_be_asked_again: bool) -> Self {
        let kind = if can_be_asked_again { Kind::Remintable } else { Kind::Single };
        Purchase { act: Act::Prove, kind, tries: 0, duplicates: 0 }
    }

    /// By taking over what is at hand.
    pub(crate) fn by_adoption() -> Self {
        Purchase { act: Act::Look, kind: Kind::Adoption, tries: 0, duplicates: 0 }
    }

    /// What is to be done now.
    pub(crate) fn act(self) -> Act {
        self.act
    }

    /// What is to be done after this was heard of the act before.
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
            // Whatever happened to this token, the next try takes another one.
            (A::Connect | A::Spend | A::Send | A::TakeBack, H::Passing | H::AlreadySpent)
                if self.kind == Kind::Remintable && self.tries + 1 < TRIES =>
            {
                return Purchase { act: A::Pause, tries: self.tries + 1, ..self };
            }
            (A::Ask | A::Connect | A::Spend | A::Send | A::TakeBack, _) => A::Remember,
            // Who remembers has heard of nothing new, and neither has who was told of a refusal.
            _ => A::Fail,
        };
        Purchase { act, ..self }
    }

    /// How many tries have failed, for the length of a pause.
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
