"""Texts in the encodings of the world: read where they say what they are, else refused with the file and a way out."""

import pytest

from hf_gateau.building.config import DocumentConfig
from hf_gateau.building.documents import load_documents
from hf_gateau.evaluation.needle import read_haystack
from hf_gateau.evaluation.rows import read_rows
from hf_gateau.experiments.grid import load_grid
from hf_gateau.files.texts import read_user_text


TEXT = "Ein Sätzchen.\r\n他走了。\nfin.\r"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_marked_texts_are_read(encoding, tmp_path):
    (tmp_path / "a.txt").write_bytes(TEXT.encode(encoding))
    assert read_user_text(tmp_path / "a.txt") == "Ein Sätzchen.\n他走了。\nfin.\n"
    assert read_user_text(tmp_path / "a.txt", newline="") == TEXT
    assert "Sätzchen" in read_haystack(str(tmp_path)) and "\ufeff" not in read_haystack(str(tmp_path))
    assert load_documents(str(tmp_path), DocumentConfig())[0].text == "Ein Sätzchen.\n他走了。\nfin.\n"


def test_big_endian_with_its_mark(tmp_path):
    (tmp_path / "a.md").write_bytes(b"\xfe\xff" + TEXT.encode("utf-16-be"))
    assert "他走了。" in read_haystack(str(tmp_path / "a.md"))


@pytest.mark.parametrize("encoding", ["latin-1", "gbk", "utf-16-le"])
def test_other_texts_are_refused_with_the_way_to_convert_them(encoding, tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(("Grüße. " if encoding == "latin-1" else "A line.\n他走了。").encode(encoding))
    for read in (read_user_text, read_haystack, read_rows, load_grid):
        with pytest.raises(ValueError, match=r"a\.txt is no text in UTF-8 \(.*iconv -f (ENCODING|UTF-16LE) -t UTF-8"):
            read(str(path))


def test_converted_as_the_message_says(tmp_path):
    import subprocess

    (tmp_path / "a.txt").write_bytes("他走了。".encode("gbk"))
    done = subprocess.run(["iconv", "-f", "GBK", "-t", "UTF-8", tmp_path / "a.txt"], capture_output=True, check=True)
    (tmp_path / "new.txt").write_bytes(done.stdout)
    assert read_haystack(str(tmp_path / "new.txt")) == "他走了。"
