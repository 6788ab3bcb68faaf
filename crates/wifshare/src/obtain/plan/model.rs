//! A model of the world around plans, as small as the promises allow: processes, a lock, a ledger, a platform that
//! issues a limited number of identity tokens, and a server. Any process can be killed between any two actions.

use super::*;

/// A removed guard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Removed {
    Nothing,
    /// The lock is given to every process.
    Lock,
    /// The lock is released after the second look.
    LockToTheEnd,
    /// The second look finds nothing.
    SecondLook,
    /// Cached failures are not checked.
    Recall,
    /// A failure is not cached.
    Remembering,
    /// The ledger is not read.
    LedgerLook,
    /// The ledger is not written.
    LedgerWrite,
    /// The ledger is written without a sync, and a crash of the machine loses it.
    LedgerSync,
    /// A failed attempt is repeated with the same token.
    NewToken,
    /// An obtained credential is not stored.
    Keeping,
    /// A token counts as unsent although it may have been sent.
    Certainty,
    /// No process proves its principal: all of them use one store.
    Proof,
    /// A token of any principal is accepted.
    SamePrincipal,
}

/// Each guard, and the promise that is broken without it.
pub(super) const GUARDS: [(Removed, &str); 11] = [
    (Removed::Lock, "two processes had the turn at once"),
    (Removed::LockToTheEnd, "two processes had the turn at once"),
    (Removed::SecondLook, "an exchange began beside a usable credential"),
    (Removed::Recall, "somebody knocked although all had been refused"),
    (Removed::Remembering, "somebody knocked although all had been refused"),
    (Removed::LedgerLook, "an identity token was sent twice"),
    (Removed::LedgerWrite, "an identity token was sent twice"),
    (Removed::LedgerSync, "an identity token was sent twice"),
    (Removed::NewToken, "an identity token was sent twice"),
    (Removed::Keeping, "a credential was bought and lost"),
    (Removed::Certainty, "an identity token was sent twice"),
];

/// The guards that only matter with two principals, and what happens without them.
pub(super) const GUARDS_OF_PRINCIPALS: [(Removed, &str); 2] =
    [(Removed::Proof, CROSSED), (Removed::SamePrincipal, CROSSED)];

const CROSSED: &str = "a credential crossed from one principal to another";

/// A principal that processes act for. It is also the index of its store.
type Principal = u8;
const PRINCIPALS: usize = 2;

#[derive(Clone, Copy, Debug)]
pub(super) struct Process {
    pub(super) principal: Principal,
    /// The store that this process uses.
    pub(super) store: Principal,
    pub(super) plan: Plan,
    pub(super) token: Option<u8>,
    /// The response that is under way. A crash may come before it.
    pub(super) answer: Option<Outcome>,
    /// A ledger entry that is not synced.
    pub(super) unsynced: Option<u8>,
}

#[derive(Clone, Debug)]
pub(super) struct World<const PROCESSES: usize, const TOKENS: usize> {
    pub(super) processes: [Process; PROCESSES],
    /// The number of principals. With two, a source can begin to issue tokens of the other one.
    pub(super) principals: u8,
    pub(super) stores: [Stored; PRINCIPALS],
    pub(super) ledger: [bool; TOKENS],
    pub(super) issued: u8,
    /// The principal of each token.
    pub(super) about: [Principal; TOKENS],
    pub(super) sent: [u8; TOKENS],
    /// An obtained credential was lost.
    pub(super) is_lost: bool,
    /// A process received another principal's credential.
    pub(super) is_crossed: bool,
    pub(super) crashes_left: u8,
    /// How often a credential or failure may still expire early, or an operation fail on this machine.
    pub(super) mishaps_left: u8,
}

/// The state under one identity key.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Stored {
    /// The principal of the usable credential, if there is one.
    pub(super) credential: Option<Principal>,
    pub(super) lock: Option<usize>,
    /// An exchange failed a moment ago.
    pub(super) was_refused: bool,
    /// The failure is cached.
    pub(super) refusal: bool,
}

