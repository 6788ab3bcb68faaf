//! Samples random orders of more processes than can be explored: eight processes with six crashes. An order that breaks
//! a promise is shrunk to the shortest one. The guards are removed here too, and each removal must be detected.

use proptest::collection::vec;
use proptest::num::u16;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};

use super::model::{GUARDS, GUARDS_OF_PRINCIPALS, Removed, World};

type Crowd = World<8, 24>;

/// Follows an order. Each choice is the next process or, one time in twelve, a failure. Afterwards every process must
/// end without further failures.
fn follow(order: &[u16], principals: u8, can_be_asked_again: bool, removed: Removed) -> Result<(), &'static str> {
    let mut world = Crowd::new(principals, can_be_asked_again);
    world.crashes_left = 6;
    world.mishaps_left = 3;
    for choice in order {
        let misfortunes = if choice % 12 == 0 { world.misfortunes(can_be_asked_again) } else { Vec::new() };
        let next = if misfortunes.is_empty() { world.steps(can_be_asked_again, removed) } else { misfortunes };
        let Some(next) = (!next.is_empty()).then(|| next[usize::from(*choice) / 12 % next.len()].clone()) else {
            break;
        };
        world = next;
        world.broken_promise().map_or(Ok(()), Err)?;
    }
    // The longest run: the proof of identity, and three attempts of six actions with four spent tokens before each.
    const LONGEST: usize = 8 * (1 + 3 * (6 + 4 * 2));
    for _ in 0..LONGEST {
        let Some(next) = world.steps(can_be_asked_again, removed).pop() else { break };
        world = next;
        world.broken_promise().map_or(Ok(()), Err)?;
    }
    match world.processes.iter().all(|process| process.is_over()) {
        true => Ok(()),
        false => Err("somebody waits for ever"),
    }
}

/// Samples this number of orders. The orders are the same each time and on every machine.
fn sample(orders: u32, principals: u8, can_be_asked_again: bool, removed: Removed) -> Result<(), (String, usize)> {
    let config = Config { cases: orders, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let outcome = runner.run(&vec(u16::ANY, 0..300), |order| {
        follow(&order, principals, can_be_asked_again, removed).map_err(TestCaseError::fail)
    });
    outcome.map_err(|error| match error {
        TestError::Fail(reason, order) => (reason.message().to_owned(), order.len()),
        TestError::Abort(reason) => panic!("{reason}"),
    })
}

#[test]
fn eight_processes_and_six_crashes_break_no_promise() {
    for (can_be_asked_again, principals) in [(true, 1), (false, 1), (true, 2), (false, 2)] {
        sample(2_000, principals, can_be_asked_again, Removed::Nothing).expect("every promise holds");
    }
}

#[test]
fn sampling_finds_each_removed_guard() {
    let guards = GUARDS.map(|(removed, broken)| (1, removed, broken));
    let of_principals = GUARDS_OF_PRINCIPALS.map(|(removed, broken)| (2, removed, broken));
    for (principals, removed, broken) in guards.into_iter().chain(of_principals) {
        let (found, steps) = sample(20_000, principals, true, removed).expect_err("a promise is broken");
        assert_eq!(found, broken, "without {removed:?}, in {steps} steps");
        assert!(steps < 80, "without {removed:?} it takes {steps} steps: the order was not shrunk");
    }
}
