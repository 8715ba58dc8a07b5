"""Trains the tokenizers of the demo's models.

Two families that differ in all that matters to alignment: byte-level BPE, where any
bytes can be spelt and a space belongs to the word behind it, and Unigram with byte
fallback, where a text gets a space in front and rare characters fall apart into bytes.
"""

import io
from collections.abc import Sequence

import sentencepiece
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

BEGIN, END, UNKNOWN = "<s>", "</s>", "<unk>"
BORDER = "<|endoftext|>"
"""Begins and ends a document, as in GPT-2."""

_MOST_PIECE_CHARS = 16
_MOST_SENTENCE_BYTES = 1 << 16  # longer texts would be left out


def train_byte_bpe(texts: Sequence[str], size: int) -> tokenizers.Tokenizer:
    """Trains a byte-level BPE of `size` tokens, as GPT-2's; `BORDER` is token 0."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[BORDER],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def train_unigram(texts: Sequence[str], size: int) -> tokenizers.Tokenizer:
    """Trains a Unigram model of `size` tokens, bytes and control tokens included.

    SentencePiece trains it: the trainer of `tokenizers` gives another vocabulary in
    every process.
    """
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=written,
        model_type="unigram",
        vocab_size=size,
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_by_unicode_script=False,
        hard_vocab_limit=False,
        max_sentencepiece_length=_MOST_PIECE_CHARS,
        max_sentence_length=_MOST_SENTENCE_BYTES,
        num_threads=1,
        minloglevel=2,
    )
    trained = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
    entries = [
        (trained.id_to_piece(place), trained.get_score(place))
        for place in range(trained.get_piece_size())
    ]
    tokenizer = tokenizers.Tokenizer(
        models.Unigram(entries, unk_id=trained.unk_id(), byte_fallback=True)
    )
    # as Llama 2's: the dummy prefix comes always, also in front of a space
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
