//! Recognises system limits in errors, such as too many open files, so that the hint can name the limit.

use std::io;

/// Returns how to raise the limit that caused an error; `None` if the cause is not a limit.
pub fn cure(error: &io::Error) -> Option<&'static str> {
    // tempfile wraps the system's error together with the path.
    error.raw_os_error().and_then(of_code).or_else(|| cure_in(&error.to_string()))
}

/// Like [`cure`], for a message that ends with the system's error code: `Too many open files (os error 24)`.
pub(crate) fn cure_in(message: &str) -> Option<&'static str> {
    let (_, code) = message.rsplit_once("(os error ")?;
    of_code(code.split_once(')')?.0.parse().ok()?)
}

#[cfg(unix)]
fn of_code(code: i32) -> Option<&'static str> {
    use rustix::io::Errno;
    let is = |errno: Errno| errno.raw_os_error() == code;
    Some(match () {
        () if is(Errno::MFILE) => "this process may not open more files: raise the limit (`ulimit -n 1024`)",
        () if is(Errno::NFILE) => "this system may not open more files: raise fs.file-max, or end what holds them open",
        () if is(Errno::NOSPC) => "the disk is full: free some space",
        () if is(Errno::DQUOT) => "this user's quota on that file system is used up: free some space",
        () if is(Errno::FBIG) => {
            "the file would be larger than this process may write: raise the limit (`ulimit -f unlimited`)"
        }
        () if is(Errno::NAMETOOLONG) => "the path is too long for the system: choose a shorter one",
        () if is(Errno::AGAIN) => {
            "this user may not start more processes or threads: raise the limit (`ulimit -u`, or the \
                                   container's pids limit)"
        }
        () if is(Errno::NOMEM) => {
            "the system has no memory left for this: raise the limit (`ulimit -v`, or the container's)"
        }
        () if is(Errno::TOOBIG) => "arguments and environment are larger than the system allows: unset large variables",
        () => return None,
    })
}

/// Not tested by us.
#[cfg(not(unix))]
fn of_code(_code: i32) -> Option<&'static str> {
    None
}

#[cfg(test)]
#[cfg(unix)]
mod tests {
    use super::*;

    #[test]
    fn resource_limits_are_recognised_by_error_code() {
        for (code, words) in [(24, "ulimit -n"), (28, "space"), (27, "ulimit -f"), (11, "ulimit -u"), (36, "shorter")] {
            let error = io::Error::from_raw_os_error(code);
            assert!(cure(&error).is_some_and(|cure| cure.contains(words)), "{error}");
            assert_eq!(cure_in(&format!("could not connect: {error}")), cure(&error));
        }
        assert_eq!(cure(&io::Error::from_raw_os_error(13)), None);
        assert_eq!(cure(&io::Error::other("x")), None);
        assert_eq!(cure_in("no code (os error x)"), None);
    }
}
