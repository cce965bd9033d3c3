"""Reads mails by Python's email package, as a mail program would, and prints them as JSON.

Argument: a file with one message. For a delivery report its parts are printed, too.
"""
import json
import sys
from email import policy
from email.parser import BytesParser

with open(sys.argv[1], "rb") as f:
    message = BytesParser(policy=policy.default).parse(f)


def words(part):
    try:
        return part.get_content()
    except (KeyError, LookupError):
        return part.as_string()


def fields(block):
    return {name.lower(): str(value) for name, value in block.items()}


result = {
    "type": message.get_content_type(),
    "report_type": message.get_param("report-type"),
    "return_path": message["Return-Path"],
    "from": message["From"],
    "to": message["To"],
    "subject": message["Subject"],
    "auto_submitted": message["Auto-Submitted"],
    "defects": [str(defect) for part in message.walk() for defect in part.defects],
    "parts": [part.get_content_type() for part in message.iter_parts()],
    "text": "",
    "status": [],
    "attachments": [],
}
for part in message.walk():
    if part.get_content_type() == "text/plain" and not result["text"]:
        result["text"] = words(part)
    if part.get_content_type() == "message/delivery-status":
        # One block of fields about the message, then one for each recipient.
        result["status"] = [fields(block) for block in part.get_payload()]
    if part.get_content_type() == "message/global-delivery-status":
        # Unknown to the package, which takes it for a message: the first block its header.
        blocks = part.get_payload(0).as_bytes().strip().split(b"\n\n")
        parser = BytesParser(policy=policy.default)
        result["status"] = [fields(parser.parsebytes(block)) for block in blocks]
    if part.get_content_disposition() == "attachment":
        result["attachments"].append(part.get_filename())
print(json.dumps(result))
