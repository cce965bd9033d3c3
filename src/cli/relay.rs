//! How a command that brings mail finds the relay.
//!
//! Mail goes the way that apps take, over SMTP; the client is the one that `delivery` has, with its
//! pinned certificates and its bounds. The places that are looked at,
//! in this order:
//!
//! 1. the data directory, found as every command finds it: the running relay is asked, else its
//!    `environment.json` is read;
//! 2. `DOTCLOUD_<SERVICE>_SMTP_*` in the environment, then in `/home/dotcloud/environment.json`: an
//!    app's container has no relay of its own;
//! 3. what the configuration says of the listener, for users who may read it but not the data;
//! 4. local mode, while it runs: one that was stopped, or that crashed, leaves its directory behind;
//! 5. ports 25 and 587 of this machine.
//!
//! Where the relay was named, nothing but the first counts: mail never takes another way than its
//! sender meant.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
};

use serde_json::json;

use super::{
    Place,
    client::Client,
    env,
    exit::{Exit, Failure},
    handover::{Session, words},
};
use crate::{
    admin::{Info, ListenInfo},
    clock::Clock,
    config::{self, ListenTls, Loaded, Settings, Source},
    delivery::{Agent, Trouble},
    environment,
    mail::outcome::Scope,
};

/// Where dotCloud's containers had it.
const WELL_KNOWN: &str = "/home/dotcloud/environment.json";
/// For each phase; the relay is near, but its disk may be busy.
const WITHIN: &str = "2m";

/// The relay, or the few places where it may be, in the order to try.
pub(super) struct Relay {
    targets: Vec<Target>,
    /// What it calls itself, where that is known; else this machine's name.
    pub(super) hostname: String,
}

/// One place where it may be.
struct Target {
    agent: Agent,
    /// What told of it, for people.
    told_by: String,
    max_message_size: Option<u64>,
}

/// What is known of a place, before it is made usable. It holds a password, so it has no debug form.
#[derive(Default)]
struct Known {
    host: String,
    port: String,
    tls: Option<String>,
    fingerprint: Option<String>,
    login: Option<(String, String)>,
    max_message_size: Option<u64>,
}

impl Relay {
    /// Looks for it. Whether it takes mail shows when it is connected to.
    pub(super) fn find(place: &Place) -> Result<Self, Failure> {
        let loaded = place.load();
        let settings = loaded.as_ref().ok().map(|loaded| &loaded.settings);
        let data = place.told_data();
        if let Ok(data) = &data {
            if let Some(relay) = Self::running(data)? {
                return Ok(relay);
            }
            let default = data.join("environment.json");
            let files = settings.map_or(vec![default], |settings| settings.environment.files.clone());
            let service = settings.map(|settings| settings.service.as_str());
            for file in &files {
                if let Some(known) = published_in(file, service.or(place.service.as_deref()))? {
                    let hostname = settings.map(|settings| settings.hostname.as_str());
                    return Self::of(vec![(known, file.display().to_string())], hostname);
                }
            }
        }
        if place.is_named() {
            return match (data, loaded) {
                // Its listener is known, though its data can't be read.
                (Ok(_), Ok(loaded)) => Self::of(listeners(&loaded), Some(&loaded.settings.hostname)),
                (Ok(data), Err(_)) => Err(Failure::new(
                    Exit::TRY_AGAIN,
                    format!("no relay has ever run in {}, or it can't be read by this user", data.display()),
                )),
                (Err(problems), _) => Err(problems),
            };
        }
        let variables: Vec<(String, String)> = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        let service = place.service.as_deref();
        if let Some(known) = published(&variables, service, "the environment")? {
            return Self::of(vec![(known, "DOTCLOUD_ variables".to_owned())], None);
        }
        if let Some(known) = published_in(Path::new(WELL_KNOWN), service)? {
            return Self::of(vec![(known, WELL_KNOWN.to_owned())], None);
        }
        if let Ok(loaded) = &loaded {
            return Self::of(listeners(loaded), Some(&loaded.settings.hostname));
        }
        if let Some(data) = place.local_mode()
            && let Some(relay) = Self::running(&data)?
        {
            return Ok(relay);
        }
        let usual = |port: &str| (Known::local("127.0.0.1", port), "nothing names a relay here".to_owned());
        Self::of(vec![usual("25"), usual("587")], None)
    }

    /// What the relay of this data directory says of itself; `None` if it does not answer.
    fn running(data: &Path) -> Result<Option<Self>, Failure> {
        let asked = Client::at(data.to_owned()).and_then(|relay| relay.get::<Info>("/api/v1/info"));
        let Ok(info) = asked else { return Ok(None) };
        let known = (of_info(&info)?, format!("{} asked", data.display()));
        Self::of(vec![known], Some(&info.hostname)).map(Some)
    }

