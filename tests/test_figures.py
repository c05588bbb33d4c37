"""Figures: the files that are written, and what their artists show, measured by the renderer."""

import itertools
import re

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.colors import to_hex, to_rgba  # noqa: E402
from matplotlib.container import BarContainer  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.text import Text  # noqa: E402

from carl_hf.data.label_spaces import read_label_space  # noqa: E402
from carl_hf.report import plots as figures  # noqa: E402
from carl_hf.report.circumplex_plot import COLOURS, circle_svg, plot_circumplex  # noqa: E402

SIX = ["anger", "disgust", "fear", "joy", "sadness", "surprise"]
LONG = [
    "plain encoder, mean pooling",
    "runs/2025-01-01_minilm_mccl+ptd_radius-0.5_seed-1/checkpoint-1700/encoder",
    "$cost$_runs/2025-01-01_minilm_mccl+ptd_radius-0.5_seed-2/checkpoint-1700/encoder",
]


@pytest.fixture
def saved(monkeypatch):
    """The figures that were written: (figure, {text: its extent in pixels, as the PNG was drawn})."""
    written, save, draw = [], Figure.savefig, Text.draw

    def savefig(figure, path, **named):
        extents = {}

        def draw_and_measure(text, renderer):
            draw(text, renderer)
            if text.get_visible() and text.get_text().strip():
                extents[text] = Text.get_window_extent(text, renderer).frozen()

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Text, "draw", draw_and_measure)
            save(figure, path, **named)
        if path.suffix == ".png":
            written.append((figure, extents))

    monkeypatch.setattr(Figure, "savefig", savefig)
    return written


def check_files(path, figure):
    """PNG at 150 dpi and SVG beside it; the figure is not left open."""
    height, width, _ = plt.imread(path.with_suffix(".png")).shape
    assert (width, height) == pytest.approx(150 * figure.get_size_inches(), abs=1)
    assert "</svg>" in path.with_suffix(".svg").read_text(encoding="utf-8")
    assert plt.get_fignums() == []


def crossings(boxes):
    return [
        (a, b)
        for a, b in itertools.combinations(boxes, 2)
        if a.x0 < b.x1 and b.x0 < a.x1 and a.y0 < b.y1 and b.y0 < a.y1
    ]


def check_texts(figure, extents, names):
    """Nothing that is written crosses or leaves the page, and all names are there."""
    for text, box in extents.items():
        if text.get_text().startswith("\n"):  # an empty line, then one line
            box.y1 = (box.y0 + box.y1) / 2
    assert crossings(list(extents.values())) == []
    for text, box in extents.items():
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1, text
        assert not text.get_parse_math()
    assert set(figures.display_names(names).values()) <= {text.get_text() for text in extents}


def test_names_are_short_and_stay_different():
    assert figures.shorten("abcdefghij", 10) == "abcdefghij"
    assert figures.shorten("abcdefghijklm", 10) == "abc…hijklm"
    shown = figures.display_names([*LONG, "short_$name$"])
    assert shown["short_$name$"] == "short_$name$"
    assert shown[LONG[1]] == "runs/2025-01-01_mi…us-0.5_seed-1/\ncheckpoint-1700/encoder"
    alike = [f"{'x' * 60}{seed}{'y' * 60}" for seed in (1, 2)]
    assert len(set(figures.display_names(alike).values())) == 2
    for name in [*shown.values(), *figures.display_names(alike).values()]:
        assert max(map(len, name.split("\n"))) <= 36


@pytest.mark.parametrize("titles", [["minilm-l6, mean\nr = 0.69 (valence), 0.73 (arousal)", "CARL, cls"], ["$a$_b"]])
def test_circumplex(tmp_path, saved, titles):
    rng = np.random.default_rng(0)
    truth, *predicted = rng.uniform(-1, 1, size=(1 + len(titles), 30, 2))
    names = [*SIX, "neutral", None] * 3 + ["joy"] * 6
    plot_circumplex(tmp_path / "deep" / "circle.png", dict(zip(titles, predicted, strict=True)), truth, names)
    figure, extents = saved[-1]
    assert [axis.get_title() for axis in figure.axes] == ["labels", *titles] and plt.get_fignums() == []
    width, height = 150 * figure.get_size_inches()
    for text, box in extents.items():
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height, text
    if len(titles) == 2:  # the one that every demo run draws
        assert crossings(list(extents.values())) == []
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {*SIX, "neutral", "unlabelled"}
    for axis, points in zip(figure.axes, [truth, *predicted], strict=True):
        drawn = np.vstack([np.asarray(dots.get_offsets()) for dots in axis.collections])
        assert sorted(map(tuple, drawn)) == sorted(map(tuple, points))


