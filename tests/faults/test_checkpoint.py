"""Checkpoints that were damaged, broken off, or saved by another model; and other meshes."""

import json
import resource
import shutil
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from t5x_style.models.config import TransformerConfig
from t5x_style.parallel.mesh import MeshConfig
from t5x_style.train import checkpoint, run_folder
from t5x_style.train import state as states
from t5x_style.train.checkpoint import Checkpointer

# Readers that fail leave coroutines behind, which Python reports when it collects them.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

EXTRA = {"data": {"next_row": 7, "cursors": [[1, 2]]}, "log": {"window": {"loss": [0.1, 3.0]}}}
ONE_DEVICE = SingleDeviceSharding(jax.devices("cpu")[0])


def make_tree(seed=0, scale=1.0):
    """A state in small: 40 kB of params, as much of moments, and counts."""
    rng = np.random.default_rng(seed)
    params = {"layers": {"w1": rng.normal(size=(2, 32, 64)), "scale": rng.normal(size=(2, 32))}}
    params = jax.tree.map(lambda x: jnp.asarray(scale * x, jnp.float32), params)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    return {"params": params, "opt_state": [{"mu": half}], "step": jnp.int32(seed)}


def abstract_of(tree, sharding=ONE_DEVICE):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def save(folder, *steps, keep=5):
    saver = Checkpointer(folder, keep=keep)
    for step in steps:
        saver.save(step, make_tree(step), EXTRA)
    saver.close()
    return saver


def assert_same(found, expected):
    found, expected = states.named_leaves(found), states.named_leaves(expected)
    assert found.keys() == expected.keys()
    for name, x in found.items():
        assert x.dtype == expected[name].dtype
        np.testing.assert_array_equal(np.asarray(x), np.asarray(expected[name]), err_msg=name)


def restored(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = Checkpointer(folder).restore_newest(abstract_of(make_tree()))
    assert found is not None
    return found


def files_of(folder, *parts):
    """The files of a step that hold array data, largest first."""
    files = [path for part in parts for path in (folder / part).rglob("*") if path.is_file()]
    return sorted(files, key=lambda path: (-path.stat().st_size, str(path)))


def test_what_was_saved_is_restored_with_its_extra(tmp_path):
    save(tmp_path, 3)
    found = restored(tmp_path)
    assert_same(found.tree, make_tree(3))
    assert (found.step, found.extra) == (3, EXTRA)


def test_nothing_is_restored_from_an_empty_folder(tmp_path):
    for folder in (tmp_path, tmp_path / "not_there"):
        assert Checkpointer(folder).restore_newest(abstract_of(make_tree())) is None


def test_the_newest_steps_are_kept(tmp_path):
    save(tmp_path, 1, 2, 3, 4, keep=2)
    assert checkpoint.committed_steps(tmp_path) == [3, 4]


def test_a_step_that_is_there_is_not_saved_again(tmp_path):
    save(tmp_path, 1)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "1").rglob("*")}
    save(tmp_path, 1)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "1").rglob("*")}


def test_what_is_saved_is_the_state_of_that_moment_though_its_buffers_are_given_away(tmp_path):
    """A save in the background must not see what later steps write into donated buffers."""
    step = jax.jit(
        lambda tree: jax.tree.map(lambda x: (x * 2 + 1).astype(x.dtype), tree), donate_argnums=0
    )
    saver = Checkpointer(tmp_path, keep=20)
    tree, expected = make_tree(), {}
    for number in range(1, 9):
        tree = step(tree)
        expected[number] = jax.tree.map(np.array, tree)
        saver.save(number, tree, EXTRA)
    saver.close()
    for number, wanted in expected.items():
        found = checkpoint.restore(tmp_path / str(number), abstract_of(make_tree()))
        assert_same(found.tree, wanted)


def flip(path, place, bit):
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(bytes(content))


