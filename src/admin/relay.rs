//! The relay itself: what apps need to know of it, and reading its configuration again.

use axum::{Extension, Json, extract::State, http::StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::{Access, Admin, Answer, Refusal};
use crate::{config::ListenTls, environment};

/// What apps and commands need to know of a running relay.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Info {
    pub service: String,
    pub hostname: String,
    /// The addresses that take mail.
    pub listen: Vec<ListenInfo>,
    /// What is published; without secrets on TCP.
    pub host: String,
    pub port: u16,
    pub login: String,
    pub tls: String,
    pub tls_fingerprint: Option<String>,
    pub max_message_size: u64,
    pub max_recipients: usize,
    pub relay_server: String,
    pub relay_port: u16,
    pub relay_username: Option<String>,
    /// Name and value of all that environment.json has; only on the Unix socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment: Option<Vec<(String, String)>>,
}

/// One address that takes mail.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct ListenInfo {
    pub address: String,
    /// `starttls`, `implicit` or `none`.
    pub tls: String,
}

impl Info {
    /// A published value, by the end of its name: `PASSWORD`.
    pub fn published(&self, name: &str) -> Option<&str> {
        let key = environment::prefix(&self.service) + name;
        let (_, value) = self.environment.as_ref()?.iter().find(|(found, _)| *found == key)?;
        Some(value)
    }
}

pub(super) async fn info(State(admin): State<Admin>, Extension(access): Extension<Access>) -> Json<Info> {
    let (settings, published) = (admin.settings.load(), admin.published.load());
    let listen = settings.listen.iter().map(|listen| ListenInfo {
        address: listen.address.clone(),
        tls: match listen.tls {
            ListenTls::None => "none",
            ListenTls::StartTls => "starttls",
            ListenTls::Implicit => "implicit",
        }
        .to_owned(),
    });
    Json(Info {
        service: published.service.clone(),
        hostname: settings.hostname.clone(),
        listen: listen.collect(),
        host: published.host.clone(),
        port: published.port,
        login: published.login.clone(),
        tls: published.tls.to_owned(),
        tls_fingerprint: published.fingerprint.clone(),
        max_message_size: published.max_message_size,
        max_recipients: published.max_recipients,
        relay_server: published.relay_server.clone(),
        relay_port: published.relay_port,
        relay_username: published.relay_username.clone(),
        environment: (access == Access::Socket).then(|| environment::variables(&published)),
    })
}

pub(super) async fn reload(State(admin): State<Admin>) -> Answer<Json<Value>> {
    let stopping = || Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "the relay is stopping");
    let (answer, result) = oneshot::channel();
    admin.reload.send(answer).await.map_err(|_| stopping())?;
    match result.await.map_err(|_| stopping())? {
        Ok(words) => Ok(Json(json!({ "done": words }))),
        Err(words) => Err(Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, words)),
    }
}
