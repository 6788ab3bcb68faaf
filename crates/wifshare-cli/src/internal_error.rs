//! Reports a panic in one line, without its message, which may contain secret data.

use std::panic::{Location, PanicHookInfo};

use crate::catalogue::code;
use crate::console::Console;
use crate::failure::Failure;

/// Reports each panic from now on as an internal error on standard error, with its location and without its message.
pub(crate) fn report_panics(console: Console) {
    std::panic::set_hook(Box::new(move |panic| console.failure_at_once(&failure(panic))));
}

fn failure(panic: &PanicHookInfo<'_>) -> Failure {
    let thread = std::thread::current();
    let thread = thread.name().unwrap_or("without a name");
    let place = panic.location().map_or_else(|| "an unknown place".to_owned(), place);
    Failure::new(
        code!("internal"),
        format!("internal error at {place}, thread {thread}"),
        Some("this is a bug of wifshare: please report this line, which holds nothing secret"),
    )
}

/// The file path from the package directory on, without the build directory.
fn place(location: &Location<'_>) -> String {
    let parts: Vec<&str> = location.file().split(['/', '\\']).collect();
    let source = parts.iter().rposition(|part| *part == "src").unwrap_or(1);
    format!("{}:{}", parts[source.saturating_sub(1)..].join("/"), location.line())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panic_location_begins_with_the_package() {
        let line = line!() + 1;
        assert_eq!(place(Location::caller()), format!("wifshare-cli/src/internal_error.rs:{line}"));
    }
}
