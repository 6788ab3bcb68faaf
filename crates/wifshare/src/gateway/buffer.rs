//! Bytes that were read and not used yet, in a buffer from a pool of the thread. A buffer is taken only while it holds
//! bytes.
//!
//! Thus a thousand idle connections hold no buffer, and a busy one needs no allocation.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};

/// The size of a buffer: enough for a whole head, or for a part of a body.
pub(super) const SIZE: usize = 32 * 1024;

/// The number of free buffers that a thread keeps. It frees the others.
const KEPT: usize = 32;

thread_local! {
    static SHELF: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// Bytes that were read and not used yet.
#[derive(Debug, Default)]
pub(super) struct ReadBuffer {
    buffer: Option<Box<[u8]>>,
    start: usize,
    end: usize,
}

impl ReadBuffer {
    pub(super) fn bytes(&self) -> &[u8] {
        self.buffer.as_ref().map_or(&[], |buffer| &buffer[self.start..self.end])
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        self.buffer.as_mut().map_or(&mut [], |buffer| &mut buffer[self.start..self.end])
    }

    pub(super) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    pub(super) fn is_full(&self) -> bool {
        self.end - self.start == SIZE
    }

    /// Removes `count` bytes from the beginning.
    pub(super) fn consume(&mut self, count: usize) {
        self.start += count;
        debug_assert!(self.start <= self.end, "only what is there can be consumed");
        if self.start >= self.end {
            self.clear();
        }
    }

    pub(super) fn clear(&mut self) {
        (self.start, self.end) = (0, 0);
        if let Some(buffer) = self.buffer.take() {
            SHELF.with_borrow_mut(|shelf| {
                if shelf.len() < KEPT {
                    shelf.push(buffer);
                }
            });
        }
    }

    /// Reads once, and appends. Returns 0 at the end of the stream. The buffer must not be full.
    pub(super) fn poll_fill<R: AsyncRead + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut R,
    ) -> Poll<io::Result<usize>> {
        let mut buffer = match self.buffer.take() {
            Some(buffer) => buffer,
            None => SHELF.with_borrow_mut(Vec::pop).unwrap_or_else(|| vec![0; SIZE].into_boxed_slice()),
        };
        if self.end == SIZE && self.start > 0 {
            buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let mut room = ReadBuf::new(&mut buffer[self.end..]);
        let read = Pin::new(from).poll_read(cx, &mut room);
        let count = room.filled().len();
        self.end += count;
        self.buffer = Some(buffer);
        if self.is_empty() {
            self.clear();
        }
        ready!(read)?;
        Poll::Ready(Ok(count))
    }
}

impl Drop for ReadBuffer {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    /// Reads once from `from`, and returns the number of bytes read.
    fn fill(buffer: &mut ReadBuffer, mut from: &[u8]) -> usize {
        match buffer.poll_fill(&mut Context::from_waker(Waker::noop()), &mut from) {
            Poll::Ready(Ok(count)) => count,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn consumed_bytes_make_room_in_the_buffer() {
        let mut buffer = ReadBuffer::default();
        assert_eq!(fill(&mut buffer, b"begin"), 5);
        assert!(!buffer.is_full());
        assert_eq!(fill(&mut buffer, &[b'x'; 2 * SIZE]), SIZE - 5);
        assert!(buffer.is_full());
        buffer.consume(4);
        assert!(!buffer.is_full());
        assert_eq!(fill(&mut buffer, b"the end of it"), 4);
        assert!(buffer.is_full());
        let bytes = [b"n".as_slice(), &[b'x'; SIZE - 5], b"the "].concat();
        assert_eq!(buffer.bytes(), bytes);
        buffer.consume(SIZE);
        assert!(buffer.is_empty() && buffer.bytes().is_empty());
        assert_eq!(fill(&mut buffer, b"more"), 4);
        assert_eq!(buffer.bytes(), b"more");
        fill(&mut buffer, &[b'x'; SIZE - 14]);
        buffer.consume(10);
        assert!(!buffer.is_full(), "as much is free behind as in front");
    }

    #[test]
    fn thread_reuses_a_limited_number_of_buffers() {
        let shelf = || SHELF.with_borrow(Vec::len);
        let mut buffers: Vec<_> = (0..KEPT + 8).map(|_| ReadBuffer::default()).collect();
        for buffer in &mut buffers {
            fill(buffer, b"x");
        }
        assert_eq!(shelf(), 0);
        buffers[0].consume(1);
        assert_eq!((shelf(), buffers[0].buffer.is_none()), (1, true));
        assert_eq!(fill(&mut buffers[0], b""), 0);
        assert_eq!((shelf(), buffers[0].buffer.is_none()), (1, true), "the end needs no buffer");
        drop(buffers);
        assert_eq!(shelf(), KEPT);
    }
}
