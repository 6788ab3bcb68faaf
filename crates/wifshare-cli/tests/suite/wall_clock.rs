//! A wall clock that steps, for every process of a job, by libfaketime. The monotonic clock goes on as it is.

use std::path::PathBuf;

use crate::job::{Job, finish};

/// In the job's directory: how far the clock is off.
const FILE: &str = "clock";

/// From now on the wall clock of every process of this job is what [`set`] makes it. Without the library, which a CI has
/// to have, nothing changes.
pub(crate) fn replace(job: &mut Job) {
    let machine = std::env::consts::ARCH;
    let library = PathBuf::from(format!("/usr/lib/{machine}-linux-gnu/faketime/libfaketimeMT.so.1"));
    if !library.exists() {
        assert!(std::env::var_os("CI").is_none(), "libfaketime is missing");
        return;
    }
    std::fs::write(job.path(FILE), "+0").unwrap();
    let clock = job.path(FILE);
    for (name, value) in [
        ("LD_PRELOAD", library.to_str().unwrap()),
        ("FAKETIME_TIMESTAMP_FILE", clock.to_str().unwrap()),
        ("FAKETIME_NO_CACHE", "1"),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        // Files keep their times, and who is killed leaves no shared memory behind.
        ("NO_FAKE_STAT", "1"),
        ("FAKETIME_DISABLE_SHM", "1"),
    ] {
        job.set(name, value);
    }
    let seconds = |job: &Job| -> u64 {
        let date = finish(job.command("date", &["+%s"]).spawn().unwrap());
        date.stdout.trim().parse().unwrap()
    };
    let before = seconds(job);
    assert!(set(job, 1000) && (1000..1100).contains(&(seconds(job) - before)), "the clock steps");
    assert!(set(job, 0));
}

/// Steps the clock so many seconds away from the right time. Tells whether there is one to step.
pub(crate) fn set(job: &Job, ahead_s: i64) -> bool {
    if !job.path(FILE).exists() {
        return false;
    }
    // Replaced whole: it is read at every look at the time.
    let unfinished = job.path("clock.new");
    std::fs::write(&unfinished, format!("{ahead_s:+}")).unwrap();
    std::fs::rename(&unfinished, job.path(FILE)).unwrap();
    true
}
