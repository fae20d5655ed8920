"""Entry point: `accelerate launch train/train.py --config mini-cpu --train_data_dir DATASET --output_dir
RUN`."""

import logging
import os
import sys
import traceback


def main(argv: list[str] | None = None) -> int:
    """Parses `argv` (default: the command line) and trains.

    Returns 2 on user errors; 0 also where a signal ended the run, after a checkpoint; 130 after Ctrl-C.
    One of several processes exits instead, with that status, and with 1 after an unexpected error.
    """
    from magicedit.errors import MagicEditError, reason_of
    from magicedit.train.config import parse_config
    from magicedit.train.signals import Signals

    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    code, processes = 0, int(os.environ.get("WORLD_SIZE", 1))
    try:
        config = parse_config(argv)
        with Signals() as signals:
            from magicedit.train.loop import Run

            run = Run(config, signals)  # kept, see below
            run.train()
    except MagicEditError as error:
        print(f"train.py: error: {reason_of(error, None)}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("train.py: interrupted", file=sys.stderr)
        code = 130
    except Exception:
        if processes == 1:
            raise
        traceback.print_exc()
        code = 1
    if processes > 1:
        # Everything is written. Freeing the run would join Gloo's threads, which sometimes wait forever for a
        # process that has ended.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


if __name__ == "__main__":
    sys.exit(main())
