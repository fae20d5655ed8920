"""`magicedit app`."""

import argparse
from collections.abc import Callable

from magicedit.cli.common import add_model_options, load_editor, options, warn

APP_EXAMPLES = """\
examples:
  magicedit app                              then open the address that it prints
  magicedit app --port 8000 --open           in the browser at once
  magicedit app --model my-model --quality fast
  magicedit app --host 0.0.0.0               for other machines too, with a password that it prints

Only this machine can reach the page, unless --host says otherwise. A photograph is deleted when its page is
closed, other uploads and results after ten minutes, and everything when the command ends.
"""


def add_commands(add_command: Callable[..., argparse.ArgumentParser]) -> None:
    app = add_command("app", "edit in a web page that runs on this machine", run_app, APP_EXAMPLES)
    app.add_argument(
        "--port", type=int, default=7860, metavar="N", help="port of the page; 0: any free one (7860)"
    )
    what = "0.0.0.0 lets other machines use the page too, with a password (127.0.0.1)"
    app.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help=what)
    what = "password of the page; MAGICEDIT_PASSWORD hides it from other users of this machine "
    what += "(with --host a random one, which is printed; else none)"
    app.add_argument("--password", metavar="TEXT", help=what)
    what = "another name of this machine that browsers may use; repeatable"
    app.add_argument("--allow-host", action="append", default=[], metavar="NAME", help=what)
    app.add_argument("--open", action="store_true", help="open it in the browser")
    add_model_options(app, steps=False)


def run_app(args: argparse.Namespace) -> int:
    from magicedit.app import serve

    serve(
        lambda: load_editor(args),
        **options(args, "host", "port", "password", "quality", "guidance", "seed"),
        allow_hosts=args.allow_host,
        open_browser=args.open,
        say=warn,  # the address and the password are this command's results: --quiet keeps them
    )
    return 0
