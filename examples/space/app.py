"""A page that shows how sentences feel: on the circle of valence and arousal, word by word, beside their neighbours.

    python examples/space/app.py --model runs/carl-demo
    python examples/space/app.py --encoder NAME/carl --va NAME/carl-va --emotion NAME/carl-emotion --port 8000

--model is the output folder of examples/pretrain.py. The page runs on this machine; it sends no text anywhere.
"""

import errno
import os
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr
from analysis import MOST_ROWS, MOST_SENTENCES, Models, sentences_of
from rendering import circle_html, message_html, readings_html

from carl_hf.commands.arguments import parse_script_arguments
from carl_hf.commands.environment import use_all_cores
from carl_hf.commands.outputs import errors_in_one_line

EXAMPLES = [
    "We won the cup and danced through the streets until sunrise!\n"
    "The lake was still, and we lay in the warm grass for hours.\n"
    "How dare you lie to me again, get out of my house!",
    "I miss her every single morning.",
    "The invoice was sent on Tuesday.\nThere is somebody in the house, I can hear him on the stairs!",
]
METHODS = {"integrated gradients": "integrated_gradients", "gradient norm": "gradient_norm"}

THEME = gr.themes.Default(
    primary_hue="indigo", font=("system-ui", "sans-serif"), font_mono=("ui-monospace", "monospace")
).set(
    button_primary_background_fill="*primary_700", button_primary_background_fill_hover="*primary_800",
    button_primary_background_fill_dark="*primary_700", button_primary_background_fill_hover_dark="*primary_800",
    button_primary_text_color="white",
)  # fmt: skip
# a screen reader announces what changes in the element, which must have been there before
LIVE = "element.setAttribute('role', 'status'); element.setAttribute('aria-live', 'polite');"
LAUNCH = {
    "theme": THEME, "css_paths": Path(__file__).with_name("style.css"), "footer_links": [], "run_history": False,
    "max_file_size": "5mb", "ssr_mode": False,
}  # fmt: skip


def _named(variable: str, help: str, default: str | None = None) -> Any:
    return field(default_factory=lambda: os.environ.get(variable, default), metadata={"help": help})


@dataclass
class PageArguments:
    model: str = _named(
        "CARL_MODEL", "Output folder of a training, with encoder/, va/ and emotion/.", "runs/carl-demo"
    )
    encoder: str | None = _named("CARL_ENCODER", "Folder or Hub id of the encoder, in place of encoder/.")
    va: str | None = _named("CARL_VA", "Folder or Hub id of the valence-arousal regressor, in place of va/.")
    emotion: str | None = _named("CARL_EMOTION", "Folder or Hub id of the emotion classifier, in place of emotion/.")
    port: int | None = field(default=None, metadata={"help": "Port of the page (default: 7860, or the next free)."})
    share: bool = field(default=False, metadata={"help": "Make a public link through Gradio's servers."})
    num_threads: int | None = field(default=None, metadata={"help": "CPU threads (default: all cores)."})


def load_models(args: PageArguments) -> Models:
    """The three models that the arguments name.

    Raises:
        ValueError: if one is missing or of another kind.
    """
    named = {"encoder": args.encoder, "va": args.va, "emotion": args.emotion}
    folder = Path(args.model)
    if None in named.values() and not folder.is_dir():
        raise ValueError(
            f"--model {folder} is no folder: train one with carl-hf pretrain --output_dir {folder}, or name Hub "
            "ids by --encoder, --va and --emotion."
        )
    missing = [head for head, name in named.items() if name is None and not (folder / head).is_dir()]
    if missing and (folder / "carl_export.json").is_file() and folder.resolve().name in named:
        raise ValueError(f"--model {folder} is one export: name the folder of the run, {folder.resolve().parent}.")
    if missing:
        hint = " (carl-hf pretrain --emotion_corpus makes emotion/)" if "emotion" in missing else ""
        raise ValueError(
            f"{folder} holds no {', no '.join(f'{head}/' for head in missing)}, and the page needs all three: name "
            f"models by {', '.join(f'--{head}' for head in missing)}{hint}."
        )
    return Models(**{head: name or str(folder / head) for head, name in named.items()})


