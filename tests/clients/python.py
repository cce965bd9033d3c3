"""smtplib: STARTTLS or TLS from the first byte, with a login. What to send and where is in the environment."""
import os
import smtplib
import ssl

e = os.environ
context = ssl.create_default_context(cafile=e["CA"])
if e["TLS"] == "implicit":
    smtp = smtplib.SMTP_SSL(e["HOST"], int(e["PORT"]), timeout=30, context=context)
else:
    smtp = smtplib.SMTP(e["HOST"], int(e["PORT"]), timeout=30)
with smtp, open(e["MAIL"], "rb") as mail:
    if e["TLS"] == "starttls":
        smtp.starttls(context=context)
    if e["LOGIN"]:
        smtp.login(e["LOGIN"], e["PASSWORD"])
    smtp.sendmail(e["SENDER"], [e["TO"]], mail.read(), mail_options=["BODY=8BITMIME"])
