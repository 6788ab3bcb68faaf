//! Appends to files of other programs: GitHub's file commands and the job's summary. A text is appended whole or not at
//! all.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use wifshare::{open_regular, open_to_append};

/// A file opened for appending, with its original length.
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

    /// Appends a text, starting on a new line. After a failure, such as a full disk, the file is restored.
    ///
    /// # Errors
    /// Returns an error if the file cannot be written.
    pub(crate) fn append(&mut self, text: &str) -> io::Result<()> {
        let written = self.end_last_line().and_then(|()| self.file.write_all(text.as_bytes()));
        if written.is_err() {
            self.undo();
        }
        written
    }

    /// Truncates the file to its original length.
    pub(crate) fn undo(&self) {
        // A pipe has no length: what was written to it cannot be undone.
        let _ = self.file.set_len(self.length);
    }

    /// Ends the last line if it has no line feed. Otherwise the new text would become part of it.
    fn end_last_line(&mut self) -> io::Result<()> {
        if self.length == 0 || !self.file.metadata()?.is_file() {
            return Ok(());
        }
        let mut last = [0];
        // If this process cannot read the file, append to it as it is.
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
