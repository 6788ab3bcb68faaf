//! The open connections: their maximum number, which one is closed for a new one, and which may finish when the gateway
//! closes.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::AbortHandle;

/// The state of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Doing {
    /// The client has not presented the capability yet.
    Unauthenticated,
    /// The client has presented the capability, and no request is in progress.
    Idle,
    /// A request is in progress.
    Busy,
}

/// The state of one connection, visible to the others.
#[derive(Debug, Default)]
pub(super) struct ConnectionEntry(AtomicU8);

impl ConnectionEntry {
    pub(super) fn is(&self, doing: Doing) {
        self.0.store(doing as u8, Ordering::Relaxed);
    }

    fn is_now(&self, doing: Doing) -> bool {
        self.0.load(Ordering::Relaxed) == doing as u8
    }
}

/// The open connections of a gateway.
#[derive(Debug, Default)]
pub(super) struct Connections {
    list: Mutex<List>,
    /// Notified when a connection ends.
    left: Notify,
}

#[derive(Debug, Default)]
struct List {
    next: u64,
    present: HashMap<u64, (Arc<ConnectionEntry>, Option<AbortHandle>)>,
    /// In order of arrival, with its time. Some of them are authenticated by now, or gone.
    unauthenticated: VecDeque<(u64, Duration)>,
}

/// A slot among the open connections. Dropping it frees the slot.
pub(super) struct Place {
    connections: Arc<Connections>,
    number: u64,
    pub(super) entry: Arc<ConnectionEntry>,
}

impl Connections {
    /// The maximum number of unauthenticated connections. Beyond it, a new connection closes the oldest of them.
    /// Authenticated connections are never closed for them.
    const UNAUTHENTICATED: usize = 128;

    /// Time for a client to present the capability: a thousand clients that connect at once are all unauthenticated at
    /// first.
    const TIME_TO_SPEAK: Duration = Duration::from_secs(1);

    /// Returns a slot for a new connection, if one is free or can be freed.
    pub(super) fn admit(self: &Arc<Self>, most: usize, now: Duration) -> Option<Place> {
        let mut list = self.list();
        if list.present.len() >= most && !list.close_oldest_unauthenticated(now) {
            return None;
        }
        let spoke_late = now.saturating_sub(Self::TIME_TO_SPEAK);
        while list.unauthenticated.len() >= Self::UNAUTHENTICATED && list.close_oldest_unauthenticated(spoke_late) {}
        let number = list.next;
        list.next += 1;
        let entry = Arc::new(ConnectionEntry::default());
        list.present.insert(number, (Arc::clone(&entry), None));
        list.unauthenticated.push_back((number, now));
        Some(Place { connections: Arc::clone(self), number, entry })
    }

    /// Sets the handle that aborts the connection in this slot.
    pub(super) fn may_be_ended_by(&self, number: u64, handle: AbortHandle) {
        if let Some((_, place)) = self.list().present.get_mut(&number) {
            *place = Some(handle);
        }
    }

    /// Closes all connections that have no request in progress.
    pub(super) fn show_out_the_idle(&self) {
        for (entry, handle) in self.list().present.values() {
            if let Some(handle) = handle.as_ref().filter(|_| !entry.is_now(Doing::Busy)) {
                handle.abort();
            }
        }
    }

    /// Closes all connections.
    pub(super) fn show_out_everybody(&self) {
        self.list().present.values().filter_map(|(_, handle)| handle.as_ref()).for_each(AbortHandle::abort);
    }

    /// Returns when no connection is open.
    pub(super) async fn are_gone(&self) {
        loop {
            let left = self.left.notified();
            if self.list().present.is_empty() {
                return;
            }
            left.await;
        }
    }

