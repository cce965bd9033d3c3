//! The part of a report for people: what somebody reads who does not know what SMTP is.

use super::{Action, Fate, Report, one_line, programs::status};
use crate::{mail::outcome::Who, smtp::reply::Enhanced};

/// Characters of a subject in a sentence.
const SUBJECT_MAX: usize = 120;

/// Recipients that are named to people; programs get them all.
const NAMED_MAX: usize = 100;

/// The report's Subject.
pub(super) fn subject(report: &Report<'_>) -> String {
    let (word, alone) = match report.action {
        Action::Relayed => ("Passed on", "Your message was passed on"),
        Action::Delayed => ("Delayed", "Your message is delayed"),
        Action::Failed => ("Not delivered", "Your message was not delivered"),
    };
    match report.subject {
        Some(subject) => format!("{word}: {}", one_line(subject)),
        None => alone.to_owned(),
    }
}

/// The text.
pub(super) fn text(report: &Report<'_>) -> String {
    let mut text = format!("This is the mail relay {}.\r\n\r\n", report.hostname);
    let arrival = report.arrival.rfc5322();
    let message = match report.subject.map(one_line).filter(|subject| !subject.trim().is_empty()) {
        Some(subject) => {
            let end = subject.char_indices().nth(SUBJECT_MAX).map_or(subject.len(), |(at, _)| at);
            let more = if end < subject.len() { "…" } else { "" };
            format!("Your message \"{}{more}\" of {arrival}", &subject[..end])
        }
        None => format!("Your message of {arrival}"),
    };
    text.push_str(&match report.action {
        Action::Relayed => format!("{message} was passed on for:\r\n"),
        Action::Delayed => format!(
            "This is only a warning. You need not send your message again.\r\n\r\n\
             {message}\r\nis late: so far it could not be delivered to:\r\n"
        ),
        Action::Failed => format!("{message} could not be delivered to:\r\n"),
    });
    for fate in report.recipients.iter().take(NAMED_MAX) {
        recipient(&mut text, report.action, fate);
    }
    if let Some(more @ 1..) = report.recipients.len().checked_sub(NAMED_MAX) {
        text.push_str(&format!(
            "\r\n  and {more} more, who are listed in the second part of this report.\r\n"
        ));
    }
    text.push_str(&match report.action {
        Action::Relayed => "\r\nThat is as far as this relay can see. You hear of it again only if a later host reports on it.\r\n"
            .to_owned(),
        Action::Delayed => format!(
            "\r\nIt stays queued here, and is tried again and again until\r\n{}. After that it is given up.\r\n",
            report.until.rfc5322()
        ),
        Action::Failed => "\r\nNothing more will be tried for these addresses.\r\n".to_owned(),
    });
    text.push_str(&format!("\r\nQueue id: {}\r\n", report.id));
    text
}

fn recipient(text: &mut String, action: Action, fate: &Fate<'_>) {
    text.push_str(&format!("\r\n  {}\r\n", fate.recipient));
    // RFC 3461 §4.2: who wrote to an address that was changed on the way knows only that one.
    if let Some(original) = fate.original.filter(|original| original.address != fate.recipient.as_str()) {
        text.push_str(&format!("    (you wrote to {})\r\n", one_line(&original.address)));
    }
    let mut line = |words: &str| text.push_str(&format!("    {words}\r\n"));
    let Some(evidence) = fate.evidence else {
        return line("It has not been tried yet: other mail, or a limit, comes first.");
    };
    let upstream = &evidence.upstream;
    match (action, &evidence.reply) {
        (Action::Relayed, _) => line(&format!("{upstream} took it. Its words were:")),
        (Action::Delayed, Some(_)) => line(&format!("{upstream} does not take it yet. Its words were:")),
        (Action::Delayed, None) => line("It can't be sent on yet:"),
        (Action::Failed, _) if fate.expired => {
            line("It was tried again and again and is now given up. The last answer was:");
        }
        (Action::Failed, Some(_)) => line(&format!("{upstream} refused it for good. Its words were:")),
        (Action::Failed, None) => line("It can't be sent on:"),
    }
    match (&evidence.reply, &evidence.explanation) {
        (Some(reply), explanation) => {
            line(&one_line(&reply.to_string()));
            if let Some(explanation) = explanation {
                line(&format!("({})", one_line(explanation)));
            }
        }
        (None, _) => line(&one_line(&evidence.to_string())),
    }
    match action {
        Action::Failed => line(advice(status(action, fate))),
        Action::Delayed => {
            evidence.who().into_iter().for_each(|who| line(must_act(who)));
            fate.next.into_iter().for_each(|next| line(&format!("Next try at {next}.")));
        }
        Action::Relayed => {}
    }
}

/// Who can do something about what waits, as its sender reads it, who need not know this relay.
fn must_act(who: Who) -> &'static str {
    match who {
        Who::Operator => "Whoever runs this relay must act: it won't get better by itself.",
        Who::Upstream => "Who must act: the upstream.",
        Who::Sender => "Who must act: you, the sender.",
        Who::Nobody => "Nobody must act: it passes.",
    }
}

/// What the sender can do, by the status (RFC 3463 §3): its subject, its details or all of them, the
/// words.
const ADVICE: &[(u16, &[u16], &str)] = &[
    (
        1,
        &[7, 8],
        "What you can do: the other side refuses the sender's address. Send from another, or tell your administrator.",
    ),
    (
        1,
        &[2, 10],
        "What you can do: check the part behind the @. That domain takes no mail, or does not exist.",
    ),
    (
        1,
        &[],
        "What you can do: check the address for typing errors. If it is right, ask its owner another way.",
    ),
    (2, &[2], "What you can do: the mailbox is full. Send it again later, or tell its owner another way."),
    (2, &[3], "What you can do: send it again in smaller parts, or with links in the place of attachments."),
    (3, &[4], "What you can do: send it again in smaller parts, or with links in the place of attachments."),
    (
        4,
        &[7],
        "What you can do: send it again if it still matters. If that fails too, show this report to your administrator.",
    ),
    (
        6,
        &[],
        "What you can do: something in the message can't be carried there. Send it in a simpler form, as plain text.",
    ),
    (
        7,
        &[],
        "What you can do: the other side refuses it by its rules. The same mail will be refused again; show this report to your administrator.",
    ),
];
/// Where the table has nothing.
const ELSE: &str = "What you can do: if the address is right, show this report to whoever runs the mail of that address or of this relay.";

fn advice(status: Enhanced) -> &'static str {
    let fits =
        |row: &&(u16, &[u16], &str)| row.0 == status.1 && (row.1.is_empty() || row.1.contains(&status.2));
    ADVICE.iter().find(fits).map_or(ELSE, |row| row.2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_told_as_something_to_do() {
        assert!(advice(Enhanced(5, 1, 1)).contains("typing errors"));
        assert!(advice(Enhanced(5, 1, 2)).contains("behind the @"));
        assert!(advice(Enhanced(5, 2, 2)).contains("full"));
        assert!(advice(Enhanced(4, 4, 7)).contains("again"));
        assert!(advice(Enhanced(5, 7, 26)).contains("rules"));
        assert_eq!(advice(Enhanced(5, 0, 0)), ELSE);
    }
}
