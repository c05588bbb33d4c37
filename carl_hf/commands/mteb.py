"""The command line of examples/mteb_task.py."""

from dataclasses import dataclass
from pathlib import Path

from carl_hf.utils.atomic_files import check_writable
from carl_hf.utils.fields import setting


@dataclass
class MtebArguments:
    model: str | None = setting(None, "Folder or Hub id of a model that SentenceTransformer can load.")
    data_dir: str | None = setting(None, "Folder with the corpora (without: EmoBank is downloaded).")
    output: str = setting("mteb_emobank.json", "JSON file for the scores.")
    max_texts: int | None = setting(None, "Number of texts to use of each split (default: all).")

    def __post_init__(self):
        check_writable(Path(self.output).parent, "--output")
        if self.model is None or (not Path(self.model).is_dir() and self.model.count("/") != 1):
            raise ValueError(f"--model {self.model}: there is no such folder, and it is no Hub id (owner/name).")
