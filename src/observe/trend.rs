//! How it was: numbers of the last thirty days, for plots and for whoever asks how it goes.
//!
//! Two rings of points: one a minute for a day, one each half hour for thirty days. A point has the greatest
//! depth of the queue that was seen in its time, and what was counted. The rings lie in one file of at most
//! 370 kB, in places of 128 octets, each with its own checksum: writing a point replaces one place, and a
//! damaged place is one point less. Nothing is synced and nothing waits for it; a file that can't be read or
//! written costs the plots their past, and mail nothing.

use std::{
    fs, io,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::clock::Timestamp;

/// Upper bounds of the classes of delivery times, in seconds. What took longer is of one class more.
pub const LATENCIES: [f64; 17] = [
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0, 300.0, 1800.0, 3600.0, 21_600.0,
    86_400.0,
];
const CLASSES: usize = LATENCIES.len() + 1;

/// The rings: the length of a point's time in milliseconds, and how many points there are.
const RINGS: [(u64, usize); 2] = [(60_000, 1_440), (1_800_000, 1_440)];
/// Octets of a place, and those before its checksum.
const PLACE: usize = 128;
const NUMBERS: usize = 4 + 5 + CLASSES;
const SUMMED: usize = 12 + 4 * NUMBERS;

/// What is counted since the start, each number by itself.
#[derive(Debug, Default)]
pub struct Counts {
    /// Messages that were taken.
    pub accepted: AtomicU64,
    /// Messages that were refused.
    pub rejected: AtomicU64,
    /// Outcomes of attempts, each for one recipient.
    pub delivered: AtomicU64,
    /// The same: tried again later.
    pub deferred: AtomicU64,
    /// The same: refused for good.
    pub bounced: AtomicU64,
    /// Events of any kind.
    pub events: AtomicU64,
    latencies: [AtomicU64; CLASSES],
}

impl Counts {
    /// Counts one more.
    pub fn one_more(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a delivery by the time since its acceptance.
    pub fn delivered_after(&self, delay: Duration) {
        let seconds = delay.as_secs_f64();
        let class = LATENCIES.iter().position(|bound| seconds <= *bound).unwrap_or(LATENCIES.len());
        self.latencies[class].fetch_add(1, Ordering::Relaxed);
    }

    /// A number that grows whenever anything has happened to a message.
    pub fn changes(&self) -> u64 {
        self.events.load(Ordering::Relaxed)
    }

    /// What was counted up to this moment.
    pub fn read(&self) -> Flow {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Flow {
            accepted: read(&self.accepted),
            rejected: read(&self.rejected),
            delivered: read(&self.delivered),
            deferred: read(&self.deferred),
            bounced: read(&self.bounced),
            latencies: std::array::from_fn(|class| read(&self.latencies[class])),
        }
    }
}

/// What was counted in some time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// Messages that were taken.
    pub accepted: u64,
    /// Messages that were refused.
    pub rejected: u64,
    /// Recipients that were reached.
    pub delivered: u64,
    /// Attempts that are repeated, each for one recipient.
    pub deferred: u64,
    /// Recipients that were refused for good.
    pub bounced: u64,
    /// Deliveries by the class of their time.
    latencies: [u64; CLASSES],
}

impl Flow {
    fn combined(self, other: Self, with: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            accepted: with(self.accepted, other.accepted),
            rejected: with(self.rejected, other.rejected),
            delivered: with(self.delivered, other.delivered),
            deferred: with(self.deferred, other.deferred),
            bounced: with(self.bounced, other.bounced),
            latencies: std::array::from_fn(|class| with(self.latencies[class], other.latencies[class])),
        }
    }

    /// Both together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        self.combined(other, u64::saturating_add)
    }

    /// Seconds within which `share` of the deliveries were made, about: within a class they are taken to lie
    /// evenly. `None` without deliveries.
    pub fn latency(&self, share: f64) -> Option<f64> {
        let all: u64 = self.latencies.iter().sum();
        let wanted = share * all as f64;
        let (mut below, mut lower) = (0.0, 0.0);
        for (class, number) in self.latencies.iter().enumerate().filter(|(_, number)| **number > 0) {
            if class > 0 {
                lower = LATENCIES[class - 1];
            }
            let Some(upper) = LATENCIES.get(class) else { return Some(lower) };
            if below + *number as f64 >= wanted {
                return Some(lower + (upper - lower) * ((wanted - below) / *number as f64));
            }
            below += *number as f64;
        }
        None
    }
}

