"""The command line of examples/mteb_task.py."""

from dataclasses import dataclass
from pathlib import Path

from carl_hf.utils.atomic_files import check_new_file
from carl_hf.utils.fields import setting
from carl_hf.utils.setting_types import at_least


@dataclass
class MtebArguments:
    model: str | None = setting(None, "Folder or Hub id of a model that SentenceTransformer can load.")
    data_dir: str | None = setting(None, "Folder with the corpora (without: EmoBank is downloaded).")
    output: str = setting("mteb_emobank.json", "JSON file for the scores.")
    max_texts: int | None = setting(None, "Number of texts to use of each split (default: all).")

    def __post_init__(self):
        check_new_file(self.output)
        if self.max_texts is not None:
            at_least("--max_texts", self.max_texts, 2)
        if self.model is None:
            raise ValueError("--model is missing: name the folder of an encoder, or a Hub id.")
        if not Path(self.model).is_dir() and self.model.count("/") != 1:
            raise ValueError(f"--model {self.model}: there is no such folder, and it is no Hub id (owner/name).")
