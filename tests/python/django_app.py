"""A Django app that reads its mail settings from environment.json, as apps on dotCloud did.

Arguments: the file, the recipient. Prints {"sent": base64} of the bytes that Django handed over.
"""
import base64
import json
import smtplib
import sys

from django.conf import settings

with open(sys.argv[1]) as f:
    env = json.load(f)

settings.configure(
    EMAIL_BACKEND="django.core.mail.backends.smtp.EmailBackend",
    EMAIL_HOST=env["DOTCLOUD_MAILER_SMTP_HOST"],
    EMAIL_PORT=env["DOTCLOUD_MAILER_SMTP_PORT"],
    EMAIL_HOST_USER=env["DOTCLOUD_MAILER_SMTP_LOGIN"],
    EMAIL_HOST_PASSWORD=env["DOTCLOUD_MAILER_SMTP_PASSWORD"],
    EMAIL_TIMEOUT=30,
    DEFAULT_FROM_EMAIL="Die App <django@example.test>",
)

import django  # noqa: E402  (after the settings)
from django.core.mail import EmailMessage  # noqa: E402

django.setup()

# Django makes Date and boundary anew each time it is asked for the bytes: those that left count.
handed_over = []
sendmail = smtplib.SMTP.sendmail


def remember(self, sender, recipients, message, *rest, **options):
    handed_over.append(message)
    return sendmail(self, sender, recipients, message, *rest, **options)


smtplib.SMTP.sendmail = remember

mail = EmailMessage(
    subject="Bestellung bestätigt ✓",
    body="Schöne Grüße.\n\n.\nEine Zeile, die ein Punkt war, steht darüber.\n",
    to=[sys.argv[2]],
)
mail.attach("bild.bin", bytes(range(256)) * 16, "application/octet-stream")
assert mail.send() == 1
assert len(handed_over) == 1

print(json.dumps({"sent": base64.b64encode(handed_over[0]).decode()}))
