//! `outpost init`: four questions, and a dotcloud.yml that works.
//!
//! Each answer can come from an option, a variable, or a line of standard input, so that scripts ask
//! nobody. The password alone is no option: what is typed as one stands in the list of processes. It is
//! kept in a file of its own, so that dotcloud.yml holds no secret.

mod ask;

use std::{
    io::Write as _,
    net::TcpListener,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use clap::Args;

use self::ask::{Asker, Verdict};
use super::{
    Place, check,
    client::Client,
    exit::{Exit, Failure},
    output,
};
use crate::config::{
    self, Loaded, Problem, Problems, Source,
    presets::{self, Preset},
};

/// The file of the password, beside the dotcloud.yml.
const PASSWORD: &str = "relay-password";
/// Where apps hand in mail if the usual port can't be had: the port that dotCloud's own relays had.
const OTHER_LISTEN: &str = "0.0.0.0:1587";
const USUAL_LISTEN: &str = "0.0.0.0:587";

#[derive(Debug, Args)]
pub(super) struct Init {
    /// The provider, as `outpost presets` names it; or another server's host, with :PORT if it is not 587
    #[arg(long, value_name = "NAME", env = "SMTP_RELAY_PROVIDER", hide_env_values = true)]
    provider: Option<String>,
    /// The login there
    #[arg(long, value_name = "NAME", env = "SMTP_RELAY_USERNAME", hide_env_values = true)]
    user: Option<String>,
    /// A file that holds its password; - for standard input [default: $SMTP_RELAY_PASSWORD, or asked for]
    #[arg(long, value_name = "FILE", env = "SMTP_RELAY_PASSWORD_FILE", hide_env_values = true)]
    password_file: Option<PathBuf>,
    /// The address that all mail is sent from; or a domain, whose addresses alone apps may use
    #[arg(long, value_name = "ADDRESS", env = "SMTP_SENDER_REWRITE", hide_env_values = true)]
    sender: Option<String>,
    /// Prove the login first: connect, set up TLS, log in; nothing is written unless that works
    #[arg(long)]
    connect: bool,
    /// Replace what is there
    #[arg(long)]
    force: bool,
}

/// What was answered.
#[derive(Default)]
struct Answers {
    provider: String,
    user: String,
    /// Empty: there is no login.
    password: String,
    /// The file that holds it already.
    password_file: Option<PathBuf>,
    sender: String,
    /// Another listener than the usual, and why.
    listen: Option<&'static str>,
    admin: Option<String>,
}

impl Init {
    pub(super) fn run(self, place: &Place) -> Result<Exit, Failure> {
        let file = place.named_file().unwrap_or_else(|| "dotcloud.yml".into());
        let secret = file.with_file_name(PASSWORD);
        for path in [&file, &secret] {
            if !self.force && path.symlink_metadata().is_ok() {
                let words = format!(
                    "{} is there already\n  help: --force replaces it; -f names another file, in another directory",
                    path.display()
                );
                return Err(Failure::new(Exit::CANT_CREATE, words));
            }
        }
        let service = place.service.clone().unwrap_or_else(|| "mailer".to_owned());
        let (connect, force) = (self.connect, self.force);
        // What listens there now will listen there again.
        let runs = Client::find(place).is_ok_and(|client| client.raw("/healthz").is_ok());
        let mut answers = self.answers(&service, &file)?;
        if !runs {
            answers.choose_ports();
        }
        let loaded = answers.judged(&service, &file).map_err(|problems| told(&problems))?;
        for warning in &loaded.warnings {
            output::complain(&format!("warning: {}", without_place(warning)));
        }
        if connect {
            let end = check::connect(&loaded.settings)?;
            if end != Exit::OK {
                output::complain("nothing was written: correct it and run it again, or leave --connect out");
                return Ok(end);
            }
        }
        let written = answers.write(&service, &file, &secret, force)?;
        output::say(format!("Wrote {written}."));
        let others = [("smtp_listen", answers.listen), ("smtp_admin_listen", answers.admin.as_deref())];
        for (key, address) in others.into_iter().filter_map(|(key, address)| Some((key, address?))) {
            output::say(format!("The usual port can't be had here, so {key} is {address}."));
        }
        let named =
            if file == Path::new("dotcloud.yml") { String::new() } else { format!(" -f {}", file.display()) };
        let test = if connect { String::new() } else { format!("  outpost check --connect{named}\n") };
        output::say(format!(
            "Next:\n{test}  outpost serve{named}\n  outpost send --to you@example.com --wait{named}"
        ));
        Ok(Exit::OK)
    }

    /// Asks for whatever was not given.
    fn answers(mut self, service: &str, file: &Path) -> Result<Answers, Failure> {
        let mut asker = Asker::new();
        let mut answers = Answers::default();
        // Whoever gives some answers to a program gives all that he has: it does not wait for more.
        let scripted = self.provider.is_some() && !asker.is_terminal();
        answers.provider = asker.answer(
            self.provider.take(),
            "--provider",
            "Provider (mailgun, gmail, ses-eu-west-1, …; `outpost presets` lists them), or your server's host: ",
            |provider| {
                let answers = Answers { provider: provider.to_owned(), ..Answers::default() };
                match answers.preset(service, file).and_then(|preset| preset.gone.clone()) {
                    Some(gone) => Verdict::Doubtful(gone),
                    None => judge(answers.judged(service, file)),
                }
            },
        )?;
        let preset = answers.preset(service, file);
        let mistakes = |user: &str, password: Option<&str>| {
            let mistakes = preset.into_iter().flat_map(|preset| preset.mistakes(user, password));
            let about = mistakes.filter(|(_, about_password)| *about_password == password.is_some());
            let words: Vec<String> =
                about.map(|(mistake, _)| format!("{}\n  help: {}", mistake.says, mistake.help)).collect();
            if words.is_empty() { Verdict::Right } else { Verdict::Doubtful(words.join("\n")) }
        };
        let rule = preset.map_or("empty if it takes mail without a login", |preset| preset.username.as_str());
        answers.user = asker.answer(
            self.user.take(),
            "--user",
            &format!("User name ({rule}): "),
            |user| match user {
                "" => Verdict::Right,
                user => mistakes(user, None),
            },
        )?;
        if !answers.user.is_empty() {
            let rule = preset.map_or_else(String::new, |preset| format!(" ({})", preset.password));
            let right = |password: &str| match password {
                "" => Verdict::Wrong("a password is needed for the login".to_owned()),
                password => mistakes(&answers.user, Some(password)),
            };
            let variable = std::env::var("SMTP_RELAY_PASSWORD").ok().filter(|password| !password.is_empty());
            let given = match &self.password_file {
                Some(path) if path != Path::new("-") => Some(password_in(path)?),
                Some(_) => Some(asker.line("--password-file")?),
                None => variable,
            };
            answers.password = match given {
                Some(given) => asker.given(given, right)?,
                None => asker.secret("--password-file", &format!("Password{rule}: "), right)?,
            };
            answers.password_file = self.password_file.take().filter(|path| path != Path::new("-"));
        }
        let own = preset.is_some_and(|preset| preset.sender.is_some()) && answers.user.contains('@');
        let usual = if own { answers.user.clone() } else { String::new() };
        if self.sender.is_none() && scripted {
            self.sender = Some(usual.clone());
        }
        let shown = if own { format!(" [{usual}]") } else { " [apps choose]".to_owned() };
        let question =
            format!("Sender of all mail (an address), or the domain that apps may send from{shown}: ");
        let sender = asker.optional(self.sender.take(), &question, |sender| {
            let answers = Answers { sender: sender.to_owned(), ..answers.same_server() };
            judge(answers.judged(service, file))
        })?;
        answers.sender = if sender.is_empty() { usual } else { sender };
        Ok(answers)
    }
}

impl Answers {
    /// The same upstream, and nothing else.
    fn same_server(&self) -> Self {
        Self { provider: self.provider.clone(), ..Self::default() }
    }

    /// The preset that the provider's name or host means.
    fn preset(&self, service: &str, file: &Path) -> Option<&'static Preset> {
        let settings = self.same_server().judged(service, file).ok()?.settings;
        presets::preset(settings.upstreams.first()?.provider.as_deref()?)
    }

    /// Another port where the usual one can't be had, so that `serve` starts.
    fn choose_ports(&mut self) {
        let is_set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let can = |address: &str| TcpListener::bind(address).is_ok();
        if !is_set("SMTP_LISTEN") && !can(USUAL_LISTEN) && can(OTHER_LISTEN) {
            self.listen = Some(OTHER_LISTEN);
        }
        if !is_set("SMTP_ADMIN_LISTEN") && !can("127.0.0.1:8025") {
            self.admin = (8026..8036).map(|port| format!("127.0.0.1:{port}")).find(|address| can(address));
        }
    }

    /// The text of the dotcloud.yml.
    fn text(&self, service: &str, password_file: Option<&Path>) -> String {
        let mut lines = vec![
            "# Written by `outpost init`. docs/configuration.md has every key that can stand here."
                .to_owned(),
            format!("{}:", scalar(service)),
            "  type: smtp".to_owned(),
            "  config:".to_owned(),
        ];
        let mut key = |name: &str, value: &str| lines.push(format!("    {name}: {}", scalar(value)));
        match self.provider.rsplit_once(':') {
            _ if presets::preset(&self.provider.to_ascii_lowercase()).is_some() || !self.is_host() => {
                key("smtp_relay_provider", &self.provider);
            }
            Some((host, port))
                if port.parse::<u16>().is_ok() && (!host.contains(':') || host.ends_with(']')) =>
            {
                key("smtp_relay_server", host);
                key("smtp_relay_port", port);
            }
            _ => key("smtp_relay_server", &self.provider),
        }
        if !self.user.is_empty() {
            key("smtp_relay_username", &self.user);
        }
        if let Some(file) = password_file.filter(|_| !self.user.is_empty()) {
            key("smtp_relay_password_file", &file.display().to_string());
        }
        match self.sender.as_str() {
            "" => {}
            address if address.contains('@') => key("smtp_sender_rewrite", address),
            domain => key("smtp_senders", domain),
        }
        if let Some(listen) = self.listen {
            key("smtp_listen", listen);
        }
        if let Some(admin) = &self.admin {
            key("smtp_admin_listen", admin);
        }
        lines.join("\n") + "\n"
    }

    /// A host has dots, a port, or is this machine; a word alone is meant to be a provider.
    fn is_host(&self) -> bool {
        self.provider.contains(['.', ':']) || self.provider.eq_ignore_ascii_case("localhost")
    }

    /// What the relay would make of it.
    fn judged(&self, service: &str, file: &Path) -> Result<Loaded, Problems> {
        let name = file.display().to_string();
        let source = Source { service: Some(service.to_owned()), ..Source::default() };
        // The password is not in its file yet; everything else is as it will be for `serve`.
        let ours =
            ["SMTP_RELAY_PROVIDER", "SMTP_RELAY_USERNAME", "SMTP_RELAY_PASSWORD_FILE", "SMTP_SENDER_REWRITE"];
        let env = |name: &str| match name {
            "SMTP_RELAY_PASSWORD" => Some(self.password.clone()),
            name if ours.contains(&name) => None,
            name => std::env::var(name).ok(),
        };
        config::parse(&self.text(service, None), &name, &source, &env)
    }

    /// Writes both files, whole or not at all; returns their names in words.
    fn write(&self, service: &str, file: &Path, secret: &Path, force: bool) -> Result<String, Failure> {
        let given = match &self.password_file {
            Some(given) => Some(relative_to(file, given)?),
            None => None,
        };
        let new = given.is_none() && !self.password.is_empty();
        if new {
            write(secret, &format!("{}\n", self.password), 0o600, force)?;
        }
        let password_file = given.unwrap_or_else(|| PASSWORD.into());
        write(file, &self.text(service, Some(&password_file)), 0o644, force)?;
        let beside = match new {
            true => {
                format!(" and {}, which only you can read: keep it out of version control", secret.display())
            }
            false => String::new(),
        };
        Ok(format!("{}{beside}", file.display()))
    }
}

