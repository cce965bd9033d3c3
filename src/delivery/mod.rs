//! Delivery: we speak to a smarthost.
//!
//! - here: the agent, which opens connections to one upstream
//! - [`client`]: the conversation on an open connection
//! - [`auth`]: which SASL mechanism, and its client side
//! - [`tls`]: whom we trust
//! - [`classify`]: what a reply means, and for whom
//! - `dress`: how mail is changed for an upstream
//! - [`dkim`]: keys that sign our mail
//! - [`device`]: a user's consent to access tokens
//! - [`route`]: which upstreams a message may go by
//! - [`phase`]: the phases of a conversation and their deadlines
//! - [`check`]: the same, step by step, for `outpost check --connect`
//!
//! An agent judges and reports; it never changes the queue. Whatever goes wrong before MAIL concerns
//! the upstream or our login, never a message.

pub mod auth;
pub mod check;
pub mod classify;
pub mod client;
pub mod device;
mod dial;
pub mod dkim;
mod dress;
mod lost;
mod needs;
mod oauth;
pub mod phase;
pub mod post;
mod proxy;
pub mod route;
mod source;
pub mod tls;
mod transaction;
mod withheld;

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use secrecy::SecretString;
use tokio::{net::TcpStream, time::timeout};

use self::{
    auth::Mechanism,
    classify::{Said, Verdict},
    client::Client,
    dial::dial,
    dkim::Signer,
    lost::Lost,
    oauth::Tokens,
    phase::Phase,
    tls::{Connector, TlsFault},
    withheld::withheld,
};
pub use self::{
    dress::{Dressed, Head},
    oauth::{TokenInUse, TokenTrouble},
};
use crate::{
    clock::Clock,
    config::{Login, Upstream, UpstreamTls},
    mail::{
        content::Content,
        envelope::Handling,
        outcome::{Advice, Evidence, Scope, Who},
    },
    net::Stream,
    smtp::{
        address::{Mailbox, ReversePath},
        parameter::{Notify, OriginalRecipient},
        reply::{Reply, Severity},
    },
};

/// What one attempt has to carry.
#[derive(Debug)]
pub struct Message<'a> {
    /// Who hears of a failure.
    pub reverse_path: &'a ReversePath,
    /// Whom to reach now.
    pub recipients: Vec<Forward<'a>>,
    /// What its sender asked for.
    pub handling: &'a Handling,
    /// What to bring.
    pub content: &'a Content,
    /// What goes out in the place of the content's first octets.
    pub head: Option<&'a Head>,
}

impl Message<'_> {
    /// Octets that go out, dots apart.
    pub fn size(&self) -> u64 {
        let (more, less) = self.head.map_or((0, 0), |head| (head.octets.len(), head.replaces));
        (self.content.size() + more as u64).saturating_sub(less as u64)
    }
}

/// One recipient of an attempt.
#[derive(Clone, Copy, Debug)]
pub struct Forward<'a> {
    /// Whom to reach.
    pub mailbox: &'a Mailbox,
    /// Of what the sender wants to hear.
    pub notify: Option<Notify>,
    /// The recipient as the sender first knew it.
    pub original: Option<&'a OriginalRecipient>,
}

/// A connection can't be opened. Concerns the upstream or our login, never a message.
#[derive(Debug)]
pub struct Trouble {
    /// What was seen, who must act, and what to do.
    pub evidence: Evidence,
}

/// Opens connections to one upstream. Clones share the TLS sessions.
#[derive(Clone, Debug)]
pub struct Agent {
    upstream: Arc<Upstream>,
    hostname: Arc<str>,
    connector: Arc<Connector>,
    tokens: Option<Arc<Tokens>>,
    signers: Arc<[Signer]>,
    clock: Clock,
}

/// Why a host can't be reached.
struct Unreachable {
    words: String,
    /// Its name leads nowhere.
    is_name: bool,
}

