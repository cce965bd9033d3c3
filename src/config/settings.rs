//! From keys to [`Settings`]: defaults, and what one key demands of another.
//!
//! Listener and upstream, the two ends, have files of their own.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    time::Duration,
};

use super::{
    Access, AdminSettings, Dkim, DkimAlgorithm, EnvironmentSettings, HistorySettings, QueueSettings,
    Settings, Waits,
    keys::{self, key},
    listener,
    node::Kind,
    reader::{Reader, Value},
    services::Chosen,
    told,
    upstream::upstreams,
    value::{self, Wrong},
};

const DAY: Duration = Duration::from_secs(86_400);
const HOUR: Duration = Duration::from_secs(3600);
pub(super) const MINUTE: Duration = Duration::from_secs(60);

/// Reads every key. Worth nothing when the reader has problems afterwards.
pub(super) fn settings(reader: &mut Reader<'_>, service: &Chosen, data: &Path) -> Settings {
    let environment = environment(reader, data);
    let networks = listener::networks(reader);
    let bounds = listener::bounds(reader);
    let mut upstreams = upstreams(reader, &environment.files);
    for upstream in &mut upstreams {
        if let Some(oauth) = upstream.login.as_mut().and_then(|login| login.oauth.as_mut()) {
            oauth.kept = data.join(format!("oauth-{}.json", upstream.name));
        }
        if let Some(size) = upstream.message_size.filter(|size| *size < bounds.message_size) {
            let key = key!("smtp_max_message_size");
            let message = format!(
                "{} takes messages of {size} octets at most, and larger ones come back",
                upstream.name
            );
            let help = format!("set {} to {size}, so that apps are told at once", key.name);
            reader.warn(reader.place(key), message, Some(&help));
        }
    }
    Settings {
        service: service.name.clone(),
        role: service.role,
        hostname: reader.one(key!("smtp_hostname"), value::domain).unwrap_or_else(system_name),
        data: data.to_owned(),
        listen: listener::listen(reader, &networks),
        tls: listener::listener_tls(reader),
        access: Access {
            users: listener::users(reader),
            password_grace: reader.one(key!("smtp_password_grace"), value::duration),
            networks,
            senders: listener::senders(reader),
        },
        bounds,
        upstreams,
        queue: queue(reader, data),
        environment,
        admin: admin(reader),
        dkim: dkim(reader, data),
        breaker_bounces: reader.one(key!("smtp_breaker_bounces"), value::number(1..=1000)).unwrap_or(10),
        postmaster: reader.one(key!("smtp_postmaster"), value::mail_address),
        log: told::log(reader),
        webhooks: told::webhooks(reader),
    }
}

/// The system's name for itself, if it is one that mail can carry.
fn system_name() -> String {
    let system = rustix::system::uname();
    let name = system.nodename().to_str().map(value::domain);
    name.ok().and_then(Result::ok).unwrap_or_else(|| "localhost".to_owned())
}

fn queue(reader: &mut Reader<'_>, data: &Path) -> QueueSettings {
    let place = reader.place(key!("smtp_queue"));
    let directory = reader.one(key!("smtp_queue"), value::queue_directory);
    let history = HistorySettings::default();
    QueueSettings {
        directory: directory.map_or_else(|| data.join("queue"), |path| reader.resolve(&place, path)),
        lifetime: reader.one(key!("smtp_queue_lifetime"), value::duration).unwrap_or(5 * DAY),
        delay_warning: reader
            .one(key!("smtp_delay_warning"), value::duration_or_never)
            .unwrap_or(Some(4 * HOUR)),
        retry: reader.one(key!("smtp_retry"), value::waits).unwrap_or(Waits { first: MINUTE, longest: HOUR }),
        max_messages: reader.one(key!("smtp_queue_max_messages"), value::number(1..=u64::MAX)),
        max_bytes: reader.one(key!("smtp_queue_max_bytes"), value::positive_size),
        min_free: reader.one(key!("smtp_queue_min_free"), value::size).unwrap_or(100_000_000),
        history: HistorySettings {
            age: reader.one(key!("smtp_history_age"), value::duration).unwrap_or(history.age),
            events: reader
                .one(key!("smtp_history_events"), value::number(1..=1_000_000_000))
                .unwrap_or(history.events),
        },
    }
}

/// The keys that sign mail: one map or several.
fn dkim(reader: &mut Reader<'_>, data: &Path) -> Vec<Dkim> {
    let key = key!("smtp_dkim");
    if !reader.is_set(key) {
        return Vec::new();
    }
    let mut keys: Vec<Dkim> = Vec::new();
    for item in reader.items(key).unwrap_or_default() {
        let map = match item.value {
            Value::Node(id) if matches!(reader.around.document.node(id).kind, Kind::Map(_)) => id,
            _ => {
                reader.read(key, &item, &|_| Err::<(), _>(Wrong::Plain));
                continue;
            }
        };
        let mut inner = reader.inside(map, keys::DKIM, "smtp_dkim");
        let domain = key!(keys::DKIM, "domain");
        if !inner.is_set(domain) {
            inner.report(
                item.place.clone(),
                "this key has no domain",
                Some("for example `domain: example.com`"),
            );
        }
        let domain = inner.one(domain, value::domain).unwrap_or_default();
        let selector = inner.one(key!(keys::DKIM, "selector"), value::domain);
        let selector = selector.unwrap_or_else(|| "outpost".to_owned());
        let file = data.join("dkim").join(format!("{selector}.{domain}.pem"));
        let file = inner.path(key!(keys::DKIM, "key")).unwrap_or(file);
        let algorithm = inner.one(key!(keys::DKIM, "algorithm"), value::dkim_algorithm);
        reader.absorb(inner);
        let algorithm = algorithm.unwrap_or(DkimAlgorithm::Rsa);
        if keys.iter().any(|other| (&other.domain, &other.selector) == (&domain, &selector)) {
            let help = "give each key of a domain a selector of its own";
            reader.report(item.place, format!("{selector} is there twice for {domain}"), Some(help));
        }
        keys.push(Dkim { domain, selector, key: file, algorithm });
    }
    keys
}

fn environment(reader: &mut Reader<'_>, data: &Path) -> EnvironmentSettings {
    let key = key!("smtp_environment_file");
    let place = reader.place(key);
    let files = reader.many(key, value::environment_file);
    let default = || ["environment.json", "environment.yaml"].map(|name| data.join(name)).to_vec();
    EnvironmentSettings {
        files: files.map_or_else(default, |files| {
            files.into_iter().map(|path| reader.resolve(&place, path)).collect()
        }),
        public_host: reader.one(key!("smtp_public_host"), value::host),
        relay_password: reader.one(key!("smtp_publish_relay_password"), value::boolean).unwrap_or(false),
    }
}

fn admin(reader: &mut Reader<'_>) -> AdminSettings {
    let key = key!("smtp_admin_listen");
    let listen = reader.one(key, value::socket_address);
    let listen = listen.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 8025)));
    let password = reader.secret(key!("smtp_admin_password"));
    let loopback = match listen.ip() {
        IpAddr::V6(ip) => ip.to_canonical().is_loopback(),
        ip => ip.is_loopback(),
    };
    if !loopback && !reader.is_set(key!("smtp_admin_password")) {
        let help = "set smtp_admin_password, or listen on 127.0.0.1:8025";
        reader.report(reader.place(key), "the web page needs a password to listen there", Some(help));
    }
    AdminSettings { listen, password }
}
