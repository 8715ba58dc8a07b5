import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import safetensors.torch
import torch
import transformers

from schemas import files
from tests.transforms.scoring import WINDOWS
from transforms import causal, extras, loading, quantization, scorer, tokenizer
from transforms.loading import Loading
from transforms.scorer import ScorerSettings

CPU = torch.device("cpu")
COMPRESSED = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
GPU = torch.device("cuda", 1)


@pytest.fixture(scope="module")
def folder(models: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """Returns a model whose sizes are multiples of the 64 weights of a block."""
    place = tmp_path_factory.mktemp("model")
    for file in Path(models["llama"]).glob("tokenizer*"):
        shutil.copy(file, place)
    config = transformers.LlamaConfig(
        vocab_size=tokenizer.load(str(place)).size,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=160,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = transformers.LlamaForCausalLM(config)
        for weight in made.parameters():
            if weight.ndim > 1:
                weight.data.normal_(0, 0.2)
    made.save_pretrained(place)
    return str(place)


def load(model: str, **how: Any) -> Any:
    return loading.load_model(
        model, dtype=torch.float32, device=CPU, how=Loading(**how)
    )


def logprobs_of(model: Any) -> torch.Tensor:
    halves = causal.Halves(model)
    with torch.inference_mode():
        return halves.logits(halves.features(torch.arange(48)[None])[0]).log_softmax(-1)


@pytest.mark.parametrize(
    ("kind", "stored", "gap"),
    [("int8", torch.int8, 0.1), ("int4", torch.uint8, 1.0)],
)
def test_quantized_weights_say_about_what_whole_ones_say(
    folder: str, kind: Any, stored: torch.dtype, gap: float
) -> None:
    whole, made = load(folder), load(folder, quantization=kind)
    assert made.base_model.layers[0].mlp.up_proj.weight.dtype == stored
    between = (logprobs_of(whole) - logprobs_of(made)).abs().mean()
    assert 0 < between < gap


@pytest.mark.parametrize(("kind", "gap"), [("int8", 0.1), ("int4", 1.0)])
def test_a_model_is_scored_with_quantized_weights(
    folder: str, kind: Any, gap: float
) -> None:
    plain = ScorerSettings(model=folder, device="cpu", dtype="float32")
    rounded = dataclasses.replace(plain, loading=Loading(quantization=kind))
    wanted, found = (scorer.load(one).score(WINDOWS).scores for one in (plain, rounded))
    for one, other in zip(found, wanted, strict=True):
        assert one.error is None
        assert 0 < np.abs(one.gold_logprob - other.gold_logprob).mean() < gap


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_settings_of_transformers_are_those_that_are_meant(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert quantization.config_of("none", dtype, CPU) is None
    int8, int4 = (quantization.config_of(k, dtype, CPU) for k in ("int8", "int4"))
    assert int8.load_in_8bit
    assert int4.load_in_4bit
    assert int4.bnb_4bit_quant_type == "nf4"
    assert int4.bnb_4bit_use_double_quant
    assert int4.bnb_4bit_compute_dtype == dtype
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(extras, "require", lambda *_: None)
    fp8 = quantization.config_of("fp8", dtype, GPU)
    assert isinstance(fp8, transformers.FineGrainedFP8Config)
    assert tuple(fp8.weight_block_size) == (128, 128)
    assert not fp8.dequantize


def test_fp8_is_refused_where_nothing_multiplies_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(ValueError, match=r"have a GPU, and the device is cpu; use"):
        quantization.config_of("fp8", torch.float32, CPU)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 6))
    with pytest.raises(ValueError, match=r"8\.9 or more, and cuda:1 has 8\.6"):
        quantization.config_of("fp8", torch.float32, GPU)


@pytest.mark.parametrize(
    ("kind", "extra"), [("int8", "quantize"), ("int4", "quantize"), ("fp8", "fp8")]
)
def test_a_missing_package_is_named(
    kind: Any, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ModuleNotFoundError, match=rf"'fusebeam\[{extra}\]'"):
        quantization.config_of(kind, torch.float32, GPU)


def in_eight_bits(source: str, folder: Path, block: int = 8) -> None:
    """Writes a model as fp8 checkpoints are: e4m3 and a scale for each block."""
    held = safetensors.torch.load_file(Path(source) / "model.safetensors")
    made = {}
    for name, weight in held.items():
        made[name] = weight
        if ".layers." not in name or weight.ndim < 2:
            continue
        rows, columns = weight.shape
        blocks = weight.view(rows // block, block, columns // block, block)
        scale = blocks.abs().amax((1, 3)) / 448
        scaled = (blocks / scale[:, None, :, None]).view(rows, columns)
        made[name] = scaled.to(torch.float8_e4m3fn)
        made[f"{name}_scale_inv"] = scale
    folder.mkdir()
    safetensors.torch.save_file(made, folder / "model.safetensors", {"format": "pt"})
    config = files.read_json(f"{source}/config.json")
    config["quantization_config"] = {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "weight_block_size": [block, block],
        "modules_to_not_convert": ["lm_head"],
    }
    (folder / "config.json").write_text(json.dumps(config))


def test_weights_stored_in_eight_bits_are_unpacked_where_there_is_no_gpu(
    folder: str, tmp_path: Path
) -> None:
    in_eight_bits(folder, tmp_path / "fp8")
    whole, made = load(folder), load(str(tmp_path / "fp8"))
    assert {weight.dtype for weight in made.parameters()} <= {
        torch.float32,
        torch.bfloat16,
    }
    between = (logprobs_of(whole) - logprobs_of(made)).abs().mean()
    assert 0 < between < 0.5
    with pytest.raises(ValueError, match=r"are quantized already \(fp8\)"):
        load(str(tmp_path / "fp8"), quantization="int8")


def test_a_missing_package_of_stored_weights_is_named(
    models: dict[str, str], tmp_path: Path
) -> None:
    shutil.copytree(models["llama"], tmp_path / "packed")
    path = tmp_path / "packed" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "quantization_config": COMPRESSED}))
    law = r"packed are quantized \(compressed-tensors\), for which .*; install it, on"
    with pytest.raises(ValueError, match=law):
        load(str(tmp_path / "packed"))


def as_gguf(model: Any, path: Path) -> None:
    """Writes a Llama as a GGUF file, its weights in 8 bits where they fit in blocks."""
    writer, config = gguf.GGUFWriter(str(path), "llama"), model.config
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, weight in model.state_dict().items():
        array = weight.float().numpy()
        for part, count in heads.items():
            if f".{part}." in name:  # rotary halves lie side by side there
                halves = array.reshape(count, 2, -1, array.shape[1])
                array = halves.swapaxes(1, 2).reshape(array.shape)
        there = names.get_name(name, try_suffixes=(".weight",))
        writer.add_tensor(there, np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize(
    "how",
    [{}, {"device_map": "auto", "max_memory": ("cpu=74KB",)}],
    ids=["one", "laid"],
)
def test_a_gguf_file_says_what_the_model_said(
    folder: str, tmp_path: Path, how: dict[str, Any]
) -> None:
    whole = load(folder)
    as_gguf(whole, tmp_path / "m.gguf")
    made = load(str(tmp_path / "m.gguf"), **how)
    torch.testing.assert_close(logprobs_of(made), logprobs_of(whole))
    with pytest.raises(ValueError, match=r"must not be quantized again, got .* int8"):
        load(str(tmp_path / "m.gguf"), quantization="int8")
