"""Pairs average rightly, lines come when they are due and one step late, and outlive a restart."""

import io
import json
import math
import struct

import jax.numpy as jnp
import numpy as np
import pytest

from t5x_style.record_files import masked_crc32c
from t5x_style.train.metrics import MetricLog, PairSums
from t5x_style.train.tensorboard import TensorBoardWriter
from t5x_style.train.writers import ConsoleWriter, JsonLinesWriter, make_writers


class Lines:
    """A writer that keeps what it is given."""

    def __init__(self):
        self.lines = []
        self.done = []

    def write(self, step, values):
        self.lines.append((step, dict(values)))

    def progress(self, step):
        self.done.append(step)

    def close(self):
        pass


def pairs(loss, weight, skipped=0.0):
    numbers = {"loss": (loss * weight, weight), "filled_slots": (weight, 10.0)}
    numbers |= {"keys_per_token": (4 * weight, weight), "skipped": (skipped, 1.0)}
    return {k: (jnp.float32(n), jnp.float32(d)) for k, (n, d) in numbers.items()}


def make_log(writer, **arguments):
    return MetricLog(
        [writer],
        **{"every_steps": 2, "flops_per_token": lambda keys: 100.0 * keys, **arguments},
    )


def test_sums_weigh_each_part_by_its_denominator():
    sums = PairSums()
    sums.add({"loss": (2.0, 1.0), "empty": (0.0, 0.0)})
    sums.add({"loss": (3.0, 9.0)})
    assert sums.means() == {"loss": 0.5}
    again = PairSums()
    again.restore(json.loads(json.dumps(sums.state())))
    assert again.means() == sums.means()


def test_the_entries_of_an_array_are_metrics_of_their_own():
    sums = PairSums()
    for _ in range(2):
        sums.add({"load": (np.float32([[1, 2], [3, 4]]), np.float32(4))})
    assert sums.means() == {"load/0/0": 0.25, "load/0/1": 0.5, "load/1/0": 0.75, "load/1/1": 1.0}
    again = PairSums()
    again.restore(json.loads(json.dumps(sums.state())))
    again.add({"load": (np.float32([[0, 4], [4, 0]]), np.float32(8))})
    assert again.means()["load/0/1"] == 0.5


def test_a_step_is_read_only_once_the_next_one_is_on_its_way():
    writer = Lines()
    log = make_log(writer)
    log.record(1, pairs(1.0, 5.0), wait_secs=0.0)
    assert writer.done == []
    log.record(2, pairs(2.0, 15.0), wait_secs=0.0)
    assert (writer.done, writer.lines) == ([1], [])
    log.record(3, pairs(9.0, 1.0), wait_secs=0.0)
    assert writer.done == [1, 2]
    step, values = writer.lines[0]
    assert step == 2
    assert values["train/loss"] == pytest.approx((1 * 5 + 2 * 15) / 20)
    assert values["train/tokens"] == 20
    assert values["train/filled_slots"] == 1.0
    log.finish(3)
    assert writer.lines[1][0] == 3, "the last step has a line though it is no multiple"
    assert writer.lines[1][1]["train/loss"] == pytest.approx(9.0)
    log.finish(3)
    assert len(writer.lines) == 2


def test_throughput_and_mfu_follow_from_tokens_and_time():
    writer = Lines()
    log = make_log(writer, every_steps=1, peak_flops_per_sec=1e6)
    log.record(1, pairs(1.0, 50.0), wait_secs=0.0)
    log.flush()
    values = writer.lines[0][1]
    tokens_per_sec = values["timing/tokens_per_sec"]
    assert tokens_per_sec == pytest.approx(50 / values["timing/step_secs_p50"])
    assert values["timing/flops_per_sec"] == pytest.approx(tokens_per_sec * 400)
    assert values["timing/mfu"] == pytest.approx(tokens_per_sec * 400 / 1e6)
    assert 0 <= values["timing/data_wait_fraction"] <= 1


def test_a_restart_goes_on_within_a_window():
    straight, broken = Lines(), Lines()
    log = make_log(straight)
    for step in range(1, 5):
        log.record(step, pairs(float(step), 7.0), wait_secs=0.0)
    log.flush()
    first = make_log(Lines())
    for step in range(1, 4):
        first.record(step, pairs(float(step), 7.0), wait_secs=0.0)
    first.flush()
    second = make_log(broken)
    second.restore(json.loads(json.dumps(first.state())))
    second.record(4, pairs(4.0, 7.0), wait_secs=0.0)
    second.flush()
    wanted = {k: v for k, v in straight.lines[1][1].items() if k.startswith("train/")}
    assert {k: v for k, v in broken.lines[0][1].items() if k.startswith("train/")} == wanted