/// The queue at one moment, or the greatest numbers of several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Depth {
    /// Messages that are due or being tried.
    pub active: u64,
    /// Messages that wait for their next try.
    pub deferred: u64,
    /// Messages that wait for an operator.
    pub held: u64,
    /// The age of the oldest.
    pub oldest_seconds: u64,
}

impl Depth {
    /// All messages.
    pub fn messages(&self) -> u64 {
        self.active.saturating_add(self.deferred).saturating_add(self.held)
    }

    fn greatest(self, other: Self) -> Self {
        Self {
            active: self.active.max(other.active),
            deferred: self.deferred.max(other.deferred),
            held: self.held.max(other.held),
            oldest_seconds: self.oldest_seconds.max(other.oldest_seconds),
        }
    }
}

/// What is known of some time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Point {
    /// The greatest numbers that were seen.
    pub depth: Depth,
    /// What was counted.
    pub flow: Flow,
}

impl Point {
    #[must_use]
    fn and(self, other: Self) -> Self {
        Self { depth: self.depth.greatest(other.depth), flow: self.flow.and(other.flow) }
    }

    fn numbers(&self) -> impl Iterator<Item = u64> {
        let Self { depth, flow } = self;
        let fixed = [
            depth.active,
            depth.deferred,
            depth.held,
            depth.oldest_seconds,
            flow.accepted,
            flow.rejected,
            flow.delivered,
            flow.deferred,
            flow.bounced,
        ];
        fixed.into_iter().chain(flow.latencies)
    }

    /// In its place in the file: when, in which ring, the numbers, a checksum.
    fn octets(&self, ring: usize, number: u64) -> [u8; PLACE] {
        let mut place = [0; PLACE];
        place[..8].copy_from_slice(&number.to_le_bytes());
        place[8..12].copy_from_slice(&(ring as u32).to_le_bytes());
        for (at, value) in place[12..SUMMED].chunks_exact_mut(4).zip(self.numbers()) {
            at.copy_from_slice(&u32::try_from(value).unwrap_or(u32::MAX).to_le_bytes());
        }
        let sum = crc32c::crc32c(&place[..SUMMED]);
        place[SUMMED..SUMMED + 4].copy_from_slice(&sum.to_le_bytes());
        place
    }

    /// The way back; `None` where none was written, or something else.
    fn of_octets(place: &[u8], ring: usize) -> Option<(u64, Self)> {
        let word = |at: usize| Some(u32::from_le_bytes(place.get(at..at + 4)?.try_into().ok()?));
        if word(SUMMED)? != crc32c::crc32c(&place[..SUMMED]) || word(8)? != ring as u32 {
            return None;
        }
        let number = u64::from(word(4)?) << 32 | u64::from(word(0)?);
        let mut numbers = [0; NUMBERS];
        for (i, value) in numbers.iter_mut().enumerate() {
            *value = u64::from(word(12 + 4 * i)?);
        }
        let [active, deferred, held, oldest_seconds, accepted, rejected, delivered, retried, bounced, ..] =
            numbers;
        let latencies = std::array::from_fn(|class| numbers[9 + class]);
        let flow = Flow { accepted, rejected, delivered, deferred: retried, bounced, latencies };
        Some((number, Self { depth: Depth { active, deferred, held, oldest_seconds }, flow }))
    }
}

/// How far back one looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Range {
    /// An hour, by minutes.
    #[default]
    Hour,
    /// A day, by quarters of an hour.
    Day,
    /// A week, by hours.
    Week,
    /// Thirty days, by four hours.
    Month,
}

impl Range {
    /// All of them, the shortest first.
    pub const ALL: [Self; 4] = [Self::Hour, Self::Day, Self::Week, Self::Month];

