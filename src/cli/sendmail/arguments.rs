//! The arguments of sendmail(1): single letters, some joined (`-ti`), some with a value, beside it or
//! behind it (`-fa@b`, `-f a@b`). clap has no words for `-oi`.

use std::ffi::OsString;

use crate::{
    cli::exit::{Exit, Failure},
    smtp::parameter::{Notify, Ret},
};

/// RFC 3461 §4.4.
const ENVID_MAX: usize = 100;

/// What sendmail was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Arguments {
    pub(super) task: Task,
    /// `-t`: to whom the header says, too.
    pub(super) header_recipients: bool,
    /// `-i`: a line of one dot does not end the message.
    pub(super) dots_are_text: bool,
    /// `-f`, `-r`.
    pub(super) sender: Option<String>,
    /// `-F`.
    pub(super) full_name: Option<String>,
    /// `-N`.
    pub(super) notify: Option<Notify>,
    /// `-R`.
    pub(super) ret: Option<Ret>,
    /// `-V`.
    pub(super) envid: Option<String>,
    /// `-v`.
    pub(super) verbose: bool,
    /// What else stood there: address lists.
    pub(super) addresses: Vec<String>,
}

/// What to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Task {
    /// Hand a message over.
    #[default]
    Mail,
    /// `-bs`: SMTP on standard input and output.
    Session,
    /// `-bp`, mailq: show the queue.
    ShowQueue,
    /// `-q`: try what waits.
    RunQueue,
    /// `-bi`, newaliases: there are no aliases here.
    Nothing,
}

/// What follows an option's letter.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Takes {
    Nothing,
    /// The rest of the word, or the next one.
    Value,
    /// The rest of the word, if there is any.
    Rest,
}

/// Every letter that is known; those without a meaning here tell other mail systems how to work.
const LETTERS: &[(Takes, &str)] =
    &[(Takes::Nothing, "cGimnstUvI"), (Takes::Value, "ABCeFfhLNOoprRVXb"), (Takes::Rest, "dq")];

impl Arguments {
    /// Reads the arguments behind the program's name.
    pub(super) fn read(words: Vec<OsString>) -> Result<Self, Failure> {
        let mut arguments = Self::default();
        let mut words = words.into_iter().map(text);
        while let Some(word) = words.next() {
            let word = word?;
            if word == "--" {
                for word in words.by_ref() {
                    arguments.addresses.push(word?);
                }
            } else if let Some(letters) = word.strip_prefix('-').filter(|letters| !letters.is_empty()) {
                let mut rest = letters;
                while let Some(letter) = rest.chars().next() {
                    rest = &rest[letter.len_utf8()..];
                    let takes = LETTERS.iter().find(|(_, letters)| letters.contains(letter));
                    let Some((takes, _)) = takes else { return Err(usage(format!("no option -{letter}"))) };
                    let value = match takes {
                        Takes::Nothing => String::new(),
                        Takes::Value if rest.is_empty() => {
                            words.next().ok_or_else(|| usage(format!("-{letter} wants a value")))??
                        }
                        Takes::Value | Takes::Rest => std::mem::take(&mut rest).to_owned(),
                    };
                    arguments.take(letter, value)?;
                }
            } else {
                arguments.addresses.push(word);
            }
        }
        Ok(arguments)
    }

    fn take(&mut self, letter: char, value: String) -> Result<(), Failure> {
        match letter {
            't' => self.header_recipients = true,
            'i' => self.dots_are_text = true,
            'v' => self.verbose = true,
            'f' | 'r' => self.sender = Some(value),
            'F' => self.full_name = Some(value),
            'o' if value == "i" => self.dots_are_text = true,
            'O' if value.eq_ignore_ascii_case("IgnoreDots")
                || value.eq_ignore_ascii_case("IgnoreDots=true") =>
            {
                self.dots_are_text = true;
            }
            'N' => self.notify = Some(notify(&value)?),
            'R' => self.ret = Some(ret(&value)?),
            'V' => {
                if value.len() > ENVID_MAX || !value.bytes().all(|octet| octet.is_ascii_graphic()) {
                    return Err(usage(format!(
                        "-V takes up to {ENVID_MAX} ASCII characters, no blank among them"
                    )));
                }
                self.envid = Some(value);
            }
            'I' => self.task = Task::Nothing,
            'b' => self.task = task(&value)?,
            'q' if value.is_empty() => self.task = Task::RunQueue,
            'q' => {
                return Err(usage(format!(
                    "-q{value}: the relay runs its queue by itself (`outpost serve`)"
                )));
            }
            'C' => return Err(usage("-C: a configuration is named by OUTPOST_CONFIG".to_owned())),
            _ => {}
        }
        Ok(())
    }
}

