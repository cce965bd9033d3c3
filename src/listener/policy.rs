//! Who may do what here: facts about the client in, verdict out.

use std::{net::IpAddr, time::Duration};

use ipnet::IpNet;

use super::auth::Credentials;
use crate::smtp::reply::Reply;

/// What a listener holds its clients to. Replaced as a whole when the configuration is read again.
#[derive(Debug)]
pub struct Rules {
    /// Our name.
    pub hostname: String,
    /// Who may log in.
    pub credentials: Credentials,
    /// Who may relay without.
    pub networks: Vec<IpNet>,
    /// Octets of content.
    pub message_size: u64,
    /// Recipients of one message.
    pub recipients: usize,
    /// BINARYMIME is offered (RFC 3030).
    pub binary: bool,
    /// How long a message can be held by FUTURERELEASE (RFC 4865); zero: not at all.
    pub hold: Duration,
    /// Our Received field is put on top.
    pub trace: bool,
}

/// A client, as far as it matters for what it may do. STARTTLS replaces it wholesale.
#[derive(Clone, Debug)]
pub struct Client {
    /// Where it connects from.
    pub address: IpAddr,
    /// The connection is in TLS.
    pub tls: bool,
    /// What it calls itself: `None` before EHLO or HELO.
    pub hello: Option<Hello>,
    /// Who logged in.
    pub user: Option<super::auth::Authenticated>,
}

/// How a client introduced itself.
#[derive(Clone, Debug)]
pub struct Hello {
    /// The name, made harmless.
    pub name: String,
    /// By EHLO.
    pub extended: bool,
}

impl Client {
    /// One that has just connected.
    pub fn new(address: IpAddr, tls: bool) -> Self {
        // A listener on [::] sees IPv4 clients as mapped addresses; networks are written in IPv4.
        Self { address: address.to_canonical(), tls, hello: None, user: None }
    }

    /// Nobody can listen in between: a password may be shown.
    pub fn is_private(&self) -> bool {
        self.tls || self.address.is_loopback()
    }
}

/// The proof that a client may have its mail relayed. Only [`may_relay`] makes one.
#[derive(Clone, Debug)]
pub struct RelayPermitted(());

/// Whether this client's mail is relayed.
///
/// # Errors
/// The refusal to say.
pub fn may_relay(rules: &Rules, client: &Client) -> Result<RelayPermitted, Reply> {
    let trusted = || rules.networks.iter().any(|network| network.contains(&client.address));
    if client.user.is_some() || trusted() { Ok(RelayPermitted(())) } else { Err(Reply::auth_required()) }
}
