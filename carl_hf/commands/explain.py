"""The command line of examples/explain.py."""

from dataclasses import dataclass

from carl_hf.explain import Method, Target
from carl_hf.utils.atomic_files import check_new_file
from carl_hf.utils.fields import setting


@dataclass
class ExplainArguments:
    texts: list[str] = setting([], "Texts.")
    model: str = setting("runs/carl-demo", "Folder with va/, or va/ itself, or a Hub id (NAME, beside NAME-va).")
    target: Target = setting("valence", "What the words move.")
    method: Method = setting("integrated_gradients", "How their share is found (docs/explain.md).")
    output: str | None = setting(None, "HTML file, in place of the terminal.")

    def __post_init__(self):
        if not self.texts:
            raise ValueError('There is no text: carl-hf explain "What a lovely evening."')
        if self.output is not None:
            check_new_file(self.output)
