"""The corpora of the paper and the demo corpus: where each comes from, and how its files are read."""

import hashlib
import html
import http.client
import logging
import os
import re
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from huggingface_hub import constants

from carl_hf.data.agreement import emobank_ratings, facebook_ratings
from carl_hf.data.bad_rows import Number, Weight, check_table, class_name, corpus_text, split_name
from carl_hf.data.files import read_table
from carl_hf.utils.atomic_files import named_in_errors

logger = logging.getLogger(__name__)
DIMENSIONS = ("valence", "arousal", "dominance")
_CACHE = Path(constants.HF_HOME) / "carl_hf"


class MissingCorpus(ValueError):
    """A corpus that is neither in the data folder nor can be fetched."""


@dataclass(frozen=True)
class CorpusSpec:
    """A corpus of texts with VA labels. `read` gives the columns `text`, `valence`, `arousal` on the corpus's scale
    and, where it has them, `dominance`, `split` and `label`."""

    name: str  # as in load_va_dataset(name)
    folder: tuple[str, ...]  # paths below data_dir; the first that exists is read
    read: Callable[[Path], pd.DataFrame]
    scale: tuple[float, float]  # (least, greatest) value of its labels
    licence: str  # of texts and labels
    source: str  # where it comes from
    url: str | None = None  # of a file that may be fetched, of a pinned revision
    revision: str | None = None
    sha256: str | None = None  # see content_sha256
    clips_to_scale: bool = False  # averaged ratings may leave the scale
    ratings: Callable[[Path, pd.DataFrame], pd.DataFrame] | None = None
    """Adds columns to what has been read: `raters`, the number of a text's ratings, and their standard deviations
    `valence_sd` and `arousal_sd`."""


def content_sha256(frame: pd.DataFrame) -> str:
    """Checksum of every row's valence, arousal, split if any, and ASCII characters of the text: the published file and
    a cleaned copy of it (column names, quoting, white space, repaired punctuation) agree."""
    digest = hashlib.sha256()
    splits = frame["split"] if "split" in frame else [""] * len(frame)
    for text, valence, arousal, split in zip(frame["text"], frame["valence"], frame["arousal"], splits, strict=True):
        characters = re.sub("[^!-~]", "", text)  # printable ASCII without the space
        digest.update(f"{characters}|{float(valence):.4f}|{float(arousal):.4f}|{split}\n".encode())
    return digest.hexdigest()


def read_corpus(
    spec: CorpusSpec, data_dir: str | Path | None, scale: tuple[float, float] | None = None, *, ratings: bool = False
) -> pd.DataFrame:
    """Reads a corpus from `data_dir`, from the package, or from its public repository, and checks every row.

    Args:
        scale: of its labels, by default the corpus's own. ratings: with number and deviations of the ratings, where
            the corpus has them.

    Raises:
        MissingCorpus: if it is not in `data_dir` and cannot be fetched; the message says what to do.
        ValueError: for a missing column, a bad row, or a file of ratings that is not there.
    """
    path = _local_path(spec, data_dir) or _fetched_path(spec)
    frame = _read(spec, path, scale or spec.scale)
    if spec.sha256 is not None and content_sha256(frame) != spec.sha256:
        logger.warning(
            "%s is not the published %s (its content differs): results will not be comparable.", path, spec.name
        )
    if ratings and spec.ratings is not None:
        frame = spec.ratings(path, frame)
    return check_table(frame, {"split": split_name}, path) if "split" in frame else frame


def is_copy(path: str | Path, spec: CorpusSpec) -> bool:
    """Whether a file has the texts and labels of a corpus whose content is known."""
    content = content_sha256(read_corpus(spec, None)) if spec.name == "demo" else spec.sha256
    try:
        return content is not None and content_sha256(_read(spec, Path(path), spec.scale)) == content
    except (ValueError, OSError, KeyError, TypeError):  # it is nothing of the kind
        return False


