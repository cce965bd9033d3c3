//! What is made of settings, at start and at each reload.

use std::{
    fs,
    io::{self, Write as _},
    net::{IpAddr, SocketAddr},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use secrecy::{ExposeSecret as _, SecretString};
use tracing_subscriber::{EnvFilter, reload};

use super::{StartError, passwords::Passwords};
use crate::{
    admin,
    clock::Clock,
    config::{Access, Listen, ListenTls, LogAddresses, LogFormat, LogSettings, Settings},
    delivery::{Agent, dkim::Signer},
    environment::Published,
    listener::{
        Entrance, Terms,
        allowance::Allowances,
        auth::Credentials,
        places::Most,
        policy::{Rules, Senders},
        tls::{self, Identity},
    },
    net,
    observe::{
        Observer,
        mask::{Addresses, Mask},
        output::Output,
        style::{self, Style, Styles},
    },
    runner::Orders,
    smtp::address::Mailbox,
};

/// The log, as long as this is kept.
pub(crate) struct Log {
    output: Option<Output>,
    styles: Styles,
    change: Option<Box<dyn Fn(EnvFilter) + Send + Sync>>,
}

impl Log {
    /// Says more or less, and in another form, from now on.
    pub(super) fn change(&self, settings: &LogSettings, data: &Path) {
        self.styles.store(Arc::new(style(settings, data)));
        if let Some(change) = &self.change {
            change(filter(&settings.level));
        }
    }
}

/// What was said last is still written.
impl Drop for Log {
    fn drop(&mut self) {
        if let Some(output) = &self.output {
            output.flush();
        }
    }
}

fn filter(level: &str) -> EnvFilter {
    EnvFilter::try_new(level).unwrap_or_else(|_| EnvFilter::new("info"))
}

/// Lines on standard error: people read them, and journald or a container runtime keeps them. Written by
/// a thread of its own, so that whoever stops reading them stops no mail.
pub(crate) fn start_log(settings: &LogSettings, data: &Path, observer: &Observer) -> Log {
    let colour = io::IsTerminal::is_terminal(&io::stderr());
    let journal = style::is_journal(std::env::var("JOURNAL_STREAM").ok().as_deref(), io::stderr());
    let styles = observer.styles();
    styles.store(Arc::new(style(settings, data)));
    let Ok(output) = Output::start(observer, io::stderr()) else {
        return Log { output: None, styles, change: None };
    };
    let (lines, format) = (output.clone(), style::Lines::new(Arc::clone(&styles), journal));
    // Complaints about a standard error that is closed would go to standard error, and panic there.
    let log = tracing_subscriber::fmt()
        .log_internal_errors(false)
        .with_env_filter(filter(&settings.level))
        .with_ansi(colour)
        .event_format(format)
        .with_writer(move || lines.clone())
        .with_filter_reloading();
    let handle: reload::Handle<_, _> = log.reload_handle();
    // A second start in one process (tests) keeps the first.
    let _ = log.try_init();
    let change = changing(move |filter| handle.reload(filter));
    // A panic's own words would wait for standard error where it happens.
    std::panic::set_hook(Box::new(|panic| tracing::error!("{panic}")));
    Log { output: Some(output), styles, change: Some(change) }
}

/// Another level for the log, from now on.
fn changing(
    reload: impl Fn(EnvFilter) -> Result<(), reload::Error> + Send + Sync + 'static,
) -> Box<dyn Fn(EnvFilter) + Send + Sync> {
    Box::new(move |filter| {
        if let Err(error) = reload(filter) {
            tracing::warn!(%error, "smtp_log_level can't be changed");
        }
    })
}

/// How the log looks.
fn style(settings: &LogSettings, data: &Path) -> Style {
    Style { json: settings.format == LogFormat::Json, mask: mask(settings.addresses, data) }
}

/// How the log shows addresses. Their numbers stay the same over restarts, where a key can be kept.
fn mask(addresses: LogAddresses, data: &Path) -> Mask {
    let addresses = match addresses {
        LogAddresses::Full => return Mask::default(),
        LogAddresses::Domain => Addresses::Domain,
        LogAddresses::Hash => Addresses::Hash,
    };
    let mut key: [u8; 32] =
        net::random().expect("because without randomness no password could have been made either");
    if addresses == Addresses::Hash {
        let path = data.join("log.key");
        match fs::read(&path).ok().and_then(|octets| octets.try_into().ok()) {
            Some(kept) => key = kept,
            None => {
                let mut options = fs::OpenOptions::new();
                let made = fs::DirBuilder::new().recursive(true).mode(0o750).create(data).and_then(|()| {
                    options.write(true).create(true).truncate(true).mode(0o600).open(&path)?.write_all(&key)
                });
                // There is no log yet to tell it; what is wrong with the directory the start tells.
                drop(made);
            }
        }
    }
    Mask::new(addresses, key)
}

/// The directory for everything that must survive a restart; only ours to look into.
pub(crate) fn make_data_directory(settings: &Settings) -> Result<(), StartError> {
    let path = &settings.data;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o750)
        .create(path)
        .map_err(|error| StartError::Data { path: path.clone(), error })
}

