//! The listener's settings: where, for whom, how much.

use super::{
    Bounds, Listen, ListenTls, ListenerTls, Role, SessionBounds, User,
    keys::{self, key},
    limit::limit,
    node::Kind,
    reader::{Found, MAX_ITEMS, Place, Reader, Value},
    value::{self, Proxies},
};
use ipnet::IpNet;

use crate::smtp::pattern::AddressPattern;

pub(super) fn listen(reader: &mut Reader<'_>, trusted: &[IpNet]) -> Vec<Listen> {
    let default = match reader.around.role {
        Role::Relay => "0.0.0.0:587",
        Role::LocalMta => "127.0.0.1:25",
    };
    let Some(items) = reader.items(key!("smtp_listen")) else {
        return vec![Listen::at(default)];
    };
    items.iter().filter_map(|item| listener(reader, item, trusted)).collect()
}

fn listener(reader: &mut Reader<'_>, item: &Found, trusted: &[IpNet]) -> Option<Listen> {
    let map = match item.value {
        Value::Node(id) if matches!(reader.around.document.node(id).kind, Kind::Map(_)) => id,
        _ => {
            let address = reader.read(key!("smtp_listen"), item, &value::listen_address)?;
            return Some(Listen::at(address));
        }
    };
    let mut inner = reader.inside(map, keys::LISTENER, "a listener");
    let address = key!(keys::LISTENER, "address");
    if !inner.is_set(address) {
        inner.report(
            inner.place(address),
            "this listener has no address",
            Some("for example `address: 0.0.0.0:465`"),
        );
    }
    let address = inner.one(address, value::listen_address);
    let tls = inner.one(key!(keys::LISTENER, "tls"), value::listen_tls).unwrap_or(ListenTls::StartTls);
    let login_required = inner.one(key!(keys::LISTENER, "auth"), value::listen_auth).unwrap_or(false);
    let proxies = inner.many(key!(keys::LISTENER, "proxy_protocol"), value::proxies).unwrap_or_default();
    let proxies = proxies.into_iter().flat_map(|named| match named {
        Proxies::Nobody => Vec::new(),
        // Whoever may relay without a login gains nothing by claiming to be somebody else.
        Proxies::Trusted => trusted.to_vec(),
        Proxies::Network(network) => vec![network],
    });
    let proxies = proxies.collect();
    reader.absorb(inner);
    Some(Listen { address: address?, tls, login_required, proxies })
}

pub(super) fn listener_tls(reader: &mut Reader<'_>) -> Option<ListenerTls> {
    let (cert_key, key_key) = (key!("smtp_tls_cert"), key!("smtp_tls_key"));
    let (cert, key) = (reader.path(cert_key), reader.path(key_key));
    for (there, missing) in [(cert_key, key_key), (key_key, cert_key)] {
        if reader.is_set(there) && !reader.is_set(missing) {
            let message = format!("{} without {}", there.name, missing.name);
            let help = "set both, or neither for a self-signed certificate";
            reader.report(reader.place(there), message, Some(help));
        }
    }
    Some(ListenerTls { cert: cert?, key: key? })
}

/// The published login first. A local MTA has it too, under its usual name: its own
/// smtp_username is the upstream's.
pub(super) fn users(reader: &mut Reader<'_>) -> Vec<User> {
    let relay = reader.around.role == Role::Relay;
    let name = relay.then(|| reader.one(key!("smtp_username"), value::text)).flatten();
    let password = relay.then(|| reader.secret(key!("smtp_password"))).flatten();
    let mut users = vec![User {
        name: name.unwrap_or_else(|| "dotcloud".to_owned()),
        password,
        senders: None,
        limits: Vec::new(),
    }];

    let key = key!("smtp_users");
    let Some(items) = reader.items(key) else { return users };
    let document = reader.around.document;
    if let Some(second) = items.get(1) {
        let place = second.place.clone();
        reader.report(
            place,
            "smtp_users is no list",
            Some("write the logins below each other, without dashes"),
        );
    }
    let Some(found) = items.into_iter().next() else { return users };
    let Value::Node(id) = found.value else {
        reader.report(found.place, "smtp_users can't come from a variable", Some("write it in the file"));
        return users;
    };
    let Some((entries, again)) = document.entries(id) else {
        reader.read(key, &found, &|_| Err::<(), _>(value::Wrong::Plain));
        return users;
    };
    if entries.len() > MAX_ITEMS {
        let message = format!("there are more than {MAX_ITEMS} logins");
        reader.report(found.place, message, None);
        return users;
    }
    for entry in again.iter().chain(entries.iter().filter(|entry| entry.key == users[0].name)) {
        let message = "there is already a login of this name";
        reader.report(Place::File(entry.at), message, Some("keep one of them"));
    }
    for entry in entries {
        if entry.key.is_empty() || entry.key.contains(char::is_control) {
            let help = "use letters, digits and the like";
            reader.report(Place::File(entry.at), "this is no name for a login", Some(help));
        }
        let mut inner = reader.inside(entry.value, keys::USER, "a login");
        let password = key!(keys::USER, "password");
        if !inner.is_set(password) {
            let help = "for example `shop: {password: '…'}`";
            inner.report(Place::File(entry.at), "this login has no password", Some(help));
        }
        let senders = inner.many(key!(keys::USER, "senders"), value::sender);
        let limits = inner.many(key!(keys::USER, "rate_limit"), limit).unwrap_or_default();
        users.push(User { name: entry.key.to_owned(), password: inner.secret(password), senders, limits });
        reader.absorb(inner);
    }
    users
}

