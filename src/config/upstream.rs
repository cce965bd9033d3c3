//! The upstream's settings, and what can't work or can't be safe about them.

use std::{net::IpAddr, path::PathBuf};

use secrecy::SecretString;

use crate::smtp::pattern::AddressMap;

use super::{
    AuthMechanism, ListenerTls, Login, OAuth, Role, Serves, TlsVersion, Upstream, UpstreamTls, Waits, hints,
    keys::{self, Key, key},
    limit::limit,
    node::Kind,
    path, presets,
    reader::{Found, MAX_ITEMS, Place, Reader, Value},
    replies::replies,
    settings::MINUTE,
    value::{self, OAuthProvider, Read, TENANT, Wrong},
};

/// The one upstream, or the several.
pub(super) fn upstreams(reader: &mut Reader<'_>, published: &[PathBuf]) -> Vec<Upstream> {
    if !reader.is_set(key!("smtp_relays")) {
        return vec![upstream(reader, published)];
    }
    // Whoever sets one of these counts on it.
    for key in keys::RELAY.iter().filter(|key| key.name.starts_with("smtp_")) {
        if reader.is_set(key) {
            let message = format!("{} has no effect beside smtp_relays", reader.name(key));
            let help =
                format!("write it into the upstreams that it is meant for, as `{}`", key.name(Role::Relay));
            reader.report(reader.place(key), message, Some(&help));
        }
    }
    let waits = auth_retry(reader);
    let items = reader.items(key!("smtp_relays")).unwrap_or_default();
    let mut upstreams: Vec<Upstream> = Vec::new();
    for item in &items {
        let Some(upstream) = relay(reader, item, published) else { continue };
        if upstreams.iter().any(|other| other.name == upstream.name) {
            let help = "give each a name of its own: limits are counted, and shown, under it";
            let message = format!("there is already an upstream named {}", upstream.name);
            reader.report(item.place.clone(), message, Some(help));
        }
        upstreams.push(Upstream { auth_retry: waits, ..upstream });
    }
    upstreams
}

/// One of several.
fn relay(reader: &mut Reader<'_>, item: &Found, published: &[PathBuf]) -> Option<Upstream> {
    let map = match item.value {
        Value::Node(id) if matches!(reader.around.document.node(id).kind, Kind::Map(_)) => id,
        _ => {
            let read = |_: &str| Err::<(), _>(Wrong::Plain);
            reader.read(key!("smtp_relays"), item, &read);
            return None;
        }
    };
    let mut inner = reader.inside(map, keys::RELAY, "an upstream");
    let mut upstream = upstream(&mut inner, published);
    if let Some(name) = inner.one(key!(keys::RELAY, "name"), name) {
        upstream.name = name;
    }
    let list = |inner: &mut Reader<'_>, key: &Key| inner.many(key, value::sender).unwrap_or_default();
    upstream.serves = Serves {
        priority: inner.one(key!(keys::RELAY, "priority"), value::number(0..=1000)).unwrap_or(0),
        weight: inner.one(key!(keys::RELAY, "weight"), value::number(1..=1000)).unwrap_or(1),
        senders: list(&mut inner, key!(keys::RELAY, "senders")),
        recipients: list(&mut inner, key!(keys::RELAY, "recipients")),
        users: inner.many(key!(keys::RELAY, "users"), value::text).unwrap_or_default(),
    };
    reader.absorb(inner);
    Some(upstream)
}

/// It becomes a label of metrics and a word on the command line.
fn name(text: &str) -> Read<String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let fits = (1..=64).contains(&text.len()) && text.chars().all(plain);
    if fits { Ok(text.to_owned()) } else { Err(Wrong::Plain) }
}

fn auth_retry(reader: &mut Reader<'_>) -> Waits {
    let waits = reader.one(key!("smtp_auth_retry"), value::waits);
    waits.unwrap_or(Waits { first: MINUTE, longest: 30 * MINUTE })
}

