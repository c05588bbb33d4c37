"""Which words of a text move its valence or its arousal, in the terminal or as HTML.

python examples/explain.py "What a lovely evening." --model runs/carl-demo
python examples/explain.py "What a lovely evening." "Somebody is at the door!" --target arousal --output words.html
"""

from collections.abc import Sequence
from pathlib import Path

from carl_hf.commands.arguments import parse_script_arguments
from carl_hf.commands.explain import ExplainArguments
from carl_hf.commands.heads import va_regressor
from carl_hf.commands.outputs import errors_in_one_line
from carl_hf.explain import Explainer
from carl_hf.utils.atomic_files import named_in_errors


@errors_in_one_line()
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_script_arguments(ExplainArguments, argv, description=__doc__, leading="texts")
    explainer = Explainer.from_pretrained(va_regressor(args.model))
    found = [explainer.explain(text, args.target, args.method) for text in args.texts]
    if args.output is not None:
        figures = "\n".join(attribution.to_html() for attribution in found)
        with named_in_errors(Path(args.output)) as path:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f'<!doctype html><meta charset="utf-8">\n{figures}\n', encoding="utf-8")
    else:
        for attribution in found:
            attribution.show()


if __name__ == "__main__":
    main()
