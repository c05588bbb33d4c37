"""Adapts valence and arousal to texts that you have rated yourself: 20 to 200 are enough to tell what helps.

    python examples/adapt.py labels.csv --model runs/carl-demo --output runs/mine
    python examples/adapt.py labels.csv --scale 1 9 --text_column comment --model runs/carl-demo --output runs/mine

The file has the columns text, valence and arousal. Five-fold cross-validation chooses between leaving va/ alone, a
scale and an offset for each dimension, a ridge regression drawn towards the head as it is, and fine-tuning: the
simplest that is within chance of the best. Leaves va/ in the output folder, with its card and record, and says what
was chosen and what error to expect.
"""

import logging
from collections.abc import Sequence

from carl_hf.commands.adapt import AdaptArguments, adapt, print_adaptation
from carl_hf.commands.arguments import parse_script_arguments
from carl_hf.commands.environment import start_measuring_script, use_all_cores
from carl_hf.commands.outputs import errors_in_one_line


@errors_in_one_line()
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_script_arguments(AdaptArguments, argv, description=__doc__, leading="labels")
    start_measuring_script()
    use_all_cores(args.num_threads)
    folder, record = adapt(args)
    print_adaptation(record, args.scale)
    logging.info("%s. Next: carl-hf score my.csv --model %s --output scored.csv", folder, args.output)


if __name__ == "__main__":
    main()