def _local_path(spec: CorpusSpec, data_dir: str | Path | None) -> Path | None:
    """Where a corpus is; None if it is to be fetched."""
    if spec.name == "demo":
        return Path(__file__).with_name("resources") / "demo.csv"
    candidates = [] if data_dir is None else [Path(data_dir) / folder for folder in spec.folder]
    found = next((path for path in candidates if path.exists()), None)
    if found is None and candidates and (spec.url is None or not Path(data_dir).is_dir()):
        raise MissingCorpus(
            f"{spec.name} is not in --data_dir {data_dir}: expected {' or '.join(map(str, candidates))}. {spec.source}"
        )
    if found is None and spec.url is None:
        raise MissingCorpus(
            f"{spec.name} is handed out by its owners only. {spec.source} Then name the folder above "
            f"{spec.folder[0]} with --data_dir, or train without it (--corpora emobank facebook)."
        )
    return found


def _fetched_path(spec: CorpusSpec) -> Path:
    """The cached download of a corpus. Only a file with the published content is kept or used."""
    path = _CACHE / f"{spec.name}-{spec.revision}.csv"
    if path.exists() and _is_published(spec, path):
        return path
    try:
        if constants.HF_HUB_OFFLINE:
            raise OSError("HF_HUB_OFFLINE=1 forbids it")
        with urllib.request.urlopen(spec.url, timeout=60) as response:
            body = response.read()
    except (http.client.HTTPException, OSError) as error:
        raise MissingCorpus(
            f"Cannot fetch {spec.name} from {spec.url} ({error}). With a local copy of it, pass --data_dir DIR, "
            f"where DIR holds {spec.folder[0]}."
        ) from error
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"partial-{os.getpid()}.csv")
    try:
        with named_in_errors(partial):
            partial.write_bytes(body)
        if not _is_published(spec, partial):
            raise MissingCorpus(
                f"What {spec.url} gave is not the published {spec.name}: its checksum differs. Nothing was used."
            )
        return partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _is_published(spec: CorpusSpec, path: Path) -> bool:
    try:
        return content_sha256(_read(spec, path, spec.scale)) == spec.sha256
    except ValueError:
        return False


def _read(spec: CorpusSpec, path: Path, scale: tuple[float, float]) -> pd.DataFrame:
    frame = spec.read(path)
    labels = [name for name in DIMENSIONS if name in frame or name != "dominance"]
    rule = Number() if spec.clips_to_scale else Number(*scale)
    weight = {"weight": Weight()} if "weight" in frame else {}
    frame = check_table(frame, {"text": corpus_text, **dict.fromkeys(labels, rule), **weight}, path)
    for name in labels if spec.clips_to_scale else ():
        clipped = frame[name].clip(*scale)
        if (outside := int((clipped != frame[name]).sum())) > 0:
            logger.warning("%s: %d values of %s outside [%g, %g] were clipped.", spec.name, outside, name, *scale)
        frame[name] = clipped
    return frame


def _read_emobank(path: Path) -> pd.DataFrame:
    """corpus/emobank.csv as published (id, split, V, A, D, text), or with the label columns spelled out."""
    frame = read_table(path).rename(columns={"V": "valence", "A": "arousal", "D": "dominance"})
    return check_table(frame, {"split": class_name}, path)


def _read_facebook(path: Path) -> pd.DataFrame:
    """dataset-fb-valence-arousal-anon.csv as published, or a cleaned copy with lower-case names.

    The label is the mean of the two raters of a row. The one row without text is left out.
    """
    frame = read_table(path).rename(columns={"Anonymized Message": "text"}).rename(columns=str.lower)
    ratings = dict.fromkeys(("valence1", "valence2", "arousal1", "arousal2"), Number())
    frame = check_table(frame, {"text": lambda column, cell: cell, **ratings}, path)
    frame["text"] = [" ".join(_undo_double_encoding(text).splitlines()).strip() for text in frame["text"]]
    frame["valence"] = (frame["valence1"] + frame["valence2"]) / 2
    frame["arousal"] = (frame["arousal1"] + frame["arousal2"]) / 2
    return frame[frame["text"] != ""]


def _undo_double_encoding(text: str) -> str:
    """Reverts UTF-8 that was read as Windows-1252, once or several times over."""
    while not text.isascii():
        try:
            text = text.encode("cp1252").decode("utf-8")
        except UnicodeError:
            break
    return text


_IEMOCAP_LABEL = re.compile(r"^\[[\d.]+ - [\d.]+\]\t(\S+)\t\w+\t\[(\d+\.\d+), (\d+\.\d+), \d+\.\d+\]")
_IEMOCAP_TEXT = re.compile(r"^(Ses\S+) \[[\d.]+-[\d.]+\]:\s*(.*)$")


