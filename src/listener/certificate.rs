//! What is wrong with a certificate of the operator's, before a client finds out.
//!
//! Who signed it is not asked: apps may know an authority that this machine does not.

use std::{fmt, fs, path::Path, time::Duration};

use rustls::{
    CertificateError, Error, RootCertStore,
    client::{verify_server_cert_signed_by_trust_anchor, verify_server_name},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _},
    server::ParsedCertificate,
    sign::CertifiedKey,
};

use crate::{clock::Timestamp, config::ListenerTls, net};

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// The files can't be used at all: which, and why.
    Unusable(String),
    /// The key belongs to another certificate.
    KeyOfAnother,
    /// It has ended.
    Expired,
    /// It ends soon.
    EndsSoon,
    /// It begins in the future.
    NotYetValid,
    /// It is for other names than this one.
    OtherName(String),
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unusable(why) => f.write_str(why),
            Self::KeyOfAnother => f.write_str("this key belongs to another certificate"),
            Self::Expired => f.write_str("this certificate has expired, so apps that verify it send nothing"),
            Self::EndsSoon => f.write_str("this certificate expires within two weeks"),
            Self::NotYetValid => f.write_str("this certificate is not valid yet"),
            Self::OtherName(name) => {
                write!(f, "this certificate is not for {name}, the name under which apps find the relay")
            }
        }
    }
}

/// All that is wrong with the certificate in these files for clients that connect to `host`. One that
/// ends within `soon` is to be renewed.
pub fn flaws(files: &ListenerTls, host: &str, now: Timestamp, soon: Duration) -> Vec<Flaw> {
    let (chain, key) = match read(files) {
        Ok(read) => read,
        Err(why) => return vec![Flaw::Unusable(why)],
    };
    let mut flaws = Vec::new();
    match CertifiedKey::from_der(chain.clone(), key, &net::crypto()) {
        Err(Error::InconsistentKeys(_)) => flaws.push(Flaw::KeyOfAnother),
        Err(error) => return vec![Flaw::Unusable(format!("{}: {error}", files.key.display()))],
        Ok(_) => {}
    }
    let parsed = chain.first().map(ParsedCertificate::try_from);
    let Some(Ok(leaf)) = parsed else {
        return vec![Flaw::Unusable(format!(
            "{}: no certificate in it that can be used",
            files.cert.display()
        ))];
    };
    match (validity(&leaf, now), validity(&leaf, now.after(soon))) {
        (Some(flaw), _) => flaws.push(flaw),
        (None, Some(Flaw::Expired)) => flaws.push(Flaw::EndsSoon),
        _ => {}
    }
    if let Ok(name) = ServerName::try_from(host)
        && verify_server_name(&leaf, &name).is_err()
    {
        flaws.push(Flaw::OtherName(host.to_owned()));
    }
    flaws
}

type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn read(files: &ListenerTls) -> Result<Identity, String> {
    let read = |path: &Path| fs::read(path).map_err(|error| format!("{}: {error}", path.display()));
    let pem = read(&files.cert)?;
    let chain = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>();
    let chain = chain.map_err(|error| format!("{}: {error}", files.cert.display()))?;
    if chain.is_empty() {
        return Err(format!("{}: no certificate in it", files.cert.display()));
    }
    let key = PrivateKeyDer::from_pem_slice(&read(&files.key)?)
        .map_err(|_| format!("{}: no private key in it that can be used", files.key.display()))?;
    Ok((chain, key))
}

/// The time is looked at before the issuer, so no authority is needed for it.
fn validity(leaf: &ParsedCertificate<'_>, now: Timestamp) -> Option<Flaw> {
    let now = UnixTime::since_unix_epoch(Duration::from_millis(now.0));
    let algorithms = net::crypto().signature_verification_algorithms.all;
    let nobody = RootCertStore::empty();
    match verify_server_cert_signed_by_trust_anchor(leaf, &nobody, &[], now, algorithms) {
        Err(Error::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. },
        )) => Some(Flaw::Expired),
        Err(Error::InvalidCertificate(
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
        )) => Some(Flaw::NotYetValid),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    /// A certificate for relay.example from the first to the last day of 2026, and its key.
    fn made() -> (tempfile::TempDir, ListenerTls) {
        let directory = tempfile::tempdir().unwrap();
        let mut wanted = rcgen::CertificateParams::new(vec!["relay.example".to_owned()]).unwrap();
        wanted.not_before = rcgen::date_time_ymd(2026, 1, 1);
        wanted.not_after = rcgen::date_time_ymd(2026, 12, 31);
        let key = rcgen::KeyPair::generate().unwrap();
        let files =
            ListenerTls { cert: directory.path().join("cert.pem"), key: directory.path().join("key.pem") };
        fs::write(&files.cert, wanted.self_signed(&key).unwrap().pem()).unwrap();
        fs::write(&files.key, key.serialize_pem()).unwrap();
        (directory, files)
    }

    #[test]
    fn time_and_name_of_a_certificate_are_looked_at() {
        let (_directory, files) = made();
        let at = |time: &str, host: &str| flaws(&files, host, time.parse().unwrap(), 14 * DAY);
        assert_eq!(at("2026-06-01T00:00:00Z", "relay.example"), []);
        assert_eq!(at("2026-06-01T00:00:00Z", "mailer"), [Flaw::OtherName("mailer".into())]);
        assert_eq!(at("2026-12-20T00:00:00Z", "relay.example"), [Flaw::EndsSoon]);
        assert_eq!(at("2027-01-02T00:00:00Z", "relay.example"), [Flaw::Expired]);
        assert_eq!(at("2025-12-31T00:00:00Z", "relay.example"), [Flaw::NotYetValid]);
    }

    #[test]
    fn a_key_of_another_certificate_and_files_that_are_none_are_told() {
        let ((_one, files), (_two, other)) = (made(), made());
        let now: Timestamp = "2026-06-01T00:00:00Z".parse().unwrap();
        let swapped = ListenerTls { key: other.key, ..files.clone() };
        assert_eq!(flaws(&swapped, "relay.example", now, DAY), [Flaw::KeyOfAnother]);
        let none = ListenerTls { cert: files.key.clone(), ..files.clone() };
        let [Flaw::Unusable(why)] = &flaws(&none, "relay.example", now, DAY)[..] else { panic!("one") };
        assert!(why.ends_with("key.pem: no certificate in it"), "{why}");
    }
}