/// One thing done on the way to an open connection.
#[derive(Debug)]
pub struct Step {
    /// What: `TLS`.
    pub what: String,
    /// What came of it.
    pub detail: String,
}

impl Agent {
    /// An agent for `upstream` that calls itself `hostname`.
    ///
    /// # Errors
    /// A certificate file can't be used.
    pub fn new(upstream: Upstream, hostname: &str, clock: Clock) -> Result<Self, TlsFault> {
        let connector = Arc::new(Connector::new(&upstream)?);
        let oauth = upstream.login.as_ref().and_then(|login| login.oauth.clone());
        let tokens = oauth.map(|oauth| Tokens::new(oauth, clock.clone()));
        let (upstream, hostname) = (Arc::new(upstream), hostname.into());
        Ok(Self { upstream, hostname, connector, tokens, signers: Arc::default(), clock })
    }

    /// The same agent, which signs by these keys.
    pub fn signing(self, signers: &Arc<[Signer]>) -> Self {
        Self { signers: Arc::clone(signers), ..self }
    }

    /// Whether connections of both go to the same place in the same way.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.connector, &other.connector)
    }

    /// The same agent for `upstream`, whose routes and limits may differ, if connections of this one are
    /// as good as new ones.
    pub fn with(&self, upstream: &Upstream, hostname: &str) -> Option<Self> {
        let same = self.upstream.is_same(upstream) && *self.hostname == *hostname;
        same.then(|| Self { upstream: Arc::new(upstream.clone()), ..self.clone() })
    }

    /// The upstream.
    pub fn upstream(&self) -> &Upstream {
        &self.upstream
    }

    /// Connects, secures and logs in. Tells `done` of each step that succeeded.
    ///
    /// # Errors
    /// Why not, in words for the operator.
    pub async fn open(&self, mut done: impl FnMut(Step)) -> Result<Client<TcpStream>, Box<Trouble>> {
        let upstream = &self.upstream;
        let (stream, peer) = self.connect().await?;
        let by = if upstream.proxy.is_some() { "through the proxy at " } else { "to " };
        done(Step::new("connect", format!("connected {by}{peer}")));
        let (stream, implicit) = match upstream.tls {
            UpstreamTls::Implicit => (self.handshake(stream).await?, true),
            _ => (Stream::Plain(stream), false),
        };
        if implicit {
            done(Step::new("TLS", "certificate verified".to_owned()));
        }
        let mut client =
            Client::new(stream, Arc::clone(upstream), Arc::clone(&self.hostname), self.clock.clone());
        let greeting = client.greeting().await.map_err(|lost| self.lost(lost))?;
        self.must(Phase::Greeting, &greeting)?;
        done(Step::new("greeting", greeting.to_string()));
        self.ehlo(&mut client).await?;
        if !implicit && upstream.tls != UpstreamTls::None {
            client = self.start_tls(client, &mut done).await?;
        }
        self.log_in(&mut client, &mut done).await?;
        Ok(client)
    }

    /// What to say of a connection that ended too early.
    fn lost(&self, lost: Lost) -> Box<Trouble> {
        // An upstream that hangs up on a login has answered it.
        let scope = if lost.phase == Phase::Auth { Scope::Credential } else { Scope::Upstream };
        match &lost.reply {
            Some(reply) => self.refused(lost.phase, reply),
            None => self.trouble(lost.phase, scope, None, Some(lost.words()), Who::Upstream, None),
        }
    }

    /// A connection to the upstream, and to where it was made: itself, or the proxy.
    async fn connect(&self) -> Result<(TcpStream, SocketAddr), Box<Trouble>> {
        let upstream = &self.upstream;
        let limit = Phase::Connect.deadline(upstream.timeout);
        let fail = |words: String, help| {
            // A name that leads nowhere is a slip in the settings, or this host's name server.
            let ours = upstream.proxy.is_some() || help == HELP_NAME;
            let who = if ours { Who::Operator } else { Who::Upstream };
            self.trouble(Phase::Connect, Scope::Network, None, Some(words), who, Some(help))
        };
        let Some(proxy) = &upstream.proxy else {
            return self.reach(&upstream.server, upstream.port, limit).await.map_err(|unreachable| {
                let Unreachable { words, is_name } = unreachable;
                fail(words, if is_name { HELP_NAME } else { HELP_CONNECT })
            });
        };
        let begun = Instant::now();
        let (mut stream, address) = self
            .reach(&proxy.host, proxy.port, limit)
            .await
            .map_err(|unreachable| fail(format!("the proxy: {}", unreachable.words), HELP_PROXY))?;
        let through = proxy::through(&mut stream, proxy, &upstream.server, upstream.port);
        match timeout(limit.saturating_sub(begun.elapsed()), through).await {
            Ok(Ok(())) => Ok((stream, address)),
            Ok(Err(words)) => Err(fail(words, HELP_PROXY)),
            Err(_) => Err(fail("the proxy does not answer".to_owned(), HELP_PROXY)),
        }
    }

    async fn reach(
        &self,
        host: &str,
        port: u16,
        limit: Duration,
    ) -> Result<(TcpStream, SocketAddr), Unreachable> {
        let unknown = |words| Unreachable { words, is_name: true };
        let found: Vec<_> = match timeout(limit, tokio::net::lookup_host((host, port))).await {
            Ok(Ok(found)) => found.collect(),
            Ok(Err(error)) => {
                let said = error.to_string();
                let said = said.strip_prefix(LOOKUP_FAILED).unwrap_or(&said);
                return Err(unknown(format!("the host name {host} can't be resolved ({said})")));
            }
            Err(_) => return Err(unknown(format!("no answer about the host name {host}"))),
        };
        let last = match dial(found, &self.upstream.source, limit).await {
            Ok((stream, address)) => {
                // Envelope and content are written as they are complete; Nagle would hold them.
                let _ = stream.set_nodelay(true);
                return Ok((stream, address));
            }
            Err(error) => error,
        };
        let place = format!("{host}:{port}");
        let words = match last.kind() {
            io::ErrorKind::ConnectionRefused => format!("{place} refuses connections"),
            io::ErrorKind::TimedOut => format!("{place} does not answer"),
            io::ErrorKind::NotFound => format!("{place} has no address that can be reached from ours"),
            io::ErrorKind::AddrNotAvailable => {
                format!("can't connect to {place}: smtp_relay_source_address is no address of this host")
            }
            _ => format!("can't connect to {place}: {last}"),
        };
        Err(Unreachable { words, is_name: false })
    }

    async fn handshake(&self, stream: TcpStream) -> Result<Stream<TcpStream>, Box<Trouble>> {
        let limit = Phase::Tls.deadline(self.upstream.timeout);
        let fault = match timeout(limit, self.connector.connect(stream)).await {
            Ok(Ok(stream)) => return Ok(Stream::Tls(Box::new(stream))),
            Ok(Err(fault)) => fault,
            Err(_) => TlsFault::silent(),
        };
        Err(self.trouble(
            Phase::Tls,
            Scope::Upstream,
            None,
            Some(fault.words),
            fault.who_must_act,
            fault.help,
        ))
    }

    async fn ehlo(&self, client: &mut Client<TcpStream>) -> Result<(), Box<Trouble>> {
        let reply = client.ehlo().await.map_err(|lost| self.lost(lost))?;
        self.must(Phase::Ehlo, &reply)
    }

    /// RFC 3207, and nothing in clear but the word itself.
    async fn start_tls(
        &self,
        mut client: Client<TcpStream>,
        done: &mut impl FnMut(Step),
    ) -> Result<Client<TcpStream>, Box<Trouble>> {
        let required = self.upstream.tls == UpstreamTls::StartTls;
        let refuse = |reply: Option<Reply>, words: &str| {
            self.trouble(
                Phase::StartTls,
                Scope::Upstream,
                reply,
                Some(words.to_owned()),
                Who::Operator,
                Some(HELP_STARTTLS),
            )
        };
        if !client.capabilities().starttls {
            return if required {
                Err(refuse(None, "the upstream does not offer STARTTLS, so nothing is sent to it"))
            } else {
                Ok(client)
            };
        }
        let reply = client.start_tls().await.map_err(|lost| self.lost(lost))?;
        if !reply.is_success() {
            return if required {
                Err(refuse(Some(reply), "the upstream refuses STARTTLS"))
            } else {
                Ok(client)
            };
        }
        let Some(stream) = client.into_plain() else {
            return Err(self.trouble(
                Phase::StartTls,
                Scope::Upstream,
                None,
                Some("text in clear was injected behind the answer to STARTTLS, before TLS began".to_owned()),
                Who::Operator,
                Some("somebody on the way may be tampering with the connection; nothing was sent"),
            ));
        };
        let stream = self.handshake(stream).await?;
        let verified = if required { "certificate verified" } else { "encrypted, not verified" };
        done(Step::new("TLS", verified.to_owned()));
        let mut client =
            Client::new(stream, Arc::clone(&self.upstream), Arc::clone(&self.hostname), self.clock.clone());
        // RFC 3207 §4.2: what was said before TLS counts for nothing.
        self.ehlo(&mut client).await?;
        Ok(client)
    }

    async fn log_in(
        &self,
        client: &mut Client<TcpStream>,
        done: &mut impl FnMut(Step),
    ) -> Result<(), Box<Trouble>> {
        let Some(login) = &self.upstream.login else { return Ok(()) };
        let fail = |words: &str, help| {
            let words = Some(words.to_owned());
            self.trouble(Phase::Auth, Scope::Credential, None, words, Who::Operator, Some(help))
        };
        let verified = client.is_tls() && self.upstream.tls != UpstreamTls::Opportunistic;
        if !verified && !self.upstream.allow_insecure_auth {
            return Err(fail("the login is not sent without verified TLS", HELP_STARTTLS));
        }
        let Some(mechanism) = auth::choose(login, &client.capabilities().auth, client.has_binding()) else {
            let words = format!(
                "the upstream offers no AUTH mechanism of ours ({})",
                client.capabilities().auth.join(" ")
            );
            return Err(fail(&words, "remove the user name and password, or set smtp_relay_auth"));
        };
        let (token, was_at_hand) = self.token().await?;
        let given = Login { password: token.unwrap_or_else(|| login.password.clone()), ..login.clone() };
        let mut reply = self.authenticate(client, mechanism, &given).await?;
        if let Some(tokens) = self.tokens.as_ref().filter(|_| !reply.is_success()) {
            tokens.forget();
            // A token can end before its time; the next one may do.
            if was_at_hand && reply.severity() == Severity::Permanent {
                let (token, _) = self.token().await?;
                let given = Login { password: token.unwrap_or(given.password), ..login.clone() };
                reply = self.authenticate(client, mechanism, &given).await?;
                if !reply.is_success() {
                    // It is at hand now, and would be tried twice again.
                    tokens.forget();
                }
            }
        }
        if reply.is_success() {
            done(Step::new("AUTH", format!("logged in with {} as {}", mechanism.name(), login.username)));
            return Ok(());
        }
        Err(self.refused(Phase::Auth, &reply))
    }

    /// Logs in; what the upstream says of it repeats nothing of what it was sent.
    async fn authenticate(
        &self,
        client: &mut Client<TcpStream>,
        mechanism: Mechanism,
        login: &Login,
    ) -> Result<Reply, Box<Trouble>> {
        match client.authenticate(mechanism, login).await {
            Ok(reply) => Ok(withheld(reply, login)),
            Err(mut lost) => {
                lost.reply = lost.reply.map(|reply| withheld(reply, login));
                Err(self.lost(lost))
            }
        }
    }

    /// An access token in the password's place, if that is how we log in, and whether it was at hand.
    async fn token(&self) -> Result<(Option<SecretString>, bool), Box<Trouble>> {
        let Some(tokens) = &self.tokens else { return Ok((None, false)) };
        match tokens.token(self.upstream.auth_retry).await {
            Ok((token, was_at_hand)) => Ok((Some(token), was_at_hand)),
            Err(fault) => {
                let who = if fault.scope == Scope::Credential { Who::Operator } else { Who::Upstream };
                let (help, words) = (tokens.help(&fault), format!("no access token: {}", fault.words));
                Err(self.trouble(Phase::Auth, fault.scope, None, Some(words), who, Some(help)))
            }
        }
    }

    /// The access token in use, if that is how we log in.
    pub fn token_in_use(&self) -> Option<TokenInUse> {
        self.tokens.as_ref()?.in_use()
    }

    /// Replaces the access token in use, if its time is near. To be asked again and again; not to be given up
    /// halfway, for the answer may hold the only refresh token that is good from then on.
    pub async fn renew_token(&self) {
        let Some(tokens) = &self.tokens else { return };
        let trouble = || tokens.in_use().and_then(|token| token.trouble);
        let before = trouble();
        tokens.renew(self.upstream.auth_retry).await;
        let upstream = self.upstream.name.as_str();
        match (before, trouble()) {
            (None, Some(TokenTrouble { words, help })) => {
                tracing::warn!(upstream, help, "the access token can't be renewed: {words}");
            }
            (Some(_), None) => tracing::info!(upstream, "the access token is renewed"),
            _ => {}
        }
    }

    /// Lets an access token that could not be renewed be tried again at once.
    pub fn hasten_token(&self) {
        if let Some(tokens) = &self.tokens {
            tokens.hasten();
        }
    }

    fn must(&self, phase: Phase, reply: &Reply) -> Result<(), Box<Trouble>> {
        if reply.is_success() {
            return Ok(());
        }
        Err(self.refused(phase, reply))
    }

    /// What a reply on the way to an open connection means.
    fn refused(&self, phase: Phase, reply: &Reply) -> Box<Trouble> {
        let provider = self.upstream.provider.as_deref();
        let said = Said { phase, reply, others_accepted: false, provider };
        let verdict = classify::judge(&self.upstream.replies, said, self.clock.now());
        let Verdict { scope, explanation, advice, .. } = verdict;
        let mut trouble = self.trouble(phase, scope, Some(reply.clone()), explanation, Who::Upstream, None);
        trouble.evidence.advice = advice.or(trouble.evidence.advice);
        trouble
    }

    fn trouble(
        &self,
        phase: Phase,
        scope: Scope,
        reply: Option<Reply>,
        explanation: Option<String>,
        who: Who,
        help: Option<&str>,
    ) -> Box<Trouble> {
        let evidence = Evidence {
            at: self.clock.now(),
            upstream: self.upstream.name.clone(),
            phase: phase.name().to_owned(),
            scope,
            reply,
            explanation,
            status: None,
            advice: Some(Box::new(Advice {
                who,
                help: help.map(str::to_owned),
                not_before: None,
                tries: None,
                slower: None,
            })),
            uncertain: false,
            tls: None,
        };
        Box::new(Trouble { evidence })
    }
}

impl Step {
    fn new(what: &str, detail: String) -> Self {
        Self { what: what.to_owned(), detail }
    }
}

/// What Rust's library says before the system's words.
const LOOKUP_FAILED: &str = "failed to lookup address information: ";
const HELP_NAME: &str = "check smtp_relay_server and the name server of this host";
const HELP_CONNECT: &str = "check smtp_relay_server and smtp_relay_port, and whether outgoing connections to that port are allowed here";
const HELP_PROXY: &str =
    "check smtp_relay_proxy, and whether the proxy lets connections to that host and port through";
const HELP_STARTTLS: &str =
    "somebody may be stripping it; if the upstream really has none, set smtp_relay_tls: implicit (port 465)";
