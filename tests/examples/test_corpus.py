import json
import sys

import pytest

from examples import corpus
from schemas import documents
from schemas.documents import Document, Fields
from transforms.functional import splits

FIELDS = Fields(text="text", id="id", domain="domain")


def read(folder, domain):
    return list(documents.read(f"{folder}/{domain}.jsonl", FIELDS, domain))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    corpus.write_corpus(str(folder), "tiny")
    return folder


def test_every_record_is_a_document_of_its_domain(tiny):
    for domain in corpus.DOMAINS:
        for document in read(tiny, domain):
            assert isinstance(document, Document)
            assert document.domain == domain


def test_the_bytes_stay_within_the_budget_and_nearly_fill_it(tiny):
    for domain, budget in corpus.BYTES["tiny"].items():
        total = sum(len(d.text.encode()) for d in read(tiny, domain))
        assert 0.7 * budget <= total <= budget


def test_the_same_packages_give_the_same_bytes(tiny, tmp_path):
    corpus.write_corpus(str(tmp_path), "tiny")
    for domain in corpus.DOMAINS:
        name = f"{domain}.jsonl"
        assert (tmp_path / name).read_bytes() == (tiny / name).read_bytes()


def test_a_small_corpus_is_the_beginning_of_a_large_one_of_like_documents(
    tiny, tmp_path, monkeypatch
):
    twice = {domain: 2 * size for domain, size in corpus.BYTES["tiny"].items()}
    monkeypatch.setitem(corpus.BYTES, "full", twice)
    lengths = corpus._DOCUMENT_BYTES
    monkeypatch.setitem(lengths, "full", lengths["tiny"])
    corpus.write_corpus(str(tmp_path), "full")
    for domain in corpus.DOMAINS:
        small = (tiny / f"{domain}.jsonl").read_bytes()
        assert (tmp_path / f"{domain}.jsonl").read_bytes().startswith(small)


def test_document_ids_are_unique(tiny):
    ids = [d.doc_id for domain in corpus.DOMAINS for d in read(tiny, domain)]
    assert len(set(ids)) == len(ids)


def test_headers_of_different_operators_are_no_near_copies(tiny):
    shingles = [splits.shingles(d.text) for d in read(tiny, "headers")]
    half = len(shingles) // 2
    index = splits.ProtectedIndex.build(shingles[:half])
    copies = [index.overlap(own).is_near_copy for own in shingles[half:]]
    assert sum(copies) <= 0.1 * len(copies)


def test_markup_becomes_lines_of_plain_text():
    markup = (
        "<p>Gets a  <code>Key</code>\n &amp; more.</p><ul><li> One</li><li>Two</ul>"
    )
    assert corpus._plain_text(markup) == "Gets a Key & more.\nOne\nTwo"


def test_nothing_that_is_not_installed_is_found():
    with pytest.raises(FileNotFoundError, match="must be installed"):
        corpus.package_folder("no_such_package_at_all")


def test_finding_a_package_does_not_import_it(tmp_path, monkeypatch):
    (tmp_path / "never_imported").mkdir()
    (tmp_path / "never_imported" / "__init__.py").write_text("raise SystemExit\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert corpus.package_folder("never_imported") == tmp_path / "never_imported"
    assert "never_imported" not in sys.modules


def test_records_are_plain_json_lines(tiny):
    line = (tiny / "code.jsonl").read_text("utf-8").splitlines()[0]
    assert set(json.loads(line)) == {"id", "domain", "text"}
