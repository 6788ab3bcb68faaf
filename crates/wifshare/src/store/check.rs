//! Checks that the files of a state directory are usable.

use super::lease::{LEASE, RUNS};
use super::ledger::Ledger;
use super::{LOCK, Store, StoreError, failure_cache, keepers, read_file};
use crate::private_file;

impl Store {
    /// Opens each file that the sign-in opens, in the same way, and returns the errors. Writes nothing.
    pub fn check(&self) -> Vec<StoreError> {
        let open =
            |name: &str| private_file::open_to_read(&self.directory.join(name)).map(drop).map_err(StoreError::from);
        let checks = [
            Ledger::at(&self.root).check(),
            open(LOCK),
            open(LEASE),
            open(keepers::START),
            private_file::verify_if_there(&self.directory.join(RUNS)).map_err(StoreError::from),
            read_file(&self.directory).map(drop),
            open(failure_cache::FILE),
        ];
        checks.into_iter().filter_map(Result::err).collect()
    }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::store::Location;

    #[test]
    fn each_damaged_file_is_found() {
        let holder = tempfile::tempdir().unwrap();
        let (root, source) = (holder.path().join("state"), "a test".to_owned());
        let store = Store::at(&Location { root: root.clone(), key: "0".repeat(32), source, remintable: true });
        assert!(store.check().is_empty(), "what is not there is not damaged");
        store.create().unwrap();
        let key = store.directory();
        let places = ["spent", "spent.lock"].map(|name| root.join(name));
        let of_the_key =
            [LOCK, LEASE, keepers::START, RUNS, "credential.json", failure_cache::FILE].map(|name| key.join(name));
        for place in places.iter().chain(&of_the_key) {
            let fifo = || {
                let kind = rustix::fs::FileType::Fifo;
                rustix::fs::mknodat(rustix::fs::CWD, place, kind, rustix::fs::Mode::RUSR, 0).unwrap();
            };
            let put: [&dyn Fn(); 2] = [&fifo, &|| std::os::unix::fs::symlink("elsewhere", place).unwrap()];
            for put in put {
                put();
                let found = store.check();
                assert!(matches!(found.as_slice(), [StoreError::File(_)]), "{}: {found:?}", place.display());
                private_file::remove(place).unwrap();
            }
        }
        private_file::open_in_place(&places[0]).unwrap().write_all(b"garbage").unwrap();
        assert!(matches!(store.check().as_slice(), [StoreError::Damaged { line: 1, .. }]));
    }
}
