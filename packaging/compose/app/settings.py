"""Settings of the example: mail goes to the relay that environment.json names."""
import json
import os

with open(os.environ.get("ENVIRONMENT_FILE", "/home/dotcloud/environment.json")) as file:
    env = json.load(file)

EMAIL_HOST = env["DOTCLOUD_MAILER_SMTP_HOST"]
EMAIL_PORT = int(env["DOTCLOUD_MAILER_SMTP_PORT"])
EMAIL_HOST_USER = env["DOTCLOUD_MAILER_SMTP_LOGIN"]
EMAIL_HOST_PASSWORD = env["DOTCLOUD_MAILER_SMTP_PASSWORD"]
# The relay's certificate is its own. On the network of one composition CRAM-MD5 shows the password to nobody; where
# others listen, give the relay a certificate (smtp_tls_cert) and set EMAIL_USE_TLS.
EMAIL_USE_TLS = False
EMAIL_TIMEOUT = 30
DEFAULT_FROM_EMAIL = "The shop <shop@example.com>"

SECRET_KEY = "for the example only"
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "web"
USE_TZ = True
