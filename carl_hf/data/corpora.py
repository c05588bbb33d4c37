"""The corpora of the paper and the demo corpus: where each comes from, and how its files are read.

A reader returns a table with the columns `text`, `valence`, `arousal` in the corpus's own scale, and `split` and
`label` where it has them.
"""

import hashlib
import html
import http.client
import importlib.resources
import logging
import os
import re
import reprlib
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from huggingface_hub.constants import HF_HOME

from carl_hf.data.bad_rows import number_of
from carl_hf.data.files import read_table
from carl_hf.utils.atomic_files import write_atomically
from carl_hf.utils.suggestions import listed

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CorpusSpec:
    """A corpus, declared.

    Args:
        name: as in `load_va_dataset(name)`. folder: its place below `data_dir` (any of these, the first that exists).
        read: reads that file or folder. scale: (least, greatest) value of its labels. licence: of the texts and
            labels.
        source: where it comes from. url: file to fetch, with the revision pinned in it; None where it may not be
            fetched.
        revision: the pinned commit. sha256: of the corpus's content, see `content_sha256`.
        clips_to_scale: whether averaged ratings may leave the scale and are clipped to it.
    """

    name: str
    folder: tuple[str, ...]
    read: Callable[[Path], pd.DataFrame]
    scale: tuple[float, float]
    licence: str
    source: str
    url: str | None = None
    revision: str | None = None
    sha256: str | None = None
    clips_to_scale: bool = False


def content_sha256(frame: pd.DataFrame) -> str:
    """Checksum of a corpus's content: of every row, the ASCII characters of the text, valence, arousal, and split if
    any.

    It does not depend on column names, quoting, white space or the repair of wrongly decoded punctuation, so that the
    published file and a cleaned copy of it agree.
    """
    digest = hashlib.sha256()
    splits = frame["split"] if "split" in frame else [""] * len(frame)
    for text, valence, arousal, split in zip(frame["text"], frame["valence"], frame["arousal"], splits, strict=True):
        characters = re.sub("[^!-~]", "", text)  # printable ASCII without the space
        digest.update(f"{characters}|{float(valence):.4f}|{float(arousal):.4f}|{split}\n".encode())
    return digest.hexdigest()


def read_corpus(spec: CorpusSpec, data_dir: str | Path | None) -> pd.DataFrame:
    """Reads a corpus from `data_dir`, from the package, or from its public repository.

    Raises:
        ValueError: if it is not in `data_dir`, or cannot be fetched; the message names what to do.
    """
    if spec.name == "demo":
        with importlib.resources.as_file(importlib.resources.files("carl_hf.data.resources") / "demo.csv") as path:
            return spec.read(path)
    if data_dir is not None:
        candidates = [Path(data_dir) / folder for folder in spec.folder]
        found = next((path for path in candidates if path.exists()), None)
        if found is not None:
            return _read_local(spec, found)
        if spec.url is None or not Path(data_dir).is_dir():
            raise ValueError(
                f"{spec.name} is not in --data_dir {data_dir}: expected {' or '.join(map(str, candidates))}. "
                f"{spec.source}"
            )
        logger.info("%s is not in %s: fetching it.", spec.name, data_dir)
    if spec.url is None:
        raise ValueError(
            f"{spec.name} is handed out by its owners only. {spec.source} Then name the folder above "
            f"{spec.folder[0]} with --data_dir, or train without it (--corpora emobank facebook)."
        )
    return _fetch(spec)


def _read_local(spec: CorpusSpec, path: Path) -> pd.DataFrame:
    frame = spec.read(path)
    if spec.sha256 is not None and content_sha256(frame) != spec.sha256:
        logger.warning(
            "%s is not the published %s (its content differs); figures will not be comparable.", path, spec.name
        )
    return frame


def _fetch(spec: CorpusSpec) -> pd.DataFrame:
    cached = _cache_dir() / f"{spec.name}-{spec.revision}.csv"
    if cached.exists():
        frame = spec.read(cached)
        if content_sha256(frame) == spec.sha256:
            return frame
    try:
        with urllib.request.urlopen(spec.url, timeout=60) as response:
            body = response.read()
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
        raise ValueError(
            f"Cannot fetch {spec.name} from {spec.url} ({error}). With a local copy of it, pass --data_dir DIR, "
            f"where DIR holds {spec.folder[0]}."
        ) from error
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "corpus.csv"
        path.write_bytes(body)
        frame = spec.read(path)
    if content_sha256(frame) != spec.sha256:
        raise ValueError(
            f"What {spec.url} gave is not the published {spec.name}: its checksum differs. Nothing was used."
        )
    cached.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(cached, lambda file: file.write(body), partial_name=f"{cached.name}.{os.getpid()}")
    return frame


