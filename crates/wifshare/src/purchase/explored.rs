//! Every order in which three processes can take their acts, with a crash possible between any two of them, in a model
//! of the world that is as small as the promises allow. Each guard is also taken out, and the explorer has to find what
//! breaks then: a check that cannot fail checks nothing.

use std::collections::HashSet;

use super::*;

const PROCESSES: usize = 3;
/// How many identity tokens the platform issues in all.
const TOKENS: usize = 5;

/// A guard that is taken out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Removed {
    Nothing,
    /// The lock is given to whoever asks.
    Lock,
    /// The second look finds nothing.
    SecondLook,
    /// The ledger is not read.
    LedgerLook,
    /// The ledger is not written.
    LedgerWrite,
    /// The ledger is written without a sync, and a crash of the machine loses it.
    LedgerSync,
    /// A failed try is repeated with the token that it had.
    NewToken,
    /// A credential that was bought is not stored.
    Keeping,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Process {
    purchase: Purchase,
    token: Option<u8>,
    /// The answer that is on its way; a crash may come before it.
    answer: Option<Heard>,
    has_bought: bool,
    /// A ledger entry that was not synced.
    unsynced: Option<u8>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    processes: [Process; PROCESSES],
    has_credential: bool,
    lock: Option<usize>,
    ledger: [bool; TOKENS],
    refusal: bool,
    issued: u8,
    sent: [u8; TOKENS],
    crashes_left: u8,
    expiries_left: u8,
}

impl Process {
    fn new(can_be_asked_again: bool) -> Self {
        let purchase = Purchase::by_exchange(can_be_asked_again);
        Process { purchase, token: None, answer: None, has_bought: false, unsynced: None }
    }

    fn is_over(self) -> bool {
        matches!(self.purchase.act(), Act::Serve | Act::Fail)
    }
}

impl World {
    fn new(can_be_asked_again: bool) -> World {
        World {
            processes: [Process::new(can_be_asked_again); PROCESSES],
            has_credential: false,
            lock: None,
            ledger: [false; TOKENS],
            refusal: false,
            issued: 0,
            sent: [0; TOKENS],
            crashes_left: 2,
            expiries_left: 1,
        }
    }

    /// What an act can come to, each with the world as it is then.
    fn outcomes(&self, number: usize, can_be_asked_again: bool, removed: Removed) -> Vec<(World, Heard)> {
        let world = || self.clone();
        let process = self.processes[number];
        let with = |change: &dyn Fn(&mut World), heard| {
            let mut world = self.clone();
            change(&mut world);
            (world, heard)
        };
        let looked = if self.has_credential { Heard::Acceptable } else { Heard::Unacceptable };
        match process.purchase.act() {
            Act::Look => vec![(world(), looked)],
            Act::LookAgain if removed == Removed::SecondLook => vec![(world(), Heard::Unacceptable)],
            Act::LookAgain => vec![(world(), looked)],
            Act::Lock if removed == Removed::Lock => vec![(world(), Heard::Done)],
            Act::Lock if self.lock.is_none() => vec![with(&|world| world.lock = Some(number), Heard::Done)],
            // The holder may have kept or remembered something, and not let go yet; or it is of the time before.
            Act::Lock => {
                let answered = self.has_credential.then(|| (world(), Heard::Acceptable));
                let refused = self.refusal.then(|| (world(), Heard::Final));
                answered.into_iter().chain(refused).collect()
            }
            Act::Recall if self.refusal => vec![(world(), Heard::Final)],
            Act::Recall | Act::Pause => vec![(world(), Heard::Done)],
            Act::Ask => {
                if let (Removed::NewToken, Some(_)) = (removed, process.token) {
                    return vec![(world(), Heard::Done)];
                }
                // A new one while there are any; the one before once more, as platforms do; or none.
                let newest = if can_be_asked_again { TOKENS as u8 } else { 1 };
                let fresh = (self.issued < newest).then_some(self.issued);
                let again = self.issued.checked_sub(1);
                let mut outcomes = vec![(world(), Heard::Final)];
                for token in [fresh, again].into_iter().flatten() {
                    let is_spent = self.ledger[token as usize] && removed != Removed::LedgerLook;
                    let heard = if is_spent { Heard::AlreadySpent } else { Heard::Done };
                    outcomes.push(with(
                        &|world| {
                            world.issued = world.issued.max(token + 1);
                            world.processes[number].token = Some(token);
                        },
                        heard,
                    ));
                }
                outcomes
            }
            Act::Connect => vec![(world(), Heard::Done), (world(), Heard::Passing)],
            Act::Spend => {
                let token = process.token.expect("asked before");
                match removed {
                    Removed::LedgerWrite => vec![(world(), Heard::Done)],
                    Removed::LedgerLook | Removed::NewToken => {
                        vec![with(&|world| world.ledger[token as usize] = true, Heard::Done)]
                    }
                    _ if self.ledger[token as usize] => vec![(world(), Heard::AlreadySpent)],
                    Removed::LedgerSync => vec![with(
                        &|world| {
                            world.ledger[token as usize] = true;
                            world.processes[number].unsynced = Some(token);
                        },
                        Heard::Done,
                    )],
                    _ => vec![with(&|world| world.ledger[token as usize] = true, Heard::Done)],
                }
            }
            Act::Send => match process.answer {
                // The answer arrives, or a crash comes first.
                Some(heard) => vec![with(
                    &|world| {
                        world.processes[number].answer = None;
                        world.processes[number].has_bought = heard == Heard::Done;
                    },
                    heard,
                )],
                None => vec![],
            },
            Act::Keep if removed == Removed::Keeping => vec![(world(), Heard::Done)],
            Act::Keep => vec![with(&|world| world.has_credential = true, Heard::Done)],
            Act::Remember => vec![with(&|world| world.refusal = true, Heard::Done)],
            Act::Serve | Act::Fail => vec![],
        }
    }

