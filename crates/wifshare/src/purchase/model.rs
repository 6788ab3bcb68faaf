//! The world that purchases happen in, as small as the promises allow: so many processes, a lock, a ledger, a platform
//! that issues so many identity tokens, and a server. Any process can be killed between any two acts.

use super::*;

/// A guard that is taken out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Removed {
    Nothing,
    /// The lock is given to whoever asks.
    Lock,
    /// The lock is let go after the second look.
    LockToTheEnd,
    /// The second look finds nothing.
    SecondLook,
    /// What is remembered of a refusal is not looked for.
    Recall,
    /// A failure is not remembered.
    Remembering,
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
    /// A token counts as unsent although it may have left.
    Certainty,
}

/// Every guard, and the promise that breaks without it.
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

#[derive(Clone, Copy, Debug)]
pub(super) struct Process {
    pub(super) purchase: Purchase,
    pub(super) token: Option<u8>,
    /// The answer that is on its way; a crash may come before it.
    pub(super) answer: Option<Heard>,
    /// A ledger entry that was not synced.
    pub(super) unsynced: Option<u8>,
}

#[derive(Clone, Debug)]
pub(super) struct World<const PROCESSES: usize, const TOKENS: usize> {
    pub(super) processes: [Process; PROCESSES],
    pub(super) has_credential: bool,
    pub(super) lock: Option<usize>,
    pub(super) ledger: [bool; TOKENS],
    /// Somebody's purchase failed a moment ago.
    pub(super) was_refused: bool,
    /// And that is remembered.
    pub(super) refusal: bool,
    pub(super) issued: u8,
    pub(super) sent: [u8; TOKENS],
    /// Something was bought and is not there.
    pub(super) is_lost: bool,
    pub(super) crashes_left: u8,
    /// How often something may still end before its time, or fail on this machine.
    pub(super) mishaps_left: u8,
}

impl Process {
    fn new(can_be_asked_again: bool) -> Self {
        let purchase = Purchase::by_exchange(can_be_asked_again);
        Process { purchase, token: None, answer: None, unsynced: None }
    }

    pub(super) fn is_over(self) -> bool {
        matches!(self.purchase.act(), Act::Serve | Act::Fail)
    }
}

impl<const PROCESSES: usize, const TOKENS: usize> World<PROCESSES, TOKENS> {
    pub(super) fn new(can_be_asked_again: bool) -> Self {
        World {
            processes: [Process::new(can_be_asked_again); PROCESSES],
            has_credential: false,
            lock: None,
            ledger: [false; TOKENS],
            was_refused: false,
            refusal: false,
            issued: 0,
            sent: [0; TOKENS],
            is_lost: false,
            crashes_left: 2,
            mishaps_left: 1,
        }
    }

