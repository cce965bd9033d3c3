//! TLS to the upstream: whom we trust, and what it means when we don't.
//!
//! The certificate is verified against the *configured* name, whatever DNS made of it (RFC 9525), or
//! against a pinned fingerprint. Without that no octet of login or mail is sent, except where the
//! operator chose `opportunistic`.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    SupportedProtocolVersion,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _},
    version::{TLS12, TLS13},
};
use sha2::{Digest as _, Sha256};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, TlsStream};

use crate::{
    config::{ListenerTls, TlsVersion, Upstream, UpstreamTls},
    environment,
    mail::outcome::Who,
    net,
};

/// Why there is no TLS, in words for the operator.
#[derive(Debug, thiserror::Error)]
#[error("{words}")]
pub struct TlsFault {
    /// What happened.
    pub words: String,
    /// Who can do something about it.
    pub who_must_act: Who,
    /// What to do.
    pub help: Option<&'static str>,
}

/// Makes TLS connections to one upstream. Keeps its sessions, so that they can be resumed.
#[derive(Debug)]
pub struct Connector {
    name: ServerName<'static>,
    config: Arc<ClientConfig>,
    identity: Option<ListenerTls>,
    min_version: TlsVersion,
    /// Where another relay of the same application may publish its fingerprint, and the last one
    /// that was found there.
    published: Vec<PathBuf>,
    place: (String, u16),
    pinned: Mutex<Option<([u8; 32], Arc<ClientConfig>)>>,
}

impl Connector {
    /// Makes a connector as the upstream's settings want it.
    ///
    /// # Errors
    /// A certificate file can't be used.
    pub fn new(upstream: &Upstream) -> Result<Self, TlsFault> {
        let name = ServerName::try_from(upstream.server.clone())
            .map_err(|_| TlsFault::setting(format!("{} is not a host name", upstream.server)))?;
        let provider = net::crypto();
        let verifier: Arc<dyn ServerCertVerifier> = match (upstream.tls, upstream.fingerprint, &upstream.ca) {
            (UpstreamTls::None | UpstreamTls::Opportunistic, ..) => Arc::new(Pin { pin: None, provider }),
            (_, Some(pin), _) => Arc::new(Pin { pin: Some(pin), provider }),
            (_, None, Some(ca)) => authorities(ca, provider)?,
            (_, None, None) => Arc::new(system_verifier(provider)?),
        };
        let identity = upstream.identity.clone();
        // What the operator set wins over what was published.
        let chosen = upstream.fingerprint.is_some()
            || upstream.ca.is_some()
            || matches!(upstream.tls, UpstreamTls::None | UpstreamTls::Opportunistic);
        Ok(Self {
            name,
            config: config(verifier, identity.as_ref(), upstream.tls_min_version)?,
            identity,
            min_version: upstream.tls_min_version,
            published: if chosen { Vec::new() } else { upstream.published.clone() },
            place: (upstream.server.clone(), upstream.port),
            pinned: Mutex::default(),
        })
    }

    /// Does the handshake.
    pub(super) async fn connect(&self, stream: TcpStream) -> Result<TlsStream<TcpStream>, TlsFault> {
        let config = self.config_for_now().await?;
        match TlsConnector::from(config).connect(self.name.clone(), stream).await {
            Ok(stream) => Ok(stream.into()),
            Err(error) => Err(self.explain(&error)),
        }
    }

    /// The usual configuration, or one that pins what a relay of the same application published.
    async fn config_for_now(&self) -> Result<Arc<ClientConfig>, TlsFault> {
        if self.published.is_empty() {
            return Ok(Arc::clone(&self.config));
        }
        let (files, (host, port)) = (self.published.clone(), self.place.clone());
        let found =
            tokio::task::spawn_blocking(move || environment::published_fingerprint(&files, &host, port));
        let Some(pin) = found.await.ok().flatten() else { return Ok(Arc::clone(&self.config)) };
        let mut pinned = self.pinned.lock().unwrap_or_else(PoisonError::into_inner);
        match &*pinned {
            Some((known, config)) if *known == pin => Ok(Arc::clone(config)),
            _ => {
                let fresh = config(
                    Arc::new(Pin { pin: Some(pin), provider: net::crypto() }),
                    self.identity.as_ref(),
                    self.min_version,
                )?;
                *pinned = Some((pin, Arc::clone(&fresh)));
                Ok(fresh)
            }
        }
    }

