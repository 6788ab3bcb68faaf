//! Calm and storm: what fails when, and what that excuses.

use std::collections::BTreeMap;

use wifshare_sandbox::{Fault, Knobs};

use crate::clock;
use crate::job::{Job, living};
use crate::processes::Crowd;
use crate::{LONG_RECOVERY, RECOVERY, now};

pub(crate) struct Weather {
    begun: f64,
    end: f64,
    /// When each storm began, when it ended, and how long its consequences last.
    storms: Vec<(f64, f64, f64)>,
    next_fault: f64,
    next_round: f64,
    /// What was scripted last, to be counted when it has been taken.
    scripted: (Vec<Fault>, Vec<Fault>),
    taken: BTreeMap<String, u32>,
    revocations: u32,
    clock_steps: u32,
}

impl Weather {
    /// A calm beginning; a round is calm, storm and recovery.
    pub(crate) fn new(seconds: u64) -> Weather {
        const BEGINNING: f64 = 5.0;
        let begun = now();
        Weather {
            begun,
            end: begun + seconds as f64,
            storms: Vec::new(),
            next_fault: begun + 1.5,
            next_round: begun + BEGINNING,
            scripted: (Vec::new(), Vec::new()),
            taken: BTreeMap::new(),
            revocations: 0,
            clock_steps: 0,
        }
    }

    pub(crate) fn end(&self) -> f64 {
        self.end
    }

    pub(crate) fn is_stormy(&self) -> bool {
        self.storms.last().is_some_and(|(_, end, _)| now() < *end)
    }

    /// When the last storm has no consequences any more.
    pub(crate) fn well_from(&self) -> f64 {
        self.storms.last().map_or(self.begun, |(_, end, recovery)| end + recovery)
    }

    /// When the storms were, to be compared with a complaint.
    pub(crate) fn storms(&self) -> String {
        self.storms.iter().map(|(begin, end, _)| format!("{begin:.1}-{end:.1} ")).collect()
    }

    /// Whether there was a storm, or its consequences, at any moment between these two.
    pub(crate) fn excuses(&self, from: f64, to: f64) -> bool {
        self.storms.iter().any(|(begin, end, recovery)| from < end + recovery && to > *begin)
    }

    pub(crate) fn change(&mut self, job: &Job, crowd: &mut Crowd, random: &mut fastrand::Rng) {
        let moment = now();
        let was_stormy = self.storms.last().is_some_and(|(_, end, _)| end.is_finite());
        if moment >= self.next_round && moment + 4.0 < self.end {
            // Long enough for a stop of more than a token's life; and calm for a while after the recovery.
            // Each third one is of the kind that is remembered for long.
            let recovery = if self.storms.len() % 3 == 2 { LONG_RECOVERY } else { RECOVERY };
            self.storms.push((moment, moment + 9.0 + random.f64(), recovery));
            self.next_round = self.well_from() + 9.0;
            self.next_fault = moment;
        } else if was_stormy && !self.is_stormy() && self.next_fault < self.well_from() {
            self.clear(job, crowd);
            self.next_fault = self.well_from();
        }
        if moment < self.next_fault {
            return;
        }
        if self.is_stormy() {
            self.storm(job, crowd, random);
            self.next_fault = moment + 1.0 + random.f64();
        } else {
            self.breeze(job, random);
            // Three tries of one process take two and a half seconds at most: so no more than two of them meet a failure.
            self.next_fault = moment + 3.0 + random.f64();
        }
    }

    /// The end of a storm: everything answers again, and who was stopped goes on.
    pub(crate) fn clear(&mut self, job: &Job, crowd: &mut Crowd) {
        crowd.let_all_go_on();
        clock::set(job, 0);
        self.script(job, Vec::new(), Vec::new(), 6);
        if let Some((_, end, _)) = self.storms.last_mut() {
            *end = end.min(now());
        }
    }

    /// A single failure, which nobody may notice.
    fn breeze(&mut self, job: &Job, random: &mut fastrand::Rng) {
        let exchange = match random.u8(0..14) {
            0 => vec![Fault::DropBeforeCommit],
            1 => vec![Fault::DropAfterCommit],
            2 => vec![status(503, None, false)],
            3 => vec![status(529, None, true)],
            4 => vec![status(429, Some(1), false)],
            5 => vec![Fault::TruncatedBody],
            6 => vec![Fault::Stall { ms: 300 }],
            7 => vec![Fault::ResetBeforeCommit],
            8 => vec![Fault::ResetAfterCommit],
            9 => vec![Fault::Drip { ms: 300 }],
            10 => vec![Fault::ExpiresIn("6".into())],
            _ => vec![],
        };
        let identity = match random.u8(0..8) {
            0 | 1 => vec![Fault::DuplicateIdentityToken],
            2 => vec![status(503, None, false)],
            3 => vec![Fault::DropAfterCommit],
            4 => vec![Fault::Stall { ms: 300 }],
            _ => vec![],
        };
        self.script(job, exchange, identity, random.u64(4..=8));
    }

