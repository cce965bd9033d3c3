//! Asks the relay again and again, in a thread of its own.

use std::{
    collections::VecDeque,
    sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender, TryRecvError},
    time::{Duration, Instant},
};

use super::{super::client::Client, super::exit::Failure};
use crate::{
    admin::view::{Item, List, Status},
    clock::{Clock, Timestamp},
    observe::Event,
};

/// Rates are those of the last minute.
const RATE_OVER: Duration = Duration::from_secs(60);
/// More looks than this are not kept, however often it looks.
const LOOKS_MAX: usize = 600;
/// Of the queue, the oldest messages; of the history, the latest events.
const QUEUE: &str = "/api/v1/queue?limit=200";
const EVENTS: &str = "/api/v1/events?limit=50";

/// What was seen at one moment.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) at: Timestamp,
    pub(super) status: Status,
    pub(super) items: Vec<Item>,
    pub(super) events: Vec<Event>,
    pub(super) rates: Rates,
}

/// Things a minute; `None` until two looks can be compared.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Rates(pub(super) Option<Counts>);

/// What is counted since the relay started, or how much of it a minute.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Counts {
    pub(super) accepted: f64,
    pub(super) delivered: f64,
    pub(super) deferred: f64,
    pub(super) bounced: f64,
}

/// The thread, as others see it.
pub(super) struct Watch {
    seen: Receiver<Result<Box<Seen>, Failure>>,
    look: SyncSender<()>,
}

impl Watch {
    /// Looks at once, and then in each interval.
    pub(super) fn start(client: Client, interval: Duration) -> Self {
        let (show, seen) = mpsc::sync_channel(1);
        let (look, asked) = mpsc::sync_channel(1);
        std::thread::spawn(move || {
            let mut looks = VecDeque::new();
            loop {
                if show.send(look_once(&client, &mut looks).map(Box::new)).is_err() {
                    return;
                }
                match asked.recv_timeout(interval) {
                    Ok(()) | Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            }
        });
        Self { seen, look }
    }

    /// The latest look, if there was one since the last call; an error if there will be none any more.
    pub(super) fn latest(&self) -> Result<Option<Result<Box<Seen>, Failure>>, ()> {
        let mut latest = None;
        loop {
            match self.seen.try_recv() {
                Ok(seen) => latest = Some(seen),
                Err(TryRecvError::Empty) => return Ok(latest),
                Err(TryRecvError::Disconnected) => return Err(()),
            }
        }
    }

    /// Looks before the interval is over.
    pub(super) fn look_now(&self) {
        // One wish is as good as two.
        let _ = self.look.try_send(());
    }
}

fn look_once(client: &Client, looks: &mut VecDeque<(Instant, Counts)>) -> Result<Seen, Failure> {
    let status = client.get("/api/v1/status")?;
    let List { items, .. } = client.get(QUEUE)?;
    let List { items: events, .. } = client.get(EVENTS)?;
    let metrics = String::from_utf8_lossy(&client.raw("/metrics")?).into_owned();
    looks.push_back((Instant::now(), Counts::of(&metrics)));
    let is_old = |looks: &VecDeque<(Instant, Counts)>| looks[0].0.elapsed() > RATE_OVER;
    // Two are needed, however far between.
    while looks.len() > LOOKS_MAX || looks.len() > 2 && is_old(looks) {
        looks.pop_front();
    }
    let rates = match (looks.front(), looks.back()) {
        (Some(first), Some(last)) => Rates::between(first, last),
        _ => Rates::default(),
    };
    Ok(Seen { at: Clock::System.now(), status, items, events, rates })
}

impl Counts {
    /// The sums of the counters in Prometheus' text form.
    fn of(metrics: &str) -> Self {
        let sum = |name: &str, label: &str| {
            let meant = metrics.lines().filter(|line| {
                let rest = line.strip_prefix(name);
                rest.is_some_and(|rest| rest.starts_with(['{', ' '])) && line.contains(label)
            });
            meant.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
        };
        let delivery = |result: &str| sum("outpost_deliveries_total", &format!("result=\"{result}\""));
        Self {
            accepted: sum("outpost_received_total", "result=\"accepted\""),
            delivered: delivery("delivered"),
            deferred: delivery("deferred"),
            bounced: delivery("bounced"),
        }
    }
}

impl Rates {
    fn between((from, first): &(Instant, Counts), (to, last): &(Instant, Counts)) -> Self {
        let minutes = to.duration_since(*from).as_secs_f64() / 60.0;
        if minutes <= 0.0 {
            return Self(None);
        }
        // Counters begin anew when the relay does.
        let rate =
            |first: f64, last: f64| ((if last < first { last } else { last - first }) / minutes).max(0.0);
        Self(Some(Counts {
            accepted: rate(first.accepted, last.accepted),
            delivered: rate(first.delivered, last.delivered),
            deferred: rate(first.deferred, last.deferred),
            bounced: rate(first.bounced, last.bounced),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_come_from_counters_also_over_a_restart_of_the_relay() {
        let text = "# TYPE outpost_received counter\n\
            outpost_received_total{result=\"accepted\"} 10\noutpost_received_total{result=\"rejected\"} 7\n\
            outpost_deliveries_total{upstream=\"a\",result=\"delivered\"} 4\n\
            outpost_deliveries_total{upstream=\"b\",result=\"delivered\"} 5\n\
            outpost_deliveries_total{upstream=\"b\",result=\"deferred\"} 1\n";
        let counts = Counts::of(text);
        assert_eq!(counts, Counts { accepted: 10.0, delivered: 9.0, deferred: 1.0, bounced: 0.0 });
        let start = Instant::now();
        let later = start + Duration::from_secs(30);
        let Rates(Some(rates)) = Rates::between(&(start, Counts::default()), &(later, counts)) else {
            panic!("two looks")
        };
        assert_eq!((rates.accepted, rates.delivered), (20.0, 18.0));
        let Rates(Some(anew)) = Rates::between(&(start, counts), &(later, Counts::default())) else {
            panic!("two looks")
        };
        assert_eq!(anew.accepted, 0.0);
        assert_eq!(Rates::between(&(start, counts), &(start, counts)), Rates(None));
    }
}
