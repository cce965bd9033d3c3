//! One message for one server is one message for the next: nothing that only looks like the end of a message
//! gets a second one in, nor out. Against the running program, with a real Postfix behind it, and with an
//! upstream that keeps every octet.

mod support;

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, TcpStream},
    time::Duration,
};

use support::{bytes::contains, postfix::Postfix, relay::Relay, service::Service, upstream::Upstream, wait};

/// What two public tools try between them.
const LOOK_ALIKES: [&str; 12] = [
    "\n.\n",
    "\n.\r\n",
    "\r\n.\n",
    "\n.\r",
    "\r.\n",
    "\r.\r",
    "\r.\r\n",
    "\r\n.\r",
    "\r\n.\r\r\n",
    "\r\r\n.\r\r\n",
    "\r\n\0.\r\n",
    "\r\n.\0\r\n",
];
/// Lines that are content and nothing else.
const TRICKY: &str = "\r\n..\r\n...\r\n..MAIL\r\n. \r\n.\t\r\n\0\r\n..\0\r\na\0.\r\nDATA\r\n\r\n";
const SMUGGLED: &str = "MAIL FROM:<sender@example.test>\r\nRCPT TO:<victim@example.test>\r\nDATA\r\n\
                        Subject: smuggled\r\n\r\nsmuggled\r\n";
const ENVELOPE: &str = "MAIL FROM:<sender@example.test>\r\nRCPT TO:<user@example.test>\r\n";

/// Says all of it at once and hears the server out.
fn dialog(port: u16, words: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("a connection");
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
    stream.write_all(words.as_bytes()).expect("it is heard");
    stream.shutdown(Shutdown::Write).expect("our end is ended");
    let mut heard = String::new();
    stream.read_to_string(&mut heard).expect("its answers");
    heard
}

/// Tries all of it by DATA and by BDAT; gives how many messages were taken.
#[track_caller]
fn tries_all(relay: &Relay) -> usize {
    let mut taken = 0;
    for look_alike in LOOK_ALIKES {
        let text = format!("Subject: x\r\n\r\nhi{look_alike}{SMUGGLED}");
        let chunk = format!("BDAT {} LAST\r\n{text}", text.len());
        for message in [format!("DATA\r\n{text}.\r\n"), chunk] {
            let heard = dialog(relay.smtp, &format!("EHLO a\r\n{ENVELOPE}{message}QUIT\r\n"));
            let (accepted, refused) =
                (heard.matches("250 2.0.0 queued").count(), heard.matches("550 5.6.0").count());
            // A dot that comes first is doubled on the way, whatever stands behind it.
            let clean = look_alike == "\r\n.\0\r\n";
            assert_eq!((accepted, refused), if clean { (1, 0) } else { (0, 1) }, "{look_alike:?}: {heard}");
            assert!(heard.contains("221 2.0.0"), "{look_alike:?}: {heard}");
            taken += accepted;
        }
    }
    let text = format!("Subject: x\r\n\r\nhi\r\n.\r\n{SMUGGLED}\r\n.\r\n{SMUGGLED}");
    let words = format!(
        "EHLO a\r\n{ENVELOPE}DATA\r\nSubject: x\r\n{TRICKY}{SMUGGLED}.\r\n{ENVELOPE}BDAT {} LAST\r\n{text}QUIT\r\n",
        text.len()
    );
    let heard = dialog(relay.smtp, &words);
    assert_eq!(heard.matches("250 2.0.0 queued").count(), 2, "{heard}");
    taken + 2
}

#[test]
fn behind_a_real_postfix_each_message_is_one_and_nobody_gets_a_smuggled_one() {
    let postfix = Postfix::start(&["user", "sender", "victim"]);
    let relay = Relay::start(&postfix.upstream_of(Service::mailer()));
    let taken = tries_all(&relay);
    relay.wait_for_empty_queue();
    // Postfix has it behind its 250; the mailbox gets it later.
    wait::until_true("all is in the mailbox", || postfix.mailbox("user").len() >= taken);
    assert_eq!(postfix.mailbox("user").len(), taken, "{}", postfix.log());
    assert!(postfix.mailbox("user").iter().all(|mail| contains(mail, b"victim@example.test")), "as content");
    assert!(postfix.mailbox("victim").is_empty(), "smuggled: {}", postfix.log());
    assert!(postfix.mailbox("sender").is_empty(), "nothing was returned");
}

#[test]
fn what_goes_upstream_has_one_end_a_message_for_servers_of_every_kind() {
    let upstream = Upstream::start("pw");
    let relay = Relay::start(&upstream.upstream_of(Service::mailer(), "pw"));
    let taken = tries_all(&relay);
    relay.wait_for_empty_queue();
    assert_eq!(upstream.messages().len(), taken);
    let mut ends = [0; 2];
    for mut said in upstream.heard().into_iter().map(|heard| heard.inside) {
        let bare = said.iter().enumerate().any(|(i, b)| match b {
            b'\r' => said.get(i + 1) != Some(&b'\n'),
            b'\n' => i == 0 || said[i - 1] != b'\r',
            _ => false,
        });
        assert!(!bare, "a bare CR or LF went upstream");
        let count = |said: &[u8]| memchr::memmem::find_iter(said, b"\r\n.\r\n").count();
        ends[0] += count(&said);
        // As a server reads it that drops NULs.
        said.retain(|b| *b != 0);
        ends[1] += count(&said);
    }
    assert_eq!(ends, [taken; 2], "an end that is none");
}