    /// One after another until somebody fails.
    fn storm(&mut self, job: &Job, crowd: &mut Crowd, random: &mut fastrand::Rng) {
        let (mut exchange, mut identity) = (Vec::new(), Vec::new());
        let is_remembered_for_long = self.storms.last().is_some_and(|(_, _, recovery)| *recovery == LONG_RECOVERY);
        match random.u8(0..if is_remembered_for_long { 15 } else { 11 }) {
            0 => exchange = twice([503, 429, 529, 500].map(|code| status(code, Some(1), random.bool()))),
            1 => exchange = twice([Fault::DropAfterCommit, Fault::DropBeforeCommit, Fault::TruncatedBody]),
            8 => {
                exchange =
                    twice([Fault::ResetAfterCommit, Fault::ResetBeforeCommit, Fault::Oversized { bytes: 20 << 20 }]);
            }
            9 => {
                let lifetimes = [0.into(), (-5).into(), serde_json::Value::Null];
                exchange = lifetimes.map(Fault::ExpiresIn).into();
                exchange.extend([Fault::NoAccessToken, Fault::WrongTokenType, Fault::TruncatedJson]);
            }
            10 => self.step_the_clock(job, random),
            11 => exchange = vec![Fault::Redirect { status: 307, location: "https://evil.invalid/".to_owned() }],
            12 => exchange = vec![Fault::ReflectAssertion],
            13 => exchange = vec![status([400, 401, 403, 404][random.usize(0..4)], None, random.bool())],
            14 => {
                identity = vec![Fault::MalformedIdentityToken, Fault::OversizedIdentityToken, status(403, None, false)];
            }
            2 => exchange = vec![Fault::Stall { ms: 2500 }; 4],
            3 => exchange = vec![Fault::EmptyBody, Fault::WrongTypes, Fault::NotJson, Fault::ExpiresIn("x".into())],
            4 => identity = vec![status(503, None, false); 12],
            5 => identity = twice([Fault::DropBeforeCommit, Fault::NotJson, Fault::TruncatedBody]),
            6 => identity = vec![Fault::DuplicateIdentityToken; 8],
            _ => {
                job.sandbox.revoke_access_tokens();
                self.revocations += 1;
            }
        }
        crowd.stop_some(random);
        self.script(job, exchange, identity, random.u64(4..=8));
    }

    /// The clock of every process steps by a minute or two, ahead or back: more than what is forgiven as inexact.
    fn step_the_clock(&mut self, job: &Job, random: &mut fastrand::Rng) {
        let seconds = random.i64(45..=120) * if random.bool() { 1 } else { -1 };
        self.clock_steps += u32::from(clock::set(job, seconds));
    }

    /// Replaces the script and counts what was taken of the one before.
    fn script(&mut self, job: &Job, exchange: Vec<Fault>, identity: Vec<Fault>, lifetime: u64) {
        let left = job.sandbox.knobs();
        let next = (exchange.clone(), identity.clone());
        job.sandbox.set_knobs(Knobs {
            exchange_faults: exchange,
            identity_token_faults: identity,
            exchange_latency_ms: 50,
            ..living(lifetime)
        });
        let before = std::mem::replace(&mut self.scripted, next);
        for (endpoint, scripted, left) in
            [("exchange", before.0, left.exchange_faults), ("identity", before.1, left.identity_token_faults)]
        {
            for fault in scripted.iter().take(scripted.len().saturating_sub(left.len())) {
                *self.taken.entry(format!("{endpoint}: {}", name(fault))).or_default() += 1;
            }
        }
    }

    /// The figures of the crowd with ours, as a table.
    pub(crate) fn figures(&self, crowd: &[(String, u64)]) -> String {
        let stormy: f64 = self.storms.iter().map(|(begin, end, recovery)| end + recovery - begin).sum();
        let whole = self.end.max(self.well_from()) - self.begun;
        let mut rows = vec![
            ("seconds, the last recovery included".to_owned(), whole as u64),
            ("of them calm".to_owned(), (whole - stormy).max(0.0) as u64),
            ("storms".to_owned(), self.storms.len() as u64),
        ];
        rows.extend(crowd.iter().cloned());
        rows.push(("revocations of all access tokens".to_owned(), self.revocations.into()));
        rows.push(("steps of the clock of all processes".to_owned(), self.clock_steps.into()));
        rows.extend(self.taken.iter().map(|(kind, times)| (format!("fault, {kind}"), (*times).into())));
        rows.iter().map(|(what, number)| format!("  {what:<58}{number:>7}\n")).collect()
    }
}

fn twice(faults: impl Into<Vec<Fault>>) -> Vec<Fault> {
    let faults = faults.into();
    [faults.clone(), faults].concat()
}

fn status(status: u16, retry_after_s: Option<u64>, commit: bool) -> Fault {
    Fault::Status { status, retry_after_s, commit }
}

fn name(fault: &Fault) -> String {
    match fault {
        Fault::Status { status, .. } => format!("HTTP {status}"),
        Fault::Stall { ms } => format!("stalled for {ms} ms"),
        fault => format!("{fault:?}").split(['(', ' ']).next().unwrap_or_default().to_owned(),
    }
}