    /// What an act can come to, each with the world as it is then.
    fn outcomes(&self, number: usize, can_be_asked_again: bool, removed: Removed) -> Vec<(Self, Heard)> {
        let world = || self.clone();
        let process = self.processes[number];
        let with = |change: &dyn Fn(&mut Self), heard| {
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
            Act::Recall if removed == Removed::Recall => vec![(world(), Heard::Done)],
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
                    _ => {
                        let spent = with(&|world| world.ledger[token as usize] = true, Heard::Done);
                        // Or it cannot be synced, and is taken back, or cannot be.
                        let failing = |is_spent: bool| {
                            let change = |world: &mut Self| {
                                world.mishaps_left -= 1;
                                world.ledger[token as usize] = is_spent;
                            };
                            with(&change, Heard::Final)
                        };
                        let failed = (self.mishaps_left > 0).then(|| [failing(true), failing(false)]);
                        [spent].into_iter().chain(failed.into_iter().flatten()).collect()
                    }
                }
            }
            Act::TakeBack => {
                let token = process.token.expect("asked before");
                vec![with(&|world| world.ledger[token as usize] = false, Heard::Passing), (world(), Heard::Passing)]
            }
            Act::Send => match process.answer {
                // The answer arrives, or a crash comes first.
                Some(heard) => vec![with(&|world| world.processes[number].answer = None, heard)],
                None => vec![],
            },
            Act::Keep if removed == Removed::Keeping => vec![(world(), Heard::Done)],
            Act::Keep => vec![with(&|world| world.has_credential = true, Heard::Done)],
            Act::Remember => vec![with(
                &|world| {
                    world.was_refused = true;
                    world.refusal = removed != Removed::Remembering;
                },
                Heard::Done,
            )],
            Act::Serve | Act::Fail => vec![],
        }
    }

    /// Every world that can follow this one.
    pub(super) fn successors(&self, can_be_asked_again: bool, removed: Removed) -> Vec<Self> {
        let mut successors = self.steps(can_be_asked_again, removed);
        successors.extend(self.misfortunes(can_be_asked_again));
        successors
    }

    /// What follows when somebody goes on.
    pub(super) fn steps(&self, can_be_asked_again: bool, removed: Removed) -> Vec<Self> {
        let mut successors = Vec::new();
        for (number, process) in self.processes.iter().enumerate().filter(|(_, process)| !process.is_over()) {
            if process.purchase.act() == Act::Send && process.answer.is_none() {
                if self.mishaps_left > 0 {
                    // Nothing leaves.
                    let mut world = self.clone();
                    world.mishaps_left -= 1;
                    world.processes[number].answer = Some(Heard::Unsent);
                    world.sent[process.token.expect("spent before") as usize] +=
                        u8::from(removed == Removed::Certainty);
                    successors.push(world);
                }
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
                world.is_lost |= process.purchase.act() == Act::Keep && !world.has_credential;
                let next = &mut world.processes[number];
                next.purchase = next.purchase.after(heard);
                let lets_go = removed == Removed::LockToTheEnd && process.purchase.act() == Act::LookAgain;
                if (next.is_over() || lets_go) && world.lock == Some(number) {
                    world.lock = None;
                }
                successors.push(world);
            }
        }
        successors
    }

    /// What follows when something happens to somebody: a process is killed, the credential ends, a refusal is forgotten.
    pub(super) fn misfortunes(&self, can_be_asked_again: bool) -> Vec<Self> {
        let mut successors = Vec::new();
        let living = self.processes.iter().enumerate().filter(|(_, process)| !process.is_over());
        for (number, process) in living.filter(|_| self.crashes_left > 0) {
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
        if self.has_credential && self.mishaps_left > 0 {
            successors.push(World { has_credential: false, mishaps_left: self.mishaps_left - 1, ..self.clone() });
        }
        if self.was_refused && self.mishaps_left > 0 {
            let forgotten = World { was_refused: false, refusal: false, ..self.clone() };
            successors.push(World { mishaps_left: self.mishaps_left - 1, ..forgotten });
        }
        successors
    }

    /// What is wrong with this world.
    pub(super) fn broken_promise(&self) -> Option<&'static str> {
        let past_the_lock =
            |process: &Process| !process.is_over() && !matches!(process.purchase.act(), Act::Look | Act::Lock);
        let knocks = |process: &Process| matches!(process.purchase.act(), Act::Ask | Act::Connect | Act::Send);
        if self.sent.iter().any(|count| *count > 1) {
            return Some("an identity token was sent twice");
        }
        if self.processes.iter().filter(|process| past_the_lock(process)).count() > 1 {
            return Some("two processes had the turn at once");
        }
        if self.processes.iter().any(|process| process.purchase.act() == Act::Spend && self.has_credential) {
            return Some("an exchange began beside a usable credential");
        }
        if self.is_lost {
            return Some("a credential was bought and lost");
        }
        if self.was_refused && self.processes.iter().any(knocks) {
            return Some("somebody knocked although all had been refused");
        }
        if self.processes.iter().any(|process| process.purchase.failures() >= u32::from(TRIES * DUPLICATES)) {
            return Some("somebody tried without end");
        }
        None
    }
}