fn upstream(reader: &mut Reader<'_>, published: &[PathBuf]) -> Upstream {
    let server = reader.one(key!("smtp_relay_server"), value::host);
    let named = reader.one(key!("smtp_relay_provider"), presets::named);
    let by_name = named.as_ref().and_then(|(preset, name)| preset.host(name));
    if let (Some((preset, _)), None, None) = (&named, &server, &by_name) {
        let help = format!("write `{0}-eu-west-1` or the like, or set smtp_relay_server", preset.name);
        reader.report(reader.place(key!("smtp_relay_provider")), "this provider has regions", Some(&help));
    } else if !reader.is_set(key!("smtp_relay_server")) && !reader.is_set(key!("smtp_relay_provider")) {
        let name = reader.name(key!("smtp_relay_server"));
        let help = format!("say who relays the mail, for example `{name}: smtp.mailgun.org`");
        reader.report(reader.place(key!("smtp_relay_server")), format!("{name} is missing"), Some(&help));
    }
    let server = server.or(by_name).unwrap_or_default();
    let preset = named.map(|(preset, _)| preset).or_else(|| presets::of_host(&server));
    let port = reader.one(key!("smtp_relay_port"), value::number(1..=u16::MAX));
    let port = port.or_else(|| preset?.ports.first().copied()).unwrap_or(587);
    let tls = reader.one(key!("smtp_relay_tls"), value::upstream_tls);
    let implicit = port == 465 || preset.is_some_and(|preset| preset.implicit.contains(&port));
    let tls = tls.unwrap_or(if implicit { UpstreamTls::Implicit } else { UpstreamTls::StartTls });
    let upstream = Upstream {
        name: server.clone(),
        server,
        port,
        tls,
        tls_min_version: reader
            .one(key!("smtp_relay_tls_min_version"), value::tls_version)
            .unwrap_or(TlsVersion::Tls12),
        ca: reader.path(key!("smtp_relay_tls_ca")),
        identity: identity(reader),
        fingerprint: reader.one(key!("smtp_relay_tls_fingerprint"), value::fingerprint),
        // A relay of its own is reached under a name that its certificate can be verified against.
        published: if reader.around.role == Role::LocalMta { published.to_owned() } else { Vec::new() },
        login: login(reader),
        allow_insecure_auth: reader
            .one(key!("smtp_relay_allow_insecure_auth"), value::boolean)
            .unwrap_or(false),
        connections: reader
            .one(key!("smtp_relay_connections"), value::number(1..=1000))
            .or_else(|| preset?.connections)
            .unwrap_or(10),
        timeout: reader.one(key!("smtp_relay_timeout"), value::duration),
        auth_retry: auth_retry(reader),
        recipients: reader
            .one(key!("smtp_relay_recipients"), value::number(1..=100_000))
            .or_else(|| preset?.recipients),
        messages: reader
            .one(key!("smtp_relay_messages"), value::number(1..=u64::MAX))
            .or_else(|| preset?.messages),
        source: source(reader),
        proxy: path::proxy(reader),
        pipelining: reader.one(key!("smtp_relay_pipelining"), value::boolean).unwrap_or(true),
        chunking: reader.one(key!("smtp_relay_chunking"), value::boolean).unwrap_or(true),
        message_size: preset.and_then(|preset| preset.size),
        provider: preset.map(|preset| preset.name.clone()),
        replies: replies(reader),
        limits: reader
            .many(key!("smtp_rate_limit"), limit)
            .unwrap_or_else(|| preset.map_or_else(Vec::new, |preset| preset.limits().collect())),
        sender_rewrite: sender_rewrite(reader),
        replaces: preset.map(|preset| preset.replaces.clone()).unwrap_or_default(),
        serves: Serves::default(),
    };
    hints::of_tls(reader, &upstream);
    if let Some(preset) = preset {
        hints::of_provider(reader, &upstream, preset);
    }
    upstream
}

/// Where connections come from; one address of each family is all that can be used.
fn source(reader: &mut Reader<'_>) -> Vec<IpAddr> {
    let key = key!("smtp_relay_source_address");
    let addresses: Vec<IpAddr> = reader.many(key, value::address).unwrap_or_default();
    let of = |six: bool| addresses.iter().filter(|address| address.is_ipv6() == six).count();
    if of(true) > 1 || of(false) > 1 {
        let help = "write one IPv4 address, one IPv6 address, or one of each";
        reader.report(reader.place(key), "two addresses of the same family", Some(help));
    }
    addresses
}

/// One address for all senders, or a map of patterns to addresses, in the file's order.
fn sender_rewrite(reader: &mut Reader<'_>) -> Option<AddressMap> {
    let key = key!("smtp_sender_rewrite");
    let found = reader.find(key)?;
    let document = reader.around.document;
    let entries = match found.value {
        Value::Node(id) => document.entries(id),
        Value::Text(_) => None,
    };
    let Some((entries, again)) = entries else {
        return reader.read(key, &found, &value::plain_mailbox).map(AddressMap::all);
    };
    for entry in again {
        let message = "this sender stands here a second time";
        reader.report(Place::File(entry.at), message, Some("keep one of them"));
    }
    if entries.is_empty() || entries.len() > MAX_ITEMS {
        let message =
            format!("{} wants 1 to {MAX_ITEMS} senders, but this has {}", found.name, entries.len());
        reader.report(found.place, message, Some("for example `{shop.example.com: shop@example.com}`"));
        return None;
    }
    let mut rules = Vec::new();
    for entry in entries {
        let named =
            |at, value| Found { name: found.name.clone(), place: Place::File(at), value, in_file: false };
        let sender = named(entry.at, Value::Text(entry.key.to_owned()));
        let address = named(document.node(entry.value).at, Value::Node(entry.value));
        let sender = reader.read(key, &sender, &value::sender);
        let address = reader.read(key, &address, &value::plain_mailbox);
        rules.extend(sender.zip(address));
    }
    Some(AddressMap::of_patterns(rules))
}