impl Process {
    fn new(principal: Principal, can_be_asked_again: bool) -> Self {
        let plan = Plan::by_exchange(can_be_asked_again);
        Process { principal, store: 0, plan, token: None, answer: None, unsynced: None }
    }

    pub(super) fn is_over(self) -> bool {
        matches!(self.plan.action(), Action::Serve | Action::Fail)
    }
}

impl<const PROCESSES: usize, const TOKENS: usize> World<PROCESSES, TOKENS> {
    /// Creates a world in which all processes act for one principal, or alternate between two `principals`.
    pub(super) fn new(principals: u8, can_be_asked_again: bool) -> Self {
        World {
            processes: std::array::from_fn(|number| Process::new(number as u8 % principals, can_be_asked_again)),
            principals,
            stores: [Stored::default(); PRINCIPALS],
            ledger: [false; TOKENS],
            issued: 0,
            about: [0; TOKENS],
            sent: [0; TOKENS],
            is_lost: false,
            is_crossed: false,
            crashes_left: 2,
            mishaps_left: 1,
        }
    }

    /// Returns the possible outcomes of the next action, each with the resulting world.
    fn outcomes(&self, number: usize, can_be_asked_again: bool, removed: Removed) -> Vec<(Self, Outcome)> {
        let world = || self.clone();
        let process = self.processes[number];
        let with = |change: &dyn Fn(&mut Self), outcome| {
            let mut world = self.clone();
            change(&mut world);
            (world, outcome)
        };
        let key = usize::from(process.store);
        let stored = self.stores[key];
        let looked = if stored.credential.is_some() { Outcome::Acceptable } else { Outcome::Unacceptable };
        match process.plan.action() {
            Action::Prove => {
                let shown = if removed == Removed::Proof { 0 } else { process.principal };
                let proven = with(&|world| world.processes[number].store = shown, Outcome::Done);
                // If the key identifies the principal, the proof cannot fail.
                let failed = (self.principals > 1).then(|| (world(), Outcome::Final));
                std::iter::once(proven).chain(failed).collect()
            }
            Action::Snapshot => vec![(world(), looked)],
            Action::LookAgain if removed == Removed::SecondLook => vec![(world(), Outcome::Unacceptable)],
            Action::LookAgain => vec![(world(), looked)],
            Action::Lock if removed == Removed::Lock => vec![(world(), Outcome::Done)],
            Action::Lock if stored.lock.is_none() => {
                vec![with(&|world| world.stores[key].lock = Some(number), Outcome::Done)]
            }
            // The lock holder may have stored a credential or cached a failure before it releases the lock, or the
            // state is older.
            Action::Lock => {
                let answered = stored.credential.map(|_| (world(), Outcome::Acceptable));
                let refused = stored.refusal.then(|| (world(), Outcome::Final));
                answered.into_iter().chain(refused).collect()
            }
            Action::Recall if removed == Removed::Recall => vec![(world(), Outcome::Done)],
            Action::Recall if stored.refusal => vec![(world(), Outcome::Final)],
            Action::Recall | Action::Pause => vec![(world(), Outcome::Done)],
            Action::Ask => {
                if let (Removed::NewToken, Some(_)) = (removed, process.token) {
                    return vec![(world(), Outcome::Done)];
                }
                // A new token while there are any, the previous one again, as platforms do, or none.
                let newest = if can_be_asked_again { TOKENS as u8 } else { 1 };
                let fresh = (self.issued < newest).then_some(self.issued);
                let again = self.issued.checked_sub(1);
                let mut outcomes = vec![(world(), Outcome::Final)];
                let fresh = fresh.into_iter().flat_map(|token| (0..self.principals).map(move |about| (token, about)));
                let again = again.map(|token| (token, self.about[token as usize]));
                for (token, about) in fresh.chain(again) {
                    let is_spent = self.ledger[token as usize] && removed != Removed::LedgerLook;
                    let outcome = match is_spent {
                        _ if about != process.principal && removed != Removed::SamePrincipal => Outcome::Final,
                        true => Outcome::AlreadySpent,
                        false => Outcome::Done,
                    };
                    outcomes.push(with(
                        &|world| {
                            world.issued = world.issued.max(token + 1);
                            world.about[token as usize] = about;
                            world.processes[number].token = Some(token);
                        },
                        outcome,
                    ));
                }
                outcomes
            }
            Action::Connect => vec![(world(), Outcome::Done), (world(), Outcome::Passing)],
            Action::Spend => {
                let token = process.token.expect("asked before");
                match removed {
                    Removed::LedgerWrite => vec![(world(), Outcome::Done)],
                    Removed::LedgerLook | Removed::NewToken => {
                        vec![with(&|world| world.ledger[token as usize] = true, Outcome::Done)]
                    }
                    _ if self.ledger[token as usize] => vec![(world(), Outcome::AlreadySpent)],
                    Removed::LedgerSync => vec![with(
                        &|world| {
                            world.ledger[token as usize] = true;
                            world.processes[number].unsynced = Some(token);
                        },
                        Outcome::Done,
                    )],
                    _ => {
                        let spent = with(&|world| world.ledger[token as usize] = true, Outcome::Done);
                        // The sync can also fail. Then the entry is withdrawn, or stays.
                        let failing = |is_spent: bool| {
                            let change = |world: &mut Self| {
                                world.mishaps_left -= 1;
                                world.ledger[token as usize] = is_spent;
                            };
                            with(&change, Outcome::Final)
                        };
                        let failed = (self.mishaps_left > 0).then(|| [failing(true), failing(false)]);
                        [spent].into_iter().chain(failed.into_iter().flatten()).collect()
                    }
                }
            }
            Action::TakeBack => {
                let token = process.token.expect("asked before");
                vec![with(&|world| world.ledger[token as usize] = false, Outcome::Passing), (world(), Outcome::Passing)]
            }
            Action::Send => match process.answer {
                // The response arrives. A crash may come before it.
                Some(outcome) => vec![with(&|world| world.processes[number].answer = None, outcome)],
                None => vec![],
            },
            Action::Keep if removed == Removed::Keeping => vec![(world(), Outcome::Done)],
            Action::Keep => {
                let bought = self.about[process.token.expect("sent before") as usize];
                vec![with(&|world| world.stores[key].credential = Some(bought), Outcome::Done)]
            }
            Action::Remember => vec![with(
                &|world| {
                    world.stores[key].was_refused = true;
                    world.stores[key].refusal = removed != Removed::Remembering;
                },
                Outcome::Done,
            )],
            Action::Serve | Action::Fail => vec![],
        }
    }

