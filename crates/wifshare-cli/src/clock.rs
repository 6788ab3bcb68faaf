//! The clock of the command line: the machine's own, with waits that a signal cuts short.

use wifshare::Clock;

use crate::signals;

pub(crate) fn clock() -> Clock {
    Clock { pause: signals::pause, ..Clock::system() }
}