/// Our own certificate, where the upstream asks for one.
fn identity(reader: &mut Reader<'_>) -> Option<ListenerTls> {
    let (cert_key, key_key) = (key!("smtp_relay_tls_cert"), key!("smtp_relay_tls_key"));
    let (cert, key) = (reader.path(cert_key), reader.path(key_key));
    for (there, missing) in [(cert_key, key_key), (key_key, cert_key)] {
        if reader.is_set(there) && !reader.is_set(missing) {
            let message = format!("{} without {}", reader.name(there), reader.name(missing));
            reader.report(reader.place(there), message, Some("set both, or neither"));
        }
    }
    Some(ListenerTls { cert: cert?, key: key? })
}

fn login(reader: &mut Reader<'_>) -> Option<Login> {
    let (user_key, password_key) = (key!("smtp_relay_username"), key!("smtp_relay_password"));
    let username = reader.one(user_key, value::text);
    let password = reader.secret(password_key);
    let mechanism = reader.one(key!("smtp_relay_auth"), value::mechanism).unwrap_or(AuthMechanism::Auto);
    let oauth = oauth(reader);
    let has_oauth = reader.is_set(key!("smtp_relay_oauth"));
    if !has_oauth && matches!(mechanism, AuthMechanism::XOAuth2 | AuthMechanism::OAuthBearer) {
        let help = "say where tokens come from: smtp_relay_oauth";
        reader.report(
            reader.place(key!("smtp_relay_auth")),
            "this mechanism needs access tokens",
            Some(help),
        );
    }
    if has_oauth && reader.is_set(password_key) {
        let help = "keep one of them";
        reader.report(reader.place(password_key), "smtp_relay_oauth takes the password's place", Some(help));
    }
    for (there, missing) in [(user_key, password_key), (password_key, user_key)] {
        if there.name == user_key.name && has_oauth {
            continue;
        }
        if reader.is_set(there) && !reader.is_set(missing) {
            let message = format!("{} without {}", reader.name(there), reader.name(missing));
            reader.report(reader.place(there), message, Some("set both for a login, or neither"));
        }
    }
    // A token takes its place.
    let password = if oauth.is_some() { SecretString::from("") } else { password? };
    Some(Login { username: username?, password, mechanism, oauth })
}

/// Where access tokens come from.
fn oauth(reader: &mut Reader<'_>) -> Option<OAuth> {
    let key = key!("smtp_relay_oauth");
    let found = reader.find(key)?;
    let map = match found.value {
        Value::Node(id) if matches!(reader.around.document.node(id).kind, Kind::Map(_)) => id,
        _ => {
            reader.complain(key, &found, Wrong::Help("write it as a map, in the file".to_owned()));
            return None;
        }
    };
    let mut inner = reader.inside(map, keys::OAUTH, "smtp_relay_oauth");
    let provider = inner.one(key!(keys::OAUTH, "provider"), value::oauth_provider);
    let tenant = inner.one(key!(keys::OAUTH, "tenant"), value::domain);
    let known = |part: fn(&OAuthProvider) -> &'static str| {
        Some(part(provider.as_ref()?).replace(TENANT, tenant.as_deref().unwrap_or("organizations")))
    };
    let (token_key, client_key) = (key!(keys::OAUTH, "token_url"), key!(keys::OAUTH, "client_id"));
    for needed in
        [token_key, client_key].into_iter().filter(|key| key.name != "token_url" || provider.is_none())
    {
        if !inner.is_set(needed) {
            let message = format!("{} is missing", needed.name);
            inner.report(inner.place(needed), message, Some(&format!("for example `{}`", needed.example)));
        }
    }
    let (secret, refresh) = (key!(keys::OAUTH, "client_secret"), key!(keys::OAUTH, "refresh_token"));
    let device_url = inner.one(key!(keys::OAUTH, "device_url"), value::token_url);
    let device_url = device_url.or_else(|| known(|provider| provider.device_url));
    if !inner.is_set(secret) && !inner.is_set(refresh) && device_url.is_none() {
        let help = "set refresh_token for a user's consent, or client_secret for a client of its own; or device_url, \
                    and run `outpost login`";
        inner.report(inner.place(refresh), "neither refresh_token nor client_secret is set", Some(help));
    }
    let token_url = inner.one(token_key, value::token_url).or_else(|| known(|provider| provider.token_url));
    let client_id = inner.one(client_key, value::text);
    let (client_secret, refresh_token) = (inner.secret(secret), inner.secret(refresh));
    // A client of its own has the rights that its directory gave it, not a user's.
    let scope = if client_secret.is_some() && refresh_token.is_none() {
        known(|provider| provider.client_scope)
    } else {
        known(|provider| provider.user_scope)
    };
    let scope = inner.one(key!(keys::OAUTH, "scope"), value::text).or(scope);
    reader.absorb(inner);
    Some(OAuth {
        token_url: token_url?,
        device_url,
        client_id: client_id?,
        client_secret,
        refresh_token,
        scope,
        kept: PathBuf::new(),
    })
}
