import numpy as np
import pytest

from diffdeid.errors import DiffDeIDError
from diffdeid.evaluation import originals
from diffdeid.evaluation.memory import Memory
from diffdeid.structures import Face


def test_pictures_go_by_their_path_without_suffix_and_mark(tmp_path):
    for name in ("b/2.png", "a_anonymized.jpg", ".hidden.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert originals.list_pictures(tmp_path) == {"a": tmp_path / "a_anonymized.jpg", "b/2": tmp_path / "b/2.png"}


def test_two_pictures_of_one_name_are_an_error(tmp_path):
    for name in ("a.png", "a.jpg"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(DiffDeIDError, match="suffix"):
        originals.list_pictures(tmp_path)


def test_an_empty_folder_is_an_error(tmp_path):
    with pytest.raises(DiffDeIDError, match="no picture"):
        originals.list_pictures(tmp_path)


def test_people_by_name_folder_file_or_nobody(tmp_path):
    assert originals.identify(["Ann_Lee_1", "Ann_Lee_2", "x"], "names") == {
        "Ann_Lee_1": "Ann_Lee",
        "Ann_Lee_2": "Ann_Lee",
        "x": "x",
    }
    assert originals.identify(["ann/1", "bob/1"], "folders") == {"ann/1": "ann", "bob/1": "bob"}
    assert originals.identify(["a", "b"], None) == {"a": "a", "b": "b"}
    (tmp_path / "who.csv").write_text("picture,person\na.jpg,Ann\nb.jpg,Ann\n")
    assert originals.identify(["a", "b"], tmp_path / "who.csv") == {"a": "Ann", "b": "Ann"}
    with pytest.raises(DiffDeIDError, match="`c`"):
        originals.identify(["a", "c"], tmp_path / "who.csv")
    with pytest.raises(DiffDeIDError, match="folder of its person"):
        originals.identify(["ann/1", "2"], "folders")


def test_the_first_picture_of_a_person_is_known_and_the_others_are_recognised():
    people = {"ann_2": "ann", "ann_1": "ann", "ann_3": "ann", "bob_1": "bob"}
    assert originals.choose_gallery(people) == {"ann_1", "bob_1"}
    assert originals.choose_probes(people) == ["ann_2", "ann_3", "bob_1"]


def test_annotated_faces_that_the_detector_misses_count(tmp_path, people, panel):
    (tmp_path / "boxes.csv").write_text("picture,x0,y0,x1,y1\n0_a.png,80,60,190,215\n0_a.png,0,0,30,30\n")
    boxes = originals.read_boxes(tmp_path / "boxes.csv")
    (original,) = originals.read_originals(
        {"0_a": people / "0_a.png"}, {"0_a": "0"}, panel.examiner, Memory(None, ()), boxes
    ).values()
    assert len(original.faces) == 2  # the face that both know, and a corner
    assert np.array_equal(original.faces[1].box, [0, 0, 30, 30])


def test_memory_recalls_what_it_saw_in_the_same_bytes_by_the_same_recognisers(tmp_path):
    looks, file = [], tmp_path / "a.png"

    def look():
        looks.append(1)
        return [Face(np.float32([0, 1, 2, 3 + len(looks)]))], None

    def seen(recognisers=("x",)):
        ((face,), _) = Memory(tmp_path / "memory", recognisers).recall("a", look, file)
        return face.box[3]

    file.write_bytes(b"1")
    assert (seen(), seen(), seen(("x", "y")), seen()) == (4, 4, 5, 4)
    file.write_bytes(b"2")
    assert (seen(), seen()) == (6, 6)
    Memory(tmp_path / "memory", ("x",)).forget()
    assert not (tmp_path / "memory").exists()
