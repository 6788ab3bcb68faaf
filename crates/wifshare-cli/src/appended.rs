//! Files of other programs that wifshare appends to: GitHub's file commands and the job's summary. All of a text is
//! appended, or nothing.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use wifshare::{open_regular, open_to_append};

/// A file that is open to be appended to, and its length before.
#[derive(Debug)]
pub(crate) struct AppendedFile {
    path: PathBuf,
    file: File,
    length: u64,
}

impl AppendedFile {
    pub(crate) fn open(path: &Path) -> io::Result<AppendedFile> {
        let file = open_to_append(path)?;
        let length = file.metadata()?.len();
        Ok(AppendedFile { path: path.to_owned(), file, length })
    }

    /// Appends a text, on a line of its own. After a failure, such as a full disk, the file is as it was before.
    ///
    /// # Errors
    /// The file could not be written.
    pub(crate) fn append(&mut self, text: &str) -> io::Result<()> {
        let written = self.end_last_line().and_then(|()| self.file.write_all(text.as_bytes()));
        if written.is_err() {
            self.undo();
        }
        written
    }

    /// Removes what was appended.
    pub(crate) fn undo(&self) {
        // A pipe has no length, and what was written to it is gone.
        let _ = self.file.set_len(self.length);
    }

    /// A file of another program may end without a line feed. What follows would become part of its last line.
    fn end_last_line(&mut self) -> io::Result<()> {
        if self.length == 0 || !self.file.metadata()?.is_file() {
            return Ok(());
        }
        let mut last = [0];
        // A file that this process may not read is appended to as it is.
        let read = open_regular(&self.path).and_then(|mut file| {
            file.seek(SeekFrom::Start(self.length - 1))?;
            file.read_exact(&mut last)
        });
        if read.is_ok() && last != *b"\n" { self.file.write_all(b"\n") } else { Ok(()) }
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test reads and writes files of its own")]
mod tests {
    use super::*;

    #[test]
    fn appended_text_starts_on_a_new_line_and_can_be_undone() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("file");
        for (before, after) in [("", "new\n"), ("old\n", "old\nnew\n"), ("old", "old\nnew\n")] {
            std::fs::write(&path, before).expect("written");
            let mut file = AppendedFile::open(&path).expect("open");
            file.append("new\n").expect("appended");
            assert_eq!(std::fs::read_to_string(&path).expect("read"), after);
            file.undo();
            assert_eq!(std::fs::read_to_string(&path).expect("read"), before);
        }
        std::fs::remove_file(&path).expect("removed");
        AppendedFile::open(&path).expect("created").append("new\n").expect("appended");
    }
}