def show_sentences(models: Models, text: str, target: str, method: str) -> tuple[str, str, str]:
    """HTML of the status, the circle and the readings."""
    try:
        readings = models.read(sentences_of(text), target, METHODS.get(method, "integrated_gradients"))
    except ValueError as error:
        return message_html(str(error), error=True), circle_html([]), ""
    status = f"{count(len(readings), 'sentence')} read."
    cut = [str(i) for i, reading in enumerate(readings, start=1) if reading.attribution.truncated]
    if cut:
        status += f" Too long to colour more than the first {models.va.max_length} tokens: {', '.join(cut)}."
    return message_html(status), circle_html(readings), readings_html(readings)


def show_file(models: Models, path: str | None) -> tuple[str, gr.File]:
    """HTML of the status, and the finished table to download."""
    try:
        if path is None:
            raise ValueError("There is no file yet: choose a CSV file with a column named text.")
        finished = Path(path).with_name(f"{Path(path).stem}-feelings.csv")  # in the page's cache, which is emptied
        found = models.score_file(Path(path), finished)
    except ValueError as error:
        return message_html(str(error), error=True), gr.File(None, visible=False)
    finished.chmod(0o600)
    status = f"{count(found.rows, 'row')} read." + (
        f" {count(found.empty, 'row')} had no text." if found.empty else ""
    )
    return message_html(f"{status} The table is ready to download."), gr.File(str(finished), visible=True)


def count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def build_page(models: Models) -> gr.Blocks:
    with gr.Blocks(title="How does it feel?", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gr.Markdown(
            "# How does it feel?\nA text encoder trained by CARL places sentences by **valence** (unpleasant to "
            "pleasant) and **arousal** (calm to agitated). It says how annotators would read a text, not what a "
            "person feels. Nothing you type leaves the machine that serves this page."
        )
        with gr.Tab("Sentences"):
            with gr.Row():
                with gr.Column():
                    text = gr.Textbox(
                        label=f"English sentences, one per line (at most {MOST_SENTENCES})", lines=5, max_lines=12,
                        elem_id="sentences",
                    )  # fmt: skip
                    target = gr.Radio(["valence", "arousal"], value="valence", label="Colour the words by")
                    method = gr.Radio(list(METHODS), value="integrated gradients", label="Method")
                    button = gr.Button("Read the sentences", variant="primary")
                    status = gr.HTML(elem_classes="status", elem_id="status", js_on_load=LIVE)
                    gr.Examples([[example] for example in EXAMPLES], [text], label="Examples")
                with gr.Column():
                    circle = gr.HTML(circle_html([]))
            readings = gr.HTML()
            gr.on(  # of what is asked for while it reads, the last
                [button.click, target.input, method.input], lambda *given: show_sentences(models, *given),
                [text, target, method], [status, circle, readings], show_progress="minimal",
                trigger_mode="always_last", api_name="read",
            )  # fmt: skip
        with gr.Tab("CSV file"):
            gr.Markdown(
                f"A CSV file in UTF-8 with a column named **text** and at most {MOST_ROWS:,} rows comes back as it "
                "was, with further columns: valence and arousal (each in [0, 1]), the most probable emotion and the "
                "probability of each, and how many tokens of the text the models do not know. If several emotions can "
                "hold at once, `emotions` has those over their thresholds. `NA` or `null` is read as a word."
            )
            upload = gr.File(label="Your CSV file", file_types=[".csv"], elem_id="upload")
            file_button = gr.Button("Read the file", variant="primary")
            file_status = gr.HTML(elem_classes="status", elem_id="file-status", js_on_load=LIVE)
            finished = gr.File(label="Finished table", visible=False, elem_id="finished")
            file_button.click(
                lambda path: show_file(models, path), [upload], [file_status, finished], show_progress="minimal",
                api_name="read_file",
            )  # fmt: skip
    return page


@errors_in_one_line()
def main() -> None:
    args = parse_script_arguments(PageArguments)
    if args.port is not None and not 0 < args.port < 65536:
        raise ValueError(f"--port must lie between 1 and 65535, got {args.port}.")
    if args.port is not None:
        check_free(args.port)
    use_all_cores(args.num_threads)
    page = build_page(load_models(args))
    os.umask(0o077)  # uploads and answers are the page's alone
    page.launch(server_port=args.port, share=args.share, **LAUNCH)


def check_free(port: int) -> None:
    """A ValueError if another program listens on the port."""
    with socket.socket() as probe:
        if os.name != "nt":  # where it would take a port in use
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"), port))
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                raise ValueError(f"--port {port}: {error.strerror}. Name another, or leave it out.") from error


if __name__ == "__main__":
    main()
