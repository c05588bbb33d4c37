"""The command `carl-hf`: runs the scripts of examples/, which an installed wheel holds too.

It stands beside the package because importing that imports torch, which `carl-hf --help` need not wait for.
"""

import importlib.util
import runpy
import sys
from pathlib import Path

SCRIPTS = {
    "pretrain": ("pretrain.py", "train an encoder by CARL, measure it before and after, export it"),
    "finetune": ("finetune_emotion.py", "train an emotion classifier on your labels"),
    "adapt": ("adapt.py", "adapt valence and arousal to 20 to 200 texts that you have rated"),
    "evaluate": ("evaluate.py", "measure any encoder, or compare several"),
    "score": ("score.py", "valence, arousal and emotions for every row of a table of any size"),
    "embed": ("embed.py", "vectors of a table of any size"),
    "explain": ("explain.py", "which words of a text move its valence or arousal"),
    "export-onnx": ("export_onnx.py", "add ONNX graphs in float32 and int8 to exports"),
    "push": ("push_to_hub.py", "publish an export on the Hugging Face Hub"),
    "app": ("space/app.py", "a page that shows how sentences feel, on this machine"),
    "mteb": ("mteb_task.py", "measure on EmoBank as a task of mteb"),
}

running: list[str] = []
"""The command that runs, for its help."""


def main() -> None:
    package = Path(importlib.util.find_spec("carl_hf").origin).parent
    words = sys.argv[1:]
    if not words or words[0] in ("-h", "--help"):
        rows = "\n".join(f"  {name:<12} {about}" for name, (_, about) in SCRIPTS.items())
        print(f"usage: carl-hf COMMAND ...\n\n{rows}\n")
        print("carl-hf COMMAND --help lists its settings, --help-all those of training too; carl-hf --version.")
        print("On several devices: accelerate launch -m carl_hf pretrain ...")
        return
    if words[0] == "--version":
        print(runpy.run_path(str(package / "version.py"))["__version__"])
        return
    name = sys.argv.pop(1)
    if name not in SCRIPTS:
        from carl_hf.utils.suggestions import did_you_mean

        sys.exit(f"error: there is no command {name!r}{did_you_mean(name, SCRIPTS)} Commands: {', '.join(SCRIPTS)}.")
    folders = (package / "examples", package.parent / "examples")  # of a wheel, of a checkout
    script = next(folder for folder in folders if folder.is_dir()) / SCRIPTS[name][0]
    sys.argv[0] = str(script)
    if script.parent.name == "space":
        sys.path.insert(0, str(script.parent))  # the page's modules lie beside it
    running[:] = [name]
    try:
        runpy.run_path(str(script), run_name="__main__")
    except KeyboardInterrupt:  # before the command has begun
        print("Stopped.", file=sys.stderr)
        sys.exit(130)
    finally:
        running.clear()


if __name__ == "__main__":
    main()
