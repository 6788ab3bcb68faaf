//! Explores every order of the actions of three processes, with a possible crash between any two actions. Each guard is
//! also removed, and the explorer must find the broken promise: a check that cannot fail checks nothing.

use std::collections::HashSet;

use super::model::{GUARDS, GUARDS_OF_PRINCIPALS, Removed, World};
use super::*;

const PROCESSES: usize = 3;
/// The total number of identity tokens that the platform issues.
const TOKENS: usize = 5;

/// Explores every reachable world. Returns the first broken promise, or the number of worlds.
fn explore(can_be_asked_again: bool, removed: Removed) -> Result<usize, &'static str> {
    explore_from(World::<PROCESSES, TOKENS>::new(1, can_be_asked_again), can_be_asked_again, removed)
}

/// Like `explore`, for two processes of two principals and with fewer tokens. Their stores are separate, and the
/// actions within one store are covered by `explore`.
fn explore_principals(can_be_asked_again: bool, removed: Removed) -> Result<usize, &'static str> {
    let first = World::<2, 3> { crashes_left: 1, ..World::new(2, can_be_asked_again) };
    explore_from(first, can_be_asked_again, removed)
}

fn explore_from<const PROCESSES: usize, const TOKENS: usize>(
    first: World<PROCESSES, TOKENS>,
    can_be_asked_again: bool,
    removed: Removed,
) -> Result<usize, &'static str> {
    let mut seen = HashSet::from([first.key()]);
    let mut left = vec![first];
    while let Some(world) = left.pop() {
        if let Some(promise) = world.broken_promise() {
            return Err(promise);
        }
        let successors = world.successors(can_be_asked_again, removed);
        if successors.is_empty() && !world.processes.iter().all(|process| process.is_over()) {
            return Err("everybody waits and nobody goes on");
        }
        left.extend(successors.into_iter().filter(|next| seen.insert(next.key())));
    }
    Ok(seen.len())
}

impl<const PROCESSES: usize, const TOKENS: usize> World<PROCESSES, TOKENS> {
    /// Encodes a world as one number, without the order of the processes: worlds that differ only in names are equal.
    fn key(&self) -> u128 {
        let token = |token: Option<u8>| token.map_or(0, |token| u128::from(token) + 1);
        let mut processes = [0; PROCESSES];
        for (number, process) in self.processes.iter().enumerate() {
            let Plan { action, kind, tries, duplicates } = process.plan;
            processes[number] = digits(&[
                (action as u128, 15),
                (process.principal.into(), 2),
                (process.store.into(), 2),
                (kind as u128, 3),
                (tries.into(), 4),
                (duplicates.into(), 5),
                (token(process.token), TOKENS as u128 + 1),
                (process.answer.map_or(0, |outcome| outcome as u128 + 1), 8),
                (token(process.unsynced), TOKENS as u128 + 1),
                ((self.stores[usize::from(process.store)].lock == Some(number)).into(), 2),
            ]);
        }
        processes.sort_unstable();
        let processes = processes.map(|process| (process, 1 << 21));
        let stores = self.stores.map(|stored| {
            let digits = [(token(stored.credential), 3), (stored.was_refused.into(), 2), (stored.refusal.into(), 2)];
            (self::digits(&digits), 12)
        });
        let about = self.about.map(|principal| (principal.into(), 2));
        let sent = self.sent.map(|times| (u128::from(times), 4));
        let ledger = self.ledger.map(|is_spent| (is_spent.into(), 2));
        let rest = [
            (self.is_lost.into(), 2),
            (self.is_crossed.into(), 2),
            (self.issued.into(), TOKENS as u128 + 1),
            (self.crashes_left.into(), 3),
            (self.mishaps_left.into(), 2),
        ];
        digits(&[&processes[..], &stores, &about, &sent, &ledger, &rest].concat())
    }
}

/// Encodes digits as one number. Each digit has its own base.
fn digits(digits: &[(u128, u128)]) -> u128 {
    digits.iter().fold(0, |number, (digit, base)| {
        assert!(digit < base, "{digit} is no digit below {base}");
        number.checked_mul(*base).expect("it fits") + digit
    })
}

#[test]
fn three_processes_and_two_crashes_break_no_promise() {
    for (can_be_asked_again, at_least) in [(true, 1_000_000), (false, 1_000)] {
        let worlds = explore(can_be_asked_again, Removed::Nothing).expect("every promise holds");
        assert!(worlds > at_least, "{worlds} worlds: the explorer has to get around");
    }
}

#[test]
fn each_guard_is_needed() {
    for (removed, broken) in GUARDS {
        assert_eq!(explore(true, removed), Err(broken), "without {removed:?}");
    }
}

#[test]
fn processes_of_two_principals_break_no_promise() {
    for can_be_asked_again in [true, false] {
        let worlds = explore_principals(can_be_asked_again, Removed::Nothing).expect("every promise holds");
        assert!(worlds > 500, "{worlds} worlds: the explorer has to get around");
    }
}

#[test]
fn each_guard_between_principals_is_needed() {
    for (removed, broken) in GUARDS_OF_PRINCIPALS {
        assert_eq!(explore_principals(true, removed), Err(broken), "without {removed:?}");
    }
}

#[test]
fn adoption_looks_twice_and_stores_under_the_lock() {
    let mut plan = Plan::by_adoption();
    let mut actions = vec![plan.action()];
    for outcome in [Outcome::Unacceptable, Outcome::Done, Outcome::Unacceptable, Outcome::Done] {
        plan = plan.after(outcome);
        actions.push(plan.action());
    }
    assert_eq!(actions, [Action::Snapshot, Action::Lock, Action::LookAgain, Action::Keep, Action::Serve]);
}
