//! The listener's certificate: the operator's, or one of our own made at first start.

use std::{
    fs, io,
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use sha2::{Digest as _, Sha256};

use super::validity;
use crate::{clock::Timestamp, config::ListenerTls};

/// A certificate to show, ready for use.
#[derive(Clone, Debug)]
pub struct Identity {
    /// For the handshake: TLS 1.2 and 1.3 only (RFC 8996).
    pub config: Arc<ServerConfig>,
    /// SHA-256 of the leaf in lower-case hexadecimal, so that it can be pinned.
    pub fingerprint: String,
}

/// The certificate can't be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file can't be read or written.
    #[error("{}: {error}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A file doesn't hold what it should.
    #[error("{}: {reason}", path.display())]
    Content {
        /// Which.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

/// Loads the operator's certificate, or our own from `directory`, where it is made if it is missing.
///
/// # Errors
/// Names the file.
pub fn load(own: Option<&ListenerTls>, directory: &Path, hostname: &str) -> Result<Identity, IdentityError> {
    let made;
    let files = match own {
        Some(files) => files,
        None => {
            made = made_in(directory);
            if !(made.cert.exists() && made.key.exists()) {
                make(&made, directory, hostname)?;
            }
            &made
        }
    };
    identity(files)
}

/// When the certificate expires that [`load`] would read; `None` if there is none that can be read.
pub fn expires(own: Option<&ListenerTls>, directory: &Path) -> Option<Timestamp> {
    let files = own.cloned().unwrap_or_else(|| made_in(directory));
    let leaf = CertificateDer::pem_file_iter(files.cert).ok()?.next()?.ok()?;
    validity::expires(&leaf)
}

/// Where our own certificate is, in `directory`.
pub fn made_in(directory: &Path) -> ListenerTls {
    ListenerTls { cert: directory.join("cert.pem"), key: directory.join("key.pem") }
}

/// Makes a certificate of the given files' content, without looking at any default.
fn identity(files: &ListenerTls) -> Result<Identity, IdentityError> {
    let content = |path: &Path, reason: String| IdentityError::Content { path: path.to_owned(), reason };
    let pem = read(&files.cert)?;
    let chain = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| content(&files.cert, error.to_string()))?;
    let leaf = chain.first().ok_or_else(|| content(&files.cert, "no certificate in it".to_owned()))?;
    let fingerprint = Sha256::digest(leaf).iter().map(|b| format!("{b:02x}")).collect();
    let key = PrivateKeyDer::from_pem_slice(&read(&files.key)?)
        .map_err(|_| content(&files.key, "no private key in it that can be used".to_owned()))?;
    let mut config = ServerConfig::builder_with_provider(crate::net::crypto())
        .with_safe_default_protocol_versions()
        .map_err(|error| content(&files.cert, error.to_string()))?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|error| content(&files.cert, error.to_string()))?;
    // Tickets cost a write per connection and more memory than a relay's few clients are worth.
    config.send_tls13_tickets = 1;
    Ok(Identity { config: Arc::new(config), fingerprint })
}

fn make(files: &ListenerTls, directory: &Path, hostname: &str) -> Result<(), IdentityError> {
    let fail = |path: &Path| {
        let path = path.to_owned();
        move |error: io::Error| IdentityError::File { path, error }
    };
    fs::create_dir_all(directory).map_err(fail(directory))?;
    let names = [hostname, "localhost", "127.0.0.1", "::1"].map(str::to_owned).to_vec();
    let pair = rcgen::generate_simple_self_signed(names)
        .map_err(|error| IdentityError::Content { path: files.cert.clone(), reason: error.to_string() })?;
    write(&files.key, pair.signing_key.serialize_pem().as_bytes(), 0o600).map_err(fail(&files.key))?;
    write(&files.cert, pair.cert.pem().as_bytes(), 0o644).map_err(fail(&files.cert))?;
    // Each is whole before it has its name, and the key has it first: a certificate alone, or a part of one, would
    // look like an operator's mistake.
    fs::rename(beside(&files.key), &files.key).map_err(fail(&files.key))?;
    fs::rename(beside(&files.cert), &files.cert).map_err(fail(&files.cert))
}

fn beside(path: &Path) -> PathBuf {
    path.with_extension("new")
}

fn write(path: &Path, octets: &[u8], mode: u32) -> io::Result<()> {
    let mut options = fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(mode).open(beside(path))?;
    file.write_all(octets)?;
    file.sync_all()
}

fn read(path: &Path) -> Result<Vec<u8>, IdentityError> {
    fs::read(path).map_err(|error| IdentityError::File { path: path.to_owned(), error })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_certificate_is_made_once_and_kept() {
        let directory = tempfile::tempdir().unwrap();
        let first = load(None, directory.path(), "relay.example").unwrap();
        let second = load(None, directory.path(), "relay.example").unwrap();
        assert_eq!(first.fingerprint, second.fingerprint);
        assert_eq!(first.fingerprint.len(), 64);
        use std::os::unix::fs::PermissionsExt as _;
        let mode = fs::metadata(directory.path().join("key.pem")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn what_is_wrong_with_a_file_is_said_with_its_name_and_without_its_content() {
        let directory = tempfile::tempdir().unwrap();
        load(None, directory.path(), "relay.example").unwrap();
        let files =
            ListenerTls { cert: directory.path().join("key.pem"), key: directory.path().join("cert.pem") };
        let error = load(Some(&files), directory.path(), "x").unwrap_err().to_string();
        assert!(error.contains("key.pem: no certificate in it"), "{error}");
        let files = ListenerTls { cert: directory.path().join("none.pem"), key: files.key };
        assert!(load(Some(&files), directory.path(), "x").unwrap_err().to_string().contains("none.pem"));
    }
}
