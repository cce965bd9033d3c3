//! Who may do what here: facts about the client in, verdict out.

use std::{borrow::Cow, collections::HashMap, net::IpAddr, time::Duration};

use ipnet::IpNet;

use super::{allowance, auth::Credentials};
use crate::config::SessionBounds;
use crate::smtp::{
    address::{Mailbox, ReversePath},
    pattern::AddressPattern,
    reply::Reply,
};

/// What a listener holds its clients to. Replaced as a whole when the configuration is read again.
#[derive(Debug)]
pub struct Rules {
    /// Our name.
    pub hostname: String,
    /// Who may log in.
    pub credentials: Credentials,
    /// Who may relay without.
    pub networks: Vec<IpNet>,
    /// Which senders may be used.
    pub senders: Senders,
    /// Octets of content.
    pub message_size: u64,
    /// Recipients of one message.
    pub recipients: usize,
    /// The same for those who logged in by that name, where their limits never have room for so many.
    pub recipients_of_users: HashMap<String, usize>,
    /// BINARYMIME is offered (RFC 3030).
    pub binary: bool,
    /// How long a message can be held by FUTURERELEASE (RFC 4865); zero: not at all.
    pub hold: Duration,
    /// What one session may ask of us.
    pub bounds: SessionBounds,
    /// Our Received field is put on top.
    pub trace: bool,
}

/// Which addresses MAIL may name. A sender must be in each list that concerns it.
#[derive(Debug, Default)]
pub struct Senders {
    /// `smtp_senders`, for everybody; `None`: any.
    pub of_all: Option<Vec<AddressPattern>>,
    /// `smtp_users.NAME.senders`, for those who logged in by that name.
    pub of_users: HashMap<String, Vec<AddressPattern>>,
}

impl Senders {
    fn check(&self, user: Option<&str>, sender: &Mailbox) -> Result<(), Reply> {
        let own =
            user.and_then(|user| Some((format!("smtp_users.{user}.senders"), self.of_users.get(user)?)));
        let all = self.of_all.as_ref().map(|list| ("smtp_senders".to_owned(), list));
        match all.into_iter().chain(own).find(|(_, list)| !list.iter().any(|one| one.matches(sender))) {
            Some((key, _)) => Err(Reply::sender_not_allowed(sender, &key)),
            None => Ok(()),
        }
    }
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
    /// What only the two ends of its TLS connection know (RFC 9266).
    pub binding: Option<[u8; 32]>,
    /// It must log in here, wherever it comes from.
    pub login_required: bool,
    /// It may do with the queue what it likes, and came by the way that proves it.
    pub operator: bool,
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
        Self {
            address: address.to_canonical(),
            tls,
            binding: None,
            login_required: false,
            operator: false,
            hello: None,
            user: None,
        }
    }

    /// The same one over TLS: all it said before is forgotten (RFC 3207 §4.2).
    #[must_use]
    pub fn over_tls(&self, binding: Option<[u8; 32]>) -> Self {
        Self { binding, login_required: self.login_required, ..Self::new(self.address, true) }
    }

    /// Nobody can listen in between: a password may be shown.
    pub fn is_private(&self) -> bool {
        self.tls || self.address.is_loopback()
    }
}

/// The proof that a client may have its mail relayed. Only [`may_relay`] makes one.
#[derive(Clone, Debug)]
pub struct RelayPermitted(());

/// Whether this client may relay at all: it has logged in, comes from a trusted network, or is the
/// operator.
pub fn is_known(rules: &Rules, client: &Client) -> bool {
    let trusted = || rules.networks.iter().any(|network| network.contains(&client.address));
    client.user.is_some() || client.operator || (!client.login_required && trusted())
}

/// The most recipients that a message of this client may have, and the key that says so.
pub fn most_recipients(rules: &Rules, client: &Client) -> (usize, Cow<'static, str>) {
    let of_user = client.user.as_ref().and_then(|user| {
        let most = rules.recipients_of_users.get(user.user()).filter(|most| **most < rules.recipients)?;
        Some((*most, allowance::key_of(user.user()).into()))
    });
    of_user.unwrap_or((rules.recipients, "smtp_max_recipients".into()))
}

/// Whether this client's mail is relayed with this sender.
///
/// RFC 5321 §4.5.5: whoever may relay may use the null sender, because reports of a local MTA have it.
///
/// # Errors
/// The refusal to say.
pub fn may_relay(rules: &Rules, client: &Client, sender: &ReversePath) -> Result<RelayPermitted, Reply> {
    if !is_known(rules, client) {
        let nobody = rules.credentials.is_empty();
        return Err(if nobody { Reply::relaying_denied() } else { Reply::auth_required() });
    }
    if let Some(mailbox) = sender.mailbox() {
        rules.senders.check(client.user.as_ref().map(|user| user.user()), mailbox)?;
    }
    Ok(RelayPermitted(()))
}