/// Our certificate, if any listener needs one.
pub(crate) fn identity(settings: &Settings) -> Result<Option<Identity>, StartError> {
    if settings.listen.iter().all(|listen| listen.tls == ListenTls::None) {
        return Ok(None);
    }
    Ok(Some(tls::load(settings.tls.as_ref(), &settings.data.join("tls"), &settings.hostname)?))
}

/// All files whose change is a change of these settings: those that were named, and those that go by custom.
pub(super) fn files(mut named: Vec<PathBuf>, settings: &Settings) -> Vec<PathBuf> {
    let tls = settings.tls.clone().unwrap_or_else(|| tls::made_in(&settings.data.join("tls")));
    named.extend([tls.cert, tls.key]);
    named.extend(settings.dkim.iter().map(|dkim| dkim.key.clone()));
    named
}

/// Logins of apps, each with its password; the first is the one that is published.
pub(crate) fn access(settings: &Settings) -> Result<Vec<(String, SecretString)>, StartError> {
    let mut logins = Vec::new();
    for user in &settings.access.users {
        let password = match &user.password {
            Some(password) => password.clone(),
            None => generated_password(&settings.data.join("smtp_password"))?,
        };
        logins.push((user.name.clone(), password));
    }
    Ok(logins)
}

/// The same with the old passwords that still work.
pub(super) fn logins(access: Vec<(String, SecretString)>, passwords: &Passwords) -> Credentials {
    Credentials::new(access).or(passwords.old())
}

/// How much logins may hand in.
pub(crate) fn allowances(settings: &Settings, old: &Allowances, clock: &Clock) -> Arc<Allowances> {
    Arc::new(Allowances::of(&settings.access.users, &limits(settings), old, clock))
}

/// Where it is remembered what was used of limits.
fn limits(settings: &Settings) -> PathBuf {
    settings.data.join("limits")
}

/// What the listener holds its clients to.
pub(crate) fn terms(
    settings: &Settings,
    credentials: Credentials,
    identity: Option<&Identity>,
    allowances: Arc<Allowances>,
) -> Terms {
    let bounds = &settings.bounds;
    let upstreams = settings.upstreams.iter().map(|upstream| upstream.connections).sum();
    let rules = Rules {
        hostname: settings.hostname.clone(),
        credentials,
        networks: settings.access.networks.clone(),
        senders: senders(&settings.access),
        message_size: bounds.message_size,
        recipients: bounds.recipients,
        recipients_of_users: Allowances::most_recipients(&settings.access.users),
        binary: bounds.binary,
        bounds: bounds.session,
        // The other half of a message's life is for bringing it to its upstream.
        hold: settings.queue.lifetime / 2,
        trace: true,
    };
    Terms {
        rules: Arc::new(rules),
        allowances,
        tls: identity.map(|identity| Arc::clone(&identity.config)),
        connections: Most {
            all: within_descriptors(bounds.connections, upstreams),
            of_one: bounds.connections_per_client,
        },
        buffered: bounds.buffered,
    }
}

/// As many clients as leave descriptors for deliveries, the queue's files and the web page.
fn within_descriptors(wanted: usize, upstream: usize) -> usize {
    let limit = net::descriptors();
    let most = clients_within(limit, upstream);
    if most < wanted {
        tracing::warn!(
            "the limit of {limit} open files leaves room for {most} clients, not for {wanted} (smtp_max_connections)"
        );
    }
    wanted.min(most)
}

/// Each client has its socket, and a file of the spool while large content of it comes.
fn clients_within(descriptors: usize, upstream: usize) -> usize {
    const KEPT: usize = 64;
    const OF_A_CLIENT: usize = 2;
    (descriptors.saturating_sub(KEPT + upstream + admin::places(descriptors)) / OF_A_CLIENT).max(1)
}

fn senders(access: &Access) -> Senders {
    let of_users = access.users.iter().filter_map(|user| Some((user.name.clone(), user.senders.clone()?)));
    Senders { of_all: access.senders.clone(), of_users: of_users.collect() }
}

/// What holds for the clients of one address.
pub(crate) fn entrance(listen: &Listen) -> Entrance {
    Entrance { tls: listen.tls, login_required: listen.login_required, proxies: listen.proxies.clone() }
}

