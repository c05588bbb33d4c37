"""Takes the cards of a run into this folder.

    python model_cards/collect.py runs/carl-demo carl-demo

Each card is rendered for org/NAME (org/NAME-va, org/NAME-emotion) from the export's own record; the weights stay where
they are.
"""

import argparse
import shutil
import sys
from pathlib import Path

from carl_hf.export.cards import render_card
from carl_hf.export.folder import EXPORT_RECORD, read_record

HERE = Path(__file__).parent


def collect(run: Path, name: str) -> list[Path]:
    """Writes NAME/, NAME-va/ and NAME-emotion/, as far as the run has them."""
    written = []
    for kind, suffix in (("encoder", ""), ("va", "-va"), ("emotion", "-emotion")):
        record = read_record(run / kind)
        if record is None:
            continue
        folder = HERE / f"{name}{suffix}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        shutil.copy(run / kind / EXPORT_RECORD, folder)
        for figure in record["figures"]:
            (folder / figure).parent.mkdir(exist_ok=True)
            shutil.copy(run / kind / figure, folder / figure)
        (folder / "README.md").write_text(render_card(record, f"org/{folder.name}"), encoding="utf-8")
        written.append(folder)
    return written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="Output folder of examples/pretrain.py.")
    parser.add_argument("name", help="Name of the model, such as carl-demo.")
    args = parser.parse_args()
    folders = collect(args.run, args.name)
    if not folders:
        sys.exit(f"error: {args.run} holds no exports; examples/pretrain.py writes them.")
    print("\n".join(map(str, folders)))


if __name__ == "__main__":
    main()
