//! The clock of the command line: the system clock, with waits that a signal interrupts.

use wifshare::Clock;

use crate::signals;

pub(crate) fn clock() -> Clock {
    Clock { pause: signals::pause, ..Clock::system() }
}
