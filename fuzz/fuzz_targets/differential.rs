//! Any octets as a command line, and as a whole dialog, read by us and by smtp-proto: where both say yes, they
//! say the same. A disagreement about whom a command names, where a line ends, or where its content ends, is
//! what smuggling is made of.

#![no_main]

use libfuzzer_sys::fuzz_target;
use outpost::smtp::{
    command::Command,
    esmtp::{MailParameters, RcptParameters},
    framing::{ChunkReader, ContentReader, ContentWriter, Line, LineReader},
    parameter::{Body, Hold, Notify, Ret},
};
use smtp_proto::{
    MAIL_BODY_8BITMIME, MAIL_BODY_BINARYMIME, MAIL_BY_NOTIFY, MAIL_BY_RETURN, MAIL_BY_TRACE, MAIL_REQUIRETLS,
    MAIL_RET_FULL, MAIL_RET_HDRS, MAIL_SMTPUTF8, RCPT_NOTIFY_DELAY, RCPT_NOTIFY_FAILURE, RCPT_NOTIFY_NEVER,
    RCPT_NOTIFY_SUCCESS, Request,
    request::receiver::{BdatReceiver, DataReceiver},
};

/// They undo quotes and leave out a lone postmaster; we keep what came.
fn same_address(ours: &str, theirs: &str) {
    if ours.contains('@') && !ours.contains('"') {
        assert_eq!(ours, theirs);
    }
}

fn mail(path: &str, ours: &MailParameters, theirs: &smtp_proto::MailFrom<std::borrow::Cow<'_, str>>) {
    let is = |flag: u64| theirs.flags & flag != 0;
    same_address(path, &theirs.address);
    if let Some(size) = ours.size.filter(|size| *size <= u64::from(u32::MAX)) {
        assert_eq!(theirs.size as u64, size);
    }
    assert_eq!(is(MAIL_BODY_8BITMIME), ours.body == Body::EightBit);
    assert_eq!(is(MAIL_BODY_BINARYMIME), ours.body == Body::Binary);
    assert_eq!(is(MAIL_SMTPUTF8), ours.utf8);
    assert_eq!(is(MAIL_REQUIRETLS), ours.require_tls);
    assert_eq!(is(MAIL_RET_FULL), ours.ret == Some(Ret::Full));
    assert_eq!(is(MAIL_RET_HDRS), ours.ret == Some(Ret::Hdrs));
    assert_eq!(theirs.env_id.as_deref(), ours.envid.as_deref());
    assert_eq!(theirs.mt_priority, i64::from(ours.priority.unwrap_or_default()));
    if let Some(Hold::For(seconds)) = ours.hold {
        assert_eq!(theirs.hold_for, u64::from(seconds));
    }
    if let Some(by) = ours.deliver_by {
        assert_eq!(theirs.by, i64::from(by.seconds));
        assert_eq!((is(MAIL_BY_RETURN), is(MAIL_BY_NOTIFY)), (by.or_return, !by.or_return));
        assert_eq!(is(MAIL_BY_TRACE), by.trace);
    }
}

fn rcpt(path: &str, ours: &RcptParameters, theirs: &smtp_proto::RcptTo<std::borrow::Cow<'_, str>>) {
    let is = |flag: u64| theirs.flags & flag != 0;
    same_address(path, &theirs.address);
    let notify = Notify {
        success: is(RCPT_NOTIFY_SUCCESS),
        failure: is(RCPT_NOTIFY_FAILURE),
        delay: is(RCPT_NOTIFY_DELAY),
    };
    assert_eq!(ours.notify.unwrap_or(Notify::NEVER), notify);
    assert_eq!(is(RCPT_NOTIFY_NEVER), ours.notify == Some(Notify::NEVER));
}

