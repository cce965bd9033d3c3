"""The worker: sends a digest now and then, all messages of a round over one connection."""
import os
import sys
import time

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "settings")

import django
from django.core.mail import EmailMessage, get_connection

ROUND = 3600


def digest(recipients):
    """One message for each; gives how many the relay took."""
    messages = [EmailMessage("Your digest", "Nothing new.\n", to=[to]) for to in recipients]
    with get_connection() as connection:
        return connection.send_messages(messages)


if __name__ == "__main__":
    django.setup()
    once = sys.argv[1:]
    if once:
        print(digest(once))
    else:
        while True:
            digest(["you@example.com"])
            time.sleep(ROUND)
