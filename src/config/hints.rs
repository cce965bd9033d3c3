//! What can be read and probably isn't meant: said before the first mail, with the place and the fix.
//!
//! Nearly all of it are hints, for somebody may have a reason; only what can never work is a problem.

use std::{net::IpAddr, time::Duration};

use ipnet::IpNet;
use secrecy::ExposeSecret as _;

use super::{
    Settings, Upstream, UpstreamTls,
    keys::{Key, key},
    limit::Limit,
    presets::Preset,
    reader::{Place, Reader},
};

/// Networks wider than these hold more than one's own machines.
const WIDEST_V4: u8 = 8;
const WIDEST_V6: u8 = 7;

/// What is known of an upstream's TLS: what can't work or can't be safe is said now, not when the first
/// mail fails.
pub(super) fn of_tls(reader: &mut Reader<'_>, upstream: &Upstream) {
    let tls = key!("smtp_relay_tls");
    let name = reader.name(tls);
    let port = reader.place(key!("smtp_relay_port"));
    match (upstream.port, upstream.tls) {
        (465, UpstreamTls::StartTls | UpstreamTls::Opportunistic) => {
            let help = format!("write `{name}: implicit`, or port 587 for STARTTLS");
            reader.report(
                reader.place(tls),
                "port 465 speaks TLS from the first byte, not STARTTLS",
                Some(&help),
            );
        }
        (587, UpstreamTls::Implicit) => {
            let help = "implicit TLS is usually on port 465";
            reader.warn(port, "port 587 usually speaks STARTTLS, not TLS from the first byte", Some(help));
        }
        _ => {}
    }
    if matches!(upstream.tls, UpstreamTls::StartTls | UpstreamTls::Implicit) {
        return;
    }
    let logs_in = reader.is_set(key!("smtp_relay_password")) || reader.is_set(key!("smtp_relay_oauth"));
    if logs_in && !upstream.allow_insecure_auth {
        let help = format!(
            "write `{name}: starttls` or implicit; a server with a certificate of its own can be named by \
             smtp_relay_tls_ca or smtp_relay_tls_fingerprint. \
             To send the password in spite of it: `smtp_relay_allow_insecure_auth: true`"
        );
        reader.report(reader.place(tls), "credentials never travel without verified TLS", Some(&help));
    }
    for key in [key!("smtp_relay_tls_ca"), key!("smtp_relay_tls_fingerprint")] {
        if reader.is_set(key) {
            let message = format!("{} has no effect, as this {name} verifies nothing", reader.name(key));
            reader.report(reader.place(key), message, Some("write starttls or implicit, or remove it"));
        }
    }
}

/// What people do wrong with a provider. Hints, for a provider may have changed its mind.
pub(super) fn of_provider(reader: &mut Reader<'_>, upstream: &Upstream, preset: &Preset) {
    let title = &preset.title;
    if let Some(gone) = &preset.gone {
        let place = place_of_server(reader);
        let help =
            "mail will wait until it is given up: choose another provider (`outpost presets` lists them)";
        reader.warn(place, gone.clone(), Some(help));
    }
    let port = reader.place(key!("smtp_relay_port"));
    let ports = preset.ports.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    if !preset.ports.contains(&upstream.port) {
        let help = format!("its ports are {ports}");
        reader.warn(port, format!("{title} does not document port {}", upstream.port), Some(&help));
    } else if upstream.port == 25 {
        let help = format!("{title} also has {ports}");
        reader.warn(port, "many networks block outgoing connections to port 25", Some(&help));
    }
    // Of 465, which is so everywhere, more is said than this.
    if preset.implicit.contains(&upstream.port)
        && upstream.port != 465
        && matches!(upstream.tls, UpstreamTls::StartTls | UpstreamTls::Opportunistic)
    {
        let others = preset.ports.iter().filter(|port| !preset.implicit.contains(port));
        let others = others.map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let name = reader.name(key!("smtp_relay_tls"));
        let help = format!("write `{name}: implicit`, or one of its ports for STARTTLS: {others}");
        let message =
            format!("port {} of {title} speaks TLS from the first byte, not STARTTLS", upstream.port);
        reader.warn(reader.place(key!("smtp_relay_tls")), message, Some(&help));
    }
    of_limits(reader, upstream, preset);
    let Some(login) = &upstream.login else { return };
    let password = login.oauth.is_none().then(|| login.password.expose_secret());
    for (mistake, about_password) in preset.mistakes(&login.username, password) {
        let key = if about_password { key!("smtp_relay_password") } else { key!("smtp_relay_username") };
        reader.warn(reader.place(key), mistake.says.clone(), Some(&mistake.help));
    }
    if let Some(says) = &preset.sender
        && upstream.sender_rewrite.is_none()
        && !reader.is_set(key!("smtp_senders"))
    {
        let help = format!(
            "write `{}:` with the account's address; what an app wrote is kept in Reply-To",
            reader.name(key!("smtp_sender_rewrite"))
        );
        reader.warn(reader.place(key!("smtp_relay_username")), says.clone(), Some(&help));
    }
}

