"""Plots: the files that are written, and what is drawn in them, measured by the renderer."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from conftest import contrast

pytest.importorskip("matplotlib")

from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.colors import to_hex, to_rgba  # noqa: E402
from matplotlib.container import BarContainer  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.font_manager import fontManager  # noqa: E402
from matplotlib.path import Path as Line  # noqa: E402
from matplotlib.text import Text  # noqa: E402

from carl_hf.data.label_spaces import read_label_space  # noqa: E402
from carl_hf.report import plots  # noqa: E402
from carl_hf.report.nearest import plot_nearest  # noqa: E402

SIX = ["anger", "disgust", "fear", "joy", "sadness", "surprise"]
LONG = [
    "plain encoder, mean pooling",
    "runs/2025-01-01_minilm_mccl+ptd_radius-0.5_seed-1/checkpoint-1700/encoder",
    "$cost$_runs/2025-01-01_minilm_mccl+ptd_radius-0.5_seed-2/checkpoint-1700/encoder",
]


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Calls a plot function and checks what holds for every plot: a PNG of 150 dpi with an SVG beside it, nothing left
    open, no texts that cross or leave the page, names as they are given. Returns the figure and its texts' extents."""
    save, draw = Figure.savefig, Text.draw

    def call(plot, *args, names=()):
        written = []

        def savefig(figure, path, **settings):
            extents = {}

            def draw_and_measure(text, renderer):
                draw(text, renderer)
                if text.get_visible() and text.get_text().strip():
                    extents[text] = Text.get_window_extent(text, renderer).frozen()

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Text, "draw", draw_and_measure)
                save(figure, path, **settings)
            written.append((figure, extents))

        monkeypatch.setattr(Figure, "savefig", savefig)
        path = tmp_path / "deep" / "plot.png"
        plot(path, *args)
        figure, extents = written[0]
        height, width, _ = plt.imread(path).shape
        assert (width, height) == pytest.approx(150 * figure.get_size_inches(), abs=1)
        assert "</svg>" in path.with_suffix(".svg").read_text(encoding="utf-8")
        assert plt.get_fignums() == []
        for text, box in extents.items():
            if text.get_text().startswith("\n"):  # an empty line, then one line
                box.y1 = (box.y0 + box.y1) / 2
            assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1, text
            assert not text.get_parse_math()
        for (one, a), (other, b) in itertools.combinations(extents.items(), 2):
            assert a.x0 >= b.x1 or b.x0 >= a.x1 or a.y0 >= b.y1 or b.y0 >= a.y1, (one, other)
        assert set(plots.display_names(names).values()) <= {text.get_text() for text in extents}
        return figure, extents

    return call


def test_names_are_short_and_stay_different():
    shown = plots.display_names([*LONG, "short_$name$"])
    assert shown["short_$name$"] == "short_$name$"
    assert shown[LONG[1]] == "runs/2025-01-01_mi…us-0.5_seed-1/\ncheckpoint-1700/encoder"
    alike = plots.display_names([f"{'x' * 60}{seed}{'y' * 60}" for seed in (1, 2)])
    assert len(set(alike.values())) == 2
    for name in [*shown.values(), *alike.values()]:
        assert max(map(len, name.split("\n"))) <= 36


@pytest.mark.parametrize("titles", [["minilm-l6, mean\nr = 0.69 (valence), 0.73 (arousal)", "CARL, cls"], ["$a$_b"]])
def test_circumplex(drawn, titles):
    truth, *predicted = np.random.default_rng(0).uniform(-1, 1, size=(1 + len(titles), 30, 2))
    predicted[0][0] = 1.4, -0.2  # a linear probe may say so
    labels = [*SIX, "neutral", None] * 3 + ["joy"] * 6
    figure, _ = drawn(plots.plot_circumplex, dict(zip(titles, predicted, strict=True)), truth, labels)
    assert [axis.get_title() for axis in figure.axes] == ["labels", *titles]
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {*SIX, "neutral", "unlabelled"}
    for axis, points in zip(figure.axes, [truth, *predicted], strict=True):
        shown = np.vstack([np.asarray(dots.get_offsets()) for dots in axis.collections])
        assert sorted(map(tuple, shown)) == sorted(map(tuple, points.clip(-1.05, 1.05)))
    figure, _ = drawn(plots.plot_circumplex, {titles[0]: predicted[0]}, truth)
    assert not figure.legends and len(figure.axes[0].collections[0].get_offsets()) == 30


