//! Handshakes with servers of every kind, over loopback.

use rustls::{HandshakeKind, NamedGroup, ServerConfig, pki_types::PrivatePkcs8KeyDer};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::config::{Source, parse};

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
    let text = format!("mailer: {{type: smtp, config: {{smtp_relay_server: localhost, {keys}}}}}");
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
