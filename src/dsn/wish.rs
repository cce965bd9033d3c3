//! Who wants to hear of what (RFC 3461 §4.1), and who tells: we, or the upstream.

use crate::smtp::parameter::Notify;

/// RFC 3464 §2.3.3: what a report says of a recipient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// It was passed on to a host that will not tell what becomes of it.
    Relayed,
    /// It is late, and still tried.
    Delayed,
    /// It will not arrive.
    Failed,
}

impl Action {
    /// As a report's field has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Relayed => "relayed",
            Self::Delayed => "delayed",
            Self::Failed => "failed",
        }
    }
}

/// What happened to a recipient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Happened {
    /// The upstream took the message; `promises`: it has DSN, and so took over the wishes with it.
    Taken {
        /// Whether it will tell the sender.
        promises: bool,
    },
    /// The upstream took it, and the sender wants to hear of each host on the way (RFC 2852 §4).
    Traced,
    /// Refused for good, or given up.
    Lost,
    /// It is late.
    Late,
}

/// What is to be reported of a recipient, if anything.
pub fn report(happened: Happened, notify: Option<Notify>) -> Option<Action> {
    let notify = notify.unwrap_or(Notify::DEFAULT);
    match happened {
        // RFC 3461 §5.2.1: a host that conforms serves the wish itself, when the mail arrives.
        Happened::Taken { promises: true } => None,
        // RFC 3461 §5.2.2.
        Happened::Taken { promises: false } => notify.success.then_some(Action::Relayed),
        Happened::Traced => (notify != Notify::NEVER).then_some(Action::Relayed),
        // RFC 3461 §5.2.6.
        Happened::Lost => notify.failure.then_some(Action::Failed),
        // RFC 3461 §5.2.5.
        Happened::Late => notify.delay.then_some(Action::Delayed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// R relayed, F failed, D delayed, - nothing.
    const TABLE: &str = "
        NOTIFY                 taken/DSN taken/none traced lost late
        (absent)               -         -          R      F    D
        NEVER                  -         -          -      -    -
        SUCCESS                -         R          R      -    -
        FAILURE                -         -          R      F    -
        DELAY                  -         -          R      -    D
        SUCCESS,FAILURE        -         R          R      F    -
        SUCCESS,DELAY          -         R          R      -    D
        FAILURE,DELAY          -         -          R      F    D
        SUCCESS,FAILURE,DELAY  -         R          R      F    D
    ";

    #[test]
    fn every_wish_meets_every_fate() {
        let mut rows = 0;
        for row in TABLE.trim().lines().skip(1) {
            let words: Vec<&str> = row.split_whitespace().collect();
            let notify = Notify::parse(words[0]);
            assert!(notify.is_some() || words[0] == "(absent)", "{row}");
            let fates = [
                Happened::Taken { promises: true },
                Happened::Taken { promises: false },
                Happened::Traced,
                Happened::Lost,
                Happened::Late,
            ];
            for (happened, letter) in fates.into_iter().zip(&words[1..]) {
                let shown = match report(happened, notify) {
                    Some(Action::Relayed) => "R",
                    Some(Action::Failed) => "F",
                    Some(Action::Delayed) => "D",
                    None => "-",
                };
                assert_eq!(shown, *letter, "{happened:?} in {row}");
            }
            rows += 1;
        }
        assert_eq!(rows, 9, "nothing at all, NEVER, and every combination of three words");
    }
}