    fn list(&self) -> MutexGuard<'_, List> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl List {
    /// Closes the oldest unauthenticated connection, if it was accepted by this moment. Returns whether there was one.
    fn close_oldest_unauthenticated(&mut self, by: Duration) -> bool {
        while let Some((number, _)) = self.unauthenticated.front().copied().filter(|(_, came)| *came <= by) {
            self.unauthenticated.pop_front();
            let oldest = self.present.get(&number).filter(|(entry, _)| entry.is_now(Doing::Unauthenticated));
            if let Some((_, Some(handle))) = oldest {
                handle.abort();
                // The slot is free now, even if the task has not ended yet.
                self.present.remove(&number);
                return true;
            }
        }
        false
    }
}

impl Place {
    pub(super) fn number(&self) -> u64 {
        self.number
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.connections.list().present.remove(&self.number);
        self.connections.left.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::JoinHandle;

    use super::*;

    /// Opens a connection that stays until it is aborted.
    fn come(connections: &Arc<Connections>, most: usize, now: Duration) -> Option<(Place, JoinHandle<()>)> {
        let place = connections.admit(most, now)?;
        let connection = tokio::spawn(std::future::pending());
        connections.may_be_ended_by(place.number(), connection.abort_handle());
        Some((place, connection))
    }

    /// The indices of the aborted connections, in order of arrival.
    async fn ended(all: &[(Place, JoinHandle<()>)]) -> Vec<usize> {
        for _ in 0..all.len() + 10 {
            tokio::task::yield_now().await;
        }
        (0..all.len()).filter(|place| all[*place].1.is_finished()).collect()
    }

    fn count(connections: &Connections) -> usize {
        connections.list().present.len()
    }

    const NOW: Duration = Duration::from_secs(100);

    #[tokio::test]
    async fn full_gateway_drops_unauthenticated_connections_only() {
        let connections = Arc::new(Connections::default());
        let mut all: Vec<_> = (0..3).map(|_| come(&connections, 3, NOW).unwrap()).collect();
        all[0].0.entry.is(Doing::Idle);
        all.push(come(&connections, 3, NOW).unwrap());
        assert_eq!((ended(&all).await, count(&connections)), (vec![1], 3), "the first of those who are not known");
        all[2].0.entry.is(Doing::Busy);
        all[3].0.entry.is(Doing::Idle);
        assert!(come(&connections, 3, NOW).is_none());
        assert_eq!((ended(&all).await, count(&connections)), (vec![1], 3));
        all.remove(0);
        assert_eq!(count(&connections), 2);
        all.push(come(&connections, 3, NOW).unwrap());
        assert_eq!(count(&connections), 3);
    }

    #[tokio::test]
    async fn unauthenticated_crowd_is_dropped_after_one_second() {
        let connections = Arc::new(Connections::default());
        let mut all: Vec<_> =
            (0..Connections::UNAUTHENTICATED).map(|_| come(&connections, 9999, NOW).unwrap()).collect();
        let just_in_time = Connections::TIME_TO_SPEAK - Duration::from_nanos(1);
        all.push(come(&connections, 9999, NOW + just_in_time).unwrap());
        assert_eq!(ended(&all).await, Vec::<usize>::new());
        all[0].0.entry.is(Doing::Idle);
        all.push(come(&connections, 9999, NOW + Connections::TIME_TO_SPEAK).unwrap());
        assert_eq!((ended(&all).await, count(&connections)), (vec![1], Connections::UNAUTHENTICATED + 1));
    }

    #[tokio::test]
    async fn close_ends_idle_connections_first_then_all() {
        let connections = Arc::new(Connections::default());
        let mut all: Vec<_> = (0..3).map(|_| come(&connections, 9, NOW).unwrap()).collect();
        all[0].0.entry.is(Doing::Idle);
        all[1].0.entry.is(Doing::Busy);
        connections.show_out_the_idle();
        assert_eq!(ended(&all).await, [0, 2]);
        connections.show_out_everybody();
        assert_eq!(ended(&all).await, [0, 1, 2]);
        let gone = tokio::spawn({
            let connections = Arc::clone(&connections);
            async move { connections.are_gone().await }
        });
        while let Some(place) = all.pop() {
            tokio::task::yield_now().await;
            assert!(!gone.is_finished());
            drop(place);
        }
        gone.await.unwrap();
    }
}
