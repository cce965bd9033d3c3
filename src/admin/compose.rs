//! A message from its parts in JSON: what an app wants to say, and lettre writes.

use std::str::FromStr as _;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use lettre::{
    address,
    message::{
        Attachment as Attached, Body, Mailbox, Mailboxes, Message, MultiPart, SinglePart,
        header::{ContentType, HeaderName, HeaderValue},
    },
};
use serde::Deserialize;

/// Attachments of one message.
const ATTACHMENTS_MAX: usize = 100;
/// Header fields of its own that a message may bring.
const FIELDS_MAX: usize = 100;
/// Octets of such a field.
const FIELD_MAX: usize = 8 * 1024;
/// Fields that are ours or the other keys' to set.
const FIELDS_TAKEN: &[&str] =
    &["from", "sender", "to", "cc", "bcc", "reply-to", "subject", "mime-version", "received", "return-path"];

/// What a message is made of.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Draft {
    /// `Name <address>` or an address; the sender of the envelope, too.
    from: String,
    #[serde(default)]
    to: Several,
    #[serde(default)]
    cc: Several,
    /// In the envelope only.
    #[serde(default)]
    bcc: Several,
    #[serde(default)]
    reply_to: Several,
    #[serde(default)]
    subject: String,
    text: Option<String>,
    html: Option<String>,
    #[serde(default)]
    attachments: Vec<Attachment>,
    /// Further header fields.
    #[serde(default)]
    headers: std::collections::BTreeMap<String, String>,
}

/// One address or a list of them.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Several {
    One(String),
    Many(Vec<String>),
}