/// What the runner goes by. Agents are kept, with their TLS sessions, where connections of theirs are as
/// good as new ones.
pub(crate) fn orders(settings: &Settings, old: &[Agent], clock: &Clock) -> Result<Orders, StartError> {
    let signers: Arc<[Signer]> = settings.dkim.iter().map(Signer::load).collect::<Result<_, _>>()?;
    let agents = settings.upstreams.iter().map(|upstream| {
        let kept = old.iter().find_map(|agent| agent.with(upstream, &settings.hostname));
        let made = || Agent::new(upstream.clone(), &settings.hostname, clock.clone());
        Ok::<_, StartError>(kept.map_or_else(made, Ok)?.signing(&signers))
    });
    Ok(Orders {
        agents: agents.collect::<Result<_, _>>()?,
        data: settings.data.clone(),
        queue: settings.queue.clone(),
        hostname: settings.hostname.clone(),
        postmaster: settings.postmaster.as_deref().and_then(|address| Mailbox::parse(address).ok()),
        breaker_bounces: settings.breaker_bounces,
    })
}

/// What apps are told.
pub(crate) fn published(
    settings: &Settings,
    bound: SocketAddr,
    identity: Option<&Identity>,
    access: &[(String, SecretString)],
) -> Published {
    // What apps may want to know of several upstreams is what holds for the first.
    let upstream = settings.upstreams.first();
    let login = upstream.and_then(|upstream| upstream.login.as_ref());
    let limits: Vec<String> =
        upstream.iter().flat_map(|upstream| &upstream.limits).map(ToString::to_string).collect();
    let first = access.first().cloned().unwrap_or_else(|| (String::new(), SecretString::from("")));
    // Apps elsewhere can't reach a Unix socket.
    let tls = match settings.listen.iter().find(|listen| !listen.is_unix()).map(|listen| listen.tls) {
        Some(ListenTls::StartTls) => "starttls",
        Some(ListenTls::Implicit) => "implicit",
        Some(ListenTls::None) | None => "none",
    };
    Published {
        service: settings.service.clone(),
        host: settings.environment.public_host.clone().unwrap_or_else(|| host(settings, bound)),
        port: bound.port(),
        login: first.0,
        password: first.1,
        tls,
        fingerprint: identity.filter(|_| tls != "none").map(|identity| identity.fingerprint.clone()),
        relay_server: upstream.map(|upstream| upstream.server.clone()).unwrap_or_default(),
        relay_port: upstream.map_or(0, |upstream| upstream.port),
        relay_username: login.map(|login| login.username.clone()),
        relay_password: login
            .filter(|login| settings.environment.relay_password && login.oauth.is_none())
            .map(|login| login.password.clone()),
        rate_limit: (!limits.is_empty()).then(|| limits.join(",")),
        max_message_size: settings.bounds.message_size,
        max_recipients: settings.bounds.recipients,
    }
}

/// Leaves in force what waits for the next start, and gives the keys that were changed: those of which
/// [`crate::config::KEYS`] says so.
pub(crate) fn leave_until_restart(old: &Settings, new: &mut Settings) -> Vec<&'static str> {
    let mut waiting = Vec::new();
    let mut leave = |key, changed| {
        if changed {
            waiting.push(key)
        }
    };
    leave("smtp_queue", old.queue.directory != new.queue.directory);
    new.queue.directory.clone_from(&old.queue.directory);
    waiting
}

/// An address that another container can reach: the one that was bound, or our name.
fn host(settings: &Settings, bound: SocketAddr) -> String {
    match bound.ip() {
        any if any.is_unspecified() => settings.hostname.clone(),
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => address.to_string(),
    }
}

/// Reads the password that was generated at first start, or generates it.
fn generated_password(path: &Path) -> Result<SecretString, StartError> {
    let fail = |error| StartError::Data { path: path.to_owned(), error };
    match fs::read_to_string(path) {
        Ok(kept) if !kept.trim().is_empty() => return Ok(SecretString::from(kept.trim().to_owned())),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(fail(error)),
    }
    let password = random_password().map_err(fail)?;
    // Written beside and renamed: a crash leaves the old state or the new, never half a password.
    let beside = path.with_extension("new");
    let write = || {
        let mut file =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
        writeln!(file, "{}", password.expose_secret())?;
        file.sync_all()?;
        fs::rename(&beside, path)
    };
    write().map_err(fail)?;
    Ok(password)
}

/// 24 characters that need no escaping in a URL, a shell or a YAML file: 142 bits.
pub(crate) fn random_password() -> io::Result<SecretString> {
    const LETTERS: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
    let mut password = String::new();
    while password.len() < 24 {
        let [octet] = net::random()?;
        // Beyond the last whole multiple some letters would be likelier than others.
        if octet < 248 {
            password.push(char::from(LETTERS[usize::from(octet) % LETTERS.len()]));
        }
    }
    Ok(SecretString::from(password))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_client_can_have_a_file_beside_its_socket_and_deliveries_go_on() {
        assert_eq!(clients_within(65_536, 10), 32_475);
        assert_eq!(clients_within(1_024, 20), 406);
        assert_eq!(clients_within(50, 20), 1, "one at least");
    }
}
