//! Steps the wall clock of every process of a job with libfaketime. The monotonic clock is not changed.

use std::path::PathBuf;

use crate::job::{Job, finish};

/// The file in the job's directory with the offset of the clock.
const FILE: &str = "clock";

/// Makes every process of this job use the wall clock of [`set`]. Without libfaketime, which is required under CI,
/// nothing changes.
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
        // File times are not changed, and a killed process leaves no shared memory.
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

/// Steps the clock this many seconds away from the correct time. Returns whether the clock can be stepped.
pub(crate) fn set(job: &Job, ahead_s: i64) -> bool {
    if !job.path(FILE).exists() {
        return false;
    }
    // The file is replaced atomically, because it is read each time a process reads the clock.
    let unfinished = job.path("clock.new");
    std::fs::write(&unfinished, format!("{ahead_s:+}")).unwrap();
    std::fs::rename(&unfinished, job.path(FILE)).unwrap();
    true
}
