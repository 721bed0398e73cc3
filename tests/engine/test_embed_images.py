"""embed on a cluster with pictures in a store: each is read once, and what is no picture is told and does no harm."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from test_embed import failure, opened, quietly, shards
from tiny_vision import vision_transformer

from llmrec import config, storage
from llmrec.engine import stages
from llmrec.engine.prompts import load_features
from llmrec.errors import UserError
from llmrec.layout import Layout
from llmrec.ranker.images import ImageEncoder
from llmrec.tables import buckets
from llmrec.tables.embeddings import IMAGE, IMAGE_PROBLEM, TEXT

N, SHARD = 10, 4


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (24, 24, 3), dtype=np.uint8))


def put_picture(uri: str, seed: int) -> None:
    data = io.BytesIO()
    picture(seed).save(data, "PNG")
    storage.write_bytes(uri, data.getvalue())


def put_items(root: str, names: list[str | None]) -> None:
    n = len(names)
    table = pa.table({
        "item_id": list(range(n)), "title": [f"w{i}" for i in range(n)], "photo": pa.array(names, pa.string()),
    })  # fmt: skip
    buckets.write_parquet(table, Layout(root).items)
    storage.write_json(Layout(root).summary("prepare"), {})


def settings(root: str, vision: Path, encoder: Path | str = "", **items: object) -> config.Config:
    return config.build({
        "root": root, "items": {
            "encoder": str(encoder), "max_tokens": 8, "shard": SHARD, "batch_size": 3, "actors": 1,
            "images": "photo", "image_root": f"{root}/photos", "image_encoder": str(vision), **items,
        },
    })  # fmt: skip


@pytest.mark.usefixtures("cluster")
def test_pictures_are_encoded_once_and_bad_ones_set_aside(tiny_encoder: Path, tmp_path: Path) -> None:
    root = "s3://llmrec-test/embed-images"
    vision = vision_transformer(tmp_path / "vit")
    names: list[str | None] = [f"{i}.png" for i in range(N)]
    names[2], names[7] = None, " "
    for i in range(N):
        put_picture(f"{root}/photos/{i}.png", i)
    storage.write_bytes(f"{root}/photos/3.png", b"<html>sorry</html>")
    storage.delete(f"{root}/photos/5.png")
    put_items(root, names)

    told = failure("embed", settings(root, vision, tiny_encoder))
    assert "2 of 8 pictures cannot be read, more than items.max_bad_images = 0.1 allows" in told
    assert f"{root}/photos/3.png: no picture of a known format" in told
    assert not storage.exists(Layout(root).embeddings + "/_embeddings.json")

    wanted = settings(root, vision, tiny_encoder, max_bad_images=0.5)
    done = stages.run("embed", wanted, quietly)
    assert (done["images_unreadable"], done["with_part"]) == (2, {TEXT: N, IMAGE: 6})
    assert done["shards_written"] == 0, "what the refused job wrote is still right"
    found = opened(root, tmp_path)
    encoder = ImageEncoder(str(vision))
    for i in range(N):
        assert found.present[IMAGE][i] == (i not in (2, 3, 5, 7))
        if found.present[IMAGE][i]:
            np.testing.assert_allclose(found.parts[IMAGE][i], encoder.encode([picture(i)])[0], atol=1e-5)
    problems = pa.concat_tables(
        [pa.ipc.open_file(data).read_all().select(["item_id", IMAGE_PROBLEM]) for data in shards(root).values()]
    ).to_pylist()
    assert {row["item_id"]: row[IMAGE_PROBLEM] for row in problems if row[IMAGE_PROBLEM]} == {
        3: "no picture of a known format", 5: "no such file",
    }  # fmt: skip

    # One item has another picture, one's file has come; a picture under its old name is not read again.
    put_picture(f"{root}/photos/5.png", 5)
    put_picture(f"{root}/photos/6.png", 99)
    put_picture(f"{root}/photos/new.png", 77)
    names[4] = "new.png"
    put_items(root, names)
    done = stages.run("embed", wanted, quietly)
    assert (done["images_encoded"], done["images_unchanged"], done["images_unreadable"]) == (2, 5, 1)
    assert (done["encoded"], done["shards_written"]) == (0, 1)
    again = opened(root, tmp_path)
    np.testing.assert_allclose(again.parts[IMAGE][4], encoder.encode([picture(77)])[0], atol=1e-5)
    np.testing.assert_allclose(again.parts[IMAGE][5], encoder.encode([picture(5)])[0], atol=1e-5)
    np.testing.assert_array_equal(again.parts[IMAGE][6], found.parts[IMAGE][6])
    assert again.version != found.version

    # What a ranker reads of it, and another encoder's are other vectors.
    features = load_features(wanted.items, again.ids, Layout(root))
    assert set(features.vectors) == {TEXT, IMAGE}
    assert set(load_features(wanted.items.model_copy(update={"images": ""}), again.ids, Layout(root)).vectors) == {TEXT}
    other = settings(root, vision_transformer(tmp_path / "other", seed=1), tiny_encoder, max_bad_images=0.5)
    done = stages.run("embed", other, quietly)
    assert (done["images_encoded"], done["encoded"]) == (7, 0)
    assert not np.allclose(opened(root, tmp_path).parts[IMAGE], again.parts[IMAGE])


@pytest.mark.usefixtures("cluster")
def test_what_is_wrong_is_one_line(tiny_encoder: Path, tmp_path: Path) -> None:
    root, vision = str(tmp_path / "root"), vision_transformer(tmp_path / "vit")
    put_items(root, [f"{i}.png" for i in range(N)])
    assert "column 'picture' is missing" in failure("embed", settings(root, vision, images="picture"))
    assert "column 'item_id' has type int64, which is no text" in failure(
        "embed", settings(root, vision, images="item_id")
    )
    assert "no such asset" in failure("embed", settings(root, Path("nowhere")))
    assert "'gs://photos': unknown scheme 'gs://'" in failure("embed", settings(root, vision, image_root="gs://photos"))
    assert "items.image_encoder" in failure("embed", settings(root, tiny_encoder))
    for items in ({"images": "photo"}, {"image_encoder": "x"}, {"image_root": "x"}):
        with pytest.raises(UserError, match="images"):
            config.build({"items": items})
    assert not storage.exists(Layout(root).embeddings + "/_embeddings.json")
