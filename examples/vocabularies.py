"""Trains the tokenizers of the demo's models and of the comparison of strategies.

Four families that differ in all that matters to alignment. Byte-level BPE, where any
bytes can be spelt and a space belongs to the word behind it: as GPT-2 has it, and with
every digit a token, as Qwen and SmolLM2 do. SentencePiece with byte fallback, where a
text gets a space in front and rare characters fall apart into bytes: Unigram, and BPE
as Llama 2 and Mistral have it.
"""

import io
from collections.abc import Sequence
from typing import Literal

import sentencepiece
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

BEGIN, END, UNKNOWN = "<s>", "</s>", "<unk>"
BORDER = "<|endoftext|>"
"""Begins and ends a document, as in GPT-2."""

CHAT_ROLES = {
    "additional_special_tokens": ["<|im_start|>"],
    "eos_token": "<|im_end|>",
}
"""Control tokens of ChatML, by what they are to a tokenizer."""

_MOST_PIECE_CHARS = 16
_MOST_SENTENCE_BYTES = 1 << 16  # longer texts would be left out


def train_byte_bpe(texts: Sequence[str], size: int) -> tokenizers.Tokenizer:
    """Trains a byte-level BPE of `size` tokens, as GPT-2's; `BORDER` is token 0."""
    return _train_byte_level(texts, size, _byte_level())


def train_digit_bpe(texts: Sequence[str], size: int) -> tokenizers.Tokenizer:
    """Trains a byte-level BPE of `size` tokens that never joins digits."""
    digits = pre_tokenizers.Digits(individual_digits=True)
    return _train_byte_level(
        texts, size, pre_tokenizers.Sequence([digits, _byte_level()])
    )


def _byte_level() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False)


def _train_byte_level(
    texts: Sequence[str], size: int, splitter: pre_tokenizers.PreTokenizer
) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[BORDER],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def train_unigram(
    texts: Sequence[str], size: int, apart: str = ""
) -> tokenizers.Tokenizer:
    """Trains a Unigram model of `size` tokens, bytes and control tokens included.

    Args:
      texts: what it is trained on.
      size: of the vocabulary.
      apart: characters that are never joined with others, as digits.
    """
    trained = _train_sentencepiece(texts, size, "unigram", apart)
    entries = [
        (trained.id_to_piece(place), trained.get_score(place))
        for place in range(trained.get_piece_size())
    ]
    return _with_dummy_prefix(
        models.Unigram(entries, unk_id=trained.unk_id(), byte_fallback=True)
    )


def train_piece_bpe(
    texts: Sequence[str], size: int, apart: str = ""
) -> tokenizers.Tokenizer:
    """Trains a SentencePiece BPE of `size` tokens, bytes and controls included.

    Args:
      texts: what it is trained on.
      size: of the vocabulary.
      apart: characters that are never joined with others, as digits.
    """
    trained = _train_sentencepiece(texts, size, "bpe", apart)
    places = range(trained.get_piece_size())
    pieces = {trained.id_to_piece(place): place for place in places}
    model = models.BPE(
        vocab=pieces,
        merges=_merges(
            {
                piece: (-trained.get_score(place), place)
                for piece, place in pieces.items()
                if not (
                    trained.is_byte(place)
                    or trained.is_control(place)
                    or trained.is_unknown(place)
                )
            }
        ),
        unk_token=UNKNOWN,
        fuse_unk=True,
        byte_fallback=True,
    )
    return _with_dummy_prefix(model)


def _merges(ranks: dict[str, tuple[float, int]]) -> list[tuple[str, str]]:
    """Lists the pairs of pieces that make a piece, the best piece first."""
    pairs = [
        (piece[:cut], piece[cut:])
        for piece in ranks
        for cut in range(1, len(piece))
        if piece[:cut] in ranks and piece[cut:] in ranks
    ]
    return sorted(pairs, key=lambda pair: (ranks[pair[0] + pair[1]], ranks[pair[0]]))


def _train_sentencepiece(
    texts: Sequence[str], size: int, kind: Literal["unigram", "bpe"], apart: str
) -> sentencepiece.SentencePieceProcessor:
    """Trains pieces and their scores.

    SentencePiece does it: the Unigram trainer of `tokenizers` gives another vocabulary
    in every process.
    """
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=written,
        model_type=kind,
        vocab_size=size,
        user_defined_symbols=list(apart),
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_by_unicode_script=False,
        hard_vocab_limit=kind == "bpe",
        max_sentencepiece_length=_MOST_PIECE_CHARS,
        max_sentence_length=_MOST_SENTENCE_BYTES,
        num_threads=1,
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())


def _with_dummy_prefix(model: models.Model) -> tokenizers.Tokenizer:
    """Writes a space as ▁ and puts one in front of every text.

    As Llama 2's tokenizer: the dummy prefix comes always, also in front of a space.
    """
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1, right=0),
        ]
    )
    tokenizer.add_special_tokens([UNKNOWN, BEGIN, END])
    return tokenizer