    /// As it is asked for.
    pub fn name(self) -> &'static str {
        match self {
            Self::Hour => "1h",
            Self::Day => "24h",
            Self::Week => "7d",
            Self::Month => "30d",
        }
    }

    /// The range of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|range| range.name() == name)
    }

    /// Which ring has it, how many of its points are one here, and how many there are then.
    fn shape(self) -> (usize, u64, u64) {
        match self {
            Self::Hour => (0, 1, 60),
            Self::Day => (0, 15, 96),
            Self::Week => (1, 2, 168),
            Self::Month => (1, 8, 180),
        }
    }

    /// The time of one step.
    pub fn step(self) -> Duration {
        let (ring, merged, _) = self.shape();
        Duration::from_millis(RINGS[ring].0 * merged)
    }
}

/// One step of a range.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// When it began.
    pub at: Timestamp,
    /// How much of it was watched, and has passed.
    pub minutes: f64,
    /// What is known of it: nothing while no relay ran.
    pub point: Option<Point>,
}

/// The numbers over time. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Trend(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    path: Option<PathBuf>,
    rings: Mutex<Rings>,
}

#[derive(Debug)]
struct Rings {
    /// Of each ring, each point in the place of its number.
    points: [Vec<Option<(u64, Point)>>; 2],
    /// Places that are newer here than in the file.
    unwritten: Vec<(usize, usize)>,
    /// What had been counted at the last look.
    counted: Flow,
    /// The last write failed, and that was said.
    told: bool,
}

impl Default for Rings {
    fn default() -> Self {
        Self {
            points: RINGS.map(|(_, places)| vec![None; places]),
            unwritten: Vec::new(),
            counted: Flow::default(),
            told: false,
        }
    }
}

impl Trend {
    /// Kept in this file. What of it can't be read is as if it had never been.
    pub fn at(path: PathBuf) -> Self {
        let mut rings = Rings::default();
        match read(&path) {
            Ok(octets) => {
                let mut places = octets.chunks_exact(PLACE);
                for (ring, points) in rings.points.iter_mut().enumerate() {
                    for (i, place) in places.by_ref().take(RINGS[ring].1).enumerate() {
                        let found = Point::of_octets(place, ring);
                        points[i] = found.filter(|(number, _)| number % RINGS[ring].1 as u64 == i as u64);
                    }
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "the plots begin anew");
            }
        }
        Self(Arc::new(Inner { path: Some(path), rings: Mutex::new(rings) }))
    }

    fn rings(&self) -> MutexGuard<'_, Rings> {
        self.0.rings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes how the queue is, if that is known, and what has been counted since the start. That is read here:
    /// of two callers, the one with the older numbers must not come last, or the rest is added twice.
    pub fn note(&self, now: Timestamp, depth: Option<Depth>, counted: impl FnOnce() -> Flow) {
        let mut rings = self.rings();
        let counted = counted();
        let flow = counted.combined(rings.counted, u64::saturating_sub);
        rings.counted = counted;
        let point = Point { depth: depth.unwrap_or_default(), flow };
        for (ring, (step, places)) in RINGS.into_iter().enumerate() {
            let number = now.0 / step;
            let i = (number % places as u64) as usize;
            let place = &mut rings.points[ring][i];
            let before = place.filter(|(found, _)| *found == number).map(|(_, point)| point);
            *place = Some((number, before.map_or(point, |before| before.and(point))));
            if !rings.unwritten.contains(&(ring, i)) {
                rings.unwritten.push((ring, i));
            }
        }
        // Where nothing can be written, nothing piles up.
        let most = RINGS[0].1;
        if rings.unwritten.len() > most {
            let much = rings.unwritten.len() - most;
            rings.unwritten.drain(..much);
        }
    }

