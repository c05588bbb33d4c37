"""`python -m carl_hf NAME ...` runs the script of that name in examples/, which an installed wheel holds too.

`accelerate launch -m carl_hf pretrain ...` trains on several devices.
"""

import runpy
import sys
from pathlib import Path

from carl_hf.utils.suggestions import did_you_mean

SCRIPTS = {
    "pretrain": "pretrain.py",
    "finetune": "finetune_emotion.py",
    "evaluate": "evaluate.py",
    "score": "score.py",
    "embed": "embed.py",
    "push": "push_to_hub.py",
    "mteb": "mteb_task.py",
}


def main() -> None:
    names = ", ".join(SCRIPTS)
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print(f"usage: python -m carl_hf NAME ...\n\nNAME is one of {names}; NAME --help lists its arguments.")
        return
    name = sys.argv.pop(1)
    if name not in SCRIPTS:
        sys.exit(f"error: there is no command {name!r}{did_you_mean(name, SCRIPTS)} Commands: {names}.")
    package = Path(__file__).parent
    folders = (package / "examples", package.parent / "examples")  # of a wheel, of a checkout
    script = next(folder / SCRIPTS[name] for folder in folders if folder.is_dir())
    sys.argv[0] = str(script)
    runpy.run_path(str(script), run_name="__main__")


if __name__ == "__main__":
    main()
