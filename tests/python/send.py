"""An app's mail by smtplib: text with awkward lines, a UTF-8 subject, a binary attachment.

Prints what was handed to the relay, as JSON: {"sent": base64, "subject": ..., "sender": ...,
"recipients": [...]}.
"""
import argparse
import base64
import json
import smtplib
from email import policy
from email.message import EmailMessage

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--port", type=int, required=True)
parser.add_argument("--to", action="append", required=True)
parser.add_argument("--sender", default="app@example.test")
parser.add_argument("--subject", default="Grüße vom Außenposten ✓ <b>&")
parser.add_argument("--login")
parser.add_argument("--password")
parser.add_argument("--mechanism", choices=["CRAM-MD5", "PLAIN", "LOGIN"])
args = parser.parse_args()

message = EmailMessage(policy=policy.SMTP)
message["Subject"] = args.subject
message["From"] = f"Die App <{args.sender}>"
message["To"] = ", ".join(args.to)
message["Date"] = "Mon, 06 Jan 2025 10:11:12 +0100"
message["Message-ID"] = "<smtplib-1@app.test>"
message.set_content(
    "Ein Satz mit Umlauten: äöü ß €.\n"
    ".\n"
    ".. two dots, then one alone\n"
    ".\n"
    "From the start of a line\n"
    "   spaces at both ends   \n"
    "\n",
    cte="8bit",
)
message.add_attachment(
    bytes(range(256)) * 40, maintype="application", subtype="octet-stream", filename="alle Bytes.bin"
)
raw = message.as_bytes()

with smtplib.SMTP("127.0.0.1", args.port, local_hostname="app.test", timeout=30) as smtp:
    smtp.ehlo()
    if args.mechanism:
        # The one that is asked for, and no other, unlike smtplib's login().
        smtp.user, smtp.password = args.login, args.password
        method = "auth_" + args.mechanism.lower().replace("-", "_")
        smtp.auth(args.mechanism, getattr(smtp, method))
    refused = smtp.sendmail(args.sender, args.to, raw, mail_options=["BODY=8BITMIME"])
assert not refused, refused

print(json.dumps({
    "sent": base64.b64encode(raw).decode(),
    "subject": args.subject,
    "sender": args.sender,
    "recipients": args.to,
}))