    fn explain(&self, error: &std::io::Error) -> TlsFault {
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        let (words, help) = match inner {
            Some(rustls::Error::InvalidCertificate(fault)) => self.explain_certificate(fault),
            Some(fault) if is_about_versions(fault) => (self.words_of_version(), HELP_VERSION),
            Some(fault) => (format!("TLS fails: {fault}"), HELP_PORT),
            None if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                ("the upstream closed the connection during the TLS handshake".to_owned(), HELP_PORT)
            }
            None => (format!("TLS fails: {error}"), HELP_PORT),
        };
        TlsFault { words, who_must_act: Who::Operator, help: Some(help) }
    }

    fn words_of_version(&self) -> String {
        let least = match self.min_version {
            TlsVersion::Tls12 => "1.2",
            TlsVersion::Tls13 => "1.3",
        };
        format!("the upstream speaks no version of TLS that is good enough, which is {least} and newer")
    }

    fn explain_certificate(&self, fault: &CertificateError) -> (String, &'static str) {
        let server = &self.place.0;
        match fault {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => (
                "the upstream's certificate has expired".to_owned(),
                "its owner must renew it; check this host's clock too. Nothing is sent until then",
            ),
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                ("the upstream's certificate is not valid yet".to_owned(), "check this host's clock")
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => (
                format!("the upstream's certificate is for another name than {server}"),
                "set smtp_relay_server to the name that the provider documents",
            ),
            CertificateError::UnknownIssuer => (
                "the upstream's certificate is not signed by an authority known here".to_owned(),
                "for an authority of your own set smtp_relay_tls_ca; for one certificate smtp_relay_tls_fingerprint",
            ),
            CertificateError::ApplicationVerificationFailure => (
                "the upstream's certificate is not the pinned one".to_owned(),
                "compare its SHA-256 with smtp_relay_tls_fingerprint, or with what environment.json says",
            ),
            other => (format!("the upstream's certificate is not valid: {other}"), HELP_PORT),
        }
    }
}

impl TlsFault {
    fn setting(words: String) -> Self {
        Self { words, who_must_act: Who::Operator, help: None }
    }

    /// The handshake takes too long.
    pub(super) fn silent() -> Self {
        Self {
            words: "the upstream does not go on with the TLS handshake".to_owned(),
            who_must_act: Who::Upstream,
            help: Some(HELP_PORT),
        }
    }
}

const HELP_VERSION: &str = "it must be renewed; smtp_relay_tls_min_version can be 1.2 at least";
const HELP_PORT: &str = "on port 465 smtp_relay_tls must be implicit, on 587 starttls";

/// The peer's word or ours for it, depending on who noticed first.
fn is_about_versions(fault: &rustls::Error) -> bool {
    matches!(
        fault,
        rustls::Error::AlertReceived(rustls::AlertDescription::ProtocolVersion)
            | rustls::Error::PeerIncompatible(
                rustls::PeerIncompatible::ServerDoesNotSupportTls12Or13
                    | rustls::PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
            )
    )
}

/// For other servers than the upstream: the system's roots, nothing else.
pub(super) fn system_roots() -> Result<Arc<ClientConfig>, TlsFault> {
    config(Arc::new(system_verifier(net::crypto())?), None, TlsVersion::Tls12)
}

fn system_verifier(provider: Arc<CryptoProvider>) -> Result<rustls_platform_verifier::Verifier, TlsFault> {
    rustls_platform_verifier::Verifier::new(provider)
        .map_err(|error| TlsFault::setting(format!("the system's root certificates: {error}")))
}

fn config(
    verifier: Arc<dyn ServerCertVerifier>,
    identity: Option<&ListenerTls>,
    min_version: TlsVersion,
) -> Result<Arc<ClientConfig>, TlsFault> {
    let versions: &[&SupportedProtocolVersion] = match min_version {
        TlsVersion::Tls12 => &[&TLS13, &TLS12],
        TlsVersion::Tls13 => &[&TLS13],
    };
    let builder = ClientConfig::builder_with_provider(net::crypto())
        .with_protocol_versions(versions)
        .map_err(|error| TlsFault::setting(error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let Some(files) = identity else { return Ok(Arc::new(builder.with_no_client_auth())) };
    let fail = |path: &Path, error: &dyn std::fmt::Display| {
        TlsFault::setting(format!("our certificate for the upstream: {}: {error}", path.display()))
    };
    let chain = CertificateDer::pem_file_iter(&files.cert)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| fail(&files.cert, &error))?;
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|error| fail(&files.key, &error))?;
    let config = builder.with_client_auth_cert(chain, key).map_err(|error| fail(&files.cert, &error))?;
    Ok(Arc::new(config))
}

fn authorities(
    path: &PathBuf,
    provider: Arc<CryptoProvider>,
) -> Result<Arc<dyn ServerCertVerifier>, TlsFault> {
    let fail = |reason: String| TlsFault::setting(format!("{}: {reason}", path.display()));
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path).map_err(|error| fail(error.to_string()))? {
        let certificate = certificate.map_err(|error| fail(error.to_string()))?;
        roots.add(certificate).map_err(|error| fail(error.to_string()))?;
    }
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .map(|verifier| verifier as Arc<dyn ServerCertVerifier>)
        .map_err(|_| fail("no certificate in it".to_owned()))
}

/// Accepts one certificate, whatever its name or issuer; or, with no pin, any.
#[derive(Debug)]
struct Pin {
    pin: Option<[u8; 32]>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pin {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match self.pin {
            Some(pin) if Sha256::digest(end_entity)[..] != pin => {
                Err(CertificateError::ApplicationVerificationFailure.into())
            }
            _ => Ok(ServerCertVerified::assertion()),
        }
    }

    // That the peer has the certificate's key is verified in any case: a pin is worth nothing without.
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests;
