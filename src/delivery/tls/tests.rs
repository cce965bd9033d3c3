//! Handshakes with servers of every kind, over loopback.

use std::process::Command;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::{HandshakeKind, NamedGroup, ServerConfig, pki_types::PrivatePkcs8KeyDer};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::{
    config::{Source, parse},
    delivery::client::tests::upstream,
};

/// A certificate for `localhost`, by its own authority: PEM, and what a server shows.
struct Server {
    pem: String,
    fingerprint: String,
    config: ServerConfig,
}

fn server(versions: &[&'static SupportedProtocolVersion]) -> Server {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let der = made.cert.der().clone();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let config = ServerConfig::builder_with_provider(net::crypto())
        .with_protocol_versions(versions)
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![der.clone()], key)
        .unwrap();
    let fingerprint = Sha256::digest(&der).iter().map(|octet| format!("{octet:02x}")).collect();
    Server { pem: made.cert.pem(), fingerprint, config }
}

fn connector(keys: &str) -> Connector {
    let text = format!(
        "mailer: {{type: smtp, config: {{smtp_relay_server: localhost, smtp_relay_port: 2587, {keys}}}}}"
    );
    let loaded = parse(&text, "dotcloud.yml", &Source::default(), &|_| None).unwrap();
    Connector::new(&loaded.settings.upstreams[0]).unwrap()
}

/// Connects; a byte travels each way, so that tickets have come. What the server saw of the handshake.
async fn connect(connector: &Connector, server: &Arc<ServerConfig>) -> Result<Seen, TlsFault> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let acceptor = TlsAcceptor::from(Arc::clone(server));
    let accepting = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = acceptor.accept(stream).await?;
        stream.write_all(b"!").await?;
        stream.read_u8().await?;
        let connection = stream.get_ref().1;
        let group = connection.negotiated_key_exchange_group().map(|group| group.name());
        std::io::Result::Ok((connection.handshake_kind(), group))
    });
    let stream = TcpStream::connect(address).await.unwrap();
    let mut stream = connector.connect(stream).await?;
    assert_eq!(stream.read_u8().await.unwrap(), b'!');
    stream.write_all(b"!").await.unwrap();
    Ok(accepting.await.unwrap().unwrap())
}

type Seen = (Option<HandshakeKind>, Option<NamedGroup>);

#[tokio::test]
async fn the_oldest_version_that_is_good_enough_is_the_operator_s_choice() {
    let old = server(&[&TLS12]);
    let pin = format!("smtp_relay_tls_fingerprint: {}", old.fingerprint);
    let config = Arc::new(old.config);
    assert!(connect(&connector(&pin), &config).await.is_ok());
    let fault = connect(&connector(&format!("{pin}, smtp_relay_tls_min_version: 1.3")), &config).await;
    let fault = fault.unwrap_err();
    assert!(fault.words.contains("1.3 and newer"), "{fault}");
    assert!(fault.help.unwrap().contains("smtp_relay_tls_min_version"), "{fault}");

    let new = server(&[&TLS13]);
    let pin = format!("smtp_relay_tls_fingerprint: {}", new.fingerprint);
    let config = Arc::new(new.config);
    assert!(connect(&connector(&format!("{pin}, smtp_relay_tls_min_version: 1.3")), &config).await.is_ok());
}

#[tokio::test]
async fn a_pinned_certificate_is_the_only_one_and_an_own_authority_counts() {
    let server = server(&[&TLS13, &TLS12]);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &server.pem).unwrap();
    let config = Arc::new(server.config);
    let own = connector(&format!("smtp_relay_tls_ca: {}", file.path().display()));
    assert!(connect(&own, &config).await.is_ok());
    let wrong = connector(&format!("smtp_relay_tls_fingerprint: {}", "00".repeat(32)));
    assert!(connect(&wrong, &config).await.unwrap_err().words.contains("not the pinned one"));
    let system = connector("smtp_relay_tls: starttls");
    assert!(connect(&system, &config).await.unwrap_err().words.contains("not signed by an authority"));
    let any = connector("smtp_relay_tls: opportunistic");
    assert!(connect(&any, &config).await.is_ok(), "encrypted, whoever it is");
}

#[tokio::test]
async fn sessions_are_resumed_and_keys_exchanged_as_quantum_computers_can_not_undo() {
    for versions in [&[&TLS13][..], &[&TLS12]] {
        let server = server(versions);
        let connector = connector(&format!("smtp_relay_tls_fingerprint: {}", server.fingerprint));
        let config = Arc::new(server.config);
        let (kind, group) = connect(&connector, &config).await.unwrap();
        assert!(matches!(kind, Some(HandshakeKind::Full | HandshakeKind::FullWithHelloRetryRequest)));
        if versions == [&TLS13] {
            assert_eq!(group, Some(NamedGroup::X25519MLKEM768));
        }
        let (kind, _) = connect(&connector, &config).await.unwrap();
        assert_eq!(kind, Some(HandshakeKind::Resumed), "{versions:?}");
    }
}

const NAME: &str = "up.upstream.test";

