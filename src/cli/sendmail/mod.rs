//! `outpost sendmail`: stands in for sendmail(1), under that name, too.
//!
//! Programs that know no SMTP hand their mail in through it. It keeps nothing: the relay has the mail
//! when it ends with 0, and nobody has it when it ends with 75.
//!
//! - here: the names it answers to, and how it ends
//! - [`arguments`]: the options
//! - [`input`]: the message on standard input
//! - [`compose`]: envelope, recipients and missing fields

mod arguments;
mod compose;
mod input;

use std::{
    ffi::{OsStr, OsString},
    io,
    path::Path,
};

use clap::{Args, Parser as _};

use self::{
    arguments::{Arguments, Task},
    compose::{Author, Draft},
    input::Input,
};
use super::{
    Cli, Command, Place,
    exit::{Exit, Failure},
    handover, output,
    relay::Relay,
};
use crate::clock::Clock;

/// Octets of a message for a relay that does not say what it takes.
const CONTENT_MAX: u64 = 100 << 20;

const HELP: &str = "\
Options, those of sendmail(1):
  -t             send to whom To, Cc and Bcc name; Bcc is removed
  -i, -oi        a line of one dot does not end the message
  -f, -r SENDER  the envelope's sender [default: this user at this host]
  -F NAME        the sender's name for a From field, where there is none
  -N LIST        report success, failure, delay, or never (RFC 3461)
  -R full|hdrs   how much of the message a report returns
  -V ID          the envelope's name in reports
  -v             print the queue id
  -bs            speak SMTP on standard input and output
  -bp            list the queue, as mailq does
  -q             try what waits now
Other options of sendmail(1) are taken and mean nothing, or are refused.

The relay is found as every command finds it, else by DOTCLOUD_<SERVICE>_SMTP_*
in the environment, else on ports 25 and 587 of this machine. Options of outpost
stand in front: outpost --data DIR sendmail -t

It ends with 0 when the relay has the mail, else as sysexits(3) says: 64 wrong
usage, 65 no recipients or unusable mail, 67 and 69 refused, 75 try again,
77 not permitted, 78 configuration.";

/// What clap knows of it; the options are read by [`Arguments`].
#[derive(Debug, Args)]
#[command(
    override_usage = "outpost sendmail [-ti] [-f SENDER] [-F NAME] [ADDRESS]...",
    after_help = HELP,
    // Without clap's list of options: `-f` is not the configuration here.
    help_template = "{about-with-newline}\n{usage-heading} {usage}{after-help}",
)]
pub(super) struct Sendmail {
    /// What stood behind the command's name.
    #[arg(skip)]
    pub(super) arguments: Vec<OsString>,
}

/// Divides the arguments into clap's and sendmail's, if it is sendmail that is meant: by the name of
/// the program, or by the command's.
pub(super) fn apart(mut words: Vec<OsString>) -> (Vec<OsString>, Vec<OsString>) {
    let program = words.first().and_then(|word| Path::new(word).file_name());
    let implied = match program.and_then(OsStr::to_str) {
        Some("sendmail") => Some(&[][..]),
        Some("mailq") => Some(&["-bp"][..]),
        Some("newaliases") => Some(&["-bi"][..]),
        _ => None,
    };
    let at = match implied {
        Some(implied) => {
            words.splice(
                ..1,
                ["outpost", "sendmail"].into_iter().chain(implied.iter().copied()).map(OsString::from),
            );
            Some(1)
        }
        None => words.iter().position(|word| word == "sendmail"),
    };
    let Some(at) = at else { return (words, Vec::new()) };
    let is_help = words.get(at + 1).is_some_and(|word| word == "--help");
    // Elsewhere it may be a value.
    let cli = Cli::try_parse_from(&words[..=at]);
    let is_meant = cli.is_ok_and(|cli| matches!(cli.command, Command::Sendmail(_)));
    let sendmails = if is_meant && !is_help { words.split_off(at + 1) } else { Vec::new() };
    (words, sendmails)
}