    /// Writes what is new. Blocks, and is for one caller at a time; a failure is told once.
    pub fn save(&self) {
        let Some(path) = &self.0.path else { return };
        let (places, octets): (Vec<_>, Vec<_>) = {
            let rings = self.rings();
            let octets = |(ring, i): (usize, usize)| {
                rings.points[ring][i].map(|(number, point)| ((ring, i), point.octets(ring, number)))
            };
            rings.unwritten.iter().copied().filter_map(octets).unzip()
        };
        let written = write(path, &places, &octets);
        let mut rings = self.rings();
        match written {
            Ok(()) => {
                // What has changed meanwhile is written the next time: a step's numbers only grow.
                let current: Vec<_> = places
                    .iter()
                    .zip(&octets)
                    .filter(|((ring, i), octets)| {
                        rings.points[*ring][*i]
                            .is_some_and(|(number, point)| point.octets(*ring, number) == **octets)
                    })
                    .map(|(place, _)| *place)
                    .collect();
                rings.unwritten.retain(|place| !current.contains(place));
                rings.told = false;
            }
            Err(error) if !rings.told => {
                rings.told = true;
                tracing::warn!(path = %path.display(), %error, "the plots' past can't be kept; mail goes on");
            }
            Err(_) => {}
        }
    }

    /// The steps of a range, the oldest first; the last is the one that is still going on.
    pub fn range(&self, range: Range, now: Timestamp) -> Vec<Step> {
        let (ring, merged, steps) = range.shape();
        let (length, places) = RINGS[ring];
        let rings = self.rings();
        let newest = now.0 / length;
        let first = (newest / merged + 1).saturating_sub(steps);
        let points = |step: u64| {
            let numbers = step * merged..(step + 1) * merged;
            let found = |number: u64| {
                let place = rings.points[ring][(number % places as u64) as usize];
                place.filter(|(found, _)| *found == number)
            };
            numbers.filter(move |number| *number <= newest).filter_map(found)
        };
        let step = |step: u64| {
            let (mut point, mut milliseconds) = (None::<Point>, 0);
            for (number, one) in points(step) {
                point = Some(point.map_or(one, |before| before.and(one)));
                // Of the one that goes on, what has passed; a rate over a second would be none.
                milliseconds +=
                    if number == newest { (now.0 - number * length).clamp(60_000, length) } else { length };
            }
            Step { at: Timestamp(step * merged * length), minutes: milliseconds as f64 / 60_000.0, point }
        };
        (first..first + steps.min(newest / merged + 1)).map(step).collect()
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let places: usize = RINGS.iter().map(|(_, places)| places).sum();
    let file = fs::symlink_metadata(path)?;
    if !file.is_file() || file.len() > (places * PLACE) as u64 {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "this is no file of ours"));
    }
    fs::read(path)
}