def test_a_hundred_of_a_hundred_flipped_bits_of_arrays_are_caught(tmp_path):
    save(tmp_path, 1)
    spans = []
    for leaf in jax.tree.leaves(make_tree(1)):
        raw = np.asarray(leaf).tobytes()
        for path in files_of(tmp_path / "1", "params", "rest"):
            # Smaller leaves lie within index files, see the next test.
            if leaf.size > 1000 and (start := path.read_bytes().find(raw)) >= 0:
                spans.append((path, start, len(raw)))
    assert [size for *_, size in spans] == [2 * 4096, 4 * 4096], "w1 in bf16 and in fp32"
    rng = np.random.default_rng(0)
    for number in range(100):
        path, start, size = spans[number % len(spans)]
        place, bit = start + int(rng.integers(size)), int(rng.integers(8))
        flip(path, place, bit)
        with pytest.raises(checkpoint.DamagedCheckpointError, match="is damaged: the values of"):
            checkpoint.restore(tmp_path / "1", abstract_of(make_tree()))
        flip(path, place, bit)
    assert_same(restored(tmp_path).tree, make_tree(1))


def test_no_flipped_bit_in_any_file_gives_wrong_values(tmp_path):
    """Indices and metadata: most flips are refused, some hit what nothing reads."""
    save(tmp_path, 1)
    files = [path for path in (tmp_path / "1").rglob("*") if path.is_file()]
    rng = np.random.default_rng(1)
    caught = 0
    for number in range(3 * len(files)):
        path = files[number % len(files)]
        place, bit = int(rng.integers(path.stat().st_size)), int(rng.integers(8))
        flip(path, place, bit)
        try:
            found = checkpoint.restore(tmp_path / "1", abstract_of(make_tree()))
        except checkpoint.DamagedCheckpointError:
            caught += 1
        else:
            assert_same(found.tree, make_tree(1))
            assert found.extra == EXTRA
        flip(path, place, bit)
    assert caught > len(files) / 2


@pytest.mark.parametrize("part", ["params", "record"])
@pytest.mark.parametrize("harm", ["truncated", "emptied", "deleted"])
def test_a_harmed_file_is_harmless_or_the_older_step_is_used(tmp_path, part, harm):
    """Some files hold nothing that a restore needs; what is restored is right in any case."""
    save(tmp_path / "whole", 1, 2)
    outcomes = set()
    for path in files_of(tmp_path / "whole" / "2", part):
        folder = tmp_path / "harmed"
        shutil.copytree(tmp_path / "whole", folder)
        victim = folder / "2" / path.relative_to(tmp_path / "whole" / "2")
        content = victim.read_bytes()
        if harm == "deleted":
            victim.unlink()
        else:
            victim.write_bytes(content[: len(content) // 2] if harm == "truncated" else b"")
        found = restored(folder)
        assert_same(found.tree, make_tree(found.step))
        assert found.extra == EXTRA
        outcomes.add(found.step)
        assert (folder / "2.damaged").exists() == (found.step == 1)
        shutil.rmtree(folder)
    assert 1 in outcomes


def test_a_damaged_step_is_renamed_with_a_warning_that_names_the_leaf(tmp_path):
    save(tmp_path, 1, 2, 3)
    for step in ("2", "3"):
        path = files_of(tmp_path / step, "params")[0]
        flip(path, path.stat().st_size // 2, 0)
    with pytest.warns(UserWarning, match=r"params/layers/w1.*renamed it to 3\.damaged"):
        Checkpointer(tmp_path).restore_newest(abstract_of(make_tree()))
    assert restored(tmp_path).step == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2.damaged", "3.damaged"]
    save(tmp_path, 2)
    assert restored(tmp_path).step == 2


def test_where_no_step_is_good_nothing_is_renamed_and_nothing_begun_anew(tmp_path):
    save(tmp_path, 1, 2)
    for step in ("1", "2"):
        (tmp_path / step / "record" / "metadata").write_text("{}")
    with pytest.raises(ValueError, match=r"every checkpoint.*/2.*/1.*train from the start"):
        Checkpointer(tmp_path).restore_newest(abstract_of(make_tree()))
    assert checkpoint.committed_steps(tmp_path) == [1, 2]


def test_a_changed_record_is_caught_by_its_digest(tmp_path):
    save(tmp_path, 1)
    path = tmp_path / "1" / "record" / "metadata"
    text = path.read_text()
    assert '"next_row": 7' in text
    path.write_text(text.replace('"next_row": 7', '"next_row": 8'))
    with pytest.raises(checkpoint.DamagedCheckpointError, match="record"):
        checkpoint.restore(tmp_path / "1", abstract_of(make_tree()))


def test_leftovers_of_killed_saves_are_removed(tmp_path):
    save(tmp_path, 1)
    left = tmp_path / "2.orbax-checkpoint-tmp-0"
    shutil.copytree(tmp_path / "1", left)
    assert checkpoint.committed_steps(tmp_path) == [1]
    Checkpointer(tmp_path).remove_unfinished()
    assert not left.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t["params"]["layers"].update(w1=jnp.ones((2, 32, 65))), r"w1 has shape"),
        (lambda t: t.update(step=jnp.float32(1)), r"step is int32 there and float32 here"),
        (lambda t: t["params"].update(new=jnp.ones(3)), r"params/new is not in the checkpoint"),
        (lambda t: t.pop("step"), r"step is in the checkpoint and not in this run"),
    ],
    ids=["shape", "dtype", "missing", "extra"],
)
def test_a_checkpoint_of_another_model_is_refused_by_leaf_and_setting_and_left_alone(
    tmp_path, change, message
):
    save(tmp_path, 1)
    tree = make_tree()
    change(tree)
    with pytest.raises(ValueError, match=message) as caught:
        Checkpointer(tmp_path).restore_newest(abstract_of(tree))
    assert "config.TransformerConfig" in str(caught.value)
    assert "optimizers.AdamW" in str(caught.value)
    assert checkpoint.committed_steps(tmp_path) == [1]