impl Sendmail {
    pub(super) fn run(self, place: Place) -> Result<Exit, Failure> {
        let arguments = Arguments::read(self.arguments)?;
        match arguments.task {
            Task::Nothing => Ok(Exit::OK),
            Task::ShowQueue => instead(place, &["queue", "list"]),
            Task::RunQueue => instead(place, &["queue", "retry", "--all", "--yes"]),
            Task::Session => {
                Relay::find(&place)?.open()?.join()?;
                Ok(Exit::OK)
            }
            Task::Mail => mail(&place, &arguments),
        }
    }
}

/// Runs another command.
fn instead(place: Place, command: &[&str]) -> Result<Exit, Failure> {
    let cli = Cli::try_parse_from(["outpost"].iter().chain(command));
    let cli = cli.map_err(|error| Failure::new(Exit::USAGE, error))?;
    super::run(Cli { place, ..cli })
}

/// Takes a message in, hands it over, and tells what became of it.
fn mail(place: &Place, arguments: &Arguments) -> Result<Exit, Failure> {
    let relay = Relay::find(place)?;
    let author = author(&relay.hostname);
    let mut input = Input::new(io::stdin().lock(), arguments.dots_are_text);
    let fields = input.header()?;
    let mut draft = Draft::of(arguments, fields, &author, Clock::System.now())?;
    let header = std::mem::take(&mut draft.header);
    let letter = input.content(header, relay.max_message_size().unwrap_or(CONTENT_MAX))?;
    if letter.eight_bit {
        draft.set_eight_bit();
    }
    let mut session = relay.open()?;
    let outcomes = session.hand_over(&draft.envelope, &letter.content)?;
    session.close();
    let id = handover::queue_id(&draft.envelope.recipients, &outcomes)?;
    if arguments.verbose {
        output::say(format!("queued as {id}"));
    }
    Ok(Exit::OK)
}

/// Who runs this, as far as the system knows.
fn author(hostname: &str) -> Author {
    let user = nix::unistd::User::from_uid(nix::unistd::getuid()).ok().flatten();
    let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    let login = user.as_ref().map(|user| user.name.clone()).or_else(|| variable("LOGNAME"));
    // Containers run programs as users that nobody has listed.
    let login = login.unwrap_or_else(|| format!("uid{}", nix::unistd::getuid()));
    let gecos = user.and_then(|user| user.gecos.into_string().ok());
    let gecos = gecos.and_then(|gecos| gecos.split(',').next().map(str::to_owned));
    let full_name = variable("NAME").or(gecos).filter(|name| !name.chars().any(char::is_control));
    Author { login, full_name, hostname: hostname.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(line: &str, claps: &str, sendmails: &str) {
        let words = |line: &str| {
            line.split(' ').filter(|word| !word.is_empty()).map(OsString::from).collect::<Vec<_>>()
        };
        assert_eq!(apart(words(line)), (words(claps), words(sendmails)), "{line}");
    }

    #[test]
    fn sendmails_options_are_its_own() {
        check("outpost sendmail -t -fa@b", "outpost sendmail", "-t -fa@b");
        check(
            "outpost --data /d -f x.yml sendmail -f a@b --data",
            "outpost --data /d -f x.yml sendmail",
            "-f a@b --data",
        );
        check("/usr/sbin/sendmail -t -i", "outpost sendmail", "-t -i");
        check("mailq", "outpost sendmail", "-bp");
        check("/x/newaliases -v", "outpost sendmail", "-bi -v");
        check("outpost sendmail --help", "outpost sendmail --help", "");
    }

    #[test]
    fn the_word_elsewhere_is_a_value() {
        check("outpost --service sendmail status", "outpost --service sendmail status", "");
        check("outpost queue list --sender sendmail", "outpost queue list --sender sendmail", "");
        check("outpost send --to sendmail --subject x", "outpost send --to sendmail --subject x", "");
    }
}
