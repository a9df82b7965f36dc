"""TFRecord shards that `tfds.load` and seqio's `TfdsDataSource` read, written without TensorFlow.

Examples are put down by hand (`record_files`), so that writing shards, in as many processes as one
likes, costs no import of TensorFlow; TFDS itself writes only the metadata beside them. What the
rows are is left to `release`.
"""

import dataclasses
import os
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from t5x_style.record_files import BYTES, field, record, varint


@dataclasses.dataclass(frozen=True)
class Shard:
    """What a shard holds.

    Attributes:
      split: its split.
      num_examples: rows.
      num_bytes: bytes of their examples, without the frames of the records.
    """

    split: str
    num_examples: int
    num_bytes: int


def shard_name(name: str, split: str, number: int, num_shards: int) -> str:
    """Returns the file name that TFDS gives a shard."""
    return f"{name}-{split}.tfrecord-{number:05d}-of-{num_shards:05d}"


def example_bytes(row: Mapping[str, Any], schema: pa.Schema) -> bytes:
    """Returns a row as a serialised `tf.train.Example`, its features in order of their names.

    Args:
      row: a value for each field.
      schema: fields of type string, int64 or float32.
    """
    features = b"".join(
        field(1, BYTES, field(1, BYTES, name.encode()) + field(2, BYTES, _feature(row[name], kind)))
        for name, kind in sorted((f.name, f.type) for f in schema)
    )
    return field(1, BYTES, features)


def _feature(value: Any, kind: pa.DataType) -> bytes:
    if kind == pa.string():
        return field(1, BYTES, field(1, BYTES, value.encode("utf-8")))
    if kind == pa.float32():
        return field(2, BYTES, field(1, BYTES, struct.pack("<f", value)))
    assert kind == pa.int64(), kind
    return field(3, BYTES, field(1, BYTES, varint(value % (1 << 64))))


class ShardWriter:
    """Writes rows into one shard.

    Args:
      path: of the file (`shard_name`).
      schema: of the rows.
    """

    def __init__(self, path: str | os.PathLike[str], schema: pa.Schema):
        self._file = open(path, "wb")  # noqa: SIM115
        self._schema = schema
        self.num_examples = self.num_bytes = 0

    def write(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Appends rows."""
        for row in rows:
            data = example_bytes(row, self._schema)
            self._file.write(record(data))
            self.num_examples += 1
            self.num_bytes += len(data)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def write_metadata(
    folder: Path,
    name: str,
    version: str,
    schema: pa.Schema,
    shards: Iterable[Shard],
    description: str,
) -> None:
    """Writes `features.json` and `dataset_info.json` beside shards.

    Args:
      folder: where the shards lie: `data_dir/name/version` for `tfds.load`.
      name, version: of the data set.
      schema: of the rows.
      shards: all shards, those of a split in order.
      description: what the data set is.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # It would ask a server of Google's whether the machine is one of theirs.
    os.environ.setdefault("NO_GCE_CHECK", "true")
    import tensorflow_datasets as tfds

    kinds = {
        pa.string(): tfds.features.Text(),
        pa.int64(): tfds.features.Scalar(np.int64),
        pa.float32(): tfds.features.Scalar(np.float32),
    }
    by_split: dict[str, list[Shard]] = {}
    for shard in shards:
        by_split.setdefault(shard.split, []).append(shard)
    template = tfds.core.ShardedFileTemplate(
        data_dir=tfds.core.Path(folder), dataset_name=name, filetype_suffix="tfrecord"
    )
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=tfds.features.FeaturesDict({f.name: kinds[f.type] for f in schema}),
        split_infos=[
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=[shard.num_examples for shard in of_split],
                num_bytes=sum(shard.num_bytes for shard in of_split),
                filename_template=template.replace(split=split),
            )
            for split, of_split in by_split.items()
        ],
        version=version,
        filename_template=template,
        check_data=False,
        description=description,
    )