def test_json_lines_after_the_restart_step_and_torn_ones_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    writer = JsonLinesWriter(path)
    for step in (1, 2, 3):
        writer.write(step, {"train/loss": float(step), "train/bad": math.nan})
    writer.close()
    with open(path, "a") as file:
        file.write('{"step": 4, "train/lo')
    writer = JsonLinesWriter(path, first_step=2)
    writer.write(3, {"train/loss": 30.0})
    writer.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [
        {"step": 1, "train/loss": 1.0},
        {"step": 2, "train/loss": 2.0},
        {"step": 3, "train/loss": 30.0},
    ]


def records(path):
    """Yields the payloads of a record file, their checksums compared."""
    data = path.read_bytes()
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        assert struct.unpack("<I", data[8:12])[0] == masked_crc32c(data[:8])
        payload = data[12 : 12 + length]
        assert struct.unpack("<I", data[12 + length : 16 + length])[0] == masked_crc32c(payload)
        yield payload
        data = data[16 + length :]


def test_event_files_are_framed_records_of_events(tmp_path):
    assert (
        masked_crc32c(b"123456789")
        == (((0xE3069283 >> 15 | 0xE3069283 << 17) & 0xFFFFFFFF) + 0xA282EAD8) & 0xFFFFFFFF
    )
    writer = TensorBoardWriter(tmp_path, first_step=4)
    writer.write(300, {"train/loss": 1.5})
    writer.close()
    (path,) = tmp_path.iterdir()
    version, start, scalar = records(path)
    assert b"brain.Event:2" in version
    assert start[9:11] == b"\x10\x05", "what an earlier process wrote from step 5 on is void"
    assert scalar[9:12] == b"\x10\xac\x02", "step 300 as a varint in field 2"
    assert b"\x0a\x0atrain/loss\x15" + struct.pack("<f", 1.5) in scalar


def test_tensorboard_reads_the_event_files(tmp_path):
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_file_loader")
    writer = TensorBoardWriter(tmp_path)
    writer.write(7, {"train/loss": 2.5})
    writer.write_text("config.gin", "a = 1")
    writer.close()
    (path,) = tmp_path.iterdir()
    events = list(loader.LegacyEventFileLoader(str(path)).Load())
    values = [(e.step, v) for e in events for v in e.summary.value]
    (scalar_step, scalar), (_, text) = values
    assert (scalar_step, scalar.tag, scalar.simple_value) == (7, "train/loss", 2.5)
    assert text.metadata.plugin_data.plugin_name == "text"
    assert text.tensor.string_val[0] == b"a = 1"


class Terminal(io.StringIO):
    def isatty(self):
        return True


LINE = {"time_secs": 1.0, "train/loss": 2.0, "timing/tokens_per_sec": 1234.5}


def test_the_console_prints_plain_lines_where_nobody_watches():
    stream = io.StringIO()
    writer = ConsoleWriter(10, name="short", stream=stream)
    writer.progress(4)
    writer.write(5, LINE)
    writer.write(5, {"time_secs": 2.0, "eval/held_out/loss": 1.0, "eval/held_out/keys": 3.0})
    writer.close()
    assert stream.getvalue().splitlines() == [
        "short step 5/10 | loss 2.0000 | tok/s 1,234",
        "short step 5/10 | eval/held_out/loss 1.0000",
    ]


def test_the_console_draws_a_bar_on_a_terminal():
    stream = Terminal()
    writer = ConsoleWriter(10, name="short", stream=stream)
    writer.write(5, LINE)
    text = stream.getvalue()
    assert text.startswith("\rshort [############............] 5/10")
    assert "\n" not in text
    writer.close()
    assert stream.getvalue().endswith("\n")


def test_writers_are_made_by_name(tmp_path):
    made = make_writers(("json_lines", "tensorboard"), tmp_path, 10, 0)
    assert [type(writer) for writer in made] == [JsonLinesWriter, TensorBoardWriter]
    with pytest.raises(ValueError, match="writer_names"):
        make_writers(("csv",), tmp_path, 10, 0)
    assert np.all([writer.close() is None for writer in made])