fn task(mode: &str) -> Result<Task, Failure> {
    match mode {
        "m" => Ok(Task::Mail),
        "s" => Ok(Task::Session),
        "p" => Ok(Task::ShowQueue),
        "i" => Ok(Task::Nothing),
        "d" | "D" | "l" => Err(usage(format!("-b{mode}: the relay is run by `outpost serve`"))),
        "v" | "t" => Err(usage(format!("-b{mode}: addresses are not resolved here, so none can be tried"))),
        _ => Err(usage(format!("no option -b{mode}"))),
    }
}

fn notify(value: &str) -> Result<Notify, Failure> {
    let mut notify = Notify::NEVER;
    if value.eq_ignore_ascii_case("never") {
        return Ok(notify);
    }
    for word in value.split(',') {
        match word.trim().to_ascii_lowercase().as_str() {
            "success" => notify.success = true,
            "failure" => notify.failure = true,
            "delay" => notify.delay = true,
            _ => return Err(usage(format!("-N takes never, or of success, failure and delay: {value}"))),
        }
    }
    Ok(notify)
}

fn ret(value: &str) -> Result<Ret, Failure> {
    match value.to_ascii_lowercase().as_str() {
        "full" => Ok(Ret::Full),
        "hdrs" => Ok(Ret::Hdrs),
        _ => Err(usage(format!("-R takes full or hdrs: {value}"))),
    }
}

/// A line's end in an argument could begin a header field or a command of its own.
fn text(word: OsString) -> Result<String, Failure> {
    let word = word.into_string().map_err(|word| usage(format!("{} isn't UTF-8", word.display())))?;
    if word.chars().any(char::is_control) {
        return Err(usage("a control character stands in an argument".to_owned()));
    }
    Ok(word)
}

fn usage(words: String) -> Failure {
    Failure::new(Exit::USAGE, format!("sendmail: {words}\n  help: outpost sendmail --help"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Arguments, Failure> {
        Arguments::read(line.split('|').map(OsString::from).collect())
    }

    #[track_caller]
    fn reads(line: &str, change: impl Fn(&mut Arguments)) {
        let mut wanted = Arguments::default();
        change(&mut wanted);
        assert_eq!(read(line), Ok(wanted), "{line}");
    }

    #[test]
    fn the_invocations_of_known_programs_are_understood() {
        let to = |to: &[&str]| to.iter().map(|to| (*to).to_owned()).collect::<Vec<_>>();
        // PHP's default.
        reads("-t|-i", |a| (a.header_recipients, a.dots_are_text) = (true, true));
        // PHP with mail()'s fifth argument, and Laravel, WordPress.
        reads("-t|-i|-fapp@a.example", |a| {
            (a.header_recipients, a.dots_are_text, a.sender) = (true, true, Some("app@a.example".into()));
        });
        // Debian's cron.
        reads("-i|-FCronDaemon|-B8BITMIME|-oem|root", |a| {
            (a.dots_are_text, a.full_name, a.addresses) = (true, Some("CronDaemon".into()), to(&["root"]));
        });
        // mutt.
        reads("-oem|-oi|-f|me@a.example|--|you@b.example|-odd@b.example", |a| {
            (a.dots_are_text, a.sender) = (true, Some("me@a.example".into()));
            a.addresses = to(&["you@b.example", "-odd@b.example"]);
        });
        // git send-email, s-nail.
        reads("-i|you@b.example", |a| (a.dots_are_text, a.addresses) = (true, to(&["you@b.example"])));
        reads("-ti|-F|A Name|-r|<>|-v", |a| {
            (a.header_recipients, a.dots_are_text, a.verbose) = (true, true, true);
            (a.full_name, a.sender) = (Some("A Name".into()), Some("<>".into()));
        });
        reads(
            "-odb|-oQ/x|-O|DeliveryMode=b|-e|m|-Am|-d0.1|-L|tag|-G|-U|-n|-m|-h|3|-p|ESMTP|-X/log|-bm",
            |_| {},
        );
        reads("-O|ignoredots=TRUE", |a| a.dots_are_text = true);
        reads("-N|success,Delay|-R|HDRS|-V|QQ1+2", |a| {
            a.notify = Some(Notify { success: true, failure: false, delay: true });
            (a.ret, a.envid) = (Some(Ret::Hdrs), Some("QQ1+2".into()));
        });
        reads("-Nnever", |a| a.notify = Some(Notify::NEVER));
        for (line, task) in [
            ("-bs", Task::Session),
            ("-bp", Task::ShowQueue),
            ("-q", Task::RunQueue),
            ("-bi", Task::Nothing),
            ("-I", Task::Nothing),
        ] {
            reads(line, |a| a.task = task);
        }
    }

    #[test]
    fn what_would_mean_something_else_is_refused() {
        for line in [
            "-bd",
            "-bv",
            "-bt",
            "-bx",
            "-q15m",
            "-C/etc/x",
            "-f",
            "-Z",
            "-tZ",
            "--to",
            "-N|often",
            "-R|all",
            "-V|a b",
            "a@b.example\nBcc: c@d.example",
        ] {
            assert_eq!(read(line).map_err(|failure| failure.exit), Err(Exit::USAGE), "{line}");
        }
    }
}
