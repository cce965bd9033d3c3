//! Where chance comes from: a seed that is told, so that a failure can be had again, as far as threads allow.

/// The seed of this run: `OUTPOST_SEED`, or a new one. Printed; shown when the test fails.
#[allow(clippy::print_stderr)]
pub fn of(test: &str) -> fastrand::Rng {
    let seed = std::env::var("OUTPOST_SEED")
        .ok()
        .map_or_else(|| fastrand::u64(..), |text| text.parse().expect("OUTPOST_SEED is a number"));
    eprintln!("{test}: OUTPOST_SEED={seed} repeats it");
    fastrand::Rng::with_seed(seed)
}