fn line(line: &[u8]) -> Option<Command> {
    let ours = Command::parse(line).ok()?;
    // As we would say it: without what we tolerate, and without a source route.
    let mut said = Vec::new();
    ours.write_to(&mut said);
    let theirs = Request::parse(&mut said.iter());
    match (&ours, theirs) {
        (Command::Bdat(size, last), theirs) => {
            let expected = Request::Bdat { chunk_size: *size as usize, is_last: *last };
            assert_eq!(theirs.expect("a legal BDAT"), expected);
        }
        (Command::Mail(path, parameters), Ok(Request::Mail { from })) => mail(path.as_str(), parameters, &from),
        (Command::Rcpt(mailbox, parameters), Ok(Request::Rcpt { to })) => {
            rcpt(mailbox.as_str(), parameters, &to);
        }
        (Command::Ehlo(name), Ok(Request::Ehlo { host })) | (Command::Helo(name), Ok(Request::Helo { host })) => {
            assert_eq!(host, *name);
        }
        (Command::Data, Ok(Request::Data))
        | (Command::Rset, Ok(Request::Rset))
        | (Command::Noop, Ok(Request::Noop { .. }))
        | (Command::Vrfy, Ok(Request::Vrfy { .. }))
        | (Command::Help, Ok(Request::Help { .. }))
        | (Command::Quit, Ok(Request::Quit))
        | (Command::StartTls, Ok(Request::StartTls))
        | (Command::Auth(..), Ok(Request::Auth { .. }))
        // They are stricter in places: names in EHLO, unknown mechanisms, odd local-parts.
        | (_, Err(_)) => {}
        (ours, theirs) => panic!("{ours:?} is for them {theirs:?}"),
    }
    Some(ours)
}

/// Content behind DATA: it ends for both at the same octet, and holds the same.
fn content(input: &[u8]) -> Option<usize> {
    let (mut reader, mut ours) = (ContentReader::new(u64::MAX), Vec::new());
    let used = reader.read(input, |octets| ours.extend_from_slice(octets));
    let (mut receiver, mut theirs) = (DataReceiver::new(), Vec::new());
    // They don't know of the CRLF of DATA itself, behind which a dot alone ends empty content.
    receiver.ingest(&mut b"\r\n".iter(), &mut theirs);
    theirs.clear();
    let mut rest = input.iter();
    let done = receiver.ingest(&mut rest, &mut theirs);
    // They take a dot behind which two CR stand for the end. What we refuse for its bare CR may end elsewhere.
    if reader.fault().is_none() {
        assert_eq!(done, reader.is_done(), "the end for one and not for the other");
    }
    if !reader.is_done() {
        return None;
    }
    if reader.fault().is_none() {
        assert_eq!(input.len() - rest.as_slice().len(), used, "content ends elsewhere");
        assert_eq!(ours, theirs, "another content");
        // What we send on ends for them where it ends for us.
        let (mut writer, mut wire) = (ContentWriter::default(), Vec::new());
        writer.write(&ours, |octets| wire.extend_from_slice(octets));
        wire.extend_from_slice(writer.end());
        wire.extend_from_slice(b"MAIL FROM:<smuggled@example.org>\r\n.\r\n");
        let (mut receiver, mut sent, mut rest) = (DataReceiver::new(), Vec::new(), wire.iter());
        receiver.ingest(&mut b"\r\n".iter(), &mut sent);
        assert!(receiver.ingest(&mut rest, &mut sent));
        assert!(rest.as_slice().starts_with(b"MAIL FROM:<smuggled"), "it ends elsewhere upstream");
    }
    Some(used)
}

/// A chunk behind BDAT.
fn chunk(input: &[u8], size: u64, last: bool) -> Option<usize> {
    let size = usize::try_from(size).ok()?;
    let (mut receiver, mut theirs, mut rest) = (BdatReceiver::new(size, last), Vec::new(), input.iter());
    let done = receiver.ingest(&mut rest, &mut theirs);
    assert_eq!(done, input.len() >= size, "the end for one and not for the other");
    let octets = input.get(..size)?;
    assert_eq!((octets, rest.as_slice().len()), (theirs.as_slice(), input.len() - size));
    ChunkReader::new(u64::MAX, true).read(octets);
    Some(size)
}

/// Everything that a client says, one thing behind the other.
fn dialog(mut input: &[u8]) {
    let mut lines = LineReader::default();
    while let Ok((Some(Line::Whole(said)), used)) = lines.next(input, 2_048) {
        let mut theirs = input.iter();
        let parsed = Request::parse(&mut theirs);
        let command = line(said);
        if command.is_some() && parsed.is_ok() {
            assert_eq!(theirs.as_slice().len(), input.len() - used, "a line ends elsewhere");
        }
        input = &input[used..];
        let taken = match command {
            Some(Command::Data) => content(input),
            Some(Command::Bdat(size, last)) => chunk(input, size, last),
            _ => Some(0),
        };
        let Some(taken) = taken else { return };
        input = &input[taken..];
    }
}

fuzz_target!(|data: &[u8]| {
    line(data);
    dialog(data);
});
