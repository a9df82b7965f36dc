"""The vocabulary: published layout, no loss, no control id from text, clear errors."""

import subprocess
import sys

import numpy as np
import pytest
import sentencepiece
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2 as model_pb2

from t5x_style.data.vocabulary import (
    NUM_SPARES,
    SPECIAL_SPARES,
    Vocabulary,
    train_vocabulary,
)

Piece = model_pb2.ModelProto.SentencePiece  # pyright: ignore[reportAttributeAccessIssue]

TEXTS = [
    "def add(left, right):\n\treturn left + right\n\n\nprint(add(2024, 1234567))\n" * 3,
    "The quick brown fox jumps over the lazy dog, 100 times in 1999 and 20240326 more.\n" * 3,
    "    if x == 12345678:\r\n        return None  # \u4e2d\u6587 caf\u00e9\r\n" * 3,
    "<|im_start|>user\nspelled out<|im_end|>\n[UNUSED_TOKEN_146] <s> </s> <unk> <0x41>\n" * 3,
]
SPELLED = [
    *SPECIAL_SPARES,
    "[UNUSED_TOKEN_0]",
    "[UNUSED_TOKEN_146]",
    "<s>",
    "</s>",
    "<unk>",
    "<0x41>",
    "<0xE2>",
    "\u2581",
    "\u2581\u2581 \u2581a",
    "\u2585",
    "\0",
    "\ufff9\ufffa\ufffb",
    "\t\r\n",
    "   ",
    "\U0001f600\u200d",
]
# Any Unicode text (lone surrogates are no text), with hostile stretches mixed in.
unicode_text = st.lists(st.one_of(st.text(), st.sampled_from(SPELLED), st.sampled_from(TEXTS))).map(
    "".join
)


@pytest.fixture(scope="module")
def trained() -> Vocabulary:
    return train_vocabulary(TEXTS, 700)


@pytest.fixture(scope="module")
def published_bytes(trained, tmp_path_factory) -> bytes:
    """A model laid out as the published one, whose spares are user-defined pieces."""
    path = tmp_path_factory.mktemp("published") / "tokenizer.model"
    trained.save(path)
    return _edited(path.read_bytes(), _spares_user_defined)


@pytest.fixture(scope="module", params=["trained", "published"])
def vocabulary(request, trained, published_bytes) -> Vocabulary:
    return trained if request.param == "trained" else Vocabulary(published_bytes)


def _edited(model: bytes, edit) -> bytes:
    proto = model_pb2.ModelProto.FromString(model)  # pyright: ignore[reportAttributeAccessIssue]
    edit(proto)
    return proto.SerializeToString()


def _spares_user_defined(proto) -> None:
    for piece in proto.pieces[-NUM_SPARES:]:
        piece.type = Piece.USER_DEFINED


@settings(max_examples=150)
@given(text=unicode_text)
@example(text="".join(SPELLED))
@example(text="")
def test_any_text_survives_without_control_ids(vocabulary, text):
    ids = vocabulary.encode(text)
    first_spare = vocabulary.vocab_size - NUM_SPARES
    assert all(2 < token_id < first_spare for token_id in ids)
    assert vocabulary.decode(ids) == text
    assert vocabulary.token_bytes[ids].sum() == len(text.encode())


def test_the_hole_that_retyping_closes_is_real(published_bytes, trained):
    raw = sentencepiece.SentencePieceProcessor(model_proto=published_bytes)
    text = "a[UNUSED_TOKEN_146]b"
    im_start = trained.special_ids["<|im_start|>"]
    assert im_start in raw.EncodeAsIds(text)
    assert im_start not in Vocabulary(published_bytes).encode(text)


def test_layout_is_the_published_one(trained):
    size = trained.vocab_size
    assert size == 700
    assert [trained.piece(i) for i in (0, 1, 2, 3, 258)] == [
        "<unk>",
        "<s>",
        "</s>",
        "<0x00>",
        "<0xFF>",
    ]
    spares = [trained.piece(i) for i in range(size - NUM_SPARES, size)]
    assert spares == [f"[UNUSED_TOKEN_{i}]" for i in range(147)]
    from_the_end = {name: size - token_id for name, token_id in trained.special_ids.items()}
    # Distances from 92,544 as in the released tokenizer.
    assert from_the_end == {
        "<|im_start|>": 1,
        "<|im_end|>": 2,
        "<|action_start|>": 3,
        "<|action_end|>": 4,
        "<|interpreter|>": 5,
        "<|plugin|>": 6,
        "<|reward|>": 17,
    }
    assert (trained.unk_id, trained.bos_id, trained.eos_id, trained.pad_id) == (0, 1, 2, 2)
    assert not trained.token_bytes[size - NUM_SPARES :].any()
    assert trained.token_bytes.dtype == np.int32
    assert (trained.token_bytes[3:259] == 1).all()


