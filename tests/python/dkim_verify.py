"""Checks each DKIM signature of a message: FILE, then NAME TEXT for each record of the DNS."""

import json
import sys

import dkim

records = dict(zip(sys.argv[2::2], sys.argv[3::2]))


def dns(name, timeout=5):
    text = records.get(name.decode().rstrip("."))
    return text.encode() if text else None


def verify(message, place):
    try:
        return dkim.DKIM(message).verify(idx=place, dnsfunc=dns)
    except dkim.DKIMException as error:
        return str(error)


with open(sys.argv[1], "rb") as file:
    message = file.read()
signatures = message.partition(b"\r\n\r\n")[0].lower().count(b"\r\ndkim-signature:")
signatures += message.lower().startswith(b"dkim-signature:")
print(json.dumps([verify(message, place) for place in range(signatures)]))