/// A given file as the dotcloud.yml is to name it: beside it by its name, elsewhere by its whole path.
fn relative_to(file: &Path, given: &Path) -> Result<PathBuf, Failure> {
    let absolute = |path: &Path| {
        let failed = |error| Failure::new(Exit::NO_INPUT, format!("{}: {error}", path.display()));
        std::path::absolute(path).map_err(failed)
    };
    let (file, given) = (absolute(file)?, absolute(given)?);
    Ok(match (given.parent(), given.file_name()) {
        (parent, Some(name)) if parent == file.parent() => name.into(),
        _ => given,
    })
}

/// The password in a file that was named. What is wrong with it is told when it is judged.
fn password_in(path: &Path) -> Result<String, Failure> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| Failure::new(Exit::NO_INPUT, format!("{}: {error}", path.display())))?;
    Ok(text
        .strip_suffix('\n')
        .map_or(text.as_str(), |text| text.strip_suffix('\r').unwrap_or(text))
        .to_owned())
}

/// Written beside and renamed, so that nobody ever reads a half of it, or more than it may.
fn write(path: &Path, text: &str, mode: u32, force: bool) -> Result<(), Failure> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let failed =
        |error: std::io::Error| Failure::new(Exit::CANT_CREATE, format!("{}: {error}", path.display()));
    let mut file = tempfile::Builder::new()
        .permissions(std::fs::Permissions::from_mode(mode))
        .tempfile_in(directory)
        .map_err(failed)?;
    file.write_all(text.as_bytes()).and_then(|()| file.as_file().sync_all()).map_err(failed)?;
    let persisted = if force { file.persist(path) } else { file.persist_noclobber(path) };
    persisted.map(|_| ()).map_err(|error| failed(error.error))
}