def test_any_mesh_restores_the_same_bits(tmp_path):
    specs = {3: P(None, "fsdp", "tensor"), 2: P(None, "tensor"), 0: P()}

    def abstract_on(mesh):
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(
                x.shape, x.dtype, sharding=NamedSharding(mesh, specs[x.ndim])
            ),
            make_tree(),
        )

    first = MeshConfig(fsdp=4, tensor=2).build()
    tree = make_tree(5)
    saver = Checkpointer(tmp_path)
    saver.save(5, jax.device_put(tree, jax.tree.map(lambda x: x.sharding, abstract_on(first))), {})
    saver.close()
    second = MeshConfig(fsdp=2, tensor=4).build()
    one = MeshConfig().build(jax.devices()[:1])
    for mesh in (first, second, one):
        found = checkpoint.restore(tmp_path / "5", abstract_on(mesh)).tree
        assert found["params"]["layers"]["w1"].sharding.mesh == mesh
        assert_same(found, tree)


def test_a_save_that_fails_says_where_and_the_older_step_remains(tmp_path):
    saver = save(tmp_path, 1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, before[1]))
    try:
        saver.save(2, make_tree(2), EXTRA)
        with pytest.raises(OSError, match=r"step 2 could not be written.*bytes are free") as caught:
            saver.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert str(tmp_path) in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["1"], "no room is left taken"
    assert restored(tmp_path).step == 1
    saver.save(3, make_tree(3), EXTRA)
    saver.close()
    assert restored(tmp_path).step == 3


def test_a_model_is_loaded_without_its_optimizer(tmp_path):
    config = TransformerConfig(num_layers=2)
    run_folder.write_model(tmp_path, config)
    save(tmp_path / run_folder.CHECKPOINTS, 1, 2)
    found_config, params = checkpoint.load_model(tmp_path)
    assert found_config == config
    assert_same(params, make_tree(2)["params"])
    assert_same(checkpoint.load_model(tmp_path, 1)[1], make_tree(1)["params"])
    with pytest.raises(ValueError, match=r"no checkpoint of step 7.*\[1, 2\]"):
        checkpoint.load_model(tmp_path, 7)


def test_a_damaged_model_is_refused_and_not_renamed(tmp_path):
    run_folder.write_model(tmp_path, TransformerConfig())
    folder = tmp_path / run_folder.CHECKPOINTS
    save(folder, 1, 2)
    path = folder / "2" / "record" / "metadata"
    path.write_text(path.read_text().replace("7", "8"))
    with pytest.raises(ValueError, match=r"damaged.*name another step"):
        checkpoint.load_model(tmp_path)
    assert checkpoint.committed_steps(folder) == [1, 2]


def test_params_from_elsewhere_make_a_run_folder(tmp_path):
    config, params = TransformerConfig(num_layers=1), make_tree(4)["params"]
    checkpoint.save_model(tmp_path / "imported", config, params)
    found_config, found = checkpoint.load_model(tmp_path / "imported")
    assert found_config == config
    assert_same(found, params)
    assert json.loads((tmp_path / "imported" / run_folder.MODEL).read_text())["num_layers"] == 1
