//! The upstream's settings, and what can't work or can't be safe about them.

use std::path::PathBuf;

use super::{
    AuthMechanism, Login, Role, Upstream, UpstreamTls, Waits, keys::key, reader::Reader, replies::replies,
    settings::MINUTE, value,
};

pub(super) fn upstream(reader: &mut Reader<'_>, published: &[PathBuf]) -> Upstream {
    let server = reader.one(key!("smtp_relay_server"), value::host);
    if !reader.is_set(key!("smtp_relay_server")) {
        let name = key!("smtp_relay_server").name(reader.around.role);
        let help = format!("say who relays the mail, for example `{name}: smtp.mailgun.org`");
        reader.report(reader.place(key!("smtp_relay_server")), format!("{name} is missing"), Some(&help));
    }
    let server = server.unwrap_or_default();
    let port = reader.one(key!("smtp_relay_port"), value::number(1..=u16::MAX)).unwrap_or(587);
    let tls = reader.one(key!("smtp_relay_tls"), value::upstream_tls);
    let tls = tls.unwrap_or(if port == 465 { UpstreamTls::Implicit } else { UpstreamTls::StartTls });
    let upstream = Upstream {
        name: server.clone(),
        server,
        port,
        tls,
        ca: reader.path(key!("smtp_relay_tls_ca")),
        fingerprint: reader.one(key!("smtp_relay_tls_fingerprint"), value::fingerprint),
        // A relay of its own is reached under a name that its certificate can be verified against.
        published: if reader.around.role == Role::LocalMta { published.to_owned() } else { Vec::new() },
        login: login(reader),
        allow_insecure_auth: reader
            .one(key!("smtp_relay_allow_insecure_auth"), value::boolean)
            .unwrap_or(false),
        connections: reader.one(key!("smtp_relay_connections"), value::number(1..=1000)).unwrap_or(10),
        timeout: reader.one(key!("smtp_relay_timeout"), value::duration),
        auth_retry: reader
            .one(key!("smtp_auth_retry"), value::waits)
            .unwrap_or(Waits { first: MINUTE, longest: 30 * MINUTE }),
        provider: None,
        replies: replies(reader),
    };
    judge_tls(reader, &upstream);
    upstream
}

fn login(reader: &mut Reader<'_>) -> Option<Login> {
    let (user_key, password_key) = (key!("smtp_relay_username"), key!("smtp_relay_password"));
    let username = reader.one(user_key, value::text);
    let password = reader.secret(password_key);
    let mechanism = reader.one(key!("smtp_relay_auth"), value::mechanism).unwrap_or(AuthMechanism::Auto);
    for (there, missing) in [(user_key, password_key), (password_key, user_key)] {
        if reader.is_set(there) && !reader.is_set(missing) {
            let role = reader.around.role;
            let message = format!("{} without {}", there.name(role), missing.name(role));
            reader.report(reader.place(there), message, Some("set both for a login, or neither"));
        }
    }
    Some(Login { username: username?, password: password?, mechanism })
}

/// What can't work or can't be safe is said now, not when the first mail fails.
fn judge_tls(reader: &mut Reader<'_>, upstream: &Upstream) {
    let (tls, role) = (key!("smtp_relay_tls"), reader.around.role);
    let name = tls.name(role);
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
    if reader.is_set(key!("smtp_relay_password")) && !upstream.allow_insecure_auth {
        let help = format!(
            "write `{name}: starttls` or implicit; a server with a certificate of its own can be named by \
             smtp_relay_tls_ca or smtp_relay_tls_fingerprint. \
             To send the password in spite of it: `smtp_relay_allow_insecure_auth: true`"
        );
        reader.report(reader.place(tls), "credentials never travel without verified TLS", Some(&help));
    }
    for key in [key!("smtp_relay_tls_ca"), key!("smtp_relay_tls_fingerprint")] {
        if reader.is_set(key) {
            let message = format!("{} has no effect, as this {name} verifies nothing", key.name);
            reader.report(reader.place(key), message, Some("write starttls or implicit, or remove it"));
        }
    }
}
