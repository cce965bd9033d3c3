//! Any octets as a command line, read by us and by smtp-proto: where both say yes, they say the same. A
//! disagreement about whom a command names, or where its content ends, is what smuggling is made of.

#![no_main]

use libfuzzer_sys::fuzz_target;
use outpost::smtp::{
    command::Command,
    esmtp::{MailParameters, RcptParameters},
    parameter::{Body, Hold, Notify, Ret},
};
use smtp_proto::{
    MAIL_BODY_8BITMIME, MAIL_BODY_BINARYMIME, MAIL_BY_NOTIFY, MAIL_BY_RETURN, MAIL_BY_TRACE, MAIL_REQUIRETLS,
    MAIL_RET_FULL, MAIL_RET_HDRS, MAIL_SMTPUTF8, RCPT_NOTIFY_DELAY, RCPT_NOTIFY_FAILURE, RCPT_NOTIFY_NEVER,
    RCPT_NOTIFY_SUCCESS, Request,
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

fuzz_target!(|line: &[u8]| {
    let Ok(ours) = Command::parse(line) else { return };
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
});
