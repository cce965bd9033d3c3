//! Every reply that we know of providers, and the decision table, with what each must mean.

use super::*;
use Permanence::{Permanent, Success, Transient};
use Phase::{Auth, Data, FinalReply, Greeting, Mail, Rcpt};
use Scope::{Account, Credential, Message, Recipient, Sender, Transaction, Upstream};

/// 2026-11-23 10:40:00 UTC: twenty minutes to the full hour.
const NOW: Timestamp = Timestamp(1_795_430_400_000);

fn reply(text: &str) -> Reply {
    let wire = format!("{text}\r\n");
    crate::smtp::reply::ReplyReader::default().read(&mut wire.as_bytes()).unwrap().unwrap()
}

fn judged(provider: Option<&str>, phase: Phase, text: &str) -> Verdict {
    let said = Said { phase, reply: &reply(text), others_accepted: true, provider };
    judge(&Replies::default(), said, NOW)
}

/// Provider, phase, reply; how final, for whom, the rule, seconds to wait.
type Row = (Option<&'static str>, Phase, &'static str, Permanence, Scope, Option<&'static str>, Option<u64>);

#[track_caller]
fn check(rows: &[Row]) {
    for (provider, phase, text, permanence, scope, rule, wait) in rows {
        let verdict = judged(*provider, *phase, text);
        let not_before = verdict.advice.as_ref().and_then(|advice| advice.not_before);
        let found = (
            verdict.permanence,
            verdict.scope,
            verdict.rule.as_deref(),
            not_before.map(|at| at.since(NOW).as_secs()),
        );
        assert_eq!(found, (*permanence, *scope, *rule, *wait), "{phase:?} {text}");
        // "Not now" has a meaning and somebody who can act, whether a rule knows it or not.
        let explained = verdict.explanation.is_some() && verdict.advice.is_some();
        let waits = *permanence == Transient;
        assert!(explained || (rule.is_none() && !waits), "{text}: unexplained");
    }
}

#[test]
#[rustfmt::skip] // One reply, one line.
fn every_known_reply_of_every_provider_means_what_it_means() {
    const HOUR: u64 = 3_600;
    check(&[
        (None, Mail, "550 5.4.5 Daily user sending limit exceeded. For more information on Gmail", Transient, Account, Some("gmail-daily"), Some(HOUR)),
        (Some("gmail"), FinalReply, "550 5.4.5 Daily sending quota exceeded", Transient, Account, Some("gmail-daily"), Some(HOUR)),
        (None, Mail, "550 5.4.5 Daily SMTP relay limit exceeded for user. For more", Transient, Sender, Some("workspace-relay-user"), Some(HOUR)),
        (None, Mail, "550 5.7.1 Daily SMTP relay limit exceeded for customer. For more", Transient, Account, Some("workspace-relay-customer"), Some(HOUR)),
        (None, Rcpt, "450 4.2.1 Peak SMTP relay limit exceeded for customer.", Transient, Account, Some("workspace-relay-peak"), Some(60)),
        (None, Auth, "454 4.7.0 Too many login attempts, please try again later.", Transient, Credential, Some("gmail-too-many-logins"), Some(600)),
        (None, FinalReply, "421 4.7.0 Our system has detected an unusual rate of unsolicited mail", Transient, Account, Some("gmail-rate"), Some(600)),
        (None, Mail, "421 4.7.0 Try again later, closing connection.", Transient, Account, Some("gmail-rate"), Some(600)),
        (Some("gmail"), FinalReply, "421 4.3.0 Temporary System Problem. Try again later", Transient, Message, None, None),
        (Some("gmail"), FinalReply, "421 4.4.5 Server busy, try again later.", Transient, Message, None, None),
        (None, Rcpt, "452 4.5.3 Domain policy size per transaction exceeded, please try this recipient in a separate transaction", Transient, Transaction, Some("too-many-recipients"), None),
        (None, Rcpt, "451 4.3.0 Multiple destination domains per transaction is unsupported.", Transient, Transaction, Some("one-domain-at-a-time"), None),
        (None, Auth, "535 5.7.8 Username and Password not accepted.", Transient, Credential, Some("login-refused"), None),
        (Some("gmail"), Auth, "534 5.7.9 Application-specific password required.", Transient, Credential, Some("gmail-app-password"), None),
        (None, FinalReply, "550 5.7.1 This message violates example.com email policy. - gcdp", Permanent, Message, Some("gmail-administrator-rule"), None),
        (None, FinalReply, "454 Throttling failure: Maximum sending rate exceeded.", Transient, Account, Some("ses-rate"), Some(2)),
        (None, FinalReply, "454 Throttling failure: Daily message quota exceeded.", Transient, Account, Some("ses-daily"), Some(HOUR)),
        (None, Greeting, "421 Too many concurrent SMTP connections", Transient, Upstream, Some("too-many-connections"), Some(10)),
        (Some("ses"), FinalReply, "451 Temporary service failure", Transient, Message, None, None),
        (Some("ses"), FinalReply, "451 Timeout waiting for data from client", Transient, Message, None, None),
        (None, FinalReply, "554 Message rejected: Email address is not verified. The following identities failed the check in region US-EAST-1: a@b.example", Transient, Sender, Some("ses-unverified"), None),
        (None, FinalReply, "554 Access denied: User `arn:aws:iam::1:user/x' is not authorized to perform `ses:SendRawEmail' on resource", Transient, Credential, Some("ses-permission"), None),
        (Some("ses"), Mail, "530 Authentication required", Transient, Credential, Some("login-wanted"), None),
        (Some("ses"), Auth, "535 Authentication Credentials Invalid", Transient, Credential, Some("login-refused"), None),
        (Some("ses"), Mail, "530 Must issue a STARTTLS command first", Transient, Credential, Some("login-wanted"), None),
        (None, Auth, "451 Authentication failed: Maximum credits exceeded", Transient, Account, Some("sendgrid-credits"), Some(HOUR)),
        (None, Rcpt, "452 Too many recipients received this hour", Transient, Account, Some("sendgrid-hourly"), Some(1_200)),
        (None, FinalReply, "550 The from address does not match a verified Sender Identity. Mail cannot be sent", Transient, Sender, Some("sendgrid-from"), None),
        (None, FinalReply, "403 You are not authorized to send from that email address", Transient, Sender, Some("sendgrid-from"), None),
        (Some("sendgrid"), FinalReply, "421 Message from (x) temporarily deferred", Transient, Message, None, None),
        (Some("sendgrid"), FinalReply, "450 too frequent connects from 1.2.3.4, please try again later.", Transient, Message, None, None),
        (None, FinalReply, "432 4.3.2 Concurrent connections limit exceeded. Visit https://aka.ms/concurrent_sending", Transient, Upstream, Some("office365-connections"), Some(30)),
        (None, FinalReply, "451 4.3.2 STOREDRV.ClientSubmit; sender thread limit exceeded", Transient, Upstream, Some("office365-connections"), Some(30)),
        (None, FinalReply, "554 5.2.0 STOREDRV.Submission.Exception:SubmissionQuotaExceededException; Failed to process message due to a permanent exception", Transient, Account, Some("office365-quota"), Some(HOUR)),
        (None, FinalReply, "554 5.2.0 STOREDRV.Submission.Exception:SendAsDeniedException.MapiExceptionSendAsDenied; Failed", Permanent, Message, None, None),
        (None, FinalReply, "554 5.2.2 mailbox full; STOREDRV.Submission.Exception:QuotaExceededException.MapiExceptionShutoffQuotaExceeded", Transient, Account, Some("office365-mailbox-full"), Some(HOUR)),
        (None, Auth, "550 5.7.30 Basic authentication is not supported for Client Submission.", Transient, Credential, Some("office365-no-basic-auth"), None),
        (None, Auth, "535 5.7.139 Authentication unsuccessful, SmtpClientAuthentication is disabled for the Tenant.", Transient, Credential, Some("office365-smtp-auth-disabled"), None),
        (None, Auth, "535 5.7.3 Authentication unsuccessful", Transient, Credential, Some("office365-smtp-auth-disabled"), None),
        (Some("sparkpost"), Auth, "535 5.7.8 Sorry, authentication failed.", Transient, Credential, Some("login-refused"), None),
        (None, FinalReply, "550 5.7.1 Unconfigured Sending Domain <x.example>", Transient, Sender, Some("sparkpost-domain"), None),
        (None, Mail, "451 4.3.0 The sending IP is temporarily suspended", Transient, Account, Some("sparkpost-suspended"), Some(600)),
        (Some("sparkpost"), FinalReply, "550 5.6.0 smtpapi header json could not be parsed", Permanent, Message, None, None),
        (Some("zeptomail"), Auth, "535 Authentication Failed", Transient, Credential, Some("zeptomail-login"), None),
        (None, Mail, "553 Relaying disallowed as app@x.example", Transient, Sender, Some("zeptomail-relaying"), None),
        (None, FinalReply, "552 Relaying disallowed as app@x.example", Transient, Sender, Some("zeptomail-relaying"), None),
        (None, FinalReply, "450 The from.email domain must be verified in your account to send emails. #MS42207", Transient, Sender, Some("mailersend-domain"), None),
        (None, FinalReply, "450 The subject field is required. #MS42201", Transient, Message, Some("mailersend-validation"), None),
        (None, Greeting, "421 4.4.5 Too many connections", Transient, Upstream, Some("too-many-connections"), Some(10)),
        (None, FinalReply, "452 4.4.5 Rate limit", Transient, Account, Some("emailit-second"), Some(1)),
        (None, FinalReply, "452 4.5.3 Daily sending limit exceeded", Transient, Account, Some("emailit-daily"), Some(HOUR)),
        (None, FinalReply, "550 Too many messages. Try again in 92 seconds", Transient, Account, Some("told-when"), Some(92)),
        (None, Mail, "451 Mails per session limit exceeded", Transient, Transaction, Some("session-used-up"), None),
        (None, Mail, "452 4.5.3 Too many recipients: Too many messages sent", Transient, Transaction, Some("session-used-up-opensmtpd"), None),
        (None, Mail, "452 4.3.0 Too many messages sent today", Transient, Account, Some("quota-behind-the-recipients"), Some(60)),
        (None, FinalReply, "554 Error 429: too many requests, try later in 1 seconds", Transient, Account, Some("told-when"), Some(1)),
        (Some("mailgun"), FinalReply, "421 4.7.0 Hourly limit exceeded for this domain", Transient, Account, Some("sending-limit"), Some(60)),
        (Some("zoho"), FinalReply, "550 5.4.6 Unusual sending activity detected. Please try after sometime", Transient, Account, Some("zoho-activity"), Some(HOUR)),
    ]);
}

#[test]
#[rustfmt::skip] // One reply, one line.
fn the_decision_table_holds_where_no_provider_is_known() {
    check(&[
        (None, FinalReply, "250 2.0.0 queued", Success, Message, None, None),
        (None, Greeting, "554 go away", Transient, Upstream, None, None),
        (None, Phase::Ehlo, "550 no", Transient, Upstream, None, None),
        (None, Auth, "454 4.7.0 Temporary authentication failure", Transient, Credential, Some("login-not-now"), Some(60)),
        (None, Auth, "432 4.7.12 a password transition is needed", Transient, Credential, Some("login-not-now"), Some(60)),
        (None, Auth, "504 5.5.4 no such mechanism", Transient, Credential, Some("login-refused"), None),
        (None, Mail, "530 5.7.0 Authentication required", Transient, Credential, Some("login-wanted"), None),
        (None, Mail, "550 5.7.1 not authorised", Transient, Sender, Some("sender-refused"), None),
        (None, Mail, "553 5.1.8 sender rejected", Transient, Sender, Some("sender-refused"), None),
        (None, Mail, "553 sorry", Transient, Sender, Some("sender-rejected"), None),
        (None, Rcpt, "553 5.7.1 <a@x.example>: Sender address rejected: not owned by user b", Transient, Sender, Some("sender-not-ours"), None),
        (None, Mail, "550 no", Permanent, Message, None, None),
        (None, Mail, "552 5.3.4 too large", Permanent, Message, None, None),
        (None, Mail, "452 4.3.1 no space", Transient, Upstream, Some("upstream-full"), None),
        (None, Mail, "451 later", Transient, Message, None, None),
        (None, Rcpt, "550 5.1.1 no such user", Permanent, Recipient, None, None),
        (None, Rcpt, "553 5.1.3 bad address", Permanent, Recipient, None, None),
        (None, Rcpt, "551 user not local", Permanent, Recipient, None, None),
        (None, Rcpt, "550 5.2.1 disabled", Permanent, Recipient, None, None),
        (None, Rcpt, "450 4.2.0 greylisted", Transient, Recipient, Some("greylisting"), None),
        (None, Rcpt, "451 4.7.1 Greylisted, please try again in 300 seconds", Transient, Recipient, Some("greylisting"), Some(300)),
        (None, Rcpt, "452 4.5.3 too many recipients", Transient, Transaction, Some("too-many-recipients"), None),
        (None, Rcpt, "452 too many", Transient, Transaction, Some("too-many-recipients"), None),
        (None, Rcpt, "452 4.3.1 disk full", Transient, Recipient, None, None),
        (None, Rcpt, "552 too many", Transient, Transaction, Some("too-many-recipients-552"), None),
        (None, Rcpt, "552 5.2.2 mailbox full", Permanent, Recipient, Some("mailbox-full"), None),
        (None, Rcpt, "550 quota exceeded", Permanent, Recipient, None, None),
        (None, Rcpt, "550 5.2.2 account quota exceeded", Permanent, Recipient, Some("mailbox-full"), None),
        (None, Rcpt, "554 account quota exceeded", Permanent, Recipient, None, None),
        (None, FinalReply, "552 account quota exceeded", Transient, Account, Some("sending-limit"), Some(60)),
        (None, Rcpt, "550 Hourly limit exceeded", Transient, Recipient, Some("rate-of-a-recipient"), None),
        (None, Rcpt, "450 4.7.1 rate limit exceeded for this mailbox", Transient, Recipient, Some("rate-of-a-recipient"), None),
        (None, Rcpt, "550 Sending limit of your account is reached", Transient, Account, Some("sending-limit-at-rcpt"), Some(60)),
        (None, Rcpt, "550 Limit exceeded for outgoing mail", Transient, Account, Some("sending-limit-at-rcpt"), Some(60)),
        (None, Rcpt, "550 busy, try again in 5 minutes", Transient, Recipient, Some("told-when-of-a-recipient"), Some(300)),
        (None, Mail, "550 try again in 5 minutes", Transient, Account, Some("told-when"), Some(300)),
        (None, Rcpt, "550 5.4.5 whatever", Transient, Account, Some("congestion"), Some(600)),
        (None, FinalReply, "552 5.2.2 mailbox quota exceeded", Permanent, Message, Some("mailbox-full"), None),
        (None, FinalReply, "554 quota exceeded", Transient, Account, Some("quota-behind-the-recipients"), Some(60)),
        (None, FinalReply, "454 throttled", Transient, Account, Some("sending-limit"), Some(60)),
        (None, Data, "451 4.3.0 later", Transient, Message, None, None),
        (None, Data, "503 5.5.1 bad sequence", Transient, Upstream, Some("out-of-step"), None),
        (None, FinalReply, "451 4.3.0 later", Transient, Message, None, None),
        (None, FinalReply, "554 5.7.1 spam", Permanent, Message, None, None),
        (None, FinalReply, "354 go on", Transient, Upstream, None, None),
    ]);
}

#[test]
fn recipients_are_too_many_only_where_some_were_accepted() {
    let first = reply("552 5.5.3 too many recipients");
    let said = Said { phase: Rcpt, reply: &first, others_accepted: false, provider: None };
    let verdict = judge(&Replies::default(), said, NOW);
    assert_eq!((verdict.permanence, verdict.scope), (Permanent, Recipient));
}

#[test]
fn a_long_text_is_looked_at_in_part() {
    let long = format!("550 {} quota exceeded", "ä".repeat(TEXT_MAX));
    let verdict = judged(None, FinalReply, &long);
    assert_eq!((verdict.permanence, verdict.rule), (Permanent, None));
}

#[test]
fn what_will_never_pass_says_how_many_tries_it_is_worth() {
    let tries = |text| judged(None, FinalReply, text).advice.and_then(|advice| advice.tries);
    assert_eq!(tries("450 The subject field is required. #MS42201"), Some(5));
    assert_eq!(tries("450 4.2.0 greylisted"), None);
}

/// One recipient whose mailbox is full is no trouble of the account's, nor of the transaction's.
#[test]
fn what_is_said_of_one_recipient_s_account_stops_nobody_else() {
    let full = reply("552 account quota exceeded");
    let said = Said { phase: Rcpt, reply: &full, others_accepted: false, provider: None };
    let verdict = judge(&Replies::default(), said, NOW);
    assert_eq!((verdict.permanence, verdict.scope, verdict.rule), (Permanent, Recipient, None));
}
