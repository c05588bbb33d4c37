"""Label spaces: the shipped files, and files of your own."""

import math

import pytest

from carl_hf.data.label_spaces import LABEL_SPACES, read_label_space
from carl_hf.data.labelled import EMOTION, read_emotion


@pytest.mark.parametrize("name", LABEL_SPACES)
def test_every_shipped_space_is_complete_and_in_range(name):
    space = read_label_space(name)
    assert len(space.va) == {"circle12": 12, "russell1980": 15, "ekman6": 6, "goemotions28": 33}[name]
    for entry, (valence, arousal) in space.va.items():
        assert -1 <= valence <= 1 and -1 <= arousal <= 1 and 0 <= space.angles[entry] < 360
        radius, turned = math.hypot(valence, arousal), math.radians(space.angles[entry])
        assert (radius * math.cos(turned), radius * math.sin(turned)) == pytest.approx((valence, arousal), abs=1e-9)


def test_spaces_hold_their_sources_numbers_and_refuse_other_names():
    assert read_label_space("circle12").angles_of(["Joy", "anger "]) == {"Joy": 30, "anger ": 120}
    assert read_label_space("russell1980").angles["sad"] == 207.5
    assert read_label_space("ekman6").va_of(["fear"]) == {"fear": (-0.64, 0.60)}  # Russell and Mehrabian 1977
    assert read_label_space("goemotions28").va["joy"] == (0.960, 0.648)  # 2 * (.980, .824) - 1
    with pytest.raises(ValueError, match="ekman6 has no entry for 'guilt', 'shame'; it has anger.*goemotions28"):
        read_label_space("ekman6").va_of(["joy", "guilt", "shame"])
    with pytest.raises(ValueError, match="russell1980 has no angle for 'joy'"):
        read_label_space("russell1980").angles_of(["joy"])


def test_a_file_of_your_own(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("# from our own study\nname,valence,arousal\nGlee,0.5,0.5\nvoid,0,0\n", encoding="utf-8")
    space = read_label_space(path)
    assert space.va == {"glee": (0.5, 0.5), "void": (0, 0)} and space.angles_of(["glee"])["glee"] == pytest.approx(45)
    with pytest.raises(ValueError, match="no angle for 'void'"):  # the centre has no direction
        space.angles_of(["void"])
    for content, message in {
        "name,valence,arousal\njoy,2,0\n": r"row 1: valence is 2, outside the scale \[-1, 1\]",
        "name,valence,arousal\njoy,high,0\n": "column 'valence' holds 'high', not a number",
        "name,angle\njoy,361\n": "angle is 361, outside", "name,angle\njoy,1\nJOY,2\n": "'joy' is there twice",
        "label,angle\njoy,1\n": "no column 'name'", "name,valence\njoy,1\n": "no column 'arousal'",
    }.items():  # fmt: skip
        path.write_text(content, encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            read_label_space(path)
    with pytest.raises(ValueError, match="Unknown label space 'nowhere.csv': choose circle12"):
        read_label_space("nowhere.csv")


def test_the_public_corpora_have_spaces_for_their_names(corpora_dir):
    spaces = {name: read_label_space(name) for name in LABEL_SPACES}
    for corpus in EMOTION:
        spaces["goemotions28"].va_of(read_emotion(corpus, corpora_dir).classes)
    assert set(read_emotion("emolit12", corpora_dir).classes) == set(spaces["circle12"].angles)
    assert set(read_emotion("goemotions-six", corpora_dir).classes) == set(spaces["ekman6"].va)
