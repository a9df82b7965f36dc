"""The vocabulary: SentencePiece BPE, lossless, and deaf to control tokens that a text spells out.

The layout of ids, the conventions (byte fallback, no dummy prefix, identity normalisation, digit
pieces of at most three digits) and the names of the spare tokens are those of the published
InternLM2 tokenizer (arXiv 2403.17297, section 3.1). SentencePiece alone does not quite give
decode(encode(text)) == text: it writes a space as U+2581 and so confuses the two. `Vocabulary`
closes that gap. Chat formats, seqio and TensorFlow live elsewhere.
"""

import hashlib
import io
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import sentencepiece
from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2 as model_pb2

MODEL_NAME = "tokenizer.model"
NUM_SPARES = 147
# Names of the chat tokens and the number of the spare piece that each of them stands for.
SPECIAL_SPARES: Mapping[str, int] = {
    "<|im_start|>": 146,
    "<|im_end|>": 145,
    "<|action_start|>": 144,
    "<|action_end|>": 143,
    "<|interpreter|>": 142,
    "<|plugin|>": 141,
    "<|reward|>": 130,
}

_UNK_ID, _BOS_ID, _EOS_ID, _FIRST_BYTE_ID = 0, 1, 2, 3
_FIRST_ORDINARY_ID = _FIRST_BYTE_ID + 256
_SPACE = "\u2581"  # what SentencePiece writes for a space
_MAX_MODEL_BYTES = 64 << 20
# SentencePiece holds about a hundred bytes for each character of its input, so a longer text is
# encoded in stretches.
_MAX_STRETCH_CHARS = 1 << 20

_Piece = model_pb2.ModelProto.SentencePiece


class Vocabulary:
    """Text to ids and back, without loss, with control ids that no text can produce.

    Attributes:
      vocab_size: number of pieces, spare and control pieces included.
      unk_id, bos_id, eos_id, pad_id: 0, 1, 2 and 2; padding is the end-of-text id, as published.
      special_ids: name of each chat token to its id.
      token_bytes: int32[vocab_size], UTF-8 bytes of text each id stands for; 0 for control ids.
        token_bytes[encode(text)].sum() == len(text.encode()) for every text.
      fingerprint: hex digest of the pieces, their types and scores.
    """

    unk_id, bos_id, eos_id, pad_id = _UNK_ID, _BOS_ID, _EOS_ID, _EOS_ID

    def __init__(self, model: bytes, *, source: str = "the given model"):
        """Wraps a serialised SentencePiece model.

        Args:
          model: the contents of a `tokenizer.model`.
          source: where it came from, for error messages.

        Raises:
          ValueError: the bytes are no SentencePiece model, or one that loses text.
        """
        proto = model_pb2.ModelProto()
        try:
            proto.ParseFromString(model)
        except DecodeError as error:
            raise ValueError(
                f"{source} is no SentencePiece model or is damaged ({error}); give the "
                f"{MODEL_NAME} file that the vocabulary stage wrote or a published one"
            ) from error
        _check_lossless(proto, source)
        for piece in proto.pieces:
            # A user-defined piece is cut out of any text that spells it; a control piece never is.
            if piece.type == _Piece.USER_DEFINED:
                piece.type = _Piece.CONTROL
        self._model = proto.SerializeToString(deterministic=True)
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=self._model)
        except RuntimeError as error:
            raise ValueError(f"SentencePiece refuses {source}: {error}") from error
        self.vocab_size = len(proto.pieces)
        self._text_bytes = [_text_bytes(piece) for piece in proto.pieces]
        self.special_ids = _special_ids(proto)
        digest = hashlib.blake2b(digest_size=16)
        for piece in proto.pieces:
            digest.update(f"{piece.piece}\0{piece.type}\0{piece.score!r}\n".encode())
        self.fingerprint = digest.hexdigest()

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Vocabulary":
        """Reads a `tokenizer.model` file, or the one in a folder.

        Raises:
          ValueError: there is no such file, or it is too large, damaged or lossy.
        """
        path = Path(path)
        if path.is_dir():
            path = path / MODEL_NAME
        if not path.is_file():
            raise ValueError(
                f"there is no vocabulary at {path}: run the vocabulary stage first, or point the "
                "setting that names the vocabulary at a SentencePiece model"
            )
        num_bytes = path.stat().st_size
        if num_bytes > _MAX_MODEL_BYTES:
            raise ValueError(
                f"{path} has {num_bytes} bytes; a SentencePiece model of more than "
                f"{_MAX_MODEL_BYTES} bytes is not read"
            )
        return cls(path.read_bytes(), source=str(path))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the model, user-defined pieces retyped to control, to a file."""
        Path(path).write_bytes(self._model)

    @cached_property
    def token_bytes(self) -> np.ndarray:
        return np.array([len(text) for text in self._text_bytes], np.int32)

    def piece(self, token_id: int) -> str:
        """Returns the name of a piece as the model spells it."""
        return self._processor.IdToPiece(token_id)

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text, with no control id among them and no bos or eos added.

        Raises:
          ValueError: the text holds a lone surrogate, so it is not Unicode text.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"a text of {len(text)} characters holds the lone surrogate "
                f"U+{ord(text[error.start]):04X} at {error.start}, which no encoding of Unicode "
                "has; drop or repair the record before it is tokenised"
            ) from error
        ids: list[int] = []
        for stretch in _stretches(text):
            # U+2581 is spelled in bytes: SentencePiece would give it back as a space.
            for index, part in enumerate(stretch.split(_SPACE)):
                if index:
                    ids.extend(_FIRST_BYTE_ID + byte for byte in _SPACE.encode())
                ids.extend(self._processor.EncodeAsIds(part))
        return ids

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
        """Returns the ids of each text."""
        return [self.encode(text) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of the ids; control ids stand for no text.

        Ids that do not come from a text may spell bytes that are no UTF-8: each such stretch
        becomes U+FFFD.

        Raises:
          ValueError: an id lies outside the vocabulary.
        """
        pieces = []
        for token_id in ids:
            if not 0 <= token_id < self.vocab_size:
                raise ValueError(f"id {token_id} lies outside [0, {self.vocab_size})")
            pieces.append(self._text_bytes[token_id])
        return b"".join(pieces).decode(errors="replace")


