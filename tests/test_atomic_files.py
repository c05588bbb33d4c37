"""Files that exist complete, or not at all."""

from unittest.mock import Mock

import pytest

from carl_hf.utils.atomic_files import write_atomically, write_errors


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
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, Mock(side_effect=KeyboardInterrupt))
    assert path.read_bytes() == b"first" and len(list(tmp_path.iterdir())) == 1
    write_atomically(path, lambda file: file.write(b"second"), partial_name="_mine.partial")
    assert path.read_bytes() == b"second" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("error", [Exception("No space left (os error 28)"), RuntimeError("unexpected pos 64")])
def test_what_libraries_raise_on_a_full_disk_becomes_an_error_of_the_system(error):
    with pytest.raises(OSError, match=r"^runs/va could not be written \(.*\)\. Free space\.$"):
        with write_errors("runs/va", "Free space."):
            raise error
    for other in (RuntimeError("CUDA error"), FileNotFoundError("a.png")):
        with pytest.raises(type(other), match=f"^{other}$"), write_errors("runs/va", "Free space."):
            raise other