    fn of(known: Vec<(Known, String)>, hostname: Option<&str>) -> Result<Self, Failure> {
        if known.is_empty() {
            let words =
                "the relay takes mail over implicit TLS only, and this user can't read its certificate";
            return Err(Failure::new(Exit::NOT_PERMITTED, words));
        }
        let mut targets = Vec::new();
        let mut own_name = hostname.map(str::to_owned);
        for (known, told_by) in known {
            let settings = known.settings(&told_by)?;
            let hostname = own_name.get_or_insert(settings.hostname);
            let max_message_size = known.max_message_size;
            // One upstream was written down in `settings()`: the relay.
            for upstream in settings.upstreams {
                let agent = Agent::new(upstream, hostname, Clock::System)
                    .map_err(|fault| Failure::new(Exit::CONFIG, format!("{told_by}: {fault}")))?;
                targets.push(Target { agent, told_by: told_by.clone(), max_message_size });
            }
        }
        let hostname = own_name.unwrap_or_else(|| "localhost".to_owned());
        Ok(Self { targets, hostname })
    }

    /// Octets of the largest message that it takes, where that is known.
    pub(super) fn max_message_size(&self) -> Option<u64> {
        self.targets.iter().find_map(|target| target.max_message_size)
    }

    /// Connects and logs in at the first place where somebody answers.
    pub(super) fn open(&self) -> Result<Session, Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| Failure::new(Exit::TRY_AGAIN, error))?;
        let mut in_vain = Vec::new();
        let mut exit = Exit::TRY_AGAIN;
        for target in &self.targets {
            match runtime.block_on(target.agent.open(|_| {})) {
                Ok(client) => {
                    return Ok(Session::new(self.hostname.clone(), runtime, client));
                }
                Err(trouble) => {
                    let refused = trouble.evidence.reply.as_ref().is_none_or(|reply| reply.code() >= 500);
                    if refused && trouble.evidence.scope == Scope::Credential {
                        exit = Exit::NOT_PERMITTED;
                    }
                    in_vain.push(target.explain(&trouble));
                }
            }
        }
        let help = "it is not kept: hand it in again once the relay runs (`outpost serve`), or name the relay \
                    by OUTPOST_CONFIG, OUTPOST_DATA or DOTCLOUD_<SERVICE>_SMTP_HOST";
        Err(Failure::new(exit, format!("the mail was not sent: {}\n  help: {help}", in_vain.join("; "))))
    }
}

impl Target {
    fn explain(&self, trouble: &Trouble) -> String {
        let upstream = self.agent.upstream();
        let place = format!("{}:{}", upstream.server, upstream.port);
        format!("the relay at {place} ({}): {}", self.told_by, words(&trouble.evidence))
    }
}

impl Known {
    /// A place on this machine: nobody can listen in, and no login is asked for.
    fn local(host: &str, port: &str) -> Self {
        Self { host: host.to_owned(), port: port.to_owned(), tls: Some("none".to_owned()), ..Self::default() }
    }

    fn is_loopback(&self) -> bool {
        self.host.eq_ignore_ascii_case("localhost")
            || self.host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    }

    /// The settings of somebody whose upstream it is.
    fn settings(&self, told_by: &str) -> Result<Settings, Failure> {
        let local = self.is_loopback();
        let usual = if self.port == "465" { "implicit" } else { "starttls" };
        let tls = self.tls.as_deref().unwrap_or(if local { "opportunistic" } else { usual });
        let mut keys = json!({
            "smtp_relay_server": self.host,
            "smtp_relay_port": self.port,
            "smtp_relay_tls": tls,
            "smtp_relay_timeout": WITHIN,
            // Nobody hands mail to somebody who only hands it in: the relay would seem to be its own upstream.
            "smtp_listen": "unix:/nowhere",
        });
        if let Some(fingerprint) = &self.fingerprint
            && tls != "none"
        {
            keys["smtp_relay_tls_fingerprint"] = fingerprint.as_str().into();
        }
        if let Some((user, password)) = &self.login {
            keys["smtp_relay_username"] = user.as_str().into();
            keys["smtp_relay_password"] = password.as_str().into();
            // Within this machine nobody listens in.
            if local && matches!(tls, "none" | "opportunistic") {
                keys["smtp_relay_allow_insecure_auth"] = true.into();
            }
        }
        // JSON is YAML. The directory is named so that none is looked for; none is used.
        let text = json!({ "relay": { "type": "smtp", "config": keys } }).to_string();
        let source = Source { data: Some("/".into()), ..Source::default() };
        Ok(config::parse(&text, told_by, &source, &|_| None)?.settings)
    }
}