type Chain = (CertificateDer<'static>, PrivateKeyDer<'static>);

/// An authority, which writes its certificate there.
fn authority(file: &Path) -> Issuer<'static, KeyPair> {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, file.display().to_string());
    std::fs::write(file, params.self_signed(&key).unwrap().pem()).unwrap();
    Issuer::new(params, key)
}

fn signed(
    issuer: Option<&Issuer<'static, KeyPair>>,
    names: &[&str],
    change: impl FnOnce(&mut CertificateParams),
) -> Chain {
    let key = KeyPair::generate().unwrap();
    let mut params =
        CertificateParams::new(names.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap();
    change(&mut params);
    let cert = match issuer {
        Some(issuer) => params.signed_by(&key, issuer),
        None => params.self_signed(&key),
    };
    (cert.unwrap().der().clone(), PrivateKeyDer::try_from(key.serialize_der()).unwrap())
}

/// What rcgen would not make: by an authority with an RSA key of so many bits, by this digest. Its
/// certificate is written there.
fn by_openssl(dir: &Path, ca: &Path, bits: u32, digest: &str) -> Chain {
    let openssl = |line: &str| {
        let output = Command::new("openssl").args(line.split(' ')).current_dir(dir).output();
        let output = output.expect("openssl is installed");
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    };
    std::fs::write(dir.join("names"), format!("subjectAltName=DNS:{NAME}\n")).unwrap();
    openssl(&format!("req -x509 -newkey rsa:{bits} -nodes -keyout ca.key -out ca.crt -subj /CN=ca -days 30"));
    openssl(
        "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout leaf.key -out leaf.csr -subj /CN=leaf",
    );
    openssl(&format!(
        "x509 -req -in leaf.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 30 -extfile names -{digest} -out leaf.crt"
    ));
    std::fs::copy(dir.join("ca.crt"), ca).unwrap();
    let cert = CertificateDer::from_pem_file(dir.join("leaf.crt")).unwrap();
    (cert, PrivateKeyDer::from_pem_file(dir.join("leaf.key")).unwrap())
}

/// A handshake under this name with a server that shows this.
async fn handshake(server: &str, ca: &Path, (cert, key): Chain) -> Result<(), TlsFault> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let config = rustls::ServerConfig::builder_with_provider(net::crypto())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert], key)
        .unwrap();
    let theirs = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        drop(TlsAcceptor::from(Arc::new(config)).accept(stream).await);
    });
    let settings = Upstream {
        server: server.to_owned(),
        tls: UpstreamTls::StartTls,
        ca: Some(ca.to_owned()),
        ..upstream()
    };
    let connector = Connector::new(&settings).unwrap();
    let result = connector.connect(TcpStream::connect(address).await.unwrap()).await;
    theirs.await.unwrap();
    result.map(drop)
}

#[tokio::test]
async fn every_kind_of_bad_certificate_ends_the_handshake_with_a_reason() {
    let dir = tempfile::tempdir().unwrap();
    let (ca, other) = (dir.path().join("ca.pem"), dir.path().join("other.pem"));
    let (known, unknown) = (authority(&ca), authority(&other));
    let good = |names: &[&str]| signed(Some(&known), names, |_| {});
    handshake(NAME, &ca, good(&[NAME])).await.expect("a good one");
    handshake(NAME, &ca, good(&["*.upstream.test"])).await.expect("a wildcard over one label");
    handshake("127.0.0.1", &ca, good(&["127.0.0.1"])).await.expect("an address that it names");

    let year = rcgen::date_time_ymd;
    let only_subject = signed(Some(&known), &[], |params| {
        params.distinguished_name.push(DnType::CommonName, NAME);
    });
    let cases = [
        (NAME, signed(Some(&known), &[NAME], |it| it.not_after = year(2020, 1, 1)), "has expired"),
        (NAME, signed(Some(&known), &[NAME], |it| it.not_before = year(2090, 1, 1)), "not valid yet"),
        (NAME, signed(None, &[NAME], |_| {}), "not signed by an authority known here"),
        (NAME, signed(Some(&unknown), &[NAME], |_| {}), "not signed by an authority known here"),
        (NAME, good(&["other.example"]), "for another name"),
        (NAME, only_subject, "for another name"),
        ("127.0.0.1", good(&["localhost"]), "for another name"),
        ("a.b.upstream.test", good(&["*.upstream.test"]), "for another name"),
    ];
    for (number, (server, chain, words)) in cases.into_iter().enumerate() {
        let fault = handshake(server, &ca, chain).await.expect_err("a bad one");
        assert!(fault.words.contains(words), "{number}: {}", fault.words);
    }

    let by = |bits, digest| by_openssl(dir.path(), &ca, bits, digest);
    handshake(NAME, &ca, by(2048, "sha256")).await.expect("a good one by openssl");
    for (bits, digest) in [(2048, "sha1"), (1024, "sha256")] {
        let chain = by(bits, digest);
        let fault = handshake(NAME, &ca, chain).await.expect_err("a weak one");
        assert!(fault.words.contains("the upstream's certificate is not"), "{digest}: {}", fault.words);
    }
}
