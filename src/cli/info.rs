//! `outpost info`: the parameters that apps need, as dotCloud's `info` printed them.

use clap::Args;

use super::{Place, client::Client, exit::Failure, output};
use crate::admin;

const MASK: &str = "********";

#[derive(Debug, Args)]
pub(super) struct Info {
    /// Print the password, too
    #[arg(long)]
    show_password: bool,
    /// For programs
    #[arg(long)]
    json: bool,
}

impl Info {
    pub(super) fn run(self, place: &Place) -> Result<(), Failure> {
        let mut info: admin::Info = Client::find(place)?.get("/api/v1/info")?;
        if self.json {
            if !self.show_password {
                info.environment = None;
            }
            output::json(&info);
        } else {
            output::say(text(&info, self.show_password));
        }
        Ok(())
    }
}

/// Values are JSON strings where they could be anything, which is YAML as well.
fn text(info: &admin::Info, show_password: bool) -> String {
    let shown = |name: &str| info.published(name).filter(|_| show_password);
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    let host = if info.host.contains(':') { format!("[{}]", info.host) } else { info.host.clone() };
    let scheme = if info.tls == "implicit" { "smtps" } else { "smtp" };
    let url = match shown("URL") {
        Some(url) => url.to_owned(),
        None => format!("{scheme}://{}:{MASK}@{host}:{}", info.login, info.port),
    };
    let mut lines = vec![
        "config:".to_owned(),
        format!("    smtp_password: {}", quoted(shown("PASSWORD").unwrap_or(MASK))),
        format!("    smtp_username: {}", quoted(&info.login)),
        format!("    smtp_relay_server: {}", quoted(&info.relay_server)),
        format!("    smtp_relay_port: {}", info.relay_port),
    ];
    lines.extend(info.relay_username.iter().map(|name| format!("    smtp_relay_username: {}", quoted(name))));
    lines.push(format!("    smtp_max_message_size: {}", info.max_message_size));
    lines.push(format!("    smtp_max_recipients: {}", info.max_recipients));
    lines.push(format!("name: {}", info.service));
    lines.push("ports:".to_owned());
    lines.push("-   name: smtp".to_owned());
    lines.push(format!("    url: {}", quoted(&url)));
    lines.push(format!("    tls: {}", info.tls));
    lines.extend(info.tls_fingerprint.iter().map(|print| format!("    tls_fingerprint: {}", quoted(print))));
    lines.push("type: smtp".to_owned());
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_password_is_shown_only_when_asked_for() {
        let info = admin::Info {
            service: "mailer".into(),
            hostname: "relay.example".into(),
            listen: Vec::new(),
            host: "::1".into(),
            port: 587,
            login: "dotcloud".into(),
            tls: "starttls".into(),
            tls_fingerprint: None,
            max_message_size: 1,
            max_recipients: 1,
            relay_server: "up.example".into(),
            relay_port: 587,
            relay_username: None,
            environment: Some(vec![
                ("DOTCLOUD_MAILER_SMTP_PASSWORD".into(), "s3c|ret".into()),
                ("DOTCLOUD_MAILER_SMTP_URL".into(), "smtp://dotcloud:s3c%7Cret@[::1]:587".into()),
            ]),
        };
        let masked = text(&info, false);
        assert!(masked.contains("url: \"smtp://dotcloud:********@[::1]:587\"") && !masked.contains("s3c"));
        let shown = text(&info, true);
        assert!(shown.contains("smtp_password: \"s3c|ret\"") && shown.contains("s3c%7Cret@"), "{shown}");
    }
}
