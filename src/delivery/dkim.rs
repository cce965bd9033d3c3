//! Keys that sign our mail (RFC 6376, RFC 8463): made, kept, and what of them is published.
//!
//! A private key never leaves this file but into its own, which only its owner can read.

use std::{
    fs,
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use rcgen::{KeyPair, PKCS_ED25519, PKCS_RSA_SHA256, PublicKeyData as _, SigningKey as _};
use sha2::{Digest as _, Sha256};

use crate::{
    clock::Timestamp,
    config::{Dkim, DkimAlgorithm},
    mail::sign::{BodyHash, Draft, Signature},
};

/// RFC 1035 §3.3: a string of a TXT record.
const STRING_MAX: usize = 255;
/// More is no key.
const OCTETS_MAX: u64 = 64 * 1024;

/// A key can't be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyFault {
    /// It isn't there.
    #[error("{}: there is no such file; `outpost dkim` makes the key and tells its DNS record (smtp_dkim)", path.display())]
    Missing {
        /// Where.
        path: PathBuf,
    },
    /// The file can't be read or written.
    #[error("{}: {error} (smtp_dkim)", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// It holds something else.
    #[error("{}: no private key for RSA or Ed25519 in PEM form in it (smtp_dkim)", path.display())]
    Content {
        /// Which.
        path: PathBuf,
    },
}

/// One domain's key, with what signatures say of it.
#[derive(Debug)]
pub struct Signer {
    domain: String,
    selector: String,
    key: KeyPair,
}

impl Signer {
    /// Reads the key.
    ///
    /// # Errors
    /// There is none that can be used.
    pub fn load(dkim: &Dkim) -> Result<Self, KeyFault> {
        let path = &dkim.key;
        let file = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound => KeyFault::Missing { path: path.clone() },
            _ => KeyFault::File { path: path.clone(), error },
        };
        let content = || KeyFault::Content { path: path.clone() };
        if fs::metadata(path).map_err(file)?.len() > OCTETS_MAX {
            return Err(content());
        }
        let key = fs::read_to_string(path).map_err(file)?;
        let key = KeyPair::from_pem(&key).map_err(|_| content())?;
        if ![&PKCS_RSA_SHA256, &PKCS_ED25519].iter().any(|known| key.is_compatible(known)) {
            return Err(content());
        }
        Ok(Self { domain: dkim.domain.clone(), selector: dkim.selector.clone(), key })
    }

    /// Makes the key of that algorithm. One that is there is never replaced.
    ///
    /// # Errors
    /// It can't be written.
    pub fn make(dkim: &Dkim) -> Result<(), KeyFault> {
        let fail = |error| KeyFault::File { path: dkim.key.clone(), error };
        let algorithm = match dkim.algorithm {
            DkimAlgorithm::Rsa => &PKCS_RSA_SHA256, // 2048 bits.
            DkimAlgorithm::Ed25519 => &PKCS_ED25519,
        };
        let key = KeyPair::generate_for(algorithm).map_err(|error| fail(io::Error::other(error)))?;
        write_new(&dkim.key, key.serialize_pem().as_bytes()).map_err(fail)
    }

    /// What is published in the DNS: the name, and the strings of its TXT record.
    pub fn record(&self) -> (String, Vec<String>) {
        // RFC 8463 §4: the bare key. RFC 6376 §3.6.1, as all read it: with its kind.
        let (kind, key) = if self.is_ed25519() {
            ("ed25519", self.key.der_bytes().to_vec())
        } else {
            ("rsa", self.key.subject_public_key_info())
        };
        let text = format!("v=DKIM1; k={kind}; p={}", BASE64.encode(key));
        let strings =
            text.as_bytes().chunks(STRING_MAX).map(|part| String::from_utf8_lossy(part).into_owned());
        (format!("{}._domainkey.{}", self.selector, self.domain), strings.collect())
    }

    /// How well this domain fits a sender of that one: the longer the better; `None` if not at all.
    pub(super) fn fits(&self, sender: &str) -> Option<usize> {
        let sender = sender.as_bytes();
        let at = sender.len().checked_sub(self.domain.len())?;
        let same = sender[at..].eq_ignore_ascii_case(self.domain.as_bytes());
        (same && (at == 0 || sender[at - 1] == b'.')).then_some(self.domain.len())
    }

    /// The field that signs a message with this header section and body.
    pub(super) fn sign(
        &self,
        section: &[u8],
        body: BodyHash,
        without: &[String],
        at: Timestamp,
    ) -> Result<String, rcgen::Error> {
        let algorithm = if self.is_ed25519() { "ed25519-sha256" } else { "rsa-sha256" };
        let signature = Signature { domain: &self.domain, selector: &self.selector, algorithm, at, without };
        let draft = Draft::new(signature, section, body);
        // RFC 8463 §3: Ed25519 signs the hash; RSA's signature takes it by itself.
        let signed = match self.is_ed25519() {
            true => self.key.sign(&Sha256::digest(&draft.signed))?,
            false => self.key.sign(&draft.signed)?,
        };
        Ok(draft.complete(&signed))
    }

    fn is_ed25519(&self) -> bool {
        self.key.is_compatible(&PKCS_ED25519)
    }
}

