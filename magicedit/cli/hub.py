"""`magicedit push`: a trained model to a model hub, with its card."""

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from magicedit.cli.common import add_json_option, options, path_of, print_json, say, warn
from magicedit.errors import ModelError, OutputError

if TYPE_CHECKING:
    from magicedit.models.folder import ModelFolder

PUSH_EXAMPLES = """\
examples:
  magicedit push my-model --repo your-name/my-model --private
  magicedit push my-model --repo your-name/my-model --results report/summary.json
  magicedit push my-model --repo your-name/my-model --gated     people agree to terms before they get it
  magicedit push my-model --repo your-name/my-model --card --license cc-by-4.0 --dry-run    shows the card

Needs an access token with write permission: `hf auth login` once, or HF_TOKEN. Weights go as safetensors;
training checkpoints and hidden files stay. The card is README.md; read it before you publish.
"""


def add_commands(add_command: Callable[..., argparse.ArgumentParser]) -> None:
    push = add_command("push", "publish a model's folder on a model hub", run_push, PUSH_EXAMPLES)
    push.add_argument(
        "folder", type=path_of, metavar="FOLDER", help="as training or `save_pretrained` wrote it"
    )
    push.add_argument("--repo", required=True, metavar="OWNER/NAME", help="repository, created if missing")
    who = push.add_argument_group("who may have it")
    who.add_argument("--private", action="store_true", help="make a new repository private")
    who.add_argument(
        "--gated", action="store_const", const="auto", help="require agreement to the card's terms"
    )
    who.add_argument(
        "--gated-manually",
        dest="gated",
        action="store_const",
        const="manual",
        help="as --gated, and you approve each user yourself",
    )
    card = push.add_argument_group("the card")
    card.add_argument("--card", action="store_true", help="write a new README.md, even if there is one")
    what = "measured results for the card: summary.json of `magicedit evaluate`"
    card.add_argument("--results", type=path_of, metavar="JSON", help=what)
    card.add_argument("--editor", metavar="NAME", help="which editor of that report, if it has several")
    what = "licence of the weights, in the hub's spelling, such as apache-2.0 or cc-by-4.0"
    card.add_argument("--license", metavar="ID", help=what)
    out = push.add_argument_group("output")
    out.add_argument(
        "--message", default="Upload an expression editor", metavar="TEXT", help="commit message"
    )
    out.add_argument("--dry-run", action="store_true", help="print the card; change and send nothing")
    add_json_option(out)


def run_push(args: argparse.Namespace) -> int:
    from magicedit.hub import check_pipeline_folder, push_folder
    from magicedit.models.folder import ModelFolder

    if not re.fullmatch(r"[^/\s]+/[^/\s]+", args.repo):
        raise OutputError(f"--repo must be OWNER/NAME, such as your-name/my-model, got {args.repo!r}")
    check_pipeline_folder(args.folder)
    found = ModelFolder.local(args.folder)
    old = found.path / "README.md"
    card = card_of(args, found)
    changed = not old.is_file() or card_text(old, args.card) != card
    if args.dry_run:
        if args.json:
            print_json({"card": card, "card_changed": changed})
        else:
            print(card, end="")
        return 0
    sent = {"card": card if changed else None, "commit_message": args.message}
    url = push_folder(args.folder, args.repo, **options(args, "private", "gated"), **sent)
    if changed and found.origin == "folder":
        say(f"wrote the card {old}")
    if args.json:
        print_json({"url": url, "card_changed": changed, "private": args.private, "gated": args.gated})
    else:
        print(url)
    return 0


def card_of(args: argparse.Namespace, found: "ModelFolder") -> str:
    """Returns the folder's own card, or a new one, as the options request."""
    from magicedit import hub
    from magicedit.hub.cards import UNLICENSED, identifiers

    measured = None
    if args.results is not None:
        measured = hub.read_results(args.results, args.editor)
        if measured.fingerprint is None:
            raise ModelError(
                f"{args.results} does not state which weights it measured, so they need not be those in "
                f"{args.folder}; measure these: `magicedit evaluate --editor`"
            )
        if measured.fingerprint != found.fingerprint:
            raise ModelError(
                f"{args.results} is of other weights than those in {args.folder} (fingerprints "
                f"{measured.fingerprint} and {found.fingerprint}); measure these: "
                "`magicedit evaluate --editor`"
            )
    old = found.path / "README.md"
    text = card_text(old, args.card)
    if args.license is not None and not args.license.strip():
        raise ModelError("--license is empty; name an identifier of the hub, such as apache-2.0")
    if args.license == "other":
        raise ModelError(
            "--license other needs a name and a link: license_name and license_link in README.md"
        )
    stated = hub.license_of(text)
    license = stated if args.license is None else {"license": args.license}
    if args.card or not old.is_file():
        if "other" in identifiers(license.get("license")) and "license_name" not in license:
            raise ModelError(
                f"{old} states the license other without a name: add license_name, or give --license"
            )
        if not license:
            raise ModelError(
                f"{args.folder} has no card yet, and a new one must say the licence of the weights: "
                "--license apache-2.0, or another identifier of the hub"
            )
        results = {} if measured is None else {"results": measured.rows, "results_note": measured.note}
        card = hub.model_card(
            args.repo.rpartition("/")[2],
            repo_id=args.repo,
            **license,
            **hub.describe_folder(args.folder),
            **results,
        )
    else:
        card = hub.named_card(text, args.repo)
        if stated and license["license"] != stated["license"]:
            raise ModelError(
                f"{old} says another licence than --license {args.license}; change it there, or write "
                "the card anew with --card"
            )
        if license and (not stated or UNLICENSED in card):  # whose header may have been filled in by hand
            card = hub.licensed_card(card, **license | stated)
        if measured is not None:
            card = hub.measured_card(card, measured.rows, measured.note)
    if not hub.license_of(card):
        warn("warning: the card states no licence, so others may not use the weights; see --license")
    return card if args.gated is None else hub.gated_card(card)


def card_text(card: Path, anew: bool) -> str:
    """Returns a card's text; "" if it is missing, or unreadable and to be written `anew`.

    Raises ModelError where it is no text, or its header is no YAML or states a licence that is none.
    """
    import yaml

    from magicedit.hub import license_of

    if not card.is_file():
        return ""
    try:
        text = card.read_text("utf-8")
        license_of(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        if anew:
            return ""
        raise ModelError(
            f"{card} cannot be read as a model card ({error}); fix it, or write a new one with --card"
        ) from error
    return text
