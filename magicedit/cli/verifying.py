"""`magicedit verify`: what files say of themselves."""

import argparse
import json
from collections.abc import Callable
from typing import TYPE_CHECKING

from magicedit.cli import common
from magicedit.errors import MagicEditError

if TYPE_CHECKING:
    from magicedit.provenance import Told

VERIFY_EXAMPLES = """\
examples:
  magicedit verify edited.png
  magicedit verify *.jpg clip.mp4 --json

It reads the digital source type of IPTC and the history in XMP, and, with the extra c2pa, signed manifests
(Content Credentials), of files by any program. A file may say less than was done to it: metadata is easily
removed.

The exit code is 1 if a file cannot be read, or was changed since it was signed.
"""

SIGNATURES = {
    "none": "none",
    "valid": "valid, by {} (nobody vouches for that name; see MAGICEDIT_C2PA_TRUST)",
    "trusted": "valid, by {}, who is trusted",
    "self-signed": "valid, by a certificate that magicedit made for itself",
    "tampered": "TAMPERED: the file was changed after {} signed it",
    "unreadable": "damaged",
    "not checked": "not checked",
}
SOME_FAILED = 1
LONGEST = 500  # characters of a request; --json has all


def add_commands(add_command: Callable[..., argparse.ArgumentParser]) -> None:
    what = "show whether files are marked as edited, by which program and from which input"
    verify = add_command("verify", what, run_verify, VERIFY_EXAMPLES)
    verify.add_argument("files", type=common.path_of, nargs="+", metavar="FILE", help="an image or a video")
    common.add_json_option(verify)


def run_verify(args: argparse.Namespace) -> int:
    from magicedit.files import shown
    from magicedit.provenance import tell

    entries, failed = [], False
    for path in args.files:
        try:
            told = tell(path)
        except MagicEditError as error:
            failed = True
            entries.append({"file": shown(path), "error": str(error)})
            common.warn(f"magicedit: error: {error}")
            continue
        failed |= told.signature in ("tampered", "unreadable")
        entries.append(told.to_json())
        if not args.json:
            print_told(told)
    if args.json:
        common.print_json({"files": entries})
    return SOME_FAILED if failed else 0


def print_told(told: "Told") -> None:
    from magicedit.files import shown

    state = "edited" if told.edited else "says nothing of an edit"
    print(f"{shown(told.path)}: {state}{f', by {told.tool}' if told.tool and told.edited else ''}")
    if told.source_type is not None:
        print(f"  source     {told.source_type.rpartition('/')[2]}")
    for edit in told.edits:
        named = ("when", "tool", "action", "model", "fingerprint", "input")
        print("  history    " + " ".join(str(edit[part]) for part in named[:3] if edit.get(part)))
        if edit.get("model"):
            print("    model    " + " ".join(str(edit[part]) for part in named[3:5] if edit.get(part)))
        if isinstance(edit.get("input"), dict):
            print("    input    " + " ".join(map(str, edit["input"].values())))
        if asked := {name: value for name, value in edit.items() if name not in named}:
            if isinstance(asked.get("faces"), list):
                asked["faces"] = list(map(_numbered, asked["faces"]))
            print(f"    asked    {json.dumps(asked)[:LONGEST]}")
    print(f"  signature  {SIGNATURES[told.signature].format(told.signer or 'somebody')}")
    for part in told.inputs:
        print(f"    from     {part['title']}{' (signed too)' if part['signed'] else ''}")
    for remark in told.remarks:
        common.warn(f"warning: {shown(told.path)}: {remark}")


def _numbered(face: object) -> object:
    """Returns a face of a record with its number, from 1, in place of its index."""
    if not isinstance(face, dict) or not isinstance(face.get("face"), int):
        return face
    return {"number": face["face"] + 1} | {name: value for name, value in face.items() if name != "face"}
