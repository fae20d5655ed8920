"""The command `magicedit`, also as `python -m magicedit` where it is not on the path."""

import sys


def main() -> int:
    """Runs the command of this process and returns its exit code, even where Ctrl-C comes during imports."""
    try:
        from magicedit.cli import main

        return main()
    except KeyboardInterrupt:
        print("magicedit: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
