//! The fault schedule of calm and storms, and the failures that it excuses.

use std::collections::{BTreeMap, BTreeSet};

use wifshare_sandbox::{Fault, Settings};

use crate::clock;
use crate::job::{Job, living};
use crate::processes::Crowd;
use crate::{LONG_RECOVERY, RECOVERY, now};

pub(crate) struct Weather {
    begun: f64,
    end: f64,
    /// For each storm: its begin, its end, and the recovery time after it.
    storms: Vec<(f64, f64, f64)>,
    next_fault: f64,
    next_round: f64,
    /// The faults scripted last. They are counted once they were used.
    scripted: (Vec<Fault>, Vec<Fault>),
    taken: BTreeMap<String, u32>,
    revocations: u32,
    clock_steps: u32,
}

impl Weather {
    /// Begins with calm. Each round is calm, a storm and recovery.
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

    /// Returns when the last storm has no effect any more.
    pub(crate) fn well_from(&self) -> f64 {
        self.storms.last().map_or(self.begun, |(_, end, recovery)| end + recovery)
    }

    /// Returns the times of the storms, for comparison with a complaint.
    pub(crate) fn storms(&self) -> String {
        self.storms.iter().map(|(begin, end, _)| format!("{begin:.1}-{end:.1} ")).collect()
    }

    /// Returns whether there was a storm, or its recovery, between these two times.
    pub(crate) fn excuses(&self, from: f64, to: f64) -> bool {
        self.storms.iter().any(|(begin, end, recovery)| from < end + recovery && to > *begin)
    }

    pub(crate) fn change(&mut self, job: &Job, crowd: &mut Crowd, random: &mut fastrand::Rng) {
        let moment = now();
        let was_stormy = self.storms.last().is_some_and(|(_, end, _)| end.is_finite());
        if moment >= self.next_round && moment + 4.0 < self.end {
            // Long enough for a stop of more than a token's lifetime, and with calm after the recovery. Every second
            // storm has failures that are cached for 30 s.
            let recovery = if self.storms.len() % 2 == 1 { LONG_RECOVERY } else { RECOVERY };
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
            // Three attempts of one process take two and a half seconds at most, so that at most two of them fail.
            self.next_fault = moment + 3.0 + random.f64();
        }
    }

    /// Ends a storm: all endpoints answer again, and stopped processes continue.
    pub(crate) fn clear(&mut self, job: &Job, crowd: &mut Crowd) {
        crowd.let_all_go_on();
        clock::set(job, 0);
        self.script(job, Vec::new(), Vec::new(), 6);
        if let Some((_, end, _)) = self.storms.last_mut() {
            *end = end.min(now());
        }
    }

    /// Scripts a single failure. No process may fail because of it.
    fn breeze(&mut self, job: &Job, random: &mut fastrand::Rng) {
        let mut one_at = |endpoint| {
            let kinds = self.least_met(at(endpoint, breezes()), random);
            kinds.into_iter().take(usize::from(random.u8(0..4) > 0)).collect()
        };
        let (exchange, identity) = (one_at(Endpoint::Exchange), one_at(Endpoint::Identity));
        self.script(job, exchange, identity, random.u64(4..=8));
    }

    /// Scripts faults until some process fails. The faults that occurred least come first.
    fn storm(&mut self, job: &Job, crowd: &mut Crowd, random: &mut fastrand::Rng) {
        let is_remembered_for_long = self.storms.last().is_some_and(|(_, _, recovery)| *recovery == LONG_RECOVERY);
        let (mut exchange, mut identity) = (Vec::new(), Vec::new());
        match random.u8(0..if is_remembered_for_long { 16 } else { 8 }) {
            0 => self.step_the_clock(job, random),
            1 => {
                job.sandbox.revoke_access_tokens();
                self.revocations += 1;
            }
            2 => identity = vec![status(503); 12],
            3 => identity = vec![Fault::DuplicateIdentityToken; 8],
            4 => identity = twice(self.least_met(at(Endpoint::Identity, failures()), random)),
            5..8 => {
                exchange = self.least_met(at(Endpoint::Exchange, failures()), random);
                exchange.truncate(6);
            }
            // A process that receives one of these sends no request for a while.
            _ => match self.least_met_first(refusals(), random) {
                (Endpoint::Exchange, fault) => exchange = vec![fault],
                (Endpoint::Identity, fault) => identity = vec![fault; 3],
            },
        }
        for fault in exchange.iter_mut().chain(&mut identity) {
            if let Fault::Status { retry_after_s, commit, .. } = fault {
                (*retry_after_s, *commit) = (random.bool().then_some(1), random.bool());
            }
        }
        crowd.stop_some(random);
        self.script(job, exchange, identity, random.u64(4..=8));
    }

    fn least_met(&self, kinds: Vec<Kind>, random: &mut fastrand::Rng) -> Vec<Fault> {
        self.by_rarity(kinds, random).into_iter().map(|(_, fault)| fault).collect()
    }

    fn least_met_first(&self, kinds: Vec<Kind>, random: &mut fastrand::Rng) -> Kind {
        self.by_rarity(kinds, random).swap_remove(0)
    }

    fn by_rarity(&self, mut kinds: Vec<Kind>, random: &mut fastrand::Rng) -> Vec<Kind> {
        random.shuffle(&mut kinds);
        kinds.sort_by_key(|kind| self.taken.get(&name(kind)).copied());
        kinds
    }