@pytest.mark.parametrize("labels", [SIX, list(read_label_space("circle12").angles)], ids=["six", "twelve"])
def test_emotion_pca(drawn, labels):
    decomposition = pytest.importorskip("sklearn.decomposition")
    rng = np.random.default_rng(0)
    centres, classes = 2 * rng.normal(size=(len(labels), 8)), rng.integers(len(labels), size=60)
    panels = {
        name: (centres[classes] + spread * rng.normal(size=(60, 8)), [labels[c] for c in classes])
        for spread, name in enumerate(LONG, 1)
    }
    figure, _ = drawn(plots.plot_emotion_pca, panels, names=LONG)
    (legend,) = figure.legends
    style = {
        text.get_text(): (to_hex(handle.get_color()), handle.get_marker())
        for text, handle in zip(legend.get_texts(), legend.legend_handles, strict=True)
    }
    assert set(style) == {*labels, "mean"}
    assert len(set(style.values())) == len(style), "two emotions look the same"
    assert all(style[label] == (plots.COLOURS[label], "o") for label in SIX)
    for axis, (embeddings, texts) in zip(figure.axes, panels.values(), strict=True):
        unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
        expected = np.abs(decomposition.PCA(2).fit_transform(unit))
        (left, right), (bottom, top) = axis.get_xlim(), axis.get_ylim()
        assert right - left == pytest.approx(top - bottom)
        dots = np.vstack([np.asarray(dots.get_offsets()) for dots in axis.collections])
        colours = np.vstack([np.broadcast_to(d.get_facecolor(), (len(d.get_offsets()), 4)) for d in axis.collections])
        assert ((dots > [left, bottom]) & (dots < [right, top])).all()
        for point, text in zip(expected, texts, strict=True):
            nearest = np.abs(np.abs(dots) - point).sum(1).argmin()
            assert np.abs(dots[nearest]) == pytest.approx(point, abs=1e-8)
            assert tuple(colours[nearest, :3]) == pytest.approx(to_rgba(style[text][0])[:3])


def test_emotion_pca_with_other_emotions_in_each_panel_and_two_rows(drawn):
    rng = np.random.default_rng(0)
    labels = [["joy", "joy", "fear", "fear"], ["x", "y", "y", "y"], SIX[:4], SIX[2:]]
    panels = {str(i): (rng.normal(size=(4, 3)), found) for i, found in enumerate(labels)}
    figure, _ = drawn(plots.plot_emotion_pca, panels, names=list(panels))
    assert [axis.get_title() for axis in figure.axes] == ["0", "1", "2", "3"], "an empty panel is left"


def crowd(number):
    """Models of which most lie in a small cluster, with long names."""
    rng = np.random.default_rng(number)
    points = rng.normal([0.3, -0.7], 0.01, size=(number, 2))
    points[0] = 0.6, -1.2
    names = [f"runs/{'x' * int(rng.integers(30))}_seed-{i}/checkpoint-1700" for i in range(number)]
    return {name: (*point, rng.uniform(50, 70)) for name, point in zip(names, points, strict=True)}


@pytest.mark.parametrize("points", [{"one": (0.3, -0.6, 61.0)}, crowd(3), crowd(8)], ids=["one", "three", "eight"])
def test_names_of_points_do_not_cross(drawn, points):
    figure, extents = drawn(plots.plot_points, points, "alignment", "uniformity", names=list(points))
    axis, bar = figure.axes
    (dots,) = axis.collections
    np.testing.assert_allclose(dots.get_offsets(), [point[:2] for point in points.values()])
    np.testing.assert_allclose(dots.get_array(), [point[2] for point in points.values()])
    assert (axis.get_xlabel(), axis.get_ylabel(), bar.get_ylabel()) == ("alignment", "uniformity", "accuracy (%)")
    marks, frame = axis.transData.transform(dots.get_offsets()), axis.get_window_extent()
    assert [text.get_text() for text in axis.texts] == list(plots.display_names(list(points)).values())
    boxes = [extents[text] for text in axis.texts]
    for k, (mark, box) in enumerate(zip(marks, boxes, strict=True)):
        assert frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
        assert not any(box.contains(*other) for other in marks), "a name lies on a mark"
        line = Line([mark, (box.min + box.max) / 2])
        if len(points) <= 3:
            assert not any(line.intersects_bbox(other, filled=False) for other in boxes[:k] + boxes[k + 1 :])


