//! Any frames in a journal, and any damage: what is read of them was written, and what is missing is told.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| outpost::queue::fuzz_journal(data));