    /// Every world that can follow this one.
    fn successors(&self, can_be_asked_again: bool, removed: Removed) -> Vec<World> {
        let mut successors = Vec::new();
        for (number, process) in self.processes.iter().enumerate().filter(|(_, process)| !process.is_over()) {
            if process.purchase.act() == Act::Send && process.answer.is_none() {
                // The token leaves; what the server makes of it is on its way back.
                let answers: &[Heard] = match self.sent[process.token.expect("spent before") as usize] {
                    0 => &[Heard::Done, Heard::Passing, Heard::Final],
                    _ => &[Heard::Final],
                };
                for answer in answers {
                    let mut world = self.clone();
                    world.sent[process.token.expect("spent before") as usize] += 1;
                    world.processes[number].answer = Some(*answer);
                    successors.push(world);
                }
            }
            for (mut world, heard) in self.outcomes(number, can_be_asked_again, removed) {
                let next = &mut world.processes[number];
                next.purchase = next.purchase.after(heard);
                if next.is_over() && world.lock == Some(number) {
                    world.lock = None;
                }
                successors.push(world);
            }
            if self.crashes_left > 0 {
                // Killed, with the lock let go by the kernel; somebody runs the command again.
                let mut world = self.clone();
                world.crashes_left -= 1;
                if let Some(token) = process.unsynced {
                    world.ledger[token as usize] = false;
                }
                if world.lock == Some(number) {
                    world.lock = None;
                }
                world.processes[number] = Process::new(can_be_asked_again);
                successors.push(world);
            }
        }
        if self.has_credential && self.expiries_left > 0 {
            successors.push(World { has_credential: false, expiries_left: self.expiries_left - 1, ..self.clone() });
        }
        if self.refusal && self.expiries_left > 0 {
            successors.push(World { refusal: false, expiries_left: self.expiries_left - 1, ..self.clone() });
        }
        successors
    }

    /// What is wrong with this world.
    fn broken_promise(&self) -> Option<&'static str> {
        let past_the_lock =
            |process: &Process| !process.is_over() && !matches!(process.purchase.act(), Act::Look | Act::Lock);
        let served_with_nothing = |process: &&Process| {
            // What was found may have expired since; what was bought is there, or was seen by whoever found it.
            process.purchase.act() == Act::Serve
                && process.has_bought
                && !self.has_credential
                && self.expiries_left == 1
        };
        if self.sent.iter().any(|count| *count > 1) {
            return Some("an identity token was sent twice");
        }
        if self.processes.iter().filter(|process| past_the_lock(process)).count() > 1 {
            return Some("two processes had the turn at once");
        }
        if self.processes.iter().any(|process| process.purchase.act() == Act::Spend && self.has_credential) {
            return Some("an exchange began beside a usable credential");
        }
        if self.processes.iter().filter(served_with_nothing).count() > 0 {
            return Some("a credential was bought and lost");
        }
        None
    }
}

/// Looks at every world that can come about; tells the first broken promise, or how many worlds there were.
fn explore(can_be_asked_again: bool, removed: Removed) -> Result<usize, &'static str> {
    let first = World::new(can_be_asked_again);
    let mut seen = HashSet::from([first.clone()]);
    let mut left = vec![first];
    while let Some(world) = left.pop() {
        if let Some(promise) = world.broken_promise() {
            return Err(promise);
        }
        let successors = world.successors(can_be_asked_again, removed);
        if successors.is_empty() && !world.processes.iter().all(|process| process.is_over()) {
            return Err("everybody waits and nobody goes on");
        }
        for mut next in successors {
            // Who is who makes no difference.
            next.sort();
            if seen.insert(next.clone()) {
                left.push(next);
            }
        }
    }
    Ok(seen.len())
}

impl World {
    /// Puts the processes into an order, so that worlds that differ in names alone are one.
    fn sort(&mut self) {
        let mut order: Vec<usize> = (0..PROCESSES).collect();
        order.sort_by_key(|number| (self.processes[*number], self.lock == Some(*number)));
        let processes = self.processes;
        for (place, number) in order.iter().enumerate() {
            self.processes[place] = processes[*number];
        }
        self.lock = self.lock.and_then(|holder| order.iter().position(|number| *number == holder));
    }
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
    for (removed, broken) in [
        (Removed::Lock, "two processes had the turn at once"),
        (Removed::SecondLook, "an exchange began beside a usable credential"),
        (Removed::LedgerLook, "an identity token was sent twice"),
        (Removed::LedgerWrite, "an identity token was sent twice"),
        (Removed::LedgerSync, "an identity token was sent twice"),
        (Removed::NewToken, "an identity token was sent twice"),
        (Removed::Keeping, "a credential was bought and lost"),
    ] {
        assert_eq!(explore(true, removed), Err(broken), "without {removed:?}");
    }
}

#[test]
fn an_adoption_looks_twice_and_keeps_under_the_lock() {
    let mut purchase = Purchase::by_adoption();
    let mut acts = vec![purchase.act()];
    for heard in [Heard::Unacceptable, Heard::Done, Heard::Unacceptable, Heard::Done] {
        purchase = purchase.after(heard);
        acts.push(purchase.act());
    }
    assert_eq!(acts, [Act::Look, Act::Lock, Act::LookAgain, Act::Keep, Act::Serve]);
}