/// A limit of one's own that lets through more than the provider takes.
fn of_limits(reader: &mut Reader<'_>, upstream: &Upstream, preset: &Preset) {
    let key = key!("smtp_rate_limit");
    if !reader.is_set(key) {
        return;
    }
    for known in preset.limits() {
        let same = |own: &&Limit| (own.counts, own.window) == (known.counts, known.window);
        if upstream.limits.iter().filter(same).map(|own| own.max).min().is_some_and(|own| own > known.max) {
            let message = format!("{} documents {known}, and this limit is higher", preset.title);
            let help = format!("write {known}, unless your account has more");
            reader.warn(reader.place(key), message, Some(&help));
        }
    }
}

/// What the keys say together.
pub(super) fn of_all(reader: &mut Reader<'_>, settings: &Settings) {
    of_itself(reader, settings);
    of_networks(reader, settings);
    let hostname = key!("smtp_hostname");
    if reader.is_set(hostname) && !settings.hostname.contains('.') {
        let help = "write a full name, such as `mailer.example.com`";
        let message = "a host name without a dot is refused by many servers, in EHLO and in Message-ID";
        reader.warn(reader.place(hostname), message, Some(help));
    }
    let queue = &settings.queue;
    if queue.lifetime <= queue.retry.first {
        let message = "mail is given up before it is tried a second time";
        let help = format!(
            "smtp_queue_lifetime ({}) is to be longer than the first wait of smtp_retry ({})",
            words(queue.lifetime),
            words(queue.retry.first)
        );
        let place = first_set(reader, &[key!("smtp_queue_lifetime"), key!("smtp_retry")]);
        reader.warn(place, message, Some(&help));
    }
}

/// Mail that is relayed to the relay itself goes round until it is refused as a loop.
fn of_itself(reader: &mut Reader<'_>, settings: &Settings) {
    for upstream in settings.upstreams.iter().filter(|upstream| upstream.proxy.is_none()) {
        let listens = settings.listen.iter().any(|listen| {
            let Some((host, port)) = listen.address.rsplit_once(':').filter(|_| !listen.is_unix()) else {
                return false;
            };
            port.parse() == Ok(upstream.port) && reaches(&upstream.server, host, &settings.hostname)
        });
        if listens {
            let message = format!(
                "this upstream is the relay itself: it listens on port {}, so mail would go round in circles",
                upstream.port
            );
            let help = "name the provider's server, or listen on another port (smtp_listen)";
            let place = first_set(reader, &[key!("smtp_relays"), key!("smtp_relay_server")]);
            reader.report(place, message, Some(help));
        }
    }
}

/// Whether a connection to `server` ends at what listens on `host` here, as far as names tell.
fn reaches(server: &str, host: &str, own_name: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let by_name = server.eq_ignore_ascii_case(own_name) || server.eq_ignore_ascii_case(host);
    let is_local = |ip: IpAddr| ip.is_loopback() || ip.is_unspecified();
    let server_is_local = server.eq_ignore_ascii_case("localhost") || server.parse().is_ok_and(is_local);
    let host_is_local = host.eq_ignore_ascii_case("localhost") || host.parse().is_ok_and(is_local);
    by_name || (server_is_local && host_is_local)
}

/// Who trusts everybody is an open relay: found within hours, and blocked by the provider within a day.
fn of_networks(reader: &mut Reader<'_>, settings: &Settings) {
    let is_loopback = |address: &str| {
        let host = address.rsplit_once(':').map_or("", |(host, _)| host).trim_matches(['[', ']']);
        host.eq_ignore_ascii_case("localhost")
            || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    };
    if settings.listen.iter().all(|listen| listen.is_unix() || is_loopback(&listen.address)) {
        return;
    }
    let wide = |network: &&IpNet| match network {
        IpNet::V4(network) => network.prefix_len() < WIDEST_V4,
        IpNet::V6(network) => network.prefix_len() < WIDEST_V6,
    };
    if let Some(network) = settings.access.networks.iter().find(wide) {
        let message = format!("{network} may relay without a login: that is an open relay");
        let help = "name your own network, such as 10.0.0.0/8; or remove the line, and have apps log in with what \
                    `outpost env` shows";
        reader.warn(reader.place(key!("smtp_networks")), message, Some(help));
    }
}

/// Where the server was named, by itself or by its provider.
fn place_of_server(reader: &Reader<'_>) -> Place {
    first_set(reader, &[key!("smtp_relay_server"), key!("smtp_relay_provider")])
}

/// Where the first of these keys stands that stands anywhere.
fn first_set(reader: &Reader<'_>, keys: &[&'static Key]) -> Place {
    let set = keys.iter().find(|key| reader.is_set(key)).or(keys.last());
    reader.place(set.copied().unwrap_or(key!("smtp_relay_server")))
}

/// As it is written: `90s` is what somebody wrote as 90s.
fn words(time: Duration) -> String {
    match time.as_secs() {
        0 => format!("{}ms", time.as_millis()),
        seconds if seconds.is_multiple_of(86_400) => format!("{}d", seconds / 86_400),
        seconds if seconds.is_multiple_of(3_600) => format!("{}h", seconds / 3_600),
        seconds if seconds.is_multiple_of(60) => format!("{}m", seconds / 60),
        seconds => format!("{seconds}s"),
    }
}