    /// Returns every world that can follow this one.
    pub(super) fn successors(&self, can_be_asked_again: bool, removed: Removed) -> Vec<Self> {
        let mut successors = self.steps(can_be_asked_again, removed);
        successors.extend(self.misfortunes(can_be_asked_again));
        successors
    }

    /// Returns the worlds after one process continues.
    pub(super) fn steps(&self, can_be_asked_again: bool, removed: Removed) -> Vec<Self> {
        let mut successors = Vec::new();
        for (number, process) in self.processes.iter().enumerate().filter(|(_, process)| !process.is_over()) {
            if process.plan.action() == Action::Send && process.answer.is_none() {
                if self.mishaps_left > 0 {
                    // The token is not sent.
                    let mut world = self.clone();
                    world.mishaps_left -= 1;
                    world.processes[number].answer = Some(Outcome::Unsent);
                    world.sent[process.token.expect("spent before") as usize] +=
                        u8::from(removed == Removed::Certainty);
                    successors.push(world);
                }
                // The token is sent, and the server's response is under way.
                let answers: &[Outcome] = match self.sent[process.token.expect("spent before") as usize] {
                    0 => &[Outcome::Done, Outcome::Passing, Outcome::Final],
                    _ => &[Outcome::Final],
                };
                for answer in answers {
                    let mut world = self.clone();
                    world.sent[process.token.expect("spent before") as usize] += 1;
                    world.processes[number].answer = Some(*answer);
                    successors.push(world);
                }
            }
            for (mut world, outcome) in self.outcomes(number, can_be_asked_again, removed) {
                let store = usize::from(world.processes[number].store);
                let credential = world.stores[store].credential;
                world.is_lost |= process.plan.action() == Action::Keep && credential.is_none();
                let is_given = outcome == Outcome::Acceptable || process.plan.action() == Action::Keep;
                world.is_crossed |= is_given && credential.is_some_and(|whose| whose != process.principal);
                let next = &mut world.processes[number];
                next.plan = next.plan.after(outcome);
                let lets_go = removed == Removed::LockToTheEnd && process.plan.action() == Action::LookAgain;
                if (next.is_over() || lets_go) && world.stores[store].lock == Some(number) {
                    world.stores[store].lock = None;
                }
                successors.push(world);
            }
        }
        successors
    }