def train_vocabulary(
    texts: Iterable[str], vocab_size: int, *, character_coverage: float = 0.9999
) -> Vocabulary:
    """Trains a byte-pair vocabulary with the layout and conventions of the published one.

    The trainer only ever sees a digit run in groups of three, so no piece has more than three
    digits, as in the published vocabulary, whose ancestor was trained on such groups as well. When
    text is encoded nothing is grouped: the merges decide, as they do in the published one.

    Args:
      texts: training documents; all are held in memory. The result depends on nothing else.
      vocab_size: number of ids in all: 3 + 256 bytes + ordinary pieces + 147 spares.
      character_coverage: share of the characters seen that get a piece; the rest are spelled in
        bytes.

    Returns:
      The vocabulary, spares last.

    Raises:
      ValueError: the size is too small for the layout or too large for the texts.
    """
    num_trained = vocab_size - NUM_SPARES
    if num_trained <= _FIRST_ORDINARY_ID:
        raise ValueError(
            f"vocab_size = {vocab_size} leaves no ordinary piece: {_FIRST_ORDINARY_ID} ids are "
            f"unk, bos, eos and bytes and {NUM_SPARES} are spares; set vocabulary.vocab_size above "
            f"{_FIRST_ORDINARY_ID + NUM_SPARES}"
        )
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(part for text in texts for part in _training_parts(text)),
            model_writer=model,
            model_type="bpe",
            vocab_size=num_trained,
            character_coverage=character_coverage,
            byte_fallback=True,
            add_dummy_prefix=False,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            split_digits=False,
            unk_id=_UNK_ID,
            bos_id=_BOS_ID,
            eos_id=_EOS_ID,
            pad_id=-1,
            max_sentence_length=_MAX_MODEL_BYTES,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        most = re.search(r"value <= (\d+)", str(error))
        advice = f"at most {int(most[1]) + NUM_SPARES}" if most else "to another value"
        raise ValueError(
            f"these texts do not yield vocab_size = {vocab_size} ids: set vocabulary.vocab_size "
            f"{advice}, or give more text (SentencePiece says: {error})"
        ) from error
    return Vocabulary(_published_layout(model.getvalue()), source="the trained model")