fn write(path: &Path, places: &[(usize, usize)], octets: &[[u8; PLACE]]) -> io::Result<()> {
    let all: usize = RINGS.iter().map(|(_, places)| places).sum();
    // What is no file of ours is put out of the way, never written into.
    match fs::symlink_metadata(path) {
        Ok(file) if !file.is_file() || file.len() > (all * PLACE) as u64 => {
            fs::rename(path, path.with_extension("strange"))?;
        }
        _ => {}
    }
    let mut options = fs::OpenOptions::new();
    let file = options.write(true).create(true).truncate(false).mode(0o600).open(path)?;
    for ((ring, i), octets) in places.iter().zip(octets) {
        let before: usize = RINGS[..*ring].iter().map(|(_, places)| places).sum();
        file.write_all_at(octets, ((before + i) * PLACE) as u64)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_340_000_000_000);

    fn depth(active: u64) -> Option<Depth> {
        Some(Depth { active, ..Depth::default() })
    }

    fn counted(delivered: u64) -> Flow {
        Flow { delivered, ..Flow::default() }
    }

    #[test]
    fn a_step_has_the_greatest_depth_and_all_that_was_counted() {
        let trend = Trend::default();
        for (minute, active, delivered) in [(0, 3, 1), (0, 1, 5), (1, 2, 7)] {
            trend.note(NOW.after(Duration::from_secs(60 * minute)), depth(active), || counted(delivered));
        }
        let now = NOW.after(Duration::from_secs(60));
        let steps = trend.range(Range::Hour, now);
        assert_eq!(steps.len(), 60);
        let told: Vec<_> = steps[57..]
            .iter()
            .map(|step| step.point.map(|point| (point.depth.active, point.flow.delivered)))
            .collect();
        assert_eq!(told, [None, Some((3, 5)), Some((2, 2))]);
        for range in [Range::Day, Range::Week, Range::Month] {
            let steps = trend.range(range, now);
            let delivered: u64 =
                steps.iter().filter_map(|step| step.point).map(|point| point.flow.delivered).sum();
            assert_eq!(delivered, 7, "{}", range.name());
            assert!(steps.last().is_some_and(|step| step.point.is_some()));
        }
    }

    #[test]
    fn what_was_counted_is_read_while_nobody_else_notes_it() {
        let trend = Trend::default();
        trend.note(NOW, None, || {
            assert!(trend.0.rings.try_lock().is_err());
            counted(3)
        });
        let last = trend.range(Range::Hour, NOW).pop().and_then(|step| step.point);
        assert_eq!(last.map(|point| point.flow.delivered), Some(3));
    }

    #[test]
    fn the_past_survives_a_restart_and_damage_costs_one_point() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("trend");
        let trend = Trend::at(path.clone());
        for minute in 0..3 {
            trend.note(NOW.after(Duration::from_secs(60 * minute)), depth(minute), || counted(10 * minute));
            trend.save();
        }
        let now = NOW.after(Duration::from_secs(120));
        let again = Trend::at(path.clone());
        for range in Range::ALL {
            assert_eq!(again.range(range, now), trend.range(range, now));
        }
        // The same minute goes on behind the restart.
        again.note(now, depth(1), || counted(4));
        let last = |trend: &Trend| trend.range(Range::Hour, now).pop().and_then(|step| step.point);
        assert_eq!(last(&again).map(|point| (point.depth.active, point.flow.delivered)), Some((2, 14)));

        let mut octets = fs::read(&path).unwrap();
        let place = (NOW.0 / 60_000 % 1_440) as usize * PLACE;
        octets[place + 20] ^= 1;
        fs::write(&path, &octets).unwrap();
        let damaged = Trend::at(path.clone()).range(Range::Hour, now);
        let whole = |steps: &[Step]| steps.iter().filter(|step| step.point.is_some()).count();
        assert_eq!(whole(&damaged), 2);

        for strange in [b"what is this".to_vec(), vec![7; 400_000]] {
            fs::write(&path, strange).unwrap();
            let anew = Trend::at(path.clone());
            assert_eq!(whole(&anew.range(Range::Hour, now)), 0);
            anew.note(now, depth(1), || counted(1));
            anew.save();
            assert_eq!(whole(&Trend::at(path.clone()).range(Range::Hour, now)), 1);
        }
        let nowhere = Trend::at(home.path().join("no/such/directory"));
        for minute in 0..3_000 {
            nowhere.note(NOW.after(Duration::from_secs(60 * minute)), None, Flow::default);
        }
        nowhere.save();
        assert!(nowhere.rings().unwritten.len() <= RINGS[0].1);
    }

    #[test]
    fn the_rings_go_round_and_a_clock_set_back_shows_no_future() {
        let trend = Trend::default();
        for hour in 0..24 * 40 {
            trend.note(NOW.after(Duration::from_secs(3_600 * hour)), depth(1), || counted(hour + 1));
        }
        let now = NOW.after(Duration::from_secs(3_600 * (24 * 40 - 1)));
        let known = |now, range| trend.range(range, now).iter().filter(|step| step.point.is_some()).count();
        assert_eq!((known(now, Range::Week), known(now, Range::Month)), (168, 180));
        let earlier = now.before(Duration::from_secs(3_600));
        assert_eq!(known(earlier, Range::Hour), 1);
        assert_eq!(Trend::default().range(Range::Month, Timestamp(0)).len(), 1);
    }

    #[test]
    fn half_of_the_deliveries_are_faster_than_the_median() {
        let counts = Counts::default();
        assert_eq!(counts.read().latency(0.5), None);
        for milliseconds in [8, 8, 8, 40, 700, 900, 7_000, 200_000_000] {
            counts.delivered_after(Duration::from_millis(milliseconds));
        }
        let flow = counts.read();
        let median = flow.latency(0.5).unwrap();
        assert!((0.025..=0.05).contains(&median), "{median}");
        assert_eq!(flow.latency(0.99), Some(86_400.0), "beyond the last bound only that is known");
    }
}
