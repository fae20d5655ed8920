"""Entry point: `accelerate launch train/train.py --config mini-cpu --train_data_dir DATASET --output_dir
RUN`."""

import logging
import os
import sys


def main(argv: list[str] | None = None) -> int:
    """Parses `argv` (default: the command line) and trains; returns 2 on user errors."""
    from magicedit.errors import MagicEditError
    from magicedit.train.config import parse_config

    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    try:
        config = parse_config(argv)
        from magicedit.train.loop import Run

        run = Run(config)
        run.train()
        if run.accelerator.num_processes > 1:
            # Everything is written. Freeing the run would join Gloo's threads, which sometimes wait forever
            # for a process that has ended.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)
    except MagicEditError as error:
        print(f"train.py: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
