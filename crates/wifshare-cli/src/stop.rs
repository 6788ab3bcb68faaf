//! `wifshare stop`: ends the keeper that `start` left running, and removes the credential.

use std::path::{Path, PathBuf};
use std::time::Duration;

use wifshare::{Environment, IDENTITY_VARIABLES, Keeper, RUN_VARIABLE, clear, job, keepers, resolve, state_directory};

use crate::arguments::{HandOver, StopArguments};
use crate::clock::clock;
use crate::console::Console;
use crate::failure::Failure;
use crate::handover::take_back;
use crate::joined;
use crate::run_over::RunOver;
use crate::signals;
use crate::start;
use crate::started::Started;
use crate::summary;

pub(crate) fn stop(arguments: &StopArguments, environment: &Environment, console: Console) -> Result<u8, Failure> {
    let stopped = signals::listen().and_then(|()| end_and_undo(arguments, environment, console));
    if let (Err(failure), Some(format)) = (&stopped, arguments.format) {
        start::fail_where_evaluated(format, failure.exit_code());
    }
    stopped.map(|()| 0)
}

fn end_and_undo(arguments: &StopArguments, environment: &Environment, console: Console) -> Result<(), Failure> {
    end_keepers(arguments, environment, console)?;
    // The variables of a living run stay.
    let is_over = RunOver::of(environment).is_some();
    match arguments.format {
        Some(format) if is_over => take_back(format, environment, console),
        Some(format) => take_back(format, &Environment::default(), console),
        None if is_over && environment.has("GITHUB_ENV") => {
            // The keeper has ended anyway, and at the end of a job this file is not read again.
            if let Err(failure) = take_back(HandOver::Github, environment, console) {
                console.warning(&failure.message);
            }
            Ok(())
        }
        None if is_over && Started::in_environment(environment).is_some() => {
            console.notice(
                "this shell still has the variables of the run: `eval \"$(wifshare stop --format env)\"` gives it the \
                 job's own back",
            );
            Ok(())
        }
        None => Ok(()),
    }
}

fn end_keepers(arguments: &StopArguments, environment: &Environment, console: Console) -> Result<(), Failure> {
    let inputs = arguments.identity.inputs();
    let own = joined::without_a_run(environment);
    let of_the_run = environment.os(RUN_VARIABLE).and_then(|run| Path::new(run).ancestors().nth(3));
    let root = match (&inputs.state_dir, of_the_run) {
        (None, Some(root)) if root.is_dir() => root.to_owned(),
        (asked, _) => inputs.working_directory.join(state_directory(asked.as_deref(), &own)),
    };
    let (found, seen) = keepers(&root);
    let said: Vec<(&str, &str)> = arguments.identity.said().collect();
    let said = match said.is_empty() {
        false => said,
        true => IDENTITY_VARIABLES.iter().filter_map(|name| Some((*name, own.text(name)?))).collect(),
    };
    let job = job(&own);
    let names_an_identity = arguments.identity.name_an_identity();
    let around = joined::keeper_around(environment).map(|keeper| keeper.directory);
    // Keepers that earlier steps of this job started as well, in any state directory.
    let beside = Started::in_environment(environment).filter(|_| !names_an_identity).unwrap_or_default().beside;
    let beside: Vec<Keeper> = beside.iter().filter_map(|run| Keeper::of_run(run)).collect();
    let is_meant = |keeper: &Keeper| match &around {
        _ if arguments.all => true,
        Some(around) if !names_an_identity => keeper.directory == *around,
        // Keepers of other jobs of the CI keep running.
        _ => {
            keeper.agrees_with(said.iter().copied())
                && !keeper.contradicts(job.ids.iter().map(|(name, id)| (*name, &**id)))
        }
    };
    let mut meant: Vec<Keeper> = found.into_iter().filter(is_meant).collect();
    for keeper in beside {
        if meant.iter().all(|one| one.directory != keeper.directory) {
            meant.push(keeper);
        }
    }
    let mut ends_later = false;
    for keeper in &meant {
        ends_later |= end_and_sum_up(keeper, environment, console) == Ending::Later;
    }
    let owners =
        |keepers: &[Keeper]| keepers.iter().map(|keeper| keeper.owner.to_string()).collect::<Vec<_>>().join(", ");
    seen.inspect_err(|_| {
        if !meant.is_empty() {
            console.progress(&format!("ended the keeper with {}", owners(&meant)));
        }
    })?;
    let mut keys: Vec<PathBuf> = meant.iter().filter_map(Keeper::key_directory).map(Path::to_owned).collect();
    // Also remove other credentials of the same configuration, unless a process uses them. This requests no identity
    // token.
    keys.extend(resolve(&inputs, &own).ok().into_iter().flat_map(|config| config.key_directories()));
    let names_nothing = said.is_empty() && around.is_none();
    let elsewhere: Vec<&Path> = keys.iter().filter_map(|key| key.parent()).filter(|parent| *parent != root).collect();
    let of_all = if arguments.all || names_nothing { None } else { Some(&*keys) };
    let start = (clock().monotonic)();
    let is_clear = loop {
        let mut is_clear = clear(&root, of_all, clock(), &|step| console.step(step))?;
        for root in &elsewhere {
            is_clear &= clear(root, Some(&keys), clock(), &|step| console.step(step))?;
        }
        let is_late = (clock().monotonic)() - start >= LAST_MOMENTS;
        if is_clear || !ends_later || is_late || signals::pause(Duration::from_millis(100)).is_err() {
            break is_clear;
        }
    };
    if !meant.is_empty() {
        let became =
            if is_clear { ", removed the credential" } else { "; the credential stays, because others still use it" };
        console.progress(&format!("ended the keeper with {}{became}", owners(&meant)));
    }
    Ok(())
}

