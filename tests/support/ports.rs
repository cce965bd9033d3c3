//! Free ports on loopback, handed out once each.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicU16, Ordering};

// Below Linux's ephemeral range (32768 and up): no outgoing connection takes a port between its
// choice and its use, or while its owner is stopped on purpose.
const FIRST: u16 = 12_000;
const COUNT: u16 = 20_000;

static NEXT: AtomicU16 = AtomicU16::new(0);

/// A port that nothing listens on, and that no other caller in this process was given.
pub fn free() -> u16 {
    // Where a process starts depends on its pid, so that two test programs seldom meet.
    let start = (std::process::id().wrapping_mul(101) % u32::from(COUNT)) as u16;
    for _ in 0..COUNT {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = FIRST + (u32::from(start) + u32::from(step)).rem_euclid(u32::from(COUNT)) as u16;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
    panic!("no free port on loopback between {FIRST} and {}", FIRST + COUNT);
}
