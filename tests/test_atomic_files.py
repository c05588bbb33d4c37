"""Files that exist complete, or not at all."""

import pytest

from carl_hf.utils.atomic_files import write_atomically


def test_a_file_replaces_what_was_there_only_when_it_is_whole(tmp_path):
    path = tmp_path / "results.json"
    write_atomically(path, lambda file: file.write(b"first"))

    def fails(file):
        file.write(b"half of the sec")
        file.flush()
        assert path.read_bytes() == b"first" and (tmp_path / "results.json.partial").is_file()
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, fails)
    assert path.read_bytes() == b"first" and [entry.name for entry in tmp_path.iterdir()] == ["results.json"]
    write_atomically(path, lambda file: file.write(b"second"), partial_name="_mine.partial")
    assert path.read_bytes() == b"second" and len(list(tmp_path.iterdir())) == 1
