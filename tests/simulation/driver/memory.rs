//! How much memory rank 0 has: an allocator that counts what is allocated and freed while the simulated loop acts for it.

#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static INSIDE: Cell<bool> = const { Cell::new(false) };
    static LIVE: Cell<i64> = const { Cell::new(0) };
    static PEAK: Cell<i64> = const { Cell::new(0) };
}

/// The system's allocator; install it with `#[global_allocator]`.
pub struct Counting;

fn count(bytes: usize, sign: i64) {
    if INSIDE.get() {
        let live = LIVE.get() + sign * i64::try_from(bytes).unwrap_or(0);
        LIVE.set(live);
        PEAK.set(PEAK.get().max(live));
    }
}

// SAFETY: every call is passed on to the system's allocator as it came; the counters are plain cells without a
// destructor, so that reaching them allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 1);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(layout.size(), -1);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(layout.size(), -1);
        count(size, 1);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.realloc(at, layout, size) }
    }
}

/// Forgets what was counted on this thread.
pub fn reset() {
    LIVE.set(0);
    PEAK.set(0);
}

/// Counts what `act` allocates and frees as rank 0's. It frees what it allocated at another time only inside too.
pub fn inside<T>(act: impl FnOnce() -> T) -> T {
    INSIDE.set(true);
    let result = act();
    INSIDE.set(false);
    result
}

/// Counts nothing of what `act` allocates, also within [`inside`]. It frees nothing that was counted.
pub fn outside<T>(act: impl FnOnce() -> T) -> T {
    let was = INSIDE.replace(false);
    let result = act();
    INSIDE.set(was);
    result
}

/// The most that was allocated at once, in bytes.
pub fn peak() -> u64 {
    u64::try_from(PEAK.get()).unwrap_or(0)
}

/// What is allocated, in bytes.
pub fn live() -> i64 {
    LIVE.get()
}