# The trainer drops newlines at the end of a part and keeps tabs for itself. Neighbours in the
# Common script, which merge with punctuation as the originals would, stand in for them.
_STAND_INS = {"\t": "\ufff9", "\n": "\ufffa", "\r": "\ufffb"}
# Characters that the trainer cannot see in a text: its own marks, the stand-ins, and NUL.
_HIDE = str.maketrans(dict.fromkeys((_SPACE, "\u2585", "\0", *_STAND_INS.values())))
_STAND_IN = str.maketrans(_STAND_INS)
_RESTORE = str.maketrans({stand_in: char for char, stand_in in _STAND_INS.items()})
_PART = re.compile(r"\d{1,3}|[^\d\n]*\n+|[^\d\n]+")


def _training_parts(text: str) -> Iterator[str]:
    """Yields the stretches across which no piece may reach: lines, and groups of three digits."""
    for match in _PART.finditer(text.translate(_HIDE)):
        yield match[0].translate(_STAND_IN)


def _published_layout(model: bytes) -> bytes:
    """Returns a trained model with stand-ins undone and the spares appended as control pieces."""
    proto = model_pb2.ModelProto.FromString(model)
    for piece in proto.pieces[_FIRST_ORDINARY_ID:]:
        piece.piece = piece.piece.translate(_RESTORE)
    for index in range(NUM_SPARES):
        proto.pieces.add(piece=f"[UNUSED_TOKEN_{index}]", score=0.0, type=_Piece.CONTROL)
    proto.trainer_spec.vocab_size = len(proto.pieces)
    return proto.SerializeToString(deterministic=True)


def _check_lossless(proto: model_pb2.ModelProto, source: str) -> None:
    pieces, normalizer = proto.pieces, proto.normalizer_spec
    faults = []
    if len(pieces) < _FIRST_ORDINARY_ID or [piece.type for piece in pieces[:_FIRST_BYTE_ID]] != [
        _Piece.UNKNOWN,
        _Piece.CONTROL,
        _Piece.CONTROL,
    ]:
        faults.append("ids 0, 1 and 2 are not unk, bos and eos")
    elif [piece.piece for piece in pieces[_FIRST_BYTE_ID:_FIRST_ORDINARY_ID]] != [
        f"<0x{byte:02X}>" for byte in range(256)
    ] or any(piece.type != _Piece.BYTE for piece in pieces[_FIRST_BYTE_ID:_FIRST_ORDINARY_ID]):
        faults.append("ids 3 to 258 are not the 256 byte pieces")
    if normalizer.add_dummy_prefix:
        faults.append("it puts a space before every text (add_dummy_prefix)")
    if normalizer.remove_extra_whitespaces:
        faults.append("it removes spaces (remove_extra_whitespaces)")
    if not normalizer.escape_whitespaces or proto.trainer_spec.treat_whitespace_as_suffix:
        faults.append("it does not write a space as U+2581 before a word")
    if normalizer.precompiled_charsmap:
        faults.append(f"it normalises text ({normalizer.name})")
    if faults:
        raise ValueError(
            f"{source} is not laid out as the InternLM2 tokenizer: {'; '.join(faults)}. Train a "
            "vocabulary on your documents, or give a tokenizer.model of that family"
        )


def _text_bytes(piece: model_pb2.ModelProto.SentencePiece) -> bytes:
    if piece.type == _Piece.BYTE:
        return bytes([int(piece.piece[3:5], 16)])
    if piece.type in (_Piece.NORMAL, _Piece.UNUSED):
        return piece.piece.replace(_SPACE, " ").encode()
    return b""


def _special_ids(proto: model_pb2.ModelProto) -> dict[str, int]:
    """Finds each chat token under its own name or as the spare piece that it stands for."""
    ids = {p.piece: i for i, p in enumerate(proto.pieces) if p.type == _Piece.CONTROL}
    found = {}
    for name, spare in SPECIAL_SPARES.items():
        for spelled in (name, f"[UNUSED_TOKEN_{spare}]"):
            if spelled in ids:
                found[name] = ids[spelled]
                break
    return found


def _stretches(text: str) -> Sequence[str]:
    """Cuts a long text after line ends, so that no stretch is too much for SentencePiece."""
    if len(text) <= _MAX_STRETCH_CHARS:
        return [text]
    stretches, start = [], 0
    while start < len(text):
        stop = min(start + _MAX_STRETCH_CHARS, len(text))
        if stop < len(text):
            stop = text.rfind("\n", start + _MAX_STRETCH_CHARS // 2, stop) + 1 or stop
        stretches.append(text[start:stop])
        start = stop
    return stretches
