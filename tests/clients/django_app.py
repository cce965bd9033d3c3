"""Django's mail backend over TLS. What it handed over is written to OUT."""
import os
import smtplib

import django
from django.conf import settings
from django.core.mail import EmailMessage

e = os.environ
settings.configure(
    EMAIL_HOST=e["HOST"],
    EMAIL_PORT=int(e["PORT"]),
    EMAIL_HOST_USER=e["LOGIN"],
    EMAIL_HOST_PASSWORD=e["PASSWORD"],
    EMAIL_USE_TLS=e["TLS"] == "starttls",
    EMAIL_USE_SSL=e["TLS"] == "implicit",
    EMAIL_TIMEOUT=30,
)
django.setup()

sendmail = smtplib.SMTP.sendmail


def remember(self, sender, recipients, message, *rest, **options):
    with open(e["OUT"], "wb") as out:
        out.write(message)
    return sendmail(self, sender, recipients, message, *rest, **options)


smtplib.SMTP.sendmail = remember

with open(e["TEXT"], encoding="utf-8") as text:
    mail = EmailMessage("Grüße", text.read(), e["SENDER"], [e["TO"]], headers={"X-Token": e["TOKEN"]})
mail.attach("bild.bin", bytes(range(256)) * 16, "application/octet-stream")
assert mail.send() == 1
