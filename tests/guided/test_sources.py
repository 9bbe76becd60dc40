"""Folders, public layouts and parquet files, made small and for real in the layout that people have on disk."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from guided.config import Data, GuidePoints
from guided.data import BadRows, Dataset, load_dataset
from guided.guide import SHIPPED, load_guide, read_guide
from guided.sources import (
    BONE_MARROW_CLASSES,
    MEDMNIST_CLASSES,
    MUNICH_AML_CLASSES,
    PBC_CLASSES,
    PBC_FOLDERS,
    read_classes,
    read_table,
)


def speckled(seed: int, side: int = 18) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


def make_files(root: Path, names: Iterable[str]) -> Path:
    """An image of its own under each name; returns the root."""
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        speckled(number).save(path)
    return root


def load(source: Path, cache: Path, **options: Any) -> Dataset:
    return load_dataset(Data(source=str(source), size=16, **options), cache, workers=2, progress=False)


def labelled(data: Dataset) -> dict[str, str]:
    return {name: data.classes[label] for name, label in zip(data.ids.tolist(), data.labels, strict=True)}


# --- a folder per class


def test_a_folder_per_class_equals_its_manifest(tmp_path: Path) -> None:
    names = [
        f"{label}/{deep}{number}.png" for label in ("late", "früh er") for number in range(3) for deep in ("", "x/")
    ]
    root = make_files(tmp_path / "set", names)
    (root / "manifest.csv").write_text("path,label\n" + "".join(f"{n},{n.split('/')[0]}\n" for n in names), "utf-8")
    (root / "late" / "notes.txt").write_text("no image")
    make_files(root, [".cache/late/9.png", "late/.9.png"])  # hidden
    folder, manifest = load(root, tmp_path / "cache"), load(root / "manifest.csv", tmp_path / "cache")
    assert folder.fingerprint == manifest.fingerprint
    assert labelled(folder) == {name: name.split("/")[0] for name in names}
    assert folder.name == "set" and len(folder.labels) == 12


def test_a_folder_is_found_again_and_a_new_file_is_seen(tmp_path: Path) -> None:
    root = make_files(tmp_path / "set", ["a/1.png", "a/2.png", "b/1.png"])
    first = load(root, tmp_path / "cache")
    assert load(root, tmp_path / "cache").directory == first.directory
    make_files(root, ["b/2.png"])
    assert len(load(root, tmp_path / "cache").labels) == 4
    (root / "b" / "2.png").rename(root / "a" / "3.png")
    assert labelled(load(root, tmp_path / "cache"))["a/3.png"] == "a"


def test_splits_above_the_classes_are_joined_and_can_be_chosen(tmp_path: Path) -> None:
    root = make_files(tmp_path, ["train/a/1.png", "train/b/2.png", "test/a/3.png", "test/b/4.png"])
    assert load(root, tmp_path / "cache").classes == ("a", "b")
    assert labelled(load(root, tmp_path / "cache", where="split == 'train'")).keys() == {
        "train/a/1.png",
        "train/b/2.png",
    }
    # Classes may be called so, too.
    make_files(tmp_path / "plain", ["test/1.png", "train/2.png"])
    assert read_classes(tmp_path / "plain") == ["test", "train"]


def test_images_in_no_class_are_refused_by_name_or_skipped(tmp_path: Path) -> None:
    root = make_files(tmp_path / "set", ["a/1.png", "b/2.png", "stray.png"])
    with pytest.raises(BadRows, match=r"file 3: stray\.png: lies in no class"):
        load(root, tmp_path / "cache")
    assert len(load(root, tmp_path / "cache", skip_bad=True).labels) == 2


def test_a_damaged_file_is_told_with_its_number(tmp_path: Path) -> None:
    root = make_files(tmp_path / "set", ["a/1.png", "b/2.png"])
    (root / "b" / "2.png").write_bytes(b"\x89PNG truncated")
    with pytest.raises(BadRows, match=r"file 2: b/2\.png: cannot be decoded"):
        load(root, tmp_path / "cache")


def test_a_name_that_is_no_text_is_told(tmp_path: Path) -> None:
    root = make_files(tmp_path / "set", ["a/1.png", "b/2.png"])
    os.rename(root / "b" / "2.png", os.fsencode(root / "b") + b"/\xff.png")
    with pytest.raises(BadRows, match=r"has a name that is not UTF-8"):
        load(root, tmp_path / "cache")


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ([], r"has no image in a subfolder"),
        (["1.png", "2.png"], r"its 2 images lie in no class: make a subfolder for each"),
    ],
)
def test_folders_without_classes_are_refused(tmp_path: Path, files: list[str], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        read_table(make_files(tmp_path, files))


def test_what_is_not_there_is_told_with_what_could_be_given(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no file or folder .*absent; give a manifest \(\.csv\), a folder per class"):
        load(tmp_path / "absent", tmp_path / "cache")
    (tmp_path / "table.xlsx").write_text("")
    with pytest.raises(ValueError, match=r"table\.xlsx is neither a manifest"):
        load(tmp_path / "table.xlsx", tmp_path / "cache")
    make_files(tmp_path / "one", ["a/1.png", "a/2.png"])
    with pytest.raises(ValueError, match=r"has 1 class\(es\) \(a\); two are needed"):
        read_classes(tmp_path / "one")


# --- public layouts


def test_the_pbc_layout_gives_the_stages_that_the_names_tell(tmp_path: Path) -> None:
    folder_of = {"PMY": "ig", "MY": "ig", "MMY": "ig", "IG": "ig", "BNE": "neutrophil", "SNE": "neutrophil"}
    folder_of |= {"NEUTROPHIL": "neutrophil", "BA": "basophil", "EO": "eosinophil", "ERB": "erythroblast"}
    folder_of |= {"LY": "lymphocyte", "MO": "monocyte", "PLATELET": "platelet"}
    assert folder_of.keys() == PBC_CLASSES.keys() and set(folder_of.values()) == PBC_FOLDERS
    root = make_files(
        tmp_path / "PBC", [f"{folder}/{code}_{100 + n}.jpg" for code, folder in folder_of.items() for n in (1, 2)]
    )
    data = load(root, tmp_path / "cache")
    assert (
        labelled(data)["ig/MMY_101.jpg"] == "metamyelocyte"
        and labelled(data)["neutrophil/SNE_102.jpg"] == "segmented_neutrophil"
    )
    assert load_guide(GuidePoints(), data.classes).name == "pbc"
    coarse = load(root, tmp_path / "cache", where="coarse == 'ig'")
    assert set(coarse.classes) == {"promyelocyte", "myelocyte", "metamyelocyte", "immature_granulocyte_unspecified"}
    # A file that tells no stage makes it a plain folder per class.
    make_files(root, ["ig/unknown.jpg"])
    assert "ig" in read_classes(root)


def munich(root: Path, annotations: str | None) -> Path:
    make_files(root, [f"{code}/{code}_{n:04d}.tiff" for code in MUNICH_AML_CLASSES for n in (1, 2)])
    if annotations is not None:
        (root / "annotations.dat").write_text(annotations)
    return root


def annotated(**changed: str) -> str:
    return "".join(
        f"{code}/{code}_{n:04d}.tiff {changed.get(f'{code}_{n}', code)} {'NGB' if code == 'NGS' else 'nan'} nan\n"
        for code in MUNICH_AML_CLASSES
        for n in (1, 2)
    )


def test_the_munich_layout_with_its_annotations(tmp_path: Path) -> None:
    data = load(munich(tmp_path / "set", annotated()), tmp_path / "cache")
    assert set(data.classes) == set(MUNICH_AML_CLASSES.values())
    assert labelled(data)["PMB/PMB_0001.tiff"] == "bilobed_promyelocyte"
    assert load_guide(GuidePoints(), data.classes).name == "munich_aml"
    doubted = read_table(tmp_path / "set").rows
    assert {row.values["code"] for row in doubted if row.values["reannotation_1"]} == {"NGS"}


def test_the_munich_layout_without_annotations_and_with_wrong_ones(tmp_path: Path) -> None:
    bare = read_table(munich(tmp_path / "bare", None))
    assert bare.columns == ["path", "label", "code"] and len(bare.rows) == 30 and not bare.bad
    bad = read_table(munich(tmp_path / "bad", annotated(BAS_2="EOS"))).bad
    assert [(name, reason) for _, name, reason, _ in bad] == [
        ("BAS/BAS_0002.tiff", "lies in the folder BAS, but annotations.dat says EOS")
    ]
    short = annotated().replace("EBO/EBO_0001.tiff EBO nan nan\n", "")
    assert read_table(munich(tmp_path / "short", short)).bad[0][1:3] == (
        "EBO/EBO_0001.tiff",
        "stands in no line of annotations.dat",
    )
    with pytest.raises(ValueError, match=r"annotations\.dat, line 2 has 2 fields; 4 are needed"):
        read_table(munich(tmp_path / "broken", "BAS/BAS_0001.tiff BAS nan nan\nBAS/BAS_0002.tiff BAS\n"))


def test_the_bone_marrow_layout_with_subfolders(tmp_path: Path) -> None:
    names = [f"{code}/{code}_{n:05d}.jpg" for code in BONE_MARROW_CLASSES for n in (1, 2)]
    names += ["NGS/0001-1000/NGS_00003.jpg", "NGS/1001-2000/NGS_01001.jpg"]
    data = load(make_files(tmp_path / "BM_cytomorphology_data", names), tmp_path / "cache")
    assert set(data.classes) == set(BONE_MARROW_CLASSES.values())
    assert labelled(data)["NGS/1001-2000/NGS_01001.jpg"] == "segmented_neutrophil"
    assert load_guide(GuidePoints(), data.classes).name == "bone_marrow"


def test_guides_of_public_sets_have_exactly_their_classes() -> None:
    wanted = {
        "bloodmnist": MEDMNIST_CLASSES["bloodmnist"],
        "pbc": PBC_CLASSES.values(),
        "munich_aml": MUNICH_AML_CLASSES.values(),
        "bone_marrow": BONE_MARROW_CLASSES.values(),
    }
    for name, classes in wanted.items():
        assert set(read_guide(SHIPPED / f"{name}.yaml").classes) == set(classes), name


def test_bloodmnist_meets_its_guide(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    splits = {f"{s}_images": rng.integers(0, 256, (8, 28, 28, 3), dtype=np.uint8) for s in ("train", "val", "test")}
    labels = {f"{s}_labels": np.arange(8, dtype=np.uint8)[:, None] for s in ("train", "val", "test")}
    np.savez(tmp_path / "bloodmnist_64.npz", **splits, **labels)
    data = load(tmp_path / "bloodmnist_64.npz", tmp_path / "cache")
    assert load_guide(GuidePoints(), data.classes).name == "bloodmnist"
    assert read_classes(tmp_path / "bloodmnist_64.npz") == list(data.classes)


def test_new_guides_change_nothing_that_auto_has_chosen_before() -> None:
    assert load_guide(GuidePoints(), ["basophil", "eosinophil", "lymphocyte"]).name == "marrow"
    assert load_guide(GuidePoints(), ["erythroblast", "lymphocyte", "platelet"]).name == "pbc"


# --- parquet


def png(seed: int) -> bytes:
    file = io.BytesIO()
    speckled(seed).save(file, "PNG")
    return file.getvalue()


def write_parquet(path: Path, columns: dict[str, Any], metadata: dict[str, str] | None = None) -> Path:
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), path)
    return path


def test_a_parquet_file_of_bytes_equals_the_files(tmp_path: Path) -> None:
    root = make_files(tmp_path / "set", ["a/0.png", "b/1.png", "a/2.png"])
    contents = [(root / name).read_bytes() for name in ("a/0.png", "b/1.png", "a/2.png")]
    columns = {"image": contents, "label": ["a", "b", "a"], "path": ["a/0.png", "b/1.png", "a/2.png"], "n": [1, 2, 3]}
    path = write_parquet(tmp_path / "cells.parquet", columns)
    assert load(path, tmp_path / "cache").fingerprint == load(root, tmp_path / "cache").fingerprint
    assert len(load(path, tmp_path / "cache", where="n >= 2").labels) == 2


def test_a_parquet_file_as_hugging_face_writes_it(tmp_path: Path) -> None:
    images = [{"bytes": png(n), "path": f"{n}.png"} for n in range(3)]
    told = {"info": {"features": {"label": {"names": ["early", "late"]}}}}
    path = write_parquet(
        tmp_path / "hf.parquet", {"image": images, "label": [0, 1, 1]}, {"huggingface": json.dumps(told)}
    )
    assert labelled(load(path, tmp_path / "cache")) == {"0.png": "early", "1.png": "late", "2.png": "late"}


def test_rows_of_a_parquet_file_that_cannot_be_used_are_told(tmp_path: Path) -> None:
    images, labels = [png(0), b"no image", None, png(3), png(4)], ["a", "a", "b", None, "b"]
    path = write_parquet(tmp_path / "cells.parquet", {"image": images, "label": labels})
    with pytest.raises(BadRows) as refused:
        load(path, tmp_path / "cache")
    for told in (
        "row 2: row-000002: cannot be decoded",
        "row 3: row-000003: has no image",
        "row 4: row-000004: has no label",
    ):
        assert told in str(refused.value)
    assert len(load(path, tmp_path / "cache", skip_bad=True).labels) == 2


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"picture": ["a"], "label": ["b"]}, r"needs one column of encoded images .* it has picture \(string\)"),
        ({"image": [b""], "name": ["b"]}, r"needs one column of encoded images .* and a column label"),
        ({"image": pa.array([], pa.binary()), "label": pa.array([], pa.string())}, "has no rows"),
    ],
)
def test_other_parquet_files_are_refused(tmp_path: Path, columns: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        read_table(write_parquet(tmp_path / "cells.parquet", columns))


def test_a_parquet_file_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cells.parquet").write_bytes(b"PAR1 but nothing more")
    with pytest.raises(ValueError, match=r"cells\.parquet is not a parquet file"):
        read_table(tmp_path / "cells.parquet")


def test_bytes_are_never_given_to_a_decoder_that_runs_programs(tmp_path: Path) -> None:
    file = io.BytesIO()
    speckled(0).save(file, "EPS")
    path = write_parquet(tmp_path / "cells.parquet", {"image": [file.getvalue(), png(1)], "label": ["a", "b"]})
    with pytest.raises(BadRows, match="row 1: row-000001: cannot be decoded"):
        load(path, tmp_path / "cache")