pub(super) fn networks(reader: &mut Reader<'_>) -> Vec<ipnet::IpNet> {
    let loopback = || ["127.0.0.0/8", "::1/128"].iter().filter_map(|net| net.parse().ok()).collect();
    reader.many(key!("smtp_networks"), value::network).unwrap_or_else(loopback)
}

pub(super) fn senders(reader: &mut Reader<'_>) -> Option<Vec<AddressPattern>> {
    reader.many(key!("smtp_senders"), value::sender)
}

pub(super) fn bounds(reader: &mut Reader<'_>) -> Bounds {
    let mut number = |key, least, default| reader.one(key, value::number(least..=100_000)).unwrap_or(default);
    let default = SessionBounds::default();
    let (recipients, connections) =
        (number(key!("smtp_max_recipients"), 1, 1000), number(key!("smtp_max_connections"), 1, 1000));
    let connections_per_client = number(key!("smtp_max_connections_per_client"), 1, 200);
    let errors = number(key!("smtp_max_errors"), 1, default.errors);
    let commands = number(key!("smtp_max_commands"), 10, default.commands);
    let commands_before_auth =
        number(key!("smtp_max_commands_before_auth"), 10, default.commands_before_auth);
    let command_line = reader.one(key!("smtp_max_command_line"), value::number(512..=32_768));
    let header = reader.one(key!("smtp_max_header_size"), value::header_size);
    let content_line = reader.one(key!("smtp_max_content_line"), value::number(998..=1_000_000_000));
    let hops = reader.one(key!("smtp_max_hops"), value::number(1..=1000));
    let passes = reader.one(key!("smtp_max_passes"), value::number(1..=1000));
    let failed_logins = reader.one(key!("smtp_max_failed_logins"), value::number(1..=1000));
    let in_memory_key = key!("smtp_max_buffered_per_connection");
    let in_memory = reader.one(in_memory_key, value::header_size).unwrap_or(default.buffered);
    let header = header.unwrap_or(default.header);
    if in_memory < header {
        let message = format!("{} is less than smtp_max_header_size", in_memory_key.name);
        let help = "a header section is looked at in memory: make smtp_max_header_size as small";
        reader.report(reader.place(in_memory_key), message, Some(help));
    }
    let login_timeout = reader.one(key!("smtp_login_timeout"), value::duration);
    let timeout = reader.one(key!("smtp_timeout"), value::duration);
    let transaction_timeout = reader.one(key!("smtp_transaction_timeout"), value::duration);
    let buffered = reader.one(key!("smtp_max_buffered"), value::positive_size).unwrap_or(64_000_000);
    Bounds {
        binary: reader.one(key!("smtp_binarymime"), value::boolean).unwrap_or(false),
        recipients,
        connections,
        connections_per_client,
        message_size: reader.one(key!("smtp_max_message_size"), value::positive_size).unwrap_or(25_000_000),
        buffered: usize::try_from(buffered).unwrap_or(usize::MAX),
        session: SessionBounds {
            command_line: command_line.unwrap_or(default.command_line),
            content_line,
            header,
            buffered: in_memory,
            hops: hops.unwrap_or(default.hops),
            passes: passes.unwrap_or(default.passes),
            failed_logins: failed_logins.unwrap_or(default.failed_logins),
            errors,
            commands,
            commands_before_auth,
            login_timeout: login_timeout.unwrap_or(default.login_timeout),
            timeout: timeout.unwrap_or(default.timeout),
            transaction_timeout: transaction_timeout.unwrap_or(default.transaction_timeout),
            min_rate: reader.one(key!("smtp_min_rate"), value::size).unwrap_or(default.min_rate),
        },
    }
}
