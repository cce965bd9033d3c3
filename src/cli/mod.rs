//! What operators type: one file a command.
//!
//! Commands that look at a running relay ask it over the Unix socket in its data directory and
//! print what it says; none touches its files. Exit codes follow sysexits(3), words go to standard
//! error, results to standard output.

mod check;
mod check_status;
mod client;
mod completions;
mod dkim;
mod env;
mod exit;
mod handover;
mod health;
mod info;
mod init;
mod login;
mod logs;
mod man;
mod output;
mod presets;
mod queue;
mod relay;
mod reload;
mod schema;
mod send;
mod sendmail;
mod status;
mod stopped;
mod style;
mod top;

use std::{
    ffi::OsString,
    net::SocketAddr,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Args, Parser, Subcommand};

pub use self::exit::{Exit, Failure};
use crate::{
    admin,
    config::{self, Loaded, Source},
    service::{self, dev},
};

/// The mail relay for people who run containers.
#[derive(Debug, Parser)]
#[command(name = "outpost", version, arg_required_else_help = true, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    place: Place,
    #[command(subcommand)]
    command: Command,
}

/// How every command finds the relay.
#[derive(Clone, Debug, Args)]
struct Place {
    /// The dotcloud.yml [default: ./dotcloud.yml, then /etc/outpost/dotcloud.yml]
    #[arg(short = 'f', long = "config", value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    /// The service in it [default: the only one of type: smtp]
    #[arg(long, value_name = "NAME", global = true)]
    service: Option<String>,
    /// The directory for everything that must survive a restart
    #[arg(long, value_name = "DIR", global = true)]
    data: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the relay
    Serve,
    /// Try it without any configuration: a relay with an upstream built in that keeps what it gets
    Dev(Dev),
    /// Write a dotcloud.yml from four answers
    Init(init::Init),
    /// Say what is wrong with the configuration
    Check(check::Check),
    /// Show what is known of providers
    Presets(presets::Presets),
    /// Show the parameters that apps need
    Info(info::Info),
    /// Print the DNS records of the keys that sign mail, and make the keys that are missing
    Dkim(dkim::Dkim),
    /// Get a user's consent to send mail by access tokens, with a code typed on another device
    Login(login::Login),
    /// Print what is published in environment.json
    Env(env::Env),
    /// Say how the relay is
    Status(status::Status),
    /// Say whether new mail is taken; fails with the reason if not, for health checks of containers
    Health,
    /// Watch the relay work, on a terminal
    Top(top::Top),
    /// Look at and act on queued mail
    #[command(subcommand)]
    Queue(queue::Queue),
    /// Show what happened to each message, also after it left
    Logs(logs::Logs),
    /// Send a test message through the running relay
    Send(send::Send),
    /// Take a mail from standard input, as sendmail(1) does
    Sendmail(sendmail::Sendmail),
    /// Make the running relay read its configuration again
    Reload,
    /// Print a JSON Schema of dotcloud.yml, by which editors complete and check it
    Schema,
    /// Print a script by which a shell completes commands and options
    Completions(completions::Completions),
    /// Print the manual page, or write all of them
    Man(man::Man),
}

#[derive(Debug, Args)]
struct Dev {
    /// Where to take mail
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:1025")]
    smtp: SocketAddr,
    /// Where to show the web page
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8025")]
    admin: SocketAddr,
}

/// Runs the command that the arguments name.
pub fn main(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let (arguments, sendmails) = sendmail::apart(arguments.collect());
    let mut cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        // Help and version are no errors, and clap knows where each belongs.
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { Exit::USAGE } else { Exit::OK }.into();
        }
    };
    if let Command::Sendmail(sendmail) = &mut cli.command {
        sendmail.arguments = sendmails;
    }
    match run(cli) {
        Ok(exit) => exit.into(),
        Err(failure) => {
            match failure.exit {
                // File, line and column stand first, so that editors can jump there.
                Exit::CONFIG => output::complain_as_is(&failure.words),
                _ => output::complain(&failure.words),
            }
            failure.exit.into()
        }
    }
}

