"""Laws of what is counted before it is built: runs of units, pages of parquet, repeated pictures."""

from pathlib import Path

import numpy as np
import pytest

from kilolayer.data.pictures.decoding import EncodedPictures
from kilolayer.errors import InputError
from kilolayer.networks import Network, Stage, Stem, build, describe
from kilolayer.networks.description import MAX_IMAGE_SIZE, MAX_UNITS
from kilolayer.units import BASIC
from kilolayer.values import from_json, to_json


@pytest.mark.parametrize("name", ["preact_resnet20_cifar", "resnext29_8x64d_cifar", "resnet50"])
def test_counts_by_runs_are_those_of_every_unit(name):
    network = describe(name)
    units = network.units()
    assert len(units) == sum(stage.units for stage in network.stages)
    edges = network.parameters - sum(unit.layout.parameters for unit in units)
    assert edges == describe(name).parameters - sum(unit.layout.parameters for unit in units) > 0
    model = build(describe("preact_resnet20_cifar"))
    described = model.description
    assert sum(tensor.numel() for tensor in model.parameters()) == described.parameters
    assert described.num_learned_layers <= len(model.state_dict())


def test_as_many_units_as_are_allowed_take_no_time_to_describe():
    network = Network(Stem(16), (Stage(MAX_UNITS, 16),), BASIC)
    assert network.parameters == 16 * (3 * 9 + 2) + MAX_UNITS * (2 * 16 * 16 * 9 + 4 * 16) + 17 * 10
    with pytest.raises(InputError, match=f"at most {MAX_UNITS:,}"):
        Network(Stem(16), (Stage(MAX_UNITS + 1, 16),), BASIC)


def test_images_too_large_to_compute_are_refused_in_a_description():
    network = describe("resnet50", image_size=MAX_IMAGE_SIZE)
    text = to_json(network).replace(f'"image_size": {MAX_IMAGE_SIZE}', '"image_size": 100000')
    with pytest.raises(InputError, match=r"image_size is 100000; allowed: a whole number up to 4,096"):
        from_json(text, Network)


def test_repeated_pictures_are_told_by_their_contents():
    pictures = EncodedPictures(
        np.zeros(6, np.int64), lambda i: bytes([i]), str, contents=np.array([7, 3, 7, -1, 3, -1])
    )
    distinct, index = pictures.without_repetitions()
    assert len(distinct) == 3
    assert [distinct.encoded(at) for at in index.tolist()] == [bytes([i]) for i in (0, 1, 0, 3, 1, 3)]


def test_pages_are_counted_as_pyarrow_wrote_them(tmp_path: Path):
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    from kilolayer.data.sources.parquet_column import ColumnReader
    from kilolayer.data.sources.parquet_table import import_arrow

    values = [bytes([i % 7]) * (1000 + i % 7) for i in range(300)]
    for version in ("1.0", "2.0"):
        for encoding in (None, "PLAIN", "DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY"):
            options = {"use_dictionary": True} if encoding is None else {"use_dictionary": False}
            if encoding is not None:
                options["column_encoding"] = {"image": encoding}
            path = tmp_path / "a.parquet"
            pq.write_table(
                pa.table({"image": pa.array(values, pa.binary())}),
                path,
                row_group_size=100,
                data_page_version=version,
                **options,
            )
            stored = ColumnReader(import_arrow(), path, pq.ParquetFile(path).metadata, "image").distinct()
            assert len(stored.values) == 7
            assert [stored.values[at] for at in stored.index.tolist()] == values
