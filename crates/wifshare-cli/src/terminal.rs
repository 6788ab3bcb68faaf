//! Terminal detection and control: size, colours, alternate screen and keys.

use std::io::IsTerminal;

use wifshare::Environment;

/// Properties of an output stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Terminal {
    /// Whether it is a terminal on which a line can be overwritten.
    pub(crate) is_live: bool,
    /// Whether to use colours.
    pub(crate) is_coloured: bool,
    /// Characters per line.
    pub(crate) width: usize,
}

/// Used if the width is unknown: wide enough that nothing important is cut.
const PLAIN_WIDTH: usize = 400;

impl Terminal {
    /// For standard error.
    pub(crate) fn of_talk(environment: &Environment) -> Terminal {
        Terminal::of(std::io::stderr().is_terminal(), || width_of(&std::io::stderr()), environment)
    }

    /// For standard output.
    pub(crate) fn of_data(environment: &Environment) -> Terminal {
        Terminal::of(std::io::stdout().is_terminal(), || width_of(&std::io::stdout()), environment)
    }

    /// Follows the conventions: `NO_COLOR` (no-color.org) takes precedence over `CLICOLOR_FORCE` and `CLICOLOR`
    /// (bixense.com/clicolors). A dumb terminal supports nothing.
    fn of(is_terminal: bool, width: impl FnOnce() -> Option<usize>, environment: &Environment) -> Terminal {
        let is_dumb = environment.text("TERM") == Some("dumb");
        let is_forced = environment.text("CLICOLOR_FORCE").is_some_and(|value| value != "0");
        let is_refused = environment.has("NO_COLOR") || (!is_forced && environment.text("CLICOLOR") == Some("0"));
        let columns = environment.text("COLUMNS").and_then(|columns| columns.parse().ok());
        Terminal {
            is_live: is_terminal && !is_dumb,
            is_coloured: !is_refused && (is_forced || (is_terminal && !is_dumb)),
            width: columns.or_else(|| is_terminal.then(width).flatten()).unwrap_or(PLAIN_WIDTH).clamp(20, 400),
        }
    }
}

/// Cuts a text to this number of characters, and marks the cut with an ellipsis.
pub(crate) fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let kept: String = text.chars().take(width.saturating_sub(1)).collect();
    format!("{}…", kept.trim_end())
}

#[cfg(unix)]
fn width_of(stream: &impl std::os::fd::AsFd) -> Option<usize> {
    let size = rustix::termios::tcgetwinsize(stream).ok()?;
    (size.ws_col > 0).then_some(size.ws_col.into())
}

/// Not tested: only `COLUMNS` gives the width.
#[cfg(not(unix))]
fn width_of<T>(_stream: &T) -> Option<usize> {
    None
}

/// Current columns and rows of the terminal at standard output. `COLUMNS` does not change when the window is resized.
#[cfg(unix)]
pub(crate) fn size_of_data() -> (usize, usize) {
    let size = rustix::termios::tcgetwinsize(std::io::stdout()).ok();
    // 0 means unknown.
    let side = |known: Option<u16>, usual: u16| usize::from(known.filter(|side| *side > 0).unwrap_or(usual));
    (side(size.map(|size| size.ws_col), 80), side(size.map(|size| size.ws_row), 24))
}