/// What a running relay says of itself.
fn of_info(info: &Info) -> Result<Known, Failure> {
    let in_clear = |listen: &&ListenInfo| listen.tls != "implicit";
    let by_tcp = || info.listen.iter().filter(|listen| !is_socket(&listen.address));
    let passed = || info.listen.iter().find(|listen| listen.address.starts_with("fd:") && info.port != 0);
    let listen = by_tcp().find(in_clear).or_else(|| by_tcp().next()).or_else(passed);
    let nowhere = || Failure::new(Exit::UNAVAILABLE, "the relay listens on no TCP port");
    let listen = listen.ok_or_else(nowhere)?;
    let (host, port) = match is_socket(&listen.address) {
        // Its name says nothing; what apps are told is the port of the first.
        true => ("127.0.0.1".to_owned(), info.port.to_string()),
        false => reachable(&listen.address),
    };
    let tls = Some(listen.tls.clone());
    let password = info.published("PASSWORD").map(str::to_owned);
    let login = password.map(|password| (info.login.clone(), password));
    let (fingerprint, max_message_size) = (info.tls_fingerprint.clone(), Some(info.max_message_size));
    Ok(Known { host, port, tls, fingerprint, login, max_message_size })
}

/// What a configuration says of the listeners that begin in clear. The certificate and the apps'
/// password are in the data directory, which could not be read: loopback needs neither.
fn listeners(loaded: &Loaded) -> Vec<(Known, String)> {
    let file = loaded.file.as_deref().unwrap_or(Path::new("environment variables")).display().to_string();
    let by_tcp = loaded.settings.listen.iter().filter(|listen| !is_socket(&listen.address));
    let in_clear = by_tcp.filter(|listen| listen.tls != ListenTls::Implicit);
    let known = in_clear.map(|listen| {
        let (host, port) = reachable(&listen.address);
        let max_message_size = Some(loaded.settings.bounds.message_size);
        (Known { max_message_size, ..Known::local(&host, &port) }, file.clone())
    });
    known.collect()
}

/// Whether a listener is a Unix socket, which is not for this client.
fn is_socket(address: &str) -> bool {
    address.starts_with("unix:") || address.starts_with("fd:")
}

/// Host and port of a listener's address; one that listens everywhere is reached by loopback.
fn reachable(address: &str) -> (String, String) {
    let everywhere = |address: &SocketAddr| address.ip().is_unspecified();
    match address.parse::<SocketAddr>() {
        Ok(address) if everywhere(&address) && address.is_ipv4() => {
            ("127.0.0.1".into(), address.port().to_string())
        }
        Ok(address) if everywhere(&address) => ("::1".into(), address.port().to_string()),
        Ok(address) => (address.ip().to_string(), address.port().to_string()),
        Err(_) => {
            let (host, port) = address.rsplit_once(':').unwrap_or((address, "25"));
            (host.to_owned(), port.to_owned())
        }
    }
}

fn published_in(file: &Path, service: Option<&str>) -> Result<Option<Known>, Failure> {
    env::read(file).map_or(Ok(None), |entries| published(&entries, service, &file.display().to_string()))
}

/// The relay that `DOTCLOUD_*_SMTP_*` entries tell of: the service's, the only one, or the only one
/// of this machine, which is the app's own local MTA.
fn published(
    entries: &[(String, String)],
    service: Option<&str>,
    place: &str,
) -> Result<Option<Known>, Failure> {
    let get = |name: String| entries.iter().find(|(found, _)| *found == name).map(|(_, value)| value.clone());
    let read = |prefix: &str| -> Option<Known> {
        let of = |name: &str| get(format!("{prefix}{name}")).filter(|value| !value.is_empty());
        Some(Known {
            host: of("HOST")?,
            port: of("PORT").unwrap_or_else(|| "587".to_owned()),
            tls: of("TLS"),
            fingerprint: of("TLS_FINGERPRINT"),
            login: of("LOGIN").zip(of("PASSWORD")),
            max_message_size: of("MAX_MESSAGE_SIZE").and_then(|size| size.parse().ok()),
        })
    };
    if let Some(service) = service {
        return Ok(read(&environment::prefix(service)));
    }
    let prefixes = entries.iter().filter_map(|(name, _)| {
        let prefix = name.strip_suffix("HOST")?;
        (prefix.starts_with("DOTCLOUD_") && prefix.ends_with("_SMTP_")).then_some(prefix)
    });
    let mut found: Vec<(&str, Known)> = prefixes.filter_map(|prefix| Some((prefix, read(prefix)?))).collect();
    if found.len() > 1 && found.iter().filter(|(_, known)| known.is_loopback()).count() == 1 {
        found.retain(|(_, known)| known.is_loopback());
    }
    if found.len() > 1 {
        let names: Vec<String> = found.iter().map(|(prefix, _)| format!("{prefix}HOST")).collect();
        let words = format!(
            "{place} tells of several relays ({}): name one, as in `outpost --service mailer sendmail`",
            names.join(", ")
        );
        return Err(Failure::new(Exit::CONFIG, words));
    }
    Ok(found.pop().map(|(_, known)| known))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relay_on_the_usual_ports_can_be_handed_mail_on_its_own_machine() {
        for port in ["25", "587", "465"] {
            let settings = Known::local("127.0.0.1", port).settings("a test").expect("it is right");
            assert_eq!(settings.upstreams[0].port.to_string(), port);
        }
    }
}