def test_dimension_curves(drawn):
    powers = [2, 4, 8, 16, 32, 64, 128, 256]
    curves = {}
    for name, kept, level in zip(LONG, ([*powers, 384], [*powers, 512, 768], [*powers, 512, 1024]), (0.6, 0.7, 0.5),
                                 strict=True):  # fmt: skip
        rising = [level * k / kept[-1] for k in kept]
        std = [0.02] * (len(kept) - 1) + [0.0]
        curves[name] = {"kept": kept, "pca": rising, "random": [r / 2 for r in rising], "random_std": std}
    figure, _ = drawn(plots.plot_dimension_curves, curves, "valence r on $x_1$", "valence r", names=LONG)
    (axis,) = figure.axes
    assert (axis.get_title(), axis.get_ylabel(), axis.get_xscale()) == ("valence r on $x_1$", "valence r", "log")
    ticks = [int(text.get_text()) for text in axis.get_xticklabels()]
    assert ticks == axis.get_xticks().tolist() and set(ticks) == {*powers, 384, 768, 1024}, "512 is too close to 384"
    lines = axis.get_lines()
    assert len(lines) == 6 == len(axis.collections) * 2
    for solid, dashed, band, found in zip(lines[::2], lines[1::2], axis.collections, curves.values(), strict=True):
        assert (solid.get_linestyle(), dashed.get_linestyle()) == ("-", "--")
        assert solid.get_color() == dashed.get_color()
        for line, key in ((solid, "pca"), (dashed, "random")):
            np.testing.assert_array_equal(line.get_xydata(), np.transpose([found["kept"], found[key]]))
        outline = band.get_paths()[0].vertices
        at_2 = outline[outline[:, 0] == 2][:, 1]
        assert (at_2.min(), at_2.max()) == pytest.approx((found["random"][0] - 0.02, found["random"][0] + 0.02))
    assert len({line.get_color() for line in lines}) == 3


@pytest.mark.parametrize("number", [1, 3, 9])
def test_bars(drawn, number):
    rng = np.random.default_rng(number)
    names = (LONG + [f"model_{i}" for i in range(9)])[:number]
    long_title = "arousal r of Facebook posts, transfer from EmoBank, all texts of the corpus"
    rows = {"valence r": {name: (v := rng.uniform(-0.2, 0.8), v - 0.03, v + 0.05) for name in names},
            long_title: {names[0]: (0.4, 0.35, 0.44)}, "MR": {names[0]: (0.0, 0.0, 0.0)}}  # fmt: skip
    rows["GoEmotions six"] = {name: (v := rng.uniform(40, 80), v - 3, v + 2) for name in names}
    figure, _ = drawn(plots.plot_bars, rows, ["GoEmotions six", "MR"], names=names)
    looks = set()
    for axis, label, titles in zip(
        figure.axes, ("correlation or share", "accuracy (%)"), (list(rows)[:2], list(rows)[2:]), strict=True
    ):
        assert axis.get_xlabel() == label
        assert [text.get_text().replace("\n", " ") for text in axis.get_yticklabels()] == titles
        bars = [bar for found in axis.containers if isinstance(found, BarContainer) for bar in found]
        expected = {(i, value[0]) for i, title in enumerate(titles) for value in rows[title].values()}
        assert {(round(bar.get_y() + bar.get_height() / 2), bar.get_width()) for bar in bars} == expected
        looks |= {(bar.get_facecolor(), bar.get_hatch()) for bar in bars}
        spans = sorted(tuple(segment[:, 0]) for lines in axis.collections for segment in lines.get_segments())
        np.testing.assert_allclose(spans, sorted(v[1:] for title in titles for v in rows[title].values()))
        digits = 3 if label == "correlation or share" else 1
        assert {text.get_text() for text in axis.texts} == {f"{value:.{digits}f}" for _, value in expected}
    assert len(looks) == number, "two models look the same"