/// Whether the reader of standard output has closed it, as `head` does. A pipe tells this without a write.
#[cfg(unix)]
pub(crate) fn reader_has_gone() -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    let stdout = std::io::stdout();
    let mut fds = [PollFd::new(&stdout, PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let is_known = poll(&mut fds, Some(&now)).is_ok_and(|ready| ready > 0);
    is_known && fds[0].revents().intersects(PollFlags::ERR | PollFlags::HUP)
}

/// Not run by us: the next write finds out.
#[cfg(not(unix))]
pub(crate) fn reader_has_gone() -> bool {
    false
}

/// The alternate screen of the terminal. Dropping it restores the previous screen.
#[cfg(unix)]
pub(crate) struct AlternateScreen;

#[cfg(unix)]
impl AlternateScreen {
    pub(crate) fn enter() -> AlternateScreen {
        write_through("\x1b[?1049h\x1b[?25l");
        AlternateScreen
    }

    /// Replaces the contents of the screen.
    pub(crate) fn draw(&self, frame: &str) {
        write_through(&format!("\x1b[H{frame}\x1b[J"));
    }
}

#[cfg(unix)]
impl Drop for AlternateScreen {
    fn drop(&mut self) {
        write_through("\x1b[?25h\x1b[?1049l");
    }
}

#[cfg(unix)]
fn write_through(text: &str) {
    use std::io::Write;

    // If the terminal is gone, nothing can be written. Reading a key detects that.
    let mut stdout = std::io::stdout().lock();
    let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
}

#[cfg(unix)]
pub(crate) use keys::Keys;

#[cfg(unix)]
mod keys {
    use std::io::IsTerminal;
    use std::time::Duration;

    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};

    /// The character that Ctrl-D sends.
    const END: u8 = 4;

    /// Reads single keys without echo. Dropping it restores the terminal's settings.
    pub(crate) struct Keys {
        before: Option<Termios>,
    }

    impl Keys {
        pub(crate) fn listen() -> Keys {
            let stdin = std::io::stdin();
            let before = if stdin.is_terminal() { tcgetattr(&stdin).ok() } else { None };
            if let Some(before) = &before {
                let mut raw = before.clone();
                // Ctrl-C still sends a signal.
                raw.local_modes.remove(LocalModes::ICANON | LocalModes::ECHO);
                let _ = tcsetattr(&stdin, OptionalActions::Now, &raw);
            }
            Keys { before }
        }

        /// Waits for a key up to this time. Returns `None` after the timeout, or if standard input is not a terminal.
        pub(crate) fn next(&self, patience: Duration) -> Option<u8> {
            let stdin = std::io::stdin();
            let timeout = Timespec { tv_sec: patience.as_secs() as i64, tv_nsec: patience.subsec_nanos().into() };
            self.before.as_ref()?;
            let mut fds = [PollFd::new(&stdin, PollFlags::IN)];
            poll(&mut fds, Some(&timeout)).ok().filter(|ready| *ready > 0)?;
            let mut key = [0];
            // If the terminal is gone, that is an end of input too.
            rustix::io::read(&stdin, &mut key)
                .map_or(Some(END), |read| if read == 1 { Some(key[0]) } else { Some(END) })
        }

        /// Whether standard input is a terminal.
        pub(crate) fn are_there(&self) -> bool {
            self.before.is_some()
        }
    }

    impl Drop for Keys {
        fn drop(&mut self) {
            if let Some(before) = &self.before {
                let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, before);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminal_colour_follows_tty_and_variables() {
        for (is_terminal, variables, coloured) in [
            (true, &[][..], true),
            (false, &[], false),
            (true, &[("NO_COLOR", "1")], false),
            (true, &[("NO_COLOR", "")], true),
            (true, &[("TERM", "dumb")], false),
            (true, &[("CLICOLOR", "0")], false),
            (true, &[("CLICOLOR", "1")], true),
            (false, &[("CLICOLOR_FORCE", "1")], true),
            (false, &[("CLICOLOR_FORCE", "0")], false),
            (false, &[("CLICOLOR_FORCE", "1"), ("NO_COLOR", "1")], false),
        ] {
            let environment = Environment::from_iter(variables.iter().copied());
            assert_eq!(Terminal::of(is_terminal, || None, &environment).is_coloured, coloured, "{variables:?}");
        }
    }

    #[test]
    fn terminal_width_follows_columns_or_the_tty_within_limits() {
        for (columns, width, expected) in
            [("", None, 400), ("", Some(80), 80), ("60", Some(80), 60), ("nonsense", Some(80), 80), ("1", None, 20)]
        {
            let environment = Environment::from_iter([("COLUMNS", columns)]);
            assert_eq!(Terminal::of(true, || width, &environment).width, expected);
        }
    }

    #[test]
    fn overlong_text_is_cut_with_an_ellipsis() {
        assert_eq!(cut("äöü", 3), "äöü");
        assert_eq!(cut("abc def", 5), "abc…");
    }
}