/// A value as YAML: as it stands where nothing in it could mean something else. A JSON string is one.
fn scalar(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._@/-".contains(c);
    let begins = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/');
    let is_word = !["true", "false", "yes", "no", "on", "off", "null", "y", "n"]
        .contains(&text.to_ascii_lowercase().as_str());
    let is_number = !text.is_empty() && text.chars().all(|c| c.is_ascii_digit());
    if is_number || (begins && is_word && text.chars().all(plain)) {
        text.to_owned()
    } else {
        serde_json::Value::from(text).to_string()
    }
}

/// Whether the relay could run by it.
fn judge(loaded: Result<Loaded, Problems>) -> Verdict {
    match loaded {
        Err(problems) => Verdict::Wrong(problems.0.iter().map(without_place).collect::<Vec<_>>().join("\n")),
        Ok(_) => Verdict::Right,
    }
}

/// There is no file yet that a place could be in.
fn without_place(problem: &Problem) -> String {
    let help = problem.help.as_ref().map_or(String::new(), |help| format!("\n  help: {help}"));
    format!("{}{help}", problem.message)
}

fn told(problems: &Problems) -> Failure {
    let words: Vec<String> = problems.0.iter().map(without_place).collect();
    Failure::new(Exit::USAGE, words.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_answered_stands_in_the_file_as_it_was_meant() {
        for (provider, lines) in [
            ("mailgun", "smtp_relay_provider: mailgun"),
            ("ses-eu-west-1", "smtp_relay_provider: ses-eu-west-1"),
            ("mail.example.com", "smtp_relay_server: mail.example.com"),
            ("mail.example.com:465", "smtp_relay_server: mail.example.com\n    smtp_relay_port: 465"),
            ("[fd00::1]:25", "smtp_relay_server: \"[fd00::1]\"\n    smtp_relay_port: 25"),
            // No port in it.
            ("fd00::1", "smtp_relay_server: \"fd00::1\""),
        ] {
            let answers = Answers { provider: provider.to_owned(), ..Answers::default() };
            let text = answers.text("mailer", None);
            assert!(text.ends_with(&format!("  config:\n    {lines}\n")), "{text}");
        }
        let answers = Answers {
            provider: "gmail".into(),
            user: "no".into(),
            password: "x".into(),
            sender: "example.com".into(),
            listen: Some(OTHER_LISTEN),
            ..Answers::default()
        };
        let wanted = "    smtp_relay_username: \"no\"\n    smtp_relay_password_file: relay-password\n    \
                      smtp_senders: example.com\n    smtp_listen: \"0.0.0.0:1587\"\n";
        assert!(answers.text("mailer", Some(Path::new(PASSWORD))).ends_with(wanted));
    }

    #[test]
    fn values_that_yaml_would_misread_are_quoted() {
        for plain in ["mailgun", "a.b@c.example", "587", "/run/secret", "x-1"] {
            assert_eq!(scalar(plain), plain);
        }
        for text in ["yes", "No", "*", "!x", "a: b", "a #b", "@x", "", "0.0.0.0:587", "1e3"] {
            assert_eq!(scalar(text), format!("{text:?}"));
        }
    }
}
