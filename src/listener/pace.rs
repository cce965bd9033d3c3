//! How long a client may take: until it has logged in, for a command, for a message, for each octet on average.
//!
//! A deadline on each read alone would let a client that sends an octet now and then stay for ever.

use std::time::Duration;

use tokio::time::Instant;

use crate::config::SessionBounds;

/// Content may arrive slower than `smtp_min_rate` for so long: networks stall, and apps compute.
const GRACE: Duration = Duration::from_secs(60);
/// RFC 3207 sets none; whoever needs longer for a handshake is not going to send mail.
const HANDSHAKE: Duration = Duration::from_secs(30);

/// The clock of one connection.
#[derive(Debug)]
pub struct Pace {
    bounds: SessionBounds,
    /// When a client that may not relay has to have logged in.
    login: Option<Instant>,
    /// The last whole line, or the last octets of content.
    heard: Instant,
    /// When the transaction was opened, while there is one.
    opened: Option<Instant>,
    /// When the content began, and its octets so far.
    content: Option<(Instant, u64)>,
}

impl Pace {
    /// A client that has just connected.
    pub fn new(bounds: SessionBounds) -> Self {
        let heard = Instant::now();
        Self { bounds, login: Some(heard + bounds.login_timeout), heard, opened: None, content: None }
    }

    /// It may relay.
    pub fn is_known(&mut self) {
        self.login = None;
    }

    /// Whether it should have logged in by now.
    pub fn is_late_to_log_in(&self) -> bool {
        self.login.is_some_and(|login| login <= Instant::now())
    }

    /// A whole line was heard and dealt with; behind it a transaction is open, or none.
    pub fn line(&mut self, open: bool) {
        self.heard = Instant::now();
        self.opened = if open { self.opened.or(Some(self.heard)) } else { None };
        self.content = None;
    }

    /// Octets of content were read; none, when it is about to begin.
    pub fn octets(&mut self, read: usize) {
        self.heard = Instant::now();
        let (begun, before) = self.content.unwrap_or((self.heard, 0));
        self.content = Some((begun, before + read as u64));
    }

    /// When it has taken too long for what it is at.
    pub fn deadline(&self) -> Instant {
        let SessionBounds { timeout, transaction_timeout, min_rate, .. } = self.bounds;
        let mut deadline = self.heard + timeout;
        if let Some(login) = self.login {
            deadline = deadline.min(login);
        }
        if let Some(opened) = self.opened {
            deadline = deadline.min(opened + transaction_timeout);
        }
        if let (Some((begun, octets)), 1..) = (self.content, min_rate) {
            deadline = deadline.min(begun + GRACE + Duration::from_secs(octets / min_rate));
        }
        deadline
    }

    /// How much of a wait of ours fits into its time: it has not taken that time itself.
    pub fn bears(&self, wait: Duration) -> Duration {
        wait.min((self.deadline() - Instant::now()) / 4)
    }

    /// When a TLS handshake that begins now has taken too long.
    pub fn handshake_deadline(&self) -> Instant {
        self.deadline().min(Instant::now() + HANDSHAKE)
    }

    /// The deadline while others find no place.
    pub fn deadline_in_a_crowd(&self) -> Instant {
        /// As Postfix does under stress.
        const TIMEOUT: Duration = Duration::from_secs(10);
        self.deadline().min(self.heard + TIMEOUT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn known(bounds: SessionBounds) -> Pace {
        let mut pace = Pace::new(bounds);
        pace.is_known();
        pace
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_of_ours_leaves_the_client_most_of_its_time() {
        let bounds = SessionBounds { transaction_timeout: 20 * SECOND, ..SessionBounds::default() };
        let mut pace = known(bounds);
        pace.line(true);
        assert_eq!(pace.bears(2 * SECOND), 2 * SECOND);
        tokio::time::advance(16 * SECOND).await;
        assert_eq!(pace.bears(2 * SECOND), SECOND);
        tokio::time::advance(5 * SECOND).await;
        assert_eq!(pace.bears(2 * SECOND), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stranger_has_one_time_for_all_it_says_before_its_login() {
        let start = Instant::now();
        let at = |deadline: Instant| (deadline - start).as_secs();
        let mut pace = Pace::new(SessionBounds::default());
        assert_eq!((at(pace.deadline()), at(pace.handshake_deadline())), (120, 30));
        for _ in 0..11 {
            tokio::time::advance(10 * SECOND).await;
            pace.line(false);
        }
        assert_eq!((at(pace.deadline()), at(pace.handshake_deadline())), (120, 120));
        assert!(!pace.is_late_to_log_in());
        tokio::time::advance(10 * SECOND).await;
        assert!(pace.is_late_to_log_in());
        pace.is_known();
        assert!(!pace.is_late_to_log_in());
        assert_eq!((at(pace.deadline()), at(pace.handshake_deadline())), (410, 150));
    }

    #[tokio::test(start_paused = true)]
    async fn each_command_each_message_and_each_octet_has_its_time() {
        let start = Instant::now();
        let at = |pace: &Pace| (pace.deadline() - start).as_secs();
        let mut pace = known(SessionBounds::default());
        assert_eq!(at(&pace), 300);
        assert_eq!((pace.deadline_in_a_crowd() - start).as_secs(), 10);
        tokio::time::advance(100 * SECOND).await;
        assert_eq!(at(&pace), 300, "half a line is none");
        pace.line(true);
        assert_eq!(at(&pace), 400);
        for _ in 0..20 {
            tokio::time::advance(200 * SECOND).await;
            pace.line(true);
        }
        assert_eq!(at(&pace), 100 + 3_600, "the whole transaction");
        pace.line(false);
        assert_eq!(at(&pace), 4_100 + 300);
    }

    #[tokio::test(start_paused = true)]
    async fn content_earns_its_time_by_the_octet() {
        let start = Instant::now();
        let at = |pace: &Pace| (pace.deadline() - start).as_secs();
        let mut pace = known(SessionBounds::default());
        pace.line(true);
        pace.octets(0);
        assert_eq!(at(&pace), 60);
        pace.octets(50_000);
        assert_eq!(at(&pace), 160);
        tokio::time::advance(100 * SECOND).await;
        pace.octets(10);
        assert_eq!(at(&pace), 160, "too little to count");
        let mut pace = known(SessionBounds { min_rate: 0, ..SessionBounds::default() });
        pace.octets(0);
        assert_eq!((pace.deadline() - Instant::now()).as_secs(), 300, "turned off");
    }
}