@pytest.mark.parametrize("number, names", [(6, LONG), (12, LONG[1:2]), (28, LONG[2:])])
def test_confusion(drawn, number, names):
    rng = np.random.default_rng(number)
    classes = [f"emotion_{i}" for i in range(number - 1)] + ["disappointment"]
    share = np.linspace(0.5, 0.95, number)
    diagonal = (3 * number * share / (1 - share)).astype(int)  # all shades from middle to dark
    panels = {name: (rng.poisson(3, (number, number)) + np.diag(diagonal), classes) for name in names}
    panels[names[0]][0][2] = 0  # a class without a text
    figure, _ = drawn(plots.plot_confusion, panels, names=names)
    for axis, (counts, _) in zip(figure.axes, panels.values(), strict=False):  # the last axes hold the colour bar
        assert (axis.get_xlabel(), axis.get_ylabel()) == ("predicted", "true")
        assert [text.get_text() for text in axis.get_xticklabels()] == classes
        assert [text.get_text() for text in axis.get_yticklabels()] == classes
        (image,) = axis.images
        shade = np.array([[c / sum(row) if sum(row) else 0 for c in row] for row in counts.tolist()])
        np.testing.assert_allclose(image.get_array(), shade)
        cells = {tuple(map(int, text.get_position()[::-1])): text for text in axis.texts}
        shown = {place: int(text.get_text()) for place, text in cells.items()}
        assert shown == (dict(np.ndenumerate(counts)) if number <= 15 else {})
        for place, text in cells.items():
            assert contrast(image.cmap(shade[place]), to_rgba(text.get_color())) > 4.5


def test_installed_fonts_of_other_scripts_stand_in_where_the_own_one_has_no_sign(drawn, monkeypatch):
    assert "Malgun Gothic" not in figure_fonts(drawn)
    own = next(font for font in fontManager.ttflist if font.name == "DejaVu Sans")
    monkeypatch.setattr(fontManager, "ttflist", [*fontManager.ttflist, replace(own, name="Malgun Gothic")])
    assert figure_fonts(drawn)[0] == "sans-serif" and "Malgun Gothic" in figure_fonts(drawn)
    monkeypatch.setitem(plt.rcParams, "font.family", ["DejaVu Serif"])
    assert figure_fonts(drawn)[:1] == ["DejaVu Serif"]


def figure_fonts(drawn):
    counts = np.eye(2, dtype=int)
    figure, _ = drawn(plots.plot_confusion, {"model": (counts, ["joy", "fear"])})
    return figure.axes[0].get_xticklabels()[0].get_fontfamily()


def test_equal_results_make_equal_files(tmp_path):
    for name in ("a", "b"):
        plots.plot_points(tmp_path / f"{name}.png", crowd(3), "x", "y")
    for suffix in (".png", ".svg"):
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


def test_nearest_texts(drawn):
    texts = [
        {"text": text, "cosine": cosine, "feeling": feeling}
        for text, cosine, feeling in (("A $short$ one.", 0.93, "pleasant"), ("word " * 60, 0.41, "unpleasant"),
                                      ("Below zero.", -0.2, "neutral"))
    ]  # fmt: skip
    figure, extents = drawn(plot_nearest, "How it feels.", {"before": texts, "after": texts[:2]})
    shown = [text.get_text() for text in extents]
    assert "Nearest to: “How it feels.”" in shown and shown.count("A $short$ one.") == 2
    assert sum(text.startswith("word word") and text.endswith(" …") and text.count("\n") == 1 for text in shown) == 2
    assert [bar.get_width() for bar in figure.axes[0].patches] == [0.93, 0.41, 0]
    colours = [to_hex(bar.get_facecolor()) for bar in figure.axes[0].patches]
    assert len(set(colours)) == 3 and colours[:2] == [to_hex(bar.get_facecolor()) for bar in figure.axes[1].patches]
    assert " -0.20  neutral" in shown and contrast(to_rgba(colours[1]), (1, 1, 1)) > 3
