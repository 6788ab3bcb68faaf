//! Isolation of panics: a panic in one task does not affect the others.

use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::Poll;

/// A task panicked. Its message is not kept, because it could contain data of the task.
#[derive(Debug)]
pub(super) struct Panicked;

/// Runs a task to its end. A panic ends only this task, and what it held is dropped. The task is boxed, so that each
/// future around it does not contain another copy.
pub(super) async fn catch<F: Future>(mut task: Pin<Box<F>>) -> Result<F::Output, Panicked> {
    poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| task.as_mut().poll(cx))) {
        Ok(Poll::Ready(output)) => Poll::Ready(Ok(output)),
        Ok(Poll::Pending) => Poll::Pending,
        Err(_) => Poll::Ready(Err(Panicked)),
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn panic_after_an_await_is_an_error_and_drops_its_state() {
        let held = std::sync::Arc::new(());
        let inner = std::sync::Arc::clone(&held);
        let caught = catch(Box::pin(async move {
            tokio::task::yield_now().await;
            assert!(std::sync::Arc::strong_count(&inner) > 2, "this is what fails");
        }));
        assert!(caught.await.is_err());
        assert_eq!(std::sync::Arc::strong_count(&held), 1);
        assert_eq!(catch(Box::pin(async { 7 })).await.expect("no panic"), 7);
    }
}
