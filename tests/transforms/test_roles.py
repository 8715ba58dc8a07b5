import json

import pytest

from transforms import roles

VOCABULARY = {"<s>": 1, "</s>": 2, "<pad>": 3}


def write(folder, **files):
    for name, entries in files.items():
        (folder / f"{name}.json").write_text(json.dumps(entries))
    return roles.read_roles(folder, VOCABULARY.get)


def test_tokens_are_names_or_records(tmp_path):
    found = write(
        tmp_path,
        tokenizer_config={"bos_token": "<s>", "eos_token": {"content": "</s>"}},
    )
    assert (found.bos_id, found.eos_id, found.pad_id) == (1, 2, None)


def test_the_first_file_that_speaks_decides_even_for_none(tmp_path):
    found = write(
        tmp_path,
        tokenizer_config={"bos_token": None},
        special_tokens_map={"bos_token": "<s>", "pad_token": "<pad>"},
        config={"bos_token_id": 1, "eos_token_id": [2, 3], "pad_token_id": None},
    )
    assert found == roles.Roles(bos_id=None, eos_id=2, pad_id=3, unk_id=None)


def test_multimodal_configurations_keep_roles_with_the_text_model(tmp_path):
    found = write(tmp_path, config={"text_config": {"eos_token_id": 2}})
    assert found.eos_id == 2


def test_a_token_that_the_vocabulary_lacks_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"eos_token .* '<end>'"):
        write(tmp_path, tokenizer_config={"eos_token": "<end>"})


def test_a_folder_without_files_has_no_roles(tmp_path):
    assert write(tmp_path) == roles.Roles(
        bos_id=None, eos_id=None, pad_id=None, unk_id=None
    )