/// Ends a keeper, and appends its events to the summary of the job.
pub(crate) fn end_and_sum_up(keeper: &Keeper, environment: &Environment, console: Console) -> Ending {
    let ending = end(keeper);
    console.detail(&format!("the keeper with {} has ended", keeper.owner));
    if let Some(key) = keeper.key_directory()
        && let Some(since) = summary::beginning_of(key, keeper.owner.pid)
    {
        summary::append(key, since, environment, console);
    }
    ending
}

/// The time that a keeper needs to notice that its directory is gone, and to end.
const LAST_MOMENTS: Duration = Duration::from_secs(10);

/// How a keeper ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// It has ended.
    Now,
    /// Its process is not visible here. It ends when it notices that its directory is gone.
    Later,
}

/// Asks a keeper to end, and kills it if it does not. Only the process that recorded its own identity gets a signal.
pub(crate) fn end(keeper: &Keeper) -> Ending {
    // Longer than a run needs to end if no other process needs the renewal in progress.
    const POLITE: Duration = Duration::from_secs(10);
    const FINAL: Duration = Duration::from_secs(5);
    let process = platform::Process::of(&keeper.owner);
    match process {
        Some(process) => {
            process.ask_to_end();
            if !process.has_ended_within(POLITE) {
                process.kill();
                process.has_ended_within(FINAL);
            }
            Ending::Now
        }
        // For example in another container.
        None => {
            let _ = std::fs::remove_dir_all(&keeper.directory);
            Ending::Later
        }
    }
}

#[cfg(target_os = "linux")]
mod platform {
    use std::os::fd::OwnedFd;

    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
    use wifshare::ProcessIdentity;

    use super::*;

    pub(super) struct Process(OwnedFd);

    impl Process {
        /// Opens a handle of exactly this process, or returns `None` if that cannot be verified.
        pub(super) fn of(owner: &ProcessIdentity) -> Option<Process> {
            let pid = Pid::from_raw(i32::try_from(owner.pid).ok()?)?;
            let handle = pidfd_open(pid, PidfdFlags::empty()).ok()?;
            // Check after opening: the handle is used only if it belongs to the recorded process.
            (owner.start_time.is_some() && !owner.is_dead()).then_some(Process(handle))
        }

        pub(super) fn ask_to_end(&self) {
            let _ = pidfd_send_signal(&self.0, Signal::TERM);
        }

        pub(super) fn kill(&self) {
            let _ = pidfd_send_signal(&self.0, Signal::KILL);
        }

        pub(super) fn has_ended_within(&self, time: Duration) -> bool {
            let time = Timespec { tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX), tv_nsec: 0 };
            let mut ends = [PollFd::new(&self.0, PollFlags::IN)];
            loop {
                match poll(&mut ends, Some(&time)) {
                    Err(rustix::io::Errno::INTR) => {}
                    polled => return polled.is_ok_and(|ended| ended > 0),
                }
            }
        }
    }
}

/// Not tested: without a handle, the process id may have been reused, so a keeper is ended by removing its directory.
#[cfg(not(target_os = "linux"))]
mod platform {
    use wifshare::ProcessIdentity;

    use super::*;

    pub(super) struct Process;

    impl Process {
        pub(super) fn of(_owner: &ProcessIdentity) -> Option<Process> {
            None
        }

        pub(super) fn ask_to_end(&self) {}
        pub(super) fn kill(&self) {}

        pub(super) fn has_ended_within(&self, _time: Duration) -> bool {
            true
        }
    }
}
