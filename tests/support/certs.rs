//! A throw-away certificate authority, and certificates that are right or wrong in one way each.

use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

/// An authority that nobody trusts who wasn't told to.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// A server's certificate with its key.
pub struct Identity {
    pub cert_pem: String,
    pub key_pem: String,
    cert_der: rustls::pki_types::CertificateDer<'static>,
    key_der: Vec<u8>,
}

impl Authority {
    /// A new one with a key of its own.
    pub fn new(name: &str) -> Self {
        let key = KeyPair::generate().expect("a key for the test CA");
        let mut params = CertificateParams::new(Vec::new()).expect("no names: nothing to refuse");
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let pem = params.self_signed(&key).expect("the test CA signs itself").pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// Writes the authority's own certificate.
    pub fn write_to(&self, file: &Path) {
        std::fs::write(file, &self.pem).expect("the test CA's file can be written");
    }

    /// A certificate for these names (IP addresses among them), valid now.
    pub fn identity(&self, names: &[&str]) -> Identity {
        self.sign(names, 2020, 2090)
    }

    /// One for these names that ended years ago.
    pub fn expired_identity(&self, names: &[&str]) -> Identity {
        self.sign(names, 2010, 2020)
    }

    fn sign(&self, names: &[&str], from: i32, to: i32) -> Identity {
        let key = KeyPair::generate().expect("a key for a test certificate");
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("the tests' names are names");
        params.not_before = rcgen::date_time_ymd(from, 1, 1);
        params.not_after = rcgen::date_time_ymd(to, 1, 1);
        let cert = params.signed_by(&key, &self.issuer).expect("the test CA signs");
        Identity {
            cert_pem: cert.pem(),
            key_pem: key.serialize_pem(),
            cert_der: cert.der().clone(),
            key_der: key.serialize_der(),
        }
    }
}

impl Identity {
    /// The same, and it wants one of the client's by this authority.
    pub fn server_config_that_asks(&self, authority: &Authority) -> rustls::ServerConfig {
        use rustls::pki_types::pem::PemObject as _;
        let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut roots = rustls::RootCertStore::empty();
        let der = rustls::pki_types::CertificateDer::from_pem_slice(authority.pem.as_bytes());
        roots.add(der.expect("the test CA's own PEM")).expect("an authority");
        let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(
            std::sync::Arc::new(roots),
            std::sync::Arc::clone(&provider),
        );
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key_der.clone()));
        rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("rustls' own versions")
            .with_client_cert_verifier(verifier.build().expect("a verifier"))
            .with_single_cert(vec![self.cert_der.clone()], key)
            .expect("a certificate and its key")
    }

    /// A rustls server that shows this certificate.
    pub fn server_config(&self) -> rustls::ServerConfig {
        let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key_der.clone()));
        rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("rustls' own versions")
            .with_no_client_auth()
            .with_single_cert(vec![self.cert_der.clone()], key)
            .expect("a certificate and its key")
    }
}