def _cache_dir() -> Path:
    return Path(HF_HOME) / "carl_hf"


def _need_columns(frame: pd.DataFrame, texts: tuple[str, ...], numbers: tuple[str, ...], path: Path) -> None:
    missing = [column for column in (*texts, *numbers) if column not in frame]
    if missing:
        raise ValueError(f"{path} has no column {', '.join(missing)}; it has {listed(frame)}.")
    if frame.columns.has_duplicates:
        twice = frame.columns[frame.columns.duplicated()][0]
        raise ValueError(f"{path} has two columns that stand for {twice!r}: remove one.")
    for column in numbers:
        values = np.array([number_of(cell) for cell in frame[column]])
        bad = ~np.isfinite(values)
        if bad.any():
            row = int(bad.argmax())
            held = reprlib.repr(frame[column].iloc[row])
            raise ValueError(f"{path}, row {row + 1}: column {column!r} holds {held}, not a number.")
        frame[column] = values


def _read_emobank(path: Path) -> pd.DataFrame:
    """corpus/emobank.csv as published (id, split, V, A, D, text), or with the label columns spelled out."""
    frame = read_table(path).rename(columns={"V": "valence", "A": "arousal", "D": "dominance"})
    _need_columns(frame, ("split", "text"), ("valence", "arousal"), path)
    return frame


def _read_facebook(path: Path) -> pd.DataFrame:
    """dataset-fb-valence-arousal-anon.csv as published (two raters a row), or a cleaned copy with lower-case names.

    The label is the mean of the two raters. The one row without text is left out; texts that were encoded twice are
    repaired.
    """
    frame = read_table(path)
    frame = frame.rename(columns={"Anonymized Message": "text"}).rename(columns=str.lower)
    _need_columns(frame, ("text",), ("valence1", "valence2", "arousal1", "arousal2"), path)
    frame["text"] = [" ".join(_undo_double_encoding(text).splitlines()).strip() for text in frame["text"]]
    frame["valence"] = (frame["valence1"] + frame["valence2"]) / 2
    frame["arousal"] = (frame["arousal1"] + frame["arousal2"]) / 2
    return frame[frame["text"] != ""].reset_index(drop=True)


def _undo_double_encoding(text: str) -> str:
    """Reverts UTF-8 that was read as Windows-1252, once or several times over."""
    while not text.isascii():
        try:
            text = text.encode("cp1252").decode("utf-8")
        except UnicodeError:
            break
    return text


_IEMOCAP_LABEL = re.compile(r"^\[[\d.]+ - [\d.]+\]\t(\S+)\t(\w+)\t\[(\d+\.\d+), (\d+\.\d+), (\d+\.\d+)\]")
_IEMOCAP_TEXT = re.compile(r"^(Ses\S+) \[[\d.]+-[\d.]+\]:\s*(.*)$")


def _read_iemocap(path: Path) -> pd.DataFrame:
    """IEMOCAP_full_release: Session*/dialog/EmoEvaluation/Ses*.txt (labels) and .../transcriptions/Ses*.txt
    (texts)."""
    labels, texts = {}, {}
    for file in sorted(path.glob("Session*/dialog/EmoEvaluation/Ses*.txt")):
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            if match := _IEMOCAP_LABEL.match(line):
                turn, _, valence, activation, _ = match.groups()
                labels[turn] = (float(valence), float(activation))
    for file in sorted(path.glob("Session*/dialog/transcriptions/Ses*.txt")):
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            if match := _IEMOCAP_TEXT.match(line):
                texts[match[1]] = match[2].strip()
    turns = [turn for turn in labels if texts.get(turn)]
    if not turns:
        raise ValueError(
            f"{path} holds no IEMOCAP turns: expected Session1/dialog/EmoEvaluation/Ses01*.txt and "
            "Session1/dialog/transcriptions/Ses01*.txt, as in IEMOCAP_full_release."
        )
    return pd.DataFrame(
        {"text": [texts[t] for t in turns], "valence": [labels[t][0] for t in turns],
         "arousal": [labels[t][1] for t in turns]}
    )  # fmt: skip