def emotion_panels(labels, names):
    rng = np.random.default_rng(0)
    centres = 2 * rng.normal(size=(len(labels), 8))
    classes = rng.integers(len(labels), size=60)
    texts = [labels[c] for c in classes]
    return {
        name: (centres[classes] + spread * rng.normal(size=(60, 8)), texts) for spread, name in enumerate(names, 1)
    }


@pytest.mark.parametrize("labels", [SIX, list(read_label_space("circle12").angles)], ids=["six", "twelve"])
def test_emotion_pca(tmp_path, saved, labels):
    decomposition = pytest.importorskip("sklearn.decomposition")
    panels = emotion_panels(labels, LONG)
    figures.plot_emotion_pca(tmp_path / "deep" / "pca.png", panels)
    figure, extents = saved[-1]
    check_files(tmp_path / "deep" / "pca.png", figure)
    check_texts(figure, extents, LONG)
    (legend,) = figure.legends
    assert {text.get_text() for text in legend.get_texts()} == {*labels, "mean"}
    style = {
        text.get_text(): (to_hex(handle.get_color()), handle.get_marker())
        for text, handle in zip(legend.get_texts(), legend.legend_handles, strict=True)
    }
    assert len(set(style.values())) == len(labels) + 1, "two emotions look the same"
    assert all(style[label] == (COLOURS[label], "o") for label in SIX)
    for axis, (embeddings, texts) in zip(figure.axes, panels.values(), strict=True):
        unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
        expected = np.abs(decomposition.PCA(2).fit_transform(unit))
        (left, right), (bottom, top) = axis.get_xlim(), axis.get_ylim()
        assert right - left == pytest.approx(top - bottom)
        drawn = np.vstack([np.asarray(dots.get_offsets()) for dots in axis.collections])
        colours = np.vstack([np.broadcast_to(d.get_facecolor(), (len(d.get_offsets()), 4)) for d in axis.collections])
        assert ((drawn > [left, bottom]) & (drawn < [right, top])).all()
        for point, text in zip(expected, texts, strict=True):
            nearest = np.abs(np.abs(drawn) - point).sum(1).argmin()
            assert np.abs(drawn[nearest]) == pytest.approx(point, abs=1e-8)
            assert tuple(colours[nearest, :3]) == pytest.approx(to_rgba(style[text][0])[:3])


def test_emotion_pca_with_other_emotions_in_each_panel_and_two_rows(tmp_path, saved):
    rng = np.random.default_rng(0)
    panels = {
        str(i): (rng.normal(size=(4, 3)), labels)
        for i, labels in enumerate([["joy", "joy", "fear", "fear"], ["x", "y", "y", "y"], SIX[:4], SIX[2:]])
    }
    figures.plot_emotion_pca(tmp_path / "pca.png", panels)
    figure, extents = saved[-1]
    assert [axis.get_title() for axis in figure.axes] == ["0", "1", "2", "3"], "an empty panel is left"
    check_texts(figure, extents, list(panels))


def crowd(number):
    """Models of which most lie in a small cluster, with long names."""
    rng = np.random.default_rng(number)
    points = rng.normal([0.3, -0.7], 0.01, size=(number, 2))
    points[0] = 0.6, -1.2
    names = [f"runs/{'x' * int(rng.integers(30))}_seed-{i}/checkpoint-1700" for i in range(number)]
    return {name: (*point, rng.uniform(50, 70)) for name, point in zip(names, points, strict=True)}