impl Default for Several {
    fn default() -> Self {
        Self::Many(Vec::new())
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Attachment {
    filename: String,
    /// In base64.
    content: String,
    #[serde(default)]
    content_type: Option<String>,
    /// It is shown inside the HTML, as `cid:` and this.
    #[serde(default)]
    content_id: Option<String>,
}

/// A message as it is handed in.
#[derive(Debug)]
pub(super) struct Composed {
    pub(super) sender: String,
    pub(super) recipients: Vec<String>,
    pub(super) content: Vec<u8>,
}

impl Draft {
    /// Reads the parts.
    ///
    /// # Errors
    /// What is wrong with them.
    pub(super) fn read(octets: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(octets).map_err(|error| format!("the body is no message in JSON: {error}"))
    }

    /// Writes the message.
    ///
    /// # Errors
    /// What it can't be written of.
    pub(super) fn compose(self) -> Result<Composed, String> {
        let from = mailbox("from", &self.from)?;
        let (to, cc) = (self.to.mailboxes("to")?, self.cc.mailboxes("cc")?);
        let (bcc, reply_to) = (self.bcc.mailboxes("bcc")?, self.reply_to.mailboxes("reply_to")?);
        let mut recipients: Vec<String> = Vec::new();
        for mailbox in to.iter().chain(&cc).chain(&bcc) {
            let address = mailbox.email.to_string();
            if !recipients.contains(&address) {
                recipients.push(address);
            }
        }
        if recipients.is_empty() {
            return Err("nobody to send it to: name them by to, cc or bcc".to_owned());
        }
        let sender = from.email.to_string();
        // The envelope proper is handed in apart; lettre only wants one.
        let envelope = address::Envelope::new(Some(from.email.clone()), vec![from.email.clone()]);
        let mut builder = Message::builder()
            .envelope(envelope.map_err(|error| error.to_string())?)
            .from(from)
            .subject(one_line("subject", self.subject)?);
        for mailbox in to {
            builder = builder.to(mailbox);
        }
        for mailbox in cc {
            builder = builder.cc(mailbox);
        }
        for mailbox in reply_to {
            builder = builder.reply_to(mailbox);
        }
        if self.headers.len() > FIELDS_MAX || self.attachments.len() > ATTACHMENTS_MAX {
            return Err(format!(
                "there are at most {FIELDS_MAX} header fields and {ATTACHMENTS_MAX} attachments"
            ));
        }
        for (name, value) in self.headers {
            builder = builder.raw_header(field(name, value)?);
        }
        let message = match (self.text, self.html, self.attachments) {
            (Some(text), None, attachments) if attachments.is_empty() => {
                builder.singlepart(SinglePart::plain(text))
            }
            (text, html, attachments) => builder.multipart(parts(text, html, attachments)?),
        };
        let content = message.map_err(|error| error.to_string())?.formatted();
        Ok(Composed { sender, recipients, content })
    }
}

impl Several {
    fn mailboxes(self, key: &str) -> Result<Vec<Mailbox>, String> {
        match self {
            // One may name several, as the field does.
            Self::One(text) => Mailboxes::from_str(&text)
                .map(|mailboxes| mailboxes.into_iter().collect())
                .map_err(|error| format!("{key}: {text:?}: {error}")),
            Self::Many(texts) => texts.iter().map(|text| mailbox(key, text)).collect(),
        }
    }
}

fn mailbox(key: &str, text: &str) -> Result<Mailbox, String> {
    text.parse().map_err(|error| format!("{key}: {text:?}: {error}"))
}

/// A line's end in a field would begin another.
fn one_line(key: &str, text: String) -> Result<String, String> {
    if text.chars().any(char::is_control) {
        return Err(format!("{key}: it is one line, without control characters"));
    }
    if text.len() > FIELD_MAX {
        return Err(format!("{key}: it has at most {FIELD_MAX} octets"));
    }
    Ok(text)
}

fn field(name: String, value: String) -> Result<HeaderValue, String> {
    // RFC 5322 §2.2.
    let is_name = !name.is_empty() && name.bytes().all(|octet| octet.is_ascii_graphic() && octet != b':');
    let lower = name.to_ascii_lowercase();
    if !is_name || name.len() > 70 || lower.starts_with("content-") || FIELDS_TAKEN.contains(&&*lower) {
        return Err(format!("headers: {name:?} can't be set here"));
    }
    let value = one_line(&name, value)?;
    let name = HeaderName::new_from_ascii(name).map_err(|error| format!("headers: {error}"))?;
    Ok(HeaderValue::new(name, value))
}

/// RFC 2046 §5.1: mixed holds attachments beside what is read, related what the HTML shows, and
/// alternative the same in two forms.
fn parts(
    text: Option<String>,
    html: Option<String>,
    attachments: Vec<Attachment>,
) -> Result<MultiPart, String> {
    let (mut inline, mut apart) = (Vec::new(), Vec::new());
    for attachment in attachments {
        let is_inline = attachment.content_id.is_some();
        let part = attachment.part()?;
        if is_inline { inline.push(part) } else { apart.push(part) }
    }
    let with_inline = |html: String| match inline.is_empty() {
        true => Err(SinglePart::html(html)),
        false => Ok(inline
            .iter()
            .cloned()
            .fold(MultiPart::related().singlepart(SinglePart::html(html)), MultiPart::singlepart)),
    };
    let readable = match (text, html) {
        (text, None) => Err(SinglePart::plain(text.unwrap_or_default())),
        (None, Some(html)) => with_inline(html),
        (Some(text), Some(html)) => {
            let plain = MultiPart::alternative().singlepart(SinglePart::plain(text));
            Ok(match with_inline(html) {
                Ok(related) => plain.multipart(related),
                Err(html) => plain.singlepart(html),
            })
        }
    };
    if apart.is_empty()
        && let Ok(readable) = readable
    {
        return Ok(readable);
    }
    let mixed = match readable {
        Ok(readable) => MultiPart::mixed().multipart(readable),
        Err(readable) => MultiPart::mixed().singlepart(readable),
    };
    Ok(apart.into_iter().fold(mixed, MultiPart::singlepart))
}

impl Attachment {
    fn part(self) -> Result<SinglePart, String> {
        let name = one_line("attachments: filename", self.filename)?;
        let octets = STANDARD.decode(self.content.as_bytes());
        let octets = octets.map_err(|error| format!("attachments: the content of {name:?}: {error}"))?;
        let kind = self.content_type.as_deref().unwrap_or("application/octet-stream");
        let kind = ContentType::parse(&one_line("attachments: content_type", kind.to_owned())?)
            .map_err(|_| format!("attachments: {kind:?} is no content type"))?;
        let attached = match self.content_id {
            Some(id) => {
                let plain = |c: char| c.is_ascii_graphic() && !matches!(c, '<' | '>');
                if id.is_empty() || id.len() > 200 || !id.chars().all(plain) {
                    return Err(format!("attachments: {id:?} is no content_id"));
                }
                Attached::new_inline_with_name(id, name)
            }
            None => Attached::new(name),
        };
        Ok(attached.body(Body::new(octets), kind))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compose(json: serde_json::Value) -> Result<Composed, String> {
        Draft::read(json.to_string().as_bytes())?.compose()
    }

    #[test]
    fn parts_become_a_message_that_reads_as_it_was_meant() {
        use mail_parser::MimeHeaders as _;
        let composed = compose(serde_json::json!({
            "from": "Grüße <app@sender.example>",
            "to": ["a@rcpt.example", "B <b@rcpt.example>"],
            "cc": "c@rcpt.example, C <a@rcpt.example>",
            "bcc": ["hidden@rcpt.example"],
            "subject": "Äpfel",
            "text": "Hallo\nWelt\n.\n",
            "html": "<p>Hallo <img src=\"cid:logo\"></p>",
            "attachments": [
                { "filename": "grün.txt", "content": "aGFsbG8=", "content_type": "text/plain" },
                { "filename": "logo.png", "content": "AAEC", "content_type": "image/png", "content_id": "logo" },
            ],
            "headers": { "X-Campaign": "Frühling" },
        }))
        .unwrap();
        assert_eq!(composed.sender, "app@sender.example");
        assert_eq!(
            composed.recipients,
            ["a@rcpt.example", "b@rcpt.example", "c@rcpt.example", "hidden@rcpt.example"]
        );
        let text = String::from_utf8(composed.content.clone()).unwrap();
        assert!(!text.contains("hidden") && text.is_ascii());
        assert!(!text.replace("\r\n", "").contains(['\r', '\n']));
        let message = mail_parser::MessageParser::new().parse(&composed.content).unwrap();
        assert_eq!(message.subject(), Some("Äpfel"));
        assert_eq!(message.body_text(0).unwrap(), "Hallo\r\nWelt\r\n.\r\n");
        assert!(message.body_html(0).unwrap().contains("cid:logo"));
        assert_eq!(message.attachment(0).and_then(|part| part.attachment_name()), Some("logo.png"));
        let names: Vec<_> = message.attachments().filter_map(|part| part.attachment_name()).collect();
        assert!(names.contains(&"grün.txt"), "{names:?}");
        let campaign = message.header("X-Campaign").and_then(|value| value.as_text()).unwrap();
        assert_eq!(crate::admin::people::decoded(campaign), "Frühling");
    }

    #[test]
    fn nothing_breaks_out_of_its_field() {
        let good = serde_json::json!({ "from": "a@b.example", "to": "c@d.example", "text": "x" });
        assert!(compose(good.clone()).is_ok());
        for (key, value) in [
            ("subject", serde_json::json!("x\r\nBcc: victim@d.example")),
            ("headers", serde_json::json!({ "X-A": "x\nBcc: victim@d.example" })),
            ("headers", serde_json::json!({ "X-A: y\r\nBcc": "victim@d.example" })),
            ("headers", serde_json::json!({ "Bcc": "victim@d.example" })),
            ("headers", serde_json::json!({ "Content-Type": "text/html" })),
            ("from", serde_json::json!("a@b.example\r\nX: y")),
            ("to", serde_json::json!(["a@b.example>\r\nRCPT TO:<victim@d.example"])),
            ("to", serde_json::json!([])),
            ("reply_to", serde_json::json!("nobody")),
            ("attachments", serde_json::json!([{ "filename": "a\r\nb", "content": "" }])),
            ("attachments", serde_json::json!([{ "filename": "a", "content": "?" }])),
            (
                "attachments",
                serde_json::json!([{ "filename": "a", "content": "", "content_id": "a>\r\nX: y" }]),
            ),
            (
                "attachments",
                serde_json::json!([{ "filename": "a", "content": "", "content_type": "a\r\nX: y" }]),
            ),
            ("extra", serde_json::json!(1)),
        ] {
            let mut bad = good.clone();
            bad[key] = value.clone();
            assert!(compose(bad).is_err(), "{key}: {value}");
        }
    }
}