    /// Returns every kind of fault that has not occurred in a response.
    pub(crate) fn never_met(&self) -> BTreeSet<String> {
        let kinds = [breezes(), failures(), refusals()].concat();
        kinds.iter().map(name).filter(|name| !self.taken.contains_key(name)).collect()
    }

    /// Steps the clock of every process by one or two minutes, forward or back. That is more than the clock tolerance.
    fn step_the_clock(&mut self, job: &Job, random: &mut fastrand::Rng) {
        let seconds = random.i64(45..=120) * if random.bool() { 1 } else { -1 };
        self.clock_steps += u32::from(clock::set(job, seconds));
    }

    /// Replaces the script and counts the used faults of the previous one.
    fn script(&mut self, job: &Job, exchange: Vec<Fault>, identity: Vec<Fault>, lifetime: u64) {
        let left = job.sandbox.settings();
        let next = (exchange.clone(), identity.clone());
        job.sandbox.set_settings(Settings {
            exchange_faults: exchange,
            identity_token_faults: identity,
            exchange_latency_ms: 50,
            ..living(lifetime)
        });
        let before = std::mem::replace(&mut self.scripted, next);
        for (endpoint, scripted, left) in [
            (Endpoint::Exchange, before.0, left.exchange_faults),
            (Endpoint::Identity, before.1, left.identity_token_faults),
        ] {
            let taken = scripted.len().saturating_sub(left.len());
            for fault in scripted.into_iter().take(taken) {
                *self.taken.entry(name(&(endpoint, fault))).or_default() += 1;
            }
        }
    }

    /// Combines these figures with those of the crowd in a table.
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

/// The endpoint of a scripted fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Endpoint {
    Exchange,
    Identity,
}

type Kind = (Endpoint, Fault);

/// Faults that cause no failure if they occur once.
fn breezes() -> Vec<Kind> {
    let exchange = [
        Fault::DropBeforeCommit,
        Fault::DropAfterCommit,
        status(503),
        status(529),
        Fault::Status { status: 429, retry_after_s: Some(1), commit: false },
        Fault::TruncatedBody,
        Fault::Stall { ms: 300 },
        Fault::ResetBeforeCommit,
        Fault::ResetAfterCommit,
        Fault::Drip { ms: 300 },
        Fault::ExpiresIn("6".into()),
    ];
    let identity = [Fault::DuplicateIdentityToken, status(503), Fault::DropAfterCommit, Fault::Stall { ms: 300 }];
    kinds(exchange, identity)
}

/// Transient failures, which are cached for a short time.
fn failures() -> Vec<Kind> {
    let exchange = [
        status(500),
        status(503),
        status(429),
        status(529),
        Fault::DropAfterCommit,
        Fault::DropBeforeCommit,
        Fault::ResetAfterCommit,
        Fault::ResetBeforeCommit,
        Fault::TruncatedBody,
        Fault::Oversized { bytes: 20 << 20 },
        Fault::ExpiresIn(0.into()),
        Fault::ExpiresIn((-5).into()),
        Fault::ExpiresIn(serde_json::Value::Null),
        Fault::ExpiresIn("x".into()),
        Fault::NoAccessToken,
        Fault::WrongTokenType,
        Fault::TruncatedJson,
        Fault::EmptyBody,
        Fault::WrongTypes,
        Fault::NotJson,
        Fault::Stall { ms: 2500 },
    ];
    let identity = [Fault::DropBeforeCommit, Fault::NotJson, Fault::TruncatedBody];
    kinds(exchange, identity)
}

/// Refusals, which are cached for 30 s.
fn refusals() -> Vec<Kind> {
    let exchange = [
        status(400),
        status(401),
        status(403),
        status(404),
        Fault::Redirect { status: 307, location: "https://evil.invalid/".to_owned() },
        Fault::ReflectAssertion,
    ];
    let identity = [status(403), Fault::MalformedIdentityToken, Fault::OversizedIdentityToken];
    kinds(exchange, identity)
}

fn kinds(exchange: impl IntoIterator<Item = Fault>, identity: impl IntoIterator<Item = Fault>) -> Vec<Kind> {
    let exchange = exchange.into_iter().map(|fault| (Endpoint::Exchange, fault));
    exchange.chain(identity.into_iter().map(|fault| (Endpoint::Identity, fault))).collect()
}

fn at(endpoint: Endpoint, mut kinds: Vec<Kind>) -> Vec<Kind> {
    kinds.retain(|(its, _)| *its == endpoint);
    kinds
}

fn twice(faults: Vec<Fault>) -> Vec<Fault> {
    [faults.clone(), faults].concat()
}

fn status(status: u16) -> Fault {
    Fault::Status { status, retry_after_s: None, commit: false }
}

fn name((endpoint, fault): &Kind) -> String {
    let fault = match fault {
        Fault::Status { status, .. } => format!("HTTP {status}"),
        Fault::Stall { ms } => format!("stalled for {ms} ms"),
        Fault::ExpiresIn(value) => format!("expires_in {value}"),
        fault => format!("{fault:?}").split(['(', ' ']).next().unwrap_or_default().to_owned(),
    };
    let endpoint = match endpoint {
        Endpoint::Exchange => "exchange",
        Endpoint::Identity => "identity",
    };
    format!("{endpoint}: {fault}")
}