    /// Returns the worlds after a failure: a process is killed, a credential expires, or a cached failure expires.
    pub(super) fn misfortunes(&self, can_be_asked_again: bool) -> Vec<Self> {
        let mut successors = Vec::new();
        let living = self.processes.iter().enumerate().filter(|(_, process)| !process.is_over());
        for (number, process) in living.filter(|_| self.crashes_left > 0) {
            // The process is killed, the kernel releases the lock, and the command is run again.
            let mut world = self.clone();
            world.crashes_left -= 1;
            if let Some(token) = process.unsynced {
                world.ledger[token as usize] = false;
            }
            let store = &mut world.stores[usize::from(process.store)];
            if store.lock == Some(number) {
                store.lock = None;
            }
            world.processes[number] = Process::new(process.principal, can_be_asked_again);
            successors.push(world);
        }
        for (number, stored) in self.stores.iter().enumerate().filter(|_| self.mishaps_left > 0) {
            let mut expire = |left: Stored| {
                let mut world = World { mishaps_left: self.mishaps_left - 1, ..self.clone() };
                world.stores[number] = left;
                successors.push(world);
            };
            if stored.credential.is_some() {
                expire(Stored { credential: None, ..*stored });
            }
            if stored.was_refused {
                expire(Stored { was_refused: false, refusal: false, ..*stored });
            }
        }
        successors
    }

    /// Returns the promise that is broken in this world.
    pub(super) fn broken_promise(&self) -> Option<&'static str> {
        let past_the_lock = |process: &Process| {
            !process.is_over() && !matches!(process.plan.action(), Action::Prove | Action::Snapshot | Action::Lock)
        };
        let knocks = |process: &Process| matches!(process.plan.action(), Action::Ask | Action::Connect | Action::Send);
        if self.sent.iter().any(|count| *count > 1) {
            return Some("an identity token was sent twice");
        }
        let store_of = |process: &Process| self.stores[usize::from(process.store)];
        let have_the_turn = |store: u8| {
            self.processes.iter().filter(|process| past_the_lock(process) && process.store == store).count()
        };
        if (0..PRINCIPALS as u8).any(|store| have_the_turn(store) > 1) {
            return Some("two processes had the turn at once");
        }
        let exchanges = |process: &&Process| process.plan.action() == Action::Spend;
        if self.processes.iter().filter(exchanges).any(|process| store_of(process).credential.is_some()) {
            return Some("an exchange began beside a usable credential");
        }
        if self.is_crossed {
            return Some(CROSSED);
        }
        if self.is_lost {
            return Some("a credential was bought and lost");
        }
        if self.processes.iter().any(|process| store_of(process).was_refused && knocks(process)) {
            return Some("somebody knocked although all had been refused");
        }
        if self.processes.iter().any(|process| process.plan.failures() >= u32::from(TRIES * DUPLICATES)) {
            return Some("somebody tried without end");
        }
        None
    }
}