def _read_emotales(path: Path) -> pd.DataFrame:
    """View#1_dimensions.xlsx: a sheet a tale, two header rows, then a sentence and (evaluation, activation, power) a
    rater.

    The label is the mean over raters; a sentence that nobody rated is left out.
    """
    try:
        sheets = pd.read_excel(path, sheet_name=None, header=None, skiprows=2)
    except ImportError as error:
        raise ValueError("Reading EmoTales' workbook needs openpyxl: pip install openpyxl.") from error
    except Exception as error:  # of a damaged workbook openpyxl, zipfile and the XML parser raise a dozen kinds
        raise ValueError(f"{path} cannot be read as an Excel workbook ({error}): fetch it again.") from error
    rows = []
    for sheet in sheets.values():
        raters = (sheet.shape[1] - 1) // 3
        if raters < 1:  # a sheet without any rating
            continue
        ratings = sheet.iloc[:, 1 : 1 + 3 * raters].apply(pd.to_numeric, errors="coerce")
        for sentence, valence, arousal in zip(
            sheet.iloc[:, 0], ratings.iloc[:, 0::3].mean(axis=1), ratings.iloc[:, 1::3].mean(axis=1), strict=True
        ):
            if isinstance(sentence, str) and pd.notna(valence) and pd.notna(arousal):
                rows.append((" ".join(html.unescape(sentence.replace("<br>", " ")).split()), valence, arousal))
    if not rows:
        raise ValueError(f"{path} holds no rated sentences; expected EmoTales' View#1_dimensions.xlsx.")
    return pd.DataFrame(rows, columns=["text", "valence", "arousal"])


CORPORA = {
    spec.name: spec
    for spec in (
        CorpusSpec(
            name="demo",
            folder=(),
            read=read_table,
            scale=(-1, 1),
            licence="Apache-2.0",
            source="Written for this project; see carl_hf/resources/DATASHEET.md.",
        ),
        CorpusSpec(
            name="emobank",
            folder=("emobank/emobank.csv", "emobank.csv"),
            read=_read_emobank,
            scale=(1, 5),
            licence="CC-BY-SA-4.0",
            source="Buechel and Hahn 2017, github.com/JULIELab/EmoBank.",
            revision="248ce2a43e165a66d31aeaed83cff9641d6654e0",
            url="https://raw.githubusercontent.com/JULIELab/EmoBank/248ce2a43e165a66d31aeaed83cff9641d6654e0/corpus/emobank.csv",
            sha256="e9a1fd18cd64b25223089022546c3f8af4cd2676524adce9a224570eb9a5d099",
        ),
        CorpusSpec(
            name="facebook",
            folder=("facebook_va/facebook_va.csv", "facebook_va/dataset-fb-valence-arousal-anon.csv",
                    "dataset-fb-valence-arousal-anon.csv"),
            read=_read_facebook,
            scale=(1, 9),
            licence="GPL-3.0",
            source="Preotiuc-Pietro et al. 2016, github.com/wwbp/additional_data_sets.",
            revision="2f51266add949268cd321a2d0568fd9f39da810c",
            url="https://raw.githubusercontent.com/wwbp/additional_data_sets/2f51266add949268cd321a2d0568fd9f39da810c/"
            "valence_arousal/dataset-fb-valence-arousal-anon.csv",
            sha256="cdec45e6a54c38c237cac099f359f03e67d62b1565cb0d87572ba54668215bcf",
        ),
        CorpusSpec(
            name="iemocap",
            folder=("IEMOCAP_full_release", "iemocap"),
            read=_read_iemocap,
            scale=(1, 5),
            licence="USC licence, research only, not to be passed on",
            source="Busso et al. 2008: ask for it at sail.usc.edu/iemocap.",
            clips_to_scale=True,
        ),
        CorpusSpec(
            name="emotales",
            folder=("EmoTales/View #1/View#1_dimensions.xlsx", "emotales/View#1_dimensions.xlsx"),
            read=_read_emotales,
            scale=(1, 9),
            licence="as stated by its authors, not to be passed on",
            source="Francisco et al. 2012: ask its authors (NIL group, Universidad Complutense de Madrid).",
        ),
    )
}  # fmt: skip