/// Written whole beside its place, so that a crash leaves no half of a key.
fn write_new(path: &Path, octets: &[u8]) -> io::Result<()> {
    if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    }
    let beside = path.with_extension("new");
    let mut file =
        fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
    file.write_all(octets)?;
    file.sync_all()?;
    // A link, unlike a renaming, replaces nothing.
    let linked = fs::hard_link(&beside, path);
    fs::remove_file(&beside)?;
    linked
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn dkim(directory: &Path, algorithm: DkimAlgorithm) -> Dkim {
        let key = directory.join("keys").join("key.pem");
        Dkim { domain: "example.com".into(), selector: "s1".into(), key, algorithm }
    }

    #[test]
    fn a_key_is_made_once_for_its_owner_alone() {
        for (algorithm, kind, strings) in
            [(DkimAlgorithm::Rsa, "rsa", 2), (DkimAlgorithm::Ed25519, "ed25519", 1)]
        {
            let directory = tempfile::tempdir().unwrap();
            let dkim = dkim(directory.path(), algorithm);
            assert!(matches!(Signer::load(&dkim), Err(KeyFault::Missing { .. })));
            Signer::make(&dkim).unwrap();
            let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
            assert_eq!((mode(&dkim.key), mode(dkim.key.parent().unwrap())), (0o600, 0o700));
            let (name, record) = Signer::load(&dkim).unwrap().record();
            assert_eq!(name, "s1._domainkey.example.com");
            assert!(record[0].starts_with(&format!("v=DKIM1; k={kind}; p=")), "{record:?}");
            assert!(record.len() == strings && record.iter().all(|part| part.len() <= 255), "{record:?}");
            assert!(matches!(Signer::make(&dkim), Err(KeyFault::File { .. })), "made a second time");
            assert_eq!(Signer::load(&dkim).unwrap().record().1, record);
        }
    }

    #[test]
    fn what_is_no_key_is_said_without_its_content() {
        let directory = tempfile::tempdir().unwrap();
        let dkim = dkim(directory.path(), DkimAlgorithm::Rsa);
        fs::create_dir(dkim.key.parent().unwrap()).unwrap();
        fs::write(&dkim.key, "-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n").unwrap();
        let said = Signer::load(&dkim).unwrap_err().to_string();
        assert!(said.contains("key.pem: no private key") && !said.contains("c2VjcmV0"), "{said}");
        let ec = KeyPair::generate().unwrap();
        fs::write(&dkim.key, ec.serialize_pem()).unwrap();
        assert!(matches!(Signer::load(&dkim), Err(KeyFault::Content { .. })));
    }

    #[test]
    fn a_key_is_for_its_domain_and_those_below() {
        let directory = tempfile::tempdir().unwrap();
        let dkim = dkim(directory.path(), DkimAlgorithm::Ed25519);
        Signer::make(&dkim).unwrap();
        let signer = Signer::load(&dkim).unwrap();
        assert_eq!(signer.fits("Example.com"), Some(11));
        assert_eq!(signer.fits("mail.example.com"), Some(11));
        assert_eq!((signer.fits("notexample.com"), signer.fits("com"), signer.fits("ä")), (None, None, None));
    }
}