fn run(cli: Cli) -> Result<Exit, Failure> {
    let place = cli.place;
    match cli.command {
        Command::Serve => service::serve(place.load()?, place.source())?,
        Command::Dev(wanted) => {
            let options = dev::Options { smtp: wanted.smtp, admin: wanted.admin, data: place.named_data() };
            dev::dev(&options, |line| output::say(line))?;
        }
        Command::Init(init) => return init.run(&place),
        Command::Check(check) => return check.run(&place),
        Command::Presets(presets) => presets.run()?,
        Command::Info(info) => info.run(&place)?,
        Command::Dkim(dkim) => dkim.run(&place)?,
        Command::Login(login) => login.run(&place)?,
        Command::Env(env) => env.run(&place)?,
        Command::Status(status) => return status.run(&place),
        Command::Health => health::run(&place)?,
        Command::Top(top) => top.run(&place)?,
        Command::Logs(logs) => logs.run(&place)?,
        Command::Queue(queue) => queue.run(&place)?,
        Command::Send(send) => return send.run(&place),
        Command::Sendmail(sendmail) => return sendmail.run(place),
        Command::Reload => reload::run(&place)?,
        Command::Schema => schema::run(),
        Command::Completions(completions) => completions.run(),
        Command::Man(man) => man.run()?,
    }
    Ok(Exit::OK)
}

impl Place {
    fn source(&self) -> Source {
        Source { file: self.config.clone(), service: self.service.clone(), data: self.data.clone() }
    }

    /// The configuration.
    fn load(&self) -> Result<Loaded, Failure> {
        Ok(self.read()?)
    }

    /// The file that was named.
    fn named_file(&self) -> Option<PathBuf> {
        let variable =
            || std::env::var_os("OUTPOST_CONFIG").filter(|path| !path.is_empty()).map(PathBuf::from);
        self.config.clone().or_else(variable)
    }

    /// The configuration, or all that is wrong with it.
    fn read(&self) -> Result<Loaded, config::Problems> {
        config::load(&self.source(), &|name| std::env::var(name).ok())
    }

    /// The data directory, where it was named.
    fn named_data(&self) -> Option<PathBuf> {
        let variable = || std::env::var_os("OUTPOST_DATA").filter(|path| !path.is_empty()).map(PathBuf::from);
        self.data.clone().or_else(variable)
    }

    /// The data directory. Without any, local mode's is meant, if it is there.
    fn data(&self) -> Result<PathBuf, Failure> {
        self.told_data().or_else(|problems| self.local_mode().ok_or(problems))
    }

    /// The data directory that was named or that the configuration tells of. Where it was named no
    /// configuration is needed, so that a relay can be looked at while its file is broken.
    fn told_data(&self) -> Result<PathBuf, Failure> {
        match self.named_data() {
            Some(data) => Ok(data),
            None => Ok(self.load()?.settings.data),
        }
    }

    /// Local mode's directory, where one is and nothing names another. It may be long stopped.
    fn local_mode(&self) -> Option<PathBuf> {
        let data = dev::default_data();
        (self.names_nothing() && is_ours(&data)).then_some(data)
    }

    /// Whether a certain relay is meant, rather than the one that is found.
    fn is_named(&self) -> bool {
        let variable = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        self.config.is_some() || self.named_data().is_some() || variable("OUTPOST_CONFIG")
    }

    /// The queue's directory, for what can be read of it while no relay runs.
    fn queue(&self) -> Result<PathBuf, Failure> {
        match self.load() {
            Ok(loaded) => Ok(loaded.settings.queue.directory),
            Err(_) => Ok(self.data()?.join("queue")),
        }
    }

    fn names_nothing(&self) -> bool {
        let named =
            self.config.is_some() || self.service.is_some() || std::env::var_os("OUTPOST_CONFIG").is_some();
        !named && !Path::new("dotcloud.yml").exists()
    }
}

/// Anybody could put a directory of that name where local mode has its own.
fn is_ours(data: &Path) -> bool {
    let socket = std::fs::symlink_metadata(data.join(admin::SOCKET));
    socket.is_ok_and(|socket| socket.uid() == rustix::process::getuid().as_raw())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commands_are_well_formed() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
    }

    #[test]
    fn the_relay_is_found_by_options_behind_any_command() {
        for line in ["outpost queue list --json -f/x --data=/d", "outpost -f /x --data /d queue list --json"]
        {
            let cli = Cli::try_parse_from(line.split(' ')).expect(line);
            assert_eq!(cli.place.source().file, Some("/x".into()));
            assert_eq!(cli.place.data().expect("named"), PathBuf::from("/d"));
        }
    }
}
