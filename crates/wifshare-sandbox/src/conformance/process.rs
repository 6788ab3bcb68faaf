//! One run of the command: its own process group, its output in files, and an end in any case.

use std::{
    ffi::OsString,
    fs::File,
    io::{self, Read, Seek},
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
};

/// A run that has begun. Dropped, its process group is killed.
pub(super) struct Running {
    child: Child,
    stdout: File,
    stderr: File,
    is_over: bool,
    is_waited_for: bool,
}

/// A run that is over.
pub(super) struct Ended {
    /// `None` if it had to be killed.
    pub(super) status: Option<ExitStatus>,
    pub(super) stdout: String,
    pub(super) stderr: String,
}

impl Running {
    pub(super) fn start(
        command: &[OsString],
        environment: &[(OsString, OsString)],
        directory: &Path,
    ) -> io::Result<Self> {
        let (program, arguments) =
            command.split_first().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "there is no command"))?;
        // Files, not pipes: what outlives the command cannot keep us reading.
        let (stdout, stderr) = (tempfile::tempfile()?, tempfile::tempfile()?);
        let mut command = Command::new(program);
        command.args(arguments).env_clear().envs(environment.iter().cloned()).current_dir(directory);
        command.stdin(Stdio::null()).stdout(stdout.try_clone()?).stderr(stderr.try_clone()?);
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        Ok(Self { child: command.spawn()?, stdout, stderr, is_over: false, is_waited_for: false })
    }

    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether the command has ended by itself. What it started may still run.
    pub(super) fn has_ended(&mut self) -> bool {
        self.is_over = self.is_over || self.has_exited();
        self.is_over
    }

    /// Ends what is left of it and reads what it printed.
    pub(super) fn end(mut self) -> io::Result<Ended> {
        let ended_by_itself = self.has_ended();
        self.kill();
        let status = self.child.wait()?;
        self.is_waited_for = true;
        Ok(Ended {
            status: ended_by_itself.then_some(status),
            stdout: read(&mut self.stdout)?,
            stderr: read(&mut self.stderr)?,
        })
    }

    #[cfg(unix)]
    fn group(&self) -> Option<rustix::process::Pid> {
        i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw)
    }

    #[cfg(unix)]
    fn has_exited(&mut self) -> bool {
        use rustix::process::{WaitId, WaitIdOptions, waitid};
        // It is left in the table of processes, so that its number, the group's, is not given to another.
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        self.group().is_none_or(|pid| !matches!(waitid(WaitId::Pid(pid), options), Ok(None)))
    }

    #[cfg(unix)]
    fn kill(&mut self) {
        if let Some(group) = self.group() {
            _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
    }

    #[cfg(not(unix))]
    fn has_exited(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(Some(_)))
    }

    #[cfg(not(unix))]
    fn kill(&mut self) {
        _ = self.child.kill();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Once it has been waited for, its number may be another's.
        if !self.is_waited_for {
            self.kill();
            _ = self.child.wait();
        }
    }
}

fn read(file: &mut File) -> io::Result<String> {
    const LIMIT: u64 = 4 << 20;
    let mut bytes = Vec::new();
    file.rewind()?;
    file.take(LIMIT).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
