//! Many short runs, four at a time: one mostly waits.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// Does this with each item and its number; a failure of one is a failure of all.
pub fn for_each<T: Sync>(items: &[T], act: impl Fn(usize, &T) + Sync) {
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some((number, item)) = items.iter().enumerate().nth(next.fetch_add(1, Ordering::Relaxed)) {
            act(number, item);
        }
    };
    thread::scope(|scope| (0..4).for_each(|_| drop(scope.spawn(work))));
}