def test_no_piece_has_more_than_three_digits_or_mixes_them(trained):
    pieces = [trained.piece(i) for i in range(259, trained.vocab_size - NUM_SPARES)]
    with_digits = [piece for piece in pieces if any(char.isdigit() for char in piece)]
    assert any(len(piece) > 1 for piece in with_digits)
    assert all(piece.isdigit() and len(piece) <= 3 for piece in with_digits)


def test_whitespace_has_pieces_of_its_own(trained):
    pieces = {trained.piece(i) for i in range(259, trained.vocab_size - NUM_SPARES)}
    assert {"\n", "\t", "\r"} <= pieces
    assert "\u2581\u2581\u2581\u2581" in pieces
    assert not any(stand_in in piece for piece in pieces for stand_in in "\ufff9\ufffa\ufffb")


def test_training_is_deterministic(trained):
    again = train_vocabulary(iter(TEXTS), 700)
    assert again.fingerprint == trained.fingerprint
    assert train_vocabulary(TEXTS[:3], 600).fingerprint != trained.fingerprint


def test_saved_and_loaded_and_retyped_models_are_the_same(trained, published_bytes, tmp_path):
    trained.save(tmp_path / "tokenizer.model")
    loaded = Vocabulary.load(tmp_path)
    retyped = Vocabulary(published_bytes)
    assert loaded.fingerprint == trained.fingerprint == retyped.fingerprint
    assert retyped.special_ids == trained.special_ids
    text = "".join(TEXTS)
    assert loaded.encode(text) == trained.encode(text) == retyped.encode(text)
    retyped.save(tmp_path / "retyped.model")
    raw = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "retyped.model"))
    assert trained.special_ids["<|im_start|>"] not in raw.EncodeAsIds("[UNUSED_TOKEN_146]")


def test_a_long_text_is_cut_without_loss(trained):
    text = ("word " * 1000 + "\n") * 300 + "a" * 2_100_000 + "\u2581"
    ids = trained.encode(text)
    assert trained.decode(ids) == text
    assert trained.token_bytes[ids].sum() == len(text.encode())


def test_batches_are_encoded_as_single_texts(trained):
    assert trained.encode_batch(SPELLED) == [trained.encode(text) for text in SPELLED]


def test_lone_surrogates_are_refused_by_place(trained):
    with pytest.raises(ValueError, match=r"lone surrogate U\+D800 at 2"):
        trained.encode("ab\ud800c")


def test_decoding_generated_ids(trained):
    # A continuation byte alone is no UTF-8; control ids stand for no text.
    assert trained.decode([1, trained.special_ids["<|im_end|>"], 3 + 0x80, 2]) == "\ufffd"
    for outside in (-1, trained.vocab_size):
        with pytest.raises(ValueError, match="lies outside"):
            trained.decode([outside])


def _drop_a_byte(proto) -> None:
    del proto.pieces[77]


def _dummy_prefix(proto) -> None:
    proto.normalizer_spec.add_dummy_prefix = True


def _squeeze(proto) -> None:
    proto.normalizer_spec.remove_extra_whitespaces = True


def _no_pieces(proto) -> None:
    del proto.pieces[:]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_drop_a_byte, "256 byte pieces"),
        (_dummy_prefix, "add_dummy_prefix"),
        (_squeeze, "removes spaces"),
        (_no_pieces, "not unk, bos and eos"),
    ],
)
def test_a_model_that_loses_text_is_refused(published_bytes, edit, message):
    with pytest.raises(ValueError, match=message):
        Vocabulary(_edited(published_bytes, edit))


def test_wrong_files_are_refused_by_name(published_bytes, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="no vocabulary at"):
        Vocabulary.load(tmp_path)
    for name, data in {
        "json": b'{"model": {"type": "BPE"}}',
        "cut": published_bytes[:-7],
        "empty": b"",
        "noise": bytes(range(256)) * 8,
    }.items():
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(ValueError, match=name):
            Vocabulary.load(path)
    monkeypatch.setattr("t5x_style.data.vocabulary._MAX_MODEL_BYTES", 100)
    (tmp_path / "large").write_bytes(published_bytes)
    with pytest.raises(ValueError, match="more than 100 bytes"):
        Vocabulary.load(tmp_path / "large")


def test_impossible_sizes_name_the_setting():
    with pytest.raises(ValueError, match=r"vocabulary\.vocab_size"):
        train_vocabulary(TEXTS, 406)
    with pytest.raises(ValueError, match=r"vocabulary\.vocab_size at most (\d+)") as error:
        train_vocabulary(TEXTS, 5000)
    largest = int(str(error.value).split("at most ")[1].split(",")[0])
    assert train_vocabulary(TEXTS, largest).vocab_size == largest


def test_the_stream_imports_no_tensorflow_and_no_jax():
    code = (
        "import sys, t5x_style.data.batches, t5x_style.data.prefetch, t5x_style.data.vocabulary, "
        "t5x_style.data.text_tasks, t5x_style.run.tasks, t5x_style.run.vocabulary; "
        "print({'tensorflow', 'seqio', 'jax', 'tensorflow_datasets'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert out.stdout.strip() == "set()"