def _read_iemocap(path: Path) -> pd.DataFrame:
    """IEMOCAP_full_release: labels in Session*/dialog/EmoEvaluation/Ses*.txt, texts in .../transcriptions/Ses*.txt."""

    def found(folder: str, pattern: re.Pattern) -> dict[str, tuple[str, ...]]:
        files = sorted(path.glob(f"Session*/dialog/{folder}/Ses*.txt"))
        lines = [line for file in files for line in file.read_text(encoding="utf-8", errors="replace").splitlines()]
        return {match[1]: match.groups()[1:] for line in lines if (match := pattern.match(line))}

    labels, texts = found("EmoEvaluation", _IEMOCAP_LABEL), found("transcriptions", _IEMOCAP_TEXT)
    rows = [(texts[turn][0].strip(), *labels[turn]) for turn in labels if turn in texts and texts[turn][0].strip()]
    if not rows:
        raise ValueError(
            f"{path} holds no IEMOCAP turns: expected Session1/dialog/EmoEvaluation/Ses01*.txt and "
            "Session1/dialog/transcriptions/Ses01*.txt, as in IEMOCAP_full_release."
        )
    return pd.DataFrame(rows, columns=["text", "valence", "arousal"])


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
        means = ratings.iloc[:, 0::3].mean(axis=1), ratings.iloc[:, 1::3].mean(axis=1)
        for sentence, valence, arousal in zip(sheet.iloc[:, 0], *means, strict=True):
            if isinstance(sentence, str) and pd.notna(valence) and pd.notna(arousal):
                rows.append((" ".join(html.unescape(sentence.replace("<br>", " ")).split()), valence, arousal))
    if not rows:
        raise ValueError(f"{path} holds no rated sentences; expected EmoTales' View#1_dimensions.xlsx.")
    return pd.DataFrame(rows, columns=["text", "valence", "arousal"])


_GITHUB = "https://raw.githubusercontent.com"
_EMOBANK, _FACEBOOK = "248ce2a43e165a66d31aeaed83cff9641d6654e0", "2f51266add949268cd321a2d0568fd9f39da810c"
_SPECS = (
    CorpusSpec("demo", (), read_table, (-1, 1), "Apache-2.0",
               "Written for this project; see carl_hf/data/resources/DATASHEET.md."),
    CorpusSpec("emobank", ("emobank/emobank.csv", "emobank.csv"), _read_emobank, (1, 5), "CC-BY-SA-4.0",
               "Buechel and Hahn 2017, github.com/JULIELab/EmoBank.",
               url=f"{_GITHUB}/JULIELab/EmoBank/{_EMOBANK}/corpus/emobank.csv", revision=_EMOBANK,
               sha256="e9a1fd18cd64b25223089022546c3f8af4cd2676524adce9a224570eb9a5d099",
               ratings=emobank_ratings),
    CorpusSpec("facebook", ("facebook_va/facebook_va.csv", "facebook_va/dataset-fb-valence-arousal-anon.csv",
                            "dataset-fb-valence-arousal-anon.csv"), _read_facebook, (1, 9), "GPL-3.0",
               "Preotiuc-Pietro et al. 2016, github.com/wwbp/additional_data_sets.", revision=_FACEBOOK,
               url=f"{_GITHUB}/wwbp/additional_data_sets/{_FACEBOOK}/"
               "valence_arousal/dataset-fb-valence-arousal-anon.csv",
               sha256="cdec45e6a54c38c237cac099f359f03e67d62b1565cb0d87572ba54668215bcf",
               ratings=facebook_ratings),
    CorpusSpec("iemocap", ("IEMOCAP_full_release", "iemocap"), _read_iemocap, (1, 5),
               "USC licence, research only, not to be passed on",
               "Busso et al. 2008: ask for it at sail.usc.edu/iemocap.", clips_to_scale=True),
    CorpusSpec("emotales", ("EmoTales/View #1/View#1_dimensions.xlsx", "emotales/View#1_dimensions.xlsx"),
               _read_emotales, (1, 9), "as stated by its authors, not to be passed on",
               "Francisco et al. 2012: ask its authors (NIL group, Universidad Complutense de Madrid)."),
)  # fmt: skip
CORPORA = {spec.name: spec for spec in _SPECS}