@pytest.mark.parametrize("points", [{"one": (0.3, -0.6, 61.0)}, crowd(3), crowd(8)], ids=["one", "three", "eight"])
def test_labels_of_alignment_and_uniformity_do_not_cross(tmp_path, saved, points):
    figures.plot_alignment_uniformity(tmp_path / "alignment.png", points)
    figure, extents = saved[-1]
    check_files(tmp_path / "alignment.png", figure)
    axis, bar = figure.axes
    (dots,) = axis.collections
    np.testing.assert_allclose(dots.get_offsets(), [point[:2] for point in points.values()])
    np.testing.assert_allclose(dots.get_array(), [point[2] for point in points.values()])
    assert bar.get_ylabel() == "accuracy (%)"
    assert [text.get_text() for text in axis.texts] == list(figures.display_names(list(points)).values())
    boxes = [extents[text] for text in axis.texts]
    assert crossings(boxes) == []
    marks = axis.transData.transform(dots.get_offsets())
    frame = axis.get_window_extent(figure.canvas.get_renderer())
    for box in boxes:
        assert frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
        assert not any(box.contains(*mark) for mark in marks), "a label lies on a mark"
    for k, (mark, box) in enumerate(zip(marks, boxes, strict=True)) if len(points) <= 3 else ():
        middle = np.array([(box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2])
        line = mark + np.linspace(0, 1, 200)[:, None] * (middle - mark)
        assert not any(other.contains(*dot) for other in boxes[:k] + boxes[k + 1 :] for dot in line), "a crossed label"
    check_texts(figure, extents, list(points))


def test_circularity_is_drawn_with_its_own_axes(tmp_path, saved):
    figures.plot_circularity(tmp_path / "circle.png", {"a": (0.9, 60.0, 80.0), "b": (0.2, 30.0, 85.0)})
    figure, _ = saved[-1]
    check_files(tmp_path / "circle.png", figure)
    axis, bar = figure.axes
    assert axis.get_xlabel().startswith("circular correlation") and "2 kept dimensions" in axis.get_ylabel()
    np.testing.assert_allclose(axis.collections[0].get_offsets(), [(0.9, 60), (0.2, 30)])


def curve(kept, level):
    rising = [level * k / kept[-1] for k in kept]
    return {
        "kept": kept,
        "pca": rising,
        "random": [r / 2 for r in rising],
        "random_std": [0.02] * (len(kept) - 1) + [0.0],
    }


def test_dimension_curves(tmp_path, saved):
    powers = [2, 4, 8, 16, 32, 64, 128, 256]
    curves = dict(zip(LONG, [curve([*powers, 384], 0.6), curve([*powers, 512, 768], 0.7),
                             curve([*powers, 512, 1024], 0.5)], strict=True))  # fmt: skip
    figures.plot_dimension_curves(tmp_path / "dims.png", curves, "valence r on $x_1$", "valence r")
    figure, extents = saved[-1]
    check_files(tmp_path / "dims.png", figure)
    (axis,) = figure.axes
    assert axis.get_title() == "valence r on $x_1$" and axis.get_ylabel() == "valence r"
    assert axis.get_xscale() == "log"
    ticks = {
        int(text.get_text()): position
        for text, position in zip(axis.get_xticklabels(), axis.get_xticks(), strict=True)
    }
    assert all(number == position for number, position in ticks.items())
    assert set(ticks) == {*powers, 384, 768, 1024}, "512 stands too close to 384"
    lines = axis.get_lines()
    assert len(lines) == 6 == len(axis.collections) * 2
    for (solid, dashed), band, found in zip(
        zip(lines[::2], lines[1::2], strict=True), axis.collections, curves.values(), strict=True
    ):
        assert (solid.get_linestyle(), dashed.get_linestyle()) == ("-", "--")
        assert solid.get_color() == dashed.get_color()
        assert solid.get_xydata().tolist() == [list(p) for p in zip(found["kept"], found["pca"], strict=True)]
        assert dashed.get_xydata().tolist() == [list(p) for p in zip(found["kept"], found["random"], strict=True)]
        outline = band.get_paths()[0].vertices
        assert outline[outline[:, 0] == 2][:, 1].max() == pytest.approx(found["random"][0] + 0.02)
        assert outline[outline[:, 0] == 2][:, 1].min() == pytest.approx(found["random"][0] - 0.02)
    assert len({line.get_color() for line in lines}) == 3
    check_texts(figure, extents, LONG)


@pytest.mark.parametrize("number", [1, 3, 9])
def test_bars(tmp_path, saved, number):
    rng = np.random.default_rng(number)
    names = (LONG + [f"model_{i}" for i in range(9)])[:number]
    rows = {
        "valence r": {name: (v := rng.uniform(-0.2, 0.8), v - 0.03, v + 0.05) for name in names},
        "arousal r of Facebook posts, transfer from EmoBank, all texts of the corpus": {names[0]: (0.4, 0.35, 0.44)},
        "MR": {name: (v := rng.uniform(40, 80), v - 3, v + 2) for name in names},
        "GoEmotions six": {name: (v := rng.uniform(40, 80), v - 3, v + 2) for name in names},
    }
    figures.plot_bars(tmp_path / "bars.png", rows)
    figure, extents = saved[-1]
    check_files(tmp_path / "bars.png", figure)
    fractions, percentages = figure.axes
    assert (fractions.get_xlabel(), percentages.get_xlabel()) == ("correlation", "accuracy (%)")
    panels = list(rows)[:2], list(rows)[2:]
    looks = set()
    for axis, titles in zip(figure.axes, panels, strict=True):
        assert [text.get_text().replace("\n", " ") for text in axis.get_yticklabels()] == titles
        bars = {
            (round(bar.get_y() + bar.get_height() / 2), bar.get_width()): bar
            for container in axis.containers if isinstance(container, BarContainer) for bar in container
        }  # fmt: skip
        expected = {(i, value[0]) for i, title in enumerate(titles) for value in rows[title].values()}
        assert set(bars) == expected
        looks |= {(bar.get_facecolor(), bar.get_hatch()) for bar in bars.values()}
        spans = sorted(tuple(segment[:, 0]) for lines in axis.collections for segment in lines.get_segments())
        intervals = sorted(value[1:] for title in titles for value in rows[title].values())
        np.testing.assert_allclose(spans, intervals)
        numbers = [extents[text] for text in axis.texts]
        assert len(numbers) == len(intervals)
        ends = [axis.transData.transform((span[1], 0))[0] for span in sorted(spans, key=lambda span: span[1])]
        assert all(box.x0 > end for box, end in zip(sorted(numbers, key=lambda box: box.x0), ends, strict=True))
    assert len(looks) == number, "two models look the same"
    check_texts(figure, extents, names)


@pytest.mark.parametrize("number", [6, 12, 28])
def test_confusion(tmp_path, saved, number):
    rng = np.random.default_rng(number)
    classes = [f"emotion_{i}" for i in range(number - 1)] + ["disappointment"]
    names = {6: LONG, 12: LONG[1:], 28: LONG[2:]}[number]
    share = np.linspace(0.5, 0.95, number)
    diagonal = (3 * number * share / (1 - share)).astype(int)  # all shades from middle to dark
    panels = {name: (rng.poisson(3, (number, number)) + np.diag(diagonal), classes) for name in names}
    panels[names[0]][0][2] = 0  # a class without a text
    figures.plot_confusion(tmp_path / "confusion.png", panels)
    figure, extents = saved[-1]
    check_files(tmp_path / "confusion.png", figure)
    for axis, (counts, _) in zip(figure.axes, panels.values(), strict=False):  # the last axes hold the colour bar
        assert (axis.get_xlabel(), axis.get_ylabel()) == ("predicted", "true")
        assert [text.get_text() for text in axis.get_xticklabels()] == classes
        assert [text.get_text() for text in axis.get_yticklabels()] == classes
        (image,) = axis.images
        shade = np.array([[c / sum(row) if sum(row) else 0 for c in row] for row in counts.tolist()])
        np.testing.assert_allclose(image.get_array(), shade)
        cells = {tuple(map(int, text.get_position()[::-1])): text for text in axis.texts}
        if number > 15:
            assert cells == {}
            continue
        assert {place: int(text.get_text()) for place, text in cells.items()} == dict(np.ndenumerate(counts))
        for (i, j), text in cells.items():
            ground, ink = luminance(image.cmap(shade[i, j])), luminance(to_rgba(text.get_color()))
            assert (max(ground, ink) + 0.05) / (min(ground, ink) + 0.05) > 4.5, "too little contrast"
    check_texts(figure, extents, names)


def luminance(colour):
    """Relative luminance as WCAG 2 defines it."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_equal_results_make_equal_files(tmp_path):
    for name in ("a", "b"):
        figures.plot_alignment_uniformity(tmp_path / f"{name}.png", crowd(2))
    for suffix in (".png", ".svg"):
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


def test_the_circle_of_a_page_has_every_text_where_its_numbers_say():
    places = [(0.5, 0.5), (-1.0, 0.0), (0.0, -0.25)]
    drawn = circle_svg(np.array(places), {"joy": (0.87, 0.5), "a < b": (-0.9, 0.1)})
    assert drawn.startswith("<svg") and ">joy</text>" in drawn and ">a &lt; b</text>" in drawn

    def at(number):
        group = drawn[drawn.index(f'id="text-{number}"') :]
        x, y = re.search(r'<use [^>]*?x="([\d.]+)" y="([\d.]+)"', group).groups()
        return float(x), float(y)

    (x1, y1), (x2, y2), (x3, y3) = (at(number) for number in (1, 2, 3))
    scale = (x1 - x2) / 1.5  # pixels of 1
    assert (y2 - y1, x3 - x2, y3 - y2) == pytest.approx((0.5 * scale, scale, 0.25 * scale), abs=0.01)
    assert ">3</text>" in drawn and 'id="text-4"' not in drawn
    assert 'id="text-1"' not in circle_svg(np.empty((0, 2)), {})
